"""A file of weights by itself, as researchers publish them: `.pt` or `.safetensors`, and its options beside it.

No pickle is run: what is not a tensor, a number, a text, a command line or a collection of these is refused.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from ..settings.checkpoint import CheckpointSettings
from ..settings.resolve import resolve
from .diffusers_files import read_json

INSIDE = ("ema", "model_ema", "ema_state_dict", "state_dict", "model")  # where training states keep weights, best first
PARALLEL = "module."


def read_tensors(path: Path) -> dict[str, Tensor]:
    """{name: tensor} on the CPU. Of a training state the averaged weights, else the others.

    Raises `UserError` for a file that is not readable, or that holds anything but weights.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except pickle.UnpicklingError as error:
        hint = "save the state dict alone: torch.save(model.state_dict(), ...), or as .safetensors"
        raise UserError(str(path), "holds more than tensors, which is not opened", hint) from error
    except Exception as error:  # a damaged file fails in as many ways as there are instructions
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(str(path), f"not readable as weights ({reason})", "copy it anew") from error
    for name in INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise UserError(str(path), "holds no state dict", "save one: torch.save(model.state_dict(), ...)")
    weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if weights and all(name.startswith(PARALLEL) for name in weights):  # written inside DataParallel
        weights = {name.removeprefix(PARALLEL): value for name, value in weights.items()}
    return weights


def _unpickled(path: Path) -> Any:
    # training states of DiT's authors hold the command line too: a Namespace is attributes and nothing that runs
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


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
