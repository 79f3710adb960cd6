"""Images as they come: in order, in batches, one file or many, with the unreadable ones told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twofold.data import open_images, stream
from twofold.errors import UserError
from twofold.settings.data import DataSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(37):
        place = tmp_path / "photos" / ("odd" if i % 2 else "even")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 9, 3), i, np.uint8)).save(place / f"{i:02d}.png")
    return tmp_path / "photos"


def settings(source: Path, **changes: object) -> DataSettings:
    return DataSettings.model_validate({"source": str(source), "size": [4, 5], "channels": 3, **changes})


def test_batches_hold_everything_in_order(folder: Path) -> None:
    how = settings(folder)
    source = open_images(how)
    parts = list(stream(source, how, 10))
    assert [len(part.ids) for part in parts] == [10, 10, 10, 7]
    ids = [name for part in parts for name in part.ids]
    assert len(set(ids)) == 37 and source.count() == 37 and source.classes() == ["even", "odd"]
    for part in parts:
        assert part.images.shape[1:] == (3, 4, 5) and not part.skipped
        for name, image, label in zip(part.ids, part.images, part.labels, strict=True):
            assert (image == int(Path(name).stem)).all() and label == int(Path(name).stem) % 2


def test_one_file(folder: Path) -> None:
    how = settings(folder / "odd" / "07.png", channels=1)
    (part,) = stream(open_images(how), how, 10)
    assert part.ids == ["07.png"] and part.labels == [-1] and part.images.shape == (1, 1, 4, 5)


def test_unreadable_files(folder: Path) -> None:
    (folder / "odd" / "03.png").write_bytes(b"no image")
    how = settings(folder)
    with pytest.raises(UserError, match="odd/03.png"):
        list(stream(open_images(how), how, 10))
    skipping = settings(folder, on_bad_image="skip")
    parts = list(stream(open_images(skipping), skipping, 10))
    assert sum(len(part.ids) for part in parts) == 36
    assert [name for part in parts for name, _ in part.skipped] == ["odd/03.png"]


def test_shape_must_be_known(folder: Path) -> None:
    how = DataSettings(source=str(folder))
    with pytest.raises(ValueError, match="size"):
        list(stream(open_images(how), how, 10))
