"""A joint model is measured and asked as a denoiser and as a classifier; other kinds of images are told apart.

The models are untrained.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twofold.cli.compared import guide_in_words
from twofold.cli.main import main
from twofold.data import open_store
from twofold.measure import accuracy, calibration_error
from twofold.recognize.classifier import JointClassifier
from twofold.recognize.noise_curve import LEVELS
from twofold.report import answers
from twofold.run import Run, build, load, save_model
from twofold.settings.data import DataSettings
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

NETWORK = {"channels": 8, "blocks": 1}
QUICK = ["n=10", "steps=2", "precision=fp32", "--quiet", "--device", "cpu"]
ANSWERS = ("accuracy", "calibration_error", "brier", "log_loss")


def make_run(path: Path, preset: str, names: list[str], data: dict[str, Any], **objective: Any) -> Path:
    """A run folder with random weights."""
    network = {"channels": 8} if preset == "digits-classifier" else NETWORK
    change: dict[str, Any] = {"network": network, "data": data}
    change |= {"objective": objective} if objective else {}
    settings, _ = resolve(TrainSettings, [*open_preset(preset).layers, ("test", change)])
    run = Run(path)
    Run.start(path, settings)
    torch.manual_seed(0)
    model = build(settings, (1, 8, 8), names)
    with torch.no_grad():  # layers that start at zero would say the same of everything
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(run.model_file, model.network.state_dict(), model, settings, 0)
    return path


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [str(k) for k in range(10)]
    return make_run(tmp_path_factory.mktemp("runs") / "joint", "joint-digits-mini", names, {"source": "digits"})


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [str(k) for k in range(10)]
    return make_run(tmp_path_factory.mktemp("runs") / "clean", "digits-classifier", names, {"source": "digits"})


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour images of 12 x 12 with one bright bar, in folders "across" and "down": nothing like digits."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("shapes")
    for i in range(60):
        pixels = random.integers(0, 60, (12, 12, 3)).astype(np.uint8)
        at = random.integers(0, 12)
        pixels[at if i % 2 else slice(None), slice(None) if i % 2 else at] = 250
        place = folder / ("across" if i % 2 else "down")
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of answers have tests of their own; here it counts that there is one, and where."""
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "png")
    for name in ("reliability_figure", "strangeness_figure", "noise_curves"):
        monkeypatch.setattr(answers, name, lambda *_: file.getvalue())


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def found_in(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())


def test_a_joint_model_is_measured_as_both(joint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(joint), *QUICK, "--out", str(tmp_path)]) == 0
    printed, found = capsys.readouterr().out, found_in(tmp_path)
    assert "frechet/pixels" in found["metrics"] and "accuracy" not in found["metrics"]
    said_of = found["answers"]
    store, model = open_store(DataSettings(source="digits")), load(joint)
    rows = store.indices("test")
    with torch.no_grad():
        logits = JointClassifier(model).image_logits(store.batch(rows))  # type: ignore[arg-type]
    label = torch.from_numpy(store.labels[rows].astype(np.int64))
    assert said_of["metrics"]["accuracy"]["samples"] == pytest.approx(accuracy(logits, label))
    expected = calibration_error(logits.double().softmax(1), label)
    assert said_of["metrics"]["calibration_error"]["samples"] == pytest.approx(expected, abs=1e-6)
    assert set(ANSWERS) <= said_of["metrics"].keys() and "temperature" in said_of["metrics"]
    after, before = (said_of["metrics"][name]["samples"] for name in ("log_loss_scaled", "log_loss"))
    assert after < before  # random weights are far from calibrated, on the test part as on the validation part
    assert [row["sigma"] for row in said_of["noise"]] == list(LEVELS)
    assert list(said_of["per_class"]) == [str(k) for k in range(10)]
    assert sum(row["images"] for row in said_of["per_class"].values()) == said_of["images"]["test"] == len(rows)
    assert "frechet/pixels" in printed and "answers\n" in printed and "accuracy at sigma 0.5" in printed
    assert {p.name.partition("-")[2].partition("-")[2] for p in tmp_path.glob("*-*-*.png")} == {"reliability.png"}
    page = (joint / "report.html").read_text()
    assert "Answers" in page and "Calibration error" in page and "Generated beside real images" in page


def test_answers_that_cannot_be_judged_are_left_out(
    joint: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted(shapes.glob("*/*.png"))):
        (flat / f"{i}.png").write_bytes(file.read_bytes())
    for source, why in ((shapes, "its classes are across, down"), (flat, "has no labels")):
        data = f"data={{source: {source}, size: 8, channels: 1}}"
        assert main(["evaluate", str(joint), *QUICK, data, "--out", str(tmp_path / source.name)]) == 0
        found = found_in(tmp_path / source.name)
        assert "answers" not in found and "frechet/pixels" in found["metrics"]
        (note,) = [line for line in found["notes"] if "answers are left out" in line]
        assert why in note and note in capsys.readouterr().out
    assert "Calibration error" not in (joint / "report.html").read_text()


def test_images_of_another_kind(
    joint: Path, clean: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_answers = {"max_probability", "energy", "entropy"}
    for run, others, split, scores in (
        (joint, shapes, "all", by_answers | {"denoising_error"}),
        (clean, "digits", "test", by_answers),
    ):
        words = ["evaluate", str(run), f"ood={others}", "ood_images=40", "--quiet", "--out", str(tmp_path / run.name)]
        assert main([*words, *QUICK[:3], "noise_levels=[]"] if run == joint else words) == 0
        found, printed = found_in(tmp_path / run.name)["ood"], capsys.readouterr().out
        assert set(found["scores"]) == scores
        assert found["own"]["images"] == 40 and found["own"]["split"] == "test"
        assert found["other"] == {**found["other"], "images": 40, "split": split}
        assert ("the model's own data" in printed) is (others == "digits")
        for name, row in found["scores"].items():
            assert 0 <= row["low"] <= row["auroc"] <= row["high"] <= 1
            assert f"{row['auroc']:.4f}" in next(line for line in printed.splitlines() if line.startswith(name))
        assert len(list((tmp_path / run.name).glob("*-ood.png"))) == 1
        assert "Images of another kind" in (run / "report.html").read_text()


def test_a_denoiser_tells_other_images_by_denoising_alone(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "free", "digits", [], {"source": "digits"})
    assert main(["evaluate", str(run), *QUICK, f"ood={shapes}", "ood_images=20", "--out", str(tmp_path / "x")]) == 0
    found = found_in(tmp_path / "x")
    assert set(found["ood"]["scores"]) == {"denoising_error"} and "answers" not in found
    assert "Other images" in (run / "report.html").read_text()


def test_a_joint_model_judges_and_encodes(joint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(joint), *QUICK, f"classifier={joint}", "encoder=convnet", "noise_levels=[]"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    found = found_in(tmp_path)
    assert 0 <= found["metrics"]["acceptance"]["samples"] <= 1 and "frechet/convnet" in found["metrics"]


def columns(path: Path) -> dict[str, list[str]]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_predict_by_its_own_head(joint: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, noisy = tmp_path / "a.csv", tmp_path / "b.csv"
    assert main(["predict", str(joint), str(shapes), "--out", str(plain), "--device", "cpu", "precision=fp32"]) == 0
    assert "by the model's own head" in capsys.readouterr().err
    found, model = columns(plain), JointClassifier(load(joint))  # type: ignore[arg-type]
    store = open_store(DataSettings(source=str(shapes), size=(8, 8), channels=1))
    with torch.no_grad():
        expected = model.image_logits(store.batch(range(60))).double().softmax(1)
    order = [found["id"].index(store.id(i)) for i in range(60)]
    for k in range(10):
        values = [float(found[f"p({k})"][place]) for place in order]
        assert values == pytest.approx(expected[:, k].tolist(), abs=2e-5)
    assert main(["predict", str(joint), str(shapes), "--out", str(noisy), "sigma=1", "--quiet"]) == 0
    assert columns(noisy)["p(0)"] != found["p(0)"]
    assert main(["predict", str(joint), str(shapes), "sigma=1000", "--quiet", "--out", str(plain)]) == 2
    assert "the classifier knows 0.002 to 80" in said(capsys)
    for word in ("embed=true", "anomaly=true"):  # as of any denoiser
        out = tmp_path / f"{word}.csv"
        assert main(["predict", str(joint), str(shapes), word, "draws=1", "--quiet", "--out", str(out)]) == 0
        assert "p(0)" not in columns(out) and "label" not in columns(out)
    assert main(["predict", str(joint), str(shapes), "method=zero_shot", "--quiet"]) == 2  # it is unconditional
    assert "unconditional" in said(capsys)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file of images that are bright or not, and dim, now and then unknown; nobody is "never"."""
    datasets = pytest.importorskip("datasets")
    random = np.random.default_rng(0)
    bright = random.integers(0, 2, 200)
    pictures = [random.integers(100 * b, 100 * b + 128, (8, 8)).astype(np.uint8) for b in bright]
    rows = {
        "image": [Image.fromarray(picture) for picture in pictures],
        "bright": bright.tolist(),
        "dim": [-1 if i % 7 == 0 else int(1 - b) for i, b in enumerate(bright)],
        "never": [0] * 200,
    }
    path = tmp_path_factory.mktemp("table") / "faces.parquet"
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(str(path))
    return path


def test_attributes(table: Path, joint: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["bright", "dim", "never"]
    data = {"source": str(table), "attribute_columns": names}
    run = make_run(tmp_path / "run", "joint-digits-mini", names, data, multi_label=True)
    assert main(["evaluate", str(run), *QUICK, "noise_levels=[0, 1]", f"ood={shapes}", "--out", str(tmp_path)]) == 0
    found, printed = found_in(tmp_path)["answers"], capsys.readouterr().out
    assert found["kind"] == "attributes" and list(found["per_class"]) == names
    for name in ("accuracy", "exact"):
        low, high = found["metrics"][name]["interval"]
        assert low <= found["metrics"][name]["samples"] <= high and low < high
    assert {"accuracy", "always", "macro_f1", "average_precision", "exact", "brier"} <= found["metrics"].keys()
    assert found["per_class"]["never"]["f1"] is None and found["per_class"]["never"]["always"] == 1
    assert found["per_class"]["dim"]["images"] < found["per_class"]["bright"]["images"]
    assert found["metrics"]["accuracy"]["samples"] == pytest.approx(
        np.mean([row["accuracy"] for row in found["per_class"].values()])
    )
    asked = sum(row["images"] for row in found["per_class"].values())
    assert sum(row["answers"] for row in found["reliability"]) == asked
    assert [row["sigma"] for row in found["noise"]] == [0, 1] and "macro_f1" in printed
    assert "Commoner answer" in (run / "report.html").read_text()
    out = tmp_path / "said.csv"
    assert main(["predict", str(run), str(shapes), "--quiet", "--out", str(out), "precision=fp32"]) == 0
    said_so = columns(out)
    for label, *values in zip(said_so["label"], *(said_so[f"p({name})"] for name in names), strict=True):
        assert label == ";".join(n for n, p in zip(names, values, strict=True) if float(p) > 0.5)
    assert main(["evaluate", str(joint), *QUICK, f"classifier={run}"]) == 2
    assert "answers a question about each attribute by itself" in said(capsys)
    assert main(["evaluate", str(run), *QUICK, "data=digits", "--out", str(tmp_path / "digits")]) == 0
    assert "answers" not in found_in(tmp_path / "digits")


def test_mistakes(joint: Path, clean: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save = f"save_statistics={tmp_path / 'x.npz'}"
    for words, expected in (
        ([str(joint), "noise_levels=[100]"], "noise_levels=100: outside [0.002, 80]"),
        ([str(joint), "ood_images=50"], "ood_images: no images of another kind are named"),
        ([str(joint), "ood=nowhere/at-all"], "error: ood=nowhere/at-all: "),
        ([str(shapes), "data=digits", f"ood={shapes}"], "holds images, and no model"),
        (["data=digits", save, f"ood={shapes}"], "ood: only the statistics of real images are written"),
        ([str(clean), f"ood={shapes}", "ood_images=3"], "ood_images"),
        ([str(clean), "guide=own"], "guide: "),
        ([str(joint / "model.safetensors"), f"ood={shapes}"], "data: not given"),
    ):
        out = tmp_path / "nothing"
        assert main(["evaluate", *words, "--quiet", "--out", str(out)]) == 2, words
        assert expected in said(capsys)
        assert not out.exists()


def put_digits(folder: Path, rows: range, labelled: int = 10**9) -> Path:
    """Digits as images of 8 x 8 in folders of their classes; after so many of a class they lie in "unlabelled"."""
    store, seen = open_store(DataSettings(source="digits")), [0] * 10
    for i in rows:
        k = int(store.all_labels[i])
        seen[k] += 1
        place = folder / (str(k) if seen[k] <= labelled else "unlabelled")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(store.batch([i])[0, 0].numpy()).save(place / f"{i}.png")
    return folder


def test_only_labelled_images_are_counted(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = put_digits(tmp_path / "few", range(400), labelled=10)
    assert main(["evaluate", str(clean), f"data={few}", "--quiet", "--out", str(tmp_path / "x")]) == 0
    found, printed = found_in(tmp_path / "x"), capsys.readouterr().out
    part = found["held_out"]
    assert 10 <= part["labelled"] < 40 < part["images"] and found["images"] == {"test": part["labelled"]}
    assert f"on {part['labelled']} labelled images of the test part, which holds {part['images']}, clean" in printed
    assert any("the temperature was fitted on 10 labelled images" in note for note in found["notes"])


def test_images_that_were_trained_on_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, scans = put_digits(tmp_path / "photos", range(300)), put_digits(tmp_path / "scans", range(300, 500))
    names = [str(k) for k in range(10)]
    data = {"source": str(photos), "unlabelled": str(scans)}
    run = make_run(tmp_path / "run", "joint-digits-mini", names, data)
    for source, seen in ((scans, True), (photos, False)):
        words = ["evaluate", str(run), *QUICK, "noise_levels=[]", "--out", str(tmp_path / "out" / source.name)]
        assert main([*words, f"data={source}"]) == 0
        found, printed = found_in(tmp_path / "out" / source.name), capsys.readouterr().out
        notes = [note for note in found["notes"] if "trained on" in note]
        assert bool(notes) is seen
        if seen:
            count = found["held_out"]["images"]
            assert f"{count} of the {count} images of the test part of scans" in notes[0]
            assert "without their labels" in notes[0] and notes[0] in printed
            assert "without their labels" in (run / "report.html").read_text()
    assert main([*words[:-1], str(tmp_path / "y"), f"data={{source: {photos}, split_seed: 1}}"]) == 0
    (note,) = [note for note in found_in(tmp_path / "y")["notes"] if "trained on" in note]
    assert "without their labels" not in note and " of the " in note  # other parts of the same data


def test_a_joint_model_without_denoising_answers_and_generates_nothing(
    joint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(k) for k in range(10)]
    run = make_run(tmp_path / "run", "joint-digits-mini", names, {"source": "digits"}, denoise=False)
    assert main(["sample", str(run), "n=2", "--quiet", "--out", str(tmp_path / "s")]) == 2
    assert "holds a classifier, which generates nothing" in said(capsys) and not (tmp_path / "s").exists()
    assert main(["evaluate", str(run), "noise_levels=[1]", "--quiet", "--out", str(tmp_path / "x")]) == 0
    found = found_in(tmp_path / "x")
    assert "frechet/pixels" not in found["metrics"] and "accuracy" in found["metrics"]
    assert "Answers" in (run / "report.html").read_text()
    assert main(["evaluate", str(run), "n=20", "--quiet", "--out", str(tmp_path / "y")]) == 2
    assert main(["predict", str(run), str(put_digits(tmp_path / "new", range(3))), "--quiet"]) == 0
    assert isinstance(load(run), JointClassifier)
    capsys.readouterr()
    words = [f"guide={run}", "n=2", "steps=2", "label=3", "precision=fp32", "--quiet"]
    assert main(["sample", str(joint), *words, "--out", str(tmp_path / "guided")]) == 0


def test_unreadable_images_of_another_kind_are_left_out(
    clean: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = tmp_path / "others"
    shutil.copytree(shapes, others)
    (others / "down" / "broken.png").write_bytes(b"no image")
    assert main(["evaluate", str(clean), f"ood={others}", "--quiet", "--out", str(tmp_path / "x")]) == 0
    assert "unreadable images of others, left out: 1" in capsys.readouterr().out
    assert found_in(tmp_path / "x")["ood"]["other"]["images"] == 60


def test_a_page_keeps_what_was_measured_before(
    clean: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(clean, run, ignore=shutil.ignore_patterns("evaluations", "report.html"))
    page = lambda: (run / "report.html").read_text()  # noqa: E731
    assert main(["evaluate", str(run), f"ood={shapes}", "--quiet"]) == 0
    assert main(["evaluate", str(run), "--quiet"]) == 0
    assert "Images of another kind" in page() and "measured before" in page()
    assert main(["evaluate", str(run), "data={source: digits, most: 500}", "--quiet"]) == 0
    assert "Images of another kind" not in page()  # that was of other data


def test_what_guidance_was_and_what_it_cost_is_printed(
    joint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["guide=representations", "guide_scale=2.5", "guide_interval=[0.001, 90]", "noise_levels=[]"]
    assert main(["evaluate", str(joint), *QUICK, *how, "--out", str(tmp_path)]) == 0
    cost, printed = found_in(tmp_path)["request"]["samples"]["relative_cost"], capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("relative_cost")]
    assert f"{cost:.4f}" in line
    assert f"guide representations, scale 2.5 at 0.001 < sigma <= 90; {cost:g} times the computation" in printed
    assert guide_in_words({"guide": {"classifier": "0123456789", "scale": 1.0, "interval": None}}) == [
        "guide classifier 01234567, scale 1"
    ]
    assert guide_in_words({}) == []
