"""The Inception network rearranged for speed: the same sums in another order, so equal up to float32's rounding.

Batch norms are folded into the convolutions; the 1 x 1 convolutions that read a block's input are one convolution; a
1 x 1 convolution and the average pool before it change places (both are linear, and the pool's weights sum to 1), so
that the pool runs over 32 to 192 channels instead of 192 to 2,048; maps are channels_last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .inception import BlockA, BlockB, BlockC, BlockD, BlockE, Inception, Unit, average


def fold(unit: Unit) -> nn.Conv2d:
    """A unit's convolution and norm as one convolution with bias, computed in float64; without the ReLU."""
    conv, bn = unit.conv, unit.bn
    assert bn.running_var is not None and bn.running_mean is not None
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
    folded = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, padding)  # type: ignore[arg-type]
    with torch.no_grad():
        folded.weight.copy_(conv.weight.double() * scale[:, None, None, None])
        folded.bias.copy_(bn.bias.double() - bn.running_mean.double() * scale)  # type: ignore[union-attr]
    return folded


class FoldedUnit(nn.Module):
    """Convolution with bias and ReLU."""

    def __init__(self, unit: Unit) -> None:
        super().__init__()
        self.conv = fold(unit)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu_()


class Joined(nn.Module):
    """Several 1 x 1 units that read the same map, as one convolution; the last `pooled` of them is then averaged."""

    def __init__(self, units: list[Unit], pooled: bool) -> None:
        super().__init__()
        parts = [fold(unit) for unit in units]
        self.sizes, self.pooled = [part.out_channels for part in parts], pooled
        self.conv = nn.Conv2d(parts[0].in_channels, sum(self.sizes), 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.cat([part.weight for part in parts]))
            self.conv.bias.copy_(torch.cat([part.bias for part in parts]))  # type: ignore[union-attr, misc]

    def forward(self, x: Tensor) -> list[Tensor]:
        parts = list(self.conv(x).split(self.sizes, 1))
        if self.pooled:
            parts[-1] = average(parts[-1])
        return [part.relu() for part in parts]


class FastA(nn.Module):
    def __init__(self, block: BlockA) -> None:
        super().__init__()
        firsts = [block.branch1x1, block.branch5x5_1, block.branch3x3dbl_1, block.branch_pool]
        self.first = Joined(firsts, pooled=True)
        self.five = FoldedUnit(block.branch5x5_2)
        self.dbl = nn.Sequential(FoldedUnit(block.branch3x3dbl_2), FoldedUnit(block.branch3x3dbl_3))

    def forward(self, x: Tensor) -> Tensor:
        one, five, double, pool = self.first(x)
        return torch.cat([one, self.five(five), self.dbl(double), pool], 1)


class FastB(nn.Module):
    def __init__(self, block: BlockB) -> None:
        super().__init__()
        self.three = FoldedUnit(block.branch3x3)
        units = (block.branch3x3dbl_1, block.branch3x3dbl_2, block.branch3x3dbl_3)
        self.dbl = nn.Sequential(*[FoldedUnit(unit) for unit in units])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.three(x), self.dbl(x), functional.max_pool2d(x, 3, 2)], 1)


class FastC(nn.Module):
    def __init__(self, block: BlockC) -> None:
        super().__init__()
        firsts = [block.branch1x1, block.branch7x7_1, block.branch7x7dbl_1, block.branch_pool]
        self.first = Joined(firsts, pooled=True)
        self.seven = nn.Sequential(FoldedUnit(block.branch7x7_2), FoldedUnit(block.branch7x7_3))
        rest = (block.branch7x7dbl_2, block.branch7x7dbl_3, block.branch7x7dbl_4, block.branch7x7dbl_5)
        self.dbl = nn.Sequential(*[FoldedUnit(unit) for unit in rest])

    def forward(self, x: Tensor) -> Tensor:
        one, seven, double, pool = self.first(x)
        return torch.cat([one, self.seven(seven), self.dbl(double), pool], 1)


class FastD(nn.Module):
    def __init__(self, block: BlockD) -> None:
        super().__init__()
        self.first = Joined([block.branch3x3_1, block.branch7x7x3_1], pooled=False)
        self.three = FoldedUnit(block.branch3x3_2)
        rest = (block.branch7x7x3_2, block.branch7x7x3_3, block.branch7x7x3_4)
        self.seven = nn.Sequential(*[FoldedUnit(unit) for unit in rest])

    def forward(self, x: Tensor) -> Tensor:
        three, seven = self.first(x)
        return torch.cat([self.three(three), self.seven(seven), functional.max_pool2d(x, 3, 2)], 1)


class FastE(nn.Module):
    def __init__(self, block: BlockE) -> None:
        super().__init__()
        firsts = [block.branch1x1, block.branch3x3_1, block.branch3x3dbl_1]
        self.maximum = block.maximum  # which does not change places with a convolution
        self.first = Joined(firsts + ([] if block.maximum else [block.branch_pool]), pooled=not block.maximum)
        self.pool = FoldedUnit(block.branch_pool) if block.maximum else None
        self.three_a, self.three_b = FoldedUnit(block.branch3x3_2a), FoldedUnit(block.branch3x3_2b)
        self.dbl = FoldedUnit(block.branch3x3dbl_2)
        self.dbl_a, self.dbl_b = FoldedUnit(block.branch3x3dbl_3a), FoldedUnit(block.branch3x3dbl_3b)

    def forward(self, x: Tensor) -> Tensor:
        one, three, double, *pooled = self.first(x)
        double = self.dbl(double)
        pool = self.pool(functional.max_pool2d(x, 3, 1, 1)) if self.pool is not None else pooled[0]
        parts = [one, self.three_a(three), self.three_b(three), self.dbl_a(double), self.dbl_b(double), pool]
        return torch.cat(parts, 1)


FAST: dict[type[nn.Module], type[nn.Module]] = {
    Unit: FoldedUnit,
    BlockA: FastA,
    BlockB: FastB,
    BlockC: FastC,
    BlockD: FastD,
    BlockE: FastE,
}


class FastInception(Inception):
    """An `Inception` in evaluation mode, rearranged; a copy. Its weights have names of their own."""

    def __init__(self, network: Inception) -> None:
        nn.Module.__init__(self)
        for name, part in network.named_children():
            self.add_module(name, FAST[type(part)](part) if type(part) in FAST else part)
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def middle(self, x: Tensor) -> Tensor:
        return super().middle(x.contiguous(memory_format=torch.channels_last))
