"""Small networks that choose: x0 (B, C, H, W) in [-1, 1] -> logits (B, choices), and the head that judges a choice.

RepFusion's (Yang and Wang 2023), with 1000 choices for 3 x 32 x 32 or 3 x 64 x 64:

    small32   5x5 convolutions 6, 16, each with ReLU and 2x2 maxima; linear 120, 84         146,156 parameters
    small64   the same with a third one of 16                                               135,292
    alexnet   convolutions 64, 192, 384, 256, 256, mean over places; linear 256           2,770,984
    mlp       of all pixels; linear 128, 128                                                538,856

Images that are too small for the convolutions of `small32` and `small64` are padded, so that a place is left.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ..errors import UserError

KERNEL = 5  # of the small networks' convolutions
LARGE, MIDDLE = 128, 48  # shorter sides, in pixels, from which `auto` takes alexnet, and small64


def policy_network(kind: str, shape: tuple[int, int, int], choices: int) -> nn.Module:
    """The network of this kind for images (C, H, W) of this shape; auto: by the shorter side.

    Raises `UserError` where images are too small for it.
    """
    side = min(shape[1:])
    if kind == "auto":
        kind = "alexnet" if side >= LARGE else "small64" if side >= MIDDLE else "small32"
    if kind == "mlp":
        return MLP(shape, choices)
    if kind == "alexnet":
        return AlexNet(shape, choices)
    return SmallPolicy(shape, choices, (6, 16) if kind == "small32" else (6, 16, 16), kind)


class SmallPolicy(nn.Module):
    """LeNet's form: convolutions of these widths, then three linear layers."""

    def __init__(self, shape: tuple[int, int, int], choices: int, widths: tuple[int, ...], name: str) -> None:
        super().__init__()
        padding = next((p for p in (0, KERNEL // 2) if min(_left(shape[1:], len(widths), p)) > 0), None)
        if padding is None:
            what = f"halves images of {shape[1]}x{shape[2]} to nothing"
            raise UserError(f"objective.sigma.network={name}", what, "use auto or mlp")
        convolutions = []
        for before, width in pairwise((shape[0], *widths)):
            convolutions += [nn.Conv2d(before, width, KERNEL, padding=padding), nn.ReLU(), nn.MaxPool2d(2)]
        height, width = _left(shape[1:], len(widths), padding)
        self.convolutions = nn.Sequential(*convolutions)
        self.linear = perceptron((widths[-1] * height * width, 120, 84, choices))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.convolutions(x).flatten(1))
        return logits


def _left(size: tuple[int, ...], count: int, padding: int) -> tuple[int, int]:
    """(height, width) that are left after so many convolutions and maxima."""
    height, width = size
    for _ in range(count):
        height, width = ((side + 2 * padding - KERNEL + 1) // 2 for side in (height, width))
    return height, width


class AlexNet(nn.Module):
    """Krizhevsky's in small: five convolutions, the first of stride 2, and their mean over places."""

    def __init__(self, shape: tuple[int, int, int], choices: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths, kernels, pooled = (shape[0], 64, 192, 384, 256, 256), (3, 5, 3, 3, 3), (0, 1, 4)
        for i, (before, width) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(before, width, kernels[i], 1 if i else 2, kernels[i] // 2), nn.ReLU()]
            layers += [nn.MaxPool2d(3, 2, 1)] if i in pooled else []
        self.convolutions = nn.Sequential(*layers)
        self.linear = perceptron((256, 256, choices))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.convolutions(x).mean((2, 3)))
        return logits


class MLP(nn.Module):
    """Two hidden layers on all pixels."""

    def __init__(self, shape: tuple[int, int, int], choices: int) -> None:
        super().__init__()
        self.linear = perceptron((shape[0] * shape[1] * shape[2], 128, 128, choices))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits


def task_head(width: int, classes: int, divisor: int = 1) -> nn.Module:
    """Pooled features (B, width) -> logits (B, classes), over two hidden layers of width / divisor (published: 1 for
    CIFAR-10, 2 for Tiny-ImageNet, 4 for ImageNet)."""
    hidden = max(1, width // divisor)
    return perceptron((width, hidden, hidden, classes))


def perceptron(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of these widths with ReLUs between them."""
    layers: list[nn.Module] = []
    for before, width in pairwise(widths):
        layers += [nn.Linear(before, width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
