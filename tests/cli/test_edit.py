"""`twofold edit`, end to end on digits with untrained models, and its failure paths."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twofold.cli.edit import in_order, target_of
from twofold.cli.edited import Folder, measured, verdict
from twofold.cli.main import main
from twofold.errors import UserError
from twofold.generate.pull import answers
from twofold.settings.edit import EditSettings
from twofold.settings.presets import open_preset
from twofold.settings.resolve import parse_assignments, resolve
from twofold.settings.train import TrainSettings

from .common import random_run
from .test_sample_evaluate import make_run

NAMES = [str(k) for k in range(10)]
QUICK = ["strength=0.5", "steps=2", "--quiet"]


def joint_run(path: Path, **change: Any) -> Path:
    change = {"network": {"channels": 8, "blocks": 1}, "data": {"source": "digits"}, **change}
    settings, _ = resolve(TrainSettings, [*open_preset("joint-digits-mini").layers, ("test", change)])
    return random_run(path, settings, NAMES, 0)


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return joint_run(tmp_path_factory.mktemp("runs") / "joint")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "judge", "digits-classifier")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colour pictures larger than the model takes, two of one name in different folders."""
    folder = tmp_path_factory.mktemp("photos")
    for k, name in enumerate(("a/x.png", "b/x.png", "b/y z.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def table(out: Path) -> list[dict[str, str]]:
    with (out / "edits.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_a_folder_of_pictures(
    joint: Path, judge: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    words = ["to=3", f"judge={judge}", "figures=2", *QUICK, "--out", str(out)]
    assert main(["edit", str(joint), str(photos), *words]) == 0
    assert "3 images" in capsys.readouterr().out
    rows = table(out)
    assert [row["given"] for row in rows] == ["a", "b", "b"] and len({row["file"] for row in rows}) == 3
    for row in rows:
        edited, change = (Image.open(out / kind / f"{row['file']}.png") for kind in ("edited", "difference"))
        assert edited.size == change.size == (8, 8) and (edited.mode, change.mode) == ("L", "RGB")
        assert row["label_before"] in NAMES and row["judge_after"] in NAMES
        assert 0 <= float(row["p_before"]) <= 1 and float(row["sigma"]) == pytest.approx(1.0) and float(row["rms"]) >= 0
        assert row["flipped"] == str(row["judge_after"] == "3" != row["judge_before"])
    assert len(list((out / "figures").iterdir())) == 2
    found = json.loads((out / "result.json").read_text())
    assert found["metrics"]["images"] == 3 and found["settings"]["to"] == "3" and found["versions"]["torch"]
    assert (out / "overview.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_again_continues(
    joint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import twofold.generate.edit as module

    out, calls, whole = tmp_path / "o", [], module.apply
    words = ["edit", str(joint), "digits", "to=1", "n=5", "micro_batch=2", "figures=0", *QUICK, "--out", str(out)]

    def third_fails(*arguments: Any, **more: Any) -> Any:
        calls.append(len(arguments[2]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments, **more)

    monkeypatch.setattr(module, "apply", third_fails)
    assert main(words) == 130 and not (out / "edits.csv").exists() and calls == [2, 2, 1]
    assert main(words) == 0 and calls == [2, 2, 1, 1]  # what was finished is not computed again
    first = (out / "edits.csv").read_bytes()
    monkeypatch.setattr(module, "apply", None)
    result = (out / "result.json").read_bytes()
    again = [*words[:1], str(joint.parent / ".." / joint.parent.name / joint.name), *words[2:]]  # of the same model
    assert main(again) == 0 and (out / "edits.csv").read_bytes() == first and len(table(out)) == 5
    assert (out / "result.json").read_bytes() == result
    straight = tmp_path / "straight"
    monkeypatch.setattr(module, "apply", whole)
    assert main([*words[:-1], str(straight)]) == 0
    assert (straight / "edits.csv").read_bytes() == first
    assert (straight / "overview.png").read_bytes() == (out / "overview.png").read_bytes()
    capsys.readouterr()
    assert main([*words, "seed=1"]) == 2
    assert "holds other edits: seed: 0 -> 1; choose another --out" in said(capsys)
    (out / "request.json").write_text("[1]")
    assert main(words) == 2 and "request.json: cannot be read" in said(capsys)


def test_default_folder_is_in_the_run(joint: Path, photos: Path) -> None:
    assert main(["edit", str(joint), str(photos / "a" / "x.png"), "to=3", "noise=random", *QUICK]) == 0
    (folder,) = (joint / "edits").iterdir()
    assert folder.name.startswith("x-") and len(table(folder)) == 1 and "given" not in table(folder)[0]


def test_attributes_are_named_together(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = joint_run(tmp_path / "attributes", objective={"multi_label": True}), tmp_path / "o"
    words = ["edit", str(run), str(photos / "a" / "x.png"), *QUICK, "confidence=0.5", "--out", str(out)]
    assert main([*words, "to=3;not 44"]) == 2 and "to=3;not 44: no attribute '44'" in said(capsys)
    assert not out.exists() and main([*words, "to=3;not 4"]) == 0
    (row,) = table(out)
    for when in ("before", "after"):
        assert set(row[f"label_{when}"].split(";")) <= {*NAMES, ""}
        there = {"3", "4"} & set(row[f"label_{when}"].split(";"))
        assert when == "before" or row["flipped"] == str(there == {"3"} and row["already"] == "False")
    assert len(list((out / "figures").iterdir())) == 1


def test_labels_guide_a_conditional_denoiser(photos: Path, tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "cond"), tmp_path / "o"
    words = ["to=3", "margin=1", *QUICK, "--out", str(out)]
    assert main(["edit", str(run), str(photos / "a" / "x.png"), *words]) == 0
    assert table(out)[0]["scale"] == "2.0"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["to=11"], "to=11: no such class; the classes are 0, 1, 2, 3"),
        ([], "to"),
        (["to=3", "strength=2"], "strength"),
        (["to=3", "sigma=1e5"], "sigma=100000: the model knows"),
        (["to=3", "guide=labels"], "guide=labels: this model is unconditional"),
        (["to=3", "guide=nobody"], "error: guide=nobody: no such run"),
        (["to=3", "judge=nobody"], "error: judge=nobody: no such run"),
        (["to=3", "guide=JUDGE"], "does not judge noisy images (this classifier was trained on clean images); give a"),
        (["to=3", "guide=onw"], "guide=onw: neither a kind of guide nor a run; did you mean 'own'"),
    ],
)
def test_mistakes_are_told(
    joint: Path,
    judge: Path,
    photos: Path,
    tmp_path: Path,
    words: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "o"
    words = [word.replace("JUDGE", str(judge)) for word in words]
    assert main(["edit", str(joint), str(photos), *words, "--quiet", "--out", str(out)]) == 2
    assert expected in said(capsys) and not out.exists()


def test_more_mistakes(
    joint: Path, judge: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["edit", str(joint), "nothere.png", "to=3", *QUICK]) == 2
    assert "error: IMAGE nothere.png: there is no such file or folder" in said(capsys)
    assert main(["edit", str(judge), str(photos), "to=3", *QUICK]) == 2
    assert "holds a classifier, which generates nothing" in said(capsys)
    assert main(["edit", str(joint), str(photos), "to=3", f"judge={joint.parent}", *QUICK]) == 2
    assert "holds neither a run" in said(capsys)
    other = make_run(tmp_path / "other", "digits-classifier", classes=[f"k{i}" for i in range(10)])
    assert main(["edit", str(joint), str(photos), "to=3", f"judge={other}", *QUICK]) == 2
    assert "does not know the same classes" in said(capsys)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    assert main(["edit", str(joint), str(tmp_path / "bad"), "to=3", *QUICK, "--out", str(tmp_path / "o")]) == 2
    assert "x.png" in said(capsys)
    skip = ["on_bad_image=skip", "--out", str(tmp_path / "p")]
    assert main(["edit", str(joint), str(tmp_path / "bad"), "to=3", *QUICK, *skip]) == 2
    assert "holds no readable image" in said(capsys)
    assert main(["edit", str(joint), str(photos), "to=3", *QUICK, "--out", str(photos)]) == 2
    assert "no folder of edits" in said(capsys)
    assert main(["edit", str(joint), str(photos), "to=3", *QUICK, "--out", str(photos / "a" / "x.png" / "o")]) == 2
    assert "Not a directory" in said(capsys)


def test_targets_in_words() -> None:
    assert target_of("b", ["a", "b"], False).tolist() == [1]
    assert target_of("a;not b", ["a", "b", "c"], True).tolist() == [[1, 0, -1]]
    with pytest.raises(UserError, match="to=d"):
        target_of("d", ["a", "b"], True)
    assert EditSettings.model_validate(parse_assignments(["to=007"])).to == "007"


def test_who_may_judge() -> None:
    guide: Any = SimpleNamespace(class_names=["a", "b"], multi_label=False)
    fitting = SimpleNamespace(class_names=["b", "a"], shape=(1, 8, 8), image_logits=lambda images: images)
    found = in_order(fitting, guide, (1, 8, 8), "runs/j")
    assert found is not None and answers(found, torch.tensor([[1.0, 2.0]])).tolist() == [[2.0, 1.0]]
    assert in_order(None, guide, (1, 8, 8), None) is None
    for change, told in (
        ({"shape": (3, 32, 32)}, "judge=runs/j: takes images of 3 x 32 x 32, these are 1 x 8 x 8"),
        ({"multi_label": True}, "names a single class, the other"),
        ({"class_names": ["a", "c"]}, r"does not know the same classes \(b, c\)"),
    ):
        with pytest.raises(UserError, match=told):
            in_order(SimpleNamespace(**{**vars(fitting), **change}), guide, (1, 8, 8), "runs/j")


def test_files_are_called_after_images_and_never_alike(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "o", {}, [], EditSettings(to="1"))
    names = [folder.stem(name) for name in ("a/x.png", "a_x.jpg", "../../etc", "", "é ü.png", "data.parquet:3")]
    assert names[:2] == ["a_x", "a_x-2"] and len(set(names)) == 6
    assert all(name and "/" not in name and not name.startswith(".") for name in names)


def test_what_is_said_of_one_edit(tmp_path: Path) -> None:
    row = {"already": False, "flipped": True, "reached": True, "label_before": "", "label_after": "Old;Smiling"}
    assert verdict(row) == "flipped" and verdict(row | {"already": True}) == "the target already"
    assert verdict(row | {"reached": False}) == "flipped, not reached"
    assert verdict(row | {"flipped": False, "reached": False}) == "not flipped, not reached"
    folder = Folder(tmp_path / "o", {}, [], EditSettings(to="Smiling;not Male"), ["Male", "Smiling"])
    assert folder.answer(row, "before") == "not Male;not Smiling"  # of what was asked about only
    assert folder.answer(row, "after") == "not Male;Smiling"
    assert folder.answer(row | {"judge_after": "Male"}, "after") == "Male;not Smiling"
    assert Folder(tmp_path / "p", {}, [], EditSettings(to="1")).answer(row, "after") == "Old;Smiling"


def test_what_is_said_of_all_edits() -> None:
    row = {"already": False, "flipped": True, "rms": 2.0, "l2": 1.0, "features": 0.1}
    found = measured(
        [row, row | {"flipped": False, "rms": 4.0}, row | {"already": True, "flipped": False, "rms": 99.0}]
    )
    assert found["flipped"] == 0.5 and found["others"] == 2 and found["images"] == 3 and found["rms"] == 3.0
    assert measured([row | {"already": True}])["flipped"] is None
