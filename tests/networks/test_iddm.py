"""IDDM's U-Net: published counts, torch's own attention, its interface, any size, gradients everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.networks import build
from twofold.networks.iddm import ACTIVATIONS, IDDM, Attending, Double
from twofold.noise import family
from twofold.settings.iddm import IDDMSettings
from twofold.settings.network import UNetSettings
from twofold.settings.noise import VPNoise

SMALL: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "heads": 2, "classes": 3, "embedding_channels": 16}
PUBLISHED = [  # options, parameters
    ({}, 23_332_739),
    ({"classes": 10}, 23_335_299),
    ({"classes": 10, "up": "transposed"}, 23_679_811),  # unetv2
    ({"classes": 10, "attention": "alternate"}, 23_335_299 - 520_576),  # unet-slim without what it never uses
]


def small(shape: tuple[int, int, int] = (2, 8, 8), **options: Any) -> IDDM:
    torch.manual_seed(0)
    return IDDM(IDDMSettings(**{**SMALL, **options}), shape).eval()


@pytest.mark.parametrize("size", [32, 64, 120])
@pytest.mark.parametrize(("options", "count"), PUBLISHED)
def test_published_counts_at_any_size(options: dict[str, Any], count: int, size: int) -> None:
    with torch.device("meta"):
        network = build(IDDMSettings(**options), (3, size, size), 10)
    assert sum(p.numel() for p in network.parameters()) == count


def test_attention_is_that_of_torch_without_its_matrix() -> None:
    """`nn.MultiheadAttention` with its weights, in float64: 1e-12."""
    torch.manual_seed(0)
    ours, x = Attending(16, 4, "gelu").double(), torch.randn(2, 16, 5, 6, dtype=torch.float64)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.attention.qkv.weight,
            "in_proj_bias": ours.attention.qkv.bias,
            "out_proj.weight": ours.attention.proj.weight,
            "out_proj.bias": ours.attention.proj.bias,
        }
    )
    tokens = x.flatten(2).transpose(1, 2)
    h = ours.norm1(tokens)
    attended, weights = theirs(h, h, h, need_weights=True)
    assert weights.shape == (2, 30, 30)
    tokens = tokens + attended
    tokens = tokens + ours.fc2(F.gelu(ours.fc1(ours.norm2(tokens))))
    torch.testing.assert_close(ours(x), tokens.transpose(1, 2).view_as(x), rtol=0, atol=1e-12)


def test_the_way_through_the_network() -> None:
    """Maxima of two by two, ups with corners aligned, the skip before what was deeper, time after each level."""
    network = small(attention="none").double()
    x, t = torch.randn(2, 2, 8, 8, dtype=torch.float64), torch.tensor([3.0, 700.0], dtype=torch.float64)
    half = 8
    angle = t[:, None] * torch.tensor([10000 ** (-2 * i / 16) for i in range(half)], dtype=torch.float64)
    emb = torch.cat([angle.sin(), angle.cos()], 1)
    label = torch.tensor([2, -1])
    emb = emb + torch.stack([network.label.weight[2], torch.zeros(16)])  # type: ignore[union-attr, index]
    active = F.silu(emb)

    def level(block: Any, h: Tensor) -> Tensor:
        return block.second(block.first(h)) + block.time(active)[:, :, None, None]

    full = network.enc[0](x)
    half_map = level(network.enc[1], F.max_pool2d(full, 2))
    h = network.mid(level(network.enc[2], F.max_pool2d(half_map, 2)))
    for block, skip in zip(network.dec, (half_map, full), strict=True):
        up = F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=True)
        h = level(block, torch.cat([skip, up], 1))
    torch.testing.assert_close(network(x, t, {"label": label}), network.out(h), rtol=0, atol=1e-12)


def test_a_residual_double_convolution() -> None:
    torch.manual_seed(0)
    block, x = Double(4, 4, "lrelu", residual=True), torch.randn(3, 4, 6, 6)
    h = F.group_norm(F.conv2d(x, block.conv1.weight, padding=1), 1)
    h = F.group_norm(F.conv2d(F.leaky_relu(h, 0.1), block.conv2.weight, padding=1), 1)
    torch.testing.assert_close(block(x), F.leaky_relu(x + h, 0.1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_are_those_of_torch(act: str) -> None:
    functions = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu, "relu6": F.relu6}
    x = torch.linspace(-8, 8, 101)
    wanted = functions[act](x) if act in functions else torch.where(x > 0, x, 0.1 * x)
    torch.testing.assert_close(ACTIVATIONS[act]()(x), wanted, rtol=0, atol=0)
    assert any(type(m) is type(ACTIVATIONS[act]()) for m in small(act=act).modules())


def test_a_setting_of_attention_says_where() -> None:
    places = {how: IDDMSettings(attention=how).places for how in ("all", "below_full", "alternate", "none")}  # type: ignore[arg-type]
    assert places["all"] == ["enc.1", "enc.2", "enc.3", "dec.0", "dec.1", "dec.2"]
    assert places["below_full"] == places["all"][:-1]  # dec.2 is the one at full resolution
    assert places["alternate"] == ["enc.1", "enc.3", "dec.1"] and places["none"] == []
    network = small(attention="below_full")
    attending = [name for name, m in network.named_modules() if isinstance(m, Attending)]
    assert attending == ["enc.1.attending", "enc.2.attending", "dec.0.attending"]


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 21), st.integers(1, 21), st.sampled_from(["bilinear", "transposed"]))
def test_any_size(height: int, width: int, up: str) -> None:
    network = small(up=up)
    x, t = torch.randn(1, 2, height, width), torch.tensor([5.0])
    with torch.no_grad():
        out = network(x, t)
    assert out.shape == x.shape and network.size_problem(height, width) is None
    assert bool(torch.isfinite(out).all())


def test_layers_stop_early_and_equal_the_full_pass() -> None:
    network = small((2, 12, 8))
    model = NetworkDenoiser(network, family(VPNoise(first=1)), (2, 12, 8), 3)
    assert list(network.layers) == ["enc.0", "enc.1", "enc.2", "mid", "dec.0", "dec.1"]
    x, label = torch.randn(2, 2, 12, 8), {"label": torch.tensor([0, 2])}
    full: dict[str, Tensor] = {}
    hooks = [
        layer.module.register_forward_hook(lambda m, a, out, name=name: full.update({name: out}))
        for name, layer in network.layers.items()
    ]
    with torch.no_grad():
        model.denoise(x, 0.5, label)
        for hook in hooks:
            hook.remove()
        ran: list[nn.Module] = []
        network.dec[1].register_forward_hook(lambda m, a, out: ran.append(m))
        found = model.features(x, 0.5, ["enc.1", "mid", "dec.0"], label)
        assert not ran  # the last level did not
        for name, value in found.items():
            assert torch.equal(value, full[name])
        every = model.features(x, 0.5, network.layers, label)
    for name, layer in network.layers.items():
        assert every[name].shape == (2, layer.channels, 12 // layer.stride, 8 // layer.stride)


def test_encode_and_decode_are_the_whole() -> None:
    network = small((2, 7, 9))
    x, t, cond = torch.randn(2, 2, 7, 9), torch.tensor([5.0, 900.0]), {"label": torch.tensor([1, -1])}
    with torch.no_grad():
        state = network.encode(x, t, cond)
        assert list(state.taps) == ["enc.0", "enc.1", "mid"] and state.emb.shape == (2, 16)
        assert torch.equal(network.decode(state), network(x, t, cond))
        state.taps["enc.0"] = state.taps["enc.0"] * 2
        assert not torch.equal(network.decode(state), network(x, t, cond))


def test_no_label_adds_nothing() -> None:
    network = small()
    bare = small(classes=0)
    bare.load_state_dict({k: v for k, v in network.state_dict().items() if k != "label.weight"})
    x, t = torch.randn(2, 2, 8, 8), torch.tensor([5.0, 900.0])
    with torch.no_grad():
        none = network(x, t, {"label": torch.tensor([-1, -1])})
        assert torch.equal(none, network(x, t)) and torch.equal(none, bare(x, t))
        assert not torch.equal(none, network(x, t, {"label": torch.tensor([0, 0])}))


@pytest.mark.parametrize("options", [{}, {"up": "transposed", "act": "silu"}, {"attention": "alternate"}])
def test_every_parameter_learns(options: dict[str, Any]) -> None:
    network = small(**options)
    x, t = torch.randn(3, 2, 8, 8), torch.tensor([1.0, 500.0, 999.0])
    network(x, t, {"label": torch.tensor([0, 1, 2])}).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


def test_it_cannot_see_how_strong_noise_is() -> None:
    """Its first norm takes the size of x away (docs/migration/iddm.md, "Which sampler"); U-Nets keep it."""
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 999.0)
    with torch.no_grad():
        for made, same in ((IDDMSettings(channels=8, heads=2), True), (UNetSettings(channels=8, attention=()), False)):
            network = build(made, (1, 8, 8)).eval()
            assert torch.allclose(network(1.2 * x, t), network(x, t), rtol=0, atol=1e-4) == same


def test_wrong_labels_and_settings_are_said() -> None:
    x, t = torch.randn(1, 2, 8, 8), torch.tensor([5.0])
    with pytest.raises(UserError, match="label 3: the network knows 3 classes"):
        small()(x, t, {"label": torch.tensor([3])})
    with pytest.raises(UserError, match="label 0: the network knows 0 classes"):
        small(classes=0)(x, t, {"label": torch.tensor([0])})
    with pytest.raises(ValidationError, match="heads=3 does not divide the 64 channels"):
        IDDMSettings(heads=3)
    with pytest.raises(ValidationError, match="embedding_channels=15 is odd"):
        IDDMSettings(embedding_channels=15)
