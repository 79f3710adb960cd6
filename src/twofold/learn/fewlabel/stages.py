"""The three stages of dual pseudo training (You et al. 2023), each made of parts that other verbs understand.

    stage 1   denoiser -> features -> classifier -> pseudo     every image gets a label, and how sure it is
    stage 2   generator                                        a denoiser that is told these labels
    stage 3   images -> imagefeatures -> final                 pseudo images, and a classifier that learned from both

A part is made of others; what it is made of names it (see `parts`). Several processes share training, reading and
sampling; what takes moments is done by the first one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data import Store, open_store
from ...errors import UserError, some
from ...generate.chunks import write_npz
from ...generate.produce import produce
from ...run import load
from ...settings.data import DataSettings
from ...settings.fewlabel import FewLabelSettings, LearnerSettings, Network
from ..fastest import DTYPES
from ..features import Features
from ..parts import Part
from . import pseudo, recipes
from .embed import Embedder, OfDenoiser, numbers
from .learning import Told, learn, learner_of, logits_of, tempered, together
from .workshop import IMAGES, MODEL_FILE, TRAIN_FILE, Workshop, write_answers

BATCH = 512  # pseudo images that are asked about at once


@dataclass(frozen=True)
class Start:
    """A denoiser whose weights another one begins with. source: where it is. key: a hash of it."""

    source: str
    key: str


@dataclass(frozen=True)
class Known:
    """What stage 1 has read: who reads features, and those of all images, training images first; None of networks.

    start: the denoiser that stage 2 may begin with.
    """

    embedder: Embedder | None
    features: Features | None
    key: str
    start: Start | None


@dataclass(frozen=True)
class Mix:
    """What a classifier learns from: weights of labelled, pseudo (made) and pseudo-labelled images; 0: none of them."""

    own: float
    generated: float
    pseudo: float


def reading(shop: Workshop) -> Known:
    """Stage 1, until labels come in: a denoiser of all images, and its features; or those of a frozen encoder."""
    s = shop.settings
    read = reads_features(s)
    if not read and not s.generator.warm_start:
        return Known(None, None, "", None)
    embedder: Embedder | None = shop.given
    start = Start(embedder.source, embedder.name) if isinstance(embedder, OfDenoiser) else None
    if embedder is None:
        made = shop.trained("denoiser", recipes.unconditional(s), {}, "a diffusion model of all images")
        start = Start(str(made.path), made.content)
        embedder = shop.denoiser_features(start.source) if read else None
    if embedder is None or not read:
        return Known(None, None, "", start)
    rows = np.concatenate([shop.subject.train, shop.subject.test])
    facts = {"images": shop.subject.images_key}
    part, features = shop.read("features", facts, embedder, shop.subject.store, rows, "reading features")
    return Known(embedder, features, part.content, start)


def reads_features(settings: FewLabelSettings) -> bool:
    """Whether any classifier learns from features, and not from images."""
    return not (isinstance(settings.learner, Network) and isinstance(settings.final.learner, Network))


def first_classifier(shop: Workshop, known: Known, settings: LearnerSettings, kind: str = "classifier") -> Part:
    """Learns from the labels that are known, and says what it takes all images for."""
    subject = shop.subject
    if isinstance(settings, Network):
        return shop.network(kind, recipes.classifier(shop.settings, settings, None, None, 0), {})
    embedder, features = known.embedder, known.features
    assert embedder is not None and features is not None
    temperature = shop.settings.pseudo.temperature
    facts = {"features": known.key, "labels": subject.labels_key, "learner": settings.model_dump(mode="json")}

    def work(path: Path) -> None:
        found = learn(settings, features, subject.labels, len(subject.classes), temperature)
        embedder.save(path, found.learned, subject)
        write_answers(path, found.train, found.test)

    return shop.small(kind, {**facts, "temperature": temperature}, work, "learning from the labels")


def pseudo_labels(shop: Workshop, classifier: Part, kind: str = "pseudo") -> Part:
    """The label file that follows from a classifier's answers. kind: what this part is called."""
    settings, subject = shop.settings.pseudo, shop.subject
    chosen = settings.model_dump(mode="json", include={"balanced", "least", "surest"})
    facts = {"classifier": classifier.content, "labels": subject.labels_key, "pseudo": chosen}

    def work(path: Path) -> None:
        found = pseudo.pseudo_labels(np.load(classifier.path / TRAIN_FILE), subject.labels, settings)
        pseudo.write(path / pseudo.FILE, subject, found)

    return shop.small(kind, facts, work, files=lambda path: [path / pseudo.FILE])


def generator(shop: Workshop, labels: Part, start: Start | None, turn: int) -> Part:
    """Stage 2: the denoiser that is told these labels. start: whose weights it begins with; None: none."""
    source = None if start is None else start.source
    settings = recipes.conditional(shop.settings, labels.path / pseudo.FILE, source, turn)
    facts = {"labels": labels.content, "start": None if start is None else start.key}
    return shop.trained(in_round("generator", turn), settings, facts, "a diffusion model that is told the labels")


def in_round(kind: str, turn: int) -> str:
    """What a part of a later round is called: another one than that of the first, and no new form of it."""
    return kind if not turn else f"{kind}-round{turn + 1}"


def images(shop: Workshop, model: Part, turn: int = 0) -> Part:
    """Stage 3: as many pseudo images of each class, every one with a seed of its own."""
    s, crew = shop.settings.images, shop.crew
    wanted = recipes.pseudo_images(s, len(shop.subject.classes))
    precision = numbers(shop.settings.precision, crew.device)

    def work(path: Path) -> None:
        denoiser: Any = load(str(model.path), device=crew.device)
        denoiser.autocast = DTYPES[precision]
        with crew.watch.progress("making pseudo images") as progress:
            produce(denoiser, path, wanted, model.content, crew.rank, crew.world, progress)
        crew.wait()
        if crew.first:  # where no folder is shared, the others' images are missing here; else nothing is to be done
            produce(denoiser, path, wanted, model.content)

    chosen = s.model_dump(mode="json", exclude={"agreeing"})
    facts = {"generator": model.content, "images": chosen, "precision": precision}
    return shop.parts.make(in_round("images", turn), facts, lambda path: [path / IMAGES], work)


def agreeing(shop: Workshop, made: Part, classifier: Part, turn: int = 0) -> Part:
    """The pseudo images that a classifier takes for what they were asked to be, as another part of images."""

    def work(path: Path) -> None:
        store, asked = pseudo_store(shop, made), classes_of(shop, made)
        judge: Any = load(str(shop.model_of(classifier)), device=shop.crew.device)
        order = [list(judge.class_names).index(name) for name in shop.subject.classes]
        batches = [np.arange(len(store))[i : i + BATCH] for i in range(0, len(store), BATCH)]
        with torch.no_grad():
            answers = [judge.image_logits(store.batch(rows).to(shop.crew.device)).cpu().numpy() for rows in batches]
        kept = np.flatnonzero(np.concatenate(answers)[:, order].argmax(1) == asked)
        if not len(kept):
            what = "the first classifier takes every pseudo image for another class"
            raise UserError("images.agreeing=true", what, "leave it false, or train the generator longer")
        if lacking := sorted({*range(len(order))} - {*asked[kept].tolist()}):
            names = some([shop.subject.classes[i] for i in lacking])
            shop.crew.watch.say(f"no pseudo image is taken for what was asked, of {names}; left out all of those")
        chunks = (store.batch(kept[i : i + BATCH]).numpy() for i in range(0, len(kept), BATCH))
        write_npz(path / IMAGES, chunks, store.shape, asked[kept], shop.subject.classes)

    facts = {"images": made.content, "classifier": classifier.content}
    return shop.small(in_round("images-agreeing", turn), facts, work, files=lambda path: [path / IMAGES])


def pseudo_store(shop: Workshop, made: Part) -> Store:
    """Pseudo images, packed."""
    channels = shop.subject.store.shape[0]
    return open_store(
        DataSettings(source=str(made.path / IMAGES), channels=channels, validation_share=0.0, test_share=0.0)  # type: ignore[arg-type]
    )


def classes_of(shop: Workshop, made: Part) -> np.ndarray:
    """The classes (n,) that pseudo images were made of, as the experiment numbers them."""
    store = pseudo_store(shop, made)
    place = np.array([shop.subject.classes.index(name) for name in store.classes], np.int64)
    return place[np.asarray(store.all_labels, np.int64)]


def image_features(shop: Workshop, known: Known, made: Part, turn: int = 0) -> Features | None:
    """Features of pseudo images, in their order."""
    if known.embedder is None:
        return None
    store, facts = pseudo_store(shop, made), {"images": made.content}
    rows = np.arange(len(store))
    kind = in_round("imagefeatures", turn)
    return shop.read(kind, facts, known.embedder, store, rows, "reading features of pseudo images")[1]


def final_classifier(
    shop: Workshop, known: Known, labels: Part, made: Part | None, mix: Mix, kind: str = "final", turn: int = 0
) -> Part:
    """A classifier of this mix of images. labels: the pseudo labels. made: pseudo images."""
    kind = in_round(kind, turn)
    settings, subject = shop.settings.final.learner, shop.subject
    facts: dict[str, Any] = {
        "pseudo": labels.content if mix.pseudo else "",
        "images": made.content if made is not None and mix.generated else "",
    }
    if isinstance(settings, Network):
        npz = made.path / IMAGES if made is not None and mix.generated else None
        file = labels.path / pseudo.FILE if mix.pseudo else None
        run = recipes.classifier(shop.settings, settings, file, npz, turn, alone=not mix.own)
        return shop.network(kind, run, {**facts, "own": mix.own})
    embedder, features = known.embedder, known.features
    assert embedder is not None and features is not None
    facts |= {"features": known.key, "labels": subject.labels_key, "mix": [mix.own, mix.generated, mix.pseudo]}
    new = image_features(shop, known, made, turn) if made is not None and mix.generated else None

    def work(path: Path) -> None:
        told = _told(shop, features, new, labels, made, mix)
        learner = learner_of(settings)
        learned = tempered(learner, told.features, told.labels, len(subject.classes), 1.0, told.weight)
        embedder.save(path, learned, subject)
        write_answers(path, *np.split(logits_of(learned, features), [len(subject.train)]))

    return shop.small(kind, {**facts, "learner": settings.model_dump(mode="json")}, work)


def _told(
    shop: Workshop, features: Features, new: Features | None, labels: Part, made: Part | None, mix: Mix
) -> Told:  # fmt: skip
    """The images of a mix that have a place in it."""
    subject, parts = shop.subject, []
    if mix.own:
        known = np.flatnonzero(subject.labels >= 0)
        y = torch.from_numpy(subject.labels[known])
        parts.append(Told(features.take(known), y, torch.full((len(known),), mix.own)))
    if mix.pseudo:
        found, sure = said(shop, labels)
        rows = np.flatnonzero((found >= 0) & (subject.labels < 0))
        weight = torch.from_numpy(sure[rows]).float() * mix.pseudo
        if len(rows):
            parts.append(Told(features.take(rows), torch.from_numpy(found[rows]), weight))
    if new is not None and made is not None:
        y = torch.from_numpy(classes_of(shop, made))
        parts.append(Told(new.all(), y, torch.full((len(y),), mix.generated)))
    return together(parts)


def said(shop: Workshop, labels: Part) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidences (train images,) of a label file of this experiment."""
    store = open_store(recipes.labelled_by(shop.subject.store.settings, labels.path / pseudo.FILE))
    rows, confidences = shop.subject.train, store.confidences
    sure = np.ones(len(rows), np.float32) if confidences is None else confidences[rows]
    return np.asarray(store.labels[rows], np.int64), np.asarray(sure)


__all__ = ["IMAGES", "MODEL_FILE", "Known", "Mix"]
