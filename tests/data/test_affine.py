"""Random affine views: nothing at strength 0, whole pixels exactly, sides repeated, each image by its own numbers."""

from __future__ import annotations

import math

import pytest
import torch

from twofold.data.affine import AFFINE_DRAWS, DEGREES, affine


def halves(count: int) -> torch.Tensor:
    """Numbers for which every operation does nothing."""
    return torch.full((count, AFFINE_DRAWS), 0.5, dtype=torch.float64)


def test_nothing_is_done_in_the_middle_of_every_range() -> None:
    x = torch.rand(3, 2, 6, 5)
    assert torch.allclose(affine(x, halves(3), 1.0, 2.0), x, atol=1e-6)


def test_a_shift_of_whole_pixels_is_exact_and_repeats_the_edge() -> None:
    x, u = torch.arange(20.0).view(1, 1, 4, 5), halves(1)
    u[0, 4] = 1.0  # all of the shift to the right of the output's place
    found = affine(x, u, 1.0, 1.0)
    assert torch.allclose(found[..., :-1], x[..., 1:], atol=1e-5)
    assert torch.allclose(found[..., -1], x[..., -1], atol=1e-5)


def test_a_quarter_turn_is_one_of_pixels() -> None:
    x, u = torch.rand(1, 1, 5, 5), halves(1)
    u[0, 0] = 1.0
    assert torch.allclose(affine(x, u, 90 / DEGREES, 0.0), x.rot90(1, (2, 3)), atol=1e-5)


def test_a_turn_keeps_angles_where_images_are_not_square() -> None:
    """A bar along the middle row, turned by the half of a right angle, falls by as many pixels as it goes across."""
    x, u = torch.zeros(1, 1, 21, 41), halves(1)
    x[..., 10, :] = 1
    u[0, 0] = 1.0
    found = affine(x, u, 45 / DEGREES, 0.0)[0, 0]
    for step in range(-7, 8):
        assert found[:, 20 + step].argmax() == 10 - step
    assert math.isfinite(float(found.sum()))


def test_each_image_is_a_function_of_its_own_numbers() -> None:
    x, u = torch.rand(4, 3, 8, 8), torch.rand(4, AFFINE_DRAWS, dtype=torch.float64)
    whole = affine(x, u, 1.0, 1.0)
    assert torch.equal(whole[2:], affine(x[2:], u[2:], 1.0, 1.0))
    assert float((whole - x).abs().mean()) > 0.01


@pytest.mark.parametrize(("strength", "shift"), [(-1.0, 0.0), (1.0, -1.0)])
def test_less_than_nothing_is_refused(strength: float, shift: float) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        affine(torch.zeros(1, 1, 4, 4), halves(1), strength, shift)
