"""A folder in diffusers' layout, of whatever class: which adapter reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..denoiser import NetworkDenoiser
from ..errors import UserError
from .diffusers_dit import TRANSFORMERS, read_dit
from .diffusers_files import class_name, read_json
from .diffusers_unet import from_diffusers

Reader = Callable[[Path], NetworkDenoiser]
PIPELINES: dict[str, Reader] = {
    "DDPMPipeline": from_diffusers,
    "DDIMPipeline": from_diffusers,
    "PNDMPipeline": from_diffusers,
    "ConsistencyModelPipeline": from_diffusers,  # how a U-Net of EDM or with classes is run; see `diffusers_write`
    "LDMPipeline": from_diffusers,
    "DiTPipeline": read_dit,
}
MODELS: dict[str, Reader] = {"UNet2DModel": from_diffusers, **dict.fromkeys(TRANSFORMERS, read_dit)}


def read_folder(folder: Path) -> NetworkDenoiser:
    """The denoiser in a folder that a pipeline or a model of diffusers was saved to, in eval mode.

    Raises `UserError` naming the class found where no adapter reads it, and those that one reads.
    """
    index = folder / "model_index.json"
    if index.is_file():
        where, name, readers = index, str(read_json(index).get("_class_name")), PIPELINES
    else:
        where, name, readers = folder / "config.json", class_name(folder), MODELS
    if name not in readers:
        raise UserError(f"{where}: {name}", "no adapter reads this class", f"valid: {', '.join([*PIPELINES, *MODELS])}")
    return readers[name](folder)
