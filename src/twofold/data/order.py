"""The order in which a training run sees its images, without a stored permutation.

Every epoch is a keyed bijection of range(n): a Feistel network over the digits of row = left * b + right with
a * b >= n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains": generalised Feistel and cycle walking),
whose round function is the finaliser of SplitMix64 (Steele et al. 2014). Any position can be asked for on its own,
so a run resumes anywhere and ranks need no shared state.

Against imbalance (`BalancedOrder`) every epoch deals its n positions to the classes, class c about in proportion to
n_c^(1 - balance), rounded once; position p is the k-th of class c ever, and shows the k-th image of that class in an
order of its own. So every epoch holds each class equally often, and within a class no image is seen twice before all
have been seen once.
"""

from __future__ import annotations

import math

import numpy as np

ROUNDS = 8
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: SplitMix64's step
Places = np.ndarray | np.uint64


def spread(count: int, most: int | None) -> np.ndarray:
    """At most so many of range(count), ascending, int64: one at random, always the same, of each of `most` equal parts.

    Spread over all of it, because rows are often sorted by class; at random, because where classes come in turn even
    distances may meet only some of them.
    """
    if most is None or count <= most:
        return np.arange(count)
    edges = np.arange(most + 1) * count // most
    return edges[:-1] + np.random.default_rng([count, most]).integers(np.diff(edges))


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
        rows = _walk(rows, keyed(self.seed, epochs), np.full(rows.shape, self.n), self._a, self._b)
        return rows.reshape(positions.shape)


class BalancedOrder:
    """As `ImageOrder`, but with every class in proportion to its images to the power of 1 - balance.

    labels: (n,), -1 counts as a class. seed: any int. balance: above 0 and up to 1 (every class equally often).
    quotas: {label: positions in an epoch}.
    """

    def __init__(self, labels: np.ndarray, seed: int, balance: float) -> None:
        if not len(labels) or not 0 < balance <= 1:
            raise ValueError(f"an order of {len(labels)} images with balance {balance}")
        self.n, self.seed = len(labels), int(seed)
        names, counts = np.unique(labels, return_counts=True)
        self._counts = counts.astype(np.int64)
        self._rows = np.argsort(labels, kind="stable")
        self._starts = np.cumsum(self._counts) - self._counts
        self._quotas = _quotas(self._counts, balance)
        self._ends = np.cumsum(self._quotas)
        self.quotas = dict(zip(names.tolist(), self._quotas.tolist(), strict=True))
        self._slots = ImageOrder(self.n, seed)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """positions: int64, any shape, >= 0. Returns rows in [0, n), int64 of that shape."""
        positions = np.asarray(positions, np.int64)
        slots = self._slots(positions.ravel())
        label = np.searchsorted(self._ends, slots, side="right")
        quota, count = self._quotas[label], self._counts[label]
        nth = positions.ravel() // self.n * quota + slots - (self._ends[label] - quota)
        epochs, place = np.divmod(nth, count)
        key = mix(keyed(self.seed, epochs) + (label.astype(np.uint64) + np.uint64(1)) * GOLDEN)
        a = np.ceil(np.sqrt(count)).astype(np.uint64)
        place = _walk(place, key, count, a, (count.astype(np.uint64) + a - np.uint64(1)) // a)
        return self._rows[self._starts[label] + place].reshape(positions.shape)


class SharedOrder:
    """`order(positions)` -> rows of two kinds: this share of any stretch of positions is of the `first` rows of n.

    first, n: 0 < first < n. share: above 0 and up to 1. Each kind is in an order of its own, as in `ImageOrder`.
    """

    def __init__(self, n: int, first: int, seed: int, share: float) -> None:
        if not 0 < first < n or not 0 < share <= 1:
            raise ValueError(f"a share of {share} of the first {first} of {n} images")
        self._first, self._share = first, share
        self._orders = ImageOrder(first, seed), ImageOrder(n - first, seed)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """positions: int64, any shape, >= 0. Returns rows in [0, n), int64 of that shape."""
        positions = np.asarray(positions, np.int64)
        before, after = (np.floor(p * self._share).astype(np.int64) for p in (positions, positions + 1))
        rest = self._first + self._orders[1](positions - before)
        return np.where(after > before, self._orders[0](before), rest)


def shared_order(n: int, first: int, seed: int, share: float | None) -> ImageOrder | SharedOrder:
    """A `SharedOrder`, or an `ImageOrder` of all rows where there is no share or no second kind of them."""
    return ImageOrder(n, seed) if share is None or not 0 < first < n else SharedOrder(n, first, seed, share)


def image_order(labels: np.ndarray, seed: int, balance: float = 0.0) -> ImageOrder | BalancedOrder:
    """The order of images with these labels; with balance 0 labels do not matter."""
    return BalancedOrder(labels, seed, balance) if balance else ImageOrder(len(labels), seed)


def _quotas(counts: np.ndarray, balance: float) -> np.ndarray:
    """Positions of an epoch for each class, at least one: largest remainders."""
    weights = counts.astype(np.float64) ** (1 - balance)
    exact = np.round(weights / weights.sum() * counts.sum(), 9)
    quotas = np.floor(exact).astype(np.int64)
    rest = int(counts.sum() - quotas.sum())
    quotas[np.argsort(-(exact - quotas), kind="stable")[:rest]] += 1
    return quotas


def _walk(rows: np.ndarray, key: np.ndarray, n: np.ndarray, a: Places, b: Places) -> np.ndarray:
    """A bijection of range(n) for each key, applied to rows (m,); n (m,), a and b one for all or (m,). int64."""
    rows, a, b = rows.astype(np.uint64), np.broadcast_to(a, rows.shape), np.broadcast_to(b, rows.shape)
    limit = n.astype(np.uint64)
    rows = _permute(rows, key, a, b)
    outside = np.flatnonzero(rows >= limit)
    while outside.size:  # cycle walking: a * b exceeds n by less than sqrt(n) + 1, so few walk and briefly
        rows[outside] = _permute(rows[outside], key[outside], a[outside], b[outside])
        outside = outside[rows[outside] >= limit[outside]]
    return rows.astype(np.int64)


def _permute(rows: np.ndarray, key: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A bijection of range(a * b) for each key."""
    left, right = np.divmod(rows, b)
    for step in range(ROUNDS):
        key = key + GOLDEN
        if step % 2:
            right = (right + mix(left * GOLDEN ^ key) % b) % b
        else:
            left = (left + mix(right * GOLDEN ^ key) % a) % a
    return left * b + right
