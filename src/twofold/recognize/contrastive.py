"""How contrastive features are: two views of one image close together, all images spread over the sphere.

    alignment  = mean_i ||f_i - g_i||^2                                 f, g: features of two views, L2-normalised
    uniformity = log mean_{i<j} exp(-t ||f_i - f_j||^2)                 (Wang and Isola 2020, eq. 1 and 2, alpha = 2)

Both are lower where features are better. The mean of uniformity runs over all pairs there are, so it does not depend
on batches; a mean of the logarithms of batches would: it lies below, the more so the smaller they are.
For points spread evenly over the sphere of many dimensions uniformity with t = 2 tends to -4; for one point it is 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

Features = Tensor | np.ndarray


def alignment(f: Features, g: Features) -> float:
    """Mean squared distance between the normalised features of two views of the same images, in [0, 4].

    f, g: (N, D), any length but zero; row i of both belongs to image i. Equal views give exactly 0.
    Raises `UserError` for shapes that do not match, no image, zero vectors and numbers that are not finite.
    """
    first, second = _unit(f, "f"), _unit(g, "g")
    if first.shape != second.shape:
        raise UserError("g", f"of shape {tuple(second.shape)}", f"f is {tuple(first.shape)}: one row per image in both")
    return float((first - second.to(first)).square().sum(1, dtype=_sums(first)).mean())


def uniformity(f: Features, t: float = 2.0, chunk: int = 2048) -> float:
    """Logarithm of the mean Gaussian potential over all pairs of images, in [-4 t, 0].

    f: (N, D), N >= 2, any length but zero. t: 1 / width of the potential. chunk: rows compared at a time; memory grows
    with its square, the result does not depend on it. Products are taken in the features' own precision (float32 at
    least), sums in float64; there are N^2 D / 2 multiplications.
    Raises `UserError` for fewer than two images, zero vectors, numbers that are not finite, and for a t or chunk that
    cannot be.
    """
    if not (math.isfinite(t) and t > 0):
        raise UserError(f"t={t:g}", "not a width", "a positive number; 2 is usual")
    if chunk < 1:
        raise UserError(f"chunk={chunk}", "no rows", "at least 1; it only bounds the memory")
    unit = _unit(f, "f")
    if len(unit) < 2:
        raise UserError("f", "one image", "uniformity is about pairs: give at least two")
    parts = unit.split(chunk)
    total = -math.inf
    for i, rows in enumerate(parts):
        for j in range(i, len(parts)):
            total = float(np.logaddexp(total, _log_potential(rows, parts[j], t, i == j)))
    return total - math.log(len(unit) * (len(unit) - 1) / 2)


def contrast(first: Mapping[str, Features], second: Mapping[str, Features], t: float = 2.0) -> dict[str, dict]:
    """{layer: {"alignment": .., "uniformity": ..}} for the features {layer: (N, D)} of two views of the same images.

    Uniformity is the mean of both views'. Raises `UserError` where a layer is in one view only, and as they do.
    """
    if list(first) != list(second):
        raise UserError("layers", f"{list(first)} in one view, {list(second)} in the other", "the same in both")
    return {
        layer: {
            "alignment": alignment(first[layer], second[layer]),
            "uniformity": (uniformity(first[layer], t) + uniformity(second[layer], t)) / 2,
        }
        for layer in first
    }


def _unit(f: Features, name: str) -> Tensor:
    """Rows of length 1, float32 or better."""
    f = torch.as_tensor(f).detach()
    if f.ndim != 2 or not len(f):
        raise UserError(name, f"of shape {tuple(f.shape)}", "expected (images, channels), not empty")
    f = f if f.dtype == torch.float64 else f.float()
    largest = f.abs().amax(1, keepdim=True)
    if not bool(largest.isfinite().all()):
        raise UserError(name, f"not finite for {int((~largest.isfinite()).sum())} of {len(f)} images")
    if not bool((largest > 0).all()):
        zero = int((largest == 0).sum())
        raise UserError(
            name, f"zero for {zero} of {len(f)} images", "a zero vector has no direction; take another layer"
        )
    scaled = f / largest  # squares of very small or large numbers would leave the range of float32
    return scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True, dtype=_sums(f)).to(f.dtype)


def _sums(f: Tensor) -> torch.dtype:
    """float64, where the device has it."""
    return torch.float32 if f.device.type == "mps" else torch.float64


def _log_potential(rows: Tensor, others: Tensor, t: float, same: bool) -> float:
    """Logarithm of the sum of exp(-t d^2) over the pairs of two chunks, each pair once."""
    squared = (2 - 2 * (rows @ others.T)).clamp_(min=0).to(_sums(rows))
    exponent = squared.mul_(-t)
    if same:
        above = torch.ones_like(exponent, dtype=torch.bool).triu_(1)
        exponent = exponent.masked_fill_(~above, -math.inf)
    return float(torch.logsumexp(exponent.flatten(), 0))
