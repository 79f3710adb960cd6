"""NME, failure rate, AUC and the curve they are of: worked by hand, against scikit-learn, and as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc as area_under

from twofold.errors import UserError
from twofold.measure.landmarks import (
    additive,
    auc,
    by_attribute,
    cumulative,
    failure_rate,
    from_sums,
    image_errors,
    landmark_intervals,
    landmark_scores,
    nme,
    sizes,
    usual_normaliser,
)

NAN = float("nan")
SQUARE = np.array([[[0.0, 0], [4, 0], [4, 9], [0, 9]]])  # a box of 4 x 9: sqrt(36) = 6
OFF = np.array([[[3.0, 4], [0, 0], [0, 1], [0, 0]]])  # by 5, 0, 1, 0

errors_ = st.lists(st.floats(0, 0.5) | st.just(NAN), min_size=1, max_size=30)


def test_by_hand() -> None:
    predicted = SQUARE + OFF
    assert image_errors(predicted, SQUARE, "box") == pytest.approx([6 / 4 / 6])
    assert image_errors(predicted, SQUARE, (0, 1)) == pytest.approx([6 / 4 / 4])
    assert image_errors(predicted, SQUARE, (0, 2)) == pytest.approx([6 / 4 / 97**0.5])
    assert image_errors(predicted, SQUARE, 10.0) == pytest.approx([0.15])


def test_only_visible_points_count() -> None:
    truth = SQUARE.copy()
    truth[0, 0, 1] = NAN  # one coordinate is enough
    predicted = SQUARE + OFF
    assert image_errors(predicted, truth, 10.0) == pytest.approx([1 / 3 / 10])
    assert sizes(truth, "box") == pytest.approx([6.0])  # of the other three
    assert np.isnan(image_errors(predicted, truth, (0, 1))).all()  # an eye that is not there


def test_images_without_an_error_are_counted() -> None:
    nothing, point = np.full((1, 4, 2), NAN), np.ones((1, 4, 2))
    truth = np.concatenate([SQUARE, nothing, point])
    errors = image_errors(np.zeros((3, 4, 2)), truth, "box")  # the third one's box has no area
    assert np.isfinite(errors).tolist() == [True, False, False]
    scores = landmark_scores(errors)
    assert (scores["images"], scores["left_out"]) == (1, 2) and scores["nme"] == errors[0]
    assert landmark_scores([NAN]) == {"images": 0, "left_out": 1}


@pytest.mark.parametrize(("count", "corners"), [(98, (60, 72)), (68, (36, 45))])
def test_inter_ocular_is_between_the_outer_eye_corners(count: int, corners: tuple[int, int]) -> None:
    truth = np.random.default_rng(0).normal(size=(3, count, 2))
    truth[:, corners[0]], truth[:, corners[1]] = (1, 2), (4, 6)
    assert sizes(truth, "inter_ocular") == pytest.approx([5.0] * 3)
    assert usual_normaliser(count) == "inter_ocular" and usual_normaliser(5) == "box"


def test_published_figures_by_hand() -> None:
    errors = [0.02, 0.05, 0.10, 0.15]
    assert nme(errors) == pytest.approx(0.08)
    assert failure_rate(errors, 0.1) == 0.25  # 0.10 itself has not failed
    assert auc(errors, 0.1) == pytest.approx((0.8 + 0.5 + 0 + 0) / 4)
    at, share = cumulative(errors, 0.1)
    assert at.tolist() == [0, 0.02, 0.05, 0.1] and share.tolist() == [0, 0.25, 0.5, 0.75]


@given(errors_, st.floats(0.01, 0.3))
def test_the_area_is_that_of_the_curve(errors: list[float], threshold: float) -> None:
    """The trapezoids of scikit-learn under the curve drawn as the steps that it is."""
    if np.isnan(errors).all():
        return
    at, share = cumulative(errors, threshold)
    x, y = np.repeat(at, 2)[1:], np.repeat(share, 2)[:-1]
    assert auc(errors, threshold) == pytest.approx(area_under(x, y) / threshold, abs=1e-9)
    assert share[-1] == pytest.approx(1 - failure_rate(errors, threshold), abs=1e-12)
    assert (np.diff(share) >= 0).all() and at[0] == 0 and at[-1] == threshold


@given(errors_)
def test_sums_give_the_figures(errors: list[float]) -> None:
    """However the images are dealt out."""
    total = additive(errors[::2]).sum(0) + additive(errors[1::2]).sum(0)
    found, scores = from_sums(total), landmark_scores(errors)
    for name in ("nme", "failure_rate", "auc"):
        assert np.isnan(found[name]) if name not in scores else found[name] == pytest.approx(scores[name])
    if "nme" in scores:
        by_name = nme(errors), failure_rate(errors), auc(errors)
        assert (scores["nme"], scores["failure_rate"], scores["auc"]) == pytest.approx(by_name)


@given(st.integers(0, 2**32), st.floats(0.1, 10), st.floats(-50, 50))
def test_the_size_and_place_of_a_face_do_not_matter(seed: int, scale: float, shift: float) -> None:
    random = np.random.default_rng(seed)
    truth, predicted = random.normal(size=(2, 2, 98, 2))
    for normaliser in ("inter_ocular", "box", (3, 7)):
        plain = image_errors(predicted, truth, normaliser)  # type: ignore[arg-type]
        moved = image_errors(scale * predicted + shift, scale * truth + shift, normaliser)  # type: ignore[arg-type]
        assert moved == pytest.approx(plain, rel=1e-6)


def test_subsets_by_attribute() -> None:
    errors = np.array([0.02, 0.04, 0.2, NAN])
    attributes = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, -1, 0]])
    found = by_attribute(errors, attributes, ["pose", "blur", "occlusion"])
    assert found["pose"] == pytest.approx({"nme": 0.11, "failure_rate": 0.5, "auc": 0.4, "images": 2, "left_out": 1})
    assert found["blur"]["images"] == 2 and found["blur"]["nme"] == pytest.approx(0.12)
    assert found["occlusion"] == {"images": 0, "left_out": 0}
    with pytest.raises(UserError, match="attributes of"):
        by_attribute(errors, attributes, ["pose"])


def test_intervals_hold_the_figure() -> None:
    errors = np.random.default_rng(0).gamma(4, 0.02, 300)
    scores, found = landmark_scores(errors), landmark_intervals(errors)
    for name in ("nme", "failure_rate", "auc"):
        low, high = found[name]
        assert low < scores[name] < high
    standard = errors.std() / 300**0.5
    assert found["nme"][1] - found["nme"][0] == pytest.approx(2 * 1.96 * standard, rel=0.15)
    wide = landmark_intervals(errors, groups=np.arange(300) // 30)
    assert wide["nme"] != found["nme"]


@pytest.mark.parametrize(
    ("normaliser", "message"),
    [
        ("inter_ocular", "which of these 4 points are the outer eye corners is not known"),
        ((2, 2), r"normaliser=\[2, 2\]: is the distance of a point to itself; give two points"),
        ((0, 4), "there are 4 points"),
    ],
)
def test_normalisers_that_are_none(normaliser: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sizes(SQUARE, normaliser)  # type: ignore[arg-type]


def test_points_that_are_none() -> None:
    with pytest.raises(UserError, match="points of"):
        image_errors(SQUARE[:, :3], SQUARE, "box")
    predicted = SQUARE.copy()
    predicted[0, 2] = NAN
    with pytest.raises(UserError, match="point 2 of image 0 is NaN"):
        image_errors(predicted, SQUARE, "box")
