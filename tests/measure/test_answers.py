"""Answers: hand cases, scikit-learn and torchmetrics, and labels of -1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.errors import UserError
from twofold.measure import acceptance, accuracy, calibration_error, class_shares, share_interval, top_k
from twofold.measure.answers import auroc, brier_score, log_loss, reliability


def answers(n: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = (3 * torch.randn(n, classes, generator=generator, dtype=torch.float64)).softmax(1)
    return probabilities, torch.randint(0, classes, (n,), generator=generator)


HAND = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.4, 0.35, 0.25], [0.2, 0.2, 0.6]])
LABELS = torch.tensor([0, 2, 1, 0])


def test_hand_cases() -> None:
    assert accuracy(HAND, LABELS) == 0.5
    assert top_k(HAND, LABELS, 2) == 1.0
    assert accuracy(HAND.numpy(), LABELS.numpy()) == 0.5
    # one bin: |2/4 right - mean confidence 0.575|
    assert calibration_error(HAND, LABELS, bins=1) == pytest.approx(0.075)
    # bins of width 1/2: (0, 0.5] holds 0.4 wrong, (0.5, 1] holds 0.7 and 0.6 right, 0.6 wrong
    assert calibration_error(HAND, LABELS, bins=2) == pytest.approx(0.25 * 0.4 + 0.75 * abs(2 / 3 - 1.9 / 3))
    assert acceptance(HAND, 0.6) == 0.75
    assert acceptance(HAND) == 0
    assert class_shares(LABELS, 4).tolist() == [0.5, 0.25, 0.25, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(2, 12), st.integers(1, 12), st.integers(0, 999))
def test_unlabelled_images_change_nothing(n: int, classes: int, k: int, seed: int) -> None:
    k = min(k, classes)
    probabilities, labels = answers(n, classes, seed)
    more = torch.cat([probabilities, probabilities])
    unknown = torch.cat([labels, torch.full((n,), -1)])
    assert top_k(more, unknown, k) == top_k(probabilities, labels, k)
    assert calibration_error(more, unknown) == pytest.approx(calibration_error(probabilities, labels), abs=1e-12)
    assert (class_shares(unknown, classes) == class_shares(labels, classes)).all()
    assert class_shares(labels, classes).sum() == pytest.approx(1)
    assert top_k(probabilities, labels, classes) == 1


@pytest.mark.parametrize("seed", range(5))
def test_equals_scikit_learn_and_torchmetrics(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    functional = pytest.importorskip("torchmetrics.functional")
    probabilities, labels = answers(300, 7, seed)
    assert accuracy(probabilities, labels) == metrics.accuracy_score(labels, probabilities.argmax(1))
    for k in (1, 2, 5):
        theirs = metrics.top_k_accuracy_score(labels.numpy(), probabilities.numpy(), k=k, labels=range(7))
        assert top_k(probabilities, labels, k) == pytest.approx(theirs, abs=1e-12)
    theirs = functional.calibration_error(probabilities, labels, task="multiclass", num_classes=7, n_bins=15)
    assert calibration_error(probabilities, labels) == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 7])
def test_proper_scores_equal_scikit_learns(classes: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    probabilities, labels = answers(300, classes, 0)
    scores = probabilities[:, 1] if classes == 2 else probabilities
    assert brier_score(probabilities, labels) == pytest.approx(metrics.brier_score_loss(labels, scores), abs=1e-12)
    assert log_loss(probabilities.log(), labels) == pytest.approx(metrics.log_loss(labels, probabilities), abs=1e-12)
    assert log_loss(probabilities.log() + 5, labels) == pytest.approx(log_loss(probabilities.log(), labels), abs=1e-12)


def test_a_sure_mistake_has_a_finite_likelihood() -> None:
    assert log_loss(torch.tensor([[2000.0, 0.0]]), torch.tensor([1])) == 2000


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(2, 12), st.integers(1, 20), st.integers(0, 999))
def test_the_bins_are_those_of_the_calibration_error(n: int, classes: int, bins: int, seed: int) -> None:
    probabilities, labels = answers(n, classes, seed)
    rows = reliability(probabilities, labels, bins)
    assert sum(row["answers"] for row in rows) == n
    gaps = [row["answers"] / n * abs(row["accuracy"] - row["confidence"]) for row in rows]
    assert sum(gaps) == pytest.approx(calibration_error(probabilities, labels, bins), abs=1e-12)
    assert sum(row["answers"] / n * row["accuracy"] for row in rows) == pytest.approx(accuracy(probabilities, labels))
    for row in rows:
        assert row["low"] - 1e-12 <= row["confidence"] <= row["high"] + 1e-12
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]


def test_constant_scores_earn_nothing() -> None:
    labels = torch.arange(10)
    assert accuracy(torch.ones(10, 10), labels) == 0.1
    assert top_k(torch.ones(10, 10), labels, 3) == 0.3


def test_perfectly_calibrated_and_perfectly_wrong() -> None:
    sure = torch.eye(4)
    assert calibration_error(sure, torch.arange(4)) == 0
    assert calibration_error(sure, torch.arange(4).roll(1)) == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.data())
def test_intervals_hold_their_share(n: int, data: st.DataObject) -> None:
    share = data.draw(st.integers(0, n)) / n
    low, high = share_interval(share, n)
    assert 0 <= low <= share <= high <= 1
    wider = share_interval(share, n, confidence=0.99)
    assert wider[0] <= low + 1e-12 and high <= wider[1] + 1e-12


def test_interval_is_wilsons() -> None:
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611."""
    assert share_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert share_interval(0.0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy(HAND, LABELS[:3]), "expected 4 integers"),
        (lambda: accuracy(HAND, LABELS.float()), "expected 4 integers"),
        (lambda: accuracy(HAND, LABELS + 1), "label 3 of 3 classes"),
        (lambda: accuracy(HAND, LABELS - 2), "label -2 of 3 classes"),
        (lambda: accuracy(HAND, torch.full((4,), -1)), "no image is labelled"),
        (lambda: accuracy(HAND * np.nan, LABELS), "NaN for 4 of 4"),
        (lambda: accuracy(HAND[0], LABELS), "expected \\(images, classes\\)"),
        (lambda: top_k(HAND, LABELS, 4), "k=4: there are 3 classes"),
        (lambda: top_k(HAND, LABELS, 0), "k=0"),
        (lambda: calibration_error(10 * HAND, LABELS), "do not sum to 1"),
        (lambda: calibration_error(HAND, LABELS, bins=0), "bins=0"),
        (lambda: reliability(HAND, LABELS, bins=0), "bins=0"),
        (lambda: reliability(10 * HAND, LABELS), "do not sum to 1"),
        (lambda: brier_score(10 * HAND, LABELS), "do not sum to 1"),
        (lambda: log_loss(HAND, LABELS + 1), "label 3 of 3 classes"),
        (lambda: acceptance(HAND - 0.5), "do not sum to 1"),
        (lambda: acceptance(HAND, 90), "threshold=90"),
        (lambda: class_shares(np.array([-1, -1]), 3), "no image is labelled"),
        (lambda: class_shares(np.array([0, 3]), 3), "label 3 of 3"),
    ],
)
def test_mistakes(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]


def test_impossible_shares_are_our_mistake() -> None:
    with pytest.raises(ValueError):
        share_interval(1.5, 10)
    with pytest.raises(ValueError):
        share_interval(0.5, 0)


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.integers(-4, 4), min_size=2, max_size=40),
    kinds=st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_auroc_is_the_chance_of_the_right_order(scores: list[int], kinds: list[bool]) -> None:
    kinds = [True, False, *kinds[2 : len(scores)]]
    pairs = [(a > b) + (a == b) / 2 for a, p in zip(scores, kinds, strict=True) if p
             for b, q in zip(scores, kinds, strict=True) if not q]  # fmt: skip
    assert auroc(np.array(scores), np.array(kinds)) == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    scores, kinds = random.normal(size=500).round(1), random.integers(0, 2, 500)
    assert auroc(scores, kinds) == pytest.approx(metrics.roc_auc_score(kinds, scores), abs=1e-12)
    assert auroc(torch.from_numpy(scores), torch.from_numpy(kinds).bool()) == auroc(scores, kinds)
    assert auroc([0.1, 0.2, np.inf], [0, 0, 1]) == 1.0


def test_auroc_needs_both_kinds() -> None:
    with pytest.raises(UserError, match="auroc: 0 positive and 2 negative images; both kinds are needed"):
        auroc([0.1, 0.2], [0, 0])
    with pytest.raises(UserError, match="scores: NaN for 1 of 2 images"):
        auroc([0.1, np.nan], [0, 1])
    for kinds in ([0, 1, 1], [0, 2]):
        with pytest.raises(UserError, match="one score and one 0 or 1 per image"):
            auroc([0.1, 0.2], kinds)
