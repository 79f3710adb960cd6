"""What training writes on its way: weights that can be used, states to continue from, preview images.

Each appears whole, and not before there is room for it: the last good one stays where the disk is full.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data import Store
from ..files import atomic_bytes
from ..networks.autoencoder import AutoencoderModel
from ..run import Run, State, Trained, check_room, save_model, save_state
from ..settings.train import TrainSettings
from .latents import latent_scale
from .lora import merged, save_factors
from .step import Stepper
from .validation import averaged

AGAIN = "free some room; the same command continues at the last save"


class Checkpoints:
    """Writes into one run folder; by rank 0 alone, all ranks hold the same."""

    def __init__(self, run: Run, settings: TrainSettings, model: Trained, stepper: Stepper, store: Store) -> None:
        self.run, self.settings, self.model, self.stepper, self.store = run, settings, model, stepper, store
        self.average = stepper.average.tensors

    def snapshot(self, name: str, n_images: int) -> None:
        """The averaged weights, kept for good. Raises `UserError` where the disk has no room for them."""
        check_room(self.run.path, nbytes(self.average), AGAIN)
        self.run.snapshots.mkdir(exist_ok=True)
        self._model(self.run.snapshots / f"{name}.safetensors", n_images)

    def save(self, n_images: int, facts: dict[str, Any]) -> None:
        """The training state and the averaged weights. Raises `UserError` where the disk has no room for both."""
        tensors = self.stepper.tensors()
        check_room(self.run.path, nbytes(tensors) + nbytes(self.average), AGAIN)
        self._model(self.run.model_file, n_images)
        if self.settings.lora is not None:
            about = {"lora": self.settings.lora.model_dump(mode="json"), "init_from": self.settings.init_from}
            path = self.run.path / "lora.safetensors"
            save_factors(path, self.stepper.network, self.average, {**about, "n_images": n_images})
        save_state(self.run.path / "state", State(n_images, tensors, facts), self.settings.train.keep_states)

    def preview(self, images: Tensor, n_images: int) -> None:
        """uint8 images (N, C, H, W)."""
        self.run.previews.mkdir(exist_ok=True)
        packed = io.BytesIO()
        np.save(packed, images.numpy())
        atomic_bytes(self.run.previews / f"{n_images:012d}.npy", packed.getvalue())

    def _model(self, path: Path, n_images: int) -> None:
        """A plain network, whatever it was trained as; an autoencoder with the scale of its latents."""
        network, scale = self.stepper.network, None
        if isinstance(self.model, AutoencoderModel):
            with averaged(network, self.stepper.average):
                scale = latent_scale(self.model, self.store)
        save_model(path, merged(network, self.average), self.model, self.settings, n_images, scale)


def nbytes(tensors: dict[str, Tensor]) -> int:
    return sum(value.nbytes for value in tensors.values())
