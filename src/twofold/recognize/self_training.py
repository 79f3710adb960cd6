"""Self-training: a first learner's surest answers become labels of the next one (Lee 2013), class by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .heads import Features, as_float
from .learned import Base, Fitting, Learned, SpaceName
from .mixture import Mixture, Prototypes, members
from .propagate import Propagation
from .published import Logistic, fit_published
from .spaces import space_of

TOLERANCE = 1e-5  # of the gradient: far less than answers that are wrong matter
FIRST: dict[str, type[Base]] = {
    "logistic": Logistic,
    "propagation": Propagation,
    "prototypes": Prototypes,
    "mixture": Mixture,
}


@dataclass(frozen=True)
class SelfTraining(Base):
    """Logistic regression on labelled images and on answers: those of `first`, then its own.

    In round r of `rounds` the surest r / rounds of the images of each class are taken; classes have equal shares. l2:
    of the objective's mean form. The labelled images together count as much as the taken ones together.
    """

    first: Literal["logistic", "propagation", "prototypes", "mixture"] = "propagation"
    space: SpaceName = "columns+rows"
    dims: int | None = None
    rounds: int = 2
    l2: float = 1e-4

    def on(self, x: Features, classes: int) -> Fitting:
        x = as_float(x)
        space = space_of(self.space, x, self.dims)
        first = FIRST[self.first]().on(x, classes)

        def fit(y: Tensor, weight: Features | None = None) -> Learned:
            y = torch.as_tensor(y).cpu()
            given = torch.ones(len(y)) if weight is None else torch.as_tensor(weight).cpu().float()
            own = given * (y >= 0)
            learned = first(y, weight)
            present = members(y, classes).sum(0) > 0
            for number in range(1, self.rounds + 1):
                taken = surest(learned.balanced(present), y, number / self.rounds)
                added = (taken >= 0) & (y < 0)
                shares = torch.where(added, 1.0, own * max(1, int(added.sum())) / own.sum())
                lam = self.l2 * int((taken >= 0).sum())
                head = fit_published(x, taken, classes, lam, shares, space, tolerance=TOLERANCE)
                learned = Learned(head.logits(x).double().cpu(), head)
            return learned

        return fit


def surest(probabilities: Tensor, y: Tensor, share: float) -> Tensor:
    """Labels (N,): those that are given, and of each class the surest share of the images that it is the answer of."""
    top, answer = probabilities.cpu().max(1)
    taken = y.clone()
    for c in range(probabilities.shape[1]):
        rows = ((answer == c) & (y < 0)).nonzero()[:, 0]
        taken[rows[top[rows].argsort(descending=True, stable=True)[: round(share * len(rows))]]] = c
    return taken
