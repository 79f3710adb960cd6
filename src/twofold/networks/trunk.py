"""A U-Net up to one of its layers, the mean over pixels, and a head: denoisers become classifiers.

    z = mean over pixels of the layer's map;   logits = linear(z), or MLP(z + emb(c_noise)) that is told the noise level

The MLP is DDAE's noise-conditional head on frozen features (Xiang et al. 2023): 219,146 parameters for 256 channels
and 10 classes. No head has statistics over a batch, so one trained at one noise level stays finite at all others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..denoiser import Cond
from ..errors import UserError
from ..settings.network import TrunkSettings, UNetSettings
from .unet import UNet, sinusoid

HIDDEN = 512
TIME = 1000  # sinusoids resolve whole numbers: DDAE counts its noise levels from 1 to 1000


class Trunk(nn.Module):
    """forward(x (B, C, H, W), c_noise (B,)) -> logits (B, classes); the U-Net is given no conditions.

    classes: settings.classes, or else how many the data has. layers: those of the U-Net that are left, in order. A
    frozen U-Net stays in eval mode and has no gradients of its own; gradients with respect to x pass through it.
    Raises `UserError` where the U-Net is not known, for a layer it has not, and for fewer than 2 classes.
    """

    def __init__(self, settings: TrunkSettings, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        if settings.unet is None:
            hint = "give init_from=RUN of a denoiser, or network.unet.channels=... to train one from scratch"
            raise UserError("network.unet", "the trunk of which U-Net is not said", hint)
        classes = settings.classes or classes
        if classes < 2:
            raise UserError("network.classes", f"a classifier of {classes} classes", "it needs at least 2")
        self.settings, self.frozen = settings, settings.freeze
        self.unet = UNet(settings.unet.model_copy(update={"head": None}), shape)
        self.unet.truncate(settings.layer or middle_layer(settings.unet))
        self.unet.requires_grad_(not self.frozen)
        self.layers = self.unet.layers
        width = next(reversed(self.layers.values())).channels
        self.head: nn.Module = nn.Linear(width, classes)
        if settings.head == "mlp":
            self.head = NoiseHead(width, classes, settings.embedding_scale or 1.0)
        self.train(self.training)

    def train(self, mode: bool = True) -> Trunk:
        super().train(mode)
        if self.frozen:
            self.unet.eval()
        return self

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        h = self.unet.trunk(x, c_noise)
        z = h.to(torch.promote_types(h.dtype, torch.float32)).mean((2, 3))
        return self.head(z, c_noise) if isinstance(self.head, NoiseHead) else self.head(z)


class NoiseHead(nn.Module):
    """An MLP on features that is told the noise level: z (B, D), c_noise (B,) -> (B, classes).

    scale: c_noise times this is a time of 0..1, or ln sigma.
    """

    def __init__(self, width: int, classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.waves = max(4, width // 8 * 2)
        self.emb1 = nn.Linear(self.waves, width)
        self.emb2 = nn.Linear(width, width)
        self.hidden = nn.Linear(width, HIDDEN)
        self.out = nn.Linear(HIDDEN, classes)

    def forward(self, z: Tensor, c_noise: Tensor) -> Tensor:
        emb = sinusoid(c_noise * (TIME * self.scale), self.waves).to(z.dtype)
        emb = self.emb2(F.silu(self.emb1(emb)))
        return self.out(F.silu(self.hidden(z + emb)))


def middle_layer(settings: UNetSettings) -> str:
    """The last decoder block of the decoder's first half, where features are best as a rule: `out_6` of twelve."""
    return f"dec.{max(1, len(settings.multipliers) * (settings.blocks + 1) // 2) - 1}"
