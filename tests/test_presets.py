"""Every preset: resolves, has the published number of parameters, and trains two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from twofold.learn import train
from twofold.learn.estimate import estimate
from twofold.run import build, load
from twofold.settings.presets import open_preset, preset_names
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

PUBLISHED = {
    "ddpm-cifar10": 35_746_307,
    "ddae-cifar10-ddpm": 35_746_307,
    "ddae-cifar10-edm": 35_746_307,
    "ddae-cifar10-ddpmpp": 56_524_291,
    "ddae-cifar10-edm-ddpmpp": 56_524_291,
    "ddae-cifar10-edm-ddpmpp-aug": 56_525_443,
    "joint-cifar10-trunk": 52_542_979,
    "edm-cifar10": 55_735_299,
    "edm-cifar10-uncond": 55_733_891,
}


def settings_of(name: str, *changes: dict[str, Any]) -> TrainSettings:
    """A preset's settings; those for one's own images are given digits."""
    own = [("test", {"data": "digits"})] if name.startswith("images-") else []
    layers = [*open_preset(name).layers, *own, *(("test", change) for change in changes)]
    return resolve(TrainSettings, layers)[0]


def shape_of(settings: TrainSettings) -> tuple[int, int, int]:
    size = settings.data.size or (8, 8)
    return (settings.data.channels or 1, *size)


@pytest.mark.parametrize("name", preset_names())
def test_resolves_and_counts(name: str) -> None:
    settings = settings_of(name)
    header = open_preset(name).header
    assert all(word in header for word in ("purpose:", "data:", "machine:", "expected:"))
    with torch.device("meta"):
        model = build(settings, shape_of(settings), [str(i) for i in range(10)])
    count = sum(p.numel() for p in model.network.parameters())
    assert count == PUBLISHED.get(name, count)


def test_every_published_count_is_a_preset() -> None:
    assert set(PUBLISHED) <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_two_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On digits, at reduced width; everything else as in the preset."""
    monkeypatch.setattr("twofold.learn.loop.PREVIEWS", 4)
    settings = settings_of(name)
    shape = shape_of(settings)
    narrow: dict[str, Any] = {"channels": 8}
    if settings.network.kind == "unet" and settings.network.head_channels:
        narrow["head_channels"] = 4
    if settings.network.kind == "unet" and settings.network.heads > 1:
        narrow["heads"] = 2
    change = {
        "data": {"source": "digits", "size": shape[1:], "channels": shape[0]},
        "network": narrow,
        "train": {
            "n_images": 8,
            "batch_size": 4,
            "micro_batch": None,
            "precision": "fp32",
            "snapshot_images": [],
        },
        "validation": {"samples": 4, "steps": 2, "max_images": 4},
    }
    settings = settings_of(name, change)
    result = train(settings, tmp_path / "run", "cpu")
    assert result["n_images"] == 8 and result["nonfinite_steps"] == 0
    assert load(tmp_path / "run").shape == shape


def test_estimate_matches_the_reference() -> None:
    """12.44 GFLOP per forward pass of the 35.7 M network (2 per multiply-add), as measured in the reference, give or
    take what is not a convolution or a matrix product, and the cheaper upsampling."""
    settings = settings_of("ddae-cifar10-ddpm")
    found = estimate(settings, (3, 32, 32), [])
    per_image = found.flops / 3 / settings.train.n_images / 1e9
    assert found.parameters == 35_746_307 and 11 < per_image < 12.6
    assert found.memory > found.parameters * 20 and found.seconds is None
