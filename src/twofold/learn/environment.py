"""What bit-exactness depends on besides the settings: chosen once, stored with the run, reused on resuming."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

from ..errors import UserError
from ..run import State
from ..settings.train import LoopSettings
from . import fastest


@dataclass(frozen=True)
class Environment:
    """precision, micro_batch and CPU threads in force, processes, kind of device, torch version, hash of the data."""

    precision: str
    micro_batch: int
    threads: int
    world: int
    device: str
    torch: str
    data: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def micro_batch(settings: LoopSettings, world: int) -> int:
    """Images per forward pass. Raises `UserError` where the global batch does not divide."""
    if settings.batch_size % world:
        raise UserError(f"train.batch_size={settings.batch_size}", f"does not divide over {world} processes")
    share = settings.batch_size // world
    size = min(settings.micro_batch or share, share)
    if share % size:
        raise UserError(f"train.micro_batch={size}", f"does not divide the {share} images of each process and step")
    return size


def choose(
    model: nn.Module,
    shape: tuple[int, int, int],
    settings: LoopSettings,
    device: torch.device,
    world: int,
    data: str,
    stored: dict[str, Any] | None,
) -> tuple[Environment, list[str]]:
    """What to train with, and a line for every difference to `stored` that ends bit-exactness.

    data: hash of the store. stored: the environment of the run that is continued; what can be kept of it is kept, the
    rest is measured. Raises `UserError` where the data has changed: its splits would no longer be those of the run.
    """
    if stored and stored["data"] != data:
        what = (
            f"the data or its labels are not what this run was begun with (hash {data[:12]}, was {stored['data'][:12]})"
        )
        raise UserError("data", what, "restore it, or train on it with another --out")
    size = micro_batch(settings, world)
    kept = stored if stored and stored["device"] == device.type else None
    if kept:  # less than its settings ask for: memory ran out
        asked = settings.batch_size // kept["world"]
        if kept["micro_batch"] < min(settings.micro_batch or asked, asked):
            size = min(size, kept["micro_batch"])
    format_: str = settings.precision
    if format_ == "auto":
        format_ = kept["precision"] if kept else fastest.precision(model, shape, device)
    count = torch.get_num_threads()
    if kept and kept["threads"] <= count:
        count = kept["threads"]
    elif device.type == "cpu":
        count = fastest.threads(model, shape, size, fastest.DTYPES[format_])
    now = Environment(format_, size, count, world, device.type, torch.__version__, data)
    changed = [
        f"{name} was {stored[name]}, now {value}: the result will not be bit-identical to an uninterrupted run"
        for name, value in now.to_dict().items()
        if stored and stored[name] != value
    ]
    return now, changed


def remembered(file: Path, state: State | None) -> dict[str, Any] | None:
    """The environment of the run that is continued: that of its state, or that of its folder before its first one.

    A process that ran out of memory while others waited for it leaves a smaller micro-batch in the folder.
    """
    kept = json.loads(file.read_text()) if file.is_file() else None
    if state is None or kept is None:
        return state.facts["environment"] if state else kept
    stored = state.facts["environment"]
    return {**stored, "micro_batch": min(stored["micro_batch"], kept["micro_batch"])}


def check_agreement(folder: Path, state: State | None, world: int) -> None:
    """Raises `UserError` where processes would continue from different states: nodes must share the folder."""
    mine = (state.n_images, state.facts["sha256"]) if state else None
    if world > 1 and any(other != mine for other in gather_object([mine])):
        raise UserError(str(folder), "its processes see different states", "put --out on a shared folder")
