"""A run small enough to train in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from twofold.settings.noise import VPNoise
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from ..processes import torchrun as torchrun

TINY: dict[str, Any] = {
    "data": {"source": "digits"},
    "network": {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "dropout": 0.1},
    "noise": {"kind": "edm"},
    "objective": {"kind": "denoising"},
    "train": {
        "n_images": 256,
        "batch_size": 32,
        "save_images": 64,
        "validate_images": 128,
        "preview_images": 128,
        "log_images": 32,
        "precision": "fp32",
        "warmup_images": 64,
    },
    "validation": {"max_images": 32, "samples": 16, "steps": 3},
}


def tiny(**train: Any) -> TrainSettings:
    """The tiny run's settings, with these changes to its `train` group."""
    settings, _ = resolve(TrainSettings, [("tiny", TINY), ("test", {"train": train})])
    return settings


def weights(run: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(run / name)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def learned_levels(settings: TrainSettings, steps: int = 8) -> TrainSettings:
    """The same with a learned variance and noise levels drawn by importance, over a table so short that it soon has
    seen every level often enough."""
    network = settings.network.model_copy(update={"learned_variance": True})
    objective = settings.objective.model_copy(update={"loss": "hybrid", "levels": "importance"})
    noise = VPNoise(steps=steps)
    return settings.model_copy(update={"network": network, "objective": objective, "noise": noise})
