"""The classifier that a network and a noise family make."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from twofold import noise
from twofold.denoiser import Classifier, NetworkDenoiser
from twofold.errors import UserError
from twofold.networks import build
from twofold.networks.trunk import Trunk
from twofold.networks.unet import UNet
from twofold.recognize.classifier import NetworkClassifier
from twofold.settings.network import ConvNetSettings, TrunkSettings, UNetSettings, WideResNetSettings
from twofold.settings.noise import EDMNoise, FlowNoise, VPNoise

UNET = UNetSettings(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=3)
SHAPE = (1, 8, 8)
NAMES = ["a", "b", "c"]
FAMILIES: Any = [EDMNoise(), VPNoise(), FlowNoise()]


def classifier(settings: Any, family: Any) -> NetworkClassifier:
    torch.manual_seed(0)
    return NetworkClassifier(build(settings, SHAPE, 3), NAMES, SHAPE, noise.family(family)).eval()


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("settings", [WideResNetSettings(depth=10, width=1), TrunkSettings(unet=UNET, head="mlp")])
def test_a_vector_of_levels_is_each_image_by_itself(settings: Any, family: Any) -> None:
    model = classifier(settings, family)
    assert isinstance(model, Classifier) and model.sigma_range == model.family.sigma_range  # type: ignore[union-attr]
    x, sigma = torch.randn(4, *SHAPE), torch.tensor([0.0, 0.02, 0.5, 5.0], dtype=torch.float64)
    with torch.no_grad():
        together = model.logits(x, sigma)
        assert together.shape == (4, 3) and together.isfinite().all()
        for i in range(4):
            alone = model.logits(x[i : i + 1], float(sigma[i]))
            assert torch.allclose(alone, together[i : i + 1], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_trunk_sees_what_the_denoiser_sees(family: Any) -> None:
    """Bit for bit, at every level, 0 included: the maps of a truncated trunk and the denoiser's own features."""
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(UNet(UNET, SHAPE), noise.family(family), SHAPE, classes=3).eval()
    model = classifier(TrunkSettings(unet=UNET, layer="dec.1"), family)
    network = model.network
    assert isinstance(network, Trunk)
    theirs = denoiser.network.state_dict()
    network.unet.load_state_dict({name: theirs[name] for name in network.unet.state_dict()})
    x, sigma = torch.randn(3, *SHAPE), torch.tensor([0.0, 0.06, 2.0], dtype=torch.float64)
    seen: list[torch.Tensor] = []
    network.layers["dec.1"].module.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        logits = model.logits(x, sigma)
        features = denoiser.features(x, sigma, ["dec.1"])["dec.1"]
    assert torch.equal(seen[0], features)
    assert torch.allclose(logits, network.head(features.mean((2, 3))), atol=1e-6)


def test_levels_it_does_not_know_are_refused() -> None:
    model = classifier(WideResNetSettings(depth=10, width=1), EDMNoise())
    with pytest.raises(UserError, match="sigma=100"):
        model.logits(torch.zeros(1, *SHAPE), 100.0)
    with pytest.raises(UserError, match=r"sigma=0\.001"):
        model.logits(torch.zeros(2, *SHAPE), torch.tensor([0.0, 0.001]))


def test_without_a_family_noise_is_refused() -> None:
    model = NetworkClassifier(build(ConvNetSettings(channels=8), SHAPE, 3), NAMES, SHAPE)
    assert model.sigma_range is None and model.logits(torch.zeros(1, *SHAPE)).shape == (1, 3)
    with pytest.raises(ValueError, match="clean"):
        model.logits(torch.zeros(1, *SHAPE), 0.1)


def test_gradients_reach_a_noisy_image() -> None:
    """What classifier guidance needs, from a model whose weights are not trained."""
    model = classifier(TrunkSettings(unet=UNET, head="mlp"), EDMNoise()).requires_grad_(False)
    x = torch.randn(2, *SHAPE, requires_grad=True)
    log_probability = model.logits(x, 0.5).log_softmax(1)[:, 0].sum()
    gradient = torch.autograd.grad(log_probability, x)[0]
    assert gradient.isfinite().all() and (gradient.flatten(1).abs().amax(1) > 0).all()


def test_double_precision_stays_double() -> None:
    model = classifier(WideResNetSettings(depth=10, width=1), EDMNoise()).double()
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        exact = model.logits(x, 0.3)
        assert exact.dtype == torch.float64
        assert torch.allclose(model.float().logits(x.float(), 0.3).double(), exact, atol=1e-4)
