"""A student network without a head: what is left of a distillation, and what tasks begin with.

It is an `Encoder`: images to the mean over places of its last map; and like a denoiser it shows its maps by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import taps
from ..codec import PixelCodec
from ..taps import Layer


class Backbone(nn.Module):
    """network: a `Student` without a head. shape: (C, H, W) of images. name: for results. noise_shape: of the noise
    that a batch carries in its training (a teacher of latents sees other shapes). data_classes: of the
    data it is trained on.
    """

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, int, int],
        name: str = "student",
        data_classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network, self.shape, self.name = network, shape, name
        self.noise_shape = shape
        self.class_names: list[str] = []
        self.data_classes = list(data_classes)
        self.codec = PixelCodec()
        self.autocast: torch.dtype | None = None

    @property
    def layers(self) -> Mapping[str, Layer]:
        return self.network.layers  # type: ignore[return-value]

    @property
    def aliases(self) -> Mapping[str, str]:
        return getattr(self.network, "aliases", {})

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return int(self.network.backbone.width)  # type: ignore[union-attr, arg-type]

    def forward(self, x0: Tensor) -> Tensor:
        """(B, width) float32 of x0 (B, C, H, W) in [-1, 1]."""
        return self.maps(x0)[-1].mean((2, 3))

    def maps(self, x0: Tensor) -> list[Tensor]:
        """The maps (B, D, h, w) float32 or better of all layers, in their order."""
        with torch.autocast(x0.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            named: dict[str, Tensor] = self.network.backbone.named_maps(x0)  # type: ignore[operator, union-attr]
            found = named.values()
        return [one.to(torch.promote_types(x0.dtype, torch.float32)) for one in found]

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> (B, width) float32."""
        device = next(self.parameters()).device
        embedded: Tensor = self(self.codec.encode(images.to(device)))
        return embedded

    @torch.no_grad()
    def features(self, images: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """{name: (B, D, h, w)} of uint8 images; later layers do not run. Raises `UserError` for a layer it has not."""
        device = next(self.parameters()).device
        x0: Any = self.codec.encode(images.to(device))
        with torch.autocast(x0.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return taps.read(lambda: self.network.backbone(x0), self.layers, layers, self.aliases)  # type: ignore
