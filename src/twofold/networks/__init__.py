"""What computes: plain modules that know neither sigma nor noise theory."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..settings.network import NetworkSettings


def build(settings: NetworkSettings, shape: tuple[int, int, int], classes: int = 0) -> nn.Module:
    """The network of these settings for images of this shape."""
    from .unet import UNet

    networks: dict[str, Any] = {"unet": lambda: UNet(settings, shape)}  # type: ignore[arg-type]
    return networks[settings.kind]()
