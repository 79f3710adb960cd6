"""The parts of a U-Net: residual blocks, attention, resampling.

    residual   h = conv1(resample(silu(norm1(x)))),  h = conv2(silu(norm2(h) | h + emb)) + skip(x)
    attention  x + proj(softmax(q k^T / sqrt(d)) v)             (Ho et al. 2020, Dhariwal and Nichol 2021)

Maps are (B, C, H, W) in either memory format; embeddings (B, E) arrive after their SiLU.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..settings.network import UNetSettings
from .convolve import Conv3x3

Resample = Literal["down", "up"]


def group_count(channels: int, groups: int, group_channels: int) -> int:
    """Groups of a norm over `channels`: the largest divisor up to `groups` that leaves `group_channels` in each."""
    most = min(groups, max(1, channels // group_channels))
    return next(count for count in range(most, 0, -1) if channels % count == 0)


def embedding_width(settings: UNetSettings) -> int:
    """E, the width of the embedding that every residual block is given."""
    return 4 * (settings.embedding_channels or settings.channels)


class Norm(nn.GroupNorm):
    """The group norm of these settings over `channels`; computed, and returned, in the precision of its weights.

    Under autocast that is float32: more exact, and on a CPU faster than its bfloat16 kernels.
    """

    def __init__(self, channels: int, settings: UNetSettings, groups: int | None = None) -> None:
        count = group_count(channels, groups or settings.norm_groups, settings.norm_group_channels)
        super().__init__(count, channels, eps=settings.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor nobody else reads; in place where autograd does not need what was there."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class Stem(nn.Conv2d):
    """The first convolution."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(in_channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Downsample(nn.Conv2d):
    """A strided 3x3 convolution: (B, C, H, W) -> (B, C, H/2, W/2); padded on both sides, or at the end only."""

    def __init__(self, channels: int, settings: UNetSettings) -> None:
        self.pad_end = settings.downsample_padding == "end"
        super().__init__(channels, channels, 3, stride=2, padding=0 if self.pad_end else 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.pad_end else x)


class Upsample(Conv3x3):
    """Nearest-neighbour doubling and a 3x3 convolution: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        return self.upsampled(x)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of (B, heads, N, d)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= 256:
        # PyTorch's kernel for this case multiplies no faster than float32's; the plain products do
        weights = torch.softmax((q * q.shape[3] ** -0.5) @ k.transpose(2, 3), dim=3)
        return weights.to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Self-attention over the pixels of a map, with its residual sum.

    heads: settings.heads, or channels / settings.head_channels. Raises `UserError` where neither divides.
    """

    def __init__(self, channels: int, settings: UNetSettings) -> None:
        super().__init__()
        name = "head_channels" if settings.head_channels else "heads"
        divisor = settings.head_channels or settings.heads
        if channels % divisor:
            raise UserError(
                f"network.{name}={divisor}", f"does not divide {channels}, the channels of an attention layer"
            )
        self.heads = channels // divisor if settings.head_channels else divisor
        self.skip_scale = settings.skip_scale
        self.norm = Norm(channels, settings)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d)
            for part in self.qkv(tokens).chunk(3, dim=2)
        )
        out = attend(q, k, v).transpose(1, 2).flatten(2)
        out = x + self.proj(out).transpose(1, 2).unflatten(2, (height, width))
        return out if self.skip_scale == 1 else out.mul_(self.skip_scale)


class Block(nn.Module):
    """A residual block, then attention if asked for: (B, C, H, W), (B, E) -> (B, D, H', W').

    resample: "down" averages 2x2 pixels, "up" doubles them, inside the block and on its skip (BigGAN).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        settings: UNetSettings,
        attention: bool = False,
        resample: Resample | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.dropout = settings.dropout
        self.scale_shift = settings.conditioning == "scale_shift"
        self.skip_scale = settings.skip_scale
        self.norm1 = Norm(in_channels, settings)
        self.conv1 = Conv3x3(in_channels, channels)
        self.emb = nn.Linear(embedding_width(settings), channels * (2 if self.scale_shift else 1))
        self.norm2 = Norm(channels, settings)
        self.conv2 = Conv3x3(channels, channels)
        project = in_channels != channels or (resample is not None and settings.resample_projection)
        self.skip = nn.Conv2d(in_channels, channels, 1) if project else None
        self.attention = Attention(channels, settings) if attention else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self._first(silu(self.norm1(x)))
        emb = self.emb(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h.add_(emb))
        h = F.dropout(silu(h), self.dropout, self.training)
        # conv2's own output is nobody's input in the backward pass, so the sum can take its place
        h = self.conv2(h).add_(self._shortcut(x))
        if self.skip_scale != 1:
            h = h.mul_(self.skip_scale)
        return h if self.attention is None else self.attention(h)

    def _first(self, h: Tensor) -> Tensor:
        match self.resample:
            case "up":
                return self.conv1.upsampled(h)
            case "down":
                return self.conv1(F.avg_pool2d(h, 2))
        return self.conv1(h)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            x = F.avg_pool2d(x, 2)
        if self.skip is not None:  # a 1x1 convolution and doubling commute: the cheaper order
            x = self.skip(x)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, settings: UNetSettings) -> None:
        super().__init__()
        self.first = Block(channels, channels, settings, attention=True)
        self.second = Block(channels, channels, settings)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.second(self.first(x, emb), emb)
