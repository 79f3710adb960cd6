"""Few labels: dual pseudo training (You et al. 2023), from labels of some images to a classifier and a generator.

run(settings, out)       everything, or one stage; the same call again continues
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...data import open_store
from ...files import atomic_json
from ...settings.fewlabel import FewLabelSettings
from ..crew import Crew, Watch
from ..experiment import PARTS, RECORD, RESULT, Experiment
from ..parts import Part, Parts
from ..training import make_accelerator, versions
from . import foresee, outcome, stages
from .refine import refined
from .stages import Known, Mix, Start
from .subject import Subject, complete, fitted
from .workshop import Workshop

__all__ = ["Crew", "FewLabel", "Watch", "run"]

GRID = 10  # images of each class that are shown


def run(
    settings: FewLabelSettings,
    out: str | Path,
    device: str | None = None,
    watch: Watch | None = None,
    command: str = "",
    packing: Callable[[int, int | None], None] | None = None,
    parts: str | Path | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs the stages that settings.stage asks for in the folder `out`, and returns the result and pictures for a page.

    What is there already is not made again. parts: a folder of artefacts shared with other experiments, default
    `parts/` in `out`. Raises `UserError` for what the user can mend, before anything takes long.
    """
    start = time.monotonic()
    accelerator = make_accelerator(device)
    crew = Crew(accelerator, watch)
    experiment = prepare(settings, out, crew, packing, parts)
    foresee.check(experiment.shop)
    with experiment.held():
        experiment.stages()
        result = experiment.result(command, time.monotonic() - start)
        pictures = experiment.pictures() if crew.first else {}
        if crew.first:
            atomic_json(experiment.out / RESULT, result)
    crew.wait()
    return result, pictures


def prepare(
    settings: FewLabelSettings,
    out: str | Path,
    crew: Crew,
    packing: Callable[[int, int | None], None] | None = None,
    parts: str | Path | None = None,
) -> FewLabel:
    """An experiment with its data, of which nothing has been made and nothing written; see `run`."""
    settings = complete(settings)
    subject = Subject(open_store(settings.data, packing if crew.first else None))
    settings, told = fitted(settings, subject.store.shape)
    if told:
        crew.watch.say(told)
    return FewLabel(settings, subject, crew, Path(out), Path(parts) if parts else Path(out) / PARTS)


class FewLabel(Experiment):
    """One experiment in its folder. After `stages`, what has been made is in its attributes."""

    kind = "a few-label experiment"

    def __init__(self, settings: FewLabelSettings, subject: Subject, crew: Crew, out: Path, parts: Path) -> None:
        super().__init__(settings.record, crew, out)
        self.settings, self.subject = settings, subject
        self.shop = Workshop(settings, subject, crew, Parts(parts, crew, out / RECORD))
        self.accuracy: dict[str, Any] = {}
        self.rounds: list[dict[str, Any]] = []
        self.labels: Any = None
        self.made: Any = None
        self.final: Any = None
        self.model: Any = None

    def stages(self) -> None:
        """Stage 1, 2 and 3, as often as there are rounds; or as far as one stage needs."""
        s, shop = self.settings, self.shop
        known = stages.reading(shop)
        first = stages.first_classifier(shop, known, s.learner)
        self.accuracy["stage 1"] = outcome.accuracy(shop, first)
        answers = refined(shop, first, first, None, "refined", 0) if s.pseudo.folds else first
        start = known.start if s.generator.warm_start else None
        for turn in range(s.rounds):
            self.labels = stages.pseudo_labels(shop, answers, stages.in_round("pseudo", turn))
            if s.stage == 1:
                return
            self.model = stages.generator(shop, self.labels, start, turn)
            if s.stage == 2:
                return
            answers = self._third(known, first, answers, turn)
            self.rounds.append(self._round())
            start = Start(str(self.model.path), self.model.content) if s.generator.warm_start else None

    def _third(self, known: Known, first: Part, answers: Part, turn: int) -> Part:
        """Stage 3 of one round, and beside it what its parts do alone; the answers that the next round begins with."""
        final, shop, labels = self.settings.final, self.shop, self.labels
        self.made = stages.images(shop, self.model, turn)
        if self.settings.images.agreeing:
            self.made = stages.agreeing(shop, self.made, first, turn)
        if self.settings.pseudo.folds:
            answers = refined(shop, answers, first, self.made, stages.in_round("refined-by-images", turn), turn)
            labels = stages.pseudo_labels(shop, answers, stages.in_round("pseudo-by-images", turn))
        mix = Mix(1.0, final.generated, final.pseudo)
        self.final = stages.final_classifier(shop, known, labels, self.made, mix, "final", turn)
        self.accuracy["stage 3"] = outcome.accuracy(shop, self.final)
        if final.compare:
            self._alone(known, first, turn)
        return answers if self.settings.pseudo.folds else self.final

    def _alone(self, known: Known, first: Part, turn: int) -> None:
        """The final learner without what is before or beside it: of plain and of corrected pseudo labels, of images."""
        shop, only_labels = self.shop, Mix(1.0, 0.0, 1.0)
        several = {"self-training": (self.labels, only_labels), "generated alone": (self.labels, Mix(0.0, 1.0, 0.0))}
        if self.settings.pseudo.folds:
            several["self-training, corrected"] = several["self-training"]
            several["self-training"] = (stages.pseudo_labels(shop, first, "pseudo-plain"), only_labels)
        for name, (labels, mix) in several.items():
            kind = name.replace(",", "").replace(" ", "-")
            part = stages.final_classifier(shop, known, labels, self.made, mix, kind, turn)
            self.accuracy[name] = outcome.accuracy(shop, part)

    def _round(self) -> dict[str, Any]:
        pseudo = outcome.of_pseudo_labels(self.shop, self.labels)["accuracy"]
        return {"pseudo": pseudo, "stage 3": self.accuracy["stage 3"]}

    def result(self, command: str, seconds: float) -> dict[str, Any]:
        """Everything that was found, as plain data."""
        subject, store = self.subject, self.subject.store
        return {
            "command": command,
            "settings": self.settings.record.model_dump(mode="json"),
            "stage": self.settings.stage,
            "data": {
                "name": store.name,
                "hash": store.content_hash,
                "source": store.settings.source,
                "train_images": len(subject.train),
                "labelled": subject.counts(),
                "test_images": len(subject.test),
            },
            "classes": subject.classes,
            "accuracy": self.accuracy,
            "pseudo": outcome.of_pseudo_labels(self.shop, self.labels),
            "parts": [part.row(self.out) for part in self.shop.parts.used],
            "rounds": self.rounds,
            "generator": str(self.model.path) if self.model else None,
            "classifier": str(self.shop.model_of(self.final)) if self.final else None,
            "answers": str(self.final.path) if self.final else None,
            "seconds": round(seconds, 1),
            "versions": versions(),
        }

    def pictures(self) -> dict[str, Any]:
        """What the page shows: images of each class, the most and the least confident pseudo labels."""
        samples = None
        if self.made is not None:
            store = stages.pseudo_store(self.shop, self.made)
            asked, classes = stages.classes_of(self.shop, self.made), range(len(self.subject.classes))
            rows = [np.flatnonzero(asked == c)[:GRID] for c in classes]
            count = min(map(len, rows))  # fewer where only agreeing ones are kept
            chosen = np.concatenate([of_class[:count] for of_class in rows])
            samples = store.batch(chosen).numpy().reshape(len(rows), count, *store.shape) if count else None
        return outcome.pictures(self.shop, self.labels, samples)
