"""Small networks for every task, untrained, as run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from twofold.run import Run, build, save_model
from twofold.settings.train import TrainSettings

BACKBONE = {"kind": "resnet", "blocks": [1], "channels": 8}
TASKS: dict[str, tuple[Any, dict[str, Any]]] = {  # (head, objective)
    "classification": ({"kind": "pool"}, {"kind": "supervised"}),
    "segmentation": ({"kind": "fcn", "channels": 8}, {"kind": "segmentation"}),
    "landmarks": ({"kind": "fuse"}, {"kind": "landmarks", "flip_pairs": [[0, 1]]}),
    "embedding": (None, {"kind": "distill", "teacher": "runs/teacher"}),
}


def student_run(path: Path, task: str, names: list[str], shape: tuple[int, int, int], **more: Any) -> Path:
    """A run of a student for this task, with random weights and settings that name data which are not there, unless
    `data` is given."""
    head, objective = TASKS[task]
    network = {"kind": "student", "backbone": BACKBONE, "head": head}
    values = {"network": network, "objective": objective, "data": {"source": "no/such/images"}, **more}
    settings = TrainSettings.model_validate(values)
    run = Run.start(path, settings)
    torch.manual_seed(0)
    model = build(settings, shape, names)
    with torch.no_grad():  # layers that start at zero would make all answers alike
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_model(run.model_file, model.network.state_dict(), model, settings, 0)
    return path
