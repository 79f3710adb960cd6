"""What the loop asks of an objective."""

from __future__ import annotations

from torch import Tensor, nn

from ...denoiser import NetworkDenoiser
from ..batches import Batch


class Objective(nn.Module):
    """forward(batch) -> loss per image (B,), float32. It holds every trainable call, so DDP and autocast see it.

    network: what is trained. denoiser: the model that can be sampled, None where this objective gives none.
    classifies: whether it names what is in images, so that labels count and there is an accuracy.
    needs_noise: whether a batch carries noise. uniforms: uniform numbers that an image of a batch carries. further: how
    many of them, the last ones, are drawn after its noise, so that what comes before is as it would be without them.
    learns_levels: whether what is done with later batches (at which noise levels, which answers count) depends on
    earlier ones: the loop tells it with `observe`, and keeps its `memory` in the training state. measures: names of
    what `measure` finds besides the loss.
    """

    network: nn.Module
    classifies: bool
    needs_noise: bool
    uniforms: int
    further: int = 0
    learns_levels: bool = False
    measures: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.denoiser: NetworkDenoiser | None = None

    @property
    def previews(self) -> bool:
        """Whether there is something to show on the way: samples of its denoiser, or `pictures`."""
        return self.denoiser is not None

    def begin(self, start: int, label: Tensor) -> None:
        """Called before every step, where `classifies`: its position, and the labels that a classifier is told in the
        whole global batch (`Batches.labels_at`); the same on every rank.
        """

    def counted(self, label: Tensor) -> int:
        """How many images of a batch with these labels count in its mean loss."""
        raise NotImplementedError

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

    def pictures(self, batch: Batch) -> Tensor:
        """What a preview shows of these held-out images where no denoiser is sampled: uint8 (N, C, H, W) on the CPU."""
        raise NotImplementedError

    def memory(self) -> dict[str, Tensor]:
        """What it has learned besides the network's weights."""
        return {}

    def remember(self, memory: dict[str, Tensor]) -> None:
        """The inverse of `memory`."""
