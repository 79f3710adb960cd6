"""A run folder: the settings that made it, its weights, its log and its result.

settings.yaml      complete and resolved; running it again reproduces the run
model.safetensors  averaged weights, the newest; snapshots/ holds the kept ones and the best per metric
codec/             the autoencoder of a latent model, in diffusers' layout
lora.safetensors   what low-rank training trained, alone (the model above has it inside)
state/             what resuming needs          log.jsonl   one line per log interval
result.json        written at the end           previews/   uint8 arrays of preview images
samples/ figures/ evaluations/ report.html
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import UserError, nearest
from ..files import atomic_bytes, atomic_json
from ..settings.resolve import differences, from_yaml, to_yaml
from ..settings.train import TrainSettings


class Run:
    """Paths and records of one run folder. `Run.open` for an existing one, `Run.start` to train in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run. Raises `UserError` where the folder is missing or holds no settings."""
        run = cls(Path(path))
        if not run.path.is_dir():
            siblings = [str(p) for p in sorted(run.path.parent.glob("*")) if p.is_dir()]
            raise UserError(str(path), "no such run folder", nearest(str(path), siblings))
        if not run.settings_file.is_file():
            raise UserError(str(path), "not a run folder (no settings.yaml)", "`twofold runs` lists the runs here")
        return run

    @classmethod
    def start(cls, path: str | Path, settings: TrainSettings, header: str = "") -> Run:
        """Creates the folder, or finds it made by the same settings. Other settings raise, listing the differences."""
        run = cls(Path(path))
        if run.path.exists() and not run.path.is_dir():
            raise UserError(str(path), "is a file", "give --out a folder")
        if run.settings_file.is_file():
            different = differences(run.settings(), settings)
            if different:
                raise UserError(str(path), "this run has other settings: " + "; ".join(different), "give another --out")
            return run
        if run.path.is_dir() and any(p.name != "lock" and not p.name.startswith(".") for p in run.path.iterdir()):
            raise UserError(str(path), "the folder is not empty and is not a run", "give --out a new folder")
        run.path.mkdir(parents=True, exist_ok=True)
        atomic_bytes(run.settings_file, to_yaml(settings, header))
        return run

    def forget_unbegun(self, settings: TrainSettings) -> None:
        """Makes room for these settings in the folder of a run that ended before anything was saved.

        Nothing happens where they are that run's own, where there is a state, weights or a result, or while somebody
        trains in it.
        """
        if not self.settings_file.is_file() or self.begun:
            return
        if not differences(self.settings(), settings):
            return
        with contextlib.suppress(UserError), self.lock():
            for file in (self.settings_file, self.path / "environment.json", self.log_file):
                file.unlink(missing_ok=True)
            for folder in (self.previews, self.path / "figures", self.snapshots):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    @property
    def begun(self) -> bool:
        """Whether anything of a training was saved here."""
        made = (self.model_file, self.result_file, *(self.path / "state").glob("[0-9]*"))
        return any(file.exists() for file in made)

    @property
    def settings_file(self) -> Path:
        return self.path / "settings.yaml"

    @property
    def model_file(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def previews(self) -> Path:
        return self.path / "previews"

    def settings(self) -> TrainSettings:
        """The settings that made this run."""
        settings = from_yaml(TrainSettings, self.settings_file)
        return settings

    def snapshot_file(self, at: str = "last") -> Path:
        """Weights at `last`, `best-<metric>` or an image count. Raises `UserError` listing what there is."""
        if at == "last":
            file, there = self.model_file, []
        else:
            name = f"{int(at):012d}" if at.isdecimal() else at
            file = self.snapshots / f"{name}.safetensors"
            there = ["last", *(p.stem.lstrip("0") or "0" for p in sorted(self.snapshots.glob("*.safetensors")))]
        if not file.is_file():
            if at == "last":
                raise UserError(str(self.path), "no weights yet", "train it first, or wait for its first save")
            raise UserError(f"at={at}", f"{self.path} has no such snapshot", "there are: " + ", ".join(there))
        return file

    def numbered_snapshots(self) -> list[tuple[str, int]]:
        """(name for `at`, images seen) of the snapshots that were kept on the way, oldest first."""
        return [(str(int(p.stem)), int(p.stem)) for p in sorted(self.snapshots.glob("[0-9]*.safetensors"))]

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by whoever trains here; a second writer is told so. Freed by the system if the holder is killed."""
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                str(self.path), "another process is training in this folder", "wait for it or stop it"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def sweep(self) -> None:
        """Removes what killed writers left half-written. Call it while holding the lock."""
        for leftover in [*self.path.glob(".*.tmp"), *self.snapshots.glob(".*.tmp"), *self.previews.glob(".*.tmp")]:
            leftover.unlink(missing_ok=True)

    def log(self) -> list[dict[str, Any]]:
        """The rows of log.jsonl; a last line cut by a kill is left out."""
        rows = []
        if self.log_file.is_file():
            for line in self.log_file.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    rows.append(json.loads(line))
        return rows

    def append_log(self, row: dict[str, Any]) -> None:
        with self.log_file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rewind_log(self, n_images: int) -> None:
        """Drops rows written after the state that is resumed from, so that no row appears twice."""
        kept = [row for row in self.log() if row["n_images"] <= n_images]
        atomic_bytes(self.log_file, "".join(json.dumps(row) + "\n" for row in kept))

    def result(self) -> dict[str, Any] | None:
        """What the finished run reported, or None while it is not finished."""
        if not self.result_file.is_file():
            return None
        return json.loads(self.result_file.read_text())

    def write_result(self, result: dict[str, Any]) -> None:
        atomic_json(self.result_file, result)
