"""Choosing a head: by the validation part only, the right one, in groups that change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from twofold.data import label_subsets
from twofold.errors import UserError
from twofold.recognize import choose
from twofold.recognize.choose import Cell, Place, accuracies, best, joined_places, search, single_places
from twofold.recognize.few_labels import baseline, curve, scaled
from twofold.recognize.finding import answers
from twofold.recognize.linear import fit_logistic

K = 4


class FakeBank:
    """Features made up for the purpose: `good` tells classes apart by `signal`, by noise level; the rest is noise."""

    def __init__(self, labels: Tensor, views: int, seed: int, signal: dict[Place, float], widths: dict[str, int]):
        rng = np.random.default_rng(seed)
        self.layers, self.sigmas = tuple(widths), (0.1, 0.2, 0.4)
        self.table: dict[Place, np.ndarray] = {}
        for layer, width in widths.items():
            for sigma in self.sigmas:
                x = rng.standard_normal((views, len(labels), width)).astype("f4")
                x[:, :, :K] += signal.get((layer, sigma), 0.0) * np.eye(K, dtype="f4")[labels]
                self.table[layer, sigma] = x
        self.grid = type("Grid", (), {"views": type("Views", (), {"count": views})})
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def width(self, layer: str) -> int:
        return self.table[layer, 0.1].shape[2]

    def features(self, layer: str, sigma: float, views: Sequence[int] | None = None) -> np.ndarray:
        table = self.table[layer, sigma]
        return table if views is None else table[list(views)]


SIGNAL = {("a", 0.2): 2.0, ("a", 0.1): 1.2, ("b", 0.2): 1.2, ("c", 0.4): 1.0}
WIDTHS = {"a": 6, "b": 6, "c": 9}


def fit(x: Tensor, y: Tensor, sets: object) -> Any:
    return fit_logistic(x.flatten(1, 2), y.repeat(x.shape[1]), K, (1e-2, 1e-1), tolerance=1e-3)


@pytest.fixture(scope="module")
def banks() -> dict[str, FakeBank]:
    sizes = {"train": (120, 1, 1), "validation": (200, 3, 2), "test": (200, 3, 3)}
    return {
        name: FakeBank(torch.arange(n) % K, views, seed, SIGNAL, WIDTHS) for name, (n, views, seed) in sizes.items()
    }


def run(banks: dict[str, FakeBank], sets: Sequence[tuple[Place, ...]]) -> list[Cell]:
    train, validation = banks["train"], banks["validation"]
    return search(train, validation, (train.labels, validation.labels), sets, fit)  # type: ignore[arg-type]


def test_finds_the_place_with_the_signal(banks: dict[str, FakeBank]) -> None:
    cells = run(banks, single_places(banks["train"]))  # type: ignore[arg-type]
    assert len(cells) == 9 and [cell.places[0] for cell in cells] == [(n, s) for s in (0.1, 0.2, 0.4) for n in "abc"]
    top = best(cells)
    assert top.places == (("a", 0.2),) and top.l2 in (1e-2, 1e-1) and top.validation > 0.75
    assert min(cell.validation for cell in cells) < 0.35  # noise is at chance


def test_groups_change_nothing(banks: dict[str, FakeBank], monkeypatch: pytest.MonkeyPatch) -> None:
    sets = single_places(banks["train"])  # type: ignore[arg-type]
    together = run(banks, sets)
    monkeypatch.setattr(choose, "MOST_NUMBERS", 1)  # one at a time
    apart = run(banks, sets)
    for one, other in zip(together, apart, strict=True):
        assert (one.places, one.l2) == (other.places, other.l2)
        assert one.validation == pytest.approx(other.validation, abs=0.01)
        assert one.loss == pytest.approx(other.loss, abs=1e-3)


def test_joined_features_know_more(banks: dict[str, FakeBank]) -> None:
    cells = run(banks, single_places(banks["train"]))  # type: ignore[arg-type]
    sets = joined_places(cells, (1, 2, 3))
    assert (("a", 0.2), ("b", 0.2)) in sets and (("a", 0.1), ("a", 0.2)) in sets and all(len(s) > 1 for s in sets)
    assert len(sets) == len(set(sets))
    joined = run(banks, sets)
    assert best(joined).validation > best(cells).validation
    draws, averaged, logits = accuracies(best(joined), banks["test"], banks["test"].labels)  # type: ignore[arg-type]
    assert len(draws) == 3 and logits.shape == (200, K)
    assert averaged > np.mean(draws) > 0.75  # averaging over draws of noise helps


def test_equal_accuracy_is_decided_by_the_loss() -> None:
    head: Any = None
    cells = [Cell((("a", 0.1),), 0, 0.9, 0.5, head), Cell((("b", 0.1),), 0, 0.9, 0.4, head)]
    assert best(cells).places == (("b", 0.1),)


def test_label_subsets_are_nested_balanced_and_repeatable() -> None:
    labels = np.array([0, 1, 2, -1] * 20)
    found = label_subsets(labels, (1, 5, 20), draws=3, seed=0)
    for k, rows in found.items():
        assert rows.shape == (3, 3 * k)
        assert all((labels[draw] == np.repeat([0, 1, 2], k)).all() for draw in rows)
        assert all(len(set(draw)) == 3 * k for draw in rows)
    assert all(set(small) <= set(large) for small, large in zip(found[1], found[5], strict=True))
    assert not np.array_equal(found[1][0], found[1][1])
    again = label_subsets(labels, (5,), draws=3, seed=0)
    np.testing.assert_array_equal(again[5], found[5])
    with pytest.raises(UserError, match="labels_per_class=21.*smallest class has 20"):
        label_subsets(labels, (21,), 3, 0)
    with pytest.raises(UserError, match="1 labelled classes"):
        label_subsets(np.zeros(9, int), (1,), 3, 0)


def test_scaling_uses_the_training_images_only() -> None:
    train = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    one, other = scaled(train, torch.tensor([[5.0, 9.0]]))
    assert one.tolist() == [[-1.0, 0.0], [1.0, 0.0]] and other.tolist() == [[3.0, 0.0]]  # constant: 0, not infinite


def test_curve_chooses_on_validation_and_beats_noise(banks: dict[str, FakeBank]) -> None:
    labels = {name: bank.labels for name, bank in banks.items()}
    read_of_test = []

    def read(part: str, places: tuple[Place, ...]) -> Tensor:
        if part == "test":
            read_of_test.append(places)
        return choose.joined(banks[part], places).mean(0)  # type: ignore[arg-type]

    subsets = label_subsets(labels["train"].numpy(), (2, 20), 4, 0)
    found = curve(read, labels, single_places(banks["train"]), subsets, fit)  # type: ignore[arg-type]
    assert [row.k for row in found] == [2, 20] and all(len(row.test) == 4 for row in found)
    assert found[1].places == (("a", 0.2),) and found[1].mean > found[0].mean > 0.3
    assert len(read_of_test) == 2  # of the chosen ones only
    noise = torch.randn(120, 6), torch.randn(200, 6)
    raw = baseline(*noise, labels, subsets, fit)
    assert raw[1].mean < 0.4


GRID = [
    {"places": [[layer, sigma]], "validation": value}
    for layer, row in {
        "enc.0": (0.5, 0.5, 0.4),
        "mid": (0.7, 0.8, 0.6),
        "dec.0": (0.7, 0.85, 0.6),
        "dec.1": (0.8, 0.9, 0.7),
        "dec.2": (0.6, 0.7, 0.5),
    }.items()
    for sigma, value in zip((0.02, 0.1, 0.8), row, strict=True)
]
LAYERS = ["enc.0", "mid", "dec.0", "dec.1", "dec.2"]


def test_the_published_shape_is_recognized() -> None:
    over = [{"n_images": n, "accuracy": a, "frechet": f} for n, a, f in ((1, 0.8, 5), (2, 0.9, 3), (3, 0.85, 2))]
    assert [answer.holds for answer in answers(GRID, ("dec.1", 0.1), LAYERS, 10_000, over)] == [True] * 5


def test_another_shape_is_not() -> None:
    turned = [{**cell, "validation": 1 - cell["validation"]} for cell in GRID]
    over = [{"n_images": n, "accuracy": a, "frechet": f} for n, a, f in ((1, 0.8, 2), (2, 0.9, 3), (3, 0.95, 2.5))]
    assert [answer.holds for answer in answers(turned, ("enc.0", 0.8), LAYERS, 10_000, over)] == [False] * 5


def test_too_small_a_grid_says_nothing() -> None:
    one = [cell for cell in GRID if cell["places"] == [["mid", 0.1]]]
    assert [answer.holds for answer in answers(one, ("mid", 0.1), LAYERS, 10_000)] == [None, None, None, None]
    no_frechet = [{"n_images": n, "accuracy": 0.5, "frechet": None} for n in range(3)]
    assert answers(GRID, ("dec.1", 0.1), LAYERS, 10_000, no_frechet)[-1].holds is None


def test_few_validation_images_decide_nothing() -> None:
    """Four points are two standard errors of 180 images, but less than one of 20."""
    over = [{"n_images": n, "accuracy": a, "frechet": f} for n, a, f in ((1, 0.85, 5), (2, 0.9, 3), (3, 0.88, 2))]
    many = [answer.holds for answer in answers(GRID, ("dec.1", 0.1), LAYERS, 10_000, over)]
    few = [answer.holds for answer in answers(GRID, ("dec.1", 0.1), LAYERS, 20, over)]
    assert many == [True] * 5 and few[-1] is None and None in few[:4]
    flat = [{**cell, "validation": 1.0} for cell in GRID]  # everything right everywhere: nothing is known
    assert [answer.holds for answer in answers(flat, ("dec.1", 0.1), LAYERS, 50)] == [None] * 4
