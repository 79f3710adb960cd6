"""The U-ViT: an independent computation of it, published counts, its interface, any size, gradients everywhere."""

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
from twofold.networks.uvit import UViT
from twofold.noise import family
from twofold.settings.network import UViTSettings
from twofold.settings.noise import EDMNoise, VPNoise

SMALL: dict[str, Any] = {"patch": 2, "width": 24, "depth": 4, "heads": 3, "classes": 3}
PUBLISHED = {  # name: (shape, options, parameters)
    "S/2 of CIFAR-10": ((3, 32, 32), {"classes": 0}, 44_255_328),
    "M/2": ((4, 32, 32), {"width": 768, "depth": 16, "heads": 12}, 130_891_940),
    "L/2": ((4, 32, 32), {"width": 1024, "depth": 20, "heads": 16}, 286_763_172),
    "H/2": ((4, 32, 32), {"width": 1152, "depth": 28, "heads": 16, "final_conv": False}, 500_832_016),
    "L/4 at 512": ((4, 64, 64), {"width": 1024, "depth": 20, "heads": 16, "patch": 4}, 286_861_524),
}
LARGE = {
    "stem": 17_408,
    "label": 1_025_024,
    "positions": 258 * 1024,
    "enc": 125_931_520,
    "mid": 12_593_152,
    "dec": 146_913_280,
    "norm": 2_048,
    "out": 16_400,
    "smooth": 148,
}


def small(shape: tuple[int, int, int] = (2, 8, 8), random: bool = True, **options: Any) -> UViT:
    """random: far from how it begins, so that every part shows in the output."""
    torch.manual_seed(0)
    network = UViT(UViTSettings(**{**SMALL, **options}), shape).eval()
    if random:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(std=0.2)
    return network


def by_hand(network: UViT, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """The same from the weights alone, one image, one token and one head at a time."""
    w, s = network.state_dict(), network.settings
    h, width = x.shape[2] // s.patch, x.shape[3] // s.patch

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))

    def norm(name: str, z: Tensor) -> Tensor:
        z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + s.norm_eps).sqrt()
        return z * w[f"{name}.weight"] + w[f"{name}.bias"]

    def block(name: str, z: Tensor) -> Tensor:
        d = s.width // s.heads
        q, key, v = linear(f"{name}.attention.qkv", norm(f"{name}.norm1", z)).split(s.width, 1)
        heads = [slice(i * d, (i + 1) * d) for i in range(s.heads)]
        seen = [(q[:, i] @ key[:, i].T / d**0.5).softmax(1) @ v[:, i] for i in heads]
        z = z + linear(f"{name}.attention.proj", torch.cat(seen, 1))
        hidden = linear(f"{name}.fc1", norm(f"{name}.norm2", z))
        hidden = hidden / 2 * (1 + torch.erf(hidden / 2**0.5))
        return z + linear(f"{name}.fc2", hidden)

    def joined(name: str, z: Tensor, early: Tensor) -> Tensor:
        ways = {
            "concat": lambda: linear(name, torch.cat([z, early], 1)),
            "add": lambda: z + early,
            "linear_add": lambda: z + linear(name, early),
            "add_linear": lambda: linear(name, z + early),
            "none": lambda: z,
        }
        return ways[s.skip]()

    images = []
    for image, time, index in zip(x, t, label.tolist(), strict=True):
        half = s.width // 2
        angle = float(time) * torch.tensor([10000 ** (-i / half) for i in range(half)])
        token = torch.cat([angle.cos(), angle.sin()])
        if s.time_mlp:
            token = linear("time.second", F.silu(linear("time.first", token)))
        tokens = [w["label.weight"][index], token] if s.classes else [token]
        for row in range(h):
            for column in range(width):
                square = image[:, row * s.patch : (row + 1) * s.patch, column * s.patch : (column + 1) * s.patch]
                tokens.append((w["stem.weight"] * square).sum((1, 2, 3)) + w["stem.bias"])
        z = torch.stack(tokens) + w["positions"][0]
        early = []
        for k in range(s.depth // 2):
            z = block(f"enc.{k}", z)
            early.append(z)
        z = block("mid", z)
        for k in range(s.depth // 2):
            z = block(f"dec.{k}", joined(f"dec.{k}.skip", z, early.pop()))
        pixels = linear("out", norm("norm", z))[2 if s.classes else 1 :]
        out = torch.zeros_like(image)
        for n, value in enumerate(pixels.view(h * width, s.patch, s.patch, -1)):
            row, column = n // width * s.patch, n % width * s.patch
            out[:, row : row + s.patch, column : column + s.patch] = value.permute(2, 0, 1)
        if s.final_conv:
            near = F.pad(out, (1, 1, 1, 1))
            shifts = [near[:, i : i + out.shape[1], j : j + out.shape[2]] for i in range(3) for j in range(3)]
            kernel = w["smooth.weight"].flatten(2)  # (C, C, 9)
            out = torch.einsum("dck,kchw->dhw", kernel, torch.stack(shifts)) + w["smooth.bias"][:, None, None]
        images.append(out)
    return torch.stack(images)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"classes": 0, "final_conv": False, "patch": 1},
        {"qkv_bias": True, "time_mlp": True, "mlp_ratio": 2.5, "norm_eps": 1e-2},
        *({"skip": skip} for skip in ("add", "linear_add", "add_linear", "none")),
    ],
    ids=str,
)
def test_it_computes_what_the_paper_says(options: dict[str, Any]) -> None:
    network = small((2, 4, 8), **options)
    x, t, label = torch.randn(2, 2, 4, 8), torch.tensor([0.0, 321.5]), torch.tensor([1, -1])
    with torch.no_grad():
        expected = by_hand(network, x, t, torch.where(label < 0, 3, label))
        found = network(x, t, {"label": label} if network.classes else None)
    assert found.shape == x.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_counts(name: str) -> None:
    shape, options, expected = PUBLISHED[name]
    with torch.device("meta"):
        network = UViT(UViTSettings(**{"classes": 1000, **options}), shape)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_the_published_count_of_every_part() -> None:
    with torch.device("meta"):
        network = UViT(UViTSettings(width=1024, depth=20, heads=16, classes=1000), (4, 32, 32))
    found: dict[str, int] = dict.fromkeys(LARGE, 0)
    for name, parameter in network.named_parameters():
        found[name.split(".")[0]] += parameter.numel()
    assert found == LARGE


@settings(max_examples=15, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "patch": st.sampled_from([1, 2, 4]),
            "classes": st.sampled_from([0, 3]),
            "skip": st.sampled_from(["concat", "add", "linear_add", "add_linear", "none"]),
            "time_mlp": st.booleans(),
            "final_conv": st.booleans(),
            "qkv_bias": st.booleans(),
            "checkpoint": st.booleans(),
            "dropout": st.sampled_from([0.0, 0.5]),
        }
    )
)
def test_every_option_set_trains_every_parameter(options: dict[str, Any]) -> None:
    network = small(**options).train()
    x = torch.randn(2, 2, 8, 8)
    output = network(x, torch.rand(2), {"label": torch.tensor([1, -1])} if options["classes"] else None)
    assert output.shape == x.shape
    output.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("std", [0.02, 0.1])
def test_it_begins_as_published_but_for_the_labels(std: float) -> None:
    network = UViT(UViTSettings(patch=2, width=64, depth=4, heads=4, classes=200, init_std=std), (3, 16, 16))
    for name, parameter in network.named_parameters():
        if name.startswith(("stem", "smooth")):
            continue
        if parameter.ndim == 1:
            assert bool((parameter == float("norm" in name and name.endswith("weight"))).all()), name
        else:
            value = parameter.detach()
            expected = 0.02 if name in ("positions", "label.weight") else std
            assert float(value.std()) == pytest.approx(expected, rel=0.1), name
            assert float(value.abs().max()) < 10 * expected, name


def test_layers_are_maps_in_their_places() -> None:
    network = small((2, 8, 12))
    x, t = torch.randn(2, 2, 8, 12), torch.rand(2)
    with torch.no_grad():
        full = taps.read(lambda: network(x, t), network.layers, list(network.layers))
        assert list(full) == ["enc.0", "enc.1", "mid", "dec.0", "dec.1"]
        wanted = ["mid_block", "in_blocks.1", "out_blocks.0"]
        early = taps.read(lambda: network(x, t), network.layers, wanted, network.aliases)
        assert list(early) == ["enc.1", "mid", "dec.0", *wanted]
        for name, layer in network.layers.items():
            assert full[name].shape == (2, layer.channels, 8 // layer.stride, 12 // layer.stride)
            if name in early:
                assert torch.equal(early[name], full[name])
        # a change of one patch is largest in its place
        changed = x.clone()
        changed[:, :, 2:4, 6:8] += 1
        other = taps.read(lambda: network(changed, t), network.layers, ["enc.0"])["enc.0"]
        moved = (other - full["enc.0"]).norm(dim=1).flatten(1)
    assert moved.argmax(1).tolist() == [1 * 6 + 3] * 2


def test_nothing_runs_after_the_deepest_layer_wanted() -> None:
    network, ran = small(), []
    for name, block in [*network.enc.named_children(), ("mid", network.mid), *network.dec.named_children()]:
        block.register_forward_hook(lambda *_, name=name: ran.append(name))
    taps.read(lambda: network(torch.randn(1, 2, 8, 8), torch.rand(1)), network.layers, ["mid"])
    assert ran == ["0", "1", "mid"]


@settings(max_examples=10, deadline=None)
@given(
    skip=st.sampled_from(["concat", "add", "none"]),
    classes=st.sampled_from([0, 3]),
    size=st.sampled_from([(8, 8), (4, 12)]),
    half=st.booleans(),
)
def test_encode_and_decode_are_the_forward_pass(skip: str, classes: int, size: tuple[int, int], half: bool) -> None:
    network = small(skip=skip, classes=classes)
    x, t, cond = torch.randn(2, 2, *size), torch.rand(2), {"label": torch.tensor([classes - 1, -1])}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        state = network.encode(x, t, cond)
        assert list(state.taps) == ["enc.0", "enc.1", "mid"]
        shapes = {tuple(h.shape) for h in state.taps.values()}
        assert shapes == {(2, 24, size[0] // 2, size[1] // 2)} and state.emb.shape == (2, 24 * (1 + bool(classes)))
        assert torch.equal(network.decode(state), network(x, t, cond))
        maps = taps.read(lambda: network(x, t, cond), network.layers, ["enc.0", "enc.1", "mid"])
        assert all(torch.equal(state.taps[name], maps[name]) for name in maps)


@pytest.mark.parametrize("name", ["enc.0", "enc.1", "mid"])
def test_an_edited_map_changes_what_the_decoder_sees(name: str) -> None:
    network = small()
    state = network.encode(torch.randn(1, 2, 8, 8), torch.rand(1))
    plain = network.decode(state)
    state.taps[name] = state.taps[name].detach().requires_grad_()
    network.decode(state).square().sum().backward()
    gradient = state.taps[name].grad
    assert gradient is not None and float(gradient.abs().min()) > 0
    state.taps[name] = torch.zeros_like(state.taps[name])
    assert not torch.allclose(network.decode(state), plain)


def test_conditions() -> None:
    network, free = small(), small(classes=0)
    x, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    with torch.no_grad():
        plain = network(x, t)
        assert torch.equal(network(x, t, {"label": torch.tensor([-1, -1])}), plain)
        mixed = network(x, t, {"label": torch.tensor([2, -1])})
        assert not torch.allclose(mixed[0], plain[0]) and torch.equal(mixed[1], plain[1])
        network.label.weight[-1] += 1  # type: ignore[union-attr]
        assert not torch.allclose(network(x, t), plain)  # the last row is "none"
        assert torch.equal(free(x, t, {"label": torch.tensor([-1, -1])}), free(x, t))
    with pytest.raises(UserError, match="label 3: the network knows 3 classes"):
        network(x, t, {"label": torch.tensor([3, 0])})
    with pytest.raises(UserError, match="label 0: the network knows 0 classes"):
        free(x, t, {"label": torch.tensor([0, 0])})


def test_checkpointing_changes_nothing_but_what_is_kept() -> None:
    """The same output, gradients and dropout, for fewer saved tensors."""
    x, t, found = torch.randn(4, 2, 8, 8), torch.rand(4), {}
    for checkpoint in (False, True):
        network, kept = small(checkpoint=checkpoint, dropout=0.3).train(), []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda z, kept=kept: kept.append(z.nbytes) or z, lambda z: z):
            output = network(x, t)
        output.square().sum().backward()
        found[checkpoint] = output, [p.grad for p in network.parameters()], sum(kept)
    assert torch.equal(found[True][0], found[False][0])
    for one, other in zip(found[True][1], found[False][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert found[True][2] < 0.4 * found[False][2]


def test_other_sizes_lie_over_the_same_range() -> None:
    """A table that is linear in the row stays so, away from the border, and what is no patch stays as it is."""
    network = small((2, 8, 8))
    with torch.no_grad():
        network.positions.zero_()
        network.positions[:, :2] = 7.0
        network._map(network.positions, network.grid)[:] = torch.arange(4.0)[:, None]
        assert network._positions((4, 4)) is network.positions
        table = network._positions((8, 4))
        assert table.shape == (1, 2 + 32, 24) and bool((table[:, :2] == 7).all())
        rows = network._map(table, (8, 4))[0, 0, :, 0]
        torch.testing.assert_close(rows[3:5], torch.tensor([1.25, 1.75]), rtol=0, atol=0.05)
        for shape in ((2, 2, 4, 4), (2, 2, 8, 16), (2, 2, 16, 8)):
            assert network(torch.randn(shape), torch.rand(2)).shape == shape


def test_sizes_are_refused_with_the_reason() -> None:
    network = small()
    assert network.size_problem(16, 8) is None
    assert network.size_problem(8, 9) == "a U-ViT with patches of 2 needs multiples of 2"
    with pytest.raises(UserError, match="size 8x9: a U-ViT with patches of 2 needs multiples of 2"):
        network(torch.randn(1, 2, 8, 9), torch.rand(1))
    with pytest.raises(UserError, match="size 7x8: .*choose another size or network.patch"):
        small((1, 7, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "width=24 is not a multiple of heads=5"),
        ({"width": 15, "heads": 3}, "width=15 is not a multiple of 2"),
        ({"depth": 5}, "depth=5 is odd; half of the blocks stand on either side"),
    ],
)
def test_what_does_not_divide(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        UViTSettings(**{**SMALL, **changes})


@pytest.mark.parametrize("noise", [VPNoise(table="continuous", t_min=1e-4), EDMNoise()], ids=["vp", "edm"])
def test_as_a_denoiser(noise: Any) -> None:
    """float64 stays float64, bfloat16 is near, channels-last changes nothing, the halves make the whole."""
    network = build(UViTSettings(**SMALL), (1, 8, 8), 3)
    model = NetworkDenoiser(network.eval(), family(noise), (1, 8, 8), 3)
    x, label = torch.randn(2, 1, 8, 8), {"label": torch.tensor([0, 2])}
    with torch.no_grad():
        exact = model.denoise(x, 0.5, label)
        assert torch.equal(model.decode(model.encode(x, 0.5, label)), exact) and not model.learns_variance
        assert model.features(x, 0.0, ["mid"])["mid"].shape == (2, 24, 4, 4)
        model.autocast = torch.bfloat16
        torch.testing.assert_close(model.denoise(x, 0.5, label), exact, rtol=0.1, atol=0.1)
        model.autocast = None
        torch.testing.assert_close(
            model.to(memory_format=torch.channels_last).denoise(x, 0.5, label), exact, rtol=1e-5, atol=1e-5
        )
        precise = model.double().denoise(x.double(), 0.5, label)
    assert precise.dtype == torch.float64
    torch.testing.assert_close(precise.float(), exact, rtol=1e-4, atol=1e-4)


def test_attention_is_in_the_dtype_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision stays half: only then an accelerator has a fast kernel for it."""
    from twofold.networks import dit

    seen = []
    attend = dit.attend
    monkeypatch.setattr(dit, "attend", lambda q, k, v: seen.append((q.dtype, k.dtype, v.dtype)) or attend(q, k, v))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        small()(torch.randn(1, 2, 8, 8), torch.rand(1))
    assert seen == [(torch.bfloat16,) * 3] * 5


def test_the_time_token_tells_levels_apart() -> None:
    """Of 999 t, so that t = 1e-4 and t = 1e-3 are about 0.1 and 1: both in reach of the fastest wave."""
    f = family(VPNoise(table="continuous", t_min=1e-4))
    sigma = torch.tensor([f.sigma_range[0], math.sqrt(math.expm1(0.1 * 1e-3 + 9.95 * 1e-6)), f.sigma_range[1]])
    assert f.coefficients(sigma.double()).c_noise.tolist() == pytest.approx([0.0999, 0.999, 999.0], rel=1e-4)
