"""Weak and strong views: operations against Pillow's, ranges, and that an image depends on its own numbers only."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from twofold.data.strong import (
    CHANGES,
    MOVES,
    NAMES,
    OPERATIONS,
    RANGES,
    STRONG_DRAWS,
    WEAK_DRAWS,
    _cut,
    _map,
    _moved,
    strong,
    weak,
)

Pil = Callable[[Image.Image, float], Image.Image]


def affine(*numbers: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, numbers)


PILLOW: dict[str, Pil] = {
    "autocontrast": lambda image, v: ImageOps.autocontrast(image),
    "brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "equalize": lambda image, v: ImageOps.equalize(image),
    "identity": lambda image, v: image,
    "posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "rotate": lambda image, v: image.rotate(v),
    "sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "shear_x": lambda image, v: affine(1, v, 0, 0, 1, 0)(image),
    "shear_y": lambda image, v: affine(1, 0, 0, v, 1, 0)(image),
    "solarize": lambda image, v: ImageOps.solarize(image, int(v)),
    "translate_x": lambda image, v: affine(1, 0, v * image.size[0], 0, 1, 0)(image),
    "translate_y": lambda image, v: affine(1, 0, 0, 0, 1, v * image.size[1])(image),
}


def pictures(n: int, channels: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth colours with some noise: uint8 (n, C, H, W), each over a range of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = np.sin(6 * x * rng.random((n, channels, 1, 1)) + 9 * y * rng.random((n, channels, 1, 1)))
    levels = 128 + waves * rng.uniform(30, 110, (n, channels, 1, 1)) + rng.normal(0, 12, (n, channels, height, width))
    return torch.from_numpy(levels.clip(0, 255).astype(np.uint8))


def to_pil(image: torch.Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array if array.shape[2] == 3 else array[..., 0])


def from_pil(image: Image.Image, channels: int) -> torch.Tensor:
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1)


def numbers(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, STRONG_DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_name(name: str, images: torch.Tensor, amounts: list[float]) -> torch.Tensor:
    """One operation, of these magnitudes, on every image."""
    levels = images.float()
    if name in MOVES:
        low, high = RANGES[name]
        maps = [_map(name, (v - low) / (high - low), images.shape[-2:]) for v in amounts]
        return _moved(levels, torch.stack(maps).float()).to(torch.uint8)
    operation = CHANGES[name]
    return images if operation is None else operation(levels, torch.tensor(amounts)).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_as_pillow_does_it(name: str, channels: int) -> None:
    """At most one level off where levels change, at most 1 in 200 pixels elsewhere where pixels move."""
    images = pictures(24, channels, 32, 40)
    low, high = RANGES.get(name, (0.0, 1.0))
    amounts = np.random.default_rng(5).uniform(low, high, 24).tolist()
    if name == "solarize":
        amounts = [math.floor(v) for v in amounts]
    ours = by_name(name, images, amounts).int()
    theirs = torch.stack(
        [from_pil(PILLOW[name](to_pil(image), v), channels) for image, v in zip(images, amounts, strict=True)]
    ).int()
    off = (ours - theirs).abs()
    if name in MOVES:
        assert float((off > 0).float().mean()) <= 1 / 200
    else:
        assert int(off.max()) <= 1 and float((off > 0).float().mean()) <= 1 / 50
    changed = float((theirs != images.int()).float().mean())
    assert changed > 0.2 or name == "identity" or (name == "color" and channels == 1)


def test_flat_and_tiny_images_stay() -> None:
    flat = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    for name in ("autocontrast", "equalize", "contrast", "sharpness", "color"):
        assert torch.equal(by_name(name, flat, [0.5, 0.5]), flat)
    tiny = pictures(2, 1, 2, 2)
    assert torch.equal(by_name("sharpness", tiny, [0.1, 0.1]), tiny)


def test_what_is_cut_out_is_pillows_rectangle() -> None:
    images, n = pictures(64, 3, 32, 32), 64
    u = numbers(n)[:, :3]
    cut = _cut(images.float(), u, torch.tensor([[125.0, 123.0, 114.0]]).expand(n, 3)).to(torch.uint8)
    for i in range(n):
        side, x, y = (float(v) for v in u[i])
        side, left, top = 0.5 * 32 * side, 32 * x, 32 * y
        left, top = int(max(0, left - side / 2)), int(max(0, top - side / 2))
        picture = to_pil(images[i])
        box = (left, top, min(32, left + side), min(32, top + side))
        ImageDraw.Draw(picture).rectangle(tuple(math.floor(v) for v in box), (125, 123, 114))
        assert torch.equal(cut[i], from_pil(picture, 3))


def test_each_image_by_its_own_numbers() -> None:
    images, u = pictures(40, 3, 16, 16), numbers(40)
    every = strong(images, u)
    assert every.dtype == torch.uint8 and every.shape == images.shape
    back = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(strong(images[back], u[back]), every[back])
    assert torch.equal(torch.cat([strong(images[i : i + 1], u[i : i + 1]) for i in range(40)]), every)
    w = u[:, :WEAK_DRAWS]
    assert torch.equal(weak(images[back], w[back], 4), weak(images, w, 4)[back])


def test_every_operation_is_drawn_equally_often() -> None:
    """Of images that are one dark pixel's column, each pair of uniforms picks the operation that its name stands at."""
    images = pictures(len(NAMES), 3, 16, 16, seed=3)
    u = torch.zeros(len(NAMES), STRONG_DRAWS, dtype=torch.float64)
    identity = (NAMES.index("identity") + 0.5) / len(NAMES)
    u[:, :OPERATIONS] = identity
    u[:, 0] = (torch.arange(len(NAMES)) + 0.5) / len(NAMES)
    u[:, OPERATIONS] = 0.25
    nothing = torch.full((len(NAMES), STRONG_DRAWS), identity, dtype=torch.float64)
    u[:, 2 * OPERATIONS :] = nothing[:, 2 * OPERATIONS :] = 0.0  # one pixel in the corner is cut out of both
    fill = [1, 2, 3]
    plain, changed = strong(images, nothing, fill), strong(images, u, fill)
    for i, name in enumerate(NAMES):
        low, high = RANGES.get(name, (0.0, 1.0))
        alone = by_name(name, images[i : i + 1], [low + 0.25 * (high - low)])[0]
        alone[:, 0, 0] = torch.tensor(fill, dtype=torch.uint8)
        assert torch.equal(changed[i], alone), name
    assert torch.equal(plain[:, :, 1:], images[:, :, 1:])


def test_the_hole_has_the_images_mean() -> None:
    images, u = pictures(1, 3, 16, 16), torch.zeros(1, STRONG_DRAWS, dtype=torch.float64)
    u[:, :OPERATIONS] = (NAMES.index("identity") + 0.5) / len(NAMES)
    u[:, 6:] = torch.tensor([0.999, 0.5, 0.5])
    hole = strong(images, u)[0, :, 8, 8]
    assert torch.equal(hole, images[0].float().mean((1, 2)).round().to(torch.uint8))


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_weak_views_are_parts_of_the_mirrored_plane(a: float, b: float, c: float) -> None:
    image = torch.arange(8 * 6, dtype=torch.uint8).view(1, 1, 8, 6)
    view = weak(image, torch.tensor([[a, b, c]], dtype=torch.float64), 3)
    plane = torch.nn.functional.pad(image.float(), (3, 3, 3, 3), mode="reflect").to(torch.uint8)
    plane = plane.flip(-1) if a < 0.5 else plane
    parts = [plane[..., i : i + 8, j : j + 6] for i in range(7) for j in range(7)]
    assert sum(torch.equal(view, part) for part in parts) == 1


def test_weak_without_mirror_or_shift_is_the_image() -> None:
    images = pictures(3, 1, 8, 8)
    assert torch.equal(weak(images, torch.zeros(3, 3, dtype=torch.float64), 0, flip=False), images)
    with pytest.raises(ValueError, match="shift 8"):
        weak(images, torch.zeros(3, 3, dtype=torch.float64), 8)


@pytest.mark.parametrize(("draws", "fill"), [(4, None), (STRONG_DRAWS, [1, 2])])
def test_what_does_not_fit_is_refused(draws: int, fill: list[int] | None) -> None:
    with pytest.raises(ValueError, match="need|channels"):
        strong(pictures(2), torch.zeros(2, draws, dtype=torch.float64), fill)


@pytest.mark.parametrize("channels", [1, 3])
def test_levels_stay_in_range(channels: int) -> None:
    images = torch.randint(0, 256, (300, channels, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = strong(images, numbers(300, 2))
    assert float((found != images).float().mean()) > 0.3  # anything beyond 0..255 would have wrapped round
    assert strong(images[:0], numbers(300)[:0]).shape == (0, channels, 12, 12)
