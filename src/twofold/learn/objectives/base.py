"""What the loop asks of an objective."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...data import Store
from ...denoiser import NetworkDenoiser
from ..batches import Batch


@dataclass(frozen=True)
class Apart:
    """An optimiser for one of an objective's helpers: Adam or SGD (momentum 0.9) at a constant learning rate."""

    kind: Literal["adam", "sgd"]
    lr: float


class Objective(nn.Module):
    """forward(batch) -> loss per image (B,), float32. It holds every trainable call, so DDP and autocast see it.

    network: what is trained. denoiser: the model that can be sampled, None where this objective gives none.
    classifies: whether it names what is in images, so that labels count and there is an accuracy.
    heeds_labels: whether `begin` is told labels though it does not.
    needs_noise: whether a batch carries noise. uniforms: uniform numbers that an image of a batch carries. further: how
    many of them, the last ones, are drawn after its noise, so that what comes before is as it would be without them.
    learns_levels: whether what is done with later batches (at which noise levels, which answers count) depends on
    earlier ones: the loop tells it with `observe`, and keeps its `memory` in the training state. measures: names of
    what `measure` finds besides the loss. helpers: modules that are trained beside the network, as it is, and are no
    part of the model; apart: those of them that have an optimiser of their own. belongings: fields of a batch that it
    needs besides, of `BELONGINGS`. tallies: how many numbers `tally` has, of which `scores` makes figures of the whole
    held-out set; 0: none.
    """

    network: nn.Module
    classifies: bool
    heeds_labels: bool = False
    needs_noise: bool
    uniforms: int
    further: int = 0
    learns_levels: bool = False
    measures: tuple[str, ...] = ()
    belongings: tuple[str, ...] = ()
    tallies: int = 0
    helpers: nn.ModuleDict | None
    apart: Mapping[str, Apart] = {}

    def __init__(self) -> None:
        super().__init__()
        self.helpers = None
        self.denoiser: NetworkDenoiser | None = None

    @property
    def previews(self) -> bool:
        """Whether there is something to show on the way: samples of its denoiser, or `pictures`."""
        return self.denoiser is not None

    def prepare(self, store: Store, flip: bool, device: torch.device, rank: int, world: int) -> Iterator[str]:
        """Called once before the first step, when the network is where it will be trained: what takes long, or needs
        the data. flip: whether images are mirrored at random. Yields what to tell of it.
        """
        yield from ()

    def begin(self, start: int, label: Tensor) -> None:
        """Called before every step: its position, and, where it `classifies` or `heeds_labels`, the labels that a
        classifier is told in the whole global batch (`Batches.labels_at`), else none; the same on every rank.
        """

    def counted(self, label: Tensor) -> int:
        """How many images of a batch with these labels count in its mean loss: all, unless it learns of some alone."""
        return len(label)

    def asked(self, label: Tensor) -> int:
        """How many images of a batch with these labels `correct` can judge."""
        return self.counted(label)

    def correct(self, batch: Batch) -> float:
        """How many images are named rightly; asked only where `classifies`."""
        raise NotImplementedError

    def observe(self, start: int, losses: Tensor) -> None:
        """Called after every step that was taken, where `learns_levels`: the losses (B,) float64 of the whole global
        batch, of positions start..start+B-1; the same on every rank."""

    def measure(self, batch: Batch) -> Tensor:
        """(B, len(measures)): of held-out images, each to be averaged."""
        raise NotImplementedError

    def tally(self, batch: Batch) -> Tensor:
        """(tallies,) float64 on the CPU: of held-out images, to be added up over all of them and all processes."""
        raise NotImplementedError

    def scores(self, total: Tensor) -> dict[str, float]:
        """{measure: value} of the sums (tallies,) of `tally` over the held-out images; {} where they say nothing."""
        raise NotImplementedError

    def pictures(self, batch: Batch) -> Tensor:
        """What a preview shows of these held-out images where no denoiser is sampled: uint8 (N, C, H, W) on the CPU."""
        raise NotImplementedError

    def learned(self) -> dict[str, Any]:
        """What a finished run's result says of it besides the measures, as plain data."""
        return {}

    def memory(self) -> dict[str, Tensor]:
        """What it has learned besides the network's weights."""
        return {}

    def remember(self, memory: dict[str, Tensor]) -> None:
        """The inverse of `memory`."""
