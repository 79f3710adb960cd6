"""`sample` and `evaluate` with the guides of a joint model: what they write, and mistakes told before they compute."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from twofold.cli.generated import read_images
from twofold.cli.main import main
from twofold.cli.sample import known_labels
from twofold.data import open_store
from twofold.errors import UserError
from twofold.run import Run
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import random_run

QUICK = ["steps=2", "--quiet"]
DIGITS = [str(k) for k in range(10)]


def make_run(path: Path, preset: str, names: list[str], **change: Any) -> Path:
    settings, _ = resolve(TrainSettings, [*open_preset(preset).layers, ("test", change)])
    return random_run(path, settings, names, 0)


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "joint", "joint-digits-mini", DIGITS)


@pytest.fixture(scope="module")
def attributes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint model that answers a question about each digit."""
    change = {"objective": {"multi_label": True}}
    return make_run(tmp_path_factory.mktemp("runs") / "attributes", "joint-digits-mini", DIGITS, **change)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "judge", "digits-classifier", DIGITS, network={"channels": 8})


def request_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())["request"]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_sample_is_guided_by_the_models_head(joint: Path, tmp_path: Path) -> None:
    for guide in ("representations", "own", str(joint)):
        out = tmp_path / Path(guide).name
        assert main(["sample", str(joint), "n=4", "label=3", f"guide={guide}", *QUICK, "--out", str(out)]) == 0
        assert [p.name for p in (out / "images").iterdir()] == ["3"]
        assert read_images_labels(out) == [3] * 4
    assert request_of(tmp_path / "own")["guide"]["kind"] == "own"
    assert len(request_of(tmp_path / "joint")["guide"]["classifier"]) == 64
    assert main(["sample", str(joint), "n=4", *QUICK, "--out", str(tmp_path / "plain")]) == 0
    assert request_of(tmp_path / "plain")["guide"] is None and request_of(tmp_path / "plain")["classes"] == []


def read_images_labels(out: Path) -> list[int]:
    with np.load(out / "images.npz") as archive:
        return archive["arr_1"].tolist()


def test_labels_drawn_from_the_training_images(joint: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    words = ["sample", str(joint), "label=train", "guide=own", *QUICK, "--out"]
    assert main([*words, str(out), "n=12"]) == 0
    drawn = read_images_labels(out)
    assert len(set(drawn)) > 3 and main([*words, str(tmp_path / "t"), "n=2", "seed=5"]) == 0
    assert read_images_labels(tmp_path / "t") == drawn[5:7]  # a label belongs to its seed
    store = open_store(Run.open(joint).settings().data)
    assert set(drawn) <= {int(label) for label in store.labels[store.indices("train")]}


def test_attributes_asked_for_in_words(attributes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    words = ["sample", str(attributes), "n=5", "guide=representations", *QUICK]
    assert main([*words, "label=3;not 4", "--out", str(out)]) == 0
    assert read_images_labels(out) == [[-1, -1, -1, 1, 0, -1, -1, -1, -1, -1]] * 5
    assert (request_of(out)["classes"], request_of(out)["attributes"]) == (["3;not 4"], DIGITS)
    found = read_images(out)
    assert found.labels is None and len(found.images) == 5
    (out / "images.npz").unlink()
    assert read_images(out).labels is None
    assert main([*words, "label=3;not 44", "--out", str(tmp_path / "t")]) == 2
    assert "label=3;not 44: no attribute '44'" in said(capsys)
    assert main([*words, "label=train", "--out", str(tmp_path / "t")]) == 2
    assert "data=digits: its images have no attributes" in said(capsys)
    weights = str(attributes / "model.safetensors")
    assert main(["evaluate", weights, "data=digits", "n=10", "guide=own", *QUICK, "--out", str(tmp_path)]) == 0


def test_evaluate_says_how_many_got_the_class_and_what_it_cost(joint: Path, judge: Path, tmp_path: Path) -> None:
    words = [
        "evaluate",
        str(joint / "model.safetensors"),
        "data=digits",
        "n=20",
        f"classifier={judge}",
        "--quiet",
        "--out",
        str(tmp_path),
    ]
    assert main([*words, "guide=representations", "guide_scale=0.4", "guide_interval=[0.1, 10]", "steps=4"]) == 0
    (file,) = tmp_path.glob("*.json")
    found = json.loads(file.read_text())
    assert 0 <= found["metrics"]["agreement"]["samples"] <= 1
    made = found["request"]["samples"]
    assert made["guide"] == {"kind": "representations", "scale": 0.4, "interval": [0.1, 10.0]}
    assert 1 <= made["relative_cost"] < 2 and made["labels"] == {"cycle": list(range(10)), "count": 20}


def test_mistakes(
    joint: Path, attributes: Path, judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    denoiser = make_run(tmp_path / "plain", "digits", DIGITS, network={"channels": 8})
    others = [f"digit {k}" for k in range(10)]
    other = make_run(tmp_path / "other", "digits-classifier", others, network={"channels": 8})
    for verb, source, words, expected in (
        ("sample", denoiser, ["guide=representations"], "guide=representations: this model does not classify"),
        (
            "sample",
            denoiser,
            [f"guide={judge}"],
            f"error: guide={judge}: it does not judge noisy images (this classifier was trained on clean images); give",
        ),
        ("sample", denoiser, ["guide=labels", "guide_scale=2"], "there is no guide"),
        ("sample", joint, [f"guide={denoiser}"], f"error: guide={denoiser}: is no classifier"),
        (
            "sample",
            joint,
            ["guide=representation"],
            "neither a kind of guide nor a run; did you mean 'representations'",
        ),
        ("sample", joint, ["guide=runs/nowhere"], "error: guide=runs/nowhere: no such run"),
        ("evaluate", joint, ["guide=runs/nowhere"], "error: guide=runs/nowhere: no such run"),
        ("sample", joint, ["guide=own", "label=33"], "label=33: no such class; labels are 0..9"),
        ("sample", joint, ["guide=own", "label=thre"], "label=thre: no such class; valid: 0, 1"),
        (
            "sample",
            joint,
            ["label=train"],
            "label=train: this model takes no labels; add guide=own, guide=representations",
        ),
        (
            "sample",
            joint,
            ["label=3"],
            "label=3: this model is unconditional; leave the label out, or give guide=own, guide=rep",
        ),
        (
            "sample",
            attributes,
            ["guide=own", "label=3,not 7"],
            "names are joined by ';', with 'not ' before what is absent",
        ),
        (
            "sample",
            joint,
            ["guide=own", "guide_interval=[3, 1]"],
            "error: guide_interval=[3, 1] (command line): 3 is not below 1",
        ),
        ("sample", joint, ["guide=own", "guide_interval=[-1, 2]"], "(command line): -1 is below 0"),
        ("sample", joint, ["sigma_min=3", "sigma_max=1"], "sigma_min=3 is not below sigma_max=1"),
        ("evaluate", joint, ["guide=own", "guide_interval=[3, 1]"], "3 is not below 1"),
        ("evaluate", denoiser, ["guide=own"], "guide=own: this model does not classify"),
        (
            "evaluate",
            joint,
            ["guide=own", f"classifier={other}"],
            "knows digit 0, digit 1, digit 2 and 7 more, the gui",
        ),
        ("evaluate", joint, ["guide_scale=2"], "there is no guide"),
    ):
        assert main([verb, str(source), *words, *QUICK]) == 2, words
        assert expected in said(capsys), words


def test_attributes_of_training_images_are_numbered_as_the_guide_numbers_them() -> None:
    values = np.array([[1, 0], [0, -1], [1, 1]], np.int8)
    rows = np.array([0, 2])
    store: Any = SimpleNamespace(
        indices=lambda part: rows,
        settings=SimpleNamespace(source="faces"),
        attributes=values,
        attribute_names=["Smiling", "Male"],
        classes=["a", "b"],
        labels=np.array([1, 0, -1]),
    )
    guide: Any = SimpleNamespace(class_names=["Male", "Young", "Smiling"], multi_label=True)
    free: Any = SimpleNamespace(classes=0)
    assert known_labels(store, free, guide).tolist() == [[0, -1, 1], [1, -1, 1]]
    single: Any = SimpleNamespace(class_names=["b", "a"])
    assert known_labels(store, free, single).tolist() == [0]  # the unlabelled image is left out
    with pytest.raises(UserError, match="data=faces: the guide does not know Smiling; it knows Male, Young"):
        known_labels(store, free, SimpleNamespace(class_names=["Male", "Young"], multi_label=True))
