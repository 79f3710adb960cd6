"""Networks that classify noisy images: published sizes, what they are told, where they are cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from twofold import taps
from twofold.errors import UserError
from twofold.networks import build
from twofold.networks.trunk import NoiseHead, middle_layer
from twofold.networks.unet import UNet
from twofold.networks.unet_encoder import AttentionPool
from twofold.networks.wideresnet import WideBlock, WideResNet, standardised
from twofold.settings.network import (
    NetworkSettings,
    TrunkSettings,
    UNetEncoderSettings,
    UNetSettings,
    WideResNetSettings,
    WRNSettings,
)

CIFAR = (3, 32, 32)
DDAE = UNetSettings(classes=0, out_norm_groups=8)
SMALL_UNET = UNetSettings(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=0)
ENCODER: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (8, 4), "head_channels": 4}
SMALL: dict[str, NetworkSettings] = {
    "wideresnet": WideResNetSettings(depth=10, width=1),
    "wrn": WRNSettings(depth=10, width=1),
    "attention": UNetEncoderSettings(**ENCODER, pool="attention"),
    "adaptive": UNetEncoderSettings(**ENCODER, pool="adaptive"),
    "spatial": UNetEncoderSettings(**ENCODER, pool="spatial"),
    "spatial_v2": UNetEncoderSettings(**ENCODER, pool="spatial_v2"),
    "conv": UNetEncoderSettings(**ENCODER, conditioning="add", resample="conv"),
    "trunk linear": TrunkSettings(unet=SMALL_UNET),
    "trunk mlp": TrunkSettings(unet=SMALL_UNET, head="mlp", layer="dec.2"),
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small(name: str, shape: tuple[int, int, int] = (1, 8, 8)) -> nn.Module:
    torch.manual_seed(0)
    return build(SMALL[name], shape, 5)


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 1, 8, 8, generator=generator), torch.rand(batch, generator=generator)


def test_published_sizes() -> None:
    with torch.device("meta"):
        assert count(build(WideResNetSettings(), CIFAR, 10)) == 38_913_114
        assert count(build(UNetEncoderSettings(), CIFAR, 10)) == 17_445_386
        assert count(build(WRNSettings(), CIFAR, 10)) == 1_469_642
        trunk = build(TrunkSettings(unet=DDAE, head="mlp"), CIFAR, 10)
        assert trunk.layers["dec.5"].channels == 256 and list(trunk.layers)[-1] == "dec.5"  # type: ignore[index, arg-type]
        assert count(trunk.head) == 219_146  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SMALL)
def test_classifies_trains_every_parameter_and_has_layers(name: str) -> None:
    network = small(name)
    x, c_noise = inputs()
    logits = network(x, c_noise)
    assert logits.shape == (3, 5)
    logits.square().sum().backward() if name != "adaptive" else functional.cross_entropy(
        logits, torch.tensor([0, 1, 2])
    ).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    table: Any = network.layers
    with torch.no_grad():
        found = taps.read(lambda: network.eval()(x, c_noise), table, list(table))
    for layer_name, layer in table.items():
        assert found[layer_name].shape == (3, layer.channels, 8 // layer.stride, 8 // layer.stride)


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("adaptive", "conv", "trunk linear", "wrn")])
def test_is_told_the_noise_level(name: str) -> None:
    network = small(name).eval()
    for parameter in network.parameters():  # what begins at zero would hide it
        nn.init.normal_(parameter, std=0.1)
    x, c_noise = inputs()
    assert not torch.allclose(network(x, c_noise), network(x, c_noise + 0.3), atol=1e-5)


def test_an_adaptive_head_begins_at_zero() -> None:
    assert small("adaptive")(*inputs()).abs().max() == 0


def test_wideresnet_does_not_see_the_scale_of_an_image() -> None:
    """Standardised per image, so c_in x and x are the same to it; a nearly constant image is the exception."""
    network = small("wideresnet").eval()
    x, c_noise = inputs()
    scaled = 7.0 * x + torch.tensor([0.0, 1.0, -3.0])[:, None, None, None]
    assert torch.allclose(network(x, c_noise), network(scaled, c_noise), atol=1e-4)
    flat = standardised(x * 1e-3)
    assert torch.allclose(flat, (x - x.mean((1, 2, 3), keepdim=True)) * 1e-3 * 8, atol=1e-6)  # sqrt(64) = 8
    ready = standardised(x)
    assert ready.mean((1, 2, 3)).abs().max() < 1e-6
    assert torch.allclose(ready.std((1, 2, 3), correction=0), torch.ones(3))


def test_wideresnet_frequencies_come_from_the_seed_and_are_not_trained() -> None:
    one, other = small("wideresnet"), small("wideresnet")
    assert isinstance(one, WideResNet) and isinstance(other, WideResNet)
    frequencies = one.embedding.frequencies
    assert torch.equal(frequencies, other.embedding.frequencies) and not frequencies.requires_grad
    torch.manual_seed(1)
    with_other_seed = build(SMALL["wideresnet"], (1, 8, 8), 5)
    assert not torch.equal(frequencies, with_other_seed.embedding.frequencies)  # type: ignore[union-attr, arg-type]
    assert frequencies.shape == (128,) and 12 < float(frequencies.std()) < 20
    assert "embedding.frequencies" in one.state_dict()


def test_wide_block_against_the_formula() -> None:
    torch.manual_seed(0)
    x, emb = torch.randn(2, 16, 8, 8), torch.randn(2, 512)
    for stride, first in ((1, True), (1, False), (2, False)):
        block = WideBlock(16, 32, stride, first)
        activated = torch.relu(block.norm1(x))
        h = block.conv1(activated) + block.emb(emb)[:, :, None, None]
        h = block.conv2(torch.relu(block.norm2(h)))
        short = activated if first else x
        if stride == 2:
            short = short.reshape(2, 16, 4, 2, 4, 2).mean((3, 5))
        expected = h + torch.cat([short, torch.zeros_like(short)], dim=1)
        assert torch.allclose(block(x, emb), expected, atol=1e-5)


def test_attention_pool_against_torch() -> None:
    """The same as PyTorch's attention with one query, by its own code."""
    torch.manual_seed(0)
    pool = AttentionPool(8, 16, 4, 5, SMALL_UNET).eval()
    x = torch.randn(2, 8, 4, 4)
    tokens = functional.silu(pool.norm(x)).flatten(2).permute(2, 0, 1)  # (N, B, C)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.position[:, None]
    weight, bias = pool.qkv.weight, pool.qkv.bias
    identity = torch.eye(8)
    seen, _ = functional.multi_head_attention_forward(
        tokens[:1], tokens, tokens, 8, 2, weight, bias, None, None, False, 0.0, identity, None, training=False
    )
    assert torch.allclose(pool(x), pool.proj(seen[0]), atol=1e-5)


def test_a_spatial_head_reads_every_map() -> None:
    network = small("spatial").eval()
    widths = sum(layer.channels for layer in network.layers.values())  # type: ignore[union-attr, operator]
    assert network.pool[0].in_features == widths  # type: ignore[index, union-attr]


@pytest.mark.parametrize("resample", ["conv", "residual"])
def test_a_truncated_unet_gives_the_whole_ones_bits(resample: str) -> None:
    """At every layer; and what runs later is gone."""
    settings = SMALL_UNET.model_copy(update={"resample": resample})

    def whole() -> UNet:
        torch.manual_seed(0)
        return UNet(settings, (1, 8, 8)).eval()

    x, c_noise = inputs()
    with torch.no_grad():
        network = whole()
        maps = taps.read(lambda: network(x, c_noise), network.layers, list(network.layers))
        before = 0
        for name, expected in maps.items():
            cut = whole()
            cut.truncate(name)
            assert list(cut.layers)[-1] == name
            assert torch.equal(cut.trunk(x, c_noise), expected)
            assert cut.state_dict().keys() <= network.state_dict().keys()
            assert before < count(cut) < count(network)
            before = count(cut)
    cut.truncate("dec.0")  # a second time
    assert torch.equal(cut.trunk(x, c_noise), maps["dec.0"])


def test_aliases_name_layers_too() -> None:
    trunk = build(TrunkSettings(unet=SMALL_UNET, layer="out_3"), (1, 8, 8), 5)
    assert list(trunk.layers)[-1] == "dec.2"  # type: ignore[arg-type]
    assert middle_layer(DDAE) == "dec.5" and middle_layer(SMALL_UNET) == "dec.1"
    assert middle_layer(UNetSettings(multipliers=(2, 2, 2), blocks=4)) == "dec.6"


def test_a_frozen_trunk_is_never_in_training() -> None:
    settings = TrunkSettings(unet=SMALL_UNET.model_copy(update={"dropout": 0.5}), freeze=True)
    network = build(settings, (1, 8, 8), 5).train()
    x, c_noise = inputs()
    assert network.head.training and not any(m.training for m in network.unet.modules())  # type: ignore[union-attr]
    assert torch.equal(network(x, c_noise), network(x, c_noise))
    network(x, c_noise).sum().backward()
    assert {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None} == {"head"}
    x.requires_grad_()
    assert torch.autograd.grad(network(x, c_noise).sum(), x)[0].abs().max() > 0  # for guidance


def test_noise_head_against_the_formula() -> None:
    torch.manual_seed(0)
    head = NoiseHead(256, 10, scale=1.0)
    z, c_noise = torch.randn(2, 256), torch.tensor([0.001, 1.0])
    steps = 10000 ** (-torch.arange(32) / 31)
    angle = torch.tensor([1.0, 1000.0])[:, None] * steps
    emb = head.emb2(functional.silu(head.emb1(torch.cat([angle.sin(), angle.cos()], 1))))
    assert torch.allclose(head(z, c_noise), head.out(functional.silu(head.hidden(z + emb))), atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "shape", "classes", "message"),
    [
        (TrunkSettings(), (1, 8, 8), 5, "give init_from=RUN"),
        (TrunkSettings(unet=SMALL_UNET, layer="dec.9"), (1, 8, 8), 5, r"network.layer=dec.9: no such layer"),
        (TrunkSettings(unet=SMALL_UNET), (1, 8, 8), 1, "at least 2"),
        (UNetEncoderSettings(**ENCODER), (1, 8, 8), 1, "at least 2"),
        (UNetEncoderSettings(), (1, 8, 8), 5, "no level has this resolution"),
        (WideResNetSettings(), (1, 8, 8), 0, "at least 2"),
        (WideResNetSettings(), (1, 3, 8), 5, "too small"),
    ],
)
def test_what_cannot_be_built(settings: Any, shape: tuple[int, int, int], classes: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(settings, shape, classes)


def test_a_depth_that_does_not_exist() -> None:
    with pytest.raises(ValidationError, match="22 and 28 are"):
        WideResNetSettings(depth=24)


@pytest.mark.parametrize("shape", [(1, 7, 9), (3, 5, 8)])
def test_any_size(shape: tuple[int, int, int]) -> None:
    for name in ("wideresnet", "attention", "trunk linear"):
        changes: Any = {"attention": ()} if name == "attention" else {}
        if name == "trunk linear":
            changes = {"unet": SMALL_UNET.model_copy(update={"attention": ()})}
        network = build(SMALL[name].model_copy(update=changes), shape, 5)
        assert network(torch.randn(2, *shape), torch.rand(2)).shape == (2, 5)


def test_wrn_is_the_published_network() -> None:
    """Pre-activation blocks; the first one's shortcut reads what is normed, the others' what came in."""
    torch.manual_seed(0)
    network: Any = build(WRNSettings(depth=16, width=2, slope=0.2), CIFAR, 10).eval()
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5) if "norm" in name else nn.init.normal_(value, std=0.1)

    def normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
        axes = (None, slice(None), None, None)
        x = (x - norm.running_mean[axes]) / (norm.running_var[axes] + 1e-3).sqrt()
        return functional.leaky_relu(norm.weight[axes] * x + norm.bias[axes], 0.2)

    x = torch.randn(2, *CIFAR)
    h = functional.conv2d(2 * x, network.stem.weight, network.stem.bias, padding=1)
    with torch.no_grad():
        for i, block in enumerate(network.blocks):
            before = normed(block.norm1, h)
            inner = normed(block.norm2, block.conv1(before))
            h = block.conv2(inner) + block.shortcut(before if i == 0 else h)
        expected = network.linear(normed(network.norm, h).mean((2, 3)))
        assert torch.allclose(network(x), expected, rtol=1e-4, atol=1e-4)
    assert [isinstance(block.shortcut, nn.Identity) for block in network.blocks] == [False, True] * 3
    assert network.norm.eps == network.norm.momentum == 1e-3


@pytest.mark.parametrize(("shape", "classes"), [((3, 3, 3), 10), ((3, 8, 8), 1)])
def test_wrn_refuses_what_is_too_small(shape: tuple[int, int, int], classes: int) -> None:
    with pytest.raises(UserError, match="too small|at least 2"):
        build(WRNSettings(), shape, classes)
