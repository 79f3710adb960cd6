"""Random crops that keep proportions: where they are, what they show, what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from twofold.data import open_store
from twofold.data.crop import CROP_DRAWS, crop
from twofold.errors import UserError
from twofold.learn.batches import Batches
from twofold.settings.data import DataSettings
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .conftest import encoded, pixels


def batches(area: tuple[float, float], belongings: tuple[str, ...] = (), source: str = "digits") -> Batches:
    store = open_store(DataSettings(source=source, crop_area=area))
    return Batches(store, store.indices("train"), 0, 4, True, True, belongings)


def test_the_whole_image_is_left_as_it_is() -> None:
    images = torch.from_numpy(pixels(0, 5, 3, 9, 12))
    u = torch.rand(5, CROP_DRAWS, generator=torch.Generator().manual_seed(0))
    assert torch.equal(crop(images, u, (1.0, 1.0)), images)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1 - 1e-9), st.floats(0, 1 - 1e-9), st.floats(0, 1 - 1e-9), st.floats(0.1, 1.0))
def test_a_crop_lies_inside_and_keeps_its_proportions(share: float, right: float, low: float, least: float) -> None:
    """On a picture whose two channels are the column and the row, one can read where each pixel came from."""
    height, width = 24, 40
    ramps = [torch.arange(n, dtype=torch.float64) * 255 / (n - 1) for n in (width, height)]
    columns = ramps[0].round().expand(height, width)
    rows = ramps[1].round()[:, None].expand(height, width)
    found = crop(torch.stack([columns, rows])[None].to(torch.uint8), torch.tensor([[share, right, low]]), (least, 1.0))
    side = (least + (1 - least) * share) ** 0.5
    x, y = found[0, 0].double() * (width - 1) / 255, found[0, 1].double() * (height - 1) / 255  # pixels of the source
    inner = slice(2, -2)
    dx = (x[0, inner][-1] - x[0, inner][0]) / (width - 5)
    dy = (y[inner, 0][-1] - y[inner, 0][0]) / (height - 5)
    assert float(dx) == pytest.approx(side, abs=0.04) and float(dy) == pytest.approx(side, abs=0.04)
    centre = (
        (width - 1) / 2 + (right - 0.5) * (1 - side) * width,
        (height - 1) / 2 + (low - 0.5) * (1 - side) * height,
    )
    assert float(x[:, width // 2 - 1 : width // 2 + 1].mean()) == pytest.approx(centre[0], abs=0.5)
    assert float(y[height // 2 - 1 : height // 2 + 1].mean()) == pytest.approx(centre[1], abs=0.5)


def test_it_is_a_bilinear_view_of_the_image() -> None:
    """Pillow's own affine map, to one grey level."""
    image = pixels(1, 16, 16)
    u = torch.tensor([[0.3, 0.8, 0.1]], dtype=torch.float64)
    found = crop(torch.from_numpy(image)[None, None], u, (0.5, 0.9))
    side = (0.5 + 0.4 * 0.3) ** 0.5
    left, top = (1 - side) * 16 * 0.8, (1 - side) * 16 * 0.1
    theirs = Image.fromarray(image).transform(
        (16, 16), Image.Transform.AFFINE, (side, 0, left, 0, side, top), Image.Resampling.BILINEAR
    )
    inside = (slice(1, -1), slice(1, -1))
    assert np.abs(found[0, 0].numpy().astype(int) - np.asarray(theirs).astype(int))[inside].max() <= 1


def test_crops_belong_to_positions_and_change_no_other_number() -> None:
    plain, cropped = batches((1.0, 1.0)), batches((0.5, 0.9))
    a, b = plain.make(0, 8), cropped.make(0, 8)
    assert torch.equal(a.uniforms, b.uniforms) and torch.equal(a.noise, b.noise)  # type: ignore[arg-type]
    assert not torch.equal(a.images, b.images) and torch.equal(a.label, b.label)
    assert torch.equal(b.images[3:5], cropped.make(3, 5).images)
    later = cropped.make(len(cropped.rows), len(cropped.rows) + 8)
    assert set(later.rows.tolist()) != set(b.rows.tolist()) or not torch.equal(later.images, b.images)  # type: ignore[union-attr]


@pytest.mark.parametrize("area", [[0, 1], [0.9, 0.8], [0.5, 1.5]])
def test_a_wrong_area_is_said(area: list[float]) -> None:
    with pytest.raises(UserError, match=r"data.crop_area=.*is not a range of shares of the area"):
        resolve(TrainSettings, [("test", {"data": {"source": "digits", "crop_area": area}})])
    with pytest.raises(ValueError, match="is not a range of shares"):
        crop(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, 3), tuple(area))  # type: ignore[arg-type]


def test_masks_are_not_left_behind(put: Callable[..., Path]) -> None:
    for i in range(12):
        put(f"photos/images/{i}.png", pixels(i, 8, 8, 3))
        put(f"photos/masks/{i}.png", pixels(i, 8, 8) % 3)
    with pytest.raises(UserError, match=r"data.crop_area: crops images alone.*objective.warp"):
        batches((0.8, 1.0), ("mask",), "photos")


def test_kept_latents_are_of_whole_images() -> None:
    wrong: dict[str, Any] = {"data": {"source": "digits", "crop_area": [0.8, 1]}, "codec": {"source": "runs/a"}}
    with pytest.raises(UserError, match="data.crop_area crops pixels"):
        resolve(TrainSettings, [("test", wrong)])


def test_a_folder_of_grey_defects(put: Callable[..., Path]) -> None:
    """As NEU-CLS and NEU-DET come: class folders of grey BMP or JPEG, the class in the file's name too."""
    names = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")
    for k, name in enumerate(names):
        for i in range(1, 6):
            kind, ending = (("BMP", "bmp"), ("JPEG", "jpg"))[i % 2]
            put(f"NEU-DET/{name}/{name}_{i}.{ending}", encoded(Image.fromarray(pixels(10 * k + i, 20, 20)), kind))
    store = open_store(DataSettings(source="NEU-DET", size=(16, 16)))  # type: ignore[arg-type]
    assert store.shape == (1, 16, 16) and store.classes == list(names) and len(store) == 30
    assert np.bincount(store.labels).tolist() == [5] * 6 and store.id(0) == "crazing/crazing_1.jpg"
