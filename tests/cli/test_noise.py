"""Classifiers that know noise: measured by `evaluate`, and guides of `sample`. The models are untrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from twofold.cli.main import main
from twofold.run import Run, build, save_model
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

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
    run = Run(path)
    if not run.settings_file.is_file():
        Run.start(path, settings)
    torch.manual_seed(seed)
    model = build(settings, (1, 8, 8), names if classes else [])
    with torch.no_grad():  # layers that start at zero would make models alike
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(run.model_file, model.network.state_dict(), model, settings, 0)
    return path


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
