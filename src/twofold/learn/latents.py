"""Latents in training: what images become is made before the first step and kept; the scale that makes them unit size.

scale = 1 / std of z over training images,   var z = var(mean) + mean(exp(logvar))        (Rombach et al. 2022, G)
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch

from ..adapters.latent_codec import LatentCodec
from ..data import Store, spread
from ..data.latents import Latents, Shelf, fill, shelf
from ..networks.autoencoder import AutoencoderModel
from ..settings.train import TrainSettings
from .events import Note

TOLD = 10.0  # seconds between words on how far encoding is
SCALE_PIXELS = 2**24  # of training images that the scale is found with, and
SCALE_IMAGES = 1024  # no more images than this
AT_ONCE = 2**20  # pixels of those that are encoded at once


@dataclass(frozen=True)
class Kept:
    """Stored moments of the images that are trained on, and of those held out; None where none are kept."""

    train: Latents | None = None
    held_out: Latents | None = None


def shelves(settings: TrainSettings, store: Store, codec: LatentCodec, held_out: np.ndarray) -> tuple[Shelf, Shelf]:
    """Where they are, or will be. held_out: rows of the images that are validated with."""
    chosen = settings.codec
    assert chosen is not None
    shape = codec.shape_of(store.shape)
    mirror = settings.data.flip if chosen.mirror is None else chosen.mirror
    train = shelf(codec, store, store.indices("train"), shape, mirror)
    return train, shelf(codec, store, held_out, shape, False)


def keep(
    settings: TrainSettings,
    store: Store,
    codec: LatentCodec | None,
    held_out: np.ndarray,
    rank: int,
    world: int,
) -> Generator[Note, None, Kept]:
    """Encodes what is not there yet, together with the other processes; yields what to tell of it.

    held_out: rows of the images that are validated with. Raises `UserError` for a disk without room.
    """
    if codec is None or settings.codec is None or not settings.codec.store:
        return Kept()
    found = shelves(settings, store, codec, held_out)
    told = time.monotonic() - TOLD
    for part in found:
        for done, total in fill(part, codec, store, rank, world):
            if total and time.monotonic() - told >= TOLD:
                told = time.monotonic()
                yield Note(f"encoding images once: {done:,} of {total:,}")
    return Kept(*map(Latents, found))


@torch.no_grad()
def latent_scale(model: AutoencoderModel, store: Store) -> float:
    """The factor that makes the latents of an autoencoder of unit variance over (some of the) training images."""
    rows = store.indices("train")
    pixels = store.shape[1] * store.shape[2]
    rows = rows[spread(len(rows), max(2, min(SCALE_IMAGES, SCALE_PIXELS // pixels)))]
    device = next(model.parameters()).device
    means, within = [], torch.zeros((), dtype=torch.float64)
    batch = max(1, AT_ONCE // pixels)
    for start in range(0, len(rows), batch):
        images = store.batch(rows[start : start + batch]).to(device)
        mean, logvar = (part.cpu().double() for part in model.network.moments(model.codec.encode(images)))
        means.append(mean)
        within += logvar.exp().mean() * len(images) / len(rows)
    variance = float(torch.cat(means).var(correction=0) + within)
    return variance**-0.5 if 0 < variance < float("inf") else 1.0
