"""A network that finds key points: heat maps, and the points that are read off them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..codec import PixelCodec
from ..data.augment import mirror_partners
from ..generate.sample import place
from ..taps import Layer
from .heatmaps import decode, mirrored, to_pixels

RADIUS = 32  # a point is drawn as a square with a side of 1 / 32 of the image's shorter one, and of a pixel at least


class NetworkLandmarker(nn.Module):
    """network: x0 (B, C, H, W) in [-1, 1] -> heat maps (B, P, h, w). point_names: P of them. shape: (C, H, W) of the
    images it was trained on; others of as many channels are taken.

    flip_pairs: points that a mirror exchanges, None if nobody has said. heat_sigma: of the bumps it was trained with,
    in cells. flip_test: maps are averaged with those of the mirror image, which needs flip_pairs; without them nothing
    is. quarter_shift, unbiased: how points are read off, see `heatmaps.decode`. class_names: the points' names, for
    whoever asks any model what it names.
    """

    partner: Tensor

    def __init__(
        self,
        network: nn.Module,
        point_names: Sequence[str],
        shape: tuple[int, int, int],
        flip_pairs: Sequence[Sequence[int]] | None,
        heat_sigma: float,
        flip_test: bool = True,
        quarter_shift: bool = True,
        unbiased: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.point_names = list(point_names)
        self.class_names = self.point_names
        self.shape = shape
        self.flip_pairs = None if flip_pairs is None else [list(pair) for pair in flip_pairs]
        self.heat_sigma, self.quarter_shift, self.unbiased = heat_sigma, quarter_shift, unbiased
        self.flip_test = flip_test and flip_pairs is not None
        partner = mirror_partners(len(self.point_names), flip_pairs or [], "objective.flip_pairs")
        self.register_buffer("partner", partner, persistent=False)
        self.codec = PixelCodec()
        self.autocast: torch.dtype | None = None

    @property
    def layers(self) -> Mapping[str, Layer]:
        return self.network.layers  # type: ignore[return-value]

    def forward(self, x0: Tensor) -> Tensor:
        """Heat maps (B, P, h, w) float32 or better, without the flip test."""
        with torch.autocast(x0.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            heat: Tensor = self.network(x0)
        return heat.to(torch.promote_types(x0.dtype, torch.float32))

    def tested(self, x0: Tensor) -> Tensor:
        """Heat maps (B, P, h, w), averaged with those of the mirror image where `flip_test` says so."""
        heat: Tensor = self(x0)
        return (heat + mirrored(self(x0.flip(-1)), self.partner)) / 2 if self.flip_test else heat

    def points(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(points (B, P, 2) float32, x and y in pixels of the images, 0 the middle of the first; confidence (B, P)) of
        uint8 images (B, C, H, W). The confidence is the height of the highest cell, about 1 for a sure one."""
        return self.located(self.codec.encode(images.to(place(self)[0])))

    def located(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """`points` of x0 (B, C, H, W)."""
        heat = self.tested(x0)
        cells, confidence = decode(heat, self.quarter_shift, self.unbiased)
        height, width = x0.shape[-2:]
        return to_pixels(cells, (height, width), (heat.shape[-2], heat.shape[-1])), confidence


def marked(images: Tensor, points: Tensor, colour: tuple[int, int, int]) -> Tensor:
    """uint8 (B, 3, H, W): the images (B, C, H, W) with a small square at each point (B, P, 2) that is not NaN."""
    height, width = images.shape[-2:]
    half = min(height, width) / RADIUS / 2
    x, y = (torch.arange(size, device=images.device, dtype=torch.float32) for size in (width, height))
    points = points.to(images.device)
    across = (x - points[..., :1]).abs() <= max(half, 0.5)
    down = (y - points[..., 1:]).abs() <= max(half, 0.5)
    inside = (down[..., :, None] & across[..., None, :]).any(1, keepdim=True)
    paint = torch.tensor(colour, dtype=torch.uint8, device=images.device).view(1, 3, 1, 1)
    return torch.where(inside, paint, images.expand(-1, 3, -1, -1))
