"""The diffusion transformer: an independent computation of it, its interface, any size, gradients everywhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from twofold import taps
from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.networks import build
from twofold.networks.dit import DiT, positions
from twofold.noise import family
from twofold.settings.network import DiTSettings, UNetSettings
from twofold.settings.noise import EDMNoise, VPNoise

SMALL: dict[str, Any] = {"patch": 2, "width": 24, "depth": 3, "heads": 3, "classes": 3, "embedding_channels": 16}
XL = {"patch": 2, "width": 1152, "depth": 28, "heads": 16, "classes": 1000, "learned_variance": True}


def small(shape: tuple[int, int, int] = (2, 8, 8), random: bool = True, **options: Any) -> DiT:
    """random: also what begins at zero, so that every part shows in the output."""
    torch.manual_seed(0)
    network = DiT(DiTSettings(**{**SMALL, **options}), shape).eval()
    if random:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(std=0.2)
    return network


def by_hand(network: DiT, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """The same from the weights alone, one image, one token and one head at a time."""
    w, s = network.state_dict(), network.settings
    h, width = x.shape[2] // s.patch, x.shape[3] // s.patch

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(value: Tensor, eps: float) -> Tensor:
        return (value - value.mean(-1, keepdim=True)) / (value.var(-1, correction=0, keepdim=True) + eps).sqrt()

    images = []
    for image, time, index in zip(x, t, label.tolist(), strict=True):
        angle = float(time) * torch.tensor([10000 ** (-i / 8) for i in range(8)])
        emb = linear("embedders.0.second", F.silu(linear("embedders.0.first", torch.cat([angle.cos(), angle.sin()]))))
        emb = F.silu(emb + w["embedders.0.label.weight"][index])
        tokens = []
        for row in range(h):
            for column in range(width):
                square = image[:, row * s.patch : (row + 1) * s.patch, column * s.patch : (column + 1) * s.patch]
                token = (w["stem.weight"] * square).sum((1, 2, 3)) + w["stem.bias"]
                place = [column / 10000 ** (i / 6) for i in range(6)], [row / 10000 ** (i / 6) for i in range(6)]
                waves = [f(a) for angles in place for f in (math.sin, math.cos) for a in angles]
                tokens.append(token + torch.tensor(waves))
        z = torch.stack(tokens)
        for k in range(s.depth):
            name, d = f"blocks.{k}", s.width // s.heads
            m = linear(f"{name}.modulation", emb).view(6, -1)  # shift, scale, gate of attention; of the MLP
            q, key, v = linear(f"{name}.attention.qkv", norm(z, s.norm_eps) * (1 + m[1]) + m[0]).split(s.width, 1)
            heads = [slice(i * d, (i + 1) * d) for i in range(s.heads)]
            seen = [(q[:, i] @ key[:, i].T / d**0.5).softmax(1) @ v[:, i] for i in heads]
            z = z + m[2] * linear(f"{name}.attention.proj", torch.cat(seen, 1))
            hidden = linear(f"{name}.fc1", norm(z, s.mlp_norm_eps or s.norm_eps) * (1 + m[4]) + m[3])
            hidden = hidden / 2 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
            z = z + m[5] * linear(f"{name}.fc2", hidden)
        shift, scale = linear("head.modulation", emb).chunk(2)
        pixels = linear("head.out", norm(z, s.norm_eps) * (1 + scale) + shift)
        out = torch.zeros(pixels.shape[1] // s.patch**2, *x.shape[2:])
        for n, token in enumerate(pixels.view(h * width, s.patch, s.patch, -1)):
            row, column = n // width * s.patch, n % width * s.patch
            out[:, row : row + s.patch, column : column + s.patch] = token.permute(2, 0, 1)
        images.append(out)
    return torch.stack(images)


@pytest.mark.parametrize("options", [{}, {"learned_variance": True, "mlp_norm_eps": 1e-2, "mlp_ratio": 2.5}])
def test_it_computes_what_the_paper_says(options: dict[str, Any]) -> None:
    network = small((2, 4, 8), **options)
    x, t, label = torch.randn(2, 2, 4, 8), torch.tensor([0.0, 321.5]), torch.tensor([1, -1])
    with torch.no_grad():
        expected = by_hand(network, x, t, torch.where(label < 0, 3, label))
        found = network(x, t, {"label": label})
    assert found.shape == (2, 4 if options else 2, 4, 8)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "patch": st.sampled_from([1, 2, 4]),
            "classes": st.sampled_from([0, 3]),
            "learned_variance": st.booleans(),
            "embedders": st.sampled_from(["shared", "each"]),
            "dropout": st.sampled_from([0.0, 0.5]),
        }
    )
)
def test_every_option_set_trains_every_parameter(options: dict[str, Any]) -> None:
    network = small(**options).train()
    x = torch.randn(2, 2, 8, 8)
    output = network(x, torch.rand(2), {"label": torch.tensor([1, -1])} if options["classes"] else None)
    assert output.shape == (2, 4 if options["learned_variance"] else 2, 8, 8)
    output.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_it_begins_as_the_identity_and_says_nothing() -> None:
    network = small(random=False)
    x, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    with torch.no_grad():
        maps = taps.read(lambda: network(x, t), network.layers, ["block.0", "block.2"])
        assert torch.equal(maps["block.0"], maps["block.2"]) and float(maps["block.0"].std()) > 0.1
        assert float(network(x, t).abs().max()) == 0


def test_layers_are_maps_in_their_places() -> None:
    network = small((2, 8, 12))
    x, t = torch.randn(2, 2, 8, 12), torch.rand(2)
    with torch.no_grad():
        full = taps.read(lambda: network(x, t), network.layers, list(network.layers))
        assert list(full) == ["block.0", "block.1", "block.2"]
        early = taps.read(lambda: network(x, t), network.layers, ["layer-1"], network.aliases)
        for name, layer in network.layers.items():
            assert full[name].shape == (2, layer.channels, 8 // layer.stride, 12 // layer.stride)
        assert torch.equal(early["layer-1"], full["block.1"]) and list(early) == ["block.1", "layer-1"]
        # a change of one patch, seen before attention mixes, stays in its place
        changed = x.clone()
        changed[:, :, 2:4, 6:8] += 1
        where = (network._tokens(changed) != network._tokens(x)).any(1)
    assert where[:, 1, 3].all() and int(where.sum()) == 2


def test_conditions() -> None:
    network, free = small(), small(classes=0)
    x, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    with torch.no_grad():
        plain = network(x, t)
        assert torch.equal(network(x, t, {"label": torch.tensor([-1, -1])}), plain)
        mixed = network(x, t, {"label": torch.tensor([2, -1])})
        assert not torch.allclose(mixed[0], plain[0]) and torch.equal(mixed[1], plain[1])
        assert torch.equal(free(x, t, {"label": torch.tensor([-1, -1])}), free(x, t))
    with pytest.raises(UserError, match="label 3: the network knows 3 classes"):
        network(x, t, {"label": torch.tensor([3, 0])})
    with pytest.raises(UserError, match="label 0: the network knows 0 classes"):
        free(x, t, {"label": torch.tensor([0, 0])})


def test_other_sizes_lie_over_the_same_range() -> None:
    """Twice the grid: every second row and column is where one was; the corner (0, 0) is the same."""
    fine, coarse = positions(8, (8, 4), (4, 4)).view(8, 4, 8), positions(8, (4, 4), (4, 4)).view(4, 4, 8)
    torch.testing.assert_close(fine[::2], coarse)
    assert torch.equal(fine[0, 0], coarse[0, 0])
    network = small()
    with torch.no_grad():
        for shape in ((2, 2, 4, 4), (2, 2, 8, 16), (2, 2, 16, 8)):
            assert network(torch.randn(shape), torch.rand(2)).shape == shape


def test_sizes_are_refused_with_the_reason() -> None:
    network, unet = small(), build(UNetSettings(channels=8, multipliers=(1, 2), attention=(4,)), (1, 8, 8))
    assert network.size_problem(16, 8) is None and unet.size_problem(9, 7) is None
    assert network.size_problem(8, 9) == "a DiT with patches of 2 needs multiples of 2"
    with pytest.raises(UserError, match="size 8x9: a DiT with patches of 2 needs multiples of 2"):
        network(torch.randn(1, 2, 8, 9), torch.rand(1))
    with pytest.raises(UserError, match="size 7x8: .*choose another size or network.patch"):
        small((1, 7, 8))


@pytest.mark.parametrize("changes", [{"heads": 5}, {"width": 30}, {"embedding_channels": 15}])
def test_widths_that_do_not_divide(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="is not a multiple of|is odd"):
        DiTSettings(**{**SMALL, **changes})


def test_the_published_count() -> None:
    """675,129,632 with the table of positions, which is computed here: 256 tokens of 1152."""
    with torch.device("meta"):
        count = sum(p.numel() for p in DiT(DiTSettings(**XL), (4, 32, 32)).parameters())
    assert count + 256 * 1152 == 675_129_632


@pytest.mark.parametrize("noise", [VPNoise(), EDMNoise()], ids=["vp", "edm"])
def test_as_a_denoiser(noise: Any) -> None:
    """float64 stays float64, bfloat16 is near, channels-last changes nothing, learned variances stay out of x0_hat."""
    network = small((1, 8, 8), learned_variance=True)
    model = NetworkDenoiser(network, family(noise), (1, 8, 8), 3)
    x, label = torch.randn(2, 1, 8, 8), {"label": torch.tensor([0, 2])}
    with torch.no_grad():
        exact = model.denoise(x, 0.5, label)
        assert exact.shape == x.shape and model.learns_variance
        model.autocast = torch.bfloat16
        torch.testing.assert_close(model.denoise(x, 0.5, label), exact, rtol=0.1, atol=0.1)
        model.autocast = None
        torch.testing.assert_close(
            model.to(memory_format=torch.channels_last).denoise(x, 0.5, label), exact, rtol=1e-5, atol=1e-5
        )
        precise = model.double().denoise(x.double(), 0.5, label)
    assert precise.dtype == torch.float64
    torch.testing.assert_close(precise.float(), exact, rtol=1e-4, atol=1e-4)
