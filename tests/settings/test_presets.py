"""Presets of the package, files and run folders as starting points."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from twofold.errors import UserError
from twofold.settings.presets import (
    DISTILL,
    FEWLABEL,
    header_fields,
    open_preset,
    preset_listing,
    preset_names,
    preset_purposes,
    read_preset,
)
from twofold.settings.resolve import resolve, settings_hash, to_yaml
from twofold.settings.teaching import TeachingSettings
from twofold.settings.train import TrainSettings

MINIMAL = "data: digits\n"
# presets for one's own images, which leave the source open, so that nobody trains on digits by mistake
OWN_IMAGES = {
    *("images-32", "images-64", "finetune", "lora", "noisy-mlp", "latent-128", "latent-256", "sr-x2", "sr-x4"),
    "sr-x4-rdn",
    *("autoencoder-kl-f8", "autoencoder-128", "autoencoder-256"),
    *("iddm-64", "iddm-anime", "iddm-neu", "iddm-nrsd", "iddm-wood"),
}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_complete_and_says_what_it_is(name: str) -> None:
    preset = open_preset(name)
    own = [("test", {"data": {"source": "photos"}})] if name in OWN_IMAGES else []
    if name in OWN_IMAGES:
        with pytest.raises(UserError, match=r"data(\.source)?: not set"):
            resolve(TrainSettings, preset.layers)
    if name == "latent-fashion-mini":  # whose autoencoder is one's own, too
        own = [("test", {"codec": {"source": "runs/autoencoder"}})]
    found, origin = resolve(TrainSettings, [*preset.layers, *own])
    assert found.train.n_images > 0
    labels = [label for label, values in [*preset.layers, *own] if values]
    assert set(origin.values()) <= set(labels) and labels[-1] in origin.values()  # what is extended may be overridden
    header = header_fields(preset.header)
    assert {"purpose", "data", "machine", "expected"} <= set(header), "its header is incomplete"
    assert all(header.values())
    assert preset_purposes()[name] == header["purpose"]
    assert read_preset(name)[1] == preset.header
    assert resolve(TrainSettings, [("x", read_preset(name)[0]), *own])[0] == found


def test_there_are_presets() -> None:
    assert {"ddpm-cifar10", "ddae-cifar10-ddpm"} <= set(preset_names())


def test_the_listing_has_a_line_for_each() -> None:
    lines = preset_listing().splitlines()
    assert lines[0] == "presets:"
    assert [line.split()[0] for line in lines[1:]] == preset_names()


def test_names_and_their_nearest() -> None:
    with pytest.raises(UserError) as error:
        open_preset("ddpm-cifar11")
    assert str(error.value) == "ddpm-cifar11: no such preset; did you mean 'ddpm-cifar10'?"
    with pytest.raises(UserError, match=r"^zzz: no such preset; valid: "):
        open_preset("zzz")


def test_a_file_and_what_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("# purpose: base\n" + MINIMAL + "train: {lr: 1e-3, n_images: 500}\n")
    (tmp_path / "mine.yaml").write_text("# purpose: mine\n#   and more\n\nextends: base.yaml\ntrain: {n_images: 9}\n")
    preset = open_preset(str(tmp_path / "mine.yaml"))
    assert preset.name == "mine"
    assert [label for label, _ in preset.layers] == [f"file {tmp_path}/base.yaml", f"file {tmp_path}/mine.yaml"]
    assert header_fields(preset.header) == {"purpose": "mine and more"}
    found, _ = resolve(TrainSettings, preset.layers)
    assert math.isclose(found.train.lr, 1e-3)
    assert (found.train.n_images, found.data.source) == (9, "digits")


def test_a_file_may_extend_a_preset_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: ddpm-cifar10\nnoise: {kind: edm}\n")
    found, origin = resolve(TrainSettings, open_preset(str(tmp_path / "mine.yaml")).layers)
    base, _ = resolve(TrainSettings, open_preset("ddpm-cifar10").layers)
    assert found.network == base.network
    assert found.noise.kind == "edm"
    assert origin["network.channels"] == "preset ddpm-cifar10"


def test_families_of_presets_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name belongs to one verb, and what a file extends is of its own family."""
    listed = [set(preset_names(family)) for family in ("", FEWLABEL, DISTILL)]
    assert all(listed) and not (listed[0] & listed[2]) and not (listed[1] & listed[2])
    with pytest.raises(UserError, match=r"^kd-mini: no such preset; "):
        open_preset("kd-mini")
    with pytest.raises(UserError, match=r"^kd-minni: no such preset; did you mean 'kd-mini'\?"):
        open_preset("kd-minni", DISTILL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "extends: kd-mini\nfinetune: {objective: {teacher: runs/a}, train: {lr: 1e-2}}\n"
    )
    found, origin = resolve(TeachingSettings, open_preset("mine.yaml", DISTILL).layers)
    assert (found.finetune.train.lr, found.finetune.objective.kind) == (1e-2, "kd")
    assert origin["finetune.train.optimizer"] == "preset kd-mini"
    with pytest.raises(UserError, match=r"extends: kd-mini: no such preset or file"):
        open_preset("mine.yaml")


def test_a_run_folder_starts_the_same_run_again(tmp_path: Path) -> None:
    found, _ = resolve(TrainSettings, [("x", {"data": "digits", "train": {"n_images": 77}})])
    run = tmp_path / f"mini-{settings_hash(found)}"
    run.mkdir()
    (run / "settings.yaml").write_text(to_yaml(found, "twofold train mini"))
    preset = open_preset(str(run))
    assert preset.name == "mini"  # so that the default folder is this one again
    assert resolve(TrainSettings, preset.layers)[0] == found


@pytest.mark.parametrize(
    ("files", "argument", "message"),
    [
        ({"empty/x": ""}, "empty", "empty: not a run folder (it has no settings.yaml); give a preset, a file or a run"),
        ({}, "none.yaml", "none.yaml: no such file or run folder"),
        ({}, "runs/none", "runs/none: no such file or run folder"),
        (
            {"a.yaml": "extends: a.yaml\n"},
            "a.yaml",
            "file a.yaml: extends: a.yaml: extends itself; file a.yaml <- file a.yaml",
        ),
        (
            {"a.yaml": "extends: b.yaml\n", "b.yaml": "extends: a.yaml\n"},
            "a.yaml",
            "file b.yaml: extends: a.yaml: extends itself; file a.yaml <- file b.yaml <- file a.yaml",
        ),
        (
            {"a.yaml": "extends: ddpm-cifar1\n"},
            "a.yaml",
            "file a.yaml: extends: ddpm-cifar1: no such preset or file; did you mean 'ddpm-cifar10'?",
        ),
        ({"a.yaml": "- 1\n"}, "a.yaml", "file a.yaml: holds no settings; write one `name: value` a line"),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], argument: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        open_preset(argument)
    assert str(error.value) == message


def test_a_mistake_in_an_extended_file_names_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(MINIMAL + "train: {lr: fast}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(UserError, match=r"^train\.lr='fast' \(file base\.yaml\): must be a number"):
        resolve(TrainSettings, open_preset("mine.yaml").layers)
