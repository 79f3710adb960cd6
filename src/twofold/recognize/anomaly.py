"""What a denoiser of good parts cannot repair as it repairs good parts: anomaly scores and maps.

    e_s(x0)[pixel] = mean over draws and channels of |x0_hat(x0 + s * noise, s) - x0|^2, smoothed
    map            = mean over noise levels s of (e_s - m_s) / d_s     m_s, d_s: mean and spread of good parts
    score          = the same for the mean of e_s over the image          (or the mean of the map's highest values)

so a score is in standard deviations of good parts, and no noise level dominates because its errors are large. At small
sigma the error shows texture and scratches, at large sigma whatever should not be there at all. (Reconstruction with
partial noise: Wyatt et al. 2022, "AnoDDPM"; several levels: Graham et al. 2023, "Denoising diffusion models for
out-of-distribution detection".)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..denoiser import Denoiser
from ..errors import UserError, nearest
from ..generate.sample import image_shape
from ..measure.answers import auroc
from .denoising_error import DenoisingError, ImageNoise, Rows

__all__ = ["AnomalyDetector", "auroc"]

Progress = Callable[[int, int], None]  # (images done, images in all)
SIGMAS = (0.1, 0.2, 0.4, 0.8, 1.6)
KINDS = ("mean", "peak")
PEAK = 0.01  # share of the pixels that "peak" looks at: the highest
FLOOR = 0.1  # of the mean spread: pixels that never change in good parts would divide by nothing
IMAGES = 64  # measured at a time,
ELEMENTS = 2**24  # with no more errors than these in memory
STATISTICS = ("pixel_mean", "pixel_std", "image_mean", "image_std")


class AnomalyDetector:
    """Compares images with the good parts it was fitted to.

    denoiser: trained on good parts (on other images too, if need be: the spread of good parts is the measure).
    sigmas: noise levels in units of x0; default: 0.1 to 1.6, as far as the denoiser knows them. draws: of noise per
    level. smooth: standard deviation, in elements of x0, of the Gaussian that smooths errors before they are compared.
    score: "mean" over the whole image, or "peak", the highest 1 % of the map, for small defects.
    noise: (images uint8, draw) -> (B, *shape); default: noise that belongs to the image's pixels.

    `fit` or `from_tensors` first. Raises `UserError` for settings out of range and for images of another shape.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sigmas: Sequence[float] | None = None,
        draws: int = 4,
        smooth: float = 1.0,
        score: str = "mean",
        noise: ImageNoise | None = None,
        micro_batch: int = 64,
    ) -> None:
        if draws < 1:
            raise UserError(f"draws={draws}", "no draw of noise", "at least 1; more are steadier")
        if not (math.isfinite(smooth) and smooth >= 0):
            raise UserError(f"smooth={smooth:g}", "not a width", "0 (none) or more, in elements of x0")
        if score not in KINDS:
            raise UserError(f"score={score}", "no such score", nearest(score, KINDS))
        if sigmas is None:
            low, high = denoiser.sigma_range
            sigmas = [sigma for sigma in SIGMAS if low <= sigma <= high] or [math.sqrt(low * high)]
        self.sigmas, self.draws = tuple(float(sigma) for sigma in sigmas), draws
        self.smooth, self.score = float(smooth), score
        trials = [sigma for sigma in self.sigmas for _ in range(draws)]
        self._errors = DenoisingError(denoiser, trials, "x0", noise, micro_batch)
        self._height, self._width = image_shape(denoiser)[1:]
        self._known: dict[str, Tensor] | None = None

    def fit(self, images: Tensor, progress: Progress | None = None) -> AnomalyDetector:
        """Learns what good parts look like from uint8 images (N, C, H, W), N >= 2; hundreds are better. Returns self.

        Memory does not grow with their number.
        """
        if len(images) < 2:
            raise UserError("images", f"{len(images)} good parts", "at least 2 are needed to know how they differ")
        pixels, whole = _Moments(), _Moments()
        for done, errors in self._by_image(images):
            pixels.add(errors)
            whole.add(errors.mean((2, 3)))
            if progress:
                progress(done, len(images))
        self._known = {
            **{"pixel_mean": pixels.mean(), "pixel_std": _floored(pixels.std(), (1, 2))},
            **{"image_mean": whole.mean(), "image_std": whole.std().clamp(min=torch.finfo(torch.float32).tiny)},
        }
        return self

    def scores(self, images: Tensor, progress: Progress | None = None) -> np.ndarray:
        """(N,) float32, in standard deviations of good parts: about 0 for these, higher for what is unlike them."""
        return np.concatenate([self._score(errors).float().numpy() for errors in self._told(images, progress)])

    def maps(self, images: Tensor, progress: Progress | None = None) -> np.ndarray:
        """(N, H, W) float32 in pixels of the images, in standard deviations of that pixel in good parts."""
        return np.concatenate([self._map(errors).float().numpy() for errors in self._told(images, progress)])

    def compare(self, images: Tensor, progress: Progress | None = None) -> tuple[np.ndarray, np.ndarray]:
        """`scores` and `maps`, computed together."""
        both = [(self._score(errors), self._map(errors)) for errors in self._told(images, progress)]
        scores, maps = (torch.cat(part).float().numpy() for part in zip(*both, strict=True))
        return scores, maps

    def tensors(self) -> dict[str, Tensor]:
        """What was learnt and how, as plain tensors (for safetensors); `from_tensors` is the inverse."""
        how = torch.tensor([self.draws, self.smooth, KINDS.index(self.score)], dtype=torch.float64)
        return {**self._fitted(), "sigmas": torch.tensor(self.sigmas, dtype=torch.float64), "how": how}

    @classmethod
    def from_tensors(
        cls, denoiser: Denoiser, tensors: Mapping[str, Tensor], noise: ImageNoise | None = None, micro_batch: int = 64
    ) -> AnomalyDetector:
        """The detector that `tensors` came from; the denoiser and the noise are those it was fitted with.

        Raises `UserError` for tensors that are missing or were made for images of another shape.
        """
        missing = [name for name in (*STATISTICS, "sigmas", "how") if name not in tensors]
        if missing:
            raise UserError("tensors", f"without {', '.join(missing)}", "they are not those of an anomaly detector")
        draws, smooth, kind = tensors["how"].tolist()
        found = cls(denoiser, tensors["sigmas"].tolist(), int(draws), smooth, KINDS[int(kind)], noise, micro_batch)
        expected = (len(found.sigmas), *denoiser.shape[1:])
        if tuple(tensors["pixel_mean"].shape) != expected:
            what = f"made for maps of {tuple(tensors['pixel_mean'].shape)}, this model has {expected}"
            raise UserError("tensors", what, "fit the detector with this model")
        found._known = {name: tensors[name].double() for name in STATISTICS}
        return found

    def _fitted(self) -> dict[str, Tensor]:
        if self._known is None:
            raise UserError("anomaly", "it has not seen good parts yet", "call fit(images) first")
        return self._known

    def _told(self, images: Tensor, progress: Progress | None) -> Iterator[Tensor]:
        """Errors of `_by_image`, telling progress."""
        self._fitted()
        for done, errors in self._by_image(images):
            yield errors
            if progress:
                progress(done, len(images))

    def _score(self, errors: Tensor) -> Tensor:
        if self.score == "mean":
            known = self._fitted()
            return ((errors.mean((2, 3)) - known["image_mean"]) / known["image_std"]).mean(1)
        flat = self._levels(errors).flatten(1)
        return flat.topk(max(1, round(PEAK * flat.shape[1])), dim=1).values.mean(1)

    def _map(self, errors: Tensor) -> Tensor:
        maps, size = self._levels(errors)[:, None], (self._height, self._width)
        if maps.shape[2:] != size:  # latents
            maps = functional.interpolate(maps, size, mode="bilinear", align_corners=False)
        return maps[:, 0]

    def _levels(self, errors: Tensor) -> Tensor:
        """(B, h, w): z-scores of every element of x0, averaged over the levels."""
        known = self._fitted()
        return ((errors - known["pixel_mean"]) / known["pixel_std"]).mean(1)

    def _by_image(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(images done, smoothed errors (b, levels, h, w) float64 on the CPU), some images at a time."""
        trials = len(self.sigmas) * self.draws
        if not len(images):
            raise UserError("images", "none", "give at least one")
        size = trials * math.prod(self._errors.denoiser.shape[1:])
        most = max(1, min(IMAGES, ELEMENTS // size))
        for start in range(0, len(images), most):
            part = images[start : start + most]
            count = len(part)
            rows = Rows(
                np.repeat(np.arange(count), trials), np.tile(np.arange(trials), count), np.full(count * trials, -1)
            )
            x0 = self._errors.encode(part)
            found = torch.cat([error.mean(1).cpu() for _, error in self._errors(x0, part, rows)]).double()
            errors = found.unflatten(0, (count, len(self.sigmas), self.draws)).mean(2)
            yield start + count, _smoothed(errors, self.smooth)


class _Moments:
    """Mean and standard deviation of what is added, batch by batch, over its first dimension (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count, self._mean, self._squares = 0, torch.tensor(0.0), torch.tensor(0.0)

    def add(self, values: Tensor) -> None:
        count, mean = len(values), values.mean(0)
        total = self.count + count
        gap = mean - self._mean
        self._mean = self._mean + gap * (count / total)
        self._squares = self._squares + (values - mean).square().sum(0) + gap.square() * (self.count * count / total)
        self.count = total

    def mean(self) -> Tensor:
        return self._mean

    def std(self) -> Tensor:
        return (self._squares / (self.count - 1)).sqrt()


def _floored(spread: Tensor, over: tuple[int, ...]) -> Tensor:
    least = FLOOR * spread.mean(over, keepdim=True)
    return torch.maximum(spread, least).clamp(min=torch.finfo(torch.float32).tiny)


def _smoothed(maps: Tensor, width: float) -> Tensor:
    """Maps (B, S, h, w) under a Gaussian of this standard deviation; the border is continued outwards."""
    if width == 0:
        return maps
    reach = math.ceil(3 * width)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=maps.dtype) / width) ** 2)
    kernel = kernel / kernel.sum()
    channels = maps.shape[1]
    weight = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    maps = functional.conv2d(functional.pad(maps, (0, 0, reach, reach), "replicate"), weight, groups=channels)
    weight = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return functional.conv2d(functional.pad(maps, (reach, reach, 0, 0), "replicate"), weight, groups=channels)
