"""Few labels: parts with names made of their inputs, pseudo labels, and the three stages end to end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import twofold
from twofold.data import open_store
from twofold.errors import UserError
from twofold.learn.fewlabel import Watch, features, run
from twofold.learn.fewlabel.parts import different
from twofold.learn.fewlabel.pseudo import pseudo_labels
from twofold.learn.fewlabel.subject import Subject, complete
from twofold.settings.data import DataSettings
from twofold.settings.fewlabel import FewLabelSettings, PseudoSettings
from twofold.settings.fewlabel_layers import layers_of
from twofold.settings.resolve import parse_assignments, resolve

TINY = [
    "diffusion.network.channels=8",
    "diffusion.network.attention=[]",
    "diffusion.train.batch_size=32",
    "diffusion.train.n_images=128",
    "diffusion.train.save_images=64",
    "generator.n_images=64",
    "images.per_class=3",
    "images.steps=2",
    "images.micro_batch=10",
    "features.draws=1",
    "features.sigmas=[0.1]",
    "final.learner.kind=logistic",
    "final.pseudo=0",
    "pseudo.surest=1",
]


def settings_of(*words: str) -> FewLabelSettings:
    layers, _ = layers_of("mini", parse_assignments([*TINY, *words]))
    return resolve(FewLabelSettings, layers)[0]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 digits with a split and a label file of their own: two labels of each class are known."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    found = load_digits()
    images = (found.images[:240] * 255 / 16).astype(np.uint8)
    splits = np.array(["train"] * 180 + ["test"] * 60)
    np.savez(folder / "digits.npz", images=images, labels=found.target[:240], splits=splits)
    store = open_store(DataSettings(source=str(folder / "digits.npz")))
    rows = [int(row) for c in range(10) for row in np.flatnonzero(found.target[:180] == c)[:2]]
    lines = ["id,class", *(f"{store.id(row)},{store.classes[store.all_labels[row]]}" for row in rows)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


class Heard(Watch):
    """Keeps what is said, and which runs were trained."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def done(
    digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """A finished experiment: its folder, result and pictures."""
    out = tmp_path_factory.mktemp("fewlabel") / "out"
    settings = settings_of(f"data={digits / 'digits.npz'}", f"labels={digits / 'labels.csv'}")
    yield out, *run(settings, out, "cpu")


# -- parts and pseudo labels ----------------------------------------------------------------------------------------


def test_what_is_different_is_named() -> None:
    before = {"learner": {"k": 8, "kind": "x"}, "labels": "a" * 64}
    now = {"learner": {"k": 5, "kind": "x"}, "labels": "b" * 64}
    assert different(before, now) == ["learner.k: 8 -> 5", "labels: aaaaaaaa -> bbbbbbbb"]
    assert different(now, now) == []


def test_pseudo_labels_keep_what_is_known() -> None:
    logits = np.array([[5.0, 0.0], [0.0, 5.0], [1.0, 0.0], [0.0, 0.1]], np.float32)
    own = np.array([1, -1, -1, -1])
    found = pseudo_labels(logits, own, PseudoSettings(balanced=False))
    assert found.labels.tolist() == [1, 1, 0, 1]
    assert found.confidence[0] == 1
    assert found.confidence[1] == pytest.approx(1 / (1 + np.exp(-5)), rel=1e-5)


def test_unsure_images_stay_unlabelled() -> None:
    logits = np.array([[5.0, 0.0], [1.0, 0.0], [0.1, 0.0], [0.0, 3.0], [0.0, 0.2]], np.float32)
    none = np.full(5, -1)
    least = pseudo_labels(logits, none, PseudoSettings(balanced=False, least=0.7))
    assert least.labels.tolist() == [0, 0, -1, 1, -1]
    surest = pseudo_labels(logits, none, PseudoSettings(balanced=False, surest=0.5))
    assert surest.labels.tolist() == [0, 0, -1, 1, -1]  # the better two of three, the better one of two


def test_balanced_pseudo_labels_share_the_images_out() -> None:
    """All images look a little more like the first class; half of them, the least so, are given to the second."""
    logits = np.stack([np.linspace(0.1, 2, 20), np.zeros(20)], 1).astype(np.float32)
    found = pseudo_labels(logits, np.full(20, -1), PseudoSettings())
    assert np.bincount(found.labels).tolist() == [10, 10]
    assert pseudo_labels(logits, np.full(20, -1), PseudoSettings(balanced=False)).labels.max() == 0


def test_features_are_read_once_and_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CHUNK", 4)
    seen: list[int] = []

    def images(rows: np.ndarray) -> torch.Tensor:
        seen.extend(rows.tolist())
        return torch.from_numpy(rows).view(-1, 1, 1, 1).to(torch.uint8)

    def embed(batch: torch.Tensor) -> torch.Tensor:
        return batch.flatten(1).float() * torch.tensor([[1.0, 2.0]])

    rows = np.arange(10)[::-1].copy()
    found = features.extract(tmp_path, images, rows, embed, lambda done, total: None)
    assert sorted(seen) == list(range(10))
    assert torch.equal(found.all()[:, 1], 2 * torch.from_numpy(rows).float())
    assert torch.equal(found.take(np.array([7, 0, 3])), found.all()[[7, 0, 3]])
    found.files()[1].unlink()
    seen.clear()
    features.extract(tmp_path, images, rows, embed, lambda done, total: None)
    assert sorted(seen) == [2, 3, 4, 5]


def test_processes_share_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CHUNK", 3)

    def images(rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows).view(-1, 1, 1, 1).to(torch.uint8)

    def embed(batch: torch.Tensor) -> torch.Tensor:
        return batch.flatten(1).float()

    for rank in (0, 1):
        part = features.extract(tmp_path, images, np.arange(8), embed, lambda done, total: None, rank, 2)
    assert part.all().flatten().tolist() == list(range(8))


# -- the stages -----------------------------------------------------------------------------------------------------


def test_all_stages(done: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    out, result, pictures = done
    assert {"stage 1", "self-training", "generated alone", "stage 3"} == set(result["accuracy"])
    assert all(found["n"] == 60 for found in result["accuracy"].values())
    assert result["data"]["labelled"] == dict.fromkeys(map(str, range(10)), 2)
    assert result["accuracy"]["stage 1"]["value"] > 0.5  # of ten classes, from features of a hardly trained model
    assert result["pseudo"]["told"] == 160
    assert np.sum(result["pseudo"]["confusion"]) == 160
    assert pictures["samples"].shape == (10, 3, 1, 8, 8)
    assert json.loads((out / "result.json").read_text()) == result
    kinds = [row["name"] for row in result["parts"]]
    assert kinds[:6] == ["denoiser", "features", "classifier", "pseudo", "generator", "images"]


def test_what_comes_out_can_be_used(done: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    _, result, _ = done
    classifier: Any = twofold.load(result["classifier"])
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    assert classifier.image_logits(images).shape == (3, 10)
    generator: Any = twofold.load(result["generator"])
    assert generator.classes == 10
    assert list(generator.class_names) == [str(k) for k in range(10)]


def test_every_pseudo_image_has_a_seed_of_its_own(done: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    out, result, _ = done
    folder = next(out / row["folder"] for row in result["parts"] if row["name"] == "images")
    made = np.load(folder / "images.npz")
    assert np.bincount(made["arr_1"]).tolist() == [3] * 10
    assert len(np.unique(made["arr_0"].reshape(30, -1), axis=0)) == 30


def test_nothing_is_made_twice(done: tuple[Path, dict[str, Any], dict[str, Any]], digits: Path) -> None:
    out, result, _ = done
    settings = settings_of(f"data={digits / 'digits.npz'}", f"labels={digits / 'labels.csv'}")
    again, _ = run(settings, out, "cpu")
    assert {row["made"] for row in again["parts"]} == {"found"}
    assert again["accuracy"] == result["accuracy"]


def test_what_depends_on_a_change_is_redone_and_says_why(
    done: tuple[Path, dict[str, Any], dict[str, Any]], digits: Path
) -> None:
    out, _, _ = done
    words = f"data={digits / 'digits.npz'}", f"labels={digits / 'labels.csv'}", "learner.k=5", "stage=1"
    heard = Heard()
    found, _ = run(settings_of(*words), out, "cpu", heard)
    made = {row["name"]: (row["made"], row["because"]) for row in found["parts"]}
    assert made["denoiser"] == ("found", "")
    assert made["features"] == ("found", "")
    assert made["classifier"] == ("redone", "learner.k: 8 -> 5")
    assert any("learner.k" in line for line in heard.lines)


def test_shuffling_hidden_labels_changes_nothing_but_the_reported_accuracy(
    done: tuple[Path, dict[str, Any], dict[str, Any]], digits: Path, tmp_path: Path
) -> None:
    """Other labels of the training images that are not listed, and of the test images: the same parts, to the bit."""
    _, result, _ = done
    data = dict(np.load(digits / "digits.npz"))
    listed = {int(line.split(",")[0].rpartition(":")[2]) for line in (digits / "labels.csv").read_text().split()[1:]}
    hidden = np.array([row for row in range(240) if row not in listed])
    rng = np.random.default_rng(0)
    data["labels"][hidden] = rng.permutation(data["labels"][hidden])
    np.savez(tmp_path / "digits.npz", **data)
    settings = settings_of(f"data={tmp_path / 'digits.npz'}", f"labels={digits / 'labels.csv'}")
    other, _ = run(settings, tmp_path / "out", "cpu")
    assert other["data"]["hash"] != result["data"]["hash"]
    assert [row["hash"] for row in other["parts"]] == [row["hash"] for row in result["parts"]]
    assert other["pseudo"]["accuracy"] != result["pseudo"]["accuracy"]
    assert other["accuracy"]["stage 3"] != result["accuracy"]["stage 3"]


def test_a_killed_experiment_continues(
    done: tuple[Path, dict[str, Any], dict[str, Any]], digits: Path, tmp_path: Path
) -> None:
    """The generator is trained half, then nothing is left of the memory of it but its folder."""
    out, result, _ = done
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    parts = {row["name"]: copy / row["folder"] for row in result["parts"]}
    for name in ("generator", "images", "imagefeatures", "final"):
        (parts[name] / "part.json").unlink()
    (parts["images"] / "images.npz").unlink()
    settings = settings_of(f"data={digits / 'digits.npz'}", f"labels={digits / 'labels.csv'}")
    again, _ = run(settings, copy, "cpu")
    made = {row["name"]: row["made"] for row in again["parts"]}
    assert made["denoiser"] == "found"
    assert made["images"] == "made"
    assert [row["hash"] for row in again["parts"]] == [row["hash"] for row in result["parts"]]


# -- what can be wrong ----------------------------------------------------------------------------------------------


def test_a_class_without_a_label_is_named_before_anything_is_trained(digits: Path, tmp_path: Path) -> None:
    lines = (digits / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join(line for line in lines if not line.endswith((",3", ",7"))) + "\n")
    settings = settings_of(f"data={digits / 'digits.npz'}", f"labels={tmp_path / 'labels.csv'}")
    with pytest.raises(UserError, match="no training image of classes 3, 7 is labelled; label at least one"):
        run(settings, tmp_path / "out", "cpu")
    assert not (tmp_path / "out" / "parts").exists()


def test_more_labels_than_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="labels_per_class=500"):
        run(settings_of("data=digits", "labels_per_class=500"), tmp_path / "out", "cpu")


def test_few_labels_are_not_held_out(digits: Path, tmp_path: Path) -> None:
    """A flat folder and a label file: nothing is taken away for a test that nobody asked for."""
    from PIL import Image

    found = np.load(digits / "digits.npz")
    for i in range(30):
        Image.fromarray(found["images"][i]).save(tmp_path / f"{i:02d}.png")
    lines = ["id,class", *(f"{i:02d}.png,{found['labels'][i]}" for i in range(10))]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    settings = complete(settings_of(f"data={tmp_path}", f"labels={tmp_path / 'labels.csv'}"))
    subject = Subject(open_store(settings.data))
    assert (len(subject.train), len(subject.test)) == (30, 0)
    assert subject.classes == [str(k) for k in range(10)]
    assert (subject.hidden == -1).sum() == 30


def test_another_folder_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(UserError, match="not empty and is not a few-label experiment"):
        run(settings_of("data=digits", "labels_per_class=1"), tmp_path, "cpu")
    assert [p.name for p in tmp_path.iterdir() if p.name != "lock"] == ["thesis.txt"]
