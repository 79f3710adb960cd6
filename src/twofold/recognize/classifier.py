"""A network that names what is in a clean image: the first implementation of the `Classifier` contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..codec import PixelCodec
from ..noise import as_sigma
from ..taps import Layer


class NetworkClassifier(nn.Module):
    """network: x0 (B, C, H, W) in [-1, 1] -> logits (B, K). classes: K names. shape: (C, H, W) of x0.

    Trained on clean images, so `logits` refuses sigma > 0; classifiers that know noise are other classes.
    """

    def __init__(self, network: nn.Module, classes: Sequence[str], shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network = network
        self.classes = list(classes)
        self.class_names = self.classes
        self.shape = shape
        self.codec = PixelCodec()
        self.autocast: torch.dtype | None = None

    @property
    def layers(self) -> Mapping[str, Layer]:
        return self.network.layers  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.network(x).float()

    def logits(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """(B, K) for clean x. Raises `ValueError` for sigma > 0: it has never seen noise."""
        if float(as_sigma(sigma).max()) > 0:
            raise ValueError("this classifier was trained on clean images; give it sigma = 0")
        return self(x)
