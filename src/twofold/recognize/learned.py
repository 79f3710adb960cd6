"""What learning from few labels gives, and what every learner is called with: see `learners`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from .assign import balanced
from .heads import Features
from .spaces import InSpace

SpaceName = Literal["raw", "rows", "columns", "columns+rows", "whitened", "whitened+rows"]


@dataclass(frozen=True)
class Learned:
    """scores (N, K) float64: logits of the images it learned from. head: for others. temperature: divides both."""

    scores: Tensor
    head: InSpace
    temperature: float = 1.0
    kind: ClassVar[str] = "few_labels"  # what `saved_heads.restore` knows the head by

    @property
    def probabilities(self) -> Tensor:
        """(N, K) float64 on the CPU; rows sum to 1."""
        return (self.scores / self.temperature).softmax(1)

    def balanced(self, prior: Tensor | None = None) -> Tensor:
        """The same, with the classes in given shares (uniform by default): see `assign.balanced`. A class that had no
        labels gets its share too, unless that is 0."""
        return balanced(self.scores, prior, self.temperature)

    def logits(self, x: Features) -> Tensor:
        """Features (M, D) as they come -> (M, K), on their device."""
        return self.head.logits(x) / self.temperature

    def tensors(self) -> dict[str, Tensor]:
        """Of the head, which knows nothing of the temperature."""
        return self.head.tensors()


Fitting = Callable[[Tensor, "Features | None"], Learned]  # labels (N,), weights (N,) or None


class Learner(Protocol):
    """A way to learn; its options are its fields."""

    def on(self, x: Features, classes: int) -> Fitting:
        """Everything that needs no labels, of features (N, D)."""
        ...

    def __call__(self, x: Features, y: Tensor, classes: int, weight: Features | None = None) -> Learned:
        """weight (N,) >= 0: how much a labelled image counts."""
        ...


class Base:
    def on(self, x: Features, classes: int) -> Fitting:
        raise NotImplementedError

    def __call__(self, x: Features, y: Tensor, classes: int, weight: Features | None = None) -> Learned:
        return self.on(x, classes)(y, weight)
