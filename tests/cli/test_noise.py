"""Classifiers that know noise: measured by `evaluate`, and guides of `sample`. The models are untrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twofold.cli.main import main
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import random_run

SMALL: dict[str, dict[str, Any]] = {
    "digits": {"channels": 8, "blocks": 1},
    "digits-classifier": {"channels": 8},
    "noisy-wrn-digits-mini": {"width": 1},
}


def make_run(path: Path, preset: str, seed: int = 0, classes: int | None = 10, **more: Any) -> Path:
    """A run folder with random weights; another seed gives others. classes=0: an unconditional denoiser."""
    names = more.pop("names", [str(k) for k in range(10)])
    network = SMALL[preset] | ({"classes": classes} if preset == "digits" else {})
    settings, _ = resolve(TrainSettings, [*open_preset(preset).layers, ("test", {"network": network, **more})])
    return random_run(path, settings, names if classes else [], seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "denoiser", "digits")


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "free", "digits", classes=0)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "noisy", "noisy-wrn-digits-mini")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "clean", "digits-classifier")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def found_in(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())


def test_accuracy_against_noise_is_in_the_table_and_the_result(
    noisy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(noisy), "noise_levels=[0, 0.5]", "noise_draws=2", "--quiet", "--out", str(tmp_path / "a")]
    assert main(words) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy at sigma")]
    rows = found_in(tmp_path / "a")["noise"]
    assert [line[3] for line in lines] == ["0", "0.5"] and [row["sigma"] for row in rows] == [0, 0.5]
    for line, row in zip(lines, rows, strict=True):
        assert float(line[4]) == pytest.approx(row["accuracy"], abs=1e-4)
        assert row["low"] <= row["accuracy"] <= row["high"] and row["images"] == 359
    assert [row["draws"] for row in rows] == [1, 2]
    found = found_in(tmp_path / "a")
    assert rows[0]["accuracy"] == found["metrics"]["accuracy"]["samples"]
    assert found["settings"]["noise_levels"] == [0, 0.5]


def test_default_levels(noisy: Path, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(noisy), "--quiet", "--out", str(tmp_path / "noisy")]) == 0
    assert [row["sigma"] for row in found_in(tmp_path / "noisy")["noise"]][-1] == 10
    assert main(["evaluate", str(noisy), "noise_levels=[]", "--quiet", "--out", str(tmp_path / "none")]) == 0
    assert main(["evaluate", str(clean), "--quiet", "--out", str(tmp_path / "clean")]) == 0
    for name in ("none", "clean"):
        assert "noise" not in found_in(tmp_path / name) and "accuracy" in found_in(tmp_path / name)["metrics"]


def test_who_knows_no_noise_says_so(
    run: Path, clean: Path, noisy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, words, expected in (
        (clean, ["noise_levels=[0.1]"], "noise_levels=0.1: this classifier has seen clean images only"),
        (noisy, ["noise_levels=[100]"], "noise_levels=100: outside [0.002, 80]"),
        (noisy, ["noise_levels=[-1]"], "noise_levels"),
        (run, ["noise_levels=[0.1]"], "is no classifier; leave noise_levels out"),
        (noisy, ["noise_draws=0"], "noise_draws=0"),
    ):
        out = tmp_path / "nothing"
        assert main(["evaluate", str(source), *words, "--quiet", "--out", str(out)]) == 2, words
        assert expected in said(capsys)
        assert not out.exists()


def request(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())["request"]


def test_a_guide_gives_labels_to_an_unconditional_model(
    free: Path, noisy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def pixels(out: Path) -> np.ndarray:
        return np.load(out / "images.npz")["arr_0"]

    words = ["sample", str(free), "n=4", "steps=3", "--quiet", "--device", "cpu", "precision=fp32", "--out"]
    guided = [*words, str(tmp_path / "a"), f"guide={noisy}", "guide_scale=20"]
    assert main(guided) == 0
    found = request(tmp_path / "a")
    assert found["guide"]["scale"] == 20 and len(found["guide"]["classifier"]) == 64
    assert found["classes"] == [str(k) for k in range(10)]
    assert sorted(p.name for p in (tmp_path / "a/images").iterdir()) == ["0", "1", "2", "3"]
    assert main(guided) == 0  # finished: nothing to do
    assert main([*words, str(tmp_path / "plain")]) == 0
    assert request(tmp_path / "plain")["guide"] is None
    assert main([*words, str(tmp_path / "zero"), f"guide={noisy}", "guide_scale=0"]) == 0
    assert np.array_equal(pixels(tmp_path / "zero"), pixels(tmp_path / "plain"))
    assert not np.array_equal(pixels(tmp_path / "a"), pixels(tmp_path / "plain"))
    assert main([*guided[:-1], "guide_scale=3"]) == 2 and "images of other settings: guide" in said(capsys)
    make_run(noisy, "noisy-wrn-digits-mini", seed=1)  # trained further
    assert main(guided) == 2 and "images of other settings: guide" in said(capsys)
    make_run(noisy, "noisy-wrn-digits-mini")


def test_another_guide_has_another_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outs = set()
    for seed in (0, 1):
        guide = make_run(tmp_path / "guide", "noisy-wrn-digits-mini", seed)
        assert main(["sample", str(run), "n=2", "steps=2", "png=false", f"guide={guide}", "--quiet"]) == 0
        outs.add(capsys.readouterr().out.split(":")[0])
    assert len(outs) == 2
    assert len({request(Path(out))["guide"]["classifier"] for out in outs}) == 2


def test_guides_that_cannot_be_are_told_before_any_work(
    run: Path, free: Path, clean: Path, noisy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"names": [f"digit {k}" for k in range(10)]}
    others = make_run(tmp_path / "others", "noisy-wrn-digits-mini", **named)
    digits = make_run(tmp_path / "digits", "digits", names=[f"number {k}" for k in range(10)])
    for source, words, expected in (
        (free, [f"guide={clean}"], "does not judge noisy images (this classifier was trained on clean images"),
        (free, [f"guide={run}"], f"guide={run}: is no classifier"),
        (free, ["guide=runs/nowhere"], "no such run"),
        (free, ["guide_scale=2"], "guide_scale, guide_interval: there is no guide"),
        (free, [f"guide={noisy}", "guide_scale=-1"], "guide_scale=-1"),
        (free, [f"guide={noisy}", "guide_interval=[2, 1]"], "guide_interval=[2, 1] (command line): 2 is not below 1"),
        (free, [f"guide={noisy}", "label=ten"], "label=ten: no such class"),
        (free, [f"guide={noisy}", "label=none"], "guide_scale=1: there is no label to guide towards"),
        (free, [f"guide={noisy}", "guidance=2"], "guidance=2: this model is unconditional"),
        (digits, [f"guide={others}"], f"guide={others}: does not know the model's class 'number 0'"),
    ):
        out = tmp_path / "nothing"
        assert main(["sample", str(source), *words, "n=2", "--quiet", "--out", str(out)]) == 2, words
        assert expected in said(capsys)
        assert not out.exists()
