"""How the heads of `twofold probe` are fitted, by their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..recognize.choose import Fit, Head, Heads, Place
from ..recognize.linear import fit_logistic, fit_ridge
from ..recognize.saved_heads import OnMaps, Votes, tokens
from ..settings.probe import Attentive, HeadSettings, KNearest, Logistic, Recipe, Ridge
from .probing import train_attentive, train_linear

TOLERANCE = 1e-4  # largest gradient at which a logistic regression is done; accuracies no longer change below it


def fitter(
    settings: HeadSettings,
    classes: int,
    seed: int,
    channels: Mapping[str, int] | None = None,
    tolerance: float = TOLERANCE,
) -> Fit:
    """How heads of these settings are fitted, as `recognize.choose.search` asks for it.

    channels: {layer: D of its map}, for heads that look at positions.
    """

    def fit(x: Tensor, y: Tensor, sets: Sequence[tuple[Place, ...]]) -> Heads:
        match settings:
            case Logistic(l2=l2, standardise=standardise):
                return fit_logistic(
                    x.flatten(1, 2), y.repeat(x.shape[1]), classes, l2, standardise=standardise, tolerance=tolerance
                )
            case Ridge(l2=l2, standardise=standardise):
                return fit_ridge(x.flatten(1, 2), y.repeat(x.shape[1]), classes, l2, standardise=standardise)
            case Recipe(epochs=epochs, batch_size=batch_size, lr=lr, norm=norm):
                return train_linear(x, y, classes, epochs, batch_size, lr, norm, seed)
            case KNearest(k=k, temperature=temperature):
                return Several([Votes.of(one.mean(0), y, classes, k, temperature) for one in x])
            case Attentive():
                widths = [(channels or {})[places[0][0]] for places in sets]
                return Several(
                    [_attentive(one, y, classes, settings, seed, d) for one, d in zip(x, widths, strict=True)]
                )

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


def _attentive(x: Tensor, y: Tensor, classes: int, settings: Attentive, seed: int, channels: int) -> OnMaps:
    s, maps = settings, tokens(x, channels)
    made = train_attentive(maps, y, classes, s.heads, s.epochs, s.batch_size, s.lr, s.weight_decay, seed)
    return OnMaps(made, channels)
