"""A file of foreign weights, of whatever layout: which adapter reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..denoiser import NetworkDenoiser
from ..errors import UserError, some
from ..settings.checkpoint import CheckpointSettings
from ..weightsfile import read_tensors
from . import dit_checkpoint, guided_diffusion, uvit_checkpoint
from .checkpoint_facts import options_for

Reader = Callable[[str, dict[str, Tensor], CheckpointSettings], NetworkDenoiser]
LAYOUTS: dict[str, tuple[tuple[str, ...], Reader]] = {  # name -> the weights that tell it, who reads it
    "guided-diffusion": (guided_diffusion.MARKS, guided_diffusion.from_weights),
    "DiT": (dit_checkpoint.MARKS, dit_checkpoint.from_weights),
    "U-ViT": (uvit_checkpoint.MARKS, uvit_checkpoint.from_weights),
}
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def read_checkpoint(path: Path) -> NetworkDenoiser:
    """The denoiser in a file of weights by itself, with the options in the .json beside it, in eval mode.

    Raises `UserError` for a file that is not weights, and for weights of a layout that no adapter reads.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(str(path), "not a file of weights", f"valid: a run folder, or {', '.join(SUFFIXES)}")
    weights = read_tensors(path, command_line=True)
    for marks, reader in LAYOUTS.values():
        if all(mark in weights for mark in marks):
            return reader(str(path), weights, options_for(path))
    what = f"weights of a layout that no adapter reads ({some(list(weights))})"
    raise UserError(str(path), what, f"valid: a twofold model.safetensors, or the layout of {' or '.join(LAYOUTS)}")
