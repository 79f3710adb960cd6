"""`twofold runs [FOLDER | RUN RUN ...]`: list the runs and experiments in a folder, or compare some of them.

Reads the files of their folders alone, so it loads no torch and is quick however many there are.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from ..settings.presets import HASH, SETTINGS_FILE
from ..settings.resolve import differences, flatten, load_yaml, write_value
from ..settings.text import read_text

OPTIONS = ()
TAIL = 2**16  # bytes of a log that are read: many rows, whatever its length
KEY_METRICS = ("frechet", "loss", "accuracy", "miou", "nme", "psnr")  # shown in the listing, where a run has them
EXPERIMENTS = {"finetune": "distill", "final": "fewlabel"}  # settings that only one verb's experiments have
MAIN = ("taught", "stage 3")  # what of an experiment the listing shows, if it is there
NONE = (
    "no runs in {}; `twofold train PRESET data=SOURCE` makes one, and `twofold runs FOLDER` lists those that --out put "
    "elsewhere"
)
WRITTEN = ("log.jsonl", "result.json", "parts.json")  # files whose age is a run's, besides its settings
MOST = 30  # characters of a value in a comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", metavar="FOLDER|RUN", nargs="*", help="a folder of runs to list (default: runs), or runs to compare"
    )


def run(args: argparse.Namespace) -> int:
    if len(args.folders) > 1:
        print(compare([Record.read(Path(folder)) for folder in args.folders]))
        return 0
    folder = Path(args.folders[0] if args.folders else "runs")
    if (folder / SETTINGS_FILE).is_file():
        print(one(Record.read(folder)))
        return 0
    if args.folders and not folder.is_dir():
        raise UserError(str(folder), "no such folder", nearest(str(folder), _folders(folder.parent)))
    files = [*folder.glob(f"*/{SETTINGS_FILE}"), *folder.glob(f"*/*/{SETTINGS_FILE}")]  # a demo holds two runs
    found = [Record.read(path.parent) for path in files]
    found.sort(key=lambda record: record.changed, reverse=True)
    print(listing(found, folder) if found else NONE.format(folder))
    return 0


@dataclass(frozen=True)
class Record:
    """What a run folder says about itself.

    settings: nested, as saved. result: result.json, {} while it is not finished. validation: the newest log row of it.
    n_images: seen so far. status: finished, running, interrupted. changed: seconds since the epoch. experiment:
    "distill" or "fewlabel", None for a run. parts: (name, folder) of what an experiment has made or used.
    """

    path: Path
    preset: str
    settings: dict[str, Any]
    result: dict[str, Any]
    validation: dict[str, Any]
    n_images: int
    status: str
    changed: float
    experiment: str | None = None
    parts: Sequence[tuple[str, str]] = ()

    @classmethod
    def read(cls, path: Path) -> Record:
        """Raises `UserError` where this is no run folder."""
        file = path / SETTINGS_FILE
        if not file.is_file():
            if path.is_dir():
                raise UserError(
                    str(path), f"not a run folder (no {SETTINGS_FILE})", "`twofold runs` lists the runs here"
                )
            raise UserError(str(path), "no such run folder", nearest(str(path), _folders(path.parent)))
        text = read_text(file)
        result = _read_json(path / "result.json")
        rows = _last_rows(path / "log.jsonl")
        validation: dict[str, Any] = next((row for row in reversed(rows) if row.get("kind") == "validation"), {})
        saved = [int(state.name) for state in (path / "state").glob("*") if state.name.isdigit()]
        seen = int(result.get("n_images") or max([*saved, *(row.get("n_images", 0) for row in rows)], default=0))
        status = "finished" if result else "running" if _is_locked(path / "lock") else "interrupted"
        written = [p.stat().st_mtime for p in (file, *(path / name for name in WRITTEN)) if p.exists()]
        settings = load_yaml(text, str(file))
        experiment = next((verb for name, verb in EXPERIMENTS.items() if name in settings), None)
        preset = _preset(text, path)
        if experiment is not None and not HASH.search(path.resolve().name):
            preset = experiment  # its folder was named by the user, which says nothing of what it is
        parts = _parts(path, result) if experiment is not None else []
        return cls(path, preset, settings, result, validation, seen, status, max(written), experiment, parts)

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers measured on held-out data: of the finished run, or the newest so far."""
        if self.experiment is not None:
            return _found(self.result)
        found = self.result.get("metrics") or {k: v for k, v in self.validation.items() if k != "n_images"}
        return {k: v for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}

    @property
    def size(self) -> str:
        """How much was done: images seen, or parts of an experiment."""
        if self.experiment is not None:
            return f"{len(self.parts)} part{'s' * (len(self.parts) != 1)}"
        total = self.settings.get("train", {}).get("n_images") or self.n_images
        share = "" if self.status == "finished" else f" ({self.n_images / max(total, 1):.0%})"
        return f"{self.n_images:,}{share}"


def listing(records: Sequence[Record], folder: Path) -> str:
    """A line a run, in the order given; names are those within `folder`."""
    metrics = [name for name in KEY_METRICS if any(name in record.metrics for record in records)]
    rows = [["run", "preset", "status", "images", *metrics, "age"]]
    for record in records:
        values = [_number(record.metrics.get(name)) for name in metrics]
        age = _age(time.time() - record.changed)
        rows.append([str(record.path.relative_to(folder)), record.preset, record.status, record.size, *values, age])
    return _columns(rows, right_from=3)


def one(record: Record) -> str:
    """Everything a single run says: status, metrics, what it was made of."""
    facts = {
        "run": str(record.path),
        "status": record.status,
        **({"images": f"{record.n_images:,}"} if record.experiment is None else {"experiment": record.experiment}),
        **{name: _number(value) for name, value in record.metrics.items()},
        **{name: _plain(record.result[name]) for name in ("command", "images_per_second") if name in record.result},
        **{f"data {name}": _plain(value) for name, value in (record.result.get("data") or {}).items()},
    }
    parts = [[f"part {name}", folder] for name, folder in record.parts]
    return _columns([*([name, value] for name, value in facts.items()), *parts])


def compare(records: Sequence[Record]) -> str:
    """The settings that differ, then every metric that any of the runs has."""
    names = _short_names([record.path for record in records])
    flat = [flatten(record.settings) for record in records]
    differing = dict.fromkeys(
        path for record in records[1:] for path in differences(records[0].settings, record.settings)
    )
    rows = [["setting", *names]]
    for path in differing:
        rows.append([path, *(_cut(write_value(values[path])) if path in values else "-" for values in flat)])
    if not differing:
        rows = [["settings", *("the same" for _ in records)]]
    metrics = dict.fromkeys(name for record in records for name in record.metrics)
    rows += [[""] * len(rows[0]), ["metric", *names]]
    rows.append(["status", *(record.status for record in records)])
    sizes = (f"{record.n_images:,}" if record.experiment is None else record.size for record in records)
    rows.append(["images", *sizes])
    for name in metrics:
        rows.append([name, *(_number(record.metrics.get(name)) for record in records)])
    rates = [record.result.get("images_per_second") for record in records]
    if any(rates):
        rows.append(["images_per_second", *map(_number, rates)])
    return _columns(rows)


def _preset(settings_text: str, path: Path) -> str:
    """The preset in the command that the settings' first comment line holds, or else the folder's name."""
    first = settings_text.partition("\n")[0]
    if first.startswith("#"):
        words = (
            shlex.split(first.lstrip("# "), comments=False) if first.count('"') % 2 == first.count("'") % 2 == 0 else []
        )
        if "train" in words[:-1]:
            after = [word for word in words[words.index("train") + 1 :] if "=" not in word and not word.startswith("-")]
            if after:
                return Path(after[0]).name
        if "demo" in words:
            return "demo"
    return HASH.sub("", path.resolve().name)


def _parts(path: Path, result: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, folder) of an experiment's parts: those of its result, or while there is none those noted so far."""
    if rows := result.get("parts"):
        places = [(str(row["name"]), Path(row["folder"])) for row in rows]  # in the experiment, or seen from elsewhere
        return [(name, str(path / place if (path / place).is_dir() else place)) for name, place in places]
    return [(name, str(path / "parts" / folder)) for name, folder in _read_json(path / "parts.json").items()]


def _found(result: dict[str, Any]) -> dict[str, float]:
    """What an experiment's result says of the test images: of what counts under the measure's own name, then of all."""
    stages = [("accuracy", name, row) for name, row in (result.get("accuracy") or {}).items()]  # fewlabel
    arms = (result.get("arms") or {}).items()  # distill
    found = stages or [(kind, name, row) for name, arm in arms for kind, row in (arm.get("metrics") or {}).items()]
    known = [(kind, name, row["value"]) for kind, name, row in found if row.get("value") is not None]
    names = list(dict.fromkeys(name for _, name, _ in known))
    main = next((name for name in MAIN if name in names), names[-1] if names else None)
    return {kind: value for kind, name, value in known if name == main} | {
        f"{kind}, {name}": value for kind, name, value in known
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):  # absent or cut off: then the run is not finished
        return {}
    return value if isinstance(value, dict) else {}


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """The newest rows of a log; its first line read and one cut by a kill may be no JSON."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _folders(parent: Path) -> list[str]:
    return sorted(str(path) for path in parent.glob("*") if path.is_dir())


def _is_locked(path: Path) -> bool:
    """Whether somebody is training there now; a lock file that nobody holds is left by the last one."""
    if not path.is_file():
        return False
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Folder names, or whole paths where two runs have the same name."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _number(value) if isinstance(value, int | float) else json.dumps(value)


def _cut(text: str) -> str:
    return text if len(text) <= MOST else text[: MOST - 3] + "..."


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _columns(rows: Iterable[Sequence[str]], right_from: int | None = None) -> str:
    """Text in columns; those from `right_from` on are aligned to the right."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        right = len(row) if right_from is None else right_from
        cells = [
            f"{cell:<{w}}" if i < right else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
