"""What an experiment will do, known before it does anything: every network built without weights, every image counted.

What cannot be is said here, and not after hours of training; `twofold fewlabel --dry-run` shows what can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...generate.produce import plan_of
from ...generate.samplers import SAMPLERS
from ...run import Run, build
from ...settings.fewlabel import Network, OwnFeatures
from ...settings.train import TrainSettings
from ..classes import class_names
from ..estimate import estimate
from ..training import complete
from . import recipes
from .embed import OfDenoiser, reader_of
from .stages import reads_features
from .workshop import Workshop

PASSES = 3  # of a network, in a training step: one there, about two back
NOWHERE = Path("not-made-yet")


@dataclass(frozen=True)
class Work:
    """One thing that an experiment does. images: that go through it; flops: in all; parameters: of a training run."""

    stage: int
    what: str
    images: int
    flops: float
    parameters: int | None = None


@dataclass(frozen=True)
class Training:
    """A training run that is to come. settings: complete. shape: of x0."""

    stage: int
    what: str
    settings: TrainSettings
    shape: tuple[int, int, int]
    classes: list[str]

    def model(self) -> Any:
        """The model, without weights. Raises `UserError` where these settings describe none."""
        with torch.device("meta"):
            return build(self.settings, self.shape, self.classes)


def check(shop: Workshop) -> None:
    """Raises `UserError` for whatever would go wrong in any stage, as far as it can be known."""
    given = shop.given if needs_denoiser(shop) else None
    for training in trainings(shop):
        model = training.model()
        if training.what == "denoiser" and reads_features(shop.settings):
            reader_of(model, shop.settings.features, 1, 0)  # type: ignore[arg-type]
        if training.what == "generator":
            plan_of(model, recipes.pseudo_images(shop.settings.images, len(shop.subject.classes)))
    if given is not None and reads_features(shop.settings):
        given.embed(shop.subject.store.batch(shop.subject.train[:1]))


def needs_denoiser(shop: Workshop) -> bool:
    """Whether there is anything to read or to begin with, before labels come in."""
    return reads_features(shop.settings) or shop.settings.generator.warm_start


def trainings(shop: Workshop) -> Iterator[Training]:
    """Every kind of training run of the experiment, each once. Raises `UserError` for one that cannot be."""
    s = shop.settings
    if needs_denoiser(shop) and shop.given is None:
        yield _training(shop, 1, "denoiser", recipes.unconditional(s))
    if isinstance(s.learner, Network):
        yield _training(shop, 1, "classifier", recipes.classifier(s, s.learner, None, None, 0))
    if s.pseudo.folds:
        yield _training(shop, 1, "fold", recipes.classifier(s, s.pseudo.network, NOWHERE, None, 0))
    start = shop.given if s.generator.warm_start else None
    source = start.source if isinstance(start, OfDenoiser) else None
    yield _training(shop, 2, "generator", recipes.conditional(s, NOWHERE, source, 0))
    if s.pseudo.folds:
        yield _training(shop, 3, "fold", recipes.classifier(s, s.pseudo.network, NOWHERE, NOWHERE, 0))
    if isinstance(s.final.learner, Network):
        final, several = s.final, [("final", s.final.pseudo, s.final.generated, False)]
        if final.compare:
            several += [("self-training", 1.0, 0.0, False), ("generated alone", 0.0, 1.0, True)]
            several += [("self-training, corrected", 1.0, 0.0, False)] if s.pseudo.folds else []
        for what, pseudo, generated, alone in several:
            labels, images = NOWHERE if pseudo else None, NOWHERE if generated else None
            yield _training(shop, 3, what, recipes.classifier(s, s.final.learner, labels, images, 0, alone))


def _training(shop: Workshop, stage: int, what: str, settings: TrainSettings) -> Training:
    store = shop.subject.store
    codec = shop.codec if settings.codec is not None else None
    shape = store.shape if codec is None else codec.shape_of(store.shape)
    settings = complete(settings, store, Run(shop.parts.folder / NOWHERE), codec)
    classes = [] if what == "denoiser" else class_names(settings, store)
    return Training(stage, what, settings, shape, classes)


def works(shop: Workshop) -> list[Work]:
    """What the experiment does in one round, whether some of it is there already or not. Call `check` before."""
    s, subject = shop.settings, shop.subject
    folds = {"fold": s.pseudo.folds}
    runs = [_trained(training, folds.get(training.what, 1)) for training in trainings(shop)]
    first, second, third = ([work for work in runs if work.stage == stage] for stage in (1, 2, 3))
    denoiser = next((work for work in runs if work.what == "denoiser"), None)
    images = Work(3, "images", s.images.per_class * len(subject.classes), 0.0)
    images = replace(images, flops=images.images * _passes(shop) * _forward(second[0]))
    found = [*first, *second, images, *third]
    if reads_features(s):
        each, every = _reading(shop, denoiser), len(subject.train) + len(subject.test)
        found.insert(len(first[:1]) if denoiser else 0, Work(1, "features", every, every * each))
        if not isinstance(s.final.learner, Network):
            found.insert(found.index(images) + 1, Work(3, "imagefeatures", images.images, images.images * each))
    return found


def _trained(training: Training, times: int) -> Work:
    found = estimate(training.settings, training.shape, training.classes)
    n = training.settings.train.n_images
    name = training.what if times == 1 else f"{times} x {training.what}"
    return Work(training.stage, name, times * n, times * found.flops, found.parameters)


def _forward(work: Work) -> float:
    """FLOPs of one image through the network of a training run."""
    return work.flops / work.images / PASSES


def _reading(shop: Workshop, denoiser: Work | None) -> float:
    """FLOPs of one image's features."""
    features = shop.settings.features
    if denoiser is not None and isinstance(features, OwnFeatures):
        return _forward(denoiser) * len(features.sigmas) * features.draws
    assert shop.given is not None
    with FlopCounterMode(display=False) as counter:
        shop.given.embed(shop.subject.store.batch(shop.subject.train[:1]))
    return float(counter.get_total_flops())


def _passes(shop: Workshop) -> int:
    """How often the network sees a pseudo image while it is made: twice in each evaluation, where it is guided."""
    s = shop.settings.images
    sampler = SAMPLERS[s.sampler]
    return sampler.evaluations(s.steps or sampler.steps) * (1 if s.guidance in (0, 1) else 2)
