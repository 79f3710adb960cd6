"""What would go wrong in an experiment, maybe after hours, said before it begins; and what there is to learn from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ...data import Store
from ...errors import UserError
from ...settings.train import TrainSettings
from ..batches import training_batches
from ..experiment import RECORD, RESULT
from ..objectives import OBJECTIVES


def check_training(settings: TrainSettings, store: Store, channels: int) -> None:
    """Raises `UserError` where a training would find its data wanting. channels: of the task's images."""
    if store.shape[0] != channels:
        what = f"has images of {store.shape[0]} channels, data of {channels}"
        raise UserError("pretrain_data", what, f"set pretrain_data.channels={channels}")
    store.indices(settings.validation.split)
    training_batches(settings, store, 1, False, 0, belongings=OBJECTIVES[settings.objective.kind].belongings)


def check_given(source: str, theirs: int, channels: int) -> None:
    """Raises `UserError` where a student that was taught before sees other channels than the data has."""
    if theirs != channels:
        hint = f"set data.channels={theirs}"
        raise UserError(f"student={source}", f"sees {theirs} channels, the data has {channels}", hint)


def known_rows(store: Store, task: str, split: str) -> np.ndarray:
    """Rows of a part of the data of which the task knows what is right."""
    rows = store.indices(split) if split == "train" or (store.codes == 1).any() else np.zeros(0, np.int64)
    if task == "classify":
        return rows[np.asarray(store.labels[rows]) >= 0]
    return store.annotated_rows("train") if split == "train" else rows


def backbone_of(source: str) -> str:
    """The run of a student: the source itself, or the backbone of an experiment in that folder.

    Raises `UserError` where an experiment has none yet.
    """
    folder = Path(source)
    if not (folder / RECORD).is_file():
        return source
    try:
        made = json.loads((folder / RESULT).read_text("utf-8"))["pretraining"]
        return str(made["run"] if "run" in made else backbone_of(made["student"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(source, "is an experiment without a taught student", "run it with stage=pretrain") from None
