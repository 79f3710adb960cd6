"""CelebA as it is published: aligned faces with 40 attributes, five landmarks and their own split (Liu et al. 2015).

    img_align_celeba/000001.jpg ...      202,599 images of 178x218
    list_attr_celeba.txt                 the number of images, 40 names, then `000001.jpg -1 1 ...` (1 yes, -1 no)
    list_eval_partition.txt              `000001.jpg 0`: 0 train, 1 validation, 2 test
    list_landmarks_align_celeba.txt      as the attributes: lefteye_x lefteye_y righteye_x ... (may be absent)
    identity_CelebA.txt                  `000001.jpg 2880` (may be absent): data.group=identity

The lists may lie in the folder or in its Anno and Eval, the images in Img or in a second folder img_align_celeba; the
lists may be .csv, as Kaggle has them, with a header that begins with image_id.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, nearest
from ..settings.data import DataSettings
from .annotations import COLUMNS, group_of, names_a_path, refuse
from .items import SPLITS, Item, quotas
from .tables import digest_of
from .walking import IMAGE_SUFFIXES, scan

IMAGES, IDENTITY = "img_align_celeba", "identity"
ATTRIBUTES, PARTITION, LANDMARKS = "list_attr_celeba", "list_eval_partition", "list_landmarks_align_celeba"
IDENTITIES = "identity_CelebA"
FOLDERS = ("", "Anno", "Eval", "Img")
FLIP_PAIRS = [[0, 1], [3, 4]]  # the eyes, the corners of the mouth


class CelebA:
    """The folder as a source: no classes, but attributes, and landmarks where their list is there."""

    def __init__(self, settings: DataSettings, root: Path) -> None:
        self.settings, self.root, self.where = settings, root, f"data={settings.source}"
        self.name = root.resolve().name
        refused = [name for name in COLUMNS if name != "attribute_columns"]
        refuse(
            settings, refused, self.where, "has attributes only", "data.attribute_columns=[Smiling, Male] chooses some"
        )
        group = settings.group
        if group and group != IDENTITY and not names_a_path(group):
            raise UserError(f"data.group={group}", f"{self.where} knows no such group", f"data.group={IDENTITY}")
        self._files = {
            name: found for name in (ATTRIBUTES, PARTITION, LANDMARKS, IDENTITIES) if (found := find(root, name))
        }
        for name, is_needed in {PARTITION: True, IDENTITIES: group == IDENTITY}.items():
            if is_needed and name not in self._files:
                raise UserError(f"{root}/{name}.txt", "is not there", "download it with the other lists")
        self._images = next(p for p in (root / "Img" / IMAGES, root / IMAGES) if p.is_dir())
        if (self._images / IMAGES).is_dir():
            self._images /= IMAGES
        self._read: dict[str, tuple[list[str], list[str], np.ndarray]] = {}
        self._digest = scan(self._images).digest

    def identity(self) -> str:
        lists = digest_of(self.root, [str(path.relative_to(self.root)) for path in self._files.values()])
        return f"celeba\0{self.root.resolve()}\0{self._digest}\0{lists}"

    def classes(self) -> list[str]:
        return []

    def count(self) -> int:
        return len(self._rows)

    def left_out(self) -> list[str]:
        return []

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = {"attributes": self._attributes}
        if LANDMARKS in self._files:
            names = self._table(LANDMARKS)[0]
            found |= {"points": [name.removesuffix("_x") for name in names[::2]], "flip_pairs": FLIP_PAIRS}
        return found

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        group = self.settings.group
        names = self._names
        attributes, points = (None, None) if self.settings.images_only else (self._codes, self._points)
        for row in self._rows[start:stop].tolist():
            name = names[row]
            whose = None if group is None else self._whose[name] if group == IDENTITY else group_of(name, group)
            yield Item(
                name,
                self._images / name,
                -1,
                SPLITS[self._parts[row]],
                group=whose,
                attributes=None if attributes is None else tuple(attributes[row].tolist()),
                points=None if points is None else points[row],
            )

    # -- the lists ---------------------------------------------------------------------------------------------------

    @cached_property
    def _names(self) -> list[str]:
        """The images, in the order of the list of attributes."""
        return self._table(ATTRIBUTES)[1]

    @cached_property
    def _attributes(self) -> list[str]:
        names = self._table(ATTRIBUTES)[0]
        for name in self.settings.attribute_columns or ():
            if name not in names:
                where = f"data.attribute_columns={name}"
                raise UserError(where, f"{self._files[ATTRIBUTES].name} has no such attribute", nearest(name, names))
        return self.settings.attribute_columns or names

    @cached_property
    def _codes(self) -> np.ndarray:
        """int8 (N, A): 1 yes, 0 no."""
        names, _, values = self._table(ATTRIBUTES)
        if len(wrong := np.argwhere(~np.isin(values, (-1, 1)))):
            row, column = wrong[0]
            where = f"{self._files[ATTRIBUTES]}: {self._names[row]}: {names[column] if names else column}"
            raise UserError(where, f"is {values[row, column]}, which is neither 1 nor -1", "1 is yes, -1 is no")
        return (values[:, [names.index(name) for name in self._attributes]] > 0).astype(np.int8)

    @cached_property
    def _parts(self) -> np.ndarray:
        """int8 (N,): indices into SPLITS."""
        found = self._by_name(PARTITION)
        if not np.isin(found, (0, 1, 2)).all():
            raise UserError(str(self._files[PARTITION]), "a part is none of 0, 1 and 2", "download it again")
        return found[:, 0].astype(np.int8)

    @cached_property
    def _rows(self) -> np.ndarray:
        """The rows that are packed: all, or the first `most` of each part."""
        parts, left = self._parts, quotas(SPLITS, self.settings)
        return np.sort(np.concatenate([np.flatnonzero(parts == i)[: left[name]] for i, name in enumerate(SPLITS)]))

    @cached_property
    def _points(self) -> np.ndarray | None:
        """float32 (N, 5, 2)."""
        if LANDMARKS not in self._files:
            return None
        found = self._by_name(LANDMARKS)
        if found.shape[1] % 2:
            raise UserError(str(self._files[LANDMARKS]), "a point has not two coordinates", "download it again")
        return found.reshape(len(found), -1, 2).astype(np.float32)

    @cached_property
    def _whose(self) -> dict[str, str]:
        _, names, values = self._table(IDENTITIES)
        return dict(zip(names, map(str, values[:, 0].tolist()), strict=True))

    def _by_name(self, list_name: str) -> np.ndarray:
        """The values of a list, in the order of the attributes' list."""
        _, names, values = self._table(list_name)
        if names == self._names:
            return values
        row = {name: i for i, name in enumerate(names)}
        missing = next((name for name in self._names if name not in row), None)
        if missing is not None:
            raise UserError(f"{self._files[list_name]}: {missing}", "has no line", "download the list again")
        return values[[row[name] for name in self._names]]

    def _table(self, list_name: str) -> tuple[list[str], list[str], np.ndarray]:
        if list_name not in self._read:
            self._read[list_name] = read_list(self._files[list_name])
        return self._read[list_name]


def find(root: Path, name: str) -> Path | None:
    """A list's file, wherever it lies; None where there is none."""
    places = [root / folder / f"{name}{suffix}" for folder in FOLDERS for suffix in (".txt", ".csv")]
    return next((place for place in places if place.is_file()), None)


def read_list(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """(column names, image names, int32 values (N, columns)) of a list. Raises `UserError` naming line and column."""
    columns: list[str] = []
    names: list[str] = []
    values = array("i")
    width = None
    with path.open(encoding="utf-8", errors="replace") as file:  # what is no text is no line of such a list either
        for number, line in enumerate(file, 1):
            fields = line.replace(",", " ").split()
            if not fields:
                continue
            where = f"{path} line {number}"
            if not fields[0].lower().endswith(IMAGE_SUFFIXES):
                if names:
                    raise UserError(where, f"{fields[0]!r} is no image's name", "download it again")
                columns = fields[1:] if fields[0] == "image_id" else fields
                continue
            if width is None:
                width = len(columns) if len(columns) > 1 else len(fields) - 1  # one word is the number of images
            names.append(fields[0])
            try:
                values.extend(map(int, fields[1:]))
            except (ValueError, OverflowError) as error:
                raise UserError(where, f"holds no whole numbers ({error})", "download it again") from error
            if len(fields) - 1 != width:
                raise UserError(where, _ragged(len(fields) - 1, columns), "download it again")
    if not names:
        raise UserError(str(path), "is no list of images and their values", "download it again")
    return columns, names, np.array(values, np.int32).reshape(len(names), -1)


def _ragged(count: int, columns: list[str]) -> str:
    """What is wrong with a line of so many values."""
    if len(columns) < 2:
        return f"has {count} values, unlike the lines above"
    told = f"has {count} values for {len(columns)} columns"
    if count < len(columns):
        return f"{told}: none is left for {columns[count]}"
    return f"{told}: value {len(columns) + 1} is in no column"
