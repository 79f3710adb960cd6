"""Masks and points of a placed image, back on the image as it is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.data import open_source, stream
from twofold.data.decode import decode_placed
from twofold.data.restore import placed, restore_mask, restore_points
from twofold.data.transform import ORIENTATIONS, VOID, Placing, place_mask, place_points
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from .conftest import encoded, pixels

Put = Callable[..., Path]
SIDE = st.integers(1, 50)


def settings(**values: object) -> DataSettings:
    return DataSettings(source="anything", **values)


def one_hot(mask: np.ndarray, classes: int) -> np.ndarray:
    return (mask == np.arange(classes)[:, None, None]).astype(np.float32)


@given(st.sampled_from(list(ORIENTATIONS)), SIDE, SIDE, SIDE, SIDE, st.sampled_from(["crop", "stretch", "pad"]))
def test_points_come_back(orientation: int, width: int, height: int, w: int, h: int, fit: str) -> None:
    placing = Placing.of(orientation, (width, height), settings(size=(h, w), fit=fit))
    points = np.random.default_rng(0).uniform(-10, 60, (5, 2))
    back = restore_points(place_points(points, placing), placing)
    np.testing.assert_allclose(back, points, atol=1e-3)  # place_points gives float32


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mask_of_the_same_size_comes_back_as_it_was(orientation: int) -> None:
    mask = pixels(0, 5, 7) % 4
    upright = (7, 5) if ORIENTATIONS[orientation][3] else (5, 7)
    placing = Placing.of(orientation, (7, 5), settings(size=upright))
    found = restore_mask(one_hot(place_mask(mask, placing), 4), placing)
    np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("factor", [2, 3])
def test_halves_stay_halves_at_other_sizes(orientation: int, factor: int) -> None:
    mask = np.zeros((12, 18), np.uint8)
    mask[:, 9:] = 1
    for size in ((12 * factor, 18 * factor), (6, 6)):
        placing = Placing.of(orientation, (18, 12), settings(size=size, fit="stretch"))
        np.testing.assert_array_equal(restore_mask(one_hot(place_mask(mask, placing), 2), placing), mask)


def test_what_was_cropped_away_is_void_and_what_was_padded_is_gone() -> None:
    crop = Placing.of(1, (40, 20), settings(size=(10, 10)))
    found = restore_mask(one_hot(np.ones((10, 10), np.uint8), 2), crop)
    assert found.shape == (20, 40)
    assert (found[:, 10:30] == 1).all() and (found[:, :10] == VOID).all() and (found[:, 30:] == VOID).all()
    pad = Placing.of(1, (40, 20), settings(size=(10, 10), fit="pad"))
    seen = np.zeros((10, 10), np.uint8)
    seen[2:7] = 1  # rows 2 to 6 show the image (20 x 40 at a quarter, 2 rows above it); the rest is background
    assert (restore_mask(one_hot(seen, 2), pad) == 1).all()


def test_edges_are_as_smooth_as_the_probabilities() -> None:
    """A straight slanted edge, seen at a quarter of the size, comes back nearer than classes of pixels would."""
    rows, columns = np.mgrid[:64, :64]
    truth = (columns + 0.5 * rows > 48).astype(np.uint8)
    placing = Placing.of(1, (64, 64), settings(size=(16, 16)))
    share = truth.reshape(16, 4, 16, 4).mean((1, 3)).astype(np.float32)
    smooth = restore_mask(np.stack([1 - share, share]), placing)
    blocks = np.repeat(np.repeat((share > 0.5).astype(np.uint8), 4, 0), 4, 1)
    assert (smooth != truth).mean() < 0.5 * (blocks != truth).mean()


def test_placed_images_are_those_of_a_stream(put: Put) -> None:
    shapes = [(8, 6), (20, 9), (7, 7)]
    for i, shape in enumerate(shapes):
        put(f"images/{i}.png", pixels(i, *shape, 3))
    data = DataSettings(source="images", size=(6, 5), channels=3)
    parts = list(placed(open_source(data), data, 2))
    assert [part.ids for part in parts] == [["0.png", "1.png"], ["2.png"]]
    streamed = torch.cat([part.images for part in stream(open_source(data), data, 2)])
    torch.testing.assert_close(torch.cat([part.images for part in parts]), streamed, rtol=0, atol=0)
    assert [p.stored for part in parts for p in part.placings] == [(w, h) for h, w in shapes]
    expected = decode_placed(encoded(pixels(1, *shapes[1], 3)), data)[1]
    assert parts[0].placings[1] == expected


def test_placed_says_which_image_is_unreadable(put: Put) -> None:
    put("images/a.png")
    put("images/b.png", b"no image")
    data = DataSettings(source="images", size=(4, 4), channels=3)
    with pytest.raises(UserError, match="b.png: .*on_bad_image=skip"):
        list(placed(open_source(data), data, 8))
    data = data.model_copy(update={"on_bad_image": "skip"})
    (part,) = placed(open_source(data), data, 8)
    assert part.ids == ["a.png"] and [name for name, _ in part.skipped] == ["b.png"] and len(part.images) == 1
