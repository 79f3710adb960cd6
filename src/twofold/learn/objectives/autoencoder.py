"""The objective of an autoencoder: reconstruct images from latents that lie near a standard normal.

    loss = mean over pixels of |x0_hat - x0|^p + kl_weight * KL / pixels        p = 2 (mse) or 1 (l1)
    KL   = 1/2 sum over latents of (mean^2 + exp(logvar) - 1 - logvar)          (Kingma and Welling 2014, appendix B)

in nats of an image, over all its pixels and channels. x0_hat decodes a draw from the posterior, of held-out images its
mean. The published autoencoders add a perceptual and an adversarial loss, for images of 256 pixels; neither is here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...measure.fidelity import psnr
from ...networks.autoencoder import AutoencoderModel
from ...settings.train import Autoencoding
from ..batches import U_FLIP, Batch
from .base import Objective


class AutoencoderObjective(Objective):
    """forward(batch) -> loss per image (B,). It measures on held-out images

    psnr    of the uint8 image that comes back, in decibels, see `measure.fidelity`
    kl      in nats per image
    """

    classifies = False
    needs_noise = True
    measures = ("psnr", "kl")

    def __init__(self, model: AutoencoderModel, settings: Autoencoding, seed: int = 0) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        self.network = model.network
        self.uniforms = U_FLIP + 1

    @property
    def previews(self) -> bool:
        return True

    def forward(self, batch: Batch) -> Tensor:
        x0 = self.model.codec.encode(batch.images)
        x0_hat, mean, logvar = self.model(x0, batch.noise if self.training else None)
        off = x0_hat - x0
        distance = (off.abs() if self.settings.loss == "l1" else off.square()).flatten(1).mean(1)
        return distance + self.settings.kl_weight * divergence(mean, logvar) / math.prod(x0.shape[1:])

    def measure(self, batch: Batch) -> Tensor:
        x0_hat, mean, logvar = self.model(self.model.codec.encode(batch.images))
        back = self.model.codec.decode(x0_hat)
        return torch.stack([psnr(back, batch.images), divergence(mean, logvar).double()], 1)

    def pictures(self, batch: Batch) -> Tensor:
        """Each image and beside it what comes back of it: 2N images."""
        found = self.model.codec.decode(self.model(self.model.codec.encode(batch.images))[0])
        return torch.stack([batch.images, found], 1).flatten(0, 1).cpu()


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """(B,): Kullback-Leibler divergence of normals with these moments from a standard one, in nats."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)
