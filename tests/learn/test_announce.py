"""What a run says of itself before its first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from twofold.data import open_store, unreadable
from twofold.learn import train
from twofold.learn.events import Note
from twofold.report.build import summary
from twofold.settings.data import DataSettings

from .common import tiny


@pytest.mark.parametrize(("warmup", "told"), [(64, True), (32, False)])
def test_a_warm_up_that_is_most_of_the_run_is_told(warmup: int, told: bool, tmp_path: Path) -> None:
    notes: list[str] = []
    settings = tiny(n_images=64, warmup_images=warmup)
    train(settings, tmp_path / "run", "cpu", show=lambda e: notes.append(e.text) if isinstance(e, Note) else None)
    assert any(note.startswith("digits: ") and "10 classes" in note for note in notes)
    said = f"train.warmup_images: {warmup} of 64 images pass before the learning rate is reached"
    assert any(note.startswith(said) for note in notes) == told


def test_images_that_were_left_out_are_told(tmp_path: Path) -> None:
    """How many, the first of them and why, and where all are listed; and so does the summary of the report."""
    for i in range(40):
        Image.new("L", (8, 8), 6 * i).save(tmp_path / f"{i:02d}.png")
    for name in ("07.png", "31.png"):
        (tmp_path / name).write_bytes(b"")
    settings = tiny(n_images=32).model_copy(update={"data": DataSettings(source=str(tmp_path), on_bad_image="skip")})
    notes: list[str] = []
    show = lambda e: notes.append(e.text) if isinstance(e, Note) else None  # noqa: E731
    result = train(settings, tmp_path / "run", "cpu", show)
    (told,) = [note for note in notes if "cannot be read" in note]
    said = f"{tmp_path}: 2 images cannot be read and are left out, first 07.png: the file is empty; listed under "
    assert told.startswith(f"{said}bad_images in ")
    listed = json.loads(Path(told.rpartition(" in ")[2]).read_text())["bad_images"]
    assert [bad["id"] for bad in listed] == ["07.png", "31.png"] == [bad["id"] for bad in result["data"]["bad_images"]]
    store = open_store(settings.data)
    assert summary(result, store).endswith(" Left out because they cannot be read: 2 (listed in result.json).")
    store.meta["bad_images"] = listed[:1]
    assert ": one image cannot be read and is left out, 07.png: the file is empty; " in unreadable(store)
    store.meta["bad_images"] = []
    assert unreadable(store) == ""
