"""How far a denoiser is from the truth, for any set of (image, trial, label): what zero-shot answers and anomaly
scores are made of.

    error = w(sigma) |x0_hat(x0 + sigma * noise, sigma, label) - x0|^2          one number per element of x0

    weight   w(sigma)                       what the error is then
    x0       1                              that of the clean image
    eps      1 / sigma^2                    that of the noise: |eps_hat - eps|^2
    edm      (s^2 + sd^2) / (s sd)^2        that of the network's output (Karras et al. 2022, section 5)

A trial is a noise level and a noise draw. The noise belongs to the image's own pixels, so an image has the same errors
in any file, order and batch. Every forward pass has exactly `micro_batch` rows, the last one repeated, for the same
reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Denoiser, NetworkDenoiser
from ..errors import UserError, nearest
from ..generate.sample import evaluating, place
from ..noise import as_sigma, expand
from .views import image_noise

ImageNoise = Callable[[Tensor, int], Tensor]  # (images uint8 (B, C, H, W), draw) -> standard normal (B, *shape)
WEIGHTS = ("eps", "x0", "edm")
SIGMA_DATA = 0.5  # of weight "edm" where the family does not say


def noise_of_images(shape: tuple[int, ...], seed: int = 0) -> ImageNoise:
    """noise(images, draw): standard normal (B, *shape) float32 on the CPU, a function of each image's own pixels."""
    return lambda images, draw: image_noise(images, shape, seed, draw)


@dataclass(frozen=True)
class Rows:
    """What is to be measured, one entry a row: image and trial by number, and the label (-1 = none)."""

    image: np.ndarray
    trial: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, part: np.ndarray) -> Rows:
        return Rows(self.image[part], self.trial[part], self.label[part])


class DenoisingError:
    """A denoiser's errors at these noise levels. `sigmas[j]` is the level of trial j, and j the number of its draw.

    Raises `UserError` for levels outside the denoiser's range, an unknown weight and an empty micro-batch.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sigmas: Sequence[float] | Tensor,
        weight: str = "eps",
        noise: ImageNoise | None = None,
        micro_batch: int = 64,
    ) -> None:
        self.denoiser = denoiser
        self.sigmas = as_sigma(torch.as_tensor(sigmas, dtype=torch.float64))
        if self.sigmas.ndim != 1 or not len(self.sigmas) or not bool((self.sigmas > 0).all()):
            raise UserError("sigmas", "not noise levels", "one or more positive numbers, in units of x0")
        check_range(denoiser, self.sigmas)
        if weight not in WEIGHTS:
            raise UserError(f"weight={weight}", "no such weight", nearest(weight, WEIGHTS))
        if micro_batch < 1:
            raise UserError(f"micro_batch={micro_batch}", "at least one image per forward pass is needed")
        self.weight, self.micro_batch = weight, micro_batch
        self.noise = noise or noise_of_images(denoiser.shape)

    def encode(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> x0 where the network is. Raises `UserError` for images of another shape."""
        if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
            raise UserError("images", f"{images.dtype} of shape {tuple(images.shape)}", "expected uint8 (N, C, H, W)")
        device, dtype = place(self.denoiser)
        with torch.inference_mode():
            parts = [self.denoiser.codec.encode(part.to(device)) for part in images.split(self.micro_batch)]
        x0 = torch.cat(parts).to(dtype)
        if tuple(x0.shape[1:]) != tuple(self.denoiser.shape):
            is_, needs = (" x ".join(map(str, shape)) for shape in (x0.shape[1:], self.denoiser.shape))
            raise UserError("images", f"become {is_}, the model knows {needs}", "bring them to the model's shape")
        return x0

    @torch.inference_mode()
    def __call__(self, x0: Tensor, images: Tensor, rows: Rows) -> Iterator[tuple[slice, Tensor]]:
        """(which rows, their errors (b, *shape), float32 or better), micro-batch by micro-batch.

        x0: (N, *shape) of `encode`. images: uint8 (N, C, H, W), whose pixels choose the noise.
        """
        with evaluating(self.denoiser):
            for start in range(0, len(rows), self.micro_batch):
                stop = min(start + self.micro_batch, len(rows))
                part = rows[np.minimum(np.arange(start, start + self.micro_batch), len(rows) - 1)]
                noise = self._noise(images, part, x0)
                label = torch.from_numpy(part.label).to(x0.device) if self.denoiser.classes else None
                sigma = self.sigmas[torch.from_numpy(part.trial)]
                error = self._residual(x0[torch.from_numpy(part.image).to(x0.device)], noise, sigma, label).square()
                yield slice(start, stop), error[: stop - start]

    def _noise(self, images: Tensor, rows: Rows, x0: Tensor) -> Tensor:
        """One draw per (image, trial) of these rows, shared by their labels."""
        pairs, place_of = np.unique(np.stack([rows.trial, rows.image]), axis=1, return_inverse=True)
        drawn = [
            self.noise(images[torch.from_numpy(pairs[1, pairs[0] == trial])], int(trial))
            for trial in np.unique(pairs[0])
        ]
        return torch.cat(drawn).to(x0)[torch.from_numpy(place_of.reshape(-1)).to(x0.device)]

    def _residual(self, x0: Tensor, noise: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """sqrt(w) (x0_hat - x0). Where F is known it is c_out (F - target), without cancellation at small sigma."""
        denoiser, x = self.denoiser, x0 + expand(sigma, x0) * noise
        cond = None if label is None else {"label": label}
        root = _root_weight(self.weight, sigma, getattr(denoiser, "family", None))
        if isinstance(denoiser, NetworkDenoiser) and type(denoiser).denoise is NetworkDenoiser.denoise:
            family = denoiser.family
            scale = root * family.coefficients(sigma).c_out
            return expand(scale, x0) * (denoiser(x, sigma, cond) - family.target(x0, noise, sigma))
        return expand(root, x0) * (denoiser.denoise(x, sigma, cond) - x0)


def check_range(denoiser: Denoiser, sigmas: Tensor) -> None:
    """Raises `UserError` where a level is outside the denoiser's range."""
    low, high = denoiser.sigma_range
    for bad in sigmas[(sigmas < low * (1 - 1e-6)) | (sigmas > high * (1 + 1e-6))].tolist():
        raise UserError(f"sigma={bad:.6g}", f"outside [{low:.6g}, {high:.6g}]", "this model was not trained for it")


def _root_weight(weight: str, sigma: Tensor, family: object) -> Tensor:
    """Square root of w(sigma), (B,) float64."""
    if weight == "x0":
        return torch.ones_like(sigma)
    if weight == "eps":
        return 1 / sigma
    spread = getattr(getattr(family, "settings", None), "sigma_data", SIGMA_DATA)
    return (sigma**2 + spread**2).sqrt() / (sigma * spread)
