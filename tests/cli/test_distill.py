"""`twofold distill` as it is typed: run, run again, in stages, for another task, in two processes, and mistyped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from twofold.cli.main import main
from twofold.settings.presets import DISTILL, preset_names
from twofold.settings.train import TrainSettings

from ..learn.common import tiny, torchrun
from .common import random_run
from .students import student_run

TINY = ["backbone.blocks=[1,1]", "backbone.channels=8", "finetune.train.validate_images=64"]
TINY += ["finetune.train.n_images=64", "finetune.train.batch_size=32"]
TAUGHT = ["pretrain.objective.teacher_layers=[mid]", "pretrain.train.n_images=64", "pretrain.train.batch_size=32"]
TAUGHT += ["pretrain.train.validate_images=64"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_run(tmp_path_factory.mktemp("teacher") / "run", tiny(), [], 0))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 digits with a split of their own."""
    found = load_digits()
    splits = np.array(["train"] * 150 + ["validation"] * 30 + ["test"] * 60)
    file = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(file, images=(found.images[:240] * 255 / 16).astype(np.uint8), labels=found.target[:240], splits=splits)
    return file


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images of 8x8 with a bright half each, and masks of it, as folders."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("halves")
    for split, count in (("train", 12), ("test", 4)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((8, 8), np.uint8)
            mask[:, : rng.integers(2, 7)] = 1
            image = (60 + 120 * mask + rng.integers(0, 20, mask.shape)).astype(np.uint8)
            Image.fromarray(image).save(folder / "images" / split / f"{i}.png")
            Image.fromarray(mask).save(folder / "masks" / split / f"{i}.png")
    return folder


def distill(out: Path, *words: str) -> dict[str, Any]:
    """The result of a run that must succeed."""
    assert main(["distill", *words, *TINY, "--out", str(out), "--device", "cpu", "--quiet"]) == 0
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def made(result: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["made"] for row in result["parts"]}


def mini(teacher: str, digits: Path, *words: str) -> list[str]:
    return [teacher, "classify-mini", f"data.source={digits}", "labels_per_class=3", *TAUGHT, *words]


def test_help_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--help"]) == 0
    said = capsys.readouterr().out
    for word in ("[RUN] [PRESET]", "--parts FOLDER", "pretrain.objective.teacher=TEXT", "student=TEXT", "presets:"):
        assert word in said, word
    for name in preset_names(DISTILL):
        assert f"\n  {name} " in said, name


def test_run_again_in_stages_and_for_another_task(
    teacher: str, digits: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = mini(teacher, digits)
    only = distill(out, *words, "stage=pretrain")
    assert made(only) == {"backbone": "made"} and not only["arms"]
    said = capsys.readouterr().out
    assert f"next: twofold distill student={out}" in said

    first = distill(out, *words)
    assert made(first) == {"backbone": "found", "taught-run": "made", "scratch-run": "made", "equal-run": "made"}
    said = capsys.readouterr().out
    assert "30 of 150 training images are labelled, 60 test" in said and "accuracy, equal compute" in said
    assert str(out / "report.html") in said and "next: twofold predict" in said
    page = (out / "report.html").read_text()
    assert all(
        f"{arm['metrics']['accuracy']['value']:.1%}".replace("%", " %") in page for arm in first["arms"].values()
    )

    again = distill(out, *words)
    assert set(made(again).values()) == {"found"} and again["arms"] == first["arms"]

    alone = distill(tmp_path / "alone", *words, "stage=scratch", "--parts", str(out / "parts"))
    assert made(alone) == {"scratch-run": "found"} and list(alone["arms"]) == ["scratch"]

    images = tmp_path / "new"
    images.mkdir()
    Image.fromarray((load_digits().images[0] * 255 / 16).astype(np.uint8)).save(images / "a.png")
    answers = tmp_path / "answers.csv"
    assert main(["predict", first["arms"]["taught"]["run"], str(images), "--quiet", "--out", str(answers)]) == 0
    assert answers.read_text().splitlines()[1].startswith("a.png")

    other = ["segment-mini", f"student={out}", f"data.source={masks}", "data.size=null", "data.flip=false"]
    other += ["annotated=4", "finetune.head.channels=8", "data.mask_classes=[dark,bright]"]
    result = distill(tmp_path / "masks", *other)
    assert result["measure"] == "miou" and list(result["arms"]) == ["taught", "scratch"]
    assert result["pretraining"] == {"student": str(out)} and result["data"]["known_images"] == 4


def test_a_dry_run_says_what_will_be_done_and_does_nothing(
    teacher: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", *mini(teacher, digits), *TINY, "--dry-run", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "30 of 150 training images known, 60 to test" in said and f"teacher: {teacher}" in said
    for line in ("pretrain", "taught", "scratch", "equal compute"):
        assert any(row.startswith(line) and "images, about" in row for row in said.splitlines()), line
    assert said.strip().endswith("on this cpu in fp32") and not (tmp_path / "out").exists()
    assert main([*words, "stage=nonsense"]) == 2


def test_a_classifier_teaches(digits: Path, tmp_path: Path) -> None:
    own = student_run(tmp_path / "classifier", "classification", [str(i) for i in range(10)], (1, 8, 8))
    words = [str(own), "kd-mini", f"data.source={digits}", "data.labels_per_class=3"]
    result = distill(tmp_path / "out", *words)
    assert {"taught", "scratch"} <= set(result["arms"]) and set(made(result).values()) == {"made"}
    assert result["pretraining"] is None and (tmp_path / "out" / "report.html").is_file()
    again = distill(tmp_path / "out", *words, "stage=finetune")
    assert made(again)["taught-run"] == "found" and list(again["arms"]) == ["taught"]


def test_the_baseline_of_a_published_recipe_needs_no_teacher(digits: Path, tmp_path: Path) -> None:
    words = ["repfusion-cifar10-r18-hint", "stage=scratch", f"data.source={digits}", "data.channels=1"]
    result = distill(tmp_path / "out", *words)
    assert made(result) == {"scratch-run": "made"} and result["pretraining"] is None


# -- what a user may get wrong ----------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], out: Path, *words: str) -> str:
    """The one line that is said instead of doing anything."""
    capsys.readouterr()
    assert main(["distill", *words, *TINY, "--out", str(out), "--device", "cpu", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("twofold: error: ") and error.count("\n") == 1, error
    return error


def test_teachers_that_are_none(teacher: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, words = tmp_path / "out", mini(teacher, digits)[1:]
    classifier = student_run(tmp_path / "c", "classification", ["0", "1"], (1, 8, 8))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("words")
    assert "runs/nowhere" in refused(capsys, out, "runs/nowhere", *words)
    assert str(tmp_path / "notes") in refused(capsys, out, str(tmp_path / "notes"), *words)
    assert "is no denoiser; give the run of a denoiser" in refused(capsys, out, str(classifier), *words)
    kd = ["kd-mini", f"data.source={digits}"]
    assert "classifier" in refused(capsys, out, teacher, *kd)
    assert "does not know 2, 3, 4 and 5 more" in refused(capsys, out, str(classifier), *kd)
    assert "the teacher is missing; `twofold distill RUN`" in refused(capsys, out, *words)
    patches = {"kind": "dit", "width": 16, "depth": 2, "heads": 2, "embedding_channels": 16}
    settings = TrainSettings.model_validate({**tiny().model_dump(), "network": patches})
    of_patches = str(random_run(tmp_path / "dit", settings, [], 0))
    words = [word for word in words if "teacher_layers" not in word]
    assert "9x9 images do not fit" in refused(capsys, out, of_patches, *words, "data.size=9")
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kd-minni"], "kd-minni: no such preset; did you mean 'kd-mini'?"),
        (["classify-mini", "more"], "more: not expected here"),
        (["classify-mini", "data=nowhere/"], "nowhere/"),
        (["classify-mini", "labels=gone.csv"], "gone.csv"),
        (["classify-mini", "labels_per_class=500"], "labels_per_class=500"),
        (["classify-mini", "labels=a.csv", "labels_per_class=2"], "keep one of them"),
        (["classify-mini", "data.channels=3"], "set data.channels=1"),
        (["classify-mini", "task=segment"], "needs finetune.objective.kind=segmentation, not supervised"),
        (["classify-mini", "pretrain.objective.teacher_layers=[dec.9]"], "dec.9"),
        (["classify-mini", "student=runs/a"], "student=runs/a"),
        (["segment-mini", "data.source=digits", "data.size=8"], "mask"),
        (["landmarks-mini", "data.source=digits", "data.size=8", "data.flip=false"], "point"),
        (["classify-mini", "backbone.blocks=[1,1,1,1,1,1]"], "too small for its total stride of 32"),
        (["classify-mini", "nonsense=1"], "unknown setting"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, teacher: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [] if any(word.startswith(("data=", "data.source=")) for word in words) else [f"data.source={digits}"]
    said = [word for word in TAUGHT if not any(word.split("=")[0] == given.split("=")[0] for given in words)]
    small = TINY[0] if not any(given.startswith("backbone.blocks") for given in words) else ""
    capsys.readouterr()
    everything = [teacher, *words, *own, *said, *([small] if small else []), "--out", str(tmp_path / "out")]
    assert main(["distill", *everything, "--device", "cpu", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("twofold: error: ") and error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "out").exists()


def test_images_without_labels(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(load_digits().images[:20]):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(folder / f"{i}.png")
    words = [teacher, "classify-mini", "labels_per_class=null", f"data.source={folder}", *TAUGHT]
    assert "has 0 classes" in refused(capsys, tmp_path / "out", *words)
    (tmp_path / "labels.csv").write_text("id,class\n0.png,zero\nnot-there.png,one\n")
    error = refused(capsys, tmp_path / "out", *words, f"labels={tmp_path / 'labels.csv'}")
    assert "not-there.png" in error and not (tmp_path / "out").exists()


def test_a_folder_of_something_else(
    teacher: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("words")
    error = refused(capsys, tmp_path / "thesis", *mini(teacher, digits))
    assert "the folder is not empty and is not an experiment of distillation; give --out a new folder" in error
    assert (tmp_path / "thesis" / "thesis.txt").read_text() == "words" and not (tmp_path / "thesis" / "parts").exists()


# -- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes(teacher: str, digits: Path, tmp_path: Path) -> None:
    """The same parts by name, which is by all they were made from, and one voice; norms see half of each batch, so what
    is learned is alike and not the same."""
    words = [*mini(teacher, digits, "stage=finetune"), *TINY, "--device", "cpu", "--quiet"]
    assert main(["distill", *words, "--out", str(tmp_path / "one")]) == 0
    printed = torchrun("-m", "twofold", "distill", *words, "--out", str(tmp_path / "two"))
    assert printed.count("report:") == 1
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert made(one) == made(two) == {"backbone": "made", "taught-run": "made"}
    assert Path(one["parts"][0]["folder"]).name == Path(two["parts"][0]["folder"]).name
    for measured in (one["arms"]["taught"], two["arms"]["taught"]):
        assert measured["metrics"]["accuracy"]["n"] == 60
    assert files(tmp_path / "one") == files(tmp_path / "two")
    before, after = (weights(tmp_path / name, "backbone") for name in ("one", "two"))
    assert before.keys() == after.keys()
    near = [torch.nn.functional.cosine_similarity(before[k].flatten(), after[k].flatten(), 0) for k in before]
    assert min(near) > 0.9


def files(out: Path) -> set[str]:
    """What lies in the folder, without the hashes in names of parts."""
    names = (str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return {re.sub(r"-[0-9a-f]{12}", "", name) for name in names if not name.startswith(".")}


def weights(out: Path, kind: str) -> dict[str, torch.Tensor]:
    found = load_file(next((out / "parts").glob(f"{kind}-*")) / "model.safetensors")
    return {name: value.double() for name, value in found.items() if value.ndim > 1}
