"""A network and a family make a denoiser: formula, taps, encode/decode, precision; and the codec of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from twofold import taps
from twofold.codec import PixelCodec
from twofold.denoiser import Denoiser, NetworkDenoiser, State
from twofold.errors import UserError
from twofold.noise import as_sigma, expand, family
from twofold.settings.noise import EDMNoise, FlowNoise, NoiseSettings, VPNoise
from twofold.taps import Layer

SHAPE = (2, 8, 8)
FAMILIES: dict[str, NoiseSettings] = {
    "eps": VPNoise(),
    "v": VPNoise(predicts="v"),
    "x0": VPNoise(predicts="x0", time_offset=1, time_scale=1e-3),
    "continuous": VPNoise(table="continuous"),
    "edm": EDMNoise(),
    "flow": FlowNoise(),
}
each_family = pytest.mark.parametrize("name", FAMILIES)


class TinyNet(nn.Module):
    """Encoder, middle and decoder of one convolution each, conditioned on c_noise and a label."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_noise, self.embed_label = nn.Linear(1, 4), nn.Embedding(classes + 1, 4)
        self.enter, self.middle = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.leave, self.out = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(4, 2, 3, padding=1)
        self.unused = nn.Identity()
        self.layers = {"enc.0": Layer(self.enter, 4, 1), "mid": Layer(self.middle, 4, 2)}
        self.layers["dec.0"] = Layer(self.leave, 4, 1)
        self.seen: list[tuple[Tensor, Tensor, torch.dtype]] = []

    def encode(self, x: Tensor, c_noise: Tensor, cond: Mapping[str, Tensor] | None = None) -> State:
        label = (cond or {}).get("label", torch.full((len(x),), -1))
        label = torch.where(label < 0, self.embed_label.num_embeddings - 1, label)
        # divided so that c_noise of 0..999 leaves the embedding of moderate size
        emb = self.embed_noise(c_noise[:, None] / 100) + self.embed_label(label)
        first = self.enter(x)
        self.seen.append((x, c_noise, first.dtype))
        middle = self.middle(torch.tanh(first + emb[:, :, None, None].to(first.dtype)))
        return State({"enc.0": first, "mid": middle}, emb)

    def decode(self, state: State) -> Tensor:
        skip = nn.functional.avg_pool2d(state.taps["enc.0"], 2)
        return self.out(torch.tanh(self.leave(torch.cat([state.taps["mid"], skip], 1))))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.decode(self.encode(x, c_noise, cond))


def make(name: str = "edm", **options: Any) -> NetworkDenoiser:
    return NetworkDenoiser(TinyNet(), family(FAMILIES[name]), SHAPE, classes=3, **options).requires_grad_(False)


def inputs(denoiser: NetworkDenoiser, n: int = 4) -> tuple[Tensor, Tensor]:
    low, high = denoiser.sigma_range
    sigma = torch.linspace(0, 1, n, dtype=torch.float64)
    sigma = (low ** (1 - sigma) * high**sigma).clamp(low, high)
    x = torch.randn((n, *SHAPE), generator=torch.Generator().manual_seed(1))
    return x * expand((1 + sigma**2).sqrt(), x), sigma


@each_family
def test_denoise_is_the_formula(name: str) -> None:
    denoiser = make(name)
    x, sigma = inputs(denoiser)
    label = {"label": torch.tensor([0, 1, 2, -1])}
    x0_hat = denoiser.denoise(x, sigma, label)
    c = denoiser.family.coefficients(sigma)
    seen_x, seen_c, _ = denoiser.network.seen[0]
    assert torch.equal(seen_x, expand(c.c_in, x) * x)
    assert torch.equal(seen_c, c.c_noise.float())
    output = denoiser.network(seen_x, seen_c, label)
    assert torch.equal(x0_hat, expand(c.c_skip, x) * x + expand(c.c_out, x) * output)
    assert torch.equal(denoiser(x, sigma, label), output)
    assert denoiser.sigma_range == denoiser.family.sigma_range
    assert denoiser.start_scale(2.0) == denoiser.family.start_scale(2.0)


@each_family
def test_a_network_that_is_right_gives_x0_whatever_it_predicts(name: str) -> None:
    denoiser = make(name).double()
    x0 = inputs(denoiser)[0].double()
    sigma = inputs(denoiser)[1]
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = x0 + expand(sigma, x0) * noise
    target = denoiser.family.target(x0, noise, sigma)
    denoiser.network.forward = lambda *_: target  # type: ignore[assignment, method-assign]
    torch.testing.assert_close(denoiser.denoise(x, sigma), x0, rtol=1e-9, atol=1e-9)


@each_family
def test_decode_of_encode_is_denoise_and_edits_reach_the_decoder(name: str) -> None:
    denoiser = make(name)
    x, sigma = inputs(denoiser)
    cond = {"label": torch.tensor([2, 1, -1, 0])}
    state = denoiser.encode(x, sigma, cond)
    assert torch.equal(denoiser.decode(state), denoiser.denoise(x, sigma, cond))
    state.taps["mid"] = state.taps["mid"] + 1
    assert not torch.equal(denoiser.decode(state), denoiser.denoise(x, sigma, cond))


@each_family
@pytest.mark.parametrize("wanted", [["enc.0"], ["mid"], ["dec.0", "enc.0"], ["mid", "enc.0", "dec.0"]])
def test_features_are_bit_equal_to_the_full_pass_and_stop_early(name: str, wanted: list[str]) -> None:
    denoiser = make(name)
    x, sigma = inputs(denoiser)
    full: dict[str, Tensor] = {}
    ran: list[str] = []

    def watch(key: str) -> None:
        def hook(module: nn.Module, arguments: object, output: Tensor) -> None:
            full.setdefault(key, output)
            ran.append(key)

        denoiser.layers[key].module.register_forward_hook(hook)

    for key in denoiser.layers:
        watch(key)
    denoiser.denoise(x, sigma)
    ran.clear()
    found = denoiser.features(x, sigma, wanted)
    assert list(found) == [key for key in denoiser.layers if key in wanted]
    for key in wanted:
        assert torch.equal(found[key], full[key])
        layer = denoiser.layers[key]
        assert found[key].shape == (4, layer.channels, SHAPE[1] // layer.stride, SHAPE[2] // layer.stride)
    deepest = max(list(denoiser.layers).index(key) for key in wanted)
    assert ran == list(denoiser.layers)[: deepest + 1]


def test_features_leave_no_hooks_behind_even_when_the_network_fails() -> None:
    denoiser = make()
    x, sigma = inputs(denoiser)
    denoiser.features(x, sigma, ["mid"])
    with pytest.raises(RuntimeError):
        denoiser.features(x[:, :1], sigma, ["mid"])  # one channel too few
    assert not any(module._forward_hooks for module in denoiser.modules())
    assert denoiser.denoise(x, sigma).shape == x.shape


def test_unknown_layers_are_named_with_what_there_is() -> None:
    denoiser = make()
    x, sigma = inputs(denoiser)
    with pytest.raises(UserError, match=r"layers: 'enc\.O': no such layer; did you mean 'enc\.0'\?"):
        denoiser.features(x, sigma, ["enc.O"])
    with pytest.raises(UserError, match=r"no such layer; valid: enc\.0, mid, dec\.0"):
        denoiser.features(x, sigma, ["block7"])
    with pytest.raises(UserError, match=r"no layer was asked for; valid: enc\.0"):
        denoiser.features(x, sigma, [])
    assert not denoiser.network.seen  # before any computation


def test_a_layer_that_stays_silent_raises() -> None:
    denoiser = make()
    denoiser.network.layers["ghost"] = Layer(denoiser.network.unused, 4, 1)
    x, sigma = inputs(denoiser)
    with pytest.raises(RuntimeError, match=r"layers \['ghost'\] produced no output"):
        denoiser.features(x, sigma, ["mid", "ghost"])
    with pytest.raises(RuntimeError, match="ghost"):
        taps.read(lambda: None, denoiser.layers, ["ghost"])


@each_family
def test_features_at_sigma_zero(name: str) -> None:
    """x is scaled as the clean image it is, and the network is told the smallest level it knows."""
    denoiser = make(name)
    x0 = inputs(denoiser)[0]
    low = denoiser.sigma_range[0]
    zero = denoiser.features(x0, 0.0, ["mid"])["mid"]
    seen_x, seen_c, _ = denoiser.network.seen[-1]
    assert zero.isfinite().all()
    assert torch.equal(seen_c, denoiser.family.coefficients(as_sigma(low)).c_noise.float().expand(4))
    scale = 2.0 if name == "edm" else 1.0  # c_in(0)
    torch.testing.assert_close(seen_x, scale * x0)
    torch.testing.assert_close(zero, denoiser.features(x0, low, ["mid"])["mid"], rtol=0.1, atol=0.05)
    mixed = denoiser.features(x0, torch.tensor([0.0, low, 0.0, low]), ["mid"])["mid"]
    torch.testing.assert_close(mixed[::2], zero[::2])
    with pytest.raises(UserError, match="outside"):
        denoiser.features(x0, low / 2, ["mid"])


@each_family
def test_one_sigma_for_all_is_one_sigma_each(name: str) -> None:
    denoiser = make(name)
    x, levels = inputs(denoiser)
    for sigma in levels:
        each = sigma.expand(4)
        assert torch.equal(denoiser.denoise(x, sigma), denoiser.denoise(x, each))
        assert torch.equal(denoiser.denoise(x, float(sigma)), denoiser.denoise(x, each))
        assert torch.equal(denoiser.features(x, sigma, ["mid"])["mid"], denoiser.features(x, each, ["mid"])["mid"])


@each_family
def test_off_its_range_it_refuses_before_the_network_runs(name: str) -> None:
    denoiser = make(name)
    x = inputs(denoiser)[0]
    for sigma in (denoiser.sigma_range[0] / 2, denoiser.sigma_range[1] * 2, 0.0):
        for call in (denoiser.denoise, denoiser.encode):
            with pytest.raises(UserError, match="this model was not trained for it"):
                call(x, sigma)
    assert not denoiser.network.seen


@each_family
def test_autocast_is_for_the_network_alone(name: str) -> None:
    denoiser = make(name)
    x, sigma = inputs(denoiser)
    exact = denoiser.denoise(x, sigma)
    denoiser.autocast = torch.bfloat16
    x0_hat = denoiser.denoise(x, sigma)
    seen_x, seen_c, computed = denoiser.network.seen[-1]
    assert computed == torch.bfloat16
    assert seen_x.dtype == seen_c.dtype == x0_hat.dtype == denoiser(x, sigma).dtype == torch.float32
    c = denoiser.family.coefficients(sigma)
    assert torch.equal(seen_x, expand(c.c_in, x) * x)  # not rounded to bf16
    error = (x0_hat - exact).abs() / expand(c.c_out.abs(), x)  # of F
    assert 0 < error.max() < 0.05
    state = denoiser.encode(x, sigma)
    torch.testing.assert_close(denoiser.decode(state), x0_hat)


def test_compiled_networks_denoise_but_are_not_tapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled network is used for denoising only, and is not part of the module (no double parameters)."""
    denoiser = make()
    x, sigma = inputs(denoiser)
    names = set(denoiser.state_dict())
    calls: list[str] = []

    def compiled(network: nn.Module) -> Any:
        def run(*arguments: Any) -> Tensor:
            calls.append("compiled")
            return network(*arguments)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    expected = denoiser.denoise(x, sigma)
    denoiser.compile_network()
    assert torch.equal(denoiser.denoise(x, sigma), expected)
    assert calls == ["compiled"]
    denoiser.features(x, sigma, ["mid"])
    assert calls == ["compiled"]
    assert set(denoiser.state_dict()) == names


def test_networks_without_a_middle_cannot_be_split() -> None:
    class Whole(nn.Module):
        layers: Mapping[str, Layer] = {}

        def forward(self, x: Tensor, c_noise: Tensor, cond: object = None) -> Tensor:
            return x

    denoiser = NetworkDenoiser(Whole(), family(EDMNoise()), SHAPE)
    with pytest.raises(UserError, match="Whole: this network has no encode; it runs only as a whole"):
        denoiser.encode(torch.zeros(1, *SHAPE), 1.0)
    assert denoiser.classes == 0
    assert denoiser.clip
    assert isinstance(denoiser.codec, PixelCodec)


def test_gradients_flow_through_denoising() -> None:
    denoiser = make().requires_grad_(True)
    x, sigma = inputs(denoiser)
    denoiser(x, sigma).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in denoiser.network.enter.parameters())


def test_the_contract_itself_computes_nothing() -> None:
    denoiser, x = Denoiser(), torch.zeros(1, *SHAPE)
    for call in (
        lambda: denoiser.denoise(x, 1.0),
        lambda: denoiser.features(x, 1.0, ["mid"]),
        lambda: denoiser.start_scale(1.0),
    ):
        with pytest.raises(NotImplementedError):
            call()


# -- pixels ------------------------------------------------------------------------------------------------------


def test_every_uint8_level_survives_the_codec() -> None:
    codec, levels = PixelCodec(), torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x0 = codec.encode(levels)
    assert (float(x0.min()), float(x0.max())) == (-1, 1)
    assert torch.equal(codec.decode(x0), levels)
    assert torch.equal(codec.decode(x0.double()), levels)


@given(st.floats(-10, 10))
@settings(max_examples=50, deadline=None)
def test_decode_clamps_and_never_wraps(value: float) -> None:
    level = int(PixelCodec().decode(torch.full((1, 1, 1, 1), value)))
    assert abs(level - min(max((value + 1) * 127.5, 0), 255)) <= 0.5 + 1e-4


def test_encode_takes_uint8_only() -> None:
    with pytest.raises(TypeError, match=r"images must be uint8 \(0..255\), not torch.float32"):
        PixelCodec().encode(torch.zeros(1, 1, 2, 2))


def test_decode_leaves_its_input_alone() -> None:
    x0 = torch.full((1, 1, 1, 1), 0.3)
    PixelCodec().decode(x0)
    assert float(x0) == pytest.approx(0.3)


def test_early_exit_costs_a_third_of_the_published_network() -> None:
    """DDAE's out_6 of the 35.7 M network: at most 0.36 of the FLOPs of a whole pass, and the very same numbers."""
    from unittest.mock import patch

    from torch.utils.flop_counter import FlopCounterMode

    from twofold.run import build
    from twofold.settings.presets import open_preset
    from twofold.settings.resolve import resolve
    from twofold.settings.train import TrainSettings

    settings, _ = resolve(TrainSettings, open_preset("ddae-cifar10-ddpm").layers)
    denoiser = build(settings, (3, 32, 32), [])
    assert isinstance(denoiser, NetworkDenoiser)
    denoiser.eval().requires_grad_(False)
    x = torch.randn(1, 3, 32, 32)
    flops = {}
    # as a GPU computes it: without the rearranged convolutions of a CPU, which make the rest of the pass cheaper
    with patch("torch.compiler.is_compiling", return_value=True):
        for layers in (["out_6"], list(denoiser.layers)):
            with FlopCounterMode(display=False) as counter:
                found = denoiser.features(x, 0.05, layers)
            flops[layers[0]] = (counter.get_total_flops(), found["dec.5"])
    early, whole = flops["out_6"], flops["enc.0"]
    assert early[0] / whole[0] <= 0.36
    assert torch.equal(early[1], whole[1])
