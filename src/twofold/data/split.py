"""Train, validation and test: seeded, stratified, and decided once for a packed store.

A split that the source names itself is kept. What it lacks is carved out of its training images (out of all images
where it names none): `validation_share` and `test_share` of every class, rounded up or down.
"""

from __future__ import annotations

import numpy as np

from ..settings.data import DataSettings
from .items import SPLITS
from .order import keyed

NONE = -1  # code of an image whose source names no split
TRAIN, VALIDATION, TEST = range(len(SPLITS))
VERSION = 1  # of the rule below: stored splits of another version are not reused


def split_key(settings: DataSettings) -> str:
    """Names the split that these settings ask for; settings of the pixels do not change it."""
    return f"v{VERSION}-{settings.validation_share!r}-{settings.test_share!r}-{settings.split_seed}"


def assign(own: np.ndarray, labels: np.ndarray, settings: DataSettings) -> np.ndarray:
    """Codes (N,) int8 into `SPLITS`. own: (N,) the source's codes, `NONE` everywhere where it names no splits."""
    named = set(np.unique(own).tolist())
    codes = np.where(own == NONE, TRAIN, own).astype(np.int8)
    shares = [
        settings.validation_share if VALIDATION not in named else 0.0,
        settings.test_share if TEST not in named else 0.0,
    ]
    rows = np.flatnonzero(codes == TRAIN)
    codes[rows] = stratify(labels[rows], (1 - sum(shares), *shares), settings.split_seed)
    return codes


def stratify(labels: np.ndarray, shares: tuple[float, ...], seed: int) -> np.ndarray:
    """Splits rows at random, class by class (-1 counts as a class).

    labels: (N,). shares: one per part, non-negative, summing to 1; the first part gets at least one image of every
    class. Returns (N,) int8: the part of each row. In every class each part has its share rounded up or down; over
    all classes together the parts stay near their shares too, even where every class is tiny.
    """
    parts = np.zeros(len(labels), np.int8)
    chance = keyed(seed, np.arange(len(labels)))
    owed = np.zeros(len(shares))  # what rounding has withheld from each part so far
    order = np.lexsort((chance, labels))
    names, starts = np.unique(labels[order], return_index=True)
    strata = np.split(order, starts[1:])
    # classes in random order: which of many tiny ones gives an image to the small parts is a matter of the seed
    for stratum in np.argsort(keyed(seed + 1, names.astype(np.int64) + 1), kind="stable"):
        rows = strata[stratum]
        counts, owed = _apportion(len(rows), shares, owed)
        parts[rows] = np.repeat(np.arange(len(shares)), counts)
    return parts


def _apportion(n: int, shares: tuple[float, ...], owed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """n images among the parts: each share of n rounded down, the rest to whom most is owed."""
    quota = np.round(np.array(shares) * n, 9)  # 0.1 * 30 is 3, not 3.0000000000000004
    counts = np.floor(quota).astype(np.int64)
    want = owed + quota - counts
    rank = np.where(quota > counts, want, -np.inf)  # rounded up at most once, and never above a whole quota
    if counts[0] == 0:
        rank[0] = np.inf
    extra = np.argsort(-rank, kind="stable")[: n - counts.sum()]
    counts[extra] += 1
    return counts, owed + quota - counts
