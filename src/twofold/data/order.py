"""The order in which a training run sees its images, without a stored permutation.

Every epoch is a keyed bijection of range(n): a Feistel network over the digits of row = left * b + right with
a * b >= n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains": generalised Feistel and cycle walking),
whose round function is the finaliser of SplitMix64 (Steele et al. 2014). Any position can be asked for on its own,
so a run resumes anywhere and ranks need no shared state.
"""

from __future__ import annotations

import math

import numpy as np

ROUNDS = 8
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: SplitMix64's step


def spread(count: int, most: int | None) -> np.ndarray:
    """At most so many of range(count), evenly spread over it, because rows are often sorted by class; int64."""
    if most is None or count <= most:
        return np.arange(count)
    return np.linspace(0, count - 1, most).astype(np.int64)


def mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on a uint64 array: a bijection whose output bits each depend on all input bits."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def keyed(seed: int, value: np.ndarray) -> np.ndarray:
    """Pseudo-random uint64 for each value >= 0, different for each seed (any int)."""
    key = mix(np.array([seed % 2**64], np.uint64) + GOLDEN)
    return mix(mix(np.asarray(value).astype(np.uint64) * GOLDEN + key) ^ key)


class ImageOrder:
    """`order(positions)` -> rows: position p of a run shows row `order(p)` of n, each row once an epoch of n positions.

    n: rows, at least 1. seed: any int. Epochs are shuffled independently. Memory does not depend on n.
    """

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise ValueError(f"an order of {n} images")
        self.n, self.seed = int(n), int(seed)
        side = math.isqrt(self.n - 1) + 1
        self._a, self._b = np.uint64(side), np.uint64(-(-self.n // side))

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """positions: int64, any shape, >= 0. Returns rows in [0, n), int64 of that shape."""
        positions = np.asarray(positions, np.int64)
        if positions.size and positions.min() < 0:
            raise ValueError("positions are counted from 0")
        epochs, rows = np.divmod(positions.ravel(), self.n)
        key = keyed(self.seed, epochs)
        rows = self._permute(rows.astype(np.uint64), key)
        outside = np.flatnonzero(rows >= self.n)
        while outside.size:  # cycle walking: a * b exceeds n by less than sqrt(n) + 1, so few walk and briefly
            rows[outside] = self._permute(rows[outside], key[outside])
            outside = outside[rows[outside] >= self.n]
        return rows.astype(np.int64).reshape(positions.shape)

    def _permute(self, rows: np.ndarray, key: np.ndarray) -> np.ndarray:
        """A bijection of range(a * b) for each key."""
        left, right = np.divmod(rows, self._b)
        for step in range(ROUNDS):
            key = key + GOLDEN
            if step % 2:
                right = (right + mix(left * GOLDEN ^ key) % self._b) % self._b
            else:
                left = (left + mix(right * GOLDEN ^ key) % self._a) % self._a
        return left * self._b + right
