"""Few labels: which training images have one. The others count as unlabelled; validation and test keep theirs.

A label file says so, in one of two formats (a third one, of attributes, is read in `listed`):

    id,class                      twofold's own CSV: columns id, and label (its number) or class (its name)
    photos/ant/7.png,ant

    n04235860_14959.JPEG          as published with DPT (You et al. 2023) and before it SimCLR and MSN: one file name
    n04235860_3.JPEG              a line; the class is what stands before the last underscore
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


class Identified(Protocol):
    """Of a store, what a file about images needs: their split, their ids, and how many are of `data.source`."""

    @property
    def codes(self) -> np.ndarray: ...

    @property
    def n_own(self) -> int: ...

    def id(self, i: int) -> str: ...


class Labelled(Identified, Protocol):
    """Of a store, what choosing labels needs: beside that its classes, and all its labels."""

    all_labels: np.ndarray
    classes: list[str]


def label_subsets(
    labels: np.ndarray, per_class: Sequence[int], draws: int, seed: int, setting: str = "labels_per_class"
) -> dict[int, np.ndarray]:
    """{k: (draws, k * classes) positions in `labels`}: k images of every class, chosen at random.

    Nested: within a draw, the images of a smaller k are among those of a larger one. Label -1 is never chosen.
    Raises `UserError`, naming the setting, where a class has fewer than k images.
    """
    classes = np.unique(labels[labels >= 0])
    if len(classes) < 2:
        raise UserError(setting, f"the data has {len(classes)} labelled classes", "at least 2 are needed")
    members = {c: np.flatnonzero(labels == c) for c in classes}
    fewest = min(len(rows) for rows in members.values())
    for k in per_class:
        if k > fewest:
            raise UserError(
                f"{setting}={k}", f"the smallest class has {fewest} training images", f"ask for at most {fewest}"
            )
    orders = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        orders.append([rng.permutation(rows) for rows in members.values()])
    return {k: np.stack([np.concatenate([rows[:k] for rows in order]) for order in orders]) for k in per_class}


def few_labels(labels: np.ndarray, codes: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """labels (N,) with -1 for all training images but `per_class` of each class; codes: (N,) splits."""
    train = np.flatnonzero(codes == SPLITS.index("train"))
    chosen = train[label_subsets(labels[train], [per_class], 1, seed)[per_class][0]]
    return _only(labels, train, chosen, labels[chosen])


def labels_from(path: Path, store: Labelled) -> np.ndarray:
    """The labels of a store (N,) with those of its training images as a label file says, and -1 where it says nothing.

    Raises `UserError` naming the line that is wrong: an image there is not, that is not a training image, or that is
    named twice; a class there is not.
    """
    lines = list(_lines(path))
    if not lines:
        raise UserError(str(path), "this label file names no image", "list some")
    rows = _rows_of(path, lines, store)
    labels = [_label(path, line, store.classes) for line in lines]
    train, seen = SPLITS.index("train"), dict[int, int]()
    for line, row in zip(lines, rows, strict=True):
        if row in seen:
            raise _wrong(path, line, f"{line.name} is there already, in line {seen[row]}", "remove one")
        if store.codes[row] != train:
            raise _wrong(path, line, f"{line.name} is a {SPLITS[store.codes[row]]} image", "list training images only")
        seen[row] = line.number
    return _only(store.all_labels, np.flatnonzero(store.codes == train), np.array(rows), np.array(labels))


def labels_csv(store: Labelled, rows: np.ndarray) -> str:
    """A label file of these rows: `id,class`."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["id", "class"])
    out.writerows([store.id(int(row)), store.classes[store.all_labels[row]]] for row in rows)
    return text.getvalue()


class Line(NamedTuple):
    """One line of a label file. whole: whether `name` is an id, and not only its last part. label: name or number."""

    number: int
    name: str
    whole: bool
    label: str | int


def _only(labels: np.ndarray, train: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    out = np.array(labels, np.int64)
    out[train] = -1
    out[rows] = values
    return out


def read_text(path: Path) -> str:
    """The text of a label file."""
    try:
        return path.read_text("utf-8-sig")  # spreadsheets begin a file with a mark
    except OSError as error:
        raise UserError(f"data.labels={path}", f"cannot be read ({error.strerror})", "give a label file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"data.labels={path}", "is not a text file", "give a label file") from error


def _lines(path: Path) -> Iterator[Line]:
    text = read_text(path)
    if text.partition("\n")[0].strip().split(",")[0].strip() == "id":
        yield from _csv_lines(path, text)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if name := line.strip():
            label, underscore, _ = name.rpartition("_")
            if not underscore:
                raise UserError(
                    f"{path} line {number}",
                    f"{name!r} names no class before an underscore",
                    "write n04235860_14959.JPEG, or a CSV file with the columns id and class",
                )
            yield Line(number, name, False, label)


def _csv_lines(path: Path, text: str) -> Iterator[Line]:
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    names = [name.strip() for name in rows.fieldnames or []]
    rows.fieldnames = names
    column = next((name for name in ("class", "label") if name in names), None)
    if column is None:
        raise UserError(str(path), f"its columns are {', '.join(names)}", "give it the columns id, and class or label")
    for row in rows:
        value = (row[column] or "").strip()
        if column == "label" and value.removeprefix("-").isdecimal():
            yield Line(rows.line_num, row["id"], True, int(value))
        else:
            yield Line(rows.line_num, row["id"], True, value)


def _rows_of(path: Path, lines: list[Line], store: Labelled) -> list[int]:
    """The row of each line's image; of several with its name, the only one that is for training."""
    whole = all(line.whole for line in lines)
    rows: dict[str, list[int]] = {line.name: [] for line in lines}
    for row in range(store.n_own):
        name = store.id(row)
        name = name if whole else name.rpartition("/")[2]
        if name in rows:
            rows[name].append(row)
    train = SPLITS.index("train")
    for line in lines:
        if not (found := rows[line.name]):
            raise _wrong(path, line, f"the data has no image {line.name}", _like(store, whole))
        found = [row for row in found if store.codes[row] == train] or found
        if len(found) > 1:
            ids = " and ".join(store.id(row) for row in found[:2])
            raise _wrong(path, line, f"{line.name} may be {ids}", "write a CSV file with the columns id and class")
        rows[line.name] = found
    return [rows[line.name][0] for line in lines]


def _like(store: Labelled, whole: bool) -> str:
    example = store.id(0) if whole else store.id(0).rpartition("/")[2]
    return f"its images are called like {example}"


def _label(path: Path, line: Line, classes: Sequence[str]) -> int:
    if isinstance(line.label, int):
        if not 0 <= line.label < len(classes):
            raise _wrong(path, line, f"there is no label {line.label}", f"labels are 0 to {len(classes) - 1}")
        return line.label
    if line.label not in classes:
        raise _wrong(path, line, f"there is no class {line.label!r}", nearest(line.label, classes))
    return classes.index(line.label)


def _wrong(path: Path, line: Line, what: str, hint: str) -> UserError:
    return UserError(f"{path} line {line.number}", what, hint)
