"""What the backbones and heads of students share: batch norms, a convolution with one, the maps of a backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...settings.student import NormSettings
from ...taps import Layer

DEFAULT_NORM = NormSettings()


class Norm(nn.BatchNorm2d):
    """A batch norm in the precision of its weights, whatever comes in.

    Where a channel has one value in the whole batch (one image, one pixel), its variance is unknown: then the running
    statistics are used, in training too.
    """

    def __init__(self, channels: int, settings: NormSettings = DEFAULT_NORM) -> None:
        super().__init__(channels, eps=settings.norm_eps, momentum=settings.norm_momentum)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def own_norms(module: nn.Module) -> None:
    """Every batch norm below a module of somebody else's becomes a `Norm` with the same weights and options."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d and child.affine and child.track_running_stats and child.momentum:
            norm = Norm(child.num_features, NormSettings(norm_momentum=child.momentum, norm_eps=child.eps))
            norm.load_state_dict(child.state_dict(), assign=True)
            setattr(module, name, norm)
        else:
            own_norms(child)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution with a stride: of the pixels that count alone, which is the same.

    Left to PyTorch 2.13 on a CPU, the backward pass of 8 channels to 16 at 48x64 ends the process (channels last).
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x[..., :: self.stride[0], :: self.stride[1]], self.weight, self.bias)


class ConvNorm(nn.Sequential):
    """Convolution (zero padding, so that sides become ceil(side / stride)), batch norm, and the activation, if any."""

    def __init__(
        self,
        before: int,
        channels: int,
        size: int = 3,
        stride: int = 1,
        act: nn.Module | None = None,
        norm: NormSettings = DEFAULT_NORM,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        kind = Pointwise if size == 1 and stride > 1 and groups == 1 else nn.Conv2d
        conv = kind(before, channels, size, stride, size // 2, groups=groups, bias=bias)
        super().__init__(conv, Norm(channels, norm), *([] if act is None else [act]))


def relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def with_all(answer: Tensor, maps: Iterable[Tensor]) -> Tensor:
    """The same answer; layers that only maps depend on which it does not read (HRNet's other branches) have a gradient,
    of zeros, because processes that train together wait for one of every weight.
    """
    nothing: Tensor = sum((one[:0].sum() for one in maps), answer.new_zeros(()))  # type: ignore[assignment]
    return answer + nothing.to(answer.dtype)


class Backbone(nn.Module):
    """forward(x0 (B, C, H, W) in [-1, 1]) -> the maps of its stages, finest first, and after them that of its neck.

    layers: "stage.0", "stage.1", ... in order of execution, each the map of that place in the list; those that are
    between them are in `named_maps` alone.
    aliases: {published name of the same output: name in layers}.
    Sides of a map are ceil(side / stride) for any H and W of at least the largest stride.
    """

    layers: Mapping[str, Layer]
    aliases: Mapping[str, str]

    def named_maps(self, x: Tensor) -> dict[str, Tensor]:
        """The maps of all layers by name, in their order."""
        return dict(zip(self.layers, self(x), strict=True))

    @property
    def stages(self) -> list[Layer]:
        """Those of the maps that a head for pixels or points may read, finest first."""
        return [layer for name, layer in self.layers.items() if name.startswith("stage.")]

    @property
    def width(self) -> int:
        """Channels of the last map."""
        return list(self.layers.values())[-1].channels


def check_size(kind: str, shape: Sequence[int], stride: int, hint: str = "") -> None:
    """Raises `UserError` for images with a side shorter than one pixel of the coarsest map."""
    if min(shape[1:]) < stride:
        what = f"images of {shape[1]}x{shape[2]} are too small for its total stride of {stride}"
        raise UserError(f"network.backbone.kind={kind}", what, hint or "take a smaller network or larger images")


def resized(x: Tensor, size: Sequence[int], mode: str = "bilinear") -> Tensor:
    """(B, D, h, w) -> (B, D, *size), corners not aligned; x itself where it has that size."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=None if mode == "nearest" else False)


def initialise(modules: Iterable[nn.Module], slope: float = 0.0) -> None:
    """He et al. 2015: convolutions normal by their fan-out, norms 1 and 0. slope: of the leaky ReLUs that follow."""
    for module in modules:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, slope, "fan_out", "leaky_relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
