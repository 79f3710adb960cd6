"""Variations of a classifier's inputs, and MixUp: against SciPy, Pillow and the identities they must keep."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy import ndimage, stats
from torch import Tensor

from twofold.data.vary import MIX_DRAWS, VARY_DRAWS, mix, symmetric_beta, vary

# columns of u, in the order of twofold.data.vary
MIRROR_ON, JITTER_ON, CROP_ON, TURN_ON, CONTRAST_ON, SHARPNESS_ON, BRIGHTNESS_ON = range(7)
J_BRIGHTNESS, J_CONTRAST, J_SATURATION, J_HUE, AREA, ASPECT, ACROSS, DOWN, ANGLE = range(7, 16)
CONTRAST, SHARPNESS, BRIGHTNESS = range(16, 19)
ON, OFF = 0.0, 0.999


def draws(n: int = 1, **chosen: float) -> Tensor:
    """Uniforms with which nothing happens, but for what is chosen; amounts are in the middle of their ranges."""
    u = torch.full((n, VARY_DRAWS), OFF, dtype=torch.float64)
    u[:, 7:] = 0.5
    for name, value in chosen.items():
        u[:, globals()[name]] = value
    return u


def factor(value: float, low: float, high: float) -> float:
    """The uniform whose factor is `value`."""
    return (value - low) / (high - low)


def uniforms(n: int, width: int, seed: int) -> Tensor:
    return torch.rand(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pictures(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images in [-1, 1], float64, ends of the range included."""
    values = torch.rand(n, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (2.4 * values - 1.2).clamp(-1, 1)


def smooth(height: int = 24, width: int = 32) -> Tensor:
    """An image (1, 1, H, W) float64 without fine detail."""
    noise = np.random.default_rng(0).standard_normal((height, width))
    blurred = ndimage.gaussian_filter(noise, 3)
    return torch.from_numpy(0.9 * blurred / np.abs(blurred).max())[None, None]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    channels=st.sampled_from([1, 2, 3]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    strength=st.floats(0, 3),
    flip=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_stays_in_range_and_form(
    n: int, channels: int, height: int, width: int, strength: float, flip: bool, dtype: torch.dtype, seed: int
) -> None:
    x0 = pictures(n, channels, height, width, seed).to(dtype)
    before = x0.clone()
    out = vary(x0, uniforms(n, VARY_DRAWS, seed), strength, flip)
    assert out.shape == x0.shape and out.dtype == dtype
    assert out.isfinite().all() and out.abs().max() <= 1
    assert torch.equal(x0, before)  # not in place


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_by_its_own_numbers_only(channels: int) -> None:
    x0, u = pictures(16, channels, 8, 10), uniforms(16, VARY_DRAWS, 3)
    together = vary(x0, u)
    alone = torch.cat([vary(x0[i : i + 1], u[i : i + 1]) for i in range(16)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert sum(not torch.equal(a, b) for a, b in zip(together, x0, strict=True)) > 10


def test_strength_zero_is_the_identity() -> None:
    x0 = pictures(32, 3, 8, 8)
    assert torch.equal(vary(x0, uniforms(32, VARY_DRAWS, 0), strength=0), x0)


def test_inactive_images_come_back_bit_for_bit() -> None:
    x0, u = pictures(8, 3, 9, 9), draws(8)
    u[3, BRIGHTNESS_ON], u[3, BRIGHTNESS] = ON, 0.9
    out = vary(x0, u)
    still = [i for i in range(8) if i != 3]
    assert torch.equal(out[still], x0[still])
    assert not torch.equal(out[3], x0[3])


def test_strength_widens_the_ranges() -> None:
    x0, u = pictures(256, 3, 8, 8), uniforms(256, VARY_DRAWS, 1)
    away = [(vary(x0, u, s, flip=False) - x0).abs().mean().item() for s in (0.05, 0.3, 1.0, 2.0)]
    assert away == sorted(away)
    assert away[0] < 0.15 * away[2]


@pytest.mark.parametrize("channels", [1, 3])
def test_negative_values_survive(channels: int) -> None:
    """The published code clamps [-1, 1] images to [0, 1], in 58 to 68 % of them."""
    x0 = torch.full((512, channels, 6, 6), -0.5)
    x0[..., ::2] = 0.5
    out = vary(x0, uniforms(512, VARY_DRAWS, 5))
    bright = (out >= 0).flatten(1).all(dim=1).double().mean().item()
    assert bright < 0.08


def test_frequencies_are_those_of_the_table() -> None:
    x0, u = pictures(4000, 3, 4, 4), uniforms(4000, VARY_DRAWS, 11)
    for column in (JITTER_ON, CROP_ON, TURN_ON, CONTRAST_ON, SHARPNESS_ON, BRIGHTNESS_ON):
        only = draws(4000)
        only[:, column], only[:, 7:] = u[:, column], u[:, 7:]
        changed = (vary(x0, only) != x0).flatten(1).any(dim=1).double().mean().item()
        assert abs(changed - 0.25) < 0.035, column
    only = draws(4000)
    only[:, MIRROR_ON] = u[:, MIRROR_ON]
    assert abs((vary(x0, only) == x0.flip(-1)).flatten(1).all(dim=1).double().mean().item() - 0.5) < 0.04


def test_flip_only_where_it_is_asked_for() -> None:
    x0, u = pictures(2, 1, 5, 6), draws(2, MIRROR_ON=ON)
    assert torch.equal(vary(x0, u), x0.flip(-1))
    assert torch.equal(vary(x0, u, flip=False), x0)


# -- against Pillow, whose images are of 8 bits ------------------------------------------------------------------------


def as_image(x0: Tensor) -> Image.Image:
    pixels = ((x0[0] + 1) / 2 * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])


def of_image(image: Image.Image) -> Tensor:
    values = torch.from_numpy(np.array(image)).double() / 255 * 2 - 1
    return values.permute(2, 0, 1)[None] if values.ndim == 3 else values[None, None]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [0.6, 1.0, 1.3, 1.8])
@pytest.mark.parametrize(
    ("switch", "amount", "low", "high", "enhance"),
    [
        ("BRIGHTNESS_ON", "BRIGHTNESS", 0.6, 1.8, ImageEnhance.Brightness),
        ("CONTRAST_ON", "CONTRAST", 0.6, 1.8, ImageEnhance.Contrast),
        ("SHARPNESS_ON", "SHARPNESS", 0.4, 2.0, ImageEnhance.Sharpness),
    ],
)
def test_as_pillow(
    switch: str, amount: str, low: float, high: float, enhance: type, value: float, channels: int
) -> None:
    image = as_image(pictures(1, channels, 12, 15))
    out = vary(of_image(image), draws(**{switch: ON, amount: factor(value, low, high)}))
    expected = of_image(enhance(image).enhance(value))
    assert (out - expected).abs().max() < 2.5 * 2 / 255  # Pillow rounds grey, its mean, the blurred image, the result
    assert (out - of_image(image)).abs().max() > 0.1 or value == 1.0


@pytest.mark.parametrize("value", [0.9, 1.1])
def test_saturation_as_pillow(value: float) -> None:
    image = as_image(pictures(1, 3, 12, 15))
    out = vary(of_image(image), draws(JITTER_ON=ON, J_SATURATION=factor(value, 0.9, 1.1)))
    assert (out - of_image(ImageEnhance.Color(image).enhance(value))).abs().max() < 2 * 2 / 255


def test_hue_turns_colours_and_keeps_their_luma() -> None:
    x0 = 0.3 * pictures(1, 3, 6, 6)
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
    out = vary(x0, draws(JITTER_ON=ON, J_HUE=factor(0.05, -0.1, 0.1)))
    torch.testing.assert_close((out * luma).sum(1), (x0 * luma).sum(1), rtol=0, atol=1e-9)
    back = vary(out, draws(JITTER_ON=ON, J_HUE=factor(-0.05, -0.1, 0.1)))
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-9)
    grey = x0[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(vary(grey, draws(JITTER_ON=ON, J_HUE=0.99)), grey, rtol=0, atol=3e-3)
    hues = [colorsys.rgb_to_hsv(*((p[0, :, 0, 0] + 1) / 2).tolist())[0] for p in (x0, out)]
    assert abs(hues[0] - hues[1]) > 0.02


def test_jitter_leaves_grey_images_alone() -> None:
    x0 = pictures(4, 1, 6, 6)
    assert torch.equal(vary(x0, draws(4, JITTER_ON=ON, J_BRIGHTNESS=0.9)), x0)


# -- geometry against SciPy -------------------------------------------------------------------------------------------


def bilinear(x0: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """The image at these places, the edge repeated."""
    return torch.from_numpy(ndimage.map_coordinates(x0[0, 0].numpy(), [rows, columns], order=1, mode="nearest"))


def places(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(y, x) of every pixel from the image's middle."""
    y, x = np.mgrid[:height, :width]
    return y - (height - 1) / 2, x - (width - 1) / 2


@pytest.mark.parametrize("degrees", [-30, -7, 12, 29.9])
def test_rotation_keeps_shapes_on_images_that_are_not_square(degrees: float) -> None:
    x0 = smooth()
    out = vary(x0, draws(TURN_ON=ON, ANGLE=factor(degrees, -30, 30)))
    y, x = places(24, 32)
    a = math.radians(degrees)
    expected = bilinear(x0, a_y := y * math.cos(a) + x * math.sin(a) + 11.5, x * math.cos(a) - y * math.sin(a) + 15.5)
    torch.testing.assert_close(out[0, 0], expected, rtol=0, atol=1e-9)
    assert a_y.min() < -1  # the edge was repeated somewhere


@settings(max_examples=25, deadline=None)
@given(*[st.floats(0, 0.999)] * 4)
def test_crop_is_part_of_the_image(area: float, aspect: float, across: float, down: float) -> None:
    x0 = smooth()
    out = vary(x0, draws(CROP_ON=ON, AREA=area, ASPECT=aspect, ACROSS=across, DOWN=down))
    size, ratio = 0.5 + 0.5 * area, (3 / 4) * (16 / 9) ** aspect
    wide, tall = min(1, math.sqrt(size * ratio)), min(1, math.sqrt(size / ratio))
    y, x = places(24, 32)
    rows = y * tall + 11.5 + (2 * down - 1) * (1 - tall) * 12
    columns = x * wide + 15.5 + (2 * across - 1) * (1 - wide) * 16
    assert rows.min() > -0.5 and rows.max() < 23.5 and columns.min() > -0.5 and columns.max() < 31.5
    torch.testing.assert_close(out[0, 0], bilinear(x0, rows, columns), rtol=0, atol=1e-9)


def test_crop_then_rotation_in_one_interpolation() -> None:
    """Against two interpolations of an image of straight lines, which bilinear interpolation keeps inside."""
    y, x = (torch.from_numpy(v) for v in places(20, 20))
    x0 = (0.05 * x - 0.03 * y)[None, None]
    crop = {"CROP_ON": ON, "AREA": 0.5, "ASPECT": 0.3, "ACROSS": 0.2, "DOWN": 0.7}
    turn = {"TURN_ON": ON, "ANGLE": 0.8}
    once, twice = vary(x0, draws(**crop, **turn)), vary(vary(x0, draws(**crop)), draws(**turn))
    torch.testing.assert_close(once[..., 5:-5, 5:-5], twice[..., 5:-5, 5:-5], rtol=0, atol=1e-9)


# -- MixUp ------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 8), alpha=st.floats(0.05, 20), p=st.floats(0, 1), seed=st.integers(0, 1000))
def test_targets_are_mixed_as_images_are(n: int, alpha: float, p: float, seed: int) -> None:
    x0, u = pictures(n, 1, 2, 3, seed), uniforms(n, MIX_DRAWS, seed)
    marks = torch.eye(n, dtype=torch.float64)
    mixed, shares = mix(x0, marks, u, alpha, p)
    torch.testing.assert_close(shares.sum(1), torch.ones(n, dtype=torch.float64))
    torch.testing.assert_close(mixed.flatten(1), shares @ x0.flatten(1), rtol=0, atol=1e-12)
    assert mixed.abs().max() <= 1 + 1e-12
    if n > 1:
        only_the_next = marks + marks.roll(-1, 0)
        assert (shares[only_the_next == 0] == 0).all()


def test_images_that_are_not_mixed_come_back_bit_for_bit() -> None:
    x0, u = pictures(400, 1, 3, 3).float(), uniforms(400, MIX_DRAWS, 2)
    target = torch.rand(400, 5)
    mixed, targets = mix(x0, target, u)
    alone = u[:, 0] >= 0.5
    assert 150 < alone.sum() < 250
    assert torch.equal(mixed[alone], x0[alone]) and torch.equal(targets[alone], target[alone])
    assert not torch.isclose(mixed[~alone], x0[~alone]).flatten(1).all(dim=1).any()
    nothing = mix(x0, target, u, probability=0)
    assert torch.equal(nothing[0], x0) and torch.equal(nothing[1], target)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 4.0])
def test_shares_have_the_beta_distribution(alpha: float) -> None:
    u = uniforms(20000, 2, 7)
    shares = symmetric_beta(u[:, 0], u[:, 1], alpha).numpy()
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@given(u=st.floats(0, 1, exclude_max=True), v=st.floats(0, 1, exclude_max=True), alpha=st.floats(1e-3, 1e3))
def test_shares_are_finite(u: float, v: float, alpha: float) -> None:
    share = symmetric_beta(torch.tensor([u]).double(), torch.tensor([v]).double(), alpha)
    assert 0 <= share.item() <= 1


def test_wrong_shapes_and_values_are_told() -> None:
    x0 = pictures(2, 1, 3, 3)
    with pytest.raises(ValueError, match=f"need \\(2, {VARY_DRAWS}\\)"):
        vary(x0, torch.rand(2, 3))
    with pytest.raises(ValueError, match="strength -1"):
        vary(x0, draws(2), strength=-1)
    with pytest.raises(ValueError, match="3 targets for 2 images"):
        mix(x0, torch.rand(3, 4), torch.rand(2, MIX_DRAWS))
    with pytest.raises(ValueError, match="alpha 0"):
        mix(x0, torch.rand(2, 4), torch.rand(2, MIX_DRAWS), alpha=0)
