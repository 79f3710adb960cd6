"""What a run says of itself before its first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from twofold.learn import train
from twofold.learn.events import Note

from .common import tiny


@pytest.mark.parametrize(("warmup", "told"), [(64, True), (32, False)])
def test_a_warm_up_that_is_most_of_the_run_is_told(warmup: int, told: bool, tmp_path: Path) -> None:
    notes: list[str] = []
    settings = tiny(n_images=64, warmup_images=warmup)
    train(settings, tmp_path / "run", "cpu", show=lambda e: notes.append(e.text) if isinstance(e, Note) else None)
    assert any(note.startswith("digits: ") and "10 classes" in note for note in notes)
    said = f"train.warmup_images: {warmup} of 64 images pass before the learning rate is reached"
    assert any(note.startswith(said) for note in notes) == told
