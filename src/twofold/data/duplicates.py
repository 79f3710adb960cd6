"""Images that must stay together: exact duplicates, and those of one group.

Two images are duplicates if their packed pixels are the same (their 128-bit hash is). Joined with groups
by union-find: what is linked by a chain of duplicates and common groups is one component.
"""

from __future__ import annotations

import numpy as np
import xxhash


def image_hashes(images: np.ndarray) -> np.ndarray:
    """uint64 (N, 2): XXH3 of each image's pixels; to be compared within one store only. images: (N, C, H, W) uint8."""
    out = b"".join([xxhash.xxh3_128_digest(image) for image in np.ascontiguousarray(images)])
    return np.frombuffer(out, np.uint64).reshape(-1, 2)


def same(hashes: np.ndarray) -> np.ndarray:
    """int64 (N,): the row of the first image with the same hash; hashes (N, 2) uint64."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: within equal ones, rows ascend
    ordered = hashes[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = order[np.flatnonzero(new)]
    out = np.empty(len(order), np.int64)
    out[order] = starts[np.cumsum(new) - 1]
    return out


def components(hashes: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """int64 (N,): the first row of each image's component. groups: (N,) codes, -1 = none, or None."""
    parent = same(hashes)
    if groups is None:
        return parent
    parent = parent.copy()

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    grouped = np.flatnonzero(groups >= 0)
    _, first, which = np.unique(groups[grouped], return_index=True, return_inverse=True)
    for row, other in zip(grouped.tolist(), grouped[first][which].tolist(), strict=True):
        a, b = root(row), root(other)
        if a != b:
            parent[max(a, b)] = min(a, b)
    return np.array([root(row) for row in range(len(parent))], np.int64)


def across(component: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Components whose images lie in more than one part, as the rows of their first images. codes: (N,) parts."""
    pairs = np.unique(np.stack([component, codes.astype(np.int64)], axis=1), axis=0)
    names, parts = np.unique(pairs[:, 0], return_counts=True)
    return names[parts > 1]
