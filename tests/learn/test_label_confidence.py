"""How often an unsure label is trained on: the rules by hand and by counting; without one nothing changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from twofold import noise as theory
from twofold.data import open_store, write_labels
from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.learn.batches import U_LABEL, Batch, Batches, asks_confidence, labelled_note, training_batches
from twofold.learn.objectives.denoising import DenoisingObjective, drop_chance
from twofold.settings.data import DataSettings
from twofold.settings.network import UNetSettings
from twofold.settings.noise import EDMNoise
from twofold.settings.train import Denoising, TrainSettings

P = 0.3
share = st.floats(0, 1)


class Listener(nn.Module):
    """Remembers with what labels it was asked."""

    def forward(self, x, c_noise, cond=None):  # type: ignore[no-untyped-def]
        self.label = cond["label"]
        return torch.zeros_like(x)


def chance(rule: str, p: float, *confidences: float) -> list[float]:
    found = drop_chance(Denoising(label_dropout=p, label_confidence=rule), torch.tensor(confidences))  # type: ignore[arg-type]
    return torch.as_tensor(found).expand(len(confidences)).tolist()


@given(p=share, c=st.floats(0, 1, width=32))
def test_the_rules_by_hand(p: float, c: float) -> None:
    assert chance("ignore", p, c) == pytest.approx([p])
    assert chance("published", p, 1.0, c, 0.0) == pytest.approx([0, p * (1 - c), p])
    assert chance("proportional", p, 1.0, c, 0.0) == pytest.approx([p, (1 - c) + c * p, 1])
    for rule in ("published", "proportional"):
        assert all(0 <= value <= 1 for value in chance(rule, p, c))


@pytest.fixture
def listed(tmp_path: Path) -> DataSettings:
    """The digits, every training label known, sure by 1, 0.5 and 0 in turn."""
    store = open_store(DataSettings(source="digits"))
    rows = store.indices("train")
    write_labels(
        tmp_path / "sure.csv", store, rows, store.labels[rows], np.array([1, 0.5, 0])[np.arange(len(rows)) % 3]
    )
    write_labels(tmp_path / "plain.csv", store, rows, store.labels[rows])
    return DataSettings(source="digits", labels=str(tmp_path / "sure.csv"))


def settings_of(data: DataSettings, rule: str, classes: int | None = 10) -> TrainSettings:
    network = UNetSettings(channels=8, multipliers=(1,), classes=classes)
    return TrainSettings(data=data, network=network, objective=Denoising(label_dropout=P, label_confidence=rule))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "shares"), [("ignore", (P, P, P)), ("published", (0, P / 2, P)), ("proportional", (P, 0.5 + P / 2, 1))]
)
def test_labels_are_dropped_as_often_as_the_rule_says(
    listed: DataSettings, rule: str, shares: tuple[float, ...]
) -> None:
    settings, store = settings_of(listed, rule), open_store(listed)
    batch = training_batches(settings, store, 3, True, 0).make(0, 4000)
    assert (batch.confidence is None) == (rule == "ignore")
    listener = Listener()
    denoiser = NetworkDenoiser(listener, theory.family(EDMNoise()), (1, 8, 8), classes=10)
    DenoisingObjective(denoiser, settings.objective)(batch)  # type: ignore[arg-type]
    assert torch.equal(listener.label[listener.label >= 0], batch.label[listener.label >= 0])
    sure = Batches(store, store.indices("train"), 0, 3, False, False, confidence=True).make(0, 4000).confidence
    assert sure is not None
    for value, wanted in zip((1, 0.5, 0), shares, strict=True):
        dropped = (listener.label[sure == value] < 0).double()
        assert dropped.mean() == pytest.approx(wanted, abs=4 * (wanted * (1 - wanted) / len(dropped)) ** 0.5)


def test_nothing_changes_where_confidence_is_not_asked_for(listed: DataSettings) -> None:
    store = open_store(listed)
    plain = training_batches(settings_of(listed, "ignore"), store, 3, True, 0).make(5, 40)
    asked = training_batches(settings_of(listed, "published"), store, 3, True, 0).make(5, 40)
    for name in ("images", "label", "uniforms", "noise"):
        assert torch.equal(getattr(plain, name), getattr(asked, name))
    listener = Listener()
    denoiser = NetworkDenoiser(listener, theory.family(EDMNoise()), (1, 8, 8), classes=10)
    DenoisingObjective(denoiser, Denoising(label_dropout=P))(asked)
    dropped = asked.uniforms[:, U_LABEL] < P
    assert torch.equal(listener.label, torch.where(dropped, -1, asked.label))


def test_confidence_goes_through_micro_batches_and_stays_on_the_cpu(
    listed: DataSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # which needs a GPU
    store = open_store(listed)
    batch = Batches(store, store.indices("train"), 0, 3, True, False, confidence=True).make(0, 10)
    assert batch.confidence is not None and batch.confidence.dtype == torch.float32
    assert torch.equal(torch.cat([part.confidence for part in batch.split(4)]), batch.confidence)  # type: ignore[misc]
    moved = Batch(batch.images, batch.label, batch.uniforms, None, confidence=batch.confidence).to(torch.device("meta"))
    assert moved.images.is_meta and moved.confidence is batch.confidence


def test_a_rule_without_a_label_file_is_a_mistake(listed: DataSettings) -> None:
    store = open_store(DataSettings(source="digits"))
    with pytest.raises(UserError, match="^objective.label_confidence: no label file says how sure a label is; give da"):
        training_batches(settings_of(store.settings, "published"), store, 3, True, 0)
    assert not asks_confidence(settings_of(store.settings, "published", classes=0))  # an unconditional one has no label
    training_batches(settings_of(store.settings, "published", classes=0), store, 3, True, 0)


def test_that_nothing_unconditional_is_learned_is_said(listed: DataSettings) -> None:
    def note(file: str, rule: str, split: str) -> str:
        data = listed.model_copy(update={"labels": str(Path(listed.labels or "").with_name(file))})
        store = open_store(data)
        return labelled_note(settings_of(data, rule), store, store.indices(split))

    assert "guidance will have nothing to start from" in note("plain.csv", "published", "train")
    assert note("sure.csv", "published", "train") == note("plain.csv", "proportional", "train") == ""
    assert note("plain.csv", "ignore", "train") == note("plain.csv", "published", "test") == ""
