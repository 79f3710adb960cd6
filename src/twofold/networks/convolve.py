"""3x3 convolutions with fewer products, for CPUs, where convolutions cost what they multiply. Elsewhere the plain ones.

Both are exact rearrangements (they differ from the plain ones by float32's rounding) and plain differentiable sums and
convolutions, so that their gradients have fewer products too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_CHANNELS, MIN_PIXELS = 128, 2048  # below these, adding costs more than the products that are saved


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 with zero padding: (B, C, H, W) -> (B, D, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return winograd(x, self.weight, self.bias) if _many_products(x, self.weight) else super().forward(x)

    def upsampled(self, x: Tensor) -> Tensor:
        """Doubles the resolution (nearest neighbour), then convolves: (B, C, h, w) -> (B, D, 2h, 2w)."""
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return transposed(x, self.weight, self.bias)
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _many_products(x: Tensor, weight: Tensor) -> bool:
    """Whether `winograd` is faster here: float32 on a CPU, wide layers, many pixels."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False  # bfloat16 would round the sums, and multiplies twice as fast
    big = min(weight.shape[:2]) >= MIN_CHANNELS and x.shape[0] * x.shape[2] * x.shape[3] >= MIN_PIXELS
    return big and x.shape[3] >= 16 and x.shape[3] % 4 == 0 and not torch.compiler.is_compiling()


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The 3x3 convolution by F(4, 3) along the rows: 6 instead of 12 columns of products per 4 output pixels.

    Winograd 1980; the sums are those of Lavin and Gray 2016. x (B, C, H, W) with W a multiple of 4.
    """
    width = x.shape[3]
    padded = F.pad(x, (1, 1))
    d0, d1, d2, d3, d4, d5 = (padded[..., i : i + width - 3 : 4] for i in range(6))
    even, odd = torch.sub(d4, d2, alpha=4), torch.sub(d3, d1, alpha=4)
    near, far = d4 - d2, d3 - d1
    sums = (
        torch.add(near, d0 - d2, alpha=4),
        even + odd,
        even - odd,
        torch.add(near, far, alpha=2),
        torch.sub(near, far, alpha=2),
        torch.sub(d5 - d3, far, alpha=4),
    )
    left, middle, right = weight.split(1, dim=3)
    outer, wide = (left + right) / 6, left / 24 + right / 6
    kernels = (left / 4, -outer - middle / 6, middle / 6 - outer, wide + middle / 12, wide - middle / 12, right)
    # every output pixel has the second product once, so that one carries the bias
    m0, m1, m2, m3, m4, m5 = (
        F.conv2d(s, k, bias if i == 1 else None, padding=(1, 0))
        for i, (s, k) in enumerate(zip(sums, kernels, strict=True))
    )
    p, q, r, s = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    columns = (m0.add_(p).add_(r), torch.add(q, s, alpha=2), torch.add(p, r, alpha=4), m5.add_(q).add_(s, alpha=8))
    if x.is_contiguous(memory_format=torch.channels_last):  # as torch.stack would not keep it
        return torch.stack([c.permute(0, 2, 3, 1) for c in columns], dim=3).flatten(2, 3).permute(0, 3, 1, 2)
    return torch.stack(columns, dim=4).flatten(3)


def transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest-neighbour doubling and a 3x3 convolution in one: 16 instead of 36 products per input pixel.

    An output pixel sees only 2x2 different input pixels, so the pair is a transposed convolution of stride 2 whose
    4x4 kernel holds sums of the 3x3 one.
    """
    taps = weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])  # row a: the taps that kernel row a adds up
    sums = torch.einsum("ah,bw->abhw", taps, taps).view(16, 9)
    out_channels, in_channels = weight.shape[:2]
    kernel = sums @ weight.permute(1, 2, 3, 0).reshape(in_channels, 9, out_channels)
    kernel = kernel.view(in_channels, 4, 4, out_channels).permute(0, 3, 1, 2)
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
