"""An experiment: several training runs and what is made of them, in one folder, that the same command goes on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import UserError
from ..files import atomic_bytes
from ..run import Run
from ..settings.base import Settings
from ..settings.resolve import differences, load_yaml, to_yaml
from ..settings.text import plain, read_text
from ..settings.train import TrainSettings
from .crew import Crew

SETTINGS, RESULT, PARTS, RECORD = "settings.yaml", "result.json", "parts", "parts.json"


class Experiment:
    """What all kinds of experiments share: the folder, locked while one works there, with its settings in it.

    record: the settings that name the folder. kind: what messages call it ("a few-label experiment").
    """

    kind = "an experiment"

    def __init__(self, record: Settings, crew: Crew, out: Path) -> None:
        self.record, self.crew, self.out = record, crew, out

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder, locked, with its settings in it. Raises `UserError` where it is another experiment's."""
        held: list[FileLock] = []
        self.crew.by_first(lambda: held.append(self._lock()))
        try:
            yield
        finally:
            for lock in held:
                lock.release()

    def _lock(self) -> FileLock:
        if self.out.exists() and not self.out.is_dir():
            raise UserError(str(self.out), "is a file", "give --out a folder")
        self.out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.out / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(str(self.out), "another process works in this folder", "wait for it or stop it") from None
        try:
            self._settle()
        except BaseException:
            lock.release()
            raise
        return lock

    def _settle(self) -> None:
        """Notes the settings. What a folder's earlier settings made stays; parts that depend on what changed are made
        anew, and the report says so.
        """
        file = self.out / SETTINGS
        if not file.is_file():
            others = [p for p in self.out.iterdir() if p.name not in ("lock", PARTS) and not p.name.startswith(".")]
            if others:
                what = f"the folder is not empty and is not {self.kind}"
                raise UserError(str(self.out), what, "give --out a new folder")
        else:
            changed = differences(load_yaml(read_text(file), str(file)), plain(self.record.model_dump(mode="json")))
            if changed:
                self.crew.watch.say(f"{self.out}: other settings than before: {'; '.join(changed[:6])}")
        atomic_bytes(file, to_yaml(self.record))


def moved(run: Run, settings: TrainSettings) -> None:
    """Tells a begun run where its inputs are now: their content, which is in its name, is what it was."""
    if not run.settings_file.is_file():
        return
    begun = run.settings()
    names = ("source", "labels", "unlabelled", "generated")
    data = begun.data.model_copy(update={name: getattr(settings.data, name) for name in names})
    update: dict[str, Any] = {"init_from": settings.init_from, "data": data}
    if (teacher := getattr(settings.objective, "teacher", None)) is not None:
        update["objective"] = begun.objective.model_copy(update={"teacher": teacher})
    now = begun.model_copy(update=update)
    if differences(begun, now):
        atomic_bytes(run.settings_file, to_yaml(now))
