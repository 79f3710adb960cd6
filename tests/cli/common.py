"""Runs without training."""

from __future__ import annotations

from pathlib import Path

import torch

from twofold.run import Run, build, save_model
from twofold.settings.train import TrainSettings


def random_run(path: Path, settings: TrainSettings, names: list[str], seed: int) -> Path:
    """A run folder of these settings and class names, for digits, with random weights; another seed gives others."""
    run = Run(path)
    if not run.settings_file.is_file():
        Run.start(path, settings)
    torch.manual_seed(seed)
    model = build(settings, (1, 8, 8), names)
    with torch.no_grad():  # layers that start at zero would make models alike
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(run.model_file, model.network.state_dict(), model, settings, 0)
    return path
