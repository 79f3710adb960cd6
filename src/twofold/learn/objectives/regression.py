"""The objective of super-resolution in one pass: the large image from its low one.

    loss = mean over pixels of |x0_hat - x0|^p              p = 2 (mse) or 1 (l1)

The low image is made of the packed pixels, mirrored and cropped as the large one is. Least squares asks for the mean of
all images that fit: near to each of them in pixels, and smoother than any.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...lowres import shrink
from ...measure.fidelity import psnr, ssim
from ...networks.rdn import Upscaler
from ...settings.regression import Regression
from ..batches import U_FLIP, Batch
from ..crops import CROP_DRAWS, check_crop, cropped
from .base import Objective


class RegressionObjective(Objective):
    """forward(batch) -> loss per image (B,). It measures on held-out images, which are whole

    psnr    of the uint8 image to the true one, in decibels, see `measure.fidelity`
    ssim    of the same
    """

    classifies = False
    needs_noise = False
    measures = ("psnr", "ssim")

    def __init__(self, model: Upscaler, settings: Regression, seed: int = 0) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        self.network = model.network
        self.uniforms = U_FLIP + 1
        if settings.crop:
            check_crop(settings.crop, model.shape)
            self.further, self.uniforms = CROP_DRAWS, self.uniforms + CROP_DRAWS

    @property
    def previews(self) -> bool:
        return True

    def forward(self, batch: Batch) -> Tensor:
        if self.settings.crop and self.training:
            batch = cropped(batch, self.settings.crop)
        off = self._large(batch.images) - self.model.codec.encode(batch.images)
        return (off.abs() if self.settings.distance == "l1" else off.square()).flatten(1).mean(1)

    def measure(self, batch: Batch) -> Tensor:
        found = self.model.codec.decode(self._large(batch.images))
        return torch.stack([psnr(found, batch.images), ssim(found, batch.images)], 1)

    def pictures(self, batch: Batch) -> Tensor:
        """Each image, shrunk and enlarged again."""
        return self.model.codec.decode(self._large(batch.images)).cpu()

    def _large(self, images: Tensor) -> Tensor:
        """x0_hat (B, C, H, W) float32 of these images, shrunk."""
        low = self.model.codec.encode(shrink(images, self.model.low_factor))
        return self.model(low).float()
