"""Targets of attributes in words and numbers, and what is asked of a guide that knows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from twofold.denoiser import JointDenoiser
from twofold.errors import UserError
from twofold.generate import produce, sample
from twofold.generate.guide import make_guide
from twofold.generate.labels import check_labels, drawn_labels, requested
from twofold.generate.manifest import expand, png_labels, target_folders
from twofold.generate.targets import asked, log_probability, only, probability, read_target, target_text
from twofold.settings.sample import SampleSettings

NAMES = ["Smiling", "Male", "not Young", "Young"]
JointUNets = Callable[..., JointDenoiser]


def test_targets_in_words() -> None:
    assert read_target("Smiling;not Male", NAMES) == [1, 0, -1, -1]
    assert read_target(" Male ; not Smiling;", NAMES) == [0, 1, -1, -1]
    assert read_target("not Young", NAMES) == [-1, -1, 1, -1]  # a name comes first
    assert read_target("not not Young", NAMES) == [-1, -1, 0, -1]
    for text, what in (
        ("Smiling;not Smiling", "label=Smiling;not Smiling: asks for Smiling and for its absence"),
        ("Smiling;not Mole", "label=Smiling;not Mole: no attribute 'Mole'; did you mean 'Male'.*; names are joined by"),
        (" ; ", "names no attribute; names are joined by ';'"),
    ):
        with pytest.raises(UserError, match=what):
            read_target(text, NAMES)


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=3, max_size=3).filter(lambda target: max(target) >= 0))
def test_words_and_numbers_agree(target: list[int]) -> None:
    names = ["a", "b c", "d"]
    assert read_target(target_text(target, names), names) == target


def test_log_probabilities() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.5, 1.0]], dtype=torch.float64)
    label = torch.tensor([2, -1])
    found = log_probability(logits, label)
    torch.testing.assert_close(found, torch.stack([logits[0].log_softmax(0)[2], torch.zeros(()).double()]))
    target = torch.tensor([[1, 0, -1], [-1, -1, -1]])
    yes = torch.sigmoid(logits)
    torch.testing.assert_close(log_probability(logits, target)[0], (yes[0, 0] * (1 - yes[0, 1])).log())
    torch.testing.assert_close(probability(logits, target)[0], (yes[0, 0] * (1 - yes[0, 1])).sqrt())
    assert probability(logits, target)[1] == 1 and probability(logits, label)[1] == 1
    assert asked(label).tolist() == [True, False] and asked(target).tolist() == [True, False]
    assert only(torch.tensor([1, -1]), 3).tolist() == [[-1, 1, -1], [-1, -1, -1]]


def test_drawn_labels_belong_to_the_seed() -> None:
    values = np.arange(100)
    found = drawn_labels(values, range(1000))
    assert drawn_labels(values, [7, 3]).tolist() == found[[7, 3]].tolist()
    assert np.bincount(found, minlength=100).max() < 30 and len(set(found.tolist())) > 95
    assert drawn_labels(np.eye(3, dtype=np.int64), range(5)).shape == (5, 3)


class Attributes(nn.Module):
    """A classifier of somebody else that answers two questions, linear in x."""

    multi_label, class_names, shape = True, ("dark", "left"), (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Linear(192, 2)

    def logits(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self.weight(x.flatten(1))


@pytest.mark.parametrize("kind", ["representations", "own", "classifier"])
def test_every_guide_takes_attributes(joint_unet: JointUNets, kind: str) -> None:
    model = joint_unet("edm", True, ("dark", "left"))
    guide: Any = Attributes() if kind == "classifier" else kind
    how: dict[str, Any] = {"steps": 3, "micro_batch": 4, "guide": guide, "guide_scale": 3.0}
    found = sample(model, 2, "dark;not left", **how)
    assert torch.equal(found, sample(model, 2, torch.tensor([[1, 0], [1, 0]]), **how))
    assert torch.equal(found[:1], sample(model, 1, ["dark;not left"], **how))
    one = sample(model, 2, 0, **how)  # a label asks for one attribute and leaves the others free
    assert torch.equal(one, sample(model, 2, torch.tensor([[1, -1], [1, -1]]), **how))
    plain = sample(model, 2, steps=3, micro_batch=4)
    assert not torch.equal(one, found) and not torch.equal(one, plain)
    free = sample(model, 2, torch.tensor([[1, 0], [-1, -1]]), **how)
    assert torch.equal(free[0], found[0]) and torch.equal(free[1], plain[1])


def test_mistakes_with_attributes(joint_unet: JointUNets) -> None:
    model, single = joint_unet("edm", True, ("dark", "left")), joint_unet("edm")
    by, one = make_guide(model, "own"), make_guide(single, "own")
    for label, guide, what in (
        ("bright", by, "label=bright: no attribute 'bright'; valid: dark, left"),
        (torch.zeros((2, 3), dtype=torch.int64), by, r"label: attributes \(2, 3\) of 0 to 0; \(N, 2\) of 1 = there"),
        (torch.full((2, 2), 2), by, "label: attributes .* of 2 to 2"),
        (torch.full((2, 2), -1), by, "there is no label to guide towards"),
        (2, by, "label=2: no such class; labels are 0..1: dark, left, or -1"),
        (torch.zeros((2, 3), dtype=torch.int64), one, "label: attributes .* takes one label per image"),
        ("cow", one, "label=cow: no such class; valid: cat, dog, eel"),
        (3, one, "label=3: no such class; labels are 0..2: cat, dog, eel, or -1"),
        ([0, 1, 2], one, "label: 3 labels: for 2 images"),
    ):
        with pytest.raises(UserError, match=what):
            check_labels(model if guide is by else single, label, 2, guide=guide)
    with pytest.raises(UserError, match=r"label=cow: no such class; valid: cat, dog, eel, all, none"):
        requested(SampleSettings(label="cow"), single, "own")
    with pytest.raises(UserError, match="label=cow: .* takes labels with guide=own, guide=representations, or"):
        requested(SampleSettings(label="cow"), single)
    with pytest.raises(UserError, match="label=train: the training data of this model is not known here"):
        requested(SampleSettings(label="train"), single, "own")


def test_a_folder_of_attribute_targets(joint_unet: JointUNets, tmp_path: Path) -> None:
    model = joint_unet("edm", True, ("dark", "left"))
    asks = SampleSettings(n=3, micro_batch=2, steps=2, guide="own", label="dark;not left")
    done = produce(model, tmp_path / "a", asks, "abc")
    assert done.complete and [p.name for p in (tmp_path / "a/images").iterdir()] == ["dark_not_left"]
    with np.load(tmp_path / "a/images.npz") as archive:
        assert archive["arr_1"].dtype == np.int8 and archive["arr_1"].tolist() == [[1, 0]] * 3
    request = json.loads((tmp_path / "a/manifest.json").read_text())["request"]
    assert request["classes"] == ["dark;not left"] and request["attributes"] == ["dark", "left"]
    assert request["guide"] == {"kind": "own", "scale": 5.0, "interval": None}
    assert png_labels(request) == {f"dark_not_left/{seed}.png": 0 for seed in range(3)}
    assert produce(model, tmp_path / "a", asks, "abc").made == 0
    with pytest.raises(UserError, match="holds images of other settings: guide: "):
        produce(model, tmp_path / "a", asks.model_copy(update={"guide": "representations"}), "abc")
    targets = np.array([[1, -1], [0, 1], [-1, -1]])
    produce(model, tmp_path / "b", asks, "abc", labels=targets)
    request = json.loads((tmp_path / "b/manifest.json").read_text())["request"]
    assert request["classes"] == ["dark", "not dark;left"] and expand(request["labels"]).tolist() == [0, 1, -1]
    assert sorted(p.name for p in (tmp_path / "b/images").iterdir()) == ["all", "dark", "not_dark_left"]
    expected = sample(model, 3, torch.from_numpy(targets), guide="own", steps=2, micro_batch=2)
    with np.load(tmp_path / "b/images.npz") as archive:
        assert np.array_equal(archive["arr_0"], expected.numpy().transpose(0, 2, 3, 1))
        assert np.array_equal(archive["arr_1"], targets)


def test_many_or_long_targets_share_a_folder() -> None:
    assert target_folders(["a", "not a"]) == {-1: "all", 0: "a", 1: "not_a"}
    assert set(target_folders([f"a{k}" for k in range(101)]).values()) == {"all"}
    assert target_folders(["a" * 200]) == {-1: "all", 0: "all"}
