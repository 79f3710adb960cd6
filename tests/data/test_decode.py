"""Every kind of image file becomes the pixels a person would expect, or a reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twofold.data.decode import EXTENSIONS, BadImage, as_channels, decode, is_grey
from twofold.settings.data import DataSettings

from .conftest import encoded, pixels

GREY, RGB = pixels(1, 5, 7), pixels(2, 5, 7, 3)


def settings(**values: object) -> DataSettings:
    return DataSettings(source="anything", **values)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("image", [GREY, RGB], ids=["grey", "rgb"])
def test_lossless_formats_come_back_exactly(format: str, image: np.ndarray) -> None:
    np.testing.assert_array_equal(decode(encoded(image, format), settings()), image)


@pytest.mark.parametrize(("format", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("MPO", {})])
def test_lossy_formats_come_back_nearly(format: str, options: dict[str, int]) -> None:
    ramp = np.linspace(40, 200, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    assert np.abs(decode(encoded(ramp, format, **options), settings()).astype(int) - ramp).max() < 12


def test_webp_lossless_and_gif() -> None:
    np.testing.assert_array_equal(decode(encoded(RGB, "WEBP", lossless=True), settings()), RGB)
    few = (GREY // 64 * 64)[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(decode(encoded(few, "GIF"), settings()).reshape(5, 7, -1)[..., 0], few[..., 0])


def test_palette_becomes_rgb() -> None:
    image = Image.fromarray(RGB // 128 * 255).quantize(8)
    np.testing.assert_array_equal(decode(encoded(image), settings()), np.asarray(image.convert("RGB")))


def test_one_bit_is_grey() -> None:
    image = Image.fromarray(GREY > 128)
    np.testing.assert_array_equal(decode(encoded(image), settings()), np.where(GREY > 128, 255, 0))


@pytest.mark.parametrize(("background", "shade"), [("white", 255), ("black", 0)])
def test_alpha_shows_the_background(background: str, shade: int) -> None:
    alpha = np.zeros((5, 7, 1), np.uint8)
    alpha[:, :3] = 255
    alpha[:, 3] = 51  # a fifth
    expected = np.rint(RGB * (alpha / 255.0) + shade * (1 - alpha / 255.0))
    got = decode(encoded(np.concatenate([RGB, alpha], axis=2)), settings(background=background))
    assert np.abs(got - expected).max() <= 1
    np.testing.assert_array_equal(got[:, :3], RGB[:, :3])
    np.testing.assert_array_equal(got[:, 4:], shade)


def test_grey_with_alpha_stays_grey() -> None:
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(np.full_like(GREY, 255))])
    np.testing.assert_array_equal(decode(encoded(image), settings()), GREY)


def test_transparent_palette_entry() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    got = decode(encoded(image, transparency=0), settings())
    np.testing.assert_array_equal(got, [[[255, 255, 255], [200, 100, 50]]])


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_divided_by_257(format: str) -> None:
    values = np.array([[0, 257, 65535, 128, 129, 30000]], np.uint16)
    np.testing.assert_array_equal(decode(encoded(values, format), settings()), [[0, 1, 255, 0, 1, 117]])


def test_sixteen_bit_pgm_and_big_endian_tiff() -> None:
    values = np.array([[0, 257, 65535]], ">u2")
    np.testing.assert_array_equal(decode(b"P5 3 1 65535\n" + values.tobytes(), settings()), [[0, 1, 255]])
    entries = [(256, 4, 3), (257, 4, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (279, 4, 6)]
    ifd = struct.pack(">H", len(entries))
    for tag, kind, value in entries:
        ifd += struct.pack(">HHI", tag, kind, 1) + (
            struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value)
        )
    tiff = b"MM\0*" + struct.pack(">I", 14) + values.tobytes() + ifd + struct.pack(">I", 0)
    np.testing.assert_array_equal(decode(tiff, settings()), [[0, 1, 255]])


def test_sixteen_bit_transparent_level() -> None:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", 1000)),
        (b"IDAT", zlib.compress(b"\0" + struct.pack(">HH", 1000, 25700))),
        (b"IEND", b""),
    ]
    png = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        png += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    np.testing.assert_array_equal(decode(png, settings(background="white")), [[255, 100]])


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    got = decode(encoded(image, "TIFF"), settings())
    np.testing.assert_array_equal(got, np.broadcast_to([255, 0, 0], (2, 2, 3)))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_applied(format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated clockwise by 90 degrees
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16] = 255
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(format, {})
    got = decode(encoded(image, format, exif=exif, **options), settings())
    assert np.abs(got.astype(int) - np.rot90(image, -1)).max() < 8


def test_unreadable_exif_does_not_spoil_an_image() -> None:
    data = encoded(RGB, "PNG", exif=b"Exif\0\0garbage that is no TIFF header")
    np.testing.assert_array_equal(decode(data, settings()), RGB)


def test_channels_are_converted_as_wanted() -> None:
    np.testing.assert_array_equal(
        decode(encoded(RGB), settings(channels=1)), np.asarray(Image.fromarray(RGB).convert("L"))
    )
    assert as_channels(decode(encoded(GREY), settings(channels=3)), 3).shape == (3, 5, 7)


def test_as_channels_and_is_grey() -> None:
    triple = np.stack([GREY] * 3, axis=2)
    assert is_grey(GREY) and is_grey(triple) and not is_grey(RGB)
    np.testing.assert_array_equal(as_channels(triple, 1), GREY[None])
    np.testing.assert_array_equal(as_channels(GREY, 3), np.stack([GREY] * 3))
    np.testing.assert_array_equal(as_channels(RGB, 3), RGB.transpose(2, 0, 1))


# -- size ---------------------------------------------------------------------------------------------------------


def test_crop_takes_the_centre_exactly_where_nothing_is_resized() -> None:
    image = pixels(3, 8, 13, 3)
    np.testing.assert_array_equal(decode(encoded(image), settings(size="8x8")), image[:, 2:10])
    np.testing.assert_array_equal(decode(encoded(image), settings(size="8x13")), image)


@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (41, 67), (7, 300)])
def test_crop_resizes_the_shorter_side(shape: tuple[int, int]) -> None:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    centred = np.stack([rows - (shape[0] - 1) / 2, columns - (shape[1] - 1) / 2], axis=2)
    scale = 20 / min(shape)
    image = np.clip(128 + np.pad(centred, ((0, 0), (0, 0), (0, 1))) * 4 * scale, 0, 255).astype(np.uint8)
    got = decode(encoded(image), settings(size=20)).astype(float)
    step = np.arange(20) - 9.5
    assert got.shape == (20, 20, 3)
    inner = slice(3, 17)  # bicubic resampling bends at the border
    assert np.abs(got[inner, inner, 0] - (128 + 4 * step[inner])[:, None]).max() < 4
    assert np.abs(got[inner, inner, 1] - (128 + 4 * step[inner])[None, :]).max() < 4


def test_shrinking_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    got = decode(encoded(stripes), settings(size=16))
    assert np.abs(got[:, 1:-1].astype(int) - 127).max() < 3  # nearest-neighbour would give 0 or 255


def test_stretch_and_pad() -> None:
    image = np.full((10, 20, 3), 100, np.uint8)
    assert (decode(encoded(image), settings(size="8x8", fit="stretch")) == 100).all()
    padded = decode(encoded(image), settings(size="8x8", fit="pad", background="black"))
    np.testing.assert_array_equal(padded[2:6], 100)
    assert (padded[:2] == 0).all() and (padded[6:] == 0).all()
    grey = decode(encoded(np.full((20, 10), 7, np.uint8)), settings(size="8x8", fit="pad"))
    np.testing.assert_array_equal(grey[:, 2:6], 7)
    assert (grey[:, :2] == 255).all() and (grey[:, 6:] == 255).all()


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_every_shape_fits(fit: str, shape: tuple[int, int]) -> None:
    image = np.full(shape, 9, np.uint8)
    assert decode(encoded(image), settings(size="5x9", fit=fit)).shape == (5, 9)


# -- bad images ---------------------------------------------------------------------------------------------------


def reason(content: bytes | Path | None) -> str:
    with pytest.raises(BadImage) as caught:
        decode(content, settings())
    return str(caught.value)


def test_truncated_files() -> None:
    whole = encoded(pixels(4, 64, 64, 3), "JPEG")
    assert "truncated" in reason(whole[: len(whole) // 2])
    png = encoded(pixels(4, 64, 64, 3))
    assert "truncated" in reason(png[: len(png) // 2])


def test_no_image_at_all(tmp_path: Path) -> None:
    assert reason(b"") == "the file is empty"
    assert "not an image of a known format (png, jpg" in reason(b"hello, world")
    assert reason(None) == "there is no image in this row"
    assert reason(tmp_path / "gone.png") == f"there is no file {tmp_path / 'gone.png'}"
    (tmp_path / "folder.png").mkdir()
    assert "directory" in reason(tmp_path / "folder.png")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_damaged_headers_give_a_reason(extension: str) -> None:
    format = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(extension, extension.upper())
    whole = encoded(pixels(5, 16, 16) if extension == "pgm" else RGB, format)
    for length in (3, 9, 20):
        assert reason(whole[:length]).strip()


def test_float_and_wide_integer_pixels_are_refused() -> None:
    assert "floating-point pixels" in reason(encoded(np.ones((2, 2), np.float32), "TIFF"))
    assert "32-bit integer pixels" in reason(encoded(np.ones((2, 2), np.int32), "TIFF"))


def test_a_decompression_bomb_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(np.zeros((20, 20), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert reason(data) == "it unpacks to more than 200 pixels"


def test_other_formats_of_pillow_are_not_opened() -> None:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "ICO")
    assert "not an image of a known format" in reason(file.getvalue())
