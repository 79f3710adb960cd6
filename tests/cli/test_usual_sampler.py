"""A run says which sampler is usual for it: what it was looked at with in training. Words go before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import twofold
from twofold.cli.generated import settled as measured_with
from twofold.cli.main import main
from twofold.denoiser import Denoiser
from twofold.generate import plan, sample, trajectory
from twofold.generate.usual import settled, usual
from twofold.run import build
from twofold.serve.models import Served
from twofold.settings.evaluate import EvaluateSettings
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve, settings_hash
from twofold.settings.sample import SampleSettings
from twofold.settings.serve import ServeSettings
from twofold.settings.train import TrainSettings
from twofold.settings.vary import VarySettings

from .common import random_run

NAMES = [str(k) for k in range(10)]
NARROW: dict[str, Any] = {"data": {"source": "digits"}, "network": {"channels": 8, "heads": 2, "classes": 10}}


def settings_of(preset: str, **validation: Any) -> TrainSettings:
    layers = [*open_preset(preset).layers, ("test", NARROW), ("test", {"validation": validation})]
    return resolve(TrainSettings, layers)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("iddm") / "run", settings_of("iddm-mini", steps=3), NAMES, 0)


def test_the_presets_of_iddm_are_sampled_by_ddpm() -> None:
    model = build(settings_of("iddm-mini"), (1, 8, 8), NAMES)
    assert isinstance(model, Denoiser) and model.usual == ("ddpm", 100)
    other = build(settings_of("digits", steps=5), (1, 8, 8), NAMES)
    assert isinstance(other, Denoiser) and other.usual == Denoiser.usual == ("dpmpp2m", None)
    found = plan(model)
    assert (found.sampler, len(found.sigmas) - 1) == ("ddpm", 100)
    found = plan(other)
    assert (found.sampler, len(found.sigmas) - 1) == ("dpmpp2m", 20)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((None, None, None), ("ddpm", 100)),
        ((None, 7, None), ("ddpm", 7)),
        ((None, None, "karras"), ("ddpm", 100)),
        ((None, None, "ddim25"), ("ddpm", None)),  # a respaced table has its own steps
        (("heun", None, None), ("heun", None)),  # a run's steps are not those of another sampler
        (("heun", 9, None), ("heun", 9)),
    ],
)
def test_what_is_said_goes_first(asked: tuple[Any, Any, Any], expected: tuple[str, int | None]) -> None:
    model = build(settings_of("iddm-mini"), (1, 8, 8), NAMES)
    assert usual(model, *asked) == expected


def test_a_run_without_a_say_keeps_the_names_of_its_folders() -> None:
    """Settings that name no sampler get the hashes that they had when the default was a name."""
    model = build(settings_of("digits"), (1, 8, 8), NAMES)
    assert settings_hash(settled(SampleSettings(), model)) == "f3f80c9b"
    assert settings_hash(settled(VarySettings(), model)) == "c1e82294"
    for measured in (model, None):  # a classifier's too
        assert settings_hash(measured_with(EvaluateSettings(), measured)) == "61665c71"


def test_sample_and_python_take_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = twofold.load(str(run))
    how: dict[str, Any] = {"label": 3, "micro_batch": 4}
    expected = sample(model, 4, sampler="ddpm", steps=3, **how)
    assert torch.equal(sample(model, 4, **how), expected)
    assert not torch.equal(sample(model, 4, sampler="dpmpp2m", **how), expected)
    assert torch.equal(list(trajectory(model, 4, **how))[-1].images, expected)
    words = ["sample", str(run), "n=4", "label=3", "micro_batch=4", "precision=fp32", "--quiet", "--device", "cpu"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert ": 4 images by ddpm in 3 steps (grid.png" in first
    assert main([*words, "sampler=ddpm", "steps=3"]) == 0
    assert capsys.readouterr().out == first  # the same folder
    assert main([*words, "sampler=dpmpp2m"]) == 0
    assert capsys.readouterr().out.startswith(str(run)) and len(list((run / "samples").iterdir())) == 2


def test_evaluate_and_vary_take_it(run: Path, tmp_path: Path) -> None:
    words = ["precision=fp32", "--quiet", "--device", "cpu"]
    assert main(["evaluate", str(run), "n=8", *words]) == 0
    (found,) = (json.loads(file.read_text()) for file in (run / "evaluations").glob("*.json"))
    assert (found["request"]["samples"]["sampler"], found["request"]["samples"]["steps"]) == ("ddpm", 3)
    assert (found["settings"]["sampler"], found["settings"]["steps"]) == ("ddpm", 3)
    assert EvaluateSettings().sampler is None
    assert main(["vary", str(run), "digits", "n=1", "images=2", *words, "--out", str(tmp_path / "v")]) == 0
    settings = json.loads((tmp_path / "v" / "result.json").read_text())["settings"]
    assert (settings["sampler"], settings["steps"]) == ("ddpm", 3)


def test_a_server_offers_it(run: Path) -> None:
    model: Any = twofold.load(str(run))
    served = Served("iddm", model, None, "", None, tuple(model.shape))
    assert served.described(ServeSettings())["defaults"] == {"sampler": "ddpm", "steps": 3, "guidance": 1.0}
    assert served.plans(sampler=None, steps=None).sampler == "ddpm"
