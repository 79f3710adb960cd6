"""What a file of weights by itself does not tell, and what it does: options beside it, sizes and counts inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..settings.checkpoint import CheckpointSettings
from ..settings.resolve import resolve
from .diffusers_files import read_json


def options_for(path: Path, options: Mapping[str, Any] | None = None) -> CheckpointSettings:
    """The options in `x.json` beside `x.pt`, if it is there, under those given. Raises `UserError` as settings do."""
    beside = path.with_suffix(".json")
    layers = [(str(beside), read_json(beside))] if beside.is_file() else []
    return resolve(CheckpointSettings, [*layers, ("arguments", options or {})])[0]


def untold(path: str, missing: list[str], example: str) -> UserError:
    """The error for options that neither weights nor user tell."""
    beside = Path(path).with_suffix(".json").name
    return UserError(path, f"its weights do not tell {', '.join(missing)}", f"write them to {beside}: {example}")


def size_of(where: str, weights: Mapping[str, Tensor], name: str, axes: int) -> torch.Size:
    """Shape of a weight that the rest is inferred from. Raises `UserError` where it is missing, or has other axes."""
    if name not in weights:
        raise UserError(f"weights of {where}", f"1 missing: {name}", "the file is not complete")
    shape = weights[name].shape
    if len(shape) != axes:
        what = f"{name} has shape {tuple(shape)}, not {axes} axes"
        raise UserError(f"weights of {where}", what, "not a network of this layout")
    return shape


def count_of(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered parts there are: 1 + the largest k of the names `<prefix>.k. ...`."""
    numbers = (name.split(".")[1] for name in weights if name.startswith(f"{prefix}."))
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def exact(tensor: Tensor) -> Tensor:
    """A copy in float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True).contiguous()
