"""Tables as sources: rows with a column of encoded images and, mostly, one of labels; Parquet and Arrow files.

Which columns these are is found in `columns`, what else belongs to an image in `annotations`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..settings.data import DataSettings
from .annotations import Annotations, names_a_path
from .columns import Labels, check_image_column, encoded, image_column, label_column
from .items import FILE_SPLITS, Item, limited, spans

ROWS_AT_ONCE = 256


class Shard:
    """One Parquet file. `name` is how errors and ids call it, `split` one of SPLITS or None."""

    kind = "Parquet"

    def __init__(self, path: Path, name: str, split: str | None) -> None:
        self.path, self.name, self.split = path, name, split

    @cached_property
    def schema(self) -> Any:
        return self._file().schema_arrow

    @cached_property
    def rows(self) -> int:
        return self._file().metadata.num_rows

    @property
    def folder(self) -> Path | None:
        """Where relative paths in the image column begin."""
        return self.path.parent

    def batches(
        self, columns: list[str], start: int = 0, stop: int | None = None, at_once: int = ROWS_AT_ONCE
    ) -> Iterator[Any]:
        """Record batches of these columns, rows start <= row < stop, in order; row groups before start are not read."""
        import pyarrow as pa

        file = self._file()
        try:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            groups = list(spans(sizes, start, stop))
            if not groups:
                return
            skip, left = groups[0][1], sum(last - first for _, first, last in groups)
            chosen = [i for i, _, _ in groups]
            for batch in file.iter_batches(batch_size=at_once, row_groups=chosen, columns=columns, use_threads=False):
                part = batch.slice(min(skip, len(batch)), left)
                skip, left = max(0, skip - len(batch)), left - len(part)
                if len(part):
                    yield part
                if not left:
                    return
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error

    def _file(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:160]
        return UserError(str(self.path), f"cannot be read as {self.kind} ({reason})", "download or write it again")


class Tables:
    """Shards as one source: finds the columns, makes labels of whatever the label column holds."""

    name: str
    where: str

    def __init__(self, settings: DataSettings) -> None:
        self.settings = settings
        self.where = f"data={settings.source}"
        if settings.group and names_a_path(settings.group):
            raise UserError(f"data.group={settings.group}", f"{self.where} has columns", "data.group=COLUMN")

    @cached_property
    def shards(self) -> list[Any]:
        raise NotImplementedError

    def identity(self) -> str:
        raise NotImplementedError

    def left_out(self) -> list[str]:
        return []

    def classes(self) -> list[str]:
        return self._labels.classes if self._labels else []

    def count(self) -> int:
        return sum(self._rows)

    def facts(self) -> dict[str, Any]:
        return self._annotations.facts()

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        labels, image, annotations = self._labels, self._image_column, self._annotations
        columns = list(dict.fromkeys([image, *([labels.column] if labels else []), *annotations.columns]))
        for i, row, last in spans(self._rows, start, stop):
            shard = self.shards[i]
            for batch in shard.batches(columns, row, last):
                known = labels(batch.column(labels.column), shard, row) if labels else np.full(len(batch), -1)
                images = encoded(batch.column(image), shard.folder)
                rest = annotations(batch, shard, row)
                for content, label, more in zip(images, known.tolist(), rest, strict=True):
                    yield Item(f"{shard.name}:{row}", content, label, shard.split, *more)
                    row += 1
            if row < last:  # what the hub says of a data set that is streamed need not be true
                what = f"{shard.name} ended after {row} rows, and {last} were announced"
                raise UserError(self.where, what, "set data.streaming=false, or data.most to fewer")

    @cached_property
    def _rows(self) -> list[int]:
        """How many rows of each shard are taken."""
        rows, splits = [shard.rows for shard in self.shards], [shard.split for shard in self.shards]
        return limited(rows, splits, self.settings)

    @cached_property
    def _image_column(self) -> str:
        column = image_column(self.shards[0].schema, self.settings.image_column, self.where)
        for shard in self.shards:
            check_image_column(shard, column, "image_column")
        return column

    @cached_property
    def _labels(self) -> Labels | None:
        if self.settings.images_only:
            return None
        column = label_column(self.shards[0].schema, self.settings.label_column, self.where)
        return None if column is None else Labels(column, self.shards, self._rows if self.settings.most else None)

    @cached_property
    def _annotations(self) -> Annotations:
        return Annotations(self.settings, self.shards, self.where)


class TableFiles(Tables):
    """Parquet or Arrow files below one folder; their splits are read from their names (train-00000-of-00003.parquet).

    splits: {file: split}, for those who know better. left_out: splits that are there and not among the files.
    """

    def __init__(
        self,
        settings: DataSettings,
        root: Path,
        files: Sequence[str],
        shard: type[Shard] = Shard,
        splits: Mapping[str, str | None] | None = None,
        left_out: Sequence[str] = (),
    ) -> None:
        super().__init__(settings)
        self.root, self._shard, self._left_out = root, shard, list(left_out)
        self.name = root.resolve().name if len(files) != 1 else Path(files[0]).stem
        self._splits = splits_of(files, self.where) if splits is None else dict(splits)

    def identity(self) -> str:
        return f"{self._shard.kind.lower()}\0{self.root.resolve()}\0{digest_of(self.root, self._splits)}"

    def left_out(self) -> list[str]:
        return self._left_out

    @cached_property
    def shards(self) -> list[Shard]:
        return [self._shard(self.root / file, file, split) for file, split in self._splits.items()]


def digest_of(root: Path, files: Iterable[str]) -> str:
    """Of the names, sizes and modification times of these files below root; one that is not there counts as that."""
    digest = hashlib.sha256()
    for file in files:
        try:
            status = (root / file).stat()
        except FileNotFoundError:
            continue
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def splits_of(files: Sequence[str], where: str) -> dict[str, str | None]:
    """{file: split by its name}; raises `UserError` where only some names say one."""
    splits = {file: split_of(file) for file in files}
    if len(files) > 1 and None in splits.values() and set(splits.values()) != {None}:
        without = next(file for file in files if splits[file] is None)
        raise UserError(
            f"{where}: {without}",
            "its name says no split, while those of other files do",
            "put train, validation or test into its name, or move it to another folder",
        )
    return splits


def split_of(file: str) -> str | None:
    """The split in a file's name or else in the folders above it: data/train-00000-of-00003.parquet -> train."""
    for part in reversed(Path(file).with_suffix("").parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in FILE_SPLITS:
                return FILE_SPLITS[word]
    return None
