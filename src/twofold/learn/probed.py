"""`twofold probe`: from a trained denoiser and labelled images to a chosen head and everything that is said about it.

    banks of the train and validation parts -> every (layer, sigma) fitted -> the best, alone and joined -> test part

Only the validation part chooses. The test part is extracted for the chosen places alone and looked at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Store, cache_root, label_subsets, spread
from ..denoiser import Denoiser
from ..errors import UserError
from ..generate.guide import match_classes
from ..hashing import model_hash
from ..measure.answers import calibration_error, share_interval
from ..recognize.bank import Bank, Grid, extract
from ..recognize.choose import (
    MOST_NUMBERS,
    Cell,
    Place,
    accuracies,
    joined,
    joined_places,
    search,
    single_places,
)
from ..recognize.contrastive import contrast
from ..recognize.few_labels import Few, baseline, curve
from ..recognize.heads import temperature
from ..recognize.probe import ProbeFacts, save_probe
from ..recognize.reader import Reader
from ..recognize.views import Views
from ..recognize.zero_shot import ZeroShotClassifier
from ..settings.probe import Logistic, ProbeSettings
from .fastest import step_flops, threads_for
from .heads import fitter

FINALISTS = 8  # places that are not worth screening
FEW_TOLERANCE = 1e-3  # of the gradient, for heads on a few images
FEW_L2 = 0.5  # over the number of labelled images: scikit-learn's C = 2; tenfold more or less hardly matters

Say = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Part:
    """Images of a split: their rows in the store and their labels (-1 = none)."""

    rows: np.ndarray
    labels: Tensor


@dataclass(frozen=True)
class Workplace:
    """Where a probe is computed. rank, world: this process and how many share the extraction. wait: until all are
    there. say: progress (what, done, total)."""

    rank: int = 0
    world: int = 1
    wait: Callable[[], None] = lambda: None
    say: Say = lambda what, done, total: None


class Probing:
    """One model, one set of labelled images, one group of settings.

    Raises `UserError` where labels, classes or images are missing, before anything is computed.
    """

    def __init__(self, denoiser: Denoiser, store: Store, settings: ProbeSettings, place: Workplace) -> None:
        self.denoiser, self.store, self.settings, self.place = denoiser, store, settings, place
        if len(store.classes) < 2:
            what = f"has {len(store.classes)} classes, a probe needs labels of at least 2"
            hint = "a folder with one sub-folder per class, or data.label_column"
            raise UserError(f"data={store.settings.source}", what, hint)
        self.parts = {
            "train": self._part("train", settings.max_train),
            "validation": self._part("validation", settings.max_test),
            "test": self._part("test", settings.max_test),
        }
        self._check_labels()
        self.layers = tuple(denoiser.layers) if settings.layers == "all" else settings.layers
        channels = {name: layer.channels for name, layer in denoiser.layers.items()}
        self.fit = fitter(settings.head, len(store.classes), settings.seed, channels)
        self.model = model_hash(denoiser)  # every bank asks for it, and large weights take a while
        self.banks: dict[str, Bank] = {}
        self.finalists: list[Cell] = []

    def _part(self, split: str, most: int | None) -> Part:
        rows = self.store.indices(split)
        labels = np.asarray(self.store.labels[rows], dtype=np.int64)
        rows, labels = rows[labels >= 0], labels[labels >= 0]
        chosen = spread(len(rows), most)
        return Part(rows[chosen], torch.from_numpy(labels[chosen]))

    def _check_labels(self) -> None:
        where = f"data={self.store.settings.source}"
        for name, part in self.parts.items():
            if not len(part.rows):
                raise UserError(where, f"none of its {name} images is labelled", "a probe needs labels in every part")
        train = self.parts["train"].labels
        if len(train.unique()) < 2:
            only = self.store.classes[int(train[0])]
            raise UserError(where, f"all labelled training images are of class {only}", "at least 2 classes")
        head = self.settings.head
        if head.kind == "knn" and head.k > len(train):
            raise UserError(f"head.k={head.k}", f"there are {len(train)} labelled training images", "fewer neighbours")
        if head.kind == "attentive" and self.settings.pool != "map":
            raise UserError(f"pool={self.settings.pool}", "attentive pooling looks at all positions", "use pool=map")
        if self.settings.zero_shot:
            self.zero_shot = ZeroShotClassifier(self.denoiser, micro_batch=self.settings.micro_batch)
            self.zero_shot_classes = match_classes(self.denoiser, self.store.classes, where)
        if self.settings.labels_per_class:
            label_subsets(train.numpy(), self.settings.labels_per_class, 1, self.settings.seed)
        if self.settings.contrastive and self.settings.draws < 2:
            raise UserError("draws=1", "contrastive metrics compare two noise draws", "use draws=2 or more")

    # -- features -------------------------------------------------------------------------------------------------

    def bank(self, split: str, layers: Sequence[str] | None = None, sigmas: Sequence[float] | None = None) -> Bank:
        """The features of a part; of everything asked for, or of these layers and noise levels."""
        s = self.settings
        train = split == "train"
        views = Views(s.copies, s.flip, s.shift, s.seed) if train else Views(s.draws, seed=s.seed)
        grid = Grid(tuple(layers or self.layers), tuple(sigmas or s.sigmas), s.pool, views, s.clean, s.micro_batch)
        rows, place = self.parts[split].rows, self.place
        flops = step_flops(self.denoiser, self.denoiser.shape) / 3 * s.micro_batch
        with torch.no_grad(), threads_for(flops):
            bank = extract(
                self.denoiser,
                self.store.batch,
                rows,
                self.store.content_hash,
                grid,
                cache_root(),
                lambda done, total: place.say(f"features of {split} images", done, total),
                place.rank,
                place.world,
                self.model,
            )
        place.wait()
        return bank

    def search(self) -> list[Cell]:
        """Every layer at every noise level, by its validation accuracy, all fitted on the same images.

        With more than `screen` training images those are so many of them, and the two best noise levels with the
        better half of the layers are fitted again on all: the `finalists`, from which the choice is made.
        """
        self.banks = {"validation": self.bank("validation")}
        everything = self.parts["train"]
        few = self.settings.screen
        if few is None or len(everything.rows) <= few or len(self.layers) * len(self.settings.sigmas) <= FINALISTS:
            self.banks["train"] = self.bank("train")
            self.finalists = self._fitted(single_places(self.banks["train"]))
            return self.finalists
        chosen = spread(len(everything.rows), few)
        self.parts["train"] = Part(everything.rows[chosen], everything.labels[torch.from_numpy(chosen)])
        self.banks["train"] = self.bank("train")
        screened = self._fitted(single_places(self.banks["train"]))
        self.parts["train"] = everything
        layers, sigmas = survivors(screened)
        self.banks["train"] = self.bank("train", layers, sigmas)
        self.finalists = self._fitted(single_places(self.banks["train"]))
        return screened

    def _fitted(self, sets: Sequence[tuple[Place, ...]]) -> list[Cell]:
        labels = (self.parts["train"].labels, self.parts["validation"].labels)
        say = lambda done, total: self.place.say("heads", done, total)  # noqa: E731
        with threads_for(self._fit_flops()):
            return search(self.banks["train"], self.banks["validation"], labels, sets, self.fit, say)

    def _fit_flops(self) -> float:
        """Of one product of a head with the features."""
        train = self.banks["train"]
        width = max(train.width(layer) for layer in train.layers)
        return 2.0 * len(train) * train.grid.views.count * width * len(self.store.classes)

    def join(self, cells: Sequence[Cell]) -> list[Cell]:
        """The best places, joined."""
        sets = joined_places(cells, self.settings.concat) if self.settings.head.kind != "attentive" else []
        return self._fitted(sets) if sets else []

    def contrasts(self) -> list[dict[str, Any]]:
        """Alignment and uniformity of every layer at every noise level, between two noise draws of an image."""
        bank, found = self.banks["validation"], []
        for sigma in bank.sigmas:
            views = {layer: bank.features(layer, sigma, (0, 1)) for layer in bank.layers}
            table = contrast({n: v[0] for n, v in views.items()}, {n: v[1] for n, v in views.items()})
            found += [{"layer": layer, "sigma": sigma, **values} for layer, values in table.items()]
        return found

    # -- answers --------------------------------------------------------------------------------------------------

    def tested(self, cell: Cell) -> dict[str, Any]:
        """A cell on the test part: accuracy per noise draw, of the averaged features, and how sure it is of itself."""
        labels = self.parts["test"].labels
        sigmas = list(dict.fromkeys(sigma for _, sigma in cell.places))
        bank = self.bank("test", list(dict.fromkeys(layer for layer, _ in cell.places)), sigmas)
        draws, averaged, logits = accuracies(cell, bank, labels)
        mean = float(np.mean(draws))
        probabilities = (logits.double() / self.calibrated(cell)).softmax(1)
        return {
            "accuracy": mean,
            "interval": share_interval(mean, len(labels)),
            "draws": draws,
            "draws_std": float(np.std(draws, ddof=1)) if len(draws) > 1 else None,
            "averaged": averaged,
            "averaged_interval": share_interval(averaged, len(labels)),
            "calibration_error": calibration_error(probabilities, labels),
            "images": len(labels),
        }

    def calibrated(self, cell: Cell) -> float:
        """The temperature that makes a cell's validation probabilities honest."""
        x, labels = joined(self.banks["validation"], cell.places).mean(0), self.parts["validation"].labels
        logits = cell.head.logits(x)
        found = temperature(logits, labels)
        # a validation part without an error would make every answer certain
        return max(found, 1.0) if bool((logits.argmax(1) == labels).all()) else found

    def raw_pixels(self) -> dict[str, Any] | None:
        """The same head on raw pixels; None where they are too many to fit at once."""
        pixels = {split: self._pixels(split) for split in self.parts}
        if any(value is None for value in pixels.values()):
            return None
        x = {split: value[None] for split, value in pixels.items() if value is not None}
        head = Logistic() if self.settings.head.kind == "attentive" else self.settings.head  # pixels have no channels
        fit = fitter(head, len(self.store.classes), self.settings.seed)
        with threads_for(2.0 * x["train"].numel() * len(self.store.classes)):
            heads = fit(x["train"][:, None], self.parts["train"].labels, ())
        right = {
            split: (heads.logits(x[split])[0].argmax(-1) == self.parts[split].labels).double().mean(1)
            for split in ("validation", "test")
        }
        chosen = int(right["validation"].argmax())
        accuracy = float(right["test"][chosen])
        return {"accuracy": accuracy, "interval": share_interval(accuracy, len(self.parts["test"].rows))}

    def _pixels(self, split: str) -> Tensor | None:
        rows = self.parts[split].rows
        if len(rows) * math.prod(self.store.shape) > MOST_NUMBERS:
            return None
        return self.store.batch(rows).flatten(1).float() / 127.5 - 1

    def label_efficiency(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """Accuracy with k labels per class, of the features and of raw pixels on the same images."""
        s, labels = self.settings, {split: part.labels for split, part in self.parts.items()}
        subsets = label_subsets(labels["train"].numpy(), s.labels_per_class, s.label_draws, s.seed)
        if not subsets:
            return []
        train, test = self._pixels("train"), self._pixels("test")
        with threads_for(0):  # a few images at a time
            few = curve(self._averaged, labels, [cell.places for cell in cells], subsets, self._fit_few)
            both = train is not None and test is not None
            raw = baseline(train, test, labels, subsets, self._fit_few) if both else []  # type: ignore[arg-type]
        return [few_row(one, raw[i] if raw else None) for i, one in enumerate(few)]

    def _averaged(self, split: str, places: tuple[Place, ...]) -> Tensor:
        if split != "test":
            return joined(self.banks[split], places).mean(0)
        layers = list(dict.fromkeys(layer for layer, _ in places))
        return joined(self.bank("test", layers, list(dict.fromkeys(sigma for _, sigma in places))), places).mean(0)

    def _fit_few(self, x: Tensor, y: Tensor, sets: object) -> Any:
        head = Logistic(l2=(FEW_L2 / len(y),), standardise=False)
        return fitter(head, len(self.store.classes), self.settings.seed, tolerance=FEW_TOLERANCE)(x, y, ())

    def reader(self, cell: Cell) -> Reader:
        """Reads new images as the cell's features were read."""
        s = self.settings
        return Reader(self.denoiser, cell.places, s.pool, s.draws, s.seed, s.clean, s.micro_batch)

    def save(self, path: Path, cell: Cell, model: str, at: str, own: bool) -> None:
        """Writes the cell as a probe that `twofold predict` reads."""
        s = self.settings
        facts = ProbeFacts(
            kind=s.head.kind,
            places=cell.places,
            pool=s.pool,
            clean=s.clean,
            draws=s.draws,
            seed=s.seed,
            classes=self.store.classes,
            model=model,
            at=at,
            model_hash=self.model,
            data=self.store.settings.source,
            own=own,
            image_shape=self.store.shape,
            fit=self.store.settings.fit,
            background=self.store.settings.background,
            temperature=self.calibrated(cell),
        )
        save_probe(path, facts, cell.head.tensors())


def survivors(cells: Sequence[Cell]) -> tuple[list[str], list[float]]:
    """The layers and noise levels that are worth all images: the two best levels, the better half of the layers."""
    ranked = sorted(cells, key=lambda cell: cell.rank, reverse=True)
    sigmas = list(dict.fromkeys(cell.places[0][1] for cell in ranked))[:2]
    layers = list(dict.fromkeys(cell.places[0][0] for cell in ranked if cell.places[0][1] in sigmas))
    return layers[: max(3, -(-len(layers) // 2))], sigmas


def few_row(few: Few, raw: Few | None) -> dict[str, Any]:
    """One k of the label-efficiency curve, as plain data."""
    row = {
        "k": few.k,
        "places": [list(place) for place in few.places],
        "validation": few.validation,
        "accuracy": few.mean,
        "interval": mean_interval(few.test),
        "draws": list(few.test),
    }
    if raw is not None:
        row |= {"raw": raw.mean, "raw_interval": mean_interval(raw.test), "raw_draws": list(raw.test)}
    return row


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of independent values."""
    from scipy.stats import t

    mean, n = float(np.mean(values)), len(values)
    half = float(t.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return max(0.0, mean - half), min(1.0, mean + half)
