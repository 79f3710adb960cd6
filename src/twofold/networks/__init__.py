"""What computes: plain modules that know neither sigma nor noise theory. One entry of `NETWORKS` per kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..settings.network import NetworkSettings
from .autoencoder import Autoencoder
from .convnet import ConvNet
from .dit import DiT
from .iddm import IDDM
from .rdn import RDN
from .students import Student
from .trunk import Trunk
from .unet import UNet
from .unet_encoder import UNetEncoder
from .uvit import UViT
from .wideresnet import WideResNet
from .wrn import WRN

NETWORKS: dict[str, Callable[[Any, tuple[int, int, int], int], nn.Module]] = {
    "unet": UNet,
    "dit": lambda settings, shape, classes: DiT(settings, shape),
    "uvit": lambda settings, shape, classes: UViT(settings, shape),
    "iddm": lambda settings, shape, classes: IDDM(settings, shape),
    "convnet": ConvNet,
    "wideresnet": WideResNet,
    "wrn": WRN,
    "unet_encoder": UNetEncoder,
    "trunk": Trunk,
    "student": Student,
    "rdn": lambda settings, shape, classes: RDN(settings, shape),
    "autoencoder": lambda settings, shape, classes: Autoencoder(settings, shape),
}


def build(settings: NetworkSettings, shape: tuple[int, int, int], classes: int = 0) -> nn.Module:
    """The network of these settings for images of this shape; `classes` is how many the data has."""
    return NETWORKS[settings.kind](settings, shape, classes)
