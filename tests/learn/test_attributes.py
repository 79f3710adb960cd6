"""Multi-label training on attributes: each a question of its own, under its own name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twofold.data import open_store
from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.classes import asks_attributes, class_names
from twofold.learn.events import Saved
from twofold.learn.objectives.supervised import commoner_answers
from twofold.run import load
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import TINY, tiny


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file of images that are bright or dark, of which "bright" is known, "none" never."""
    datasets = pytest.importorskip("datasets")
    random = np.random.default_rng(0)
    bright = random.integers(0, 2, 200)
    pictures = [random.integers(128 * b, 128 * b + 128, (8, 8)).astype(np.uint8) for b in bright]
    columns = {
        "image": [Image.fromarray(picture) for picture in pictures],
        "bright": bright.tolist(),
        "none": [-1] * 200,
    }
    path = tmp_path_factory.mktemp("table") / "faces.parquet"
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_parquet(str(path))
    return path


def test_attributes_are_the_classes(table: Path, tmp_path: Path) -> None:
    own = {
        "data": {"source": str(table), "attribute_columns": ["bright", "none"]},
        "network": {"kind": "convnet", "channels": 8},
        "objective": {"kind": "supervised", "multi_label": True},
        "train": {**TINY["train"], "n_images": 3200, "lr": 3e-3, "validate_images": 3200, "save_images": 3200},
        "validation": {"max_images": 32},
    }
    settings = resolve(TrainSettings, [("test", own)])[0]
    store = open_store(settings.data)
    assert asks_attributes(settings, store) and class_names(settings, store) == ["bright", "none"]
    result = train(settings, tmp_path / "run", "cpu")
    model = load(tmp_path / "run")
    assert model.class_names == ["bright", "none"] and model.multi_label  # type: ignore[union-attr]
    assert result["metrics"]["accuracy"] == 1.0  # of what is known
    held_out = store.indices("validation")[:32]
    share = float(np.mean(np.asarray(store.attributes[held_out][:, 0]) == 1))  # type: ignore[index]
    assert 0.4 < share < 0.7 and result["metrics"]["accuracy_always"] == pytest.approx(max(share, 1 - share))
    rows = store.indices("test")
    said = model.image_logits(store.batch(rows))[:, 0] > 0  # type: ignore[union-attr]
    assert torch.equal(said, torch.from_numpy(np.asarray(store.attributes[rows][:, 0])) == 1)  # type: ignore[index]


def test_an_edited_label_file_is_noticed(tmp_path: Path) -> None:
    """A run learns from the labels it was begun with; the same command with others would mix two experiments."""
    settings = tiny(n_images=64, save_images=32)
    store = open_store(settings.data)
    ids = [store.id(int(row)) for row in store.indices("train")[:30]]
    file = tmp_path / "few.csv"
    file.write_text("id,label\n" + "".join(f"{name},{k % 10}\n" for k, name in enumerate(ids)))
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"labels": str(file)})})

    def die(event: object) -> None:
        if isinstance(event, Saved):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(settings, tmp_path / "run", "cpu", die)
    text = file.read_text()
    file.write_text(text.replace(f"{ids[0]},0", f"{ids[0]},5"))
    with pytest.raises(UserError, match="data or its labels are not what this run was begun with"):
        train(settings, tmp_path / "run", "cpu")
    file.write_text(text)
    train(settings, tmp_path / "run", "cpu")


def test_what_always_the_commoner_answer_reaches() -> None:
    label = torch.tensor([[1, 0, -1], [1, 0, -1], [1, 1, -1], [0, -1, -1], [-1, -1, -1]])
    # yes to the first question and no to the second: image by image 1, 1, 1/2, 0, and nothing asked of the last
    assert commoner_answers(label) == pytest.approx(2.5)
    assert commoner_answers(torch.tensor([[0, 0, 1], [0, 1, 0]])) == pytest.approx(4 / 3)  # a tie is no
