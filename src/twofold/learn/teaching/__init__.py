"""Teaching: a small network imitates a diffusion model, learns a task, and is held against itself without a teacher.

run(settings, out)       everything, or one stage; the same call again continues

    pretrain   the backbone imitates the teacher on all training images
    finetune   "taught": with a head, on the labelled ones       scratch   the same from random weights
    equal      from random weights with as much computing as pretrain and finetune together
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...data import Store, open_store
from ...files import atomic_json
from ...hashing import model_hash
from ...run import Run, load
from ...settings.teaching import TeachingSettings
from ...settings.train import TrainSettings
from ..crew import Crew, Watch
from ..experiment import PARTS, RESULT, moved
from ..parts import Part
from ..training import make_accelerator, train, versions
from . import recipes
from .checks import backbone_of
from .judge import LESS, MAIN, judge, pictures
from .plan import SCRATCH, TAUGHT, Plan, Try

__all__ = ["Teaching", "backbone_of", "prepare", "run"]

MODEL_FILE = "model.safetensors"


@dataclass
class Arm:
    """One way to the task. run: of the student that counts, best: how it learned. tried: {how: its validation}."""

    run: Part
    n_images: int
    best: Try
    flops: float
    tried: dict[str, float | None] = field(default_factory=dict)


def run(
    settings: TeachingSettings,
    out: str | Path,
    device: str | None = None,
    watch: Watch | None = None,
    command: str = "",
    packing: Callable[[int, int | None], None] | None = None,
    parts: str | Path | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs the stages that settings.stage asks for in the folder `out`; returns the result and pictures for a page.

    What is there already is not made again. parts: a folder of artefacts shared with other experiments, default
    `parts/` in `out`. Raises `UserError` for what the user can mend, before anything takes long.
    """
    start = time.monotonic()
    crew = Crew(make_accelerator(device), watch)
    teaching = prepare(settings, out, crew, packing, parts)
    teaching.check()
    with teaching.held():
        teaching.stages()
        result = teaching.result(command, time.monotonic() - start)
        shown = teaching.pictures() if crew.first else {}
        if crew.first:
            atomic_json(teaching.out / RESULT, result)
    crew.wait()
    return result, shown


def prepare(
    settings: TeachingSettings,
    out: str | Path,
    crew: Crew,
    packing: Callable[[int, int | None], None] | None = None,
    parts: str | Path | None = None,
) -> Teaching:
    """An experiment with its data, of which nothing has been made and nothing written; see `run`."""
    store = open_store(settings.data, packing if crew.first else None)
    return Teaching(settings, store, crew, Path(out), Path(parts) if parts else Path(out) / PARTS)


class Teaching(Plan):
    """One experiment in its folder. After `stages`, what has been made is in its attributes."""

    def __init__(self, settings: TeachingSettings, store: Store, crew: Crew, out: Path, parts: Path) -> None:
        super().__init__(settings, store, crew, out, parts)
        self.pretrained: Part | None = None
        self.arms: dict[str, Arm] = {}

    # -- stages ---------------------------------------------------------------------------------------------------

    def stages(self) -> None:
        """Teaches, and learns the task in every way that the stage asks for."""
        s = self.settings
        if s.stage != "scratch" and s.pretrain is not None:
            self.pretrained = self._pretrain()
        for name in self._arms():
            if name == TAUGHT:
                self.arms[name] = self._arm(TAUGHT, self._start())
            elif name == SCRATCH:
                self.arms[name] = self._arm(SCRATCH, None)
            else:
                n_images = s.finetune.train.n_images + self._extra_images()
                known = self.arms[SCRATCH].best if SCRATCH in self.arms else None
                self.arms[name] = self._arm("equal", None, n_images, known)

    def _start(self) -> Path | None:
        """The run that the taught student begins with; None where a classifier teaches it in its task."""
        if self.pretrained is not None:
            return self.pretrained.path
        return None if self.settings.student is None else Path(backbone_of(self.settings.student))

    def _pretrain(self) -> Part:
        settings = recipes.pretraining(self.settings, self.backbone)
        return self._trained("backbone", settings, {"teacher": self._teacher_key}, "the student imitates its teacher")

    @property
    def _teacher_key(self) -> str:
        assert self.teacher is not None
        return self.teacher.key

    def _arm(self, name: str, start: Path | None, n_images: int | None = None, best: Try | None = None) -> Arm:
        """The task from one beginning: every way that is to be tried (or this one), of which the best counts."""
        s, taught = self.settings, name == TAUGHT
        facts: dict[str, Any] = {} if start is None else {"start": self._start_key()}
        if taught and s.finetune.objective.kind == "kd":
            facts["teacher"] = self._teacher_key
        runs, found = {}, {}
        tries = [best] if best is not None else self._tries()
        for tried in tries:
            begin = str(start) if start else None
            settings = recipes.task(s, self.backbone, begin, tried.lr, n_images, taught, tried.freeze)
            said = f"{name}, {tried}" if len(tries) > 1 else name
            kind = f"{name}-run" if len(tries) == 1 else f"{name}-run-{str(tried).replace(', ', '-').replace(' ', '-')}"
            runs[tried] = self._trained(kind, settings, facts, f"the task: {said}")
            found[tried] = (Run(runs[tried].path).result() or {}).get("metrics", {}).get(MAIN[s.task])
        best = tries[0] if len(tries) == 1 else self._best(found)
        n = n_images or s.finetune.train.n_images
        flops = n * self._step_flops(best.freeze)
        return Arm(runs[best], n, best, flops, {str(tried): value for tried, value in found.items()})

    def _best(self, found: dict[Try, float | None]) -> Try:
        """That whose validation is best; the first one that is there of equals."""
        sign = -1 if MAIN[self.settings.task] in LESS else 1
        known = {tried: value for tried, value in found.items() if value is not None}
        return max(known, key=lambda tried: sign * known[tried]) if known else next(iter(found))

    def _start_key(self) -> str:
        return self.pretrained.content if self.pretrained is not None else model_hash(self.given)

    def _trained(self, kind: str, settings: TrainSettings, facts: dict[str, Any], title: str) -> Part:
        """A training run, made by all processes; its name says its settings, its images and what it began with."""
        store = self._store_of(settings)
        places: Any = {"data": {"source", "labels"}, "init_from": True, "objective": {"teacher"}}
        plain = settings.model_dump(mode="json", exclude=places)
        inputs = {"settings": plain, "images": store.training_hash, **facts}

        def work(path: Path) -> None:
            self.crew.by_first(lambda: moved(Run(path), settings))
            with self.crew.watch.training(title, settings.train.n_images) as show:
                train(settings, path, str(self.crew.device), show)

        return self.parts.make(kind, inputs, lambda path: [path / MODEL_FILE], work)

    # -- what came of it ------------------------------------------------------------------------------------------

    @cached_property
    def _models(self) -> dict[str, Any]:
        return {name: load(str(arm.run.path), device=self.crew.device) for name, arm in self.arms.items()}

    def result(self, command: str, seconds: float) -> dict[str, Any]:
        """Everything that was found, as plain data."""
        s, store, rows = self.settings, self.store, self._test_rows()
        judged = {}
        if self.crew.first:
            batch = min(256, s.finetune.train.batch_size * 2)
            for name, model in self._models.items():
                objective = Run(self.arms[name].run.path).settings().objective
                judged[name] = judge(model, store, rows, objective, batch)
        return {
            "command": command,
            "settings": s.record.model_dump(mode="json"),
            "task": s.task,
            "measure": MAIN[s.task],
            "stage": s.stage,
            "data": {
                "name": store.name,
                "source": store.settings.source,
                "hash": store.content_hash,
                "train_images": len(store.indices("train")),
                "known_images": len(self._known("train")),
                "test_images": len(rows),
            },
            "arms": {name: self._row(name, judged.get(name, {})) for name in self.arms},
            "pretraining": self._pretraining(),
            "parts": [part.row(self.out) for part in self.parts.used],
            "seconds": round(seconds, 1),
            "versions": versions(),
        }

    def _row(self, name: str, judged: dict[str, Any]) -> dict[str, Any]:
        arm = self.arms[name]
        trained = json.loads((arm.run.path / "result.json").read_text("utf-8"))
        taught = self.pretraining_flops + self.kd_flops if name == TAUGHT else 0.0
        return {
            **judged,
            "run": str(arm.run.path),
            "parameters": trained["parameters"],
            "n_images": arm.n_images,
            "lr": arm.best.lr,
            "freeze": arm.best.freeze,
            "tried": arm.tried,
            "flops": arm.flops + taught,
            "seconds": trained["seconds"],
        }

    def _pretraining(self) -> dict[str, Any] | None:
        """What was learned before the task; None where nothing was here."""
        if self.pretrained is None:
            return None if self.settings.student is None else {"student": self.settings.student}
        trained = json.loads((self.pretrained.path / "result.json").read_text("utf-8"))
        return {
            "run": str(self.pretrained.path),
            "teacher": trained["learned"]["teacher"],
            "selection": trained["learned"].get("selection"),
            "losses": [
                {"n_images": row["n_images"], "loss": row["loss"]}
                for row in Run(self.pretrained.path).log()
                if row["kind"] == "validation" and "loss" in row
            ],
            "n_images": trained["n_images"],
            "flops": self.pretraining_flops,
            "seconds": trained["seconds"],
        }

    def pictures(self) -> dict[str, Any]:
        """Some test images with what every student says of them; {} where there is none of either."""
        rows = self._test_rows()
        return pictures(self._models, self.store, rows, 64) if len(rows) and self._models else {}
