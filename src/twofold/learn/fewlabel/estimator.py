"""`FewLabelClassifier`: dual pseudo training as a scikit-learn estimator."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ...data import cache_root
from ...errors import UserError, some
from ...files import sha256
from ...generate.chunks import write_npz
from ...generate.sample import sample
from ...measure.encoders import image_logits
from ...run import load
from ...settings.fewlabel import FewLabelSettings
from ...settings.fewlabel_layers import DEFAULT, layers_of
from ...settings.resolve import resolve
from ..fastest import DTYPES
from . import run
from .embed import numbers
from .given import Pixels, known_labels
from .workshop import TRAIN_FILE

SOURCE, OUT = "data.npz", "run"  # in the estimator's folder
MOST_SEED = 2**31 - 1


class FewLabelClassifier(ClassifierMixin, BaseEstimator):
    """A few labelled images and many unlabelled ones -> a classifier and a generator (You et al. 2023).

        model = FewLabelClassifier().fit(images, y)      # y is -1 where there is no label
        model.predict(others), model.generate(3, 16)

    Trains an unconditional diffusion model of all images, names them by its features and the labels there are, trains a
    second diffusion model that is told these names, and a classifier that also learns from what that one generates:
    see `learn.fewlabel`. That takes minutes on small images, on a CPU.

    Parameters
    ----------
    preset : a few-label preset or YAML file, as of `twofold fewlabel`
    n_images : images that each of the two diffusion models is trained on; None: as the preset says
    images_per_class : generated images of each class that the final classifier learns from
    guidance : guidance scale of the generated images
    learner : who names the images in stage 1: "propagation", "logistic", ...; None: as the preset says
    settings : further settings of `twofold fewlabel`, nested ({"final": {"pseudo": 0.5}}); they have the last word
    random_state : seed of weights, noise and images; an int gives the same result again
    folder : where everything is kept, and found again by the next `fit` of the same images; None: nothing is kept
    device : "cpu", "cuda", ...

    `X` is uint8 images (N, C, H, W), (N, H, W, C) or (N, H, W), or any numbers in these forms or flat (N, D): their
    lowest value in `fit` becomes black, the highest white. Flat ones are grey squares, row by row; where D is no square
    that the network can take, black fills it up.

    `y` is -1 where there is no label, as in scikit-learn's other semi-supervised estimators; among texts "", "-1" and
    None mean the same.

    Attributes: classes_, n_features_in_; transduction_, the label that each image of `fit` was given; confidence_, how
    sure that is (0..1); result_, all that `twofold fewlabel` writes into result.json; classifier_ and generator_, the
    two models.
    """

    def __init__(
        self,
        preset: str = DEFAULT,
        n_images: int | None = None,
        images_per_class: int | None = None,
        guidance: float | None = None,
        learner: str | None = None,
        settings: Mapping[str, Any] | None = None,
        random_state: Any = 0,
        folder: str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.preset = preset
        self.n_images = n_images
        self.images_per_class = images_per_class
        self.guidance = guidance
        self.learner = learner
        self.settings = settings
        self.random_state = random_state
        self.folder = folder
        self.device = device

    def fit(self, X: Any, y: Any) -> FewLabelClassifier:
        """Learns from images and their labels. Raises `UserError`, which for wrong X and y is a `ValueError` too."""
        seed = self._seed()
        settings = self._resolved("", seed)  # before the images are looked at: a wrong name costs nothing
        pixels = Pixels(self, X, multiple_of(settings))
        self.classes_, labels = known_labels(y, len(pixels.images))
        with self._place() as folder:
            source = folder / SOURCE
            _write(source, pixels.images, labels, _names(self.classes_))
            self.settings_ = self._resolved(str(source), seed)
            self.result_, _ = run(self.settings_, folder / OUT, self.device)
            self._load()
        self.pixels_ = pixels.without_images()
        return self

    def predict(self, X: Any) -> np.ndarray:
        """(N,): the most probable class of each image."""
        found = self.predict_proba(X).argmax(1)
        return self.classes_[found]

    def predict_proba(self, X: Any) -> np.ndarray:
        """(N, K) float64: probabilities in the order of `classes_`."""
        check_is_fitted(self)
        images = self.pixels_.as_images(self, X)
        return image_logits(self.classifier_, torch.from_numpy(images)).softmax(1)[:, self._order].numpy()

    def generate(self, label: Any, n: int = 1, seed: int = 0) -> np.ndarray:
        """n generated images of a class: uint8, in the form of X (flat ones as (n, H, W)).

        label: one of `classes_`. seed: of the first image; the others have the next ones.
        """
        check_is_fitted(self)
        if label not in list(self.classes_):
            raise UserError(
                f"label={label}",
                "no such class",
                f"the classes are {some([repr(c) for c in self.classes_.tolist()], 10)}",
            )
        if n < 1:
            raise UserError(f"n={n}", "no image", "ask for at least 1")
        chosen, names = self.settings_.images, list(self.generator_.class_names)
        index = names.index(_names(self.classes_)[list(self.classes_).index(label)])
        images = sample(
            self.generator_,
            range(seed, seed + n),
            index,
            chosen.sampler,
            steps=chosen.steps,
            grid=chosen.grid,
            guidance=chosen.guidance,
            micro_batch=chosen.micro_batch,
        )
        return self.pixels_.in_form(images.cpu().numpy())

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(MOST_SEED))

    def _resolved(self, source: str, seed: int) -> FewLabelSettings:
        """The settings that the parameters mean. Raises `UserError` naming what is wrong."""
        trained = {} if self.n_images is None else {"n_images": self.n_images}
        images = {"per_class": self.images_per_class, "guidance": self.guidance}
        data = {"source": source or "digits", "validation_share": 0.0, "test_share": 0.0}
        given = {
            "seed": seed,
            "data": data,
            "images": {"seed": seed, **{name: value for name, value in images.items() if value is not None}},
            "features": trained,
            "generator": trained,
            **({} if self.learner is None else {"learner": {"kind": self.learner}}),
        }
        layers, _ = layers_of(self.preset, given)
        own = [("settings", self.settings)] if self.settings else []
        if self.settings and "diffusion" in self.settings:  # may name another recipe
            layers = [*layers_of(self.preset, {**given, "diffusion": self.settings["diffusion"]})[0]]
        return resolve(FewLabelSettings, [*layers, *own, ("images of fit", {"data": data})])[0]

    @contextlib.contextmanager
    def _place(self) -> Iterator[Path]:
        """The folder; one of our own vanishes afterwards, with what was packed of it."""
        if self.folder is not None:
            folder = Path(self.folder).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="twofold-fewlabel-") as name:
            try:
                yield Path(name).resolve()
            finally:
                _forget(Path(name).resolve())

    def _load(self) -> None:
        """The two models, and what was said of the images of `fit`."""
        format = DTYPES[numbers(self.settings_.precision, torch.device(self.device))]
        self.classifier_: Any = load(self.result_["classifier"], device=self.device)
        self.generator_: Any = load(self.result_["generator"], device=self.device)
        for model in (self.generator_, getattr(self.classifier_, "denoiser", None)):
            if model is not None:
                model.autocast = format
        names = _names(self.classes_)
        self._order = [_said(self.classifier_).index(name) for name in names]
        logits = torch.from_numpy(np.load(Path(self.result_["answers"]) / TRAIN_FILE)).softmax(1)
        self.confidence_ = logits.max(1).values.numpy()
        self.transduction_ = self.classes_[logits.argmax(1).numpy()]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def multiple_of(settings: FewLabelSettings) -> int:
    """What the sides of an image must be multiples of: the network halves them so often, or cuts them into patches."""
    network: Any = settings.diffusion.network
    halvings = len(getattr(network, "multipliers", (1,))) - 1
    return int(getattr(network, "patch", None) or 2**halvings)


def _names(classes: np.ndarray) -> list[str]:
    """What classes are called in files: themselves, or their numbers where two would be called the same."""
    names = [str(name) for name in classes]
    return names if len({*names, ""}) > len(names) else [str(i) for i in range(len(names))]


def _said(model: Any) -> list[str]:
    """The classes of a model, in its order."""
    return list(model.class_names)


def _write(path: Path, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
    """The images as an .npz file; one that is there and the same stays, and with it what was packed of it."""
    aside = path.with_name(f"new-{os.getpid()}-{path.name}")
    try:
        write_npz(aside, [images], images.shape[1:], labels, classes)
        if not path.is_file() or sha256(path) != sha256(aside):
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _forget(folder: Path) -> None:
    """Removes from the cache what was packed of files in this folder."""
    for meta in (cache_root() / "data").glob("*/meta.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            if folder in Path(json.loads(meta.read_text("utf-8"))["source"]).parents:
                shutil.rmtree(meta.parent, ignore_errors=True)
                meta.parent.with_name(f".{meta.parent.name}.lock").unlink(missing_ok=True)
