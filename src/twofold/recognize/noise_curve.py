"""How a classifier holds out against noise: its accuracy at one noise level after another.

Every classifier sees the same images x0 + sigma * noise in the same frame, whatever family it was trained in, and the
noise belongs to the image's pixels. So curves of different classifiers can be compared point by point, and a point
does not depend on which others were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..codec import PixelCodec
from ..denoiser import Classifier
from ..errors import UserError
from ..generate.sample import evaluating, place
from ..measure.answers import share_interval
from ..measure.per_class import share_right
from ..noise import add
from .denoising_error import ImageNoise, noise_of_images

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
Progress = Callable[[int, int], None]  # (noise levels done, in all)


def levels_of(classifier: object, wanted: Sequence[float] | None = None) -> tuple[float, ...]:
    """The noise levels to measure a classifier at: the wanted ones, or those of `LEVELS` that it knows, or none.

    Raises `UserError` for wanted levels that it does not know: one trained on clean images knows none. 0 is the clean
    image, which all know.
    """
    known: tuple[float, float] | None = getattr(classifier, "sigma_range", None)
    if wanted is None:
        return tuple(sigma for sigma in LEVELS if known and known[0] <= sigma <= known[1])
    for sigma in filter(None, wanted):
        if known is None:
            what = "this classifier has seen clean images only: it says nothing about noisy ones"
            raise UserError(f"noise_levels={sigma:g}", what, "leave noise_levels out, or train one that is told sigma")
        if not known[0] * (1 - 1e-6) <= sigma <= known[1] * (1 + 1e-6):
            what = f"outside [{known[0]:.6g}, {known[1]:.6g}], which this classifier knows"
            raise UserError(f"noise_levels={sigma:g}", what, "give levels in between, in units of x0")
    return tuple(float(sigma) for sigma in wanted)


def accuracy_against_noise(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor | np.ndarray,
    sigmas: Sequence[float] | None = None,
    draws: int = 1,
    noise: ImageNoise | None = None,
    micro_batch: int = 256,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One row per noise level: {"sigma", "accuracy", "low", "high", "images", "draws"}.

    images: uint8 (N, C, H, W). labels: (N,) int64, -1 = left out; of a classifier of attributes (N, K) in 0, 1, -1 =
    unknown, whose accuracy is the mean over images of their share of right answers. sigmas: in units of x0; default:
    `levels_of`. draws: of noise per image, the same ones at every level; the accuracy is their mean. low, high: its
    95 % interval over images (Wilson 1927; for attributes, by the spread of images), as if every image were seen once,
    so with several draws it is a little wide.
    noise: (images, draw) -> (B, *shape); default: noise that belongs to the image's pixels.

    Raises `UserError` before any computation for levels that the classifier does not know and for labels or images
    that do not fit.
    """
    levels = levels_of(classifier, sigmas)
    if draws < 1:
        raise UserError(f"noise_draws={draws}", "no draw of noise", "at least 1")
    images, labels = _labelled(images, torch.as_tensor(labels).cpu())
    rows = []
    with evaluating(classifier), torch.inference_mode():
        for number, sigma in enumerate(levels):
            right = torch.stack(
                [
                    share_right(_logits(classifier, images, sigma, draw, noise, micro_batch), labels)
                    for draw in range(draws if sigma else 1)
                ]
            )
            share = float(np.mean(right.mean(1).tolist()))
            low, high = share_interval(share, len(images)) if labels.ndim == 1 else _spread_interval(right[0], share)
            counts = {"images": len(images), "draws": len(right)}
            rows.append({"sigma": sigma, "accuracy": share, "low": low, "high": high, **counts})
            if progress:
                progress(number + 1, len(levels))
    return rows


def _labelled(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The images of which something is known, and their labels."""
    fits = labels.ndim in (1, 2) and labels.shape[:1] == images.shape[:1]
    if images.dtype != torch.uint8 or images.ndim != 4 or not fits:
        what = f"{images.dtype} of shape {tuple(images.shape)} with labels {tuple(labels.shape)}"
        raise UserError("images", what, "expected uint8 (N, C, H, W) and one label, or one row of attributes, each")
    known = (labels != -1).flatten(1).any(1) if labels.ndim == 2 else labels != -1
    if not bool(known.any()):
        raise UserError("labels", "no image is labelled", "-1 means unlabelled")
    return images[known], labels[known]


def _spread_interval(shares: Tensor, mean: float) -> tuple[float, float]:
    """95 % interval of a mean of shares of images, within 0 to 1."""
    half = 1.96 * (float(shares.std()) / len(shares) ** 0.5 if len(shares) > 1 else 1.0)
    return max(0.0, mean - half), min(1.0, mean + half)


def _logits(
    classifier: Classifier, images: Tensor, sigma: float, draw: int, noise: ImageNoise | None, micro_batch: int
) -> Tensor:
    """(N, K) on the CPU."""
    codec = getattr(classifier, "codec", None) or PixelCodec()
    device, dtype = place(classifier) if isinstance(classifier, nn.Module) else (torch.device("cpu"), torch.float32)
    found = []
    for part in images.split(micro_batch):
        x0 = codec.encode(part.to(device)).to(dtype)
        drawn = (noise or noise_of_images(tuple(x0.shape[1:])))(part, draw) if sigma else None
        x = x0 if drawn is None else add(x0, drawn.to(x0), sigma)
        found.append(classifier.logits(x, sigma).float().cpu())
    return torch.cat(found)
