"""Students: small networks that learn from a teacher, as a backbone and a head for its task. One entry per kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ...settings.student import StudentSettings
from ...taps import Layer
from .bisenet import BiSeNetHead
from .foreign import Foreign
from .heads import DeconvHead, FCNHead, FuseHead, PoolHead
from .hrnet import HRNet
from .mobilenet import MobileNetV2
from .parts import Backbone, with_all
from .resnet import ResNet
from .wide import Wide

BACKBONES: dict[str, Callable[[Any, tuple[int, int, int]], Backbone]] = {
    "resnet": ResNet,
    "mobilenetv2": MobileNetV2,
    "wide": Wide,
    "hrnet": HRNet,
    "transformers": Foreign,
}
HEADS: dict[str, Callable[..., nn.Module]] = {
    "pool": PoolHead,
    "fcn": FCNHead,
    "bisenet": BiSeNetHead,
    "deconv": DeconvHead,
    "fuse": FuseHead,
}


class Student(nn.Module):
    """forward(x0 (B, C, H, W) in [-1, 1]) -> what its head says; the noise level and conditions are not looked at.

    without a head: (B, width), the mean over the last map          pool: logits (B, K)
    fcn, bisenet: logits (B, K, H, W); in training a list of such, first the main one, then the auxiliary ones
    deconv, fuse: heat maps (B, K, ceil(H / heat_stride), ceil(W / heat_stride))

    Images may be of any size from the total stride of the backbone on. K: settings.classes, or else `classes`.
    layers, aliases: those of the backbone. settings: complete, so that they build the same network without what they
    were read from. Weights are named `backbone.*` and `head.*`, auxiliary heads `head.aux.*`.
    A frozen backbone stays in eval mode, and only the head is trained.
    Raises `UserError` where images are too small, the backbone has too few maps for the head, or K is too small.
    """

    def __init__(self, settings: StudentSettings, shape: tuple[int, int, int], classes: int = 0) -> None:
        super().__init__()
        self.backbone = BACKBONES[settings.backbone.kind](settings.backbone, shape)
        self.settings = settings
        if isinstance(self.backbone, Foreign):
            self.settings = settings.model_copy(update={"backbone": self.backbone.settings})
        kind = None if settings.head is None else settings.head.kind
        if isinstance(self.backbone, HRNet) and kind not in (None, "pool"):
            self.backbone.without_neck()
        if settings.freeze:
            self.backbone.requires_grad_(False)
        self.head: nn.Module | None = None
        if settings.head is not None:
            named = self.backbone.layers.values() if kind == "pool" else self.backbone.stages
            self.head = HEADS[settings.head.kind](settings.head, [*named], settings.classes or classes, shape[0])
        self.train(self.training)

    @property
    def layers(self) -> Mapping[str, Layer]:
        return self.backbone.layers

    @property
    def aliases(self) -> Mapping[str, str]:
        return self.backbone.aliases

    @property
    def heat_stride(self) -> int:
        """Pixels of the image per pixel of the answer: 1 for masks, 0 for one answer per image."""
        return 0 if self.head is None else int(self.head.stride)  # type: ignore[arg-type]

    def forward(self, x: Tensor, c_noise: Tensor | None = None, cond: object = None) -> Any:
        maps = self.backbone(x)
        answer = maps[-1].mean((2, 3)) if self.head is None else self.head(x, maps)
        if isinstance(answer, list):
            return [with_all(answer[0], maps), *answer[1:]]
        return with_all(answer, maps) if self.training else answer

    def train(self, mode: bool = True) -> Student:
        super().train(mode)
        if self.settings.freeze:
            self.backbone.eval()
        return self
