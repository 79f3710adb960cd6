"""A U-ViT in training: what it starts from, what is adapted, how far its layers are from the end, what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from twofold.errors import UserError
from twofold.learn import start, train
from twofold.learn.estimate import estimate
from twofold.learn.lora import targeted
from twofold.learn.optimise import distances
from twofold.learn.start import start_from
from twofold.networks import build as build_network
from twofold.run import build, load
from twofold.settings.network import UViTSettings
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import TINY, tiny, weights

SMALL: dict[str, Any] = {"kind": "uvit", "patch": 2, "width": 16, "depth": 4, "heads": 2}
ROWS = 16  # positions of the patches of an 8x8 image


def settings_of(**changes: Any) -> TrainSettings:
    plain = {name: value for name, value in TINY.items() if name not in ("network", "noise")}
    own = {"network": SMALL, "noise": {"kind": "vp", "table": "continuous"}, "train": {"n_images": 32}}
    return resolve(TrainSettings, [("tiny", plain), ("test", {**own, **changes})])[0]


def denoiser_of(classes: list[str]) -> Any:
    """A small denoiser none of whose weights is 0."""
    settings = settings_of(network={**SMALL, "classes": len(classes)})
    model: Any = build(settings, (2, 8, 8), classes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


def started_from(source: Any, classes: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    model = denoiser_of(list(classes))
    monkeypatch.setattr(start, "source_model", lambda *_: source)
    start_from(model, tiny().model_copy(update={"init_from": "source"}))
    return model


@pytest.mark.parametrize(("old", "new"), [("abc", "bcd"), ("", "")])
def test_without_a_label_it_begins_as_its_source(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = denoiser_of(list(old))
    model, x = started_from(source, new, monkeypatch), torch.randn(2, 2, 8, 8)
    with torch.no_grad():
        assert torch.allclose(model.denoise(x, 0.5), source.denoise(x, 0.5), atol=1e-6)
        if old:
            b = (m.denoise(x, 0.5, {"label": torch.full((2,), i)}) for m, i in ((model, 0), (source, 1)))
            assert torch.allclose(*b, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [("abc", ""), ("", "bc")])
def test_the_token_of_a_label_comes_and_goes(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else is taken over: the positions of time and patches are where they were."""
    source = denoiser_of(list(old))
    model = started_from(source, new, monkeypatch)
    mine, theirs = (dict(m.network.named_parameters()) for m in (model, source))
    assert torch.equal(mine["positions"][:, -ROWS - 1 :], theirs["positions"][:, -ROWS - 1 :])
    shared = mine.keys() & theirs.keys() - {"positions", "label.weight"}
    assert len(shared) > 50 and all(torch.equal(mine[name], theirs[name]) for name in shared)
    if new:  # the new token is that of a patch of zeros, for every label until it has learned otherwise of one
        mean = theirs["positions"][:, 1:].mean(1) + theirs["stem.bias"]
        assert mine["positions"].shape[1] == ROWS + 2 and torch.allclose(mine["positions"][:, 0], mean, atol=1e-6)
        assert not bool(mine["label.weight"][-1].any())


def test_a_conditional_model_starts_from_an_unconditional_one(tmp_path: Path) -> None:
    """As in dual pseudo training; and how activations are kept is the new run's own."""
    train(settings_of(network={**SMALL, "classes": 0}), tmp_path / "source", "cpu")
    plain = {name: value for name, value in TINY.items() if name not in ("network", "noise")}
    more = {"init_from": str(tmp_path / "source"), "train": {"n_images": 64}}
    settings = resolve(TrainSettings, [("a", plain), ("b", {**more, "network": {"kind": "uvit", "checkpoint": True}})])
    result = train(settings[0], tmp_path / "run", "cpu")
    model = load(tmp_path / "run")
    assert model.classes == 10 and model.network.settings.checkpoint  # type: ignore[union-attr]
    assert weights(tmp_path / "run")["positions"].shape == (1, ROWS + 2, 16)
    assert result["init_from"]["new"] == [] and result["init_from"]["left_out"] == []
    with pytest.raises(UserError, match=r"network\.patch: is not what .* was trained with \(1, there 2\)"):
        changed = {**more, "network": {"kind": "uvit", "patch": 1}}
        train(resolve(TrainSettings, [("a", plain), ("b", changed)])[0], tmp_path / "other", "cpu")


def test_low_rank_updates_find_its_layers() -> None:
    network = build_network(UViTSettings(**SMALL, classes=3), (1, 8, 8))
    attention = targeted(network, "attention")
    assert len(attention) == 2 * 5 and "mid.attention.qkv" in attention
    every = targeted(network, "all")
    assert {"stem", "dec.1.skip", "out", "smooth"} <= every.keys() and "label" not in every


def test_distance_from_the_end_follows_execution() -> None:
    network = build_network(UViTSettings(**SMALL, classes=3, time_mlp=True), (1, 8, 8))
    far = distances(network, (1, 8, 8))
    assert far.keys() == dict(network.named_parameters()).keys()
    names = list(network.layers)  # type: ignore[arg-type]
    for name in names:
        mine = {d for parameter, d in far.items() if parameter.startswith(f"{name}.")}
        assert mine == {len(names) - names.index(name)}
    assert {far[name] for name in ("positions", "stem.weight", "label.weight", "time.first.weight")} == {5}
    assert {far[name] for name in ("norm.weight", "out.weight", "smooth.bias")} == {0}


def test_checkpointing_is_estimated() -> None:
    """A third more work, and less than half of the memory of the activations."""
    network = {**SMALL, "classes": 10}
    kept, anew = (
        estimate(settings_of(network={**network, "checkpoint": c}), (1, 8, 8), ["a"] * 10) for c in (False, True)
    )
    assert anew.parameters == kept.parameters and anew.flops == pytest.approx(kept.flops * 4 / 3)
    weights = kept.parameters * 20
    assert anew.memory - weights < 0.5 * (kept.memory - weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"kind": "joint"}}, "objective.kind=joint is for network.kind=unet, not uvit"),
        ({"objective": {"kind": "supervised"}}, "network.kind=uvit does not classify"),
        ({"objective": {"loss": "hybrid"}}, "objective.loss=hybrid needs network.learned_variance=true"),
        ({"objective": {"augment_probability": 0.1}}, "needs network.augment_dim=9"),
        ({"network": {**SMALL, "depth": 3}}, "depth=3 is odd"),
        ({"network": {**SMALL, "learned_variance": True}}, "network.*learned_variance"),
    ],
)
def test_what_it_is_not_for(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings_of(**changes)
