"""Key points as heat maps and back: closed forms, how exactly each way of reading finds a point, the flip test."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from twofold.data.augment import flip_points, mirror_partners
from twofold.recognize.heatmaps import decode, encode, mirrored, to_cells, to_pixels
from twofold.recognize.landmarker import NetworkLandmarker, marked

IMAGE, CELLS = (64, 48), (16, 12)

sides = st.integers(4, 40)
places = st.floats(0, 1, exclude_max=True)


def point(x: float, y: float) -> torch.Tensor:
    return torch.tensor([[[x, y]]])


def test_a_bump_by_hand() -> None:
    """At cell (5.3, 8.6): published from (5, 9), with sigma 1 in a square of 3 cells to each side."""
    pixels = to_pixels(point(5.3, 8.6), IMAGE, CELLS)
    assert pixels[0, 0].tolist() == pytest.approx([(5.3 + 0.5) * 4 - 0.5, (8.6 + 0.5) * 4 - 0.5])
    heat, weight = encode(pixels, IMAGE, CELLS, 1.0)
    assert weight.item() == 1 and heat.shape == (1, 1, 16, 12) and heat[0, 0, 9, 5] == 1
    assert heat[0, 0, 10, 7].item() == pytest.approx(math.exp(-(1 + 4) / 2))
    assert heat[0, 0, 9, 8].item() == pytest.approx(math.exp(-9 / 2)) and heat[0, 0, 9, 9] == 0
    assert (heat[0, 0] > 0).sum() == 7 * 7
    exact, _ = encode(pixels, IMAGE, CELLS, 1.0, unbiased=True)
    assert exact[0, 0, 9, 5].item() == pytest.approx(math.exp(-(0.3**2 + 0.4**2) / 2), rel=1e-4)


def test_points_that_are_not_there() -> None:
    """NaN in either coordinate; a bump that lies wholly outside. One that reaches in counts."""
    cells = torch.tensor([[[math.nan, 3.0], [3, math.nan], [-3.6, 5], [5, 19.1], [-3.4, 5], [5, 5]]])
    heat, weight = encode(to_pixels(cells, IMAGE, CELLS), IMAGE, CELLS, 1.0)
    assert weight[0].tolist() == [0, 0, 0, 0, 1, 1] and heat.isfinite().all()
    assert (heat[0, :4] == 0).all() and heat[0, 4, 5, 0].item() == pytest.approx(math.exp(-9 / 2))


@given(sides, sides, st.integers(1, 4), places, places, st.sampled_from([0.7, 1.0, 2.0]))
def test_what_is_encoded_is_read_off(h: int, w: int, stride: int, x: float, y: float, sigma: float) -> None:
    """Within half a cell from the nearest one; within a quarter by the shift, away from the border; nearly exactly by
    the parabola."""
    image, cells = (h * stride, w * stride), (h, w)
    pixels = point(x * w * stride - 0.5, y * h * stride - 0.5)
    true = to_cells(pixels, image, cells)
    rounded, _ = encode(pixels, image, cells, sigma)
    exact, _ = encode(pixels, image, cells, sigma, unbiased=True)
    near = 1e-3
    for heat in (rounded, exact):
        found, confidence = decode(heat, quarter_shift=False)
        assert (found - true).abs().max() <= 0.5 + near and 0 < confidence.item() <= 1
    assert (decode(rounded)[0] - true).abs().max() <= 0.5 + near  # its bump is even: nothing to shift by
    inner = ((true >= 0.5 + near) & (true <= torch.tensor([w, h]) - 1.5 - near)).all()
    if inner:
        assert (decode(exact)[0] - true).abs().max() <= 0.25 + near
        assert (decode(exact, unbiased=True)[0] - true).abs().max() < 0.02
    back = to_pixels(true, image, cells)
    assert torch.allclose(back, pixels, atol=1e-3)


def test_the_quarter_shift_goes_to_the_higher_neighbour() -> None:
    heat = torch.zeros(1, 3, 5, 5)
    heat[0, :, 2, 2] = 1
    heat[0, 0, 2, 3], heat[0, 1, 1, 2] = 0.5, 0.5
    assert decode(heat)[0][0].tolist() == [[2.25, 2], [2, 1.75], [2, 2]]
    heat[0, 0, 0, 0] = 2  # at the border there is no other neighbour
    assert decode(heat)[0][0, 0].tolist() == [0, 0]


@pytest.mark.parametrize("heat", [torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), -1.0), torch.rand(1, 1, 1, 1)])
def test_maps_without_a_peak(heat: torch.Tensor) -> None:
    for unbiased in (False, True):
        found, confidence = decode(heat, unbiased=unbiased)
        assert found.tolist() == [[[0, 0]]] and confidence == heat.max()


@given(places, places, st.booleans())
def test_a_mirror_image_has_the_mirrored_map(x: float, y: float, unbiased: bool) -> None:
    """Exactly, without a shift by a column, as long as a point is not halfway between two cells."""
    pixels = torch.tensor([[[x * 48 - 0.5, y * 64 - 0.5], [11.0, 20.0]]])
    if not unbiased and ((to_cells(pixels, IMAGE, CELLS) % 1) - 0.5).abs().min() < 1e-3:
        return
    partner = mirror_partners(2, [(0, 1)])
    flipped = flip_points(pixels, torch.zeros(1), 48, partner)
    plain, other = (encode(p, IMAGE, CELLS, 1.5, unbiased)[0] for p in (pixels, flipped))
    assert torch.allclose(mirrored(other, partner), plain, atol=1e-4)


class Painter(nn.Module):
    """Heat maps of the brightest pixel of each channel, of the side that `seen` says; a mirror exchanges two."""

    layers: dict = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :2]


def test_the_flip_test_averages_with_the_partner() -> None:
    heat = torch.rand(2, 2, 6, 8)
    landmarker = NetworkLandmarker(Painter(), ["left", "right"], (2, 6, 8), [[0, 1]], 1.0)
    expected = (heat + heat.flip(-1).flip(-1)[:, [1, 0]]) / 2
    assert torch.allclose(landmarker.tested(heat), expected)
    for plain in (
        NetworkLandmarker(Painter(), ["left", "right"], (2, 6, 8), [[0, 1]], 1.0, flip_test=False),
        NetworkLandmarker(Painter(), ["left", "right"], (2, 6, 8), None, 1.0),
    ):
        assert torch.equal(plain.tested(heat), heat) and not plain.flip_test
    assert not landmarker.state_dict()


def test_points_are_in_pixels_of_the_image() -> None:
    """Two bright pixels, maps of half the size: the middle of the cell that holds them."""

    class Halves(Painter):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.avg_pool2d(x, 2)

    images = torch.zeros(1, 2, 8, 8, dtype=torch.uint8)
    images[0, 0, 2:4, 4:6], images[0, 1, 6:8, 0:2] = 255, 255
    landmarker = NetworkLandmarker(Halves(), ["a", "b"], (2, 8, 8), None, 1.0)
    points, confidence = landmarker.points(images)
    assert points.tolist() == [[[4.5, 2.5], [0.5, 6.5]]] and confidence.tolist() == [[1, 1]]
    assert points.dtype == torch.float32


def test_marks_are_drawn_where_the_points_are() -> None:
    images = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    drawn = marked(images, torch.tensor([[[5.0, 9.0], [math.nan, math.nan]]]), (255, 0, 0))
    assert drawn.shape == (1, 3, 32, 32) and drawn[0, :, 9, 5].tolist() == [255, 0, 0]
    assert (drawn[0, 0] > 0).sum() == 1 and not drawn[0, 1:].any()
