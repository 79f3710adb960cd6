"""Which layer, which noise level, which strength: every head is fitted, the validation part decides, nothing else.

The test part is not an argument of anything that chooses. Layers of equal width are fitted together as one batched
problem, as many at a time as fit in a bounded amount of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .bank import Bank

MOST_NUMBERS = 2**28  # features of the problems that are fitted together, as float32: 1 GiB

Place = tuple[str, float]  # layer, sigma


class Head(Protocol):
    """One fitted head: features (N, D) as the bank has them -> logits (N, K)."""

    def logits(self, x: Tensor) -> Tensor: ...

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it; see `saved_heads.restore`."""
        ...


class Heads(Protocol):
    """Heads of P problems at S strengths. `l2`: the S strengths, empty where there is nothing to choose (S = 1)."""

    @property
    def l2(self) -> Sequence[float]: ...

    def logits(self, x: Tensor) -> Tensor:
        """(P, M, D) -> (P, S, M, K)."""
        ...

    def head(self, p: int, s: int) -> Head: ...


Fit = Callable[[Tensor, Tensor, Sequence[tuple[Place, ...]]], Heads]
# features (P, V, N, D), labels (N,), and what the P problems read -> heads


@dataclass(frozen=True)
class Cell:
    """A fitted head and where it reads. places: (layer, sigma), of which the features are joined. l2: the strength
    chosen. validation: accuracy on the validation part, mean over noise draws. loss: its cross-entropy there."""

    places: tuple[Place, ...]
    l2: float
    validation: float
    loss: float
    head: Head

    @property
    def rank(self) -> tuple[float, float]:
        """Better cells are larger: accuracy, and where it is equal (small validation parts), the lower loss."""
        return self.validation, -self.loss


def joined(bank: Bank, places: Sequence[Place], views: Sequence[int] | None = None) -> Tensor:
    """(views, images, sum of D): the features of these places side by side."""
    return torch.from_numpy(np.concatenate([bank.features(*place, views) for place in places], axis=2))


def search(
    train: Bank,
    validation: Bank,
    labels: tuple[Tensor, Tensor],
    sets: Sequence[tuple[Place, ...]],
    fit: Fit,
    progress: Callable[[int, int], None] | None = None,
) -> list[Cell]:
    """The best head of every set of places, in the order of `sets`.

    train, validation: banks of the same grid but for their views. labels: (n_train,), (n_validation,) int64.
    progress: called with (sets done, sets).
    """
    cells: dict[int, Cell] = {}
    for group in _groups(train, sets):
        x = torch.stack([joined(train, sets[i]) for i in group])
        heads = fit(x, labels[0], [sets[i] for i in group])
        del x
        y = torch.stack([joined(validation, sets[i]) for i in group])
        for i, cell in zip(group, _chosen(heads, y, labels[1], [sets[i] for i in group]), strict=True):
            cells[i] = cell
        if progress is not None:
            progress(len(cells), len(sets))
    return [cells[i] for i in range(len(sets))]


def single_places(bank: Bank) -> list[tuple[Place, ...]]:
    """Every layer at every noise level, alone."""
    return [((layer, sigma),) for sigma in bank.sigmas for layer in bank.layers]


def joined_places(cells: Sequence[Cell], counts: Sequence[int]) -> list[tuple[Place, ...]]:
    """Candidates made of the best single places: for each count so many best layers, each at its best noise level; and
    the best layer at its so many best noise levels. Sets that come up twice, or that are single, are left out."""
    ranked = sorted((cell for cell in cells if len(cell.places) == 1), key=lambda cell: cell.rank, reverse=True)
    by_layer: dict[str, Place] = {}
    for cell in ranked:
        by_layer.setdefault(cell.places[0][0], cell.places[0])
    layers = list(by_layer.values())
    levels = [cell.places[0] for cell in ranked if cell.places[0][0] == ranked[0].places[0][0]]
    found = [tuple(sorted(part[:count])) for count in counts for part in (layers, levels)]
    return [places for places in dict.fromkeys(found) if len(places) > 1]


def best(cells: Sequence[Cell]) -> Cell:
    """The cell with the highest validation accuracy; equal ones by loss, then by their order."""
    return max(cells, key=lambda cell: cell.rank)


def accuracies(cell: Cell, bank: Bank, labels: Tensor) -> tuple[list[float], float, Tensor]:
    """Accuracy of a cell on a bank: of every noise draw alone, of the features averaged over the draws, and the logits
    (N, K) of the latter."""
    x = joined(bank, cell.places)
    known = labels >= 0
    right = lambda logits: float((logits.argmax(1) == labels)[known].double().mean())  # noqa: E731
    averaged = cell.head.logits(x.mean(0))
    return [right(cell.head.logits(view)) for view in x], right(averaged), averaged


def _groups(bank: Bank, sets: Sequence[tuple[Place, ...]]) -> Iterator[list[int]]:
    """Sets of equal width, so many together that their features stay within `MOST_NUMBERS`."""
    one = {layer: bank.width(layer) for layer in bank.layers}
    widths: dict[int, list[int]] = {}
    for i, places in enumerate(sets):
        widths.setdefault(sum(one[layer] for layer, _ in places), []).append(i)
    for width, members in widths.items():
        most = max(1, MOST_NUMBERS // max(1, width * len(bank) * bank.grid.views.count))
        for start in range(0, len(members), most):
            yield members[start : start + most]


def _chosen(heads: Heads, x: Tensor, labels: Tensor, sets: Sequence[tuple[Place, ...]]) -> Iterator[Cell]:
    """The best strength of every problem; x (P, draws, M, D)."""
    known = labels >= 0
    right, loss = [], []
    for draw in x.unbind(1):
        logits = heads.logits(draw)[:, :, known]
        right.append((logits.argmax(-1) == labels[known]).double().mean(-1))
        flat = functional.cross_entropy(
            logits.flatten(0, 2).double(), labels[known].repeat(logits.shape[0] * logits.shape[1]), reduction="none"
        )
        loss.append(flat.view(logits.shape[:3]).mean(-1))
    accuracy, nll = torch.stack(right).mean(0), torch.stack(loss).mean(0)  # (P, S)
    for p, places in enumerate(sets):
        s = max(range(accuracy.shape[1]), key=lambda s: (float(accuracy[p, s]), -float(nll[p, s])))
        yield Cell(
            places,
            heads.l2[s] if len(heads.l2) else math.nan,
            float(accuracy[p, s]),
            float(nll[p, s]),
            heads.head(p, s),
        )
