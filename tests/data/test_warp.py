"""The augmentation that moves an image with its mask and its points."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import kstest, norm
from torch import Tensor

from twofold.data.colour import COLOUR_DRAWS, distort
from twofold.data.transform import VOID
from twofold.data.warp import GEOMETRY, TRIES, WARP_DRAWS, drawn_scale, drawn_turn, warp
from twofold.settings.warp import WarpSettings

WFLW = WarpSettings(
    turn=30,
    turn_distribution="normal",
    turn_probability=0.6,
    scale=(0.75, 1.25),
    scale_distribution="normal",
)


def draws(images: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((images, WARP_DRAWS)))


def given_things(images: int, height: int = 12, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(1)
    x0 = torch.from_numpy(rng.uniform(-1, 1, (images, 3, height, width)).astype(np.float32))
    mask = torch.from_numpy(rng.integers(0, 5, (images, height, width)).astype(np.uint8))
    points = torch.from_numpy((rng.random((images, 6, 2)) * [width - 1, height - 1]).astype(np.float32))
    points[:, 5] = math.nan
    return x0, mask, points


@pytest.mark.parametrize("images", [0, 3])
def test_by_default_nothing_changes(images: int) -> None:
    x0, mask, points = given_things(images)
    points = points * 9 - 20  # also those outside
    found = warp(x0, draws(images), WarpSettings(), mask, points)
    for before, after in zip((x0, mask, points), found, strict=True):
        assert after is not None and torch.equal(before.nan_to_num(-7), after.nan_to_num(-7))
    assert warp(x0, draws(images), WarpSettings())[1:] == (None, None)


def test_settings_that_move_nothing_change_no_bit() -> None:
    x0, mask, points = given_things(4)
    for chosen in (WarpSettings(turn=50, turn_probability=0), WarpSettings(crop=(12, 16)), WarpSettings(pad="edge")):
        images, masks, moved = warp(x0, draws(4), chosen, mask, points)
        assert torch.equal(images, x0) and masks is not None and torch.equal(masks, mask)
        assert moved is not None and torch.equal(moved.nan_to_num(-7), points.nan_to_num(-7))
    some = WarpSettings(turn=50, turn_probability=0.5)
    u = draws(4)
    u[:, 0] = torch.tensor([0.4, 0.6, 0.7, 0.2])
    images = warp(x0, u, some)[0]
    assert [torch.equal(a, b) for a, b in zip(images, x0, strict=True)] == [False, True, True, False]


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_those_of_the_pixels(quarters: int) -> None:
    """Counter-clockwise as seen, the point with them; a point p of a square of n pixels goes to (p_y, n - 1 - p_x)."""
    x0 = torch.rand(2, 3, 9, 9, dtype=torch.float64) * 2 - 1
    mask = torch.randint(0, 7, (2, 9, 9), dtype=torch.uint8)
    points = torch.tensor([[[1.0, 2.0], [8.0, 0.0], [4.0, 4.0]]] * 2)
    u = torch.zeros(2, WARP_DRAWS, dtype=torch.float64)
    u[:, 1] = (1 + quarters / 2) / 2 if quarters < 3 else 0.25  # 2 u - 1 of 180 degrees
    u[:, 1] = u[:, 1].clamp(max=1.0)
    images, masks, moved = warp(x0, u, WarpSettings(turn=180), mask, points)
    torch.testing.assert_close(images, torch.rot90(x0, quarters, (2, 3)), rtol=0, atol=1e-12)
    assert masks is not None and torch.equal(masks, torch.rot90(mask, quarters, (1, 2)))
    expected = points
    for _ in range(quarters):
        expected = torch.stack([expected[..., 1], 8 - expected[..., 0]], dim=-1)
    assert moved is not None
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


def test_any_turn_enlargement_and_move_in_closed_form() -> None:
    u = draws(40)
    chosen = WarpSettings(turn=70, scale=(0.5, 2), shift=0.2, turn_probability=0.5)
    height, width = 400, 300
    points = torch.tensor([[[140.0, 210.0], [160.0, 190.0]]]).repeat(40, 1, 1)
    moved = warp(torch.zeros(40, 1, height, width), u, chosen, None, points)[2]
    assert moved is not None
    for i in range(40):
        turned, angle, scale, right, down = u[i, :GEOMETRY].tolist()
        a = math.radians(70 * (2 * angle - 1)) if turned < 0.5 else 0.0
        s = 0.5 + 1.5 * scale
        for before, after in zip(points[i].tolist(), moved[i].tolist(), strict=True):
            x, y = before[0] - (width - 1) / 2, before[1] - (height - 1) / 2
            q = (
                s * (math.cos(a) * x + math.sin(a) * y) + 0.2 * (2 * right - 1) * width + (width - 1) / 2,
                s * (math.cos(a) * y - math.sin(a) * x) + 0.2 * (2 * down - 1) * height + (height - 1) / 2,
            )
            assert after == pytest.approx(q, abs=1e-3)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([None, (40, 40), (60, 50), (24, 90)]), st.sampled_from(["black", "edge"]))
def test_image_mask_and_points_move_together(seed: int, crop: tuple[int, int] | None, pad: str) -> None:
    """A bright disc at each of two points is afterwards where the points are, in the image and in the mask."""
    height, width = 48, 64
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.tensor([[[20.0, 20.0], [44.5, 30.25]]]).repeat(4, 1, 1)
    near = torch.stack([(columns - x) ** 2 + (rows - y) ** 2 <= 25 for x, y in points[0].tolist()])
    mask = (near[0] * 1 + near[1] * 2).to(torch.uint8).repeat(4, 1, 1)
    x0 = (near.any(0).float() * 2 - 1).expand(4, 3, height, width)
    chosen = WarpSettings(turn=180, scale=(0.7, 1.6), shift=0.1, crop=crop, pad=pad)  # type: ignore[arg-type]
    images, masks, moved = warp(x0, draws(4, seed), chosen, mask, points)
    size = crop or (height, width)
    assert images.shape == (4, 3, *size) and masks is not None and masks.shape == (4, *size) and moved is not None
    assert set(masks.unique().tolist()) <= {0, 1, 2, VOID}
    for i in range(4):
        for k, (x, y) in enumerate(moved[i].tolist()):
            seen = (masks[i] == k + 1).nonzero().double()
            if math.isnan(x):  # its middle is outside, and so is most of the disc
                assert len(seen) <= 0.75 * math.pi * 25 * 1.6**2
            elif 10 < x < size[1] - 10 and 10 < y < size[0] - 10:
                assert seen.mean(0).tolist() == pytest.approx([y, x], abs=0.6)
                assert images[i, 0, round(y), round(x)] > 0.99
        inside = masks[i] != VOID
        assert pad == "edge" or (images[i, :, ~inside] < 0.01).all()


def test_points_that_are_not_there_stay_away_and_those_that_leave_are_no_more() -> None:
    points = torch.tensor([[[math.nan, math.nan], [2.0, 3.0], [15.0, 11.0], [-0.5, 0.0], [-0.6, 0.0]]])
    u = torch.full((1, WARP_DRAWS), 0.5, dtype=torch.float64)
    u[:, 3:5] = 1 - 1e-12  # to the right and down, by 1/4 of 16 and 1/4 of 12 pixels
    moved = warp(torch.zeros(1, 1, 12, 16), u, WarpSettings(shift=0.25), None, points)[2]
    assert moved is not None
    expected = [[math.nan] * 2, [6.0, 6.0], [math.nan] * 2, [3.5, 3.0], [3.4, 3.0]]
    np.testing.assert_allclose(moved[0].numpy(), expected, atol=1e-5)


def test_the_published_distributions() -> None:
    u = torch.from_numpy(np.random.default_rng(3).random((40_000, 3)))
    turn = drawn_turn(u[:, 0], u[:, 1], WFLW).numpy()
    still = turn == 0
    assert abs(still.mean() - 0.4) < 0.01 and np.abs(turn).max() == 60
    assert abs((np.abs(turn[~still]) == 60).mean() - 2 * norm.sf(2)) < 0.004
    between = turn[~still & (np.abs(turn) < 60)]
    mass = norm.cdf(2) - norm.cdf(-2)
    assert kstest(between, lambda x: (norm.cdf(x / 30) - norm.cdf(-2)) / mass).pvalue > 0.001
    scale = drawn_scale(u[:, 2], WFLW).numpy()
    assert (scale.min(), scale.max()) == (0.75, 1.25)
    assert abs((scale == 1.25).mean() - norm.sf(1)) < 0.006 and abs((scale == 0.75).mean() - norm.sf(1)) < 0.006
    uniform = drawn_scale(u[:, 2], WarpSettings(scale=(0.5, 2))).numpy()
    assert kstest(uniform, "uniform", (0.5, 1.5)).pvalue > 0.001
    turned = drawn_turn(u[:, 0], u[:, 1], WarpSettings(turn=20)).numpy()
    assert kstest(turned, "uniform", (-20, 40)).pvalue > 0.001


def test_crops_are_parts_of_the_image_bit_for_bit_and_come_from_everywhere() -> None:
    image = torch.arange(6 * 7, dtype=torch.float32).view(1, 1, 6, 7) / 50
    x0, chosen = image.repeat(200, 1, 1, 1), WarpSettings(crop=(4, 5))
    mask = (x0[:, 0] * 50).to(torch.uint8)
    points = torch.tensor([[[3.0, 2.0]]]).repeat(200, 1, 1)
    images, masks, moved = warp(x0, draws(200), chosen, mask, points)
    assert masks is not None and moved is not None
    corners = {}
    for i in range(200):
        first = round(float(images[i, 0, 0, 0]) * 50)
        top, left = divmod(first, 7)
        corners[top, left] = corners.get((top, left), 0) + 1
        assert torch.equal(images[i], image[0, :, top : top + 4, left : left + 5])
        assert torch.equal(masks[i], mask[i, top : top + 4, left : left + 5])
        assert moved[i].tolist() == [[3.0 - left, 2.0 - top]]
    assert set(corners) == {(top, left) for top in range(3) for left in range(3)} and min(corners.values()) > 8


def test_where_the_crop_is_larger_all_of_the_image_is_in_it() -> None:
    x0 = torch.rand(60, 2, 3, 4)
    mask = torch.ones(60, 3, 4, dtype=torch.uint8)
    images, masks, _ = warp(x0, draws(60), WarpSettings(crop=(5, 6)), mask)
    assert masks is not None
    for i in range(60):
        rows, columns = (masks[i] == 1).nonzero().unbind(1)
        top, left = int(rows.min()), int(columns.min())
        assert torch.equal(images[i, :, top : top + 3, left : left + 4], x0[i])
        assert (masks[i] == VOID).sum() == 5 * 6 - 3 * 4 and (images[i, :, masks[i] == VOID] == -1).all()
    assert len({tuple((mask == 1).nonzero()[0].tolist()) for mask in masks}) == 9


def test_a_crop_is_drawn_again_where_one_class_fills_it() -> None:
    mask = torch.zeros(64, 32, 32, dtype=torch.uint8)
    mask[:, 16:] = 1
    mask[:, :4] = VOID
    x0, u = torch.zeros(64, 1, 32, 32), draws(64)
    plain = warp(x0, u, WarpSettings(crop=8), mask)[1]
    varied = warp(x0, u, WarpSettings(crop=8, cat_max_ratio=0.75), mask)[1]
    assert plain is not None and varied is not None

    def share(masks: Tensor) -> Tensor:
        ones, zeros = ((masks == k).sum((1, 2)) for k in (1, 0))
        return torch.maximum(ones, zeros) / (ones + zeros).clamp(min=1)

    fine = share(plain) < 0.75
    assert torch.equal(plain[fine], varied[fine])  # those stay as they were
    assert fine.double().mean() < 0.4 and (share(varied) < 0.75).double().mean() > 0.7
    full = torch.zeros_like(mask)
    last = warp(x0, u, WarpSettings(crop=8, cat_max_ratio=0.75), full)[1]  # no crop will do: the last one is taken
    assert last is not None and not last.any()
    images = torch.arange(32.0 * 32).view(1, 1, 32, 32).repeat(64, 1, 1, 1)
    first = warp(images, u, WarpSettings(crop=8, cat_max_ratio=0.75), full)[0][:, 0, 0, 0]
    at = (u[:, GEOMETRY + 2 * (TRIES - 1) : GEOMETRY + 2 * TRIES] * 25).floor().float()
    assert torch.equal(first, at[:, 1] * 32 + at[:, 0])
    with pytest.raises(ValueError, match="cat_max_ratio needs masks"):
        warp(x0, u, WarpSettings(crop=8, cat_max_ratio=0.75))


def test_each_image_by_its_own_numbers() -> None:
    x0, mask, points = given_things(6)
    chosen = WarpSettings(turn=30, scale=(0.5, 2), crop=(10, 9), cat_max_ratio=0.4, colour=1, shift=0.1)
    u = draws(6)
    whole = warp(x0, u, chosen, mask, points)
    for i in range(6):
        one = warp(x0[i : i + 1], u[i : i + 1], chosen, mask[i : i + 1], points[i : i + 1])
        for together, alone in zip(whole, one, strict=True):
            assert together is not None and alone is not None
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6, equal_nan=True)


def test_what_is_said() -> None:
    with pytest.raises(ValueError, match=rf"u is \(2, 3\); 2 images need \(2, {WARP_DRAWS}\)"):
        warp(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3), WarpSettings())
    for values in ({"scale": (2, 1)}, {"scale": (0, 1)}, {"cat_max_ratio": 0.5}, {"turn": 190}, {"shift": 2}):
        with pytest.raises(ValidationError):
            WarpSettings(**values)  # type: ignore[arg-type]


# -- colours -----------------------------------------------------------------------------------------------------------


def colours(**on: float) -> Tensor:
    """One image's numbers with these operations active, at these values of 2 u - 1."""
    names = ("brightness", "contrast", "early", "saturation", "hue")
    u = torch.full((1, COLOUR_DRAWS), 0.9, dtype=torch.float64)
    for name, value in on.items():
        u[0, names.index(name)] = 0.1
        place = {"brightness": 5, "contrast": 6, "saturation": 7, "hue": 8}.get(name)
        if place is not None:
            u[0, place] = (value + 1) / 2
    return u


def test_colours_against_the_standard_library() -> None:
    y = torch.from_numpy(np.random.default_rng(0).random((1, 3, 5, 8)))
    y[0, :, 0, :4] = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.5, 0.5, 0.5], [1.0, 0.0, 0.0]]).double().T
    hsv = np.array([colorsys.rgb_to_hsv(*pixel) for pixel in y[0].flatten(1).T.tolist()])

    def check(u: Tensor, changed: np.ndarray) -> None:
        expected = np.array([colorsys.hsv_to_rgb(*pixel) for pixel in changed]).T.reshape(3, 5, 8)
        np.testing.assert_allclose((distort(2 * y - 1, u)[0] + 1) / 2, expected, atol=1e-9)

    for value in (-0.6, 0.8):
        more = hsv.copy()
        more[:, 1] = np.minimum(hsv[:, 1] * (1 + 0.5 * value), 1)
        check(colours(saturation=value), more)
        turned = hsv.copy()
        turned[:, 0] = (hsv[:, 0] + 36 * value / 360) % 1
        check(colours(hue=value), turned)
        np.testing.assert_allclose(
            (distort(2 * y - 1, colours(brightness=value)) + 1) / 2, (y + 32 / 255 * value).clamp(0, 1), atol=1e-12
        )
        np.testing.assert_allclose(
            (distort(2 * y - 1, colours(contrast=value)) + 1) / 2, (y * (1 + 0.5 * value)).clamp(0, 1), atol=1e-12
        )


def test_contrast_comes_first_or_last() -> None:
    y = torch.tensor([0.2, 0.4, 0.6]).double().view(1, 3, 1, 1)
    both = {"brightness": 1.0, "contrast": 1.0}
    late = (distort(2 * y - 1, colours(**both)) + 1) / 2
    np.testing.assert_allclose(late, ((y + 32 / 255) * 1.5).clamp(0, 1), atol=1e-12)
    full = {"saturation": 1.0, "contrast": 1.0}
    early = (distort(2 * y - 1, colours(early=0, **full)) + 1) / 2
    once = distort(distort(2 * y - 1, colours(contrast=1.0)), colours(saturation=1.0))
    np.testing.assert_allclose(early, (once + 1) / 2, atol=1e-12)


def test_colours_of_nothing_active_and_of_grey() -> None:
    x0 = torch.rand(1, 3, 4, 4) * 2 - 1
    assert torch.equal(distort(x0, colours()), x0) and distort(x0, colours(hue=1.0), 0.0) is x0
    grey = torch.rand(1, 1, 4, 4) * 2 - 1
    assert torch.equal(distort(grey, colours(hue=1.0, saturation=1.0)), grey)
    out = distort(torch.rand(50, 3, 4, 4) * 2 - 1, torch.rand(50, COLOUR_DRAWS, dtype=torch.float64), 2.0)
    assert out.min() >= -1 and out.max() <= 1 and out.dtype == torch.float32
    with pytest.raises(ValueError, match=r"strength 3 is not in 0\.\.2"):
        distort(x0, colours(), 3)
