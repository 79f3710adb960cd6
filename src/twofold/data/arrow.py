"""Arrow files: single ones, folders of them, and what `datasets.save_to_disk` writes, with or without splits.

A saved data set is known by its `state.json`, which names its files: the library keeps files of intermediate results
beside them. One with several splits is known by its `dataset_dict.json`; each split is a folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..settings.data import DataSettings
from .items import FILE_SPLITS
from .tables import ROWS_AT_ONCE, Shard, TableFiles

SPLITS_FILE, STATE_FILE = "dataset_dict.json", "state.json"


class ArrowShard(Shard):
    """One Arrow file, of the streaming or the random-access kind, mapped into memory: skipped rows are not read."""

    kind = "Arrow"

    @cached_property
    def schema(self) -> Any:
        return self._table.schema

    @cached_property
    def rows(self) -> int:
        return self._table.num_rows

    def batches(
        self, columns: list[str], start: int = 0, stop: int | None = None, at_once: int = ROWS_AT_ONCE
    ) -> Iterator[Any]:
        length = None if stop is None else max(0, stop - start)
        yield from self._table.select(columns).slice(start, length).to_batches(max_chunksize=at_once)

    @cached_property
    def _table(self) -> Any:
        import pyarrow as pa

        try:
            mapped = pa.memory_map(str(self.path))
            with mapped as file:
                is_file = file.read(6) == b"ARROW1"
            opened = pa.ipc.open_file if is_file else pa.ipc.open_stream
            return opened(pa.memory_map(str(self.path))).read_all()
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error


def is_saved(root: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return (root / SPLITS_FILE).is_file() or (root / STATE_FILE).is_file()


def saved(settings: DataSettings, root: Path) -> TableFiles:
    """What `datasets.save_to_disk` wrote as a source. Raises `UserError` for a file that it names and is not there."""
    where = f"data={settings.source}"
    if not (root / SPLITS_FILE).is_file():
        files: dict[str, str | None] = dict.fromkeys(_files(root, where))
        return TableFiles(settings, root, list(files), ArrowShard, files)
    names = [str(name) for name in _listed(root / SPLITS_FILE, "splits", where)]
    known = [name for name in names if name.lower() in FILE_SPLITS]
    kept = known if len(names) > 1 else names
    if not kept:
        raise UserError(
            where,
            f"none of its splits ({', '.join(names)}) is called train, validation or test",
            f"give the folder of the one you want: data={settings.source.rstrip('/')}/{names[0] if names else 'SPLIT'}",
        )
    files = {
        f"{name}/{file}": FILE_SPLITS.get(name.lower())
        for name in kept
        for file in _files(root / name, f"{where}/{name}")
    }
    return TableFiles(settings, root, list(files), ArrowShard, files, [name for name in names if name not in kept])


def _files(folder: Path, where: str) -> list[str]:
    names = _listed(folder / STATE_FILE, "_data_files", where)
    files = [str(entry.get("filename")) if isinstance(entry, dict) else str(entry) for entry in names]
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{where}/{file}", f"is not there, but {STATE_FILE} names it", "save the data set again")
    if not files:
        raise UserError(where, "this saved data set holds no file", "save the data set again")
    return files


def _listed(path: Path, key: str, where: str) -> list[Any]:
    """The list under a key of a JSON file."""
    try:
        found = json.loads(path.read_text("utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, list):
        raise UserError(f"{where}/{path.name}", f"does not list {key!r}", "save the data set again")
    return found
