"""Few labels: which training images have one. The others count as unlabelled; validation and test keep theirs.

A label file says so, in one of two formats (a third one, of attributes, is read in `listed`):

    id,class,confidence           twofold's own CSV: columns id, and label (its number) or class (its name); if there,
    photos/ant/7.png,ant,0.93     how sure that is, 0 to 1, and 1 where nothing stands

    n04235860_14959.JPEG          as published with DPT (You et al. 2023) and before it SimCLR and MSN: one file name
    n04235860_3.JPEG              a line; the class is what stands before the last underscore

Of data without classes the file gives them: its names, sorted, or the numbers up to its largest; every part may then be
listed. An image of `data.unlabelled` may be listed by its id, as pseudo labels need it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TextIO

import numpy as np

from ..errors import UserError, nearest
from ..files import atomic_file
from .items import SPLITS


class Identified(Protocol):
    """Of a store, what a file about images needs: their split, their ids, and how many are of `data.source`."""

    @property
    def codes(self) -> np.ndarray: ...

    @property
    def n_own(self) -> int: ...

    def id(self, i: int) -> str: ...


class Labelled(Identified, Protocol):
    """Of a store, what choosing labels needs: beside that all its labels, and the classes that its source names."""

    all_labels: np.ndarray
    own_classes: list[str]


class Named(Protocol):
    """Of a store, what writing labels needs: ids, and what its labels are called."""

    @property
    def classes(self) -> list[str]: ...

    def id(self, i: int) -> str: ...


class Chosen(Named, Protocol):
    """The same, with all its labels."""

    all_labels: np.ndarray


class Labelling(NamedTuple):
    """What a label file says of a store.

    labels: int64 (N,), -1 = none. confidences: float32 (N,) in 0..1, 1 = certain, 0 where there is no label. classes:
    their names, in label order. certain: whether the file has no column of confidences.
    """

    labels: np.ndarray
    confidences: np.ndarray
    classes: list[str]
    certain: bool


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


def labelling_from(path: Path, store: Labelled) -> Labelling:
    """The labels of a store with those of its training images as a label file says, and -1 where it says nothing.

    Raises `UserError` naming the line that is wrong: an image there is not, that is not a training image, or that is
    named twice; a class there is not; a confidence that is none.
    """
    listing = _Listing(path)
    rows, train = _rows_of(listing, store), SPLITS.index("train")
    codes = store.codes[rows]
    if store.own_classes and (codes != train).any():
        k = int((codes != train).argmax())
        raise listing.wrong(k, f"{listing.names[k]} is a {SPLITS[codes[k]]} image", "list training images only")
    classes = store.own_classes or listing.classes()
    labels = _only(store.all_labels, np.flatnonzero(store.codes == train), rows, listing.numbered(classes))
    confidences = (labels >= 0).astype(np.float32)
    confidences[rows] = np.frombuffer(listing.confidences, np.float32)
    return Labelling(labels, confidences, list(classes), listing.certain)


def labels_csv(store: Chosen, rows: np.ndarray) -> str:
    """A label file of these rows, with the labels of the data: `id,class`."""
    text = io.StringIO()
    _write(text, store, rows, store.all_labels[rows], None)
    return text.getvalue()


def write_labels(
    path: Path, store: Named, rows: np.ndarray, labels: np.ndarray, confidences: np.ndarray | None = None
) -> None:
    """Puts a label file of these rows (n,) at `path`: `id,class`, or `id,class,confidence`; whole or not at all.

    labels: (n,) indices into store.classes. confidences: (n,) in 0..1. Memory does not grow with n. Raises `UserError`
    for the name of an image that is no text.
    """
    if len(labels) != len(rows) or (confidences is not None and len(confidences) != len(rows)):
        raise ValueError("rows, labels and confidences are of the same images")

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            _write(file, store, rows, labels, confidences)

    atomic_file(path, write)


def _write(file: TextIO, store: Named, rows: np.ndarray, labels: np.ndarray, confidences: np.ndarray | None) -> None:
    out, classes = csv.writer(file, lineterminator="\n"), store.classes
    out.writerow(["id", "class", *([] if confidences is None else ["confidence"])])
    for i, row in enumerate(rows):
        # the shortest text that is read as the same float32 again
        sure = [] if confidences is None else [str(np.float32(confidences[i]))]
        id = store.id(int(row))
        try:
            id.encode()
        except UnicodeEncodeError as error:
            raise UserError(repr(id), "this image's name is not UTF-8", "rename its file") from error
        out.writerow([id, classes[labels[i]], *sure])


class Line(NamedTuple):
    """One line of a label file. label: name or number, "" or -1 = none. confidence: None where it has none."""

    number: int
    name: str
    label: str | int
    confidence: float | None = None


class _Listing:
    """A label file's lines, those that say no label left out.

    names: of the images. whole: whether these are ids, and not only their last part. labels: names or numbers.
    confidences: float32, 1 where none stands. certain: none stands anywhere. place: {name: its place in these lists}.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names, self.labels, self.place = list[str](), list[str | int](), dict[str, int]()
        self._numbers, self.confidences = array("q"), array("f")
        self.certain = True
        with _opened(path) as file:
            self.whole = file.readline().strip().split(",")[0].strip() == "id"
            file.seek(0)
            for line in (_csv_lines if self.whole else _published_lines)(path, file):
                self._add(line)
        if not self.place:
            raise UserError(str(path), "this label file names no image", "list some")
        if not self.names:
            raise UserError(str(path), "none of its images has a class", "name the classes of some")

    def _add(self, line: Line) -> None:
        if (before := self.place.get(line.name)) is not None:
            number, label = (self._numbers[before], self.labels[before]) if before >= 0 else (-before, line.label)
            other = "" if label == line.label else f", as {label}"
            hint = "keep the right one" if other else "remove one"
            where = f"{self.path} line {line.number}"
            raise UserError(where, f"{line.name} is there already, in line {number}{other}", hint)
        if line.label in ("", -1):
            self.place[line.name] = -line.number
            return
        self.place[line.name] = len(self.names)
        self.names.append(line.name)
        self.labels.append(line.label)
        self._numbers.append(line.number)
        self.certain &= line.confidence is None
        self.confidences.append(1.0 if line.confidence is None else line.confidence)

    def wrong(self, k: int, what: str, hint: str) -> UserError:
        """The error about the k-th of these lines."""
        return UserError(f"{self.path} line {self._numbers[k]}", what, hint)

    def classes(self) -> list[str]:
        """The classes that the file itself names: sorted, numbers as numbers; or all labels up to its largest."""
        numbers = [label for label in self.labels if isinstance(label, int)]
        if len(numbers) == len(self.labels) and min(numbers) >= 0:
            return [str(i) for i in range(max(numbers) + 1)]
        names = {str(label) for label in self.labels}
        decimal = all(name.isdecimal() for name in names)  # however the same classes are written, their order is one
        return sorted(names, key=lambda name: (int(name) if decimal else 0, name))

    def numbered(self, classes: Sequence[str]) -> np.ndarray:
        """int64 (n,): the labels as indices into these classes."""
        index = {name: i for i, name in enumerate(classes)}
        found = np.empty(len(self.labels), np.int64)
        for k, label in enumerate(self.labels):
            if isinstance(label, int):
                if not 0 <= label < len(classes):
                    raise self.wrong(k, f"there is no label {label}", f"labels are 0 to {len(classes) - 1}")
                found[k] = label
            elif label not in index:
                raise self.wrong(k, f"there is no class {label!r}", nearest(label, classes))
            else:
                found[k] = index[label]
        return found


def _only(labels: np.ndarray, train: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    out = np.array(labels, np.int64)
    out[train] = -1
    out[rows] = values
    return out


def read_text(path: Path) -> str:
    """The text of a label file."""
    with _opened(path) as file:
        return file.read().replace("\r\n", "\n").replace("\r", "\n")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A label file, to be read. Raises `UserError` where it cannot be, or is no text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin a file with a mark
            yield file
    except OSError as error:
        raise UserError(f"data.labels={path}", f"cannot be read ({error.strerror})", "give a label file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"data.labels={path}", "is not a text file", "give a label file") from error


def _published_lines(path: Path, file: TextIO) -> Iterator[Line]:
    for number, line in enumerate(file, 1):
        if name := line.strip():
            label, underscore, _ = name.rpartition("_")
            if not underscore:
                raise UserError(
                    f"{path} line {number}",
                    f"{name!r} names no class before an underscore",
                    "a CSV file begins with the line id,class; the published form is n04235860_14959.JPEG",
                )
            yield Line(number, name, sys.intern(label))


def _csv_lines(path: Path, file: TextIO) -> Iterator[Line]:
    rows = csv.reader(file, skipinitialspace=True)
    try:
        names = [name.strip() for name in next(rows)]
        column = next((names.index(name) for name in ("class", "label") if name in names), None)
        if column is None:
            what = f"its columns are {', '.join(names)}"
            raise UserError(str(path), what, "give it the columns id, and class or label")
        sure, numbers = names.index("confidence") if "confidence" in names else None, names[column] == "label"
        for cells in rows:
            if not any(map(str.strip, cells)):
                continue
            if len(cells) != len(names):
                if any(map(str.strip, cells[len(names) :])):
                    what = f"has {len(cells)} cells, but the header names {len(names)} columns"
                    where = f"{path} line {rows.line_num}"
                    raise UserError(where, what, "put a name that contains a comma in quotes")
                cells += [""] * (len(names) - len(cells))
            value = sys.intern(cells[column].strip())
            number = numbers and value.removeprefix("-").isdecimal()
            confidence = None if sure is None else _confidence(path, rows.line_num, cells[sure].strip())
            yield Line(rows.line_num, cells[0], int(value) if number else value, confidence)
    except csv.Error as error:
        raise UserError(f"{path} line {rows.line_num}", f"is no CSV ({error})", "write id,class") from error


def _confidence(path: Path, line: int, cell: str) -> float:
    """0..1; nothing there means certain."""
    try:
        value = float(cell or 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        where = f"{path} line {line}"
        raise UserError(where, f"{cell!r} is no confidence", "give a number from 0 to 1, or nothing for certain")
    return value


def _rows_of(listing: _Listing, store: Labelled) -> np.ndarray:
    """int64 (n,): the row of each line's image; of several with its name, the only one that is for training."""
    whole, train = listing.whole, SPLITS.index("train")
    rows, others = np.full(len(listing.names), -1, np.int64), dict[int, list[int]]()
    for row in range(len(store.codes) if whole else store.n_own):
        name = store.id(row)
        k = listing.place.get(name if whole else name.rpartition("/")[2], -1)
        if k >= 0 and rows[k] < 0:
            rows[k] = row
        elif k >= 0:
            others.setdefault(k, [int(rows[k])]).append(row)
    if len(missing := np.flatnonzero(rows < 0)):
        k = int(missing[0])
        example = store.id(0) if whole else store.id(0).rpartition("/")[2]
        hint = f"its images are called like {example}"
        raise listing.wrong(k, f"the data has no image {listing.names[k]}", hint)
    for k, found in sorted(others.items()):
        found = [row for row in found if store.codes[row] == train] or found
        if len(found) > 1:
            ids = " and ".join(store.id(row) for row in found[:2])
            hint = "write a CSV file with the columns id and class"
            raise listing.wrong(k, f"{listing.names[k]} may be {ids}", hint)
        rows[k] = found[0]
    return rows
