"""Inception-V3 as FID reads it: the network of TensorFlow's 2015 release, in the layout of its published port.

Szegedy et al. 2016 describe the architecture; Heusel et al. 2017 define FID on its last pooled layer. The released
graph (`classify_image_graph_def.pb`) differs from the paper and from other ports in four things, which are kept:
average pools count no padding; the last block pools by maximum (by average in the block before it); the classifier
has 1,008 outputs; batch norms have eps 0.001. Names of weights are those of `pt_inception-2015-12-05-6726825d.pth`.

What is read (TensorFlow's name, our module):

    pool_3          (B, 2048)       the mean over the 8 x 8 positions of Mixed_7c: FID, KID, precision
    mixed_6/conv    (B, 17, 17, 7)  the first 7 channels of Mixed_6d.branch1x1, after its ReLU: sFID (Nash et al. 2021,
                                    as the evaluator of Dhariwal and Nichol 2021 reads it; flattened channels last)
    softmax/logits/MatMul  (B, 1008)  fc without its bias: the Inception score
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = 299  # pixels a side
SPATIAL_CHANNELS = 7  # 7 x 17 x 17 = 2,023 numbers, about as many as pool_3 has
Kernel = int | tuple[int, int]


@dataclass(frozen=True)
class Activations:
    """What one pass reads: pool (B, 2048), spatial (B, 2023), logits (B, 1008) without bias; float32."""

    pool: Tensor
    spatial: Tensor
    logits: Tensor


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU; `networks.inception_fast` puts the norm into the weights."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel = 1, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


def average(x: Tensor) -> Tensor:
    """3 x 3 means that leave out what is beyond the border, as TensorFlow's do."""
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class BlockA(nn.Module):
    """Mixed_5b to 5d, 35 x 35."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Unit(inputs, 64)
        self.branch5x5_1 = Unit(inputs, 48)
        self.branch5x5_2 = Unit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Unit(inputs, 64)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, padding=1)
        self.branch_pool = Unit(inputs, pooled)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(average(x))], 1)


class BlockB(nn.Module):
    """Mixed_6a, 35 x 35 to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Unit(inputs, 384, 3, 2)
        self.branch3x3dbl_1 = Unit(inputs, 64)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    """Mixed_6b to 6e, 17 x 17; width: channels between the factors of the 7 x 7 convolutions."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = Unit(inputs, 192)
        self.branch7x7_1 = Unit(inputs, width)
        self.branch7x7_2 = Unit(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = Unit(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = Unit(inputs, width)
        self.branch7x7dbl_2 = Unit(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = Unit(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = Unit(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = Unit(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = Unit(inputs, 192)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(average(x))], 1)


class BlockD(nn.Module):
    """Mixed_7a, 17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = Unit(inputs, 192)
        self.branch3x3_2 = Unit(192, 320, 3, 2)
        self.branch7x7x3_1 = Unit(inputs, 192)
        self.branch7x7x3_2 = Unit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Unit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Unit(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, functional.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    """Mixed_7b (pools by average) and Mixed_7c (by maximum: a slip of the released graph, and part of FID), 8 x 8."""

    def __init__(self, inputs: int, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = Unit(inputs, 320)
        self.branch3x3_1 = Unit(inputs, 384)
        self.branch3x3_2a = Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Unit(inputs, 448)
        self.branch3x3dbl_2 = Unit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Unit(inputs, 192)

    def forward(self, x: Tensor) -> Tensor:
        three, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, 1, 1) if self.maximum else average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """The network. x: (B, 3, 299, 299) in [-1, 1]; `prepare` makes it of images."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Unit(64, 80)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, maximum=False)
        self.Mixed_7c = BlockE(2048, maximum=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Activations:
        x = self.middle(x)
        pool = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x)))).mean((2, 3))
        return Activations(pool, read_spatial(x), functional.linear(pool, self.fc.weight))

    def spatial(self, x: Tensor) -> Tensor:
        """What sFID reads, (B, 2023), without the layers after it."""
        return read_spatial(self.middle(x))

    def middle(self, x: Tensor) -> Tensor:
        """The output of Mixed_6d: (B, 768, 17, 17)."""
        x = functional.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = functional.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        return self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))


def read_spatial(x: Tensor) -> Tensor:
    """(B, 768, 17, 17) -> (B, 2023), in TensorFlow's order; branch1x1 comes first in a block's output."""
    return x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def prepare(images: Tensor) -> Tensor:
    """uint8 (B, 1 or 3, H, W) -> float32 (B, 3, 299, 299) in [-1, 1]: bilinear, pixel centres aligned, no antialias."""
    x = images.float() / 255
    x = functional.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    x = 2 * x - 1
    return x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1)
