"""Intervals of figures that are not plain shares: the images are drawn again, with replacement (Efron 1979).

Whatever is a function of sums over images (mean IoU, a normalised mean error) is computed from the sums of each draw.
Images of one person or one film are alike; with groups, whole groups are drawn.
"""

from __future__ import annotations

import numpy as np

DRAWS = 1000
AT_ONCE = 1 << 22  # numbers of the table of counts that is held at a time


def resampled(sums: np.ndarray, groups: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """(draws, ...) float64: for each draw of as many images as there are, the sum of their rows of `sums` (N, ...).

    groups (N,): whole groups are drawn, as many as there are; an image whose group is negative is one by itself.
    The same seed gives the same draws. Raises `ValueError` for no images.
    """
    sums = np.asarray(sums, np.float64)
    if not len(sums):
        raise ValueError("no images to draw from")
    rows = sums.reshape(len(sums), -1)
    if groups is not None:
        rows = _by_group(rows, np.asarray(groups))
    random, count = np.random.default_rng(seed), len(rows)
    parts = []
    for start in range(0, draws, step := max(1, AT_ONCE // count)):
        size = min(step, draws - start)
        parts.append(random.multinomial(count, np.full(count, 1 / count), size).astype(np.float64) @ rows)
    return np.concatenate(parts).reshape(draws, *sums.shape[1:])


def middle(values: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """(low, high): where the middle `share` of these values lies; NaN among them is left out, (NaN, NaN) for none."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _by_group(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(G, M): the rows of each group added up."""
    alone = groups < 0
    groups = np.where(alone, groups.max(initial=0) + 1 + np.arange(len(groups)), groups)
    _, place = np.unique(groups, return_inverse=True)
    found = np.zeros((place.max() + 1, rows.shape[1]))
    np.add.at(found, place, rows)
    return found
