"""What bit-exactness depends on besides the settings: stored with the run, reused on resuming."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..errors import UserError
from ..settings.train import LoopSettings


@dataclass(frozen=True)
class Environment:
    """precision and micro_batch in force, processes, CPU threads, kind of device, torch version."""

    precision: str
    micro_batch: int
    world: int
    threads: int
    device: str
    torch: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def micro_batch(settings: LoopSettings, world: int) -> int:
    """Images per forward pass. Raises `UserError` where the global batch does not divide."""
    if settings.batch_size % world:
        raise UserError(f"train.batch_size={settings.batch_size}", f"does not divide over {world} processes")
    share = settings.batch_size // world
    size = min(settings.micro_batch or share, share)
    if share % size:
        raise UserError(
            f"train.micro_batch={size}", f"does not divide the {share} images each process trains on per step"
        )
    return size


def reconcile(stored: dict[str, Any], now: Environment) -> tuple[Environment, list[str]]:
    """The environment to go on with: stored precision, micro-batch and threads where they can be kept.

    Returns it and a line for every difference that ends bit-exactness.
    """
    same_split = stored["world"] == now.world
    kept = Environment(
        precision=stored["precision"] if stored["device"] == now.device else now.precision,
        micro_batch=stored["micro_batch"] if same_split else now.micro_batch,
        world=now.world,
        threads=stored["threads"] if stored["threads"] <= torch.get_num_threads() else now.threads,
        device=now.device,
        torch=now.torch,
    )
    changed = [
        f"{name} was {stored[name]}, now {value}: the result will not be bit-identical to an uninterrupted run"
        for name, value in kept.to_dict().items()
        if stored[name] != value
    ]
    return kept, changed
