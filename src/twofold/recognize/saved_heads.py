"""Heads that are more than a matrix, and every head as plain tensors for a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError, nearest
from .attentive import AttentiveHead
from .choose import Head
from .heads import LinearHead
from .knn import KNN
from .spaces import InSpace

LEAST = 1e-6  # share of votes of a class that nobody votes for


@dataclass(frozen=True)
class Votes:
    """Nearest neighbours as a head: its logits are the logarithms of the shares of votes."""

    knn: KNN

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int, k: int, temperature: float | None) -> Votes:
        return cls(KNN(features, labels, classes, k, temperature))

    def logits(self, x: Tensor) -> Tensor:
        return self.knn.scores(x).clamp(min=LEAST).log()

    def tensors(self) -> dict[str, Tensor]:
        how = torch.tensor([self.knn.classes, self.knn.k, self.knn.temperature or 0.0], dtype=torch.float64)
        return {"features": self.knn.features, "labels": self.knn.labels, "how": how}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Votes:
        classes, k, temperature = tensors["how"].tolist()
        return cls.of(tensors["features"], tensors["labels"], int(classes), int(k), temperature or None)


@dataclass(frozen=True)
class OnMaps:
    """An attentive head as one of flat maps: (N, D * positions) -> (N, K)."""

    attentive: AttentiveHead
    channels: int

    def logits(self, x: Tensor) -> Tensor:
        return self.attentive.logits(tokens(x, self.channels))

    def tensors(self) -> dict[str, Tensor]:
        return {**self.attentive.tensors(), "channels": torch.tensor(self.channels)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> OnMaps:
        rest = {name: value for name, value in tensors.items() if name != "channels"}
        return cls(AttentiveHead.from_tensors(rest), int(tensors["channels"]))


def tokens(x: Tensor, channels: int) -> Tensor:
    """Flat maps (..., D * positions), as `pool=map` gives them, as (..., positions, D)."""
    return x.unflatten(-1, (channels, -1)).transpose(-1, -2)


KINDS = {
    "logistic": LinearHead,
    "ridge": LinearHead,
    "recipe": LinearHead,
    "knn": Votes,
    "attentive": OnMaps,
    "few_labels": InSpace,
}


def restore(kind: str, tensors: Mapping[str, Tensor]) -> Head:
    """The head that these tensors are of; kind as in `settings.probe`."""
    if kind not in KINDS:
        raise UserError(f"head.kind={kind}", "no such head", nearest(kind, KINDS))
    return KINDS[kind].from_tensors(tensors)  # type: ignore[attr-defined]
