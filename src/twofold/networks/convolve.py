"""3x3 convolutions with fewer products, for CPUs, where convolutions cost what they multiply. Elsewhere the plain ones.

Both are exact rearrangements (they differ from the plain ones by float32's rounding) and plain differentiable sums and
convolutions, so that their gradients have fewer products too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MIN_CHANNELS, MIN_PIXELS = 128, 2048  # below these, adding costs more than the products that are saved


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 with zero padding: (B, C, H, W) -> (B, D, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return Winograd.apply(x, self.weight, self.bias) if _many_products(x, self.weight) else super().forward(x)

    def upsampled(self, x: Tensor) -> Tensor:
        """Doubles the resolution (nearest neighbour), then convolves: (B, C, h, w) -> (B, D, 2h, 2w)."""
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return transposed(x, self.weight, self.bias)
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _many_products(x: Tensor, weight: Tensor) -> bool:
    """Whether `Winograd` is faster here: float32 on a CPU, wide layers, many pixels."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False  # bfloat16 would round the sums, and multiplies twice as fast
    big = min(weight.shape[:2]) >= MIN_CHANNELS and x.shape[0] * x.shape[2] * x.shape[3] >= MIN_PIXELS
    return big and x.shape[3] >= 16 and x.shape[3] % 4 == 0 and not torch.compiler.is_compiling()


class Winograd(torch.autograd.Function):
    """The 3x3 convolution by F(4, 3) along the rows: 6 instead of 12 columns of products per 4 output pixels.

    Winograd 1980; the sums are those of Lavin and Gray 2016. x (B, C, H, W), W a multiple of 4. Both gradients are
    the adjoints, with as few products. Differentiable once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        sums, kernels = _input_sums(x), _kernel_sums(weight)
        ctx.save_for_backward(*sums, weight)
        # every output pixel has the second product once, so that one carries the bias
        m0, m1, m2, m3, m4, m5 = (
            F.conv2d(s, k, bias if i == 1 else None, padding=(1, 0))
            for i, (s, k) in enumerate(zip(sums, kernels, strict=True))
        )
        y = _like(m1, x.shape[3])
        near, far, near2, far2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
        torch.add(m0.add_(near), near2, out=y[..., 0::4])
        torch.add(far, far2, alpha=2, out=y[..., 1::4])
        torch.add(near, near2, alpha=4, out=y[..., 2::4])
        torch.add(m5.add_(far), far2, alpha=8, out=y[..., 3::4])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        *sums, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        by_sums, by_kernels, by_bias = [], [], None
        for i, (m, s, k) in enumerate(zip(_output_sums(grad), sums, _kernel_sums(weight), strict=True)):
            wants = [wants_x, wants_weight, wants_bias and i == 1]
            by_sum, by_kernel, by = torch.ops.aten.convolution_backward(
                m, s, k, k.shape[:1], [1, 1], [1, 0], [1, 1], False, [0, 0], 1, wants
            )
            by_sums.append(by_sum)
            by_kernels.append(by_kernel)
            by_bias = by if i == 1 else by_bias
        by_x = _by_input(by_sums, grad.shape[3]) if wants_x else None
        return by_x, _by_weight(by_kernels) if wants_weight else None, by_bias


def _like(quarter: Tensor, width: int) -> Tensor:
    """An empty map in the memory format of one with a quarter of its columns."""
    nhwc = quarter.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if nhwc else torch.contiguous_format
    return torch.empty(*quarter.shape[:3], width, dtype=quarter.dtype, memory_format=memory_format)


def _input_sums(x: Tensor) -> tuple[Tensor, ...]:
    """Six sums over each row's windows of six pixels, four apart: (B, C, H, W/4) each."""
    width = x.shape[3]
    padded = F.pad(x, (1, 1))
    d0, d1, d2, d3, d4, d5 = (padded[..., i : i + width - 3 : 4] for i in range(6))
    even, odd = torch.sub(d4, d2, alpha=4), torch.sub(d3, d1, alpha=4)
    near, far = d4 - d2, d3 - d1
    return (
        torch.add(near, d0 - d2, alpha=4),
        even + odd,
        even - odd,
        torch.add(near, far, alpha=2),
        torch.sub(near, far, alpha=2),
        torch.sub(d5 - d3, far, alpha=4),
    )


def _by_input(v: list[Tensor], width: int) -> Tensor:
    """The adjoint of `_input_sums`: (B, C, H, W). A window's first and last pixel but one are its neighbours' too."""
    x = _like(v[1], width)
    even, odd, near, far = v[1] + v[2], v[5] - (v[1] - v[2]), v[3] + v[4], v[3] - v[4]
    inner = v[0] + even
    torch.sub(far, odd, alpha=2, out=x[..., 0::4]).mul_(-2)
    torch.add(v[0] + near, inner, alpha=4, out=x[..., 1::4]).neg_()
    torch.add(torch.add(odd, v[5], alpha=4).neg_(), far, alpha=2, out=x[..., 2::4])
    torch.add(inner, near, out=x[..., 3::4])
    x[..., 4::4].add_(v[5][..., :-1])
    x[..., 3:-1:4].add_(v[0][..., 1:], alpha=4)
    return x


def _output_sums(grad: Tensor) -> tuple[Tensor, ...]:
    """The adjoint of the sums that give four output columns: (B, D, H, W/4) each."""
    g0, g1, g2, g3 = (grad[..., i::4] for i in range(4))
    even, odd, even4, odd4 = g0 + g2, g1 + g3, torch.add(g0, g2, alpha=4), torch.add(g1, g3, alpha=4)
    more, less = torch.add(even4, odd4, alpha=2), torch.sub(even4, odd4, alpha=2)
    return g0, even + odd, even - odd, more, less, g3


def _kernel_sums(weight: Tensor) -> tuple[Tensor, ...]:
    """Six kernels of one column each: (D, C, 3, 1)."""
    left, middle, right = weight.split(1, dim=3)
    outer, wide = (left + right) / 6, left / 24 + right / 6
    return (left / 4, -outer - middle / 6, middle / 6 - outer, wide + middle / 12, wide - middle / 12, right)


def _by_weight(k: list[Tensor]) -> Tensor:
    """The adjoint of `_kernel_sums`: (D, C, 3, 3)."""
    even, odd, even2, odd2 = k[1] + k[2], k[2] - k[1], k[3] + k[4], k[3] - k[4]
    return torch.cat([k[0] / 4 - even / 6 + even2 / 24, odd / 6 + odd2 / 12, (even2 - even) / 6 + k[5]], dim=3)


def transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest-neighbour doubling and a 3x3 convolution in one: 16 instead of 36 products per input pixel.

    An output pixel sees only 2x2 different input pixels, so the pair is a transposed convolution of stride 2 whose
    4x4 kernel holds sums of the 3x3 one.
    """
    first, middle, last = weight.permute(1, 2, 3, 0).unbind(1)  # (C, 3, D) each
    rows = torch.stack([last, middle + last, first + middle, first], dim=1)
    first, middle, last = rows.unbind(2)
    kernel = torch.stack([last, middle + last, first + middle, first], dim=2).permute(0, 3, 1, 2)
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
