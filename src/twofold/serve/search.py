"""Exact search for the nearest of many vectors that are asked about again and again: what fits is kept in memory.

One product of matrices, |r|^2 - 2 q.r, says in float32 how near each vector is, but for rounding. A bound on that (see
`measure.neighbours`) leaves those that may be among the k nearest; their distances are computed as |q - r| in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from ..errors import UserError

HELD = 256 * 2**20  # bytes of vectors that are kept, at most
BLOCK = 16 * 2**20  # bytes of vectors that are looked at before others have a turn


class Search:
    """vectors: rows (n,) int64 -> (n, D) float32, of which there are `count`. origin: (D,) about their mean, which
    makes the terms that cancel small. held: bytes that are kept once `read` has been walked through; vectors beyond
    them are asked for again by every search, a block at a time."""

    def __init__(self, vectors: Callable[[Tensor], Tensor], count: int, origin: Tensor, held: int = HELD) -> None:
        self.vectors, self.count, self.origin = vectors, count, origin.float()
        size = 4 * len(origin)
        self.step = max(1, BLOCK // size)
        self.blocks = torch.arange(count).split(self.step)
        self.keep = len(self.blocks) if count * size <= held else held // (size * self.step)
        self._kept: list[tuple[Tensor, Tensor]] = []

    def read(self) -> Generator[None, None, None]:
        """Keeps what may be kept, a block at a time. Raises `UserError` for values that are not finite."""
        for rows in self.blocks[: self.keep]:
            self._kept.append(self._centred(rows))
            yield

    def nearest(self, queries: Tensor, k: int) -> Generator[None, None, tuple[Tensor, Tensor]]:
        """The k nearest of each query (Q, D), nearest first: distances (Q, k) float64, indices (Q, k) int64. Of equally
        near ones the first. k is cut to the number of vectors. Raises `UserError` for values that are not finite."""
        k = min(k, self.count)
        q = _finite(queries.float()) - self.origin
        reach = q.double().square().sum(1).sqrt()
        most = torch.full((len(q), k), torch.inf, dtype=torch.float64)  # the k least upper bounds so far
        found: list[tuple[Tensor, Tensor, Tensor]] = []  # query, row and lower bound of what may be among the k nearest
        for place, rows in enumerate(self.blocks):
            r, norms = self._kept[place] if place < len(self._kept) else self._centred(rows)
            far = torch.addmm(norms, q, r.T, alpha=-2).double()
            slack = (q.shape[1] + 8) * _eps() * (reach + norms.max().double().sqrt()).square()[:, None]
            most = torch.cat([most, far + slack], 1).topk(k, largest=False).values
            query, near = (far - slack <= most[:, -1:]).nonzero(as_tuple=True)
            found.append((query, rows[near], (far - slack)[query, near]))
            yield
        query, row, least = (torch.cat(parts) for parts in zip(*found, strict=True))
        picked = [self._measured(one, row[(query == i) & (least <= most[i, -1])], k) for i, one in enumerate(queries)]
        return torch.stack([d for d, _ in picked]), torch.stack([i for _, i in picked])

    def _measured(self, query: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest of these rows, ascending, by |q - r| in float64."""
        parts = [(self.vectors(some).double() - query.double()).square().sum(1) for some in rows.split(self.step)]
        squares, order = torch.cat(parts).sort(stable=True)
        return squares[:k].sqrt(), rows[order[:k]]

    def _centred(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(n, D) less the origin, and their squared norms (n,)."""
        r = _finite(self.vectors(rows)) - self.origin
        return r, r.square().sum(1)


def _eps() -> float:
    """Relative rounding of a product of float32 matrices, which may be allowed to be sloppier (bfloat16) than that."""
    return 2.0**-23 if torch.get_float32_matmul_precision() == "highest" else 2.0**-7


def _finite(vectors: Tensor) -> Tensor:
    if not torch.isfinite(vectors).all():
        raise UserError("features", "NaN or infinity", "check the model")
    return vectors
