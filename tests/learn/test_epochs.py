"""Durations in epochs, what is kept and drawn on the way, where a cosine ends, and what being off costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from twofold.cli.main import main
from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.events import Note, Previewed, Saved, Stepped
from twofold.learn.objectives.denoising import DISTANCES
from twofold.learn.optimise import learning_rate
from twofold.run import Run
from twofold.settings.every import Epochs, has_epochs, in_images
from twofold.settings.resolve import from_yaml, resolve, settings_hash, to_yaml
from twofold.settings.train import Denoising, LoopSettings, TrainSettings

from .common import TINY, same, tiny, weights

TRAIN = 63  # images of the training part of `few`
IDDM: dict[str, Any] = {
    "network": {"kind": "iddm", "channels": 8, "multipliers": [1, 2], "heads": 2},
    "noise": {"kind": "vp", "first": 1},
    "data": {"most": 90, "crop_area": [0.8, 1]},
    "train": {
        "n_images": "4epochs",
        "batch_size": 16,
        "optimizer": "adamw",
        "save_images": "1epoch",
        "validate_images": "2 epochs",
        "preview_images": "1epoch",
        "preview_n": "classes",
        "preview_raw": True,
        "snapshot_every": "1epoch",
        "snapshots_from": "2epochs",
        "warmup_images": "1epoch",
        "ema_halflife_images": 2212,
        "schedule": "cosine",
        "lr_end": 0.01,
    },
    "validation": {"max_images": 16, "samples": 0, "steps": 2},
}


def few(**loop: Any) -> TrainSettings:
    """IDDM's network, narrow, on 90 digits for four epochs."""
    return resolve(TrainSettings, [("tiny", TINY), ("iddm", IDDM), ("test", {"train": loop})])[0]


class Interrupted(Exception):
    """Stands for a process that dies at this point."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """An uninterrupted run, and its events."""
    path, events = tmp_path_factory.mktemp("whole") / "run", list[Any]()
    train(few(), path, "cpu", events.append)
    return path, events


def test_the_run_says_images(whole: tuple[Path, list[Any]]) -> None:
    loop = Run(whole[0]).settings().train
    assert not has_epochs(loop)
    assert (loop.n_images, loop.save_images, loop.validate_images, loop.snapshots_from) == tuple(
        n * TRAIN for n in (4, 1, 2, 2)
    )
    last = [event for event in whole[1] if isinstance(event, Stepped)][-1]
    assert last.total == 4 * TRAIN and last.n_images == 256  # the first batch's end at or past it


def test_something_happens_every_epoch(whole: tuple[Path, list[Any]]) -> None:
    """At the first batch that ends at or past the epoch's last image."""
    ends = [-(-n * TRAIN // 16) * 16 for n in (1, 2, 3, 4)]
    path, events = whole
    assert [event.n_images for event in events if isinstance(event, Saved)] == ends
    assert [n for _, n in Run(path).numbered_snapshots()] == ends[1:]  # from two epochs on
    drawn = [event for event in events if isinstance(event, Previewed)]
    assert [(event.n_images, event.averaged) for event in drawn] == [(n, avg) for n in ends for avg in (True, False)]
    for event in drawn:
        assert event.labels == list(range(10)) and event.images.shape == (10, 1, 8, 8)
    averaged, raw = drawn[-2:]
    assert not torch.equal(averaged.images, raw.images)
    np.testing.assert_array_equal(np.load(Run(path).previews / f"{ends[-1]:012d}.npy"), averaged.images.numpy())


@pytest.mark.parametrize("at", [64, 144])
def test_killed_and_continued_is_bit_identical(whole: tuple[Path, list[Any]], tmp_path: Path, at: int) -> None:
    def die(event: object) -> None:
        if isinstance(event, Stepped) and event.n_images == at:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(few(), tmp_path / "run", "cpu", die)
    notes: list[str] = []
    train(few(), tmp_path / "run", "cpu", lambda e: notes.append(e.text) if isinstance(e, Note) else None)
    assert at == 64 or any(note.startswith("resumed at 128") for note in notes)
    assert same(weights(whole[0]), weights(tmp_path / "run"))
    for name in ("state/000000000256/tensors.safetensors", "snapshots/000000000192.safetensors"):
        assert same(weights(whole[0], name), weights(tmp_path / "run", name))


def test_the_same_run_by_name_with_images(whole: tuple[Path, list[Any]]) -> None:
    """A run that is told images where it was told epochs is the same run, and done."""
    notes: list[str] = []
    show = lambda e: notes.append(e.text) if isinstance(e, Note) else None  # noqa: E731
    train(from_yaml(TrainSettings, whole[0] / "settings.yaml"), whole[0], "cpu", show)
    assert notes == [f"{whole[0]} is finished; nothing to do"]


def test_previews_become_figures_while_it_trains(tmp_path: Path) -> None:
    words = ["data=digits", "data.most=90", "train.n_images=1epoch", "train.preview_images=1epoch", "network.heads=2"]
    words += ["network.channels=8", "network.multipliers=[1,2]", "train.batch_size=16", "validation.steps=2"]
    words += ["train.save_images=1epoch", "train.snapshot_every=null", "data.size=8", "validation.max_images=8"]
    assert main(["train", "iddm-64", *words, "--out", str(tmp_path / "run"), "--device", "cpu", "--quiet"]) == 0
    names = {path.name for path in (tmp_path / "run" / "figures").glob("preview-*")}
    assert names == {"preview-000000000064.png", "preview-000000000064-raw.png"}
    assert 'aria-labelledby="noising"' in (tmp_path / "run" / "report.html").read_text()


def test_a_dry_run_knows_the_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "iddm-mini", "data.most=90", "train.n_images=3epochs", "--dry-run", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert f"n_images: {3 * TRAIN}" in out and "epochs" not in out


def test_epochs_are_written_as_they_were_read() -> None:
    settings = few()
    assert isinstance(settings.train.n_images, Epochs) and str(settings.train.n_images) == "4epochs"
    assert from_yaml(TrainSettings, to_yaml(settings), "text") == settings
    assert "save_images: 1epoch\n" in to_yaml(settings)
    assert in_images(settings.train, 100).n_images == 400
    assert in_images(LoopSettings(), 100) == LoopSettings()


def test_lists_of_image_counts_take_epochs_too() -> None:
    """And mixed with images; those of a kind have to rise. Lists of images alone are written as they always were."""
    given: dict[str, Any] = {
        "schedule": "step",
        "step_images": [63, "2 epochs", "3epochs"],
        "snapshot_images": ["1epoch"],
    }
    settings = few(**given, lr_end=0.0)
    assert has_epochs(settings.train) and from_yaml(TrainSettings, to_yaml(settings), "text") == settings
    known = in_images(settings.train, TRAIN)
    assert known.step_images == (63, 126, 189) and known.snapshot_images == (63,) and not has_epochs(known)
    assert [learning_rate(known, n) / known.lr for n in (125, 126, 189)] == pytest.approx([0.1, 0.01, 0.001])
    assert LoopSettings(schedule="step", step_images=(5, 7)).model_dump(mode="json")["step_images"] == [5, 7]
    with pytest.raises(ValidationError, match=r"step_images=\[3epochs, 2epochs\] do not rise"):
        LoopSettings.model_validate({"schedule": "step", "step_images": ["3epochs", "2epochs"]})


@pytest.mark.parametrize("text", ["0epochs", "epochs", "-1epoch", "1.5epochs", "3epoc", "images"])
def test_what_is_no_duration_is_said(text: str) -> None:
    with pytest.raises(UserError, match=r"train\.n_images=.*must be a whole number >= 1"):
        tiny(n_images=text)


def test_epochs_are_not_reckoned_with_before_they_are_known() -> None:
    epochs = few().train.n_images
    for wrong in (lambda: 10 / epochs, lambda: epochs * 2, lambda: epochs // 3, lambda: 2 - epochs):
        with pytest.raises(UserError, match="4epochs: how many images an epoch has is not known here"):
            wrong()


def test_a_run_of_before_has_the_hash_of_before() -> None:
    """What was added is not written where it says nothing new."""
    told = tiny().model_dump(mode="json")
    assert not {"lr_end", "snapshot_every", "snapshots_from", "preview_n", "preview_raw"} & told["train"].keys()
    assert "distance" not in told["objective"] and "crop_area" not in told["data"]
    assert settings_hash(tiny()) == settings_hash(tiny(preview_n=64, lr_end=0.0))
    assert settings_hash(tiny()) != settings_hash(tiny(preview_n=63))


@pytest.mark.parametrize(("kind", "expected"), [("unet", "2d5fcca1"), ("dit", "f265d7bb"), ("uvit", "81575ca0")])
def test_a_folder_of_before_is_found_again(kind: str, expected: str) -> None:
    """Hashes as they were before any of these settings was there: they are in the names of people's runs."""
    old = {"data": {"source": "digits"}, "noise": {"kind": "vp"}, "objective": {"kind": "denoising"}}
    assert settings_hash(resolve(TrainSettings, [("old", {**old, "network": {"kind": kind}})])[0]) == expected


def test_a_cosine_ends_where_it_is_told() -> None:
    loop = LoopSettings(n_images=1000, batch_size=10, lr=3e-4, schedule="cosine", lr_end=0.01)
    assert learning_rate(loop, 0) == pytest.approx(3e-4)
    assert learning_rate(loop, 500) == pytest.approx(3e-4 * (0.01 + 0.99 / 2))
    assert learning_rate(loop, 1000) == pytest.approx(3e-6)
    warm = loop.model_copy(update={"warmup_images": 100})
    assert 0 < learning_rate(warm, 0) < learning_rate(warm, 90) < 3e-4  # it does not begin with an epoch at 0


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("mse", F.mse_loss), ("l1", F.l1_loss), ("huber", F.huber_loss), ("smooth_l1", F.smooth_l1_loss)],
)
def test_distances_are_those_of_torch(name: str, theirs: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    output = (3 * torch.randn(500, generator=generator, dtype=torch.float64)).requires_grad_()
    target = torch.randn(500, generator=generator, dtype=torch.float64)
    ours, expected = DISTANCES[name](output - target).mean(), theirs(output, target)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    mine, his = (torch.autograd.grad(loss, output)[0] for loss in (ours, expected))
    torch.testing.assert_close(mine, his, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["l1", "huber", "smooth_l1"])
def test_each_distance_trains(name: str, tmp_path: Path) -> None:
    settings = tiny(n_images=64)
    settings = settings.model_copy(update={"objective": Denoising(distance=name)})  # type: ignore[arg-type]
    result = train(settings, tmp_path / "run", "cpu")
    assert result["nonfinite_steps"] == 0 and 0 < result["metrics"]["loss"] < 2


def test_settings_that_say_nothing_together() -> None:
    with pytest.raises(ValidationError, match="lr_end=0.1 is where schedule=cosine ends, not constant"):
        LoopSettings(lr_end=0.1)
    with pytest.raises(ValidationError, match="snapshots_from says where snapshot_every begins"):
        LoopSettings(snapshots_from=5)
    with pytest.raises(UserError, match="objective.distance=l1 is no part of objective.loss=vlb"):
        wrong = {"objective": {"distance": "l1", "loss": "vlb"}, "network": {"learned_variance": True}}
        resolve(TrainSettings, [("tiny", TINY), ("test", {**wrong, "noise": {"kind": "vp"}})])
