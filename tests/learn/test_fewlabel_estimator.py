"""`FewLabelClassifier` where scikit-learn users put it; what X and y may be; nothing is left behind."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import estimator_checks_generator

import twofold
from twofold import FewLabelClassifier, UserError
from twofold.data import cache_root, open_store
from twofold.learn.fewlabel.estimator import _forget
from twofold.learn.fewlabel.given import Pixels, WrongInput, known_labels
from twofold.settings.data import DataSettings

TINY: dict[str, Any] = {
    "diffusion": {
        "train": {"batch_size": 16, "warmup_images": 0},
        "network": {"channels": 4, "multipliers": [1], "attention": [], "blocks": 1},
        "validation": {"samples": 0, "steps": 1},
    },
    "images": {"steps": 1},
    "features": {"draws": 1, "sigmas": [0.1]},
    "pseudo": {"temperature": 1.0, "folds": 0},
    "final": {"learner": {"kind": "logistic"}, "pseudo": 0.0},
}
DIGITS = load_digits()
ROWS = np.flatnonzero(DIGITS.target < 3)[:60]
X, TRUTH = DIGITS.data[ROWS], DIGITS.target[ROWS]
Y = np.where(np.arange(60) < 12, TRUTH, -1)

EXPECTED = {
    "check_classifiers_classes": "takes -1 for a class; here it means none, as in scikit-learn's own semi-supervised "
    "estimators, which this check spares by their names",
    "check_methods_subset_invariance": "asks for 7 equal digits from batches of other sizes; networks are float32",
}


def estimator(**change: Any) -> FewLabelClassifier:
    return FewLabelClassifier(**{"n_images": 16, "images_per_class": 2, "settings": TINY, **change})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> FewLabelClassifier:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOFOLD_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = estimator().fit(X, Y)
        assert list((cache_root() / "data").iterdir()) == []  # nor anything of its own folder
    return found


def test_answers_are_probabilities_of_the_classes(fitted: FewLabelClassifier) -> None:
    found = fitted.predict_proba(X[:7])
    assert fitted.classes_.tolist() == [0, 1, 2] and fitted.n_features_in_ == 64
    assert found.shape == (7, 3) and found.dtype == np.float64
    np.testing.assert_allclose(found.sum(1), 1)
    assert_array_equal(fitted.predict(X[:7]), fitted.classes_[found.argmax(1)])
    assert 0 <= fitted.score(X, TRUTH) <= 1
    assert fitted.transduction_.shape == fitted.confidence_.shape == (60,)
    assert set(fitted.transduction_) <= {0, 1, 2} and 1 / 3 <= fitted.confidence_.min() <= fitted.confidence_.max() <= 1
    assert_array_equal(fitted.transduction_, fitted.predict(X))  # both are the final classifier's
    assert fitted.result_["data"]["labelled"] == {str(k): int((k == Y).sum()) for k in range(3)}
    assert fitted.result_["accuracy"]["stage 3"]["value"] is None  # no image is held out


def test_generates_images_of_a_class(fitted: FewLabelClassifier) -> None:
    images = fitted.generate(2, 5)
    assert images.shape == (5, 8, 8) and images.dtype == np.uint8
    assert_array_equal(fitted.generate(2, 2, seed=3), images[3:])
    assert (fitted.generate(1, 5) != images).any()
    with pytest.raises(UserError, match=r"^label=7: no such class; the classes are 0, 1, 2$"):
        fitted.generate(7)
    with pytest.raises(UserError, match="^n=0: no image; ask for at least 1"):
        fitted.generate(1, 0)


def test_clone_parameters_and_pickle(fitted: FewLabelClassifier) -> None:
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params() and copy.get_params()["n_images"] == 16
    assert copy.set_params(n_images=3, random_state=4).n_images == 3 and fitted.n_images == 16
    for ask in (copy.predict, copy.predict_proba, lambda x: copy.generate(1)):
        with pytest.raises(NotFittedError):
            ask(X)
    again = pickle.loads(pickle.dumps(fitted))  # our own object, in memory
    assert_array_equal(again.predict_proba(X[:5]), fitted.predict_proba(X[:5]))
    assert_array_equal(again.generate(0, 2), fitted.generate(0, 2))


def test_texts_and_forms_of_images_change_nothing(fitted: FewLabelClassifier) -> None:
    """The same pixels and labels, told otherwise: grey images, texts, None for no label."""
    names = np.array(["one", "three", "two"])  # in the order of classes 0, 1, 2: texts are sorted
    y = np.array([None if label < 0 else names[label] for label in Y], object)
    images = np.rint(255 / 16 * X).astype(np.uint8).reshape(-1, 1, 8, 8)
    told = estimator().fit(images, y)
    assert told.classes_.tolist() == names.tolist()
    assert_array_equal(told.predict_proba(images), fitted.predict_proba(X))
    assert_array_equal(told.predict(images), names[fitted.predict(X)])
    made = told.generate("two", 3)
    assert made.shape == (3, 1, 8, 8)
    assert_array_equal(made[:, 0], fitted.generate(2, 3))
    with pytest.raises(ValueError, match=r"X: holds images \(8, 8\), but the estimator was fitted on \(1, 8, 8\)"):
        told.predict(images[:, 0])


def test_a_folder_keeps_everything_and_is_continued(tmp_path: Path, fitted: FewLabelClassifier) -> None:
    first = estimator(folder=tmp_path / "kept").fit(X, Y)
    assert_array_equal(first.predict_proba(X), fitted.predict_proba(X))
    assert (tmp_path / "kept/run/result.json").is_file()
    before = (tmp_path / "kept/data.npz").stat().st_mtime_ns
    again = estimator(folder=tmp_path / "kept").fit(X, Y)
    assert (tmp_path / "kept/data.npz").stat().st_mtime_ns == before
    assert {part["made"] for part in again.result_["parts"]} == {"found"}
    assert_array_equal(again.predict_proba(X), first.predict_proba(X))
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["data.npz", "run"]


def test_only_what_was_packed_of_its_folder_is_forgotten(tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "images.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4))
    stores = {name: open_store(DataSettings(source=str(tmp_path / name / "images.npz"))) for name in ("mine", "theirs")}
    _forget(tmp_path / "mine")
    assert not stores["mine"].folder.exists() and stores["theirs"].folder.exists()


def test_wrong_settings_are_told_before_the_images_are_looked_at() -> None:
    with pytest.raises(UserError, match="no such preset"):
        estimator(preset="minni").fit(None, None)
    with pytest.raises(UserError, match=r"learner.kind.*logistik"):
        estimator(learner="logistik").fit(None, None)
    with pytest.raises(UserError, match="imagess"):
        estimator(settings={"imagess": {}}).fit(None, None)


# -- what y may be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "y",
    [
        [7, -1, 3, -1, 3],
        np.array([7, -1, 3, -1, 3], np.float32),
        np.array([7, None, 3, -1, 3], object),
    ],
)
def test_no_label_among_numbers(y: Any) -> None:
    classes, labels = known_labels(y, 5)
    assert classes.tolist() == [3, 7] and labels.tolist() == [1, -1, 0, -1, 0] and labels.dtype == np.int64


@pytest.mark.parametrize(
    "y",
    [
        np.array(["dog", "", "cat", "-1", "cat"]),
        np.array(["dog", None, "cat", -1, "cat"], object),
        ["dog", "", "cat", "", "cat"],
        np.array(["dog", -1, "cat", -1, "cat"]),  # which numpy makes texts of
    ],
)
def test_no_label_among_texts(y: Any) -> None:
    classes, labels = known_labels(y, 5)
    assert classes.tolist() == ["cat", "dog"] and labels.tolist() == [1, -1, 0, -1, 0]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "requires y to be passed, but the target y is None"),
        ([0, 1], "y: has 2 labels, but X has 3 images"),
        ([-1, -1, -1], "y: no image has a label; label at least one image of every class"),
        ([2, 2, -1], "y: holds labels of only one class; at least 2 classes are needed"),
        ([0.5, 1.25, 3.0], "Unknown label type"),
    ],
)
def test_wrong_labels(y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        known_labels(y, 3)


# -- what X may be ---------------------------------------------------------------------------------------------------


def images_of(x: Any, multiple: int = 2) -> np.ndarray:
    found = Pixels(estimator(), x, multiple).images
    assert found.dtype == np.uint8
    return found


def test_the_digits_are_the_digits() -> None:
    expected = open_store(DataSettings(source="digits")).images
    assert_array_equal(images_of(DIGITS.data), expected)
    assert_array_equal(images_of(DIGITS.images), expected)


def test_uint8_images_are_taken_as_they_are_in_every_form() -> None:
    first = np.random.default_rng(0).integers(9, 200, (5, 3, 6, 4), np.uint8)
    for form in (first, first.transpose(0, 2, 3, 1), torch.from_numpy(first)):
        assert_array_equal(images_of(form), first)
    assert_array_equal(images_of(first[:, 0]), first[:, :1])


def test_the_range_is_that_of_fit() -> None:
    fitted_on = estimator()
    pixels = Pixels(fitted_on, np.array([[-2.0, 0, 2, 2], [0, 0, 0, 0]]), 2)
    assert pixels.images.reshape(2, 4).tolist() == [[0, 128, 255, 255], [128] * 4]
    others = pixels.as_images(fitted_on, np.array([[-9.0, 9, -2, 1]]))
    assert others.reshape(-1).tolist() == [0, 255, 0, 191]
    assert (images_of(np.full((3, 4), 7.0)) == 0).all()  # one value only


def test_flat_ones_are_filled_up_to_squares() -> None:
    found = images_of(np.array([[1.0, 2, 3], [0, 0, 4]]), multiple=4)
    assert found.shape == (2, 1, 4, 4) and found[1].reshape(-1).tolist() == [0, 0, 255] + 13 * [0]
    assert images_of(np.zeros((2, 65)), multiple=4).shape == (2, 1, 12, 12)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((4, 2, 6, 6), np.uint8), r"X: is of shape \(4, 2, 6, 6\); give \(N, C, H, W\)"),
        (np.zeros((4, 2, 2, 2, 3)), r"X: is of shape \(4, 2, 2, 2, 3\)"),
        (np.full((4, 8, 8), np.nan), "NaN"),
        (np.zeros(4), "Expected 2D array, got 1D array"),
        (np.zeros((1, 8, 8)), "minimum of 2 is required"),
    ],
)
def test_wrong_images(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images_of(x)


def test_what_is_wrong_with_the_input_is_both_kinds_of_error() -> None:
    assert issubclass(WrongInput, UserError) and issubclass(WrongInput, ValueError)


def test_it_is_part_of_the_package() -> None:
    assert "FewLabelClassifier" in dir(twofold)
    json.dumps(TINY)  # settings are plain data


# -- scikit-learn's own checks ---------------------------------------------------------------------------------------


QUICK = (  # those that fit nothing, or end before anything is trained
    *("check_estimator_cloneable", "check_estimator_tags_renamed", "check_valid_tag_types", "check_estimator_repr"),
    *("check_no_attributes_set_in_init", "check_do_not_raise_errors_in_init_or_set_params", "check_mixin_order"),
    *("check_estimators_unfitted", "check_parameters_default_constructible", "check_get_params_invariance"),
    *("check_set_params", "check_complex_data", "check_estimators_empty_data_messages", "check_fit1d"),
    *("check_estimator_sparse_array", "check_estimator_sparse_matrix", "check_classifiers_one_label"),
    *("check_classifiers_regression_target", "check_supervised_y_no_nan", "check_fit2d_1sample"),
)
CHECKS = list(estimator_checks_generator(estimator(images_per_class=1), expected_failed_checks=EXPECTED, mark="xfail"))


def name_of(check: Any) -> str:
    """Of one of `CHECKS`, which may be a `pytest.param`."""
    return getattr(check, "values", check)[1].func.__name__


@pytest.mark.parametrize(("made", "check"), [one for one in CHECKS if name_of(one) in QUICK])
def test_scikit_learns_quick_checks(made: FewLabelClassifier, check: Any) -> None:
    check(made)


@pytest.mark.slow
@pytest.mark.parametrize(("made", "check"), [one for one in CHECKS if name_of(one) not in QUICK])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks(made: FewLabelClassifier, check: Any) -> None:
    check(made)


def test_every_check_that_may_fail_is_one_of_them() -> None:
    assert set(EXPECTED) | set(QUICK) <= {name_of(check) for check in CHECKS}
