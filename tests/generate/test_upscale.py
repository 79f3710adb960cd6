"""Super-resolution: what the model is given, seeds, tiles against the whole, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twofold import sample
from twofold.codec import PixelCodec
from twofold.denoiser import Denoiser, NetworkDenoiser
from twofold.errors import UserError
from twofold.generate.tiles import ramp, starts
from twofold.generate.upscale import Given, at_once, seed_of, upscale
from twofold.lowres import enlarge
from twofold.networks.unet import UNet
from twofold.noise import EDM, add
from twofold.settings.network import UNetSettings
from twofold.settings.noise import EDMNoise


def model(residual: bool = True, classes: int = 0, factor: Any = 2, channels: int = 1) -> NetworkDenoiser:
    torch.manual_seed(0)
    settings = UNetSettings(
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(),
        classes=classes,
        low_factor=factor,
        low_residual=residual,
    )
    network = UNet(settings, (channels, 8, 8))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return NetworkDenoiser(network, EDM(EDMNoise(sigma_max=5)), (channels, 8, 8), classes).eval().requires_grad_(False)


def lows(n: int, h: int = 4, w: int = 4, channels: int = 1) -> Tensor:
    return torch.randint(0, 256, (n, channels, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


class Local(Denoiser):
    """A denoiser that looks three pixels far: what tiles make must be what the whole makes."""

    def __init__(self) -> None:
        super().__init__()
        self.shape, self.sigma_range, self.codec, self.low_factor = (1, 32, 32), (0.002, 5.0), PixelCodec(), 2
        self.kernel = torch.nn.Parameter(torch.full((1, 2, 7, 7), 1 / 98), requires_grad=False)

    def denoise(self, x: Tensor, sigma: Tensor | float, cond: Any = None) -> Tensor:
        weight = 1 / (1 + torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1) ** 2)
        return F.conv2d(
            torch.cat([weight * x, enlarge(cond["low"], *x.shape[2:])], 1), self.kernel.to(x.dtype), padding=3
        )

    def start_scale(self, sigma: float) -> float:
        return sigma

    def size_problem(self, height: int, width: int) -> str | None:
        return None


def test_an_image_is_the_same_beside_any_others() -> None:
    denoiser, images = model(), lows(5)
    whole = upscale(denoiser, images, [3, 1, 4, 1, 5], steps=3, micro_batch=2)
    assert whole.shape == (5, 1, 8, 8)
    for i, seed in enumerate([3, 1, 4, 1, 5]):
        assert torch.equal(upscale(denoiser, images[i : i + 1], [seed], steps=3, micro_batch=2)[0], whole[i])
    other = upscale(denoiser, images[:1], [4], steps=3, micro_batch=2)
    assert not torch.equal(other[0], whole[0])


def test_the_low_image_counts_and_may_be_given_enlarged() -> None:
    denoiser, x = model(), torch.randn(2, 1, 8, 8)
    low = PixelCodec().encode(lows(2))
    found = denoiser.denoise(x, 0.5, {"low": low})
    assert torch.equal(found, denoiser.denoise(x, 0.5, {"low": enlarge(low, 8, 8)}))
    assert not torch.allclose(found, denoiser.denoise(x, 0.5, {"low": -low}), atol=1e-3)


def test_the_residual_is_about_what_is_missing() -> None:
    """A network that says nothing leaves c_skip (x - bicubic) + bicubic; the other one c_skip x."""
    low, x = PixelCodec().encode(lows(1)), torch.randn(1, 1, 8, 8)
    large, skip = enlarge(low, 8, 8), 0.25 / (0.25 + 0.25)
    for residual in (True, False):
        denoiser = model(residual)
        with torch.no_grad():
            denoiser.network.out.weight.zero_()
            denoiser.network.out.bias.zero_()
        expected = large + skip * (x - large) if residual else skip * x
        torch.testing.assert_close(denoiser.denoise(x, 0.5, {"low": low}), expected)


@pytest.mark.parametrize("residual", [True, False])
def test_encode_and_decode_are_denoise(residual: bool) -> None:
    denoiser, x, cond = model(residual), torch.randn(2, 1, 8, 8), {"low": PixelCodec().encode(lows(2))}
    assert torch.equal(denoiser.decode(denoiser.encode(x, 0.7, cond)), denoiser.denoise(x, 0.7, cond))
    mid = denoiser.features(x, 0.7, ["mid"], cond)["mid"]
    assert torch.equal(mid, denoiser.encode(x, 0.7, cond).taps["mid"])


@pytest.mark.parametrize("residual", [True, False])
def test_the_loss_is_zero_where_x0_is_found(residual: bool) -> None:
    """F's target is in the frame that the network works in: with it x0_hat is x0."""
    denoiser, g = model(residual), torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 1, 8, 8, generator=g, dtype=torch.float64) for _ in range(2))
    sigma, cond = torch.tensor([0.3, 2.0], dtype=torch.float64), {"low": PixelCodec().encode(lows(2)).double()}
    x = add(x0, noise, sigma)
    target = denoiser.family.target(denoiser.less(x0, cond), noise, sigma)
    c = denoiser.family.coefficients(sigma)
    torch.testing.assert_close(denoiser._combine(x, c, target, cond), x0)


def test_tiles_are_the_whole() -> None:
    """Where the denoiser looks less far than tiles overlap, down to rounding; the places where tiles meet included."""
    denoiser, images = Local(), lows(2, 45, 31)
    low = PixelCodec().encode(images)
    x = torch.randn(2, 1, 90, 62, dtype=torch.float64)
    whole, tiled = Given(denoiser, low), Given(denoiser, low, (32, 32))
    apart = (whole.denoise(x, 0.5) - tiled.denoise(x, 0.5)).abs()
    inner = starts(90, 32)[1:]
    assert len(inner) >= 3 and apart.mean() < 2e-3  # only what lies at a tile's own edge, where it weighs least
    assert apart.max() < 0.05
    how = {"steps": 4, "seeds": [1, 2]}
    levels = upscale(denoiser, images, tile=0, **how).int() - upscale(denoiser, images, tile=32, **how).int()
    assert levels.abs().float().mean() < 0.5


def test_a_large_image_has_no_seams() -> None:
    """Of a U-Net tiles are not exactly the whole (its norms are over all places); they meet like elsewhere."""
    images = torch.full((1, 1, 32, 32), 140, dtype=torch.uint8)
    found = upscale(model(), images, [0], tile=32, steps=1, sigma_max=0.01)[0, 0].double()
    step = (found[:, 1:] - found[:, :-1]).abs().mean(0)
    begins = starts(64, 32)[1:]
    assert begins and max(float(step[k - 1]) for k in begins) < 3 * float(step[4:-4].mean()) + 1


def test_tiles_cover_everything() -> None:
    for length in (1, 7, 16, 33, 100, 257):
        for tile in (8, 16, 33, 64):
            places = starts(length, tile)
            side = min(tile, length)
            assert places[0] == 0 and places[-1] + side == length and places == sorted(set(places))
            assert all(b - a < side for a, b in pairwise(places))
    weights = ramp((16, 16), (True, False))
    assert (weights > 0).all() and torch.equal(weights, weights.flip(0)) and torch.equal(weights[:, 0], weights[:, 9])


def test_labels_and_guidance() -> None:
    denoiser, images = model(classes=3), lows(2)
    found = {g: upscale(denoiser, images, [1, 2], 1, g, steps=2) for g in (0.0, 1.0, 2.0)}
    assert not torch.equal(found[0.0], found[1.0]) and not torch.equal(found[1.0], found[2.0])
    assert torch.equal(found[0.0], upscale(denoiser, images, [1, 2], steps=2))


def test_seeds_belong_to_images() -> None:
    a, b = lows(2)
    assert seed_of(a, 0) == seed_of(a.clone(), 0) != seed_of(b, 0) and seed_of(a, 0) != seed_of(a, 1)
    assert at_once(32, 32) == 64 and at_once(256, 256) == at_once(4096, 4096) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: sample(m, [1]), r"this model: is for super-resolution alone; use `twofold upscale RUN IMAGES`"),
        (lambda m: m.denoise(torch.zeros(1, 1, 8, 8), 1.0), "was given no low-resolution image"),
        (lambda m: m.features(torch.zeros(1, 1, 8, 8), 1.0, ["mid"]), "was given no low-resolution image"),
        (lambda m: upscale(m, lows(1, channels=3), [1]), "these images have 3 channels, the model's have 1"),
        (lambda m: upscale(m, lows(1), [1], label=0), "this model is unconditional"),
        (lambda m: upscale(model(factor=None), lows(1), [1]), "is no super-resolution model"),
        (lambda m: UNet(UNetSettings(low_factor=4, attention=()), (1, 30, 32)), "30x32: is no multiple of 4"),
    ],
)
def test_refused(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(model())
