"""The autoencoder in a latent model's run: kept in its folder, found again by its model.

    RUN/codec/config.json                             with the scale and shift it is used with
    RUN/codec/diffusion_pytorch_model.safetensors     as diffusers writes them

A model's file names its codec by a hash, so that one that was exchanged is told, and one that is missing too.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..adapters.latent_codec import LatentCodec, NoCodec, read_autoencoder, write_autoencoder
from ..errors import UserError
from ..hashing import weights_hash
from .folder import Run

FOLDER = "codec"


def fitted(codec: LatentCodec, shape: tuple[int, int, int], scale: float, shift: float) -> LatentCodec:
    """The codec for images of this shape: what it decodes has their channels. Raises `UserError` where it cannot be."""
    LatentCodec(codec.vae).shape_of(shape)
    return LatentCodec(codec.vae, shape[1:], scale, shift, channels=shape[0])


def same_autoencoder(a: Any, b: Any) -> bool:
    """Whether two codecs make latents of the same meaning: the same weights, scale and shift, at any size."""
    if not (isinstance(a, LatentCodec) and isinstance(b, LatentCodec)):
        return False
    return (a.scale, a.shift) == (b.scale, b.shift) and weights_hash(a.vae) == weights_hash(b.vae)


def keep_codec(codec: LatentCodec, folder: Path) -> None:
    """Puts the codec into a run's folder, unless it is there; another one, of a run that was never begun, goes."""
    place = folder / FOLDER
    if place.is_dir():
        with contextlib.suppress(UserError):
            if same_autoencoder(LatentCodec(read_autoencoder(place)), codec):
                return
        shutil.rmtree(place)
    write_autoencoder(codec, place)


def codec_facts(model: Any) -> dict[str, Any]:
    """What a model's file says of its codec: {} for a model of pixels."""
    codec = getattr(model, "codec", None)
    if not isinstance(codec, LatentCodec):
        return {}
    return {"codec": {"key": codec.key, "size": codec.size, "channels": codec.channels}}


def codec_beside(model: Path, facts: dict[str, Any] | None) -> LatentCodec | NoCodec | None:
    """The codec that belongs to a model's file, from the folder of its run; None for a model of pixels.

    facts: those of `codec_facts`. Raises `UserError` where another one lies there.
    """
    if facts is None:
        return None
    run = Run(model.parent.parent)
    folder = (run.path if model.parent == run.snapshots else model.parent) / FOLDER
    if not folder.is_dir():
        return NoCodec(str(model), f"put the {FOLDER} folder of its run beside it")
    codec = LatentCodec(read_autoencoder(folder), facts["size"], channels=facts["channels"])
    if codec.key != facts["key"]:
        what = f"is not the autoencoder that {model} was trained with"
        raise UserError(str(folder), what, "copy the run anew")
    return codec


def trained_with(model: Path) -> str | None:
    """The key of the codec that a model's file names; None for a file that is not there, or not of a latent model."""
    try:
        with safe_open(model, "pt", device="cpu") as file:
            facts = json.loads((file.metadata() or {})["twofold"])
    except (SafetensorError, OSError, KeyError):
        return None
    key: str | None = facts.get("codec", {}).get("key")
    return key
