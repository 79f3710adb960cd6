"""A network that names every pixel of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..codec import PixelCodec
from ..generate.sample import place
from ..taps import Layer

VIVID = (0.55, 0.95)  # saturation and value between which the colours of classes alternate


class NetworkSegmenter(nn.Module):
    """network: x0 (B, C, H, W) in [-1, 1] -> logits (B, K, H, W); while it is trained, a list of these, its own answer
    first and those of auxiliary heads behind it. class_names: K of them. shape: (C, H, W) of the images it was trained
    on; others of as many channels are taken.
    """

    def __init__(self, network: nn.Module, class_names: Sequence[str], shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network = network
        self.class_names = list(class_names)
        self.shape = shape
        self.codec = PixelCodec()
        self.autocast: torch.dtype | None = None

    @property
    def layers(self) -> Mapping[str, Layer]:
        return self.network.layers  # type: ignore[return-value]

    def every(self, x0: Tensor) -> list[Tensor]:
        """Logits (B, K, H, W) float32 or better, of the network's answer and, in training, of each auxiliary head."""
        with torch.autocast(x0.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            found = self.network(x0)
        found = list(found) if isinstance(found, list | tuple) else [found]
        return [logits.to(torch.promote_types(x0.dtype, torch.float32)) for logits in found]

    def forward(self, x0: Tensor) -> Tensor:
        """(B, K, H, W) float32 or better."""
        return self.every(x0)[0]

    def probabilities(self, images: Tensor) -> Tensor:
        """(B, K, H, W) float32 of uint8 images (B, C, H, W); over the classes of a pixel they sum to 1."""
        return self(self.codec.encode(images.to(place(self)[0]))).softmax(1)

    def masks(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W): the likeliest class of each pixel of uint8 images (B, C, H, W)."""
        return self(self.codec.encode(images.to(place(self)[0]))).argmax(1).to(torch.uint8)


DISTINCT = (  # after Sasha Trubetskoy's list of distinct colours
    *((0, 130, 200), (245, 130, 48), (255, 225, 25), (145, 30, 180), (170, 110, 40), (60, 180, 75), (240, 50, 230)),
    *((70, 240, 240), (230, 25, 75), (250, 190, 212), (210, 245, 60), (0, 128, 128), (220, 190, 255), (128, 0, 0)),
    *((255, 250, 200), (170, 255, 195), (128, 128, 0), (255, 215, 180), (0, 0, 128), (128, 128, 128)),
)


def class_colours(classes: int) -> Tensor:
    """uint8 (classes, 3): a colour for each class, the same ones for any number.

    The first twenty are told apart by most people; of more, hues go round by the golden ratio, every second one paler.
    """
    if classes <= len(DISTINCT):
        return torch.tensor(DISTINCT[:classes], dtype=torch.uint8).reshape(-1, 3)
    rows = []
    for k in range(classes):
        hue, strength = (k * 0.618033988749895) % 1.0, VIVID[1 - k // 2 % 2]
        sector, part = divmod(hue * 6, 1)
        low, falling, rising = 1 - strength, 1 - strength * part, 1 - strength * (1 - part)
        rows.append(
            [
                (1, rising, low),
                (falling, 1, low),
                (low, 1, rising),
                (low, falling, 1),
                (rising, low, 1),
                (1, low, falling),
            ][int(sector)]
        )
    return (torch.tensor(rows).reshape(-1, 3) * 255).round().to(torch.uint8)


def overlaid(images: Tensor, masks: Tensor, classes: int, share: float = 0.5) -> Tensor:
    """uint8 (B, 3, H, W): the images (B, C, H, W) with the colours of their masks (B, H, W) over them; void stays."""
    colour = images.expand(-1, 3, -1, -1).float()
    known = masks < classes
    over = class_colours(classes).to(images.device)[torch.where(known, masks, 0).long()].permute(0, 3, 1, 2)
    return torch.where(known[:, None], (1 - share) * colour + share * over, colour).round().to(torch.uint8)
