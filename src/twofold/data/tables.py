"""Parquet files and hub data sets: rows with a column of encoded images and, mostly, one of labels.

The column's meaning is read from the `datasets` library's own description of the features, which travels in the
schema's metadata (`Image`, `ClassLabel` with its names), and from the types where there is none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, nearest
from ..settings.data import DataSettings
from .decode import Encoded
from .items import FILE_SPLITS, Item

ROWS_AT_ONCE = 256
USUAL_IMAGES, USUAL_LABELS = ("image", "img", "images"), ("label", "labels")


class Shard:
    """One Parquet file. `name` is how errors and ids call it, `split` one of SPLITS or None."""

    def __init__(self, path: Path, name: str, split: str | None) -> None:
        self.path, self.name, self.split = path, name, split

    @cached_property
    def schema(self) -> Any:
        return self._file().schema_arrow

    @property
    def rows(self) -> int:
        return self._file().metadata.num_rows

    @property
    def folder(self) -> Path | None:
        """Where relative paths in the image column begin."""
        return self.path.parent

    def batches(self, columns: list[str], rows: int = ROWS_AT_ONCE) -> Iterator[Any]:
        """Record batches of these columns, in order."""
        import pyarrow as pa

        try:
            yield from self._file().iter_batches(batch_size=rows, columns=columns, use_threads=False)
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
        return UserError(str(self.path), f"cannot be read as Parquet ({reason})", "download or write it again")


class Tables:
    """Shards as one source: finds the columns, makes labels of whatever the label column holds."""

    name: str
    where: str

    def __init__(self, settings: DataSettings) -> None:
        self.settings = settings
        self.where = f"data={settings.source}"

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
        return sum(shard.rows for shard in self.shards)

    @cached_property
    def _image_column(self) -> str:
        column = image_column(self.shards[0].schema, self.settings.image_column, self.where)
        for shard in self.shards:
            _check_column(shard, column)
        return column

    @cached_property
    def _labels(self) -> Labels | None:
        column = label_column(self.shards[0].schema, self.settings.label_column, self.where)
        return None if column is None else Labels(column, self.shards)

    def items(self) -> Iterator[Item]:
        labels, image = self._labels, self._image_column
        columns = [image, *([labels.column] if labels else [])]
        for shard in self.shards:
            row = 0
            for batch in shard.batches(columns):
                known = labels(batch.column(labels.column), shard, row) if labels else np.full(len(batch), -1)
                for encoded, label in zip(_encoded(batch.column(image), shard.folder), known.tolist(), strict=True):
                    yield Item(f"{shard.name}:{row}", encoded, label, shard.split)
                    row += 1


class ParquetFiles(Tables):
    """Parquet files below one folder; their splits are read from their names (train-00000-of-00003.parquet)."""

    def __init__(self, settings: DataSettings, root: Path, files: list[str]) -> None:
        super().__init__(settings)
        self.root = root
        self.name = root.resolve().name if len(files) != 1 else Path(files[0]).stem
        splits = {file: split_of(file) for file in files}
        if len(files) > 1 and None in splits.values() and set(splits.values()) != {None}:
            without = next(file for file in files if splits[file] is None)
            raise UserError(
                f"{self.where}: {without}",
                "its name says no split, while those of other files do",
                "put train, validation or test into its name, or move it to another folder",
            )
        self._splits = splits

    def identity(self) -> str:
        digest = hashlib.sha256()
        for file in self._splits:
            status = (self.root / file).stat()
            digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        return f"parquet\0{self.root.resolve()}\0{digest.hexdigest()}"

    @cached_property
    def shards(self) -> list[Shard]:
        return [Shard(self.root / file, file, split) for file, split in self._splits.items()]


class Labels:
    """A label column as int64: `ClassLabel` names, or the sorted distinct values as classes; null and -1 are -1."""

    def __init__(self, column: str, shards: list[Any]) -> None:
        import pyarrow as pa

        self.column = column
        for shard in shards:
            _check_column(shard, column)
            _check_label_type(shard, column, shards[0])
        names = _class_names(shards[0].schema, column)
        self._named = names is not None
        values = [] if self._named else self._distinct(shards)
        self.classes = [str(value) for value in values] if names is None else names
        number = _kind(shards[0].schema.field(column).type) == "number"
        self._values = pa.array(values, pa.int64() if number else pa.string())

    def __call__(self, array: Any, shard: Any, row: int) -> np.ndarray:
        """Labels (rows,) int64 of one batch; `row` is the number of its first row, for errors."""
        import pyarrow.compute as pc

        if not self._named:
            return np.asarray(pc.index_in(_plain(array), self._values).fill_null(-1)).astype(np.int64)
        labels = np.asarray(array.fill_null(-1)).astype(np.int64)
        wrong = np.flatnonzero((labels < -1) | (labels >= len(self.classes)))
        if wrong.size:
            raise UserError(
                f"{shard.name} row {row + wrong[0]}",
                f"{self.column} is {labels[wrong[0]]}, but there are {len(self.classes)} classes",
                "labels are 0 to classes - 1, or -1 for none",
            )
        return labels

    def _distinct(self, shards: list[Any]) -> list[Any]:
        import pyarrow.compute as pc

        values: set[Any] = set()
        for shard in shards:
            for batch in shard.batches([self.column], rows=1 << 16):
                values.update(pc.unique(_plain(batch.column(self.column))).to_pylist())
        return sorted(values - {None, -1})


def split_of(file: str) -> str | None:
    """The split in a file's name or else in the folders above it: data/train-00000-of-00003.parquet -> train."""
    for part in reversed(Path(file).with_suffix("").parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in FILE_SPLITS:
                return FILE_SPLITS[word]
    return None


def image_column(schema: Any, wanted: str | None, where: str) -> str:
    """The column of the images: the wanted one, or the only one of an image type, or the one called `image`."""
    import pyarrow.types as types

    if wanted is not None:
        return _existing(schema, wanted, "image_column", where)
    structs = [
        field.name
        for field in schema
        if types.is_struct(field.type) and {"bytes", "path"} <= {child.name for child in field.type}
    ]
    found = structs or [
        field.name for field in schema if types.is_binary(field.type) or types.is_large_binary(field.type)
    ]
    usual = [name for name in USUAL_IMAGES if name in found]
    if len(found) == 1 or usual:
        return usual[0] if usual else found[0]
    if found:
        raise UserError(where, f"several columns hold images: {', '.join(found)}", f"set data.image_column={found[0]}")
    raise UserError(where, f"no column holds images (columns: {', '.join(schema.names)})", "set data.image_column=...")


def label_column(schema: Any, wanted: str | None, where: str) -> str | None:
    """The column of the labels: the wanted one, `label` or `labels`, the only `ClassLabel`, or none."""
    if wanted is not None:
        return _existing(schema, wanted, "label_column", where)
    for name in USUAL_LABELS:
        if name in schema.names:
            return name
    found = [name for name in schema.names if _class_names(schema, name) is not None]
    if len(found) > 1:
        raise UserError(where, f"several columns hold labels: {', '.join(found)}", f"set data.label_column={found[0]}")
    return found[0] if found else None


def _existing(schema: Any, wanted: str, setting: str, where: str) -> str:
    if wanted not in schema.names:
        raise UserError(f"data.{setting}={wanted}", f"{where} has no such column", nearest(wanted, schema.names))
    return wanted


def _check_column(shard: Any, column: str) -> None:
    if column not in shard.schema.names:
        raise UserError(f"{shard.name}: {column}", "this file has no such column", nearest(column, shard.schema.names))


def _class_names(schema: Any, column: str) -> list[str] | None:
    """The names of a `ClassLabel` column, from the description that `datasets` keeps in the metadata."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        return list(described["names"]) if described["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None


def _check_label_type(shard: Any, column: str, first: Any) -> None:
    """Whole numbers, truth values or texts, the same in every file and with the same class names."""
    kind = _kind(shard.schema.field(column).type)
    if kind is None:
        raise UserError(
            f"{shard.name}: {column}",
            f"holds {shard.schema.field(column).type}, which is no class",
            "data.label_column takes a column of whole numbers or texts",
        )
    named, other = _class_names(shard.schema, column), _class_names(first.schema, column)
    if named != other or (named is None and kind != _kind(first.schema.field(column).type)):
        raise UserError(
            f"{shard.name}: {column}",
            f"its classes differ from those of {first.name}",
            "give the files of one data set",
        )


def _kind(type: Any) -> str | None:
    import pyarrow.types as types

    type = type.value_type if types.is_dictionary(type) else type
    if types.is_integer(type):
        return "number"
    texts = (types.is_string, types.is_large_string, types.is_boolean, types.is_null)
    return "text" if any(is_type(type) for is_type in texts) else None


def _plain(array: Any) -> Any:
    import pyarrow as pa
    import pyarrow.types as types

    array = array.dictionary_decode() if types.is_dictionary(array.type) else array
    return array.cast(pa.int64() if types.is_integer(array.type) else pa.string())


def _encoded(array: Any, folder: Path | None) -> Iterator[Encoded]:
    """What `decode` takes, for each row of an image column: its bytes, else its path, else None."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    if not types.is_struct(array.type):
        yield from array.to_pylist()
        return
    paths = pc.struct_field(array, "path")
    for row, content in enumerate(pc.struct_field(array, "bytes").to_pylist()):
        path = None if content is not None else paths[row].as_py()
        yield content if path is None else (folder or Path()) / path
