"""The heads of `twofold probe` by their settings: how each is fitted, kept in a file and taken out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError, nearest
from ..recognize.choose import Fit, Head, Heads
from ..recognize.heads import LinearHead
from ..recognize.knn import KNN
from ..recognize.linear import fit_logistic, fit_ridge
from ..settings.probe import Attentive, HeadSettings, KNearest, Logistic, Recipe, Ridge
from .probing import AttentiveHead, train_attentive, train_linear

LEAST = 1e-6  # share of votes of a class that nobody votes for


def fitter(settings: HeadSettings, classes: int, seed: int) -> Fit:
    """How heads of these settings are fitted: features (P, V, N, D) and labels (N,) -> `Heads`."""

    def fit(x: Tensor, y: Tensor) -> Heads:
        match settings:
            case Logistic(l2=l2, standardise=standardise):
                return fit_logistic(x.flatten(1, 2), y.repeat(x.shape[1]), classes, l2, standardise=standardise)
            case Ridge(l2=l2, standardise=standardise):
                return fit_ridge(x.flatten(1, 2), y.repeat(x.shape[1]), classes, l2, standardise=standardise)
            case Recipe():
                how = {"epochs": settings.epochs, "batch_size": settings.batch_size, "lr": settings.lr}
                return train_linear(x, y, classes, **how, norm=settings.norm, seed=seed)
            case KNearest(k=k, temperature=temperature):
                return Several([Votes(KNN(one.mean(0), y, classes, k, temperature)) for one in x])
            case Attentive():
                return Several([_attentive(one, y, classes, settings, seed) for one in x])

    return fit


@dataclass(frozen=True)
class Several:
    """Heads of P problems that were fitted one by one."""

    heads: Sequence[Head]
    l2: Sequence[float] = ()

    def logits(self, x: Tensor) -> Tensor:
        return torch.stack([head.logits(one) for head, one in zip(self.heads, x, strict=True)])[:, None]

    def head(self, p: int, s: int) -> Head:
        return self.heads[p]
