"""`DiffusionFeatures` where scikit-learn users put it: pipelines, grid searches, clones."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import twofold
from twofold import DiffusionFeatures, UserError
from twofold.recognize.views import image_noise

from ..cli.test_sample_evaluate import make_run

DIGITS = load_digits()
X = np.rint(DIGITS.images * (255 / 16)).astype(np.uint8)[:60]
Y = DIGITS.target[:60]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "a")


def test_equals_the_denoisers_features(run: Path) -> None:
    denoiser = twofold.load(run)
    images = torch.from_numpy(X)[:, None]
    found = DiffusionFeatures(run, layers=["mid", "dec.0"], sigma=[0.1, 0.4], draws=2).fit_transform(X)
    expected = []
    for sigma in (0.1, 0.4):
        for layer in ("mid", "dec.0"):
            draws = []
            for draw in range(2):
                x = denoiser.codec.encode(images) + sigma * image_noise(images, (1, 8, 8), 0, draw)
                draws.append(denoiser.features(x, sigma, [layer])[layer].mean((2, 3)))
            expected.append(torch.stack(draws).mean(0))
    np.testing.assert_allclose(found, torch.cat(expected, 1).numpy(), atol=1e-5)


def test_in_a_pipeline_and_a_grid_search(run: Path) -> None:
    pipeline = make_pipeline(DiffusionFeatures(run), LogisticRegression(max_iter=50))
    grid = {"diffusionfeatures__layers": ["mid", "enc.1"], "diffusionfeatures__sigma": [0.05, 0.5]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, Y)
    assert search.best_params_["diffusionfeatures__layers"] in ("mid", "enc.1")
    assert search.predict(X[:5]).shape == (5,)


def test_all_forms_of_images_are_the_same_images(run: Path) -> None:
    features = DiffusionFeatures(run).fit(X)
    expected = features.transform(X)
    for form in (X[:, None], X[..., None], X.reshape(60, -1), torch.from_numpy(X)):
        np.testing.assert_array_equal(features.transform(form), expected)


def test_clone_names_pickle_and_a_loaded_model(run: Path) -> None:
    features = DiffusionFeatures(run, layers="mid", sigma=0.2, draws=3)
    copy = clone(features)
    assert copy.get_params() == features.get_params()
    found = copy.fit_transform(X)
    assert len(copy.get_feature_names_out()) == found.shape[1]
    assert copy.get_feature_names_out()[0] == "mid@0.2[0]"
    again = pickle.loads(pickle.dumps(copy))  # our own object, in memory
    np.testing.assert_array_equal(again.transform(X), found)
    np.testing.assert_array_equal(features.set_params(model=twofold.load(run)).fit_transform(X), found)


def test_mistakes(run: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        DiffusionFeatures(run).transform(X)
    with pytest.raises(UserError, match="no such layer"):
        DiffusionFeatures(run, layers="nose").fit(X)
    with pytest.raises(UserError, match="uint8"):
        DiffusionFeatures(run).fit(X.astype(float))
    with pytest.raises(UserError, match="the model takes"):
        DiffusionFeatures(run).fit(X[:, :5])
    with pytest.raises(UserError, match="holds a classifier"):
        DiffusionFeatures(make_run(tmp_path / "judge", "digits-classifier")).fit(X)
