"""A table on disk, CSV or Parquet by its name's ending, written row group by row group, whole or not at all."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import disk_full

ENDINGS = (".csv", ".parquet")


def check_ending(path: Path) -> Path:
    """The path, if its ending names a kind of table. Raises `UserError` otherwise."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"--out {path}", "its ending names no kind of table", "end it in .csv or .parquet")
    return path


class TableFile:
    """Use it in a `with` block and call `write` with equally long columns; the file appears when the block succeeds."""

    def __init__(self, path: Path) -> None:
        self.path = check_ending(path)
        self.aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.rows = 0
        self._file: Any = None
        self._writer: Any = None

    def __enter__(self) -> TableFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Appends rows; the same columns every time. Lists in Parquet are list columns."""
        try:
            if self.path.suffix.lower() == ".csv":
                self._write_csv(columns)
            else:
                self._write_parquet(columns)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise disk_full(self.path) from error
        self.rows += len(next(iter(columns.values())))

    def _write_csv(self, columns: Mapping[str, Sequence[Any]]) -> None:
        if self._file is None:
            self._file = self.aside.open("w", newline="", encoding="utf-8")
            self._writer = csv.writer(self._file)
            self._writer.writerow(columns)
        self._writer.writerows(zip(*columns.values(), strict=True))

    def _write_parquet(self, columns: Mapping[str, Sequence[Any]]) -> None:
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table(dict(columns), schema=self._writer.schema if self._writer else None)
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self.aside, table.schema)
        self._writer.write_table(table)

    def __exit__(self, kind: object, *rest: object) -> None:
        for open_one in (self._writer, self._file):
            if hasattr(open_one, "close"):
                open_one.close()
        if kind is None and self.rows:
            os.replace(self.aside, self.path)
        self.aside.unlink(missing_ok=True)
