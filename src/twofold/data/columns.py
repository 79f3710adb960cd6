"""Which columns of a table hold the images and the labels, and what the labels mean.

A column's meaning is read from the `datasets` library's own description of the features, which travels in the schema's
metadata (`Image`, `ClassLabel` with its names), and from the types where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, nearest
from .decode import Encoded

USUAL_IMAGES, USUAL_LABELS = ("image", "img", "images"), ("label", "labels")


class Labels:
    """A label column as int64: `ClassLabel` names, or the sorted distinct values as classes; null and -1 are -1.

    rows: how many rows of each shard count, if not all; values that are only beyond them are no classes.
    """

    def __init__(self, column: str, shards: list[Any], rows: Sequence[int] | None = None) -> None:
        import pyarrow as pa

        self.column = column
        for shard in shards:
            check_column(shard, column)
            _check_label_type(shard, column, shards[0])
        names = class_names(shards[0].schema, column)
        self._named = names is not None
        values = [] if self._named else self._distinct(shards, rows or [None] * len(shards))
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

    def _distinct(self, shards: list[Any], rows: Sequence[int | None]) -> list[Any]:
        import pyarrow.compute as pc

        values: set[Any] = set()
        for shard, stop in zip(shards, rows, strict=True):
            for batch in shard.batches([self.column], 0, stop, at_once=1 << 16):
                values.update(pc.unique(_plain(batch.column(self.column))).to_pylist())
        return sorted(values - {None, -1})


def image_column(schema: Any, wanted: str | None, where: str) -> str:
    """The column of the images: the wanted one, or the only one of an image type, or the one called `image`."""
    import pyarrow.types as types

    if wanted is not None:
        return existing(schema, wanted, "image_column", where)
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
        return existing(schema, wanted, "label_column", where)
    for name in USUAL_LABELS:
        if name in schema.names:
            return name
    found = [name for name in schema.names if class_names(schema, name) is not None]
    if len(found) > 1:
        raise UserError(where, f"several columns hold labels: {', '.join(found)}", f"set data.label_column={found[0]}")
    return found[0] if found else None


def existing(schema: Any, wanted: str, setting: str, where: str) -> str:
    if wanted not in schema.names:
        raise UserError(f"data.{setting}={wanted}", f"{where} has no such column", nearest(wanted, schema.names))
    if (count := schema.names.count(wanted)) > 1:
        raise UserError(f"data.{setting}={wanted}", f"{where} has {count} columns of this name", "rename or remove one")
    return wanted


def check_column(shard: Any, column: str) -> None:
    if column not in shard.schema.names:
        raise UserError(f"{shard.name}: {column}", "this file has no such column", nearest(column, shard.schema.names))


def class_names(schema: Any, column: str) -> list[str] | None:
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
    named, other = class_names(shard.schema, column), class_names(first.schema, column)
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


def check_image_column(shard: Any, column: str, setting: str) -> None:
    """Raises `UserError` unless this file has the column and it holds encoded images."""
    import pyarrow.types as types

    check_column(shard, column)
    type = shard.schema.field(column).type
    parts = {child.name: child.type for child in type} if types.is_struct(type) else {"bytes": type}
    if {"bytes"} <= set(parts) <= {"bytes", "path"} and _is_bytes(parts["bytes"]):
        return
    raise UserError(
        f"{shard.name}: {column}",
        f"holds {type}, which is no image",
        f"data.{setting} takes a column of encoded images: binary, or struct of bytes and path",
    )


def _is_bytes(type: Any) -> bool:
    import pyarrow.types as types

    # a column whose cells are all empty has no type, or one that was guessed from nothing
    checks = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_null)
    return any(is_type(type) for is_type in checks)


def encoded(array: Any, folder: Path | None) -> Iterator[Encoded]:
    """What `decode` takes, for each row of an image column: its bytes, else its path, else None."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    if not types.is_struct(array.type):
        yield from array.to_pylist()
        return
    if "path" not in {child.name for child in array.type}:
        yield from pc.struct_field(array, "bytes").to_pylist()
        return
    paths = pc.struct_field(array, "path")
    for row, content in enumerate(pc.struct_field(array, "bytes").to_pylist()):
        path = None if content is not None else paths[row].as_py()
        yield content if path is None else (folder or Path()) / path
