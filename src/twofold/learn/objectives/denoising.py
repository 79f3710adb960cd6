"""The denoising objective: F against its own target at random noise levels (Ho et al. 2020, eq. 14; Karras et al.
2022, eq. 8; Lipman et al. 2023, eq. 9; which one is the noise family's business)."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import noise as theory
from ...data.augment import AUGMENT_DRAWS, augment
from ...denoiser import NetworkDenoiser
from ...settings.train import Denoising
from ..batches import U_AUGMENT, U_LABEL, U_SIGMA, Batch
from .base import Objective


class DenoisingObjective(Objective):
    """forward(batch) -> weighted squared error of F, mean over pixels, per image (B,)."""

    classifies = False
    needs_noise = True

    def __init__(self, denoiser: NetworkDenoiser, settings: Denoising) -> None:
        super().__init__()
        self.denoiser: NetworkDenoiser = denoiser
        self.network = denoiser.network
        self.settings = settings
        self.uniforms = U_AUGMENT + (AUGMENT_DRAWS if settings.augment_probability else 0)

    def counted(self, label: Tensor) -> int:
        """All of them: an image without a label is still an image."""
        return len(label)

    def forward(self, batch: Batch) -> Tensor:
        family, settings = self.denoiser.family, self.settings
        x0 = self.denoiser.codec.encode(batch.images)
        cond = {}
        if settings.augment_probability:
            x0, cond["augment"] = augment(x0, batch.uniforms[:, U_AUGMENT:], settings.augment_probability)
        if self.denoiser.classes:
            dropped = (batch.uniforms[:, U_LABEL] < settings.label_dropout).to(batch.label.device)
            cond["label"] = torch.where(dropped, -1, batch.label)
        sigma = family.training_sigma(batch.uniforms[:, U_SIGMA])
        assert batch.noise is not None
        output = self.denoiser(theory.add(x0, batch.noise, sigma), sigma, cond)
        error = (output - family.target(x0, batch.noise, sigma)).square().flatten(1).mean(1)
        return error * theory.expand(theory.loss_weight(family, sigma, settings.min_snr_gamma), error)
