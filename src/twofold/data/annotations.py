"""What belongs to an image beside its label: group, attributes, mask, key points, a paired image; read from columns.

`Annotations` finds and checks the columns that the settings name. `yes_or_no`, `key_points` and `group_of` check single
values and serve the sources without columns as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError, nearest
from ..settings.data import DataSettings
from .columns import check_image_column, encoded, existing
from .decode import Encoded

FOLDER, REGEX = "folder", "re:"  # values of `data.group` that are not columns
COLUMNS = ("image_column", "label_column", "attribute_columns", "mask_column", "points_column", "pair_column")


class Belongings(NamedTuple):
    """What belongs to one image; the last fields of an `Item`."""

    group: str | None = None
    attributes: tuple[int, ...] | None = None
    mask: Encoded = None
    points: np.ndarray | None = None
    pair: Encoded = None


class Annotations:
    """The columns of one or several shards that hold what belongs to the images.

    A shard has `name`, `folder`, `schema` and `batches(columns, start, stop)`, see `tables.Shard`. Raises `UserError`
    for a column that is not there in every shard or holds something of another kind.
    """

    def __init__(self, settings: DataSettings, shards: Sequence[Any], where: str) -> None:
        self._settings, self._shards = settings, shards
        self.attributes = settings.attribute_columns or []
        self._group = settings.group if settings.group and not names_a_path(settings.group) else None
        singles = {
            "mask_column": settings.mask_column,
            "points_column": settings.points_column,
            "pair_column": settings.pair_column,
            "group": self._group,
        }
        named = dict.fromkeys(self.attributes, "attribute_columns")
        named |= {column: setting for setting, column in singles.items() if column is not None}
        self.columns = [existing(shards[0].schema, column, setting, where) for column, setting in named.items()]
        for shard in shards:
            for column in self.columns:
                self._check(shard, column, named[column])
        self._is_list = len(self.attributes) == 1 and _is_list(shards[0].schema.field(self.attributes[0]).type)
        self._n_points: int | None = None
        self._n_attributes: int | None = None

    def facts(self) -> dict[str, Any]:
        """What `Source.facts` says of these columns; reads the first row of a list."""
        found = settings_facts(self._settings)
        if self.attributes:
            found["attributes"] = self._listed_names() if self._is_list else self.attributes
        if self._settings.points_column:
            found["points"] = self._points_count()
        return found

    def __call__(self, batch: Any, shard: Any, row: int) -> Iterator[Belongings | tuple[Any, ...]]:
        """What belongs to each row of a record batch, `row` being the number of its first row."""
        if not self.columns:
            return repeat((), len(batch))
        s = self._settings
        parts: list[Any] = [repeat(None)] * 5
        if self._group:
            parts[0] = map(_group_text, batch.column(self._group).to_pylist())
        if self.attributes:
            parts[1] = self._attributes(batch, shard, row)
        if s.mask_column:
            parts[2] = self._images(batch, shard, row, s.mask_column)
        if s.points_column:
            parts[3] = self._points(batch, shard, row, s.points_column)
        if s.pair_column:
            parts[4] = self._images(batch, shard, row, s.pair_column)
        return map(Belongings, *parts)

    def _check(self, shard: Any, column: str, setting: str) -> None:
        if setting in ("mask_column", "pair_column"):
            check_image_column(shard, column, setting)
            return
        existing(shard.schema, column, setting, shard.name)
        type = shard.schema.field(column).type
        allowed, words = KINDS[setting]
        is_one_of_several = setting == "attribute_columns" and len(self.attributes) > 1
        if not any(allows(type) for allows in allowed()) or (is_one_of_several and _is_list(type)):
            if setting == "attribute_columns":
                _check_cells(shard, column)
            raise UserError(f"{shard.name}: {column}", f"holds {type}", f"data.{setting} takes {words}")

    def _attributes(self, batch: Any, shard: Any, row: int) -> list[tuple[int, ...]]:
        if self._is_list:
            cells = batch.column(self.attributes[0]).to_pylist()
            count = len(self._listed_names())
            where = (f"{shard.name} row {row + i}: {self.attributes[0]}" for i in range(len(cells)))
            return [yes_or_no(cell, count, name) for cell, name in zip(cells, where, strict=True)]
        table = np.stack([_codes(batch.column(column)) for column in self.attributes], axis=1)
        wrong = np.argwhere((table < -1) | (table > 1))
        if len(wrong):
            i, j = wrong[0]
            raise _no_attribute(f"{shard.name} row {row + i}: {self.attributes[j]}", int(table[i, j]))
        return list(map(tuple, table.tolist()))

    def _listed_names(self) -> list[str]:
        """tags[0], tags[1], ... for a column of lists, as many as in the first row that has one."""
        column = self.attributes[0]
        if self._n_attributes is None:
            self._n_attributes = len(self._first(column) or [])
        return [f"{column}[{i}]" for i in range(self._n_attributes)]

    def _points(self, batch: Any, shard: Any, row: int, column: str) -> Iterator[np.ndarray]:
        count = self._points_count()
        if (table := _even(batch.column(column), 2 * count)) is not None:
            yield from table.reshape(-1, count, 2)
            return
        for i, cell in enumerate(batch.column(column).to_pylist()):
            yield key_points(cell, count, f"{shard.name} row {row + i}: {column}")

    def _images(self, batch: Any, shard: Any, row: int, column: str) -> Iterator[Encoded]:
        for i, cell in enumerate(encoded(batch.column(column), shard.folder)):
            if cell is None:
                raise UserError(f"{shard.name} row {row + i}: {column}", "is empty", "every image needs one")
            yield cell

    def _points_count(self) -> int:
        if self._n_points is None:
            column = self._settings.points_column or ""
            first = self._first(column)
            where = f"{self._shards[0].name}: {column}"
            if first is None:
                raise UserError(where, "is empty in every row", "give key points, or leave the setting out")
            self._n_points = len(key_points(first, None, where))
        return self._n_points

    def _first(self, column: str) -> Any:
        """The first value of a column that is not empty; None where there is none."""
        for shard in self._shards:
            for batch in shard.batches([column]):
                found = next((cell for cell in batch.column(column).to_pylist() if cell is not None), None)
                if found is not None:
                    return found
        return None


def settings_facts(settings: DataSettings) -> dict[str, Any]:
    """The facts that the user gives."""
    found: dict[str, Any] = {"mask_classes": settings.mask_classes, "mask_void": settings.mask_void}
    for name in ("mask_flip_pairs", "flip_pairs"):
        pairs = getattr(settings, name)
        found[name] = None if pairs is None else [list(pair) for pair in pairs]
    return {name: value for name, value in found.items() if value is not None}


def key_points(value: Any, count: int | None, where: str) -> np.ndarray:
    """float32 (P, 2) from [x0, y0, x1, y1, ...], [[x, y], ...] or that as JSON text; null is NaN, nothing all NaN.

    count: the P that is wanted; None takes any. Raises `UserError` beginning with `where`.
    """
    hint = "key points are x0, y0, x1, y1, ... or [x, y] pairs"
    if value is None and count is not None:
        return np.full((count, 2), np.nan, np.float32)
    try:
        value = json.loads(value) if isinstance(value, str) else value
        if not isinstance(value, list | tuple | np.ndarray):
            raise TypeError(type(value).__name__)
        flat = [x for entry in value for x in (entry if isinstance(entry, list | tuple) else (entry,))]
        numbers = np.array([np.nan if x is None else float(x) for x in flat], np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(where, "is no list of numbers", hint) from error
    if any(isinstance(entry, list | tuple) and len(entry) != 2 for entry in value) or len(numbers) % 2:
        raise UserError(where, "holds a point that has not two coordinates", hint)
    if np.isinf(numbers).any():
        raise UserError(where, "holds an infinite coordinate", "null means that a point is not there")
    points = numbers.reshape(-1, 2)
    if count is not None and len(points) != count:
        raise UserError(where, f"holds {len(points)} points, but the first image has {count}", "all need the same ones")
    if not len(points):
        raise UserError(where, "holds no point", hint)
    return points


def yes_or_no(values: Sequence[Any] | None, count: int, where: str) -> tuple[int, ...]:
    """Attributes as 0, 1 or -1 (unknown; also None); true and false are taken. Raises `UserError` naming `where`."""
    if values is None:
        return (-1,) * count
    if len(values) != count:
        raise UserError(where, f"holds {len(values)} attributes, but the first image has {count}", "all need the same")
    codes = tuple(-1 if value is None else value for value in values)
    for i, value in enumerate(codes):
        if not isinstance(value, int) or not -1 <= value <= 1:
            raise _no_attribute(f"{where}[{i}]", value)
    return tuple(map(int, codes))


def names_a_path(group: str) -> bool:
    """Whether `data.group` speaks of the image's path and not of a column."""
    return group == FOLDER or group.startswith(REGEX)


def group_of(name: str, group: str) -> str:
    """The group of an image by its name within the source; raises `UserError` where the expression does not match."""
    if group == FOLDER:
        return str(PurePosixPath(name).parent)
    match = re.search(group.removeprefix(REGEX), name)
    if match is None or match[1] is None:
        raise UserError(f"data.group={group}", f"does not match {name!r}", "the expression must find a group in each")
    return match[1]


def refuse(settings: DataSettings, fields: Sequence[str], where: str, what: str, hint: str) -> None:
    """Raises `UserError` for the first of these settings that is given where it means nothing."""
    for name in fields:
        if (value := getattr(settings, name)) is not None:
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            raise UserError(f"data.{name}={text}", f"{where} {what}", hint)


def field_of(record: dict[str, Any], name: str, setting: str, where: str) -> Any:
    """record[name]; raises `UserError` naming the nearest name where there is none."""
    if name not in record:
        raise UserError(where, f"has no {name!r}, which data.{setting} names", nearest(name, map(str, record)))
    return record[name]


def _no_attribute(where: str, value: Any) -> UserError:
    return UserError(where, f"is {value!r}, which is no attribute", "attributes are 0, 1, or -1 for unknown")


def _check_cells(shard: Any, column: str) -> None:
    """Names the cell that keeps a column from being one of attributes: one `yes` makes all of a CSV's column texts."""
    row = 0
    for batch in shard.batches([column]):
        for cell in batch.column(column).to_pylist():
            if isinstance(cell, str) and cell.strip() not in ("0", "1", "-1", ""):
                raise _no_attribute(f"{shard.name} row {row}: {column}", cell)
            row += 1


def _group_text(value: Any) -> str | None:
    return None if value is None else str(value)


def _codes(column: Any) -> np.ndarray:
    """int64 (rows,), empty cells as -1."""
    import pyarrow as pa

    return np.asarray(column.cast(pa.int64(), safe=False).fill_null(-1)).astype(np.int64)


def _even(column: Any, width: int) -> np.ndarray | None:
    """float32 (rows, width) of a list column where every list has that many numbers, none infinite; else None."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    if not _is_list(column.type) or not (types.is_floating(column.type.value_type) and column.null_count == 0):
        return None
    values = column.flatten()
    if values.null_count or not pc.all(pc.equal(pc.list_value_length(column), width)).as_py():
        return None
    table = np.asarray(values).astype(np.float32).reshape(-1, width)
    return None if np.isinf(table).any() else table


def _is_list(type: Any) -> bool:
    import pyarrow.types as types

    return types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type)


def _numbers() -> tuple[Any, ...]:
    import pyarrow.types as types

    return types.is_integer, types.is_boolean, types.is_null, _is_list


def _names() -> tuple[Any, ...]:
    import pyarrow.types as types

    return types.is_integer, types.is_string, types.is_large_string, types.is_boolean, types.is_dictionary


def _lists() -> tuple[Any, ...]:
    import pyarrow.types as types

    return _is_list, types.is_string, types.is_large_string


KINDS: dict[str, tuple[Any, str]] = {
    "attribute_columns": (_numbers, "columns of 0, 1 and -1 or of true and false, or one column of lists of these"),
    "points_column": (_lists, "a column of lists of numbers"),
    "group": (_names, "a column of whole numbers or texts"),
}
