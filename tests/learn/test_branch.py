"""Runs that begin at another run's training state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.events import Note
from twofold.run import Run
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import TINY, same, tiny, weights
from .test_resume import Interrupted, die_at
from .test_start import pictures


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    train(tiny(keep_states=3), path, "cpu")
    return path


def branched(run: Path, at: str = "@128", *changes: dict[str, Any]) -> TrainSettings:
    layers = [("tiny", TINY), ("test", {"resume_from": f"{run}{at}"}), *(("change", change) for change in changes)]
    return resolve(TrainSettings, layers)[0]


def files_of(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_with_equal_settings_it_ends_as_the_other_did(whole: Path, tmp_path: Path) -> None:
    before, notes = files_of(whole), []
    show = lambda event: notes.append(event.text) if isinstance(event, Note) else None  # noqa: E731
    result = train(branched(whole), tmp_path / "run", "cpu", show)
    last = "state/000000000256/tensors.safetensors"
    assert same(weights(whole, last), weights(tmp_path / "run", last))
    assert same(weights(whole), weights(tmp_path / "run"))
    assert files_of(whole) == before  # only read
    assert any("branched off" in note and "128 images" in note for note in notes)
    assert not any("bit-identical" in note for note in notes) and result["n_images"] == 256
    assert all(row["n_images"] > 128 for row in Run(tmp_path / "run").log())
    assert (tmp_path / "run/snapshots/best-frechet.safetensors").exists()  # its own best


def test_network_and_noise_may_be_left_out(whole: Path, tmp_path: Path) -> None:
    own = {name: value for name, value in TINY.items() if name not in ("network", "noise")}
    settings = resolve(TrainSettings, [("tiny", own), ("test", {"resume_from": f"{whole}@192"})])[0]
    train(settings, tmp_path / "run", "cpu")
    assert same(weights(whole), weights(tmp_path / "run"))


def test_killed_and_continued_without_the_other_run(whole: Path, tmp_path: Path) -> None:
    """After its first own state it stands by itself; before it, it begins there again."""
    settings = branched(whole)
    with pytest.raises(Interrupted):
        train(settings, tmp_path / "run", "cpu", die_at(160))
    with pytest.raises(Interrupted):
        train(settings, tmp_path / "run", "cpu", die_at(224))
    hidden = whole.rename(tmp_path / "hidden")
    try:
        train(settings, tmp_path / "run", "cpu")
    finally:
        hidden.rename(whole)
    assert same(weights(whole), weights(tmp_path / "run"))


def test_what_is_set_otherwise_takes_effect_and_is_said(whole: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    change = {"train": {"lr": 1e-3, "batch_size": 16, "n_images": 288, "optimizer": "adamw"}}
    change |= {"objective": {"label_dropout": 0.5}, "network": {"dropout": 0.0}, "data": {"flip": True}}
    show = lambda event: notes.append(event.text) if isinstance(event, Note) else None  # noqa: E731
    train(branched(whole, "", change), tmp_path / "run", "cpu", show)  # from its newest
    rows = [row for row in Run(tmp_path / "run").log() if row["kind"] == "train"]
    assert [row["n_images"] for row in rows] == [288] and rows[0]["lr"] == 1e-3
    assert any("train.batch_size is not that of" in note and "other images" in note for note in notes)
    assert any("branched off" in note and "256" in note for note in notes)
    for path in ("train.lr", "objective.label_dropout", "network.dropout", "data.flip"):
        assert any(note.startswith(f"{path} is not that of") for note in notes), path
    state = weights(tmp_path / "run", "state/000000000288/tensors.safetensors")
    assert state["optimizer/enc.0.weight/step"] == 8 + 2  # adamw goes on with adam's moments


def test_moments_of_another_kind_begin_anew(whole: Path, tmp_path: Path) -> None:
    change = {"train": {"optimizer": "sgd", "n_images": 288}}
    train(branched(whole, "", change), tmp_path / "run", "cpu")
    state = weights(tmp_path / "run", "state/000000000288/tensors.safetensors")
    assert {name.rpartition("/")[2] for name in state if name.startswith("optimizer/")} == {"momentum_buffer"}


@pytest.mark.parametrize(
    ("at", "change", "message"),
    [
        ("@100", {}, r"run@100: no such training state, or not any more; there are: 128, 192, 256"),
        ("@64", {}, "no such training state"),  # not kept
        ("/nowhere", {}, "no such run folder"),
        ("", {}, r"is at 256 images, this run ends at 256; set train\.n_images higher"),
        ("@128", {"network": {"channels": 16}}, r"network\.channels: is not what"),
        ("@128", {"network": {"classes": 11}}, r"network\.classes: is not what"),
        ("@128", {"noise": {"sigma_data": 1.0}}, r"noise\.sigma_data: is not what"),
        ("@128", {"lora": {"rank": 2}}, r"lora\.?\w*: is not what .*; leave lora\S* out, or use init_from"),
        ("@128", {"data": {"test_share": 0.1}}, "was trained on other data, or another split of it; init_from="),
    ],
)
def test_what_does_not_fit(whole: Path, tmp_path: Path, at: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(branched(whole, at, change), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_other_data_is_for_init_from(whole: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos", "abcdefghij", each=4)
    with pytest.raises(UserError, match=r"other data.*init_from=\S+@128 starts from its weights"):
        train(branched(whole, "@128", {"data": {"source": str(folder)}}), tmp_path / "run", "cpu")


def test_a_damaged_state_is_named(whole: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(whole, tmp_path / "copy")
    facts = tmp_path / "copy/state/000000000128/state.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "sha256": "0"}))
    with pytest.raises(UserError, match=r"000000000128: damaged state .*; name another one"):
        train(branched(tmp_path / "copy"), tmp_path / "run", "cpu")
