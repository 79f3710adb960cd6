"""The artefacts of an experiment, each in a folder named by everything it was made from.

    parts/<kind>-<12 hex digits of its inputs>/     and in it part.json: inputs, content hash, seconds

A part with a part.json is finished and never made again; one without is begun, and its maker continues. Where an input
changes, the name changes: the old part stays as it is, and the new one says what was different. An experiment notes the
parts it used in parts.json, since others may use the same folder.

Processes on several machines need not share a disk: before a part is used, every machine compares its own copy with
the first one's by content, and says what to copy where it has none.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, some
from ..files import atomic_json, sha256
from .crew import Crew

FACTS = "part.json"
FORMAT = 1
MOST = 3  # differences that are told


@dataclass(frozen=True)
class Part:
    """A finished artefact. content: hash of its files of record, which is what later parts depend on.

    made: "made", "found" as it was, or "redone"; because: what was different from the one that was there before.
    """

    kind: str
    path: Path
    content: str
    seconds: float
    made: str
    because: str = ""

    def row(self, out: Path) -> dict[str, Any]:
        """What the report says of it."""
        folder = self.path.relative_to(out) if self.path.is_relative_to(out) else self.path
        return {
            "name": self.kind,
            "folder": str(folder),
            "hash": self.content[:12],
            "seconds": round(self.seconds, 1),
            "made": self.made,
            "because": self.because,
        }


class Parts:
    """The parts in one folder, and who makes them. record: where an experiment notes which of them it used."""

    def __init__(self, folder: Path, crew: Crew, record: Path | None = None) -> None:
        self.folder, self.crew, self.record = folder, crew, record
        self.used: list[Part] = []

    def make(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        files: Callable[[Path], list[Path]],
        work: Callable[[Path], object],
    ) -> Part:
        """The part of this kind made from these inputs (plain data); `work(folder)` makes it where it is not there.

        Called by every process alike. files: those of record, once it is made. work: called in every process, which
        share it among themselves; it continues what it finds begun.
        """
        plain = json.loads(json.dumps({"format": FORMAT, "kind": kind, **inputs}, sort_keys=True))
        path = self.folder / f"{kind}-{digest(plain)[:12]}"
        there = self.crew.told(read(path) is not None and not missing(files(path)))
        before = {} if there else self.crew.told(self._before(kind))
        if not there:
            start = time.monotonic()
            path.mkdir(parents=True, exist_ok=True)
            work(path)
            self.crew.wait()
            self.crew.by_first(lambda: _finish(path, files(path), plain, time.monotonic() - start))
        self.crew.wait()
        facts = self._everywhere(path, files)
        because = some(different(before, plain), MOST) if before else ""
        made = "found" if there else "redone" if because else "made"
        part = Part(kind, path, facts["content"], facts["seconds"], made, because)
        if all(one.path != path for one in self.used):  # features are used by several classifiers
            self.used.append(part)
        if self.crew.first and self.record is not None:
            noted = self._noted()
            if noted.get(kind) != path.name:
                atomic_json(self.record, {**noted, kind: path.name})
        return part

    def _before(self, kind: str) -> dict[str, Any]:
        """The inputs of the part of this kind that the experiment used last."""
        name = self._noted().get(kind)
        facts = read(self.folder / name) if name else None
        return {} if facts is None else facts["inputs"]

    def _noted(self) -> dict[str, str]:
        """{kind: folder} of the parts that the experiment used last."""
        try:
            found = json.loads(self.record.read_text("utf-8")) if self.record is not None else {}
        except (OSError, ValueError):
            return {}
        return {kind: str(name) for kind, name in found.items()} if isinstance(found, dict) else {}

    def _everywhere(self, path: Path, files: Callable[[Path], list[Path]]) -> dict[str, Any]:
        """The facts of a part, when every process has seen a copy of it with the same content."""
        facts = self.crew.told(read(path) if self.crew.first else None)
        if self.crew.world == 1:
            return facts
        mine = read(path)
        whole = mine is not None and not missing(files(path))
        same = whole and content_of(path, files(path)) == facts["content"]
        found = self.crew.everyones((self.crew.machine, same))
        lacking = sorted({machine for machine, there in found if not there})
        if lacking:
            source = found[0][0]
            what = f"{', '.join(lacking)} has no copy with the content of {source}'s ({facts['content'][:12]})"
            absolute = path.resolve()
            hint = f"copy it: rsync -a {source}:{absolute}/ {absolute}/ on each of them, then give the same command"
            raise UserError(str(path), what, hint)
        return facts


def read(path: Path) -> dict[str, Any] | None:
    """What part.json says, None where there is none."""
    try:
        found = json.loads((path / FACTS).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"inputs", "content", "seconds"} <= found.keys() else None


def missing(files: list[Path]) -> list[Path]:
    """Those that are not there."""
    return [file for file in files if not file.is_file()]


def _finish(path: Path, files: list[Path], inputs: dict[str, Any], seconds: float) -> None:
    """Notes that a part is finished. Raises `UserError` where somebody took a file of it away."""
    if gone := missing(files):
        hint = "remove the folder and give the same command again"
        raise UserError(str(path), f"is damaged: {gone[0].name} is not there", hint)
    content = content_of(path, files)
    atomic_json(path / FACTS, {"inputs": inputs, "content": content, "seconds": round(seconds, 2)})


def content_of(path: Path, files: list[Path]) -> str:
    """One hash of several files and their names; of weights, what they are and not what is noted beside them."""
    hashed = {".safetensors": _weights}
    found = {file: hashed.get(file.suffix, sha256)(file) for file in files}
    return digest({str(file.relative_to(path)): value for file, value in found.items()})


def _weights(path: Path) -> str:
    """SHA-256 of a safetensors file without its metadata: 8 bytes of length, a JSON header, the numbers."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        value = hashlib.file_digest(file, lambda: hashlib.sha256(digest(header).encode()))
    return value.hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def different(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`learner.kind: logistic -> propagation`, for everything that two inputs differ in."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += different(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}: {_short(old)} -> {_short(new)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    if isinstance(value, str) and len(value) == 64:
        return value[:8]
    return text if len(text) <= 40 else text[:37] + "..."
