"""One transform for an image and what belongs to it: they still lie on one another afterwards."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from twofold.data.belongings import decode_item
from twofold.data.items import Item
from twofold.data.transform import ORIENTATIONS, VOID, BadImage, Placing, place, place_mask, place_points
from twofold.settings.data import DataSettings

from .conftest import encoded, pixels


def settings(**values: object) -> DataSettings:
    return DataSettings(source="anything", **values)


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def item(image: np.ndarray | bytes, **more: object) -> Item:
    return Item("a", image, -1, None, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientations_are_those_of_pillow_for_pixels_and_points(orientation: int) -> None:
    image = np.zeros((5, 7), np.uint8)
    image[1, 4] = 200
    tagged = Image.open(io.BytesIO(encoded(image, exif=exif(orientation))))
    expected = np.asarray(ImageOps.exif_transpose(tagged))
    placing = Placing.of(orientation, (7, 5), settings())
    np.testing.assert_array_equal(place(Image.fromarray(image), placing, Image.Resampling.BICUBIC, "white"), expected)
    ((x, y),) = place_points(np.array([[4, 1]]), placing)
    assert expected[int(y), int(x)] == 200


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (30, 31), (16, 24)])
def test_a_bright_spot_its_mask_and_its_point_stay_together(fit: str, orientation: int, shape: tuple[int, int]) -> None:
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    x, y = width * 0.55, height * 0.45
    spot = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * (min(shape) / 10) ** 2))
    image = np.rint(250 * spot).astype(np.uint8)
    mask = (spot > 0.5).astype(np.uint8)
    wanted = settings(size="16x24", fit=fit, background="black")
    got = decode_item(
        item(encoded(image, exif=exif(orientation)), mask=encoded(mask), points=np.array([[x, y]]), pair=image),
        wanted,
        {},
    )
    assert got.pixels.shape == got.mask.shape == got.pair.shape == (16, 24)
    weight = got.pixels.astype(float)
    assert got.points[0, 0] == pytest.approx((weight * np.arange(24)).sum() / weight.sum(), abs=0.35)
    assert got.points[0, 1] == pytest.approx((weight * np.arange(16)[:, None]).sum() / weight.sum(), abs=0.35)
    np.testing.assert_array_equal(got.pair, got.pixels)  # a pair with the image's orientation and no tag of its own
    inside = got.mask == 1
    assert got.pixels[inside].min() > 90 and got.pixels[(got.mask == 0)].max() < 160


def test_padding_is_void_in_masks() -> None:
    got = decode_item(item(pixels(0, 10, 20), mask=np.ones((10, 20), np.uint8)), settings(size=8, fit="pad"), {})
    assert (got.mask[2:6] == 1).all() and (got.mask[:2] == VOID).all() and (got.mask[6:] == VOID).all()


def test_masks_keep_their_classes() -> None:
    mask = np.random.default_rng(0).choice(np.array([0, 3, 7, VOID], np.uint8), (30, 50))
    placing = Placing.of(1, (50, 30), settings(size=13))
    assert set(np.unique(place_mask(mask, placing))) <= {0, 3, 7, VOID}  # nothing in between


def test_a_pair_of_another_resolution_covers_the_same() -> None:
    ramp = np.tile(np.linspace(0, 250, 64), (32, 1)).astype(np.uint8)
    small = np.asarray(Image.fromarray(ramp).resize((16, 8), Image.Resampling.BOX))
    got = decode_item(item(ramp, pair=small), settings(size="16x16"), {})
    assert np.abs(got.pair[:, 2:-2].astype(int) - got.pixels[:, 2:-2]).max() < 8
    colour = decode_item(item(ramp, pair=pixels(0, 32, 64, 3)), settings(channels=1), {})
    assert colour.pixels.ndim == 2 and colour.pair.shape == (32, 64, 3)


def test_palettes_and_wide_masks_are_indices() -> None:
    mask = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
    palette = Image.fromarray(mask, "P")
    palette.putpalette([0, 9, 9] * 256)
    for stored in (encoded(mask), encoded(palette), encoded(mask.astype(np.uint16))):
        np.testing.assert_array_equal(decode_item(item(pixels(0, 2, 3), mask=stored), settings(), {}).mask, mask)
    void = decode_item(item(pixels(0, 2, 3), mask=mask), settings(), {"mask_void": 2}).mask
    np.testing.assert_array_equal(void, [[0, 1, 255], [255, 1, 255]])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (b"", "its mask: the file is empty"),
        (encoded(pixels(0, 2, 3, 3)), "its mask: its pixels are RGB; class indices need one channel"),
        (encoded(pixels(0, 2, 3), "JPEG"), "its mask: a JPEG file does not keep class indices"),
        (encoded(np.full((2, 3), 300, np.uint16)), "its mask: its class indices reach from 300 to 300"),
        (np.zeros((9, 3), np.uint8), r"its mask: it is 9x3 and the image 2x3 \(height x width\)"),
        (np.full((2, 3), 5, np.uint8), "its mask: there is no class 5; there are 2, and 255 is void"),
    ],
)
def test_masks_that_are_none(mask: object, message: str) -> None:
    with pytest.raises(BadImage, match=message):
        decode_item(item(pixels(0, 2, 3), mask=mask), settings(), {"mask_classes": ["a", "b"]})


def test_pairs_that_are_none() -> None:
    for pair, message in ((b"xx", "its pair: it is not an image"), (pixels(0, 40, 3), "its pair: it is 40x3 and")):
        with pytest.raises(BadImage, match=message):
            decode_item(item(pixels(0, 20, 30), pair=pair), settings(), {})


@given(
    st.sampled_from(sorted(ORIENTATIONS)), st.integers(1, 50), st.integers(1, 50), st.sampled_from(["crop", "pad"]),
    st.integers(1, 40), st.integers(1, 40),
)  # fmt: skip
def test_the_middle_of_an_image_stays_its_middle(o: int, w: int, h: int, fit: str, height: int, width: int) -> None:
    placing = Placing.of(o, (w, h), settings(size=(height, width), fit=fit))
    points = np.array([[(w - 1) / 2, (h - 1) / 2], [np.nan, np.nan]])
    middle, absent = place_points(points, placing)
    assert np.abs(middle - [(width - 1) / 2, (height - 1) / 2]).max() <= 0.5 + 1e-4  # offsets are whole pixels
    assert np.isnan(absent).all()
