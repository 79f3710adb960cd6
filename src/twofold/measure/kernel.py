"""The kernel distance KID: the squared maximum mean discrepancy under a cubic kernel (Binkowski et al. 2018).

    k(a, b) = (a . b / D + 1)^3
    MMD^2 = mean of k(x, x') over x != x'  +  the same of y  -  2 mean of k(x, y)

Unbiased whatever the number of images, so that it may come out below 0 for equal distributions; published values are
the mean over random subsets. Not comparable between encoders.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..errors import UserError
from .frechet import as_rows

SUBSETS, SUBSET_SIZE = 100, 1000  # as published
BLOCK = 2048  # rows and columns of a kernel matrix at a time: 32 MiB


def kernel_distance(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """MMD^2 of all rows of features (N, D) and (M, D): the unbiased estimate with the least variance.

    Raises `UserError` for fewer than two rows a side, other D, NaN or infinity.
    """
    a, b = _checked(a, b)
    return _estimate(a, b)


def kernel_distance_of_subsets(
    a: Tensor | np.ndarray, b: Tensor | np.ndarray, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation over random subsets of `size` rows of either side, drawn without replacement.

    Where a side has fewer rows, subsets have as many as it has. Raises `UserError` as `kernel_distance` does.
    """
    a, b = _checked(a, b)
    size = min(size, len(a), len(b))
    random = np.random.default_rng([seed, 4])
    values = [_estimate(_some(random, a, size), _some(random, b, size)) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values))


def _some(random: np.random.Generator, rows: np.ndarray, size: int) -> np.ndarray:
    return rows[random.choice(len(rows), size, replace=False)]


def _estimate(a: np.ndarray, b: np.ndarray) -> float:
    n, m = len(a), len(b)
    within = _sum(a, a, diagonal=False) / (n * (n - 1)) + _sum(b, b, diagonal=False) / (m * (m - 1))
    return within - 2 * _sum(a, b) / (n * m)


def _sum(a: np.ndarray, b: np.ndarray, diagonal: bool = True) -> float:
    """The sum of k over all pairs, block by block; without pairs of a row and itself where diagonal is False."""
    total, dims = 0.0, a.shape[1]
    for row in range(0, len(a), BLOCK):
        for column in range(0, len(b), BLOCK):
            total += _cubes(a[row : row + BLOCK] @ b[column : column + BLOCK].T, dims)
    return total if diagonal else total - _cubes(np.einsum("nd,nd->n", a, a), dims)


def _cubes(products: np.ndarray, dims: int) -> float:
    """The sum of k of these inner products. Multiplied, for a power of 3 is many times slower."""
    base = products / dims + 1
    return float((base * base * base).sum())


def _checked(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = as_rows(a), as_rows(b)
    if a.shape[1] != b.shape[1]:
        raise UserError("features", f"{a.shape[1]} dimensions and {b.shape[1]} dimensions", "use one encoder for both")
    if min(len(a), len(b)) < 2:
        raise UserError("features", f"{len(a)} and {len(b)} images", "at least 2 of either are needed")
    return a, b
