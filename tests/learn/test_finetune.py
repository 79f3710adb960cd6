"""Classifiers that start from a trained denoiser: what they take over, what they train, and that they need it once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.events import Note
from twofold.learn.optimise import distances, make_optimizer
from twofold.networks import build
from twofold.recognize.classifier import NetworkClassifier
from twofold.run import Run, load
from twofold.settings.network import ConvNetSettings, TrunkSettings, UNetSettings, WideResNetSettings
from twofold.settings.resolve import resolve
from twofold.settings.train import LoopSettings, TrainSettings

from .common import TINY, same, tiny, weights
from .test_resume import Interrupted, die_at


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser of digits, hardly trained."""
    path = tmp_path_factory.mktemp("source") / "run"
    train(tiny(n_images=64, validate_images=1000, preview_images=1000), path, "cpu")
    return path


def finetune(source: Path | None, *changes: dict[str, Any], **network: Any) -> TrainSettings:
    """A short run that starts from `source`."""
    own = {
        "data": {"source": "digits"},
        "network": {"kind": "trunk", **network},
        "objective": {"kind": "supervised", "sigma": 0.1, "shift": 1},
        "train": {**TINY["train"], "n_images": 128, "save_images": 64},
        "validation": {"max_images": 32},
    }
    start = {"init_from": str(source)} if source else {}
    return resolve(TrainSettings, [("test", {**own, **start}), *(("change", change) for change in changes)])[0]


def notes_of(settings: TrainSettings, out: Path) -> list[str]:
    notes: list[str] = []
    train(settings, out, "cpu", lambda event: notes.append(event.text) if isinstance(event, Note) else None)
    return notes


def test_a_run_takes_over_network_noise_and_weights(source: Path, tmp_path: Path) -> None:
    notes = notes_of(finetune(source, freeze=True, head="mlp", layer="out_1"), tmp_path / "run")
    assert any("left out, because they run after dec.0: dec.1" in note and "out.weight" in note for note in notes)
    mine, theirs = Run.open(tmp_path / "run").settings(), Run.open(source).settings()
    assert mine.network.unet == theirs.network and mine.noise == theirs.noise  # type: ignore[union-attr]
    model = load(tmp_path / "run")
    assert isinstance(model, NetworkClassifier) and model.sigma_range == load(source).sigma_range
    assert model.sigma == 0.1 and model.class_names == [str(i) for i in range(10)]
    before, after = weights(source), weights(tmp_path / "run")
    trunk = {name.removeprefix("unet."): value for name, value in after.items() if name.startswith("unet.")}
    assert len(trunk) > 20 and same(trunk, {name: before[name] for name in trunk})  # frozen: bit for bit
    assert not [name for name in trunk if name.startswith(("dec.1", "norm", "out"))]


def test_a_frozen_trunk_is_kept_once_and_not_optimised(source: Path, tmp_path: Path) -> None:
    train(finetune(source, freeze=True), tmp_path / "run", "cpu")
    state = load_file(tmp_path / "run/state/000000000128/tensors.safetensors")
    parts = {(name.split("/")[0], name.split("/")[1].split(".")[0]) for name in state}
    assert parts == {("weights", "unet"), ("weights", "head"), ("average", "head"), ("optimizer", "head")}


def test_a_trunk_that_is_not_frozen_is_trained(source: Path, tmp_path: Path) -> None:
    train(finetune(source), tmp_path / "run", "cpu")
    before, after = weights(source), weights(tmp_path / "run")
    trunk = {name.removeprefix("unet."): value for name, value in after.items() if name.startswith("unet.")}
    still = [name for name, value in trunk.items() if torch.equal(value, before[name])]
    assert still == ["embedding.label.weight"]  # it is given no labels
    assert all((value - before[name]).abs().max() < 0.05 for name, value in trunk.items())


def test_from_scratch_for_comparison(source: Path, tmp_path: Path) -> None:
    settings = finetune(source, {"train": {"n_images": 32, "seed": 1}}, pretrained=False)
    assert any("from scratch" in note for note in notes_of(settings, tmp_path / "run"))
    before, after = weights(source), weights(tmp_path / "run")
    assert (before["enc.0.weight"] - after["unet.enc.0.weight"]).abs().max() > 0.1
    alone = finetune(None, {"noise": {"kind": "edm"}}, unet={"channels": 8, "multipliers": [1, 2], "attention": []})
    assert not any("started" in note for note in notes_of(alone, tmp_path / "alone"))


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "layer_decay": 0.5, "lr": 0.01}], ids=["adam", "sgd"])
def test_an_interrupted_run_ends_the_same_without_its_source(
    source: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    shutil.copytree(source, tmp_path / "source")
    settings = finetune(tmp_path / "source", {"train": changes})
    train(settings, tmp_path / "whole", "cpu")
    with pytest.raises(Interrupted):
        train(settings, tmp_path / "run", "cpu", die_at(96))
    with pytest.raises(Interrupted):
        train(settings, tmp_path / "early", "cpu", die_at(32))
    shutil.rmtree(tmp_path / "source")
    train(settings, tmp_path / "run", "cpu")
    last = "state/000000000128/tensors.safetensors"
    assert same(weights(tmp_path / "whole", last), weights(tmp_path / "run", last))
    assert load(tmp_path / "run").shape == (1, 8, 8)
    with pytest.raises(UserError, match="no such run"):  # killed before its first state: it still needs it
        train(settings, tmp_path / "early", "cpu")


def test_a_run_can_be_repeated_from_its_own_settings(source: Path, tmp_path: Path) -> None:
    train(finetune(source, {"train": {"n_images": 64}}), tmp_path / "run", "cpu")
    again = Run.open(tmp_path / "run").settings()
    train(again, tmp_path / "again", "cpu")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "again"))


def test_dropout_and_the_distribution_of_levels_may_be_its_own(source: Path, tmp_path: Path) -> None:
    changes = {"network": {"unet": {"dropout": 0.0}}, "noise": {"kind": "edm", "p_mean": -2.0}}
    train(finetune(source, changes, {"train": {"n_images": 32}}), tmp_path / "run", "cpu")
    found = Run.open(tmp_path / "run").settings()
    assert found.network.unet.dropout == 0.0 and found.network.unet.channels == 8  # type: ignore[union-attr]
    assert found.noise.p_mean == -2.0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data": {"size": 32, "channels": 3}},
            r"was trained on 1x8x8 images, the data has 3x32x32; set data\.size=8x8 and data\.channels=1",
        ),
        ({"network": {"unet": {"channels": 16}}}, r"network\.unet\.channels: is not what .* was trained with"),
        ({"noise": {"kind": "edm", "sigma_data": 1.0}}, r"noise\.sigma_data: is not what"),
        ({"noise": {"kind": "vp"}}, r"noise\.kind: is not what"),
        ({"network": {"layer": "dec.7"}}, r"network\.layer=dec\.7: no such layer"),
        ({"init_from": "runs/nowhere"}, "no such run"),
        ({"init_from": None}, r"network\.unet: .*give init_from=RUN"),
        ({"objective": {"sigma": 1000}}, r"objective\.sigma=1000: outside"),
        ({"network": {"kind": "convnet"}, "objective": {"sigma": 0}}, "is no classifier; network.kind=trunk makes one"),
        ({"lora": {"rank": 4}, "network": {"freeze": True}}, "lora adapts what network.freeze=true leaves alone"),
    ],
)
def test_what_does_not_fit_is_said_before_a_folder_is_made(
    source: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(finetune(source, change), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_a_classifier_is_no_source(source: Path, tmp_path: Path) -> None:
    train(finetune(source, {"train": {"n_images": 32}}), tmp_path / "run", "cpu")
    with pytest.raises(UserError, match="is a classifier; give the run of a denoiser"):
        train(finetune(tmp_path / "run"), tmp_path / "second", "cpu")


def test_weights_that_are_missing_are_named(source: Path, tmp_path: Path) -> None:
    """A source that changed since the run began."""
    from twofold.learn.start import start_from
    from twofold.run import build as build_model

    other = {"channels": 8, "multipliers": [1, 2, 2], "blocks": 1, "attention": []}
    settings = finetune(source, {"noise": {"kind": "edm"}}, unet=other)
    model = build_model(settings, (1, 8, 8), [str(i) for i in range(10)])
    with pytest.raises(UserError, match=r"weights of the trunk are not there: .*begun with"):
        start_from(model, settings)


SMALL = UNetSettings(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=0)


def test_distance_from_the_head_follows_execution() -> None:
    trunk = build(TrunkSettings(unet=SMALL, layer="dec.2", head="mlp"), (1, 8, 8), 5)
    far = distances(trunk, (1, 8, 8))
    assert far.keys() == dict(trunk.named_parameters()).keys()
    names = list(trunk.layers)  # type: ignore[arg-type]
    assert names == ["enc.0", "enc.1", "enc.2", "enc.3", "mid", "dec.0", "dec.1", "dec.2"]
    for name in names:
        mine = {d for parameter, d in far.items() if parameter.startswith(f"unet.{name}.")}
        assert mine == {len(names) - names.index(name)}
    assert far["head.out.weight"] == far["head.emb1.weight"] == 0
    assert far["unet.embedding.first.weight"] == 8  # with the first layer
    assert far["unet.up.0.weight"] == 1  # with the block that it leads to
    wide = distances(build(WideResNetSettings(depth=10, width=1), (1, 8, 8), 5), (1, 8, 8))
    assert wide["stem.weight"] == 3 and wide["blocks.2.emb.weight"] == 1 and wide["norm.weight"] == 0
    plain = distances(build(ConvNetSettings(channels=8), (1, 8, 8), 5), (1, 8, 8))
    assert plain["stages.0.conv1.weight"] == 2 and plain["linear.weight"] == plain["norm.weight"] == 0


def test_layer_decay_makes_groups() -> None:
    trunk = build(TrunkSettings(unet=SMALL), (1, 8, 8), 5)
    far = distances(trunk, (1, 8, 8))
    optimizer = make_optimizer(trunk, LoopSettings(layer_decay=0.5), (1, 8, 8))
    scales = {id(p): group["scale"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: scales[id(p)] for name, p in trunk.named_parameters()} == {n: 0.5**d for n, d in far.items()}
    assert len(optimizer.param_groups) == len(trunk.layers) + 1  # type: ignore[arg-type]
    one = make_optimizer(trunk, LoopSettings()).param_groups
    assert len(one) == 1 and one[0]["scale"] == 1.0


def test_layer_decay_slows_what_is_far_from_the_head(source: Path, tmp_path: Path) -> None:
    """With SGD and a tiny rate the first step of each weight is proportional to its scale."""
    rate = {"optimizer": "sgd", "momentum": 0.0, "lr": 1e-3, "n_images": 32, "warmup_images": 0, "clip_norm": None}
    rate |= {"ema_halflife_images": 0}
    before = weights(source)
    moved = []
    for decay in (1.0, 0.5):
        change = {"train": {**rate, "layer_decay": decay}, "network": {"unet": {"dropout": 0.0}}}
        train(finetune(source, change), tmp_path / str(decay), "cpu")
        after = weights(tmp_path / str(decay))
        moved.append(
            {n: float((after[f"unet.{n}"] - before[n]).norm()) for n in ("enc.0.weight", "dec.1.conv1.weight")}
        )
    assert moved[1]["enc.0.weight"] / moved[0]["enc.0.weight"] == pytest.approx(0.5**7, rel=0.05)
    assert moved[1]["dec.1.conv1.weight"] / moved[0]["dec.1.conv1.weight"] == pytest.approx(0.5, rel=0.05)
