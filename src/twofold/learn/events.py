"""What happens during training, as plain values: the loop yields them, whoever called it shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Stepped:
    """An optimiser step is done; n_images have been seen, of so many in all."""

    n_images: int
    total: int


@dataclass(frozen=True)
class Logged:
    """A row was added to log.jsonl."""

    row: dict[str, Any]


@dataclass(frozen=True)
class Previewed:
    """Preview images uint8 (N, C, H, W) with their labels (-1 = none): of the averaged weights, or the raw ones."""

    n_images: int
    images: Tensor
    labels: list[int]
    averaged: bool = True


@dataclass(frozen=True)
class Saved:
    """A training state and the weights were written."""

    n_images: int


@dataclass(frozen=True)
class Note:
    """Something the user should know: a resume, a damaged state, skipped steps, a changed environment."""

    text: str


Event = Stepped | Logged | Previewed | Saved | Note
