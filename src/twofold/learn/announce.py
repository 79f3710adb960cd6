"""What a training run says of itself before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..data import unreadable
from .batches import labelled_note
from .lora import parameters


def announce(trainer: Any) -> Iterator[str]:
    """Of a `Trainer` whose batches are made: what is trained on what, in one line.

    And in others, which images were left out, and that the warm-up is so long for this run that the learning rate is
    hardly reached.
    """
    yield _described(trainer)
    if left_out := unreadable(trainer.store):
        yield left_out
    loop = trainer.loop
    if trainer.main and 2 * loop.warmup_images > loop.n_images:
        share = f"{loop.warmup_images:,} of {loop.n_images:,} images"
        yield f"train.warmup_images: {share} pass before the learning rate is reached; give fewer for a short run"


def _described(trainer: Any) -> str:
    settings, store, environment = trainer.settings, trainer.store, trainer.environment
    count, trained = parameters(trainer.objective.network)
    size = f"{count:,} parameters" + (f", {trained:,} trained" if trained != count else "")
    train, held_out = trainer.batches.rows, trainer.validation.rows
    known = [labelled_note(settings, store, rows) for rows in (train, held_out)]
    parts = f"{len(train):,} training{known[0]} and {len(held_out):,} validation images{known[1]}"
    if settings.validation.split == "train":
        parts = f"{len(train):,} training images{known[0]}, none held out"
    what = "points" if settings.objective.kind == "landmarks" else "classes"
    how = f"{environment.precision}, {environment.threads} CPU threads, {trainer.device}"
    return f"{store.name}: {parts}, {len(trainer.model.class_names)} {what}; {size}; {how}"
