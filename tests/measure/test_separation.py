"""Telling two kinds of images apart by a score: scikit-learn, closed forms, and the ends."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.errors import UserError
from twofold.measure.separation import area_interval, histogram, separation


def scores(n: int, m: int, shift: float, seed: int, rounded: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    inside, outside = random.normal(size=n), random.normal(shift, size=m)
    return (inside.round(), outside.round()) if rounded else (inside, outside)


@pytest.mark.parametrize("rounded", [False, True])
def test_equals_scikit_learn(rounded: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    inside, outside = scores(211, 130, 1.0, 0, rounded)
    found, kind = separation(inside, outside), np.repeat([0, 1], [211, 130])
    values = np.concatenate([inside, outside])
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(kind, values), abs=1e-12)
    assert found["aupr"] == pytest.approx(metrics.average_precision_score(kind, values), abs=1e-12)
    # those from inside are the positives of FPR at 95 % TPR, and score low; its first point at 95 % or more
    rate, passed, _ = metrics.roc_curve(1 - kind, -values, drop_intermediate=False)
    assert found["fpr95"] == pytest.approx(rate[passed >= 0.95][0], abs=1e-12)


def test_two_normal_distributions() -> None:
    """AUROC of N(0, 1) and N(d, 1): Phi(d / sqrt 2); FPR at 95 % TPR: Phi(z - d) with z the 95 % quantile."""
    d, normal = 1.5, NormalDist()
    found = separation(*scores(20_000, 20_000, d, 1))
    assert found["auroc"] == pytest.approx(normal.cdf(d / math.sqrt(2)), abs=0.01)
    assert found["fpr95"] == pytest.approx(normal.cdf(normal.inv_cdf(0.95) - d), abs=0.02)


def test_the_interval_holds_the_true_value_as_often_as_it_says() -> None:
    true = NormalDist().cdf(1 / math.sqrt(2))
    found = [separation(*scores(80, 50, 1.0, seed)) for seed in range(400)]
    assert 0.92 <= sum(row["low"] <= true <= row["high"] for row in found) / len(found) <= 0.99


@pytest.mark.parametrize("area", [0.0, 0.3, 0.8, 1.0])
def test_the_ends_of_the_interval_are_as_far_as_chance_reaches(area: float) -> None:
    n = 40
    for end in area_interval(area, n, n):
        q1, q2 = end / (2 - end), 2 * end**2 / (1 + end)  # Hanley and McNeil 1982, eq. 1
        variance = (end * (1 - end) + (n - 1) * (q1 - end**2 + q2 - end**2)) / n**2
        if 0 < end < 1:
            assert abs(end - area) == pytest.approx(1.96 * math.sqrt(variance), abs=1e-9)
        else:
            assert end == area  # there is nothing beyond
    assert area_interval(1.0, n, n)[0] < 1 and area_interval(0.0, n, n)[1] > 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(-3, 3), st.integers(0, 99), st.booleans())
def test_turned_round_it_is_the_other_side(n: int, m: int, shift: float, seed: int, rounded: bool) -> None:
    inside, outside = scores(n, m, shift, seed, rounded)
    found, turned = separation(inside, outside), separation(-inside, -outside)
    assert found["auroc"] + turned["auroc"] == pytest.approx(1)
    assert 0 <= found["low"] <= found["auroc"] <= found["high"] <= 1
    assert separation(3 * inside + 7, 3 * outside + 7)["auroc"] == pytest.approx(found["auroc"])


def test_ends() -> None:
    apart = separation(np.zeros(30), np.ones(20))
    assert (apart["auroc"], apart["fpr95"], apart["aupr"]) == (1, 0, 1)
    same = separation(np.zeros(30), np.zeros(20))
    assert (same["auroc"], same["fpr95"], same["aupr"]) == (0.5, 1, 0.4)
    assert separation([1.0], [2.0])["auroc"] == 1


@pytest.mark.parametrize("logarithmic", [False, True])
def test_histograms_hold_all_images(logarithmic: bool) -> None:
    inside, outside = scores(500, 300, 1.0, 0)
    inside, outside = np.exp(inside), np.exp(outside)
    inside[0], outside[0] = 1e6, 0.0  # beyond the ends
    found = histogram(inside, outside, 20, logarithmic)
    edges = np.array(found["edges"])
    assert len(edges) == 21 and (np.diff(edges) > 0).all() and edges[-1] < 1e3
    assert sum(found["inside"]) == pytest.approx(1) and sum(found["outside"]) == pytest.approx(1)
    steps = np.diff(np.log(edges)) if logarithmic else np.diff(edges)
    assert np.allclose(steps, steps[0])
    assert sum(histogram(np.ones(5), np.ones(5), 20, logarithmic)["inside"]) == pytest.approx(1)
    assert sum(histogram(np.zeros(5), np.zeros(5), 20, logarithmic)["inside"]) == pytest.approx(1)


def test_mistakes() -> None:
    for inside, outside, what in (
        ([], [1.0], "inside: no images"),
        ([1.0], [], "outside: no images"),
        ([1.0], [math.nan, 2.0], "outside: NaN for 1 of 2"),
    ):
        with pytest.raises(UserError, match=what):
            separation(np.array(inside), np.array(outside))
