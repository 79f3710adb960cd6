"""Files of weights by themselves, as researchers publish them: `.safetensors`, or what torch.save wrote.

No pickle is run: what is not a tensor, a number, a text or a collection of these is refused.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .errors import UserError, first_line

# where training states keep weights, best first
INSIDE = ("ema", "model_ema", "ema_state_dict", "target_encoder", "state_dict", "model")
PARALLEL = "module."
ALONE = "save the state dict alone: torch.save(model.state_dict(), ...), or as .safetensors"


def read_tensors(path: Path, hint: str = "", command_line: bool = False) -> dict[str, Tensor]:
    """{name: tensor} on the CPU. Of a training state the averaged weights, else the others.

    hint: where the file comes from, for the errors. command_line: take a file that also holds the parsed arguments of
    the program that wrote it, which training states do; they are not returned.
    Raises `UserError` for a file that cannot be read, holds more than tensors, or no tensor.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path, command_line)
    except pickle.UnpicklingError as error:
        raise UserError(str(path), "holds more than tensors, which is not opened", hint or ALONE) from error
    except Exception as error:  # a damaged file fails in as many ways as there are instructions
        what = f"cannot be read as weights ({first_line(error)})"
        raise UserError(str(path), what, hint or "copy it anew") from error
    for name in INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    named = content.items() if isinstance(content, Mapping) else ()
    weights = {str(name): value for name, value in named if isinstance(value, Tensor)}
    if not weights:
        raise UserError(str(path), "holds no state dict", hint or ALONE)
    if all(name.startswith(PARALLEL) for name in weights):  # written inside DataParallel
        weights = {name.removeprefix(PARALLEL): value for name, value in weights.items()}
    return weights


def _unpickled(path: Path, command_line: bool) -> Any:
    # a Namespace is attributes and nothing that runs; no other class is let through
    allowed = torch.serialization.safe_globals([argparse.Namespace]) if command_line else nullcontext()
    with allowed:
        return torch.load(path, map_location="cpu", weights_only=True)
