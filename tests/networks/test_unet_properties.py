"""The U-Net as an interface: taps, encode and decode, conditions, any size, gradients everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold import taps
from twofold.errors import UserError
from twofold.networks import build
from twofold.networks.unet import UNet
from twofold.settings.network import ConvNetSettings, UNetSettings

SMALL: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}


def small(shape: tuple[int, int, int] = (1, 8, 8), **options: Any) -> UNet:
    torch.manual_seed(0)
    return UNet(UNetSettings(**{**SMALL, **options}), shape).eval()


def inputs(network: UNet, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    cond = {}
    if network.settings.classes:
        cond["label"] = torch.arange(batch) % network.settings.classes
    if network.settings.augment_dim:
        cond["augment"] = torch.randn(batch, network.settings.augment_dim, generator=generator)
    return torch.randn(batch, *network.shape, generator=generator), torch.rand(batch, generator=generator), cond


OPTIONS = st.fixed_dictionaries(
    {
        "resample": st.sampled_from(["conv", "residual"]),
        "conditioning": st.sampled_from(["add", "scale_shift"]),
        "label_position": st.sampled_from(["before", "after"]),
        "downsample_padding": st.sampled_from(["both", "end"]),
        "decoder_attention": st.sampled_from(["all", "last"]),
        "skip_scale": st.sampled_from([1.0, 0.5**0.5]),
        "resample_projection": st.booleans(),
        "heads": st.sampled_from([1, 2]),
        "classes": st.sampled_from([0, 3]),
        "augment_dim": st.sampled_from([0, 9]),
        "init": st.sampled_from(["default", "edm"]),
        "learned_variance": st.booleans(),
        "embedding_channels": st.sampled_from([None, 6]),
    }
)


@settings(max_examples=25, deadline=None)
@given(OPTIONS)
def test_every_option_set_trains_every_parameter(options: dict[str, Any]) -> None:
    network = small(**options).train()
    x, c_noise, cond = inputs(network)
    output = network(x, c_noise, cond)
    assert network.learns_variance == options["learned_variance"]
    assert output.shape == (2, 1 + network.learns_variance, 8, 8)
    output.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    "options", [{}, {"resample": "residual", "classes": 3, "augment_dim": 9}], ids=["conv", "residual"]
)
def test_layers(options: dict[str, Any]) -> None:
    """Every layer's map has the channels and stride of the table; stopping there gives the full pass's bits."""
    network = small(**options)
    x, c_noise, cond = inputs(network)
    names = list(network.layers)
    assert names[0] == "enc.0" and names.index("mid") == names.index("dec.0") - 1
    with torch.no_grad():
        full = taps.read(lambda: network(x, c_noise, cond), network.layers, names)
        assert list(full) == names
        for name, layer in network.layers.items():
            one = taps.read(lambda: network(x, c_noise, cond), network.layers, [name])[name]
            assert torch.equal(one, full[name])
            assert one.shape == (2, layer.channels, 8 // layer.stride, 8 // layer.stride)
    assert network.aliases["out_1"] == "dec.0"


def test_stopping_early_runs_nothing_after() -> None:
    network = small()
    x, c_noise, _ = inputs(network)
    ran = []
    for name, layer in network.layers.items():
        layer.module.register_forward_hook(lambda *_, name=name: ran.append(name))
    taps.read(lambda: network(x, c_noise), network.layers, ["mid", "enc.1"])
    assert ran[-1] == "mid" and not [name for name in ran if name.startswith("dec")]


def test_decode_reads_what_the_state_holds() -> None:
    network = small()
    x, c_noise, _ = inputs(network)
    with torch.no_grad():
        state = network.encode(x, c_noise)
        assert torch.equal(network.decode(state), network(x, c_noise))
        for name in state.taps:
            state = network.encode(x, c_noise)
            state.taps[name] = state.taps[name] + 1
            assert not torch.equal(network.decode(state), network(x, c_noise)), name


def test_a_learned_variance_is_decoded_too_and_never_reaches_a_trunk() -> None:
    network = small(learned_variance=True)
    x, c_noise, _ = inputs(network)
    with torch.no_grad():
        whole = network(x, c_noise)
        assert whole.shape == (2, 2, 8, 8) and torch.equal(network.decode(network.encode(x, c_noise)), whole)
        before = network.trunk(x, c_noise)
        network.truncate(next(reversed(network.layers)))
        assert torch.equal(network.trunk(x, c_noise), before)
    assert not hasattr(network, "out")
    mean, rest = whole.chunk(2, dim=1)
    assert 0.2 < float(rest.std() / mean.std()) < 5  # both halves begin alike


def test_the_embedding_has_a_width_of_its_own() -> None:
    network = small(embedding_channels=12)
    assert network.embedding.first.in_features == 12 and network.embedding.second.out_features == 48
    assert network.mid.first.emb.in_features == 48  # type: ignore[union-attr]
    with pytest.raises(UserError, match="network.embedding_channels=7: odd"):
        small(embedding_channels=7)


@pytest.mark.parametrize("position", ["before", "after"])
def test_conditions(position: str) -> None:
    network = small(classes=3, augment_dim=9, label_position=position)
    x, c_noise, _ = inputs(network)
    with torch.no_grad():
        plain = network(x, c_noise)
        assert torch.equal(network(x, c_noise, {"label": torch.tensor([-1, -1])}), plain)
        assert torch.equal(network(x, c_noise, {"augment": torch.zeros(2, 9)}), plain)
        mixed = network(x, c_noise, {"label": torch.tensor([2, -1])})
        assert not torch.equal(mixed[0], plain[0]) and torch.allclose(mixed[1], plain[1], atol=1e-6)
        assert not torch.equal(network(x, c_noise, {"augment": torch.ones(2, 9)}), plain)
    with pytest.raises(UserError, match="label 3"):
        network(x, c_noise, {"label": torch.tensor([3, 0])})


@pytest.mark.parametrize("shape", [(1, 7, 9), (4, 5, 8), (2, 8, 16)])
def test_any_size_and_channels(shape: tuple[int, int, int]) -> None:
    network = small(shape, attention=())
    x, c_noise, _ = inputs(network)
    assert network(x, c_noise).shape == x.shape


def test_memory_formats_agree() -> None:
    network = small(resample="residual")
    x, c_noise, _ = inputs(network)
    with torch.no_grad():
        plain = network(x, c_noise)
        network.to(memory_format=torch.channels_last)
        assert torch.allclose(network(x.to(memory_format=torch.channels_last), c_noise), plain, atol=1e-5)


def test_initialisations() -> None:
    x, c_noise, _ = inputs(small())
    assert small(init="zero_out")(x, c_noise).abs().max() == 0
    assert 0 < small(init="edm")(x, c_noise).abs().max() < 1e-3
    assert small()(x, c_noise).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": (5,)}, "the levels of 1x8x8 have 8, 4"),
        ({"heads": 3}, "does not divide"),
        ({"channels": 9}, "even"),
    ],
)
def test_what_cannot_be_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**options)


def test_convnet_classifies_and_has_layers() -> None:
    network = build(ConvNetSettings(channels=8), (1, 8, 8), 5).eval()
    x = torch.randn(3, 1, 8, 8)
    assert network(x).shape == (3, 5)
    found = taps.read(lambda: network(x), network.layers, list(network.layers))  # type: ignore[arg-type]
    for name, layer in network.layers.items():  # type: ignore[union-attr, operator]
        assert found[name].shape == (3, layer.channels, 8 // layer.stride, 8 // layer.stride)
    with pytest.raises(UserError, match="too many for images"):
        build(ConvNetSettings(stages=5), (1, 8, 8), 5)
