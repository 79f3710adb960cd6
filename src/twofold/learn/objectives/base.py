"""What the loop asks of an objective."""

from __future__ import annotations

from torch import Tensor, nn

from ...denoiser import NetworkDenoiser
from ..batches import Batch


class Objective(nn.Module):
    """forward(batch) -> loss per image (B,), float32. It holds every trainable call, so DDP and autocast see it.

    network: what is trained. denoiser: the model that can be sampled, None where this objective gives none.
    classifies: whether it names what is in images, so that labels count and there is an accuracy.
    needs_noise: whether a batch carries noise. uniforms: uniform numbers that an image of a batch carries.
    """

    network: nn.Module
    classifies: bool
    needs_noise: bool
    uniforms: int

    def __init__(self) -> None:
        super().__init__()
        self.denoiser: NetworkDenoiser | None = None

    def counted(self, label: Tensor) -> int:
        """How many images of a batch with these labels count in its mean loss."""
        raise NotImplementedError

    def correct(self, batch: Batch) -> float:
        """How many images are named rightly; asked only where `classifies`."""
        raise NotImplementedError
