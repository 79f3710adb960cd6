"""Attributes out of a file: which training images have some, and what they are.

    name,smiling,glasses          name: the image's id within the source; then a column for each attribute
    photos/7.png,1,0              1 yes, 0 no
    photos/9.png,-1,              -1 or nothing: unknown

Of data that have attributes themselves, the file says which training images keep them known: it has the same columns,
in any order, and what it does not list counts as unknown; validation and test images keep theirs. To data without any
it gives them, for every part.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ..errors import UserError, nearest
from .items import SPLITS
from .joined import PREFIX
from .subsets import Identified, read_text

NAME = "name"  # the first column's; a file of classes begins with `id`, or has no header
VALUES = {"1": 1, "0": 0, "-1": -1, "": -1}


class Attributed(Identified, Protocol):
    """Of a store, what a file of attributes needs beside its images' ids: its own attributes, and their names."""

    all_attributes: np.ndarray | None
    all_attribute_names: list[str]


class Listed(NamedTuple):
    """names: A attributes. values: int8 (N, A) in 1, 0, -1 = unknown, for every image of the store."""

    names: list[str]
    values: np.ndarray


class Row(NamedTuple):
    """One line of the file. values: one for each column behind the name."""

    line: int
    name: str
    values: list[int]


def lists_attributes(path: Path) -> bool:
    """Whether a label file is one of attributes. Raises `UserError` where it cannot be read."""
    return read_text(path).partition("\n")[0].split(",")[0].strip(' "') == NAME


def attributes_from(path: Path, store: Attributed) -> Listed:
    """The attributes of a store as the file says.

    Raises `UserError` naming line and column: a cell too few or too many, a value that is none, a column that the
    data's own attributes have not or that is missing; an image that is not there, not for training, or listed twice.
    """
    own = store.all_attribute_names if store.all_attributes is not None else []
    try:
        lines = csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
        columns = _columns(path, next(lines), own)
        rows = list(_rows(path, lines, columns))
    except csv.Error as error:
        raise UserError(f"{path} line {lines.line_num}", f"is no CSV ({error})", "write name,attribute,...") from error
    if not rows:
        raise UserError(str(path), "this label file names no image", "list some")
    places = _places(path, rows, store)
    if store.all_attributes is None:
        names, values = columns, np.full((len(store.codes), len(columns)), -1, np.int8)
    else:
        names, values = own, np.array(store.all_attributes, np.int8)
        values[store.codes == SPLITS.index("train")] = -1
    values[places] = np.array([row.values for row in rows], np.int8)[:, [columns.index(name) for name in names]]
    return Listed(list(names), values)


def _columns(path: Path, header: Sequence[str], own: Sequence[str]) -> list[str]:
    """The attributes that the header names. own: those of the data, which must be the same; [] where it has none."""
    names = [name.strip() for name in header[1:]]
    if not names:
        raise UserError(f"{path} line 1", "names no attribute", f"write {NAME},smiling,glasses")
    for i, name in enumerate(names):
        where = f"{path} line 1 column {i + 2}"
        if not name:
            raise UserError(where, "has no name", "name the attribute, or remove the column")
        if name in names[:i]:
            raise UserError(where, f"{name!r} is there already, in column {names.index(name) + 2}", "remove one")
        if own and name not in own:
            raise UserError(where, f"the data have no attribute {name!r}", nearest(name, own))
    if missing := next((name for name in own if name not in names), None):
        hint = "add it; its cells may be empty, which means unknown"
        raise UserError(f"{path} line 1", f"has no column {missing!r}, an attribute of the data", hint)
    return names


def _rows(path: Path, lines: Iterator[list[str]], columns: Sequence[str]) -> Iterator[Row]:
    for cells in lines:
        where = f"{path} line {lines.line_num}"  # type: ignore[attr-defined]
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if len(cells) - 1 < len(columns):
            what = f"has {len(cells)} cells of {len(columns) + 1}: none is left for column {columns[len(cells) - 1]!r}"
            raise UserError(where, what, "an unknown attribute is an empty cell, with its comma")
        if len(cells) - 1 > len(columns):
            what = f"{cells[len(columns) + 1]!r} is one cell too many for the header's {len(columns) + 1} columns"
            raise UserError(f"{where} column {len(columns) + 2}", what, "remove it, or name its attribute in line 1")
        for column, cell in zip(columns, cells[1:], strict=True):
            if cell not in VALUES:
                hint = "write 1 for yes, 0 for no, -1 or nothing for unknown"
                raise UserError(f"{where} column {column!r}", f"{cell!r} is no attribute's value", hint)
        yield Row(lines.line_num, cells[0], [VALUES[cell] for cell in cells[1:]])  # type: ignore[attr-defined]


def _places(path: Path, rows: Sequence[Row], store: Attributed) -> list[int]:
    """The store's row of each line's image."""
    line: dict[str, int] = {}
    for row in rows:
        if row.name in line:
            what = f"{row.name} is there already, in line {line[row.name]}"
            raise UserError(f"{path} line {row.line}", what, "remove one")
        line[row.name] = row.line
    found = {name: i for i in range(store.n_own) if (name := store.id(i)) in line}
    train = SPLITS.index("train")
    for row in rows:
        where = f"{path} line {row.line}"
        if row.name.startswith(PREFIX):
            raise UserError(where, f"{row.name} is of data.unlabelled", "list images of data.source only")
        if row.name not in found:
            raise UserError(where, f"the data have no image {row.name}", f"their images are called like {store.id(0)}")
        code = store.codes[found[row.name]]
        if store.all_attributes is not None and code != train:
            raise UserError(where, f"{row.name} is a {SPLITS[code]} image", "list training images only")
    return [found[row.name] for row in rows]
