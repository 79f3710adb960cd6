"""Denoisers for the tests of generation: an exact one and an untrained network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twofold.denoiser import JointDenoiser, NetworkDenoiser, State
from twofold.networks.unet import UNet
from twofold.noise import family
from twofold.oracle import MixtureDenoiser
from twofold.settings.network import UNetSettings
from twofold.settings.noise import EDMNoise, FlowNoise, VPNoise

JointUNets = Callable[..., JointDenoiser]
NOISE = {"edm": EDMNoise(), "vp": VPNoise(), "flow": FlowNoise()}


@pytest.fixture
def oracle() -> MixtureDenoiser:
    """Three components of 1 x 4 x 4 pixels."""
    means = 0.5 * torch.randn((3, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MixtureDenoiser(means, [0.1, 0.2, 0.3], [1.0, 2.0, 1.0])


@pytest.fixture(scope="session")
def unet() -> Callable[[str, int], NetworkDenoiser]:
    """A small U-Net with attention and dropout, 3 x 8 x 8, of a noise family and with so many classes."""

    def make(noise: str = "edm", classes: int = 3) -> NetworkDenoiser:
        torch.manual_seed(0)
        settings = UNetSettings(
            channels=16, multipliers=(1, 2), blocks=1, attention=(4,), norm_groups=8, dropout=0.3, classes=classes
        )
        network = UNet(settings, (3, 8, 8))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return NetworkDenoiser(network, family(NOISE[noise]), (3, 8, 8), classes)

    return make


class HeadedUNet(UNet):
    """A U-Net whose head is linear in the means of all maps and of their squares."""

    def __init__(self, settings: UNetSettings, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(settings, shape)
        taps = [layer for name, layer in self.layers.items() if name.startswith("enc") or name == "mid"]
        self.answers = nn.Linear(2 * sum(layer.channels for layer in taps), classes)

    def read(self, state: State) -> Tensor:
        means = [h.mean((2, 3)) for tap in state.taps.values() for h in (tap, tap.square())]
        return self.answers(torch.cat(means, 1))


@pytest.fixture(scope="session")
def joint_unet() -> JointUNets:
    """A small joint model, 3 x 8 x 8, of a noise family, that knows three classes or attributes. classes: labels that
    condition its denoiser besides."""

    def make(
        noise: str = "edm",
        multi_label: bool = False,
        names: tuple[str, ...] = ("cat", "dog", "eel"),
        classes: int = 0,
    ) -> JointDenoiser:
        torch.manual_seed(0)
        settings = UNetSettings(
            channels=16, multipliers=(1, 2), blocks=1, attention=(4,), norm_groups=8, classes=classes
        )
        network = HeadedUNet(settings, (3, 8, 8), len(names))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        about: dict[str, Any] = {"classes": classes, "class_names": names, "multi_label": multi_label}
        return JointDenoiser(network, family(NOISE[noise]), (3, 8, 8), **about).requires_grad_(False).eval()

    return make
