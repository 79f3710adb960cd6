"""What twofold adds to a pipeline's index under "_twofold", because diffusers' layout has no place for it.

    classes   names of the labels            noise   complete settings of the noise family
    clip      whether x0 lives in [-1, 1]    codec   size and channels of a latent model's images

Written by `diffusers_write`; a folder without it is read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .latent_codec import LatentCodec, codec_for, read_autoencoder

EXTRA = "_twofold"
NONE: tuple[Any, ...] = (None, [None, None])  # how an index says that a part is not there


def told_of(index: Mapping[str, Any]) -> Mapping[str, Any]:
    """What twofold wrote into a model_index.json; {} where it did not."""
    told = index.get(EXTRA)
    return told if isinstance(told, Mapping) else {}


def told_names(told: Mapping[str, Any], classes: int) -> list[str]:
    """Names of all classes in order, or none at all."""
    names = told.get("classes")
    return [str(name) for name in names] if isinstance(names, list) and len(names) == classes else []


def told_codec(folder: Path, shape: tuple[int, int, int], told: Mapping[str, Any]) -> LatentCodec:
    """The autoencoder in this folder, at the size that was told, or the one that makes latents of this shape."""
    facts = told.get("codec")
    if not isinstance(facts, Mapping):
        return codec_for(folder, shape)
    size = facts.get("size")
    return LatentCodec(read_autoencoder(folder), tuple(size) if size else None, channels=facts.get("channels"))
