"""The classifier that a network and a noise family make."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from twofold import noise
from twofold.codec import PixelCodec
from twofold.denoiser import Classifier, JointDenoiser, NetworkDenoiser
from twofold.errors import UserError
from twofold.measure.encoders import ClassifierEncoder, image_logits, probabilities
from twofold.networks import build
from twofold.networks.trunk import Trunk
from twofold.networks.unet import UNet
from twofold.recognize.classifier import JointClassifier, NetworkClassifier, answering
from twofold.recognize.views import image_noise
from twofold.settings.network import ConvNetSettings, TapHeadSettings, TrunkSettings, UNetSettings, WideResNetSettings
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


def joint(head: str = "taps", multi_label: bool = False) -> JointDenoiser:
    torch.manual_seed(0)
    settings = UNET.model_copy(update={"classes": 0, "head": TapHeadSettings(kind=head)})  # type: ignore[arg-type]
    network = UNet(settings, SHAPE, 3)
    with torch.no_grad():  # layers that start at zero would say the same of everything
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return JointDenoiser(network, noise.family(EDMNoise()), SHAPE, class_names=NAMES, multi_label=multi_label).eval()


def test_a_joint_denoiser_is_a_classifier_of_images() -> None:
    model, images = joint(), torch.randint(0, 256, (5, *SHAPE), dtype=torch.uint8)
    adapter = answering(model)
    assert isinstance(adapter, JointClassifier) and isinstance(adapter, Classifier)
    assert adapter.class_names == NAMES and adapter.shape == SHAPE and adapter.sigma_range == model.sigma_range
    x0 = model.codec.encode(images)
    with torch.no_grad():
        clean = model.logits(x0, 0.0)
        assert torch.equal(adapter.image_logits(images), clean)
        adapter.sigma = 0.5
        noisy = adapter.image_logits(images)
        x = noise.add(x0, image_noise(images, SHAPE), 0.5)
        assert torch.equal(noisy, model.logits(x, 0.5)) and not torch.allclose(noisy, clean)
        assert torch.allclose(adapter.image_logits(images[3:]), noisy[3:], atol=1e-5)
    for asked in (model, JointClassifier(model)):
        assert torch.allclose(probabilities(asked, images), clean.double().softmax(1))
        assert torch.allclose(image_logits(asked, images), clean.double())


def test_probabilities_of_attributes_are_each_by_themselves() -> None:
    model, images = joint(multi_label=True), torch.randint(0, 256, (5, *SHAPE), dtype=torch.uint8)
    assert JointClassifier(model).multi_label
    with torch.no_grad():
        expected = model.logits(model.codec.encode(images), 0.0).double().sigmoid()
    assert torch.allclose(probabilities(model, images), expected)


def test_a_joint_denoiser_encodes_images_by_what_its_answers_see() -> None:
    model, images = joint(), torch.randint(0, 256, (5, *SHAPE), dtype=torch.uint8)
    adapter = JointClassifier(model)
    assert list(adapter.layers)[-1] == "mid" and len(adapter.layers) < len(model.layers)
    found = ClassifierEncoder(adapter).embed(images)
    with torch.no_grad():
        seen = model.features(model.codec.encode(images), 0.0, ["mid"])["mid"]
    assert torch.allclose(found, seen.mean((2, 3)), atol=1e-6)


def test_who_answers() -> None:
    model = classifier(WideResNetSettings(depth=10, width=1), EDMNoise())
    assert answering(model) is model
    assert answering(NetworkDenoiser(UNet(UNET, SHAPE), noise.family(EDMNoise()), SHAPE, classes=3)) is None


def test_a_joint_denoiser_of_latents_takes_images() -> None:
    class Halved(PixelCodec):
        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return super().encode(images)[..., ::2, ::2]

        def decode(self, x0: torch.Tensor) -> torch.Tensor:
            return super().decode(x0).repeat_interleave(2, 2).repeat_interleave(2, 3)

    model = joint()
    model.codec = Halved()
    images = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
    adapter = JointClassifier(model)
    assert adapter.shape == (1, 16, 16)
    adapter.sigma = 0.3
    with torch.no_grad():
        assert adapter.image_logits(images).shape == (4, 3)
        assert torch.allclose(
            probabilities(model, images), model.logits(model.codec.encode(images)).double().softmax(1)
        )
