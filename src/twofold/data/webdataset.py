"""WebDataset: tar files whose members belong together by name.

    train-0000.tar: a/0001.jpg  a/0001.cls  a/0001.json  a/0001.mask.png  a/0001.points.json  a/0001.pair.jpg  ...

A sample is a run of members with one key: the path up to the first dot of the last part. What the rest of the name
says:

    jpg, png, ... (an image)   the image; where a sample has several, data.image_column names the one (jpg, left.png)
    cls                        the label, a whole number or text; data.label_column names another member (txt) or a
                               field of the json member; without cls, the json's `label` or `labels` if it has one
    json                       an object with fields for the settings: attribute_columns, points_column, group
    mask.png                   class index of every pixel, 255 = void
    points.json                [[x, y], ...]
    pair.<image>               a second image of the same field of view

The first use reads all headers and labels once and keeps the place of every sample, 8 bytes each. After that, any
sample is found by one seek, and one sample at a time is in memory. Nothing is extracted to the disk.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..errors import UserError, nearest
from ..settings.data import DataSettings
from .annotations import Belongings, field_of, group_of, key_points, names_a_path, settings_facts, yes_or_no
from .columns import USUAL_LABELS
from .items import Item, quotas, spans
from .tables import digest_of, splits_of
from .tar import damaged, members
from .walking import IMAGE_SUFFIXES

CLS, JSON, MASK, POINTS, PAIR = "cls", "json", "mask.png", "points.json", "pair"
BUFFER = 1 << 16  # bytes read at once


class Place(NamedTuple):
    """Where the content of a member lies in its file."""

    start: int
    size: int


class Sample(NamedTuple):
    """A key, and the members of that name by what follows its dot."""

    key: str
    offset: int
    members: dict[str, Place]


class Tar:
    """One tar file, read from the front or from the header of a sample on."""

    def __init__(self, path: Path, name: str, split: str | None) -> None:
        self.path, self.name, self.split = path, name, split

    def samples(self, offset: int = 0) -> Generator[tuple[Sample, BinaryIO], None, None]:
        """Samples from a header on, with the open file. Raises `UserError` naming the member where it is damaged."""
        key, first = "", 0
        found: dict[str, Place] = {}
        with self.path.open("rb", buffering=BUFFER) as file:
            for member in members(file, self.path, offset):
                if _is_hidden(member.name):
                    continue
                own, kind = split_key(member.name)
                if own != key:
                    if found:
                        yield Sample(key, first, found), file
                    key, first, found = own, member.header, {}
                if kind in found:
                    raise damaged(self.path, member.name, "it is there twice")
                found[kind] = Place(member.start, member.size)
            if found:
                yield Sample(key, first, found), file


def split_key(name: str) -> tuple[str, str]:
    """("a/0001", "mask.png") of "a/0001.mask.png": the key and, in small letters, what the member is."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, kind = base.partition(".")
    return folder + slash + stem, kind.lower()


class WebDataset:
    """Tar files below one folder as a source; their splits are read from their names (train-0000.tar)."""

    def __init__(self, settings: DataSettings, root: Path, files: Sequence[str]) -> None:
        self.settings, self.root, self.where = settings, root, f"data={settings.source}"
        self.name = root.resolve().name if len(files) != 1 else Path(files[0]).stem
        self._splits = splits_of(files, self.where)
        self._tars = [Tar(root / file, file, split) for file, split in self._splits.items()]
        for name in ("mask_column", "pair_column"):
            if (value := getattr(settings, name)) is not None:
                member = "KEY.mask.png" if name == "mask_column" else "KEY.pair.jpg"
                raise UserError(f"data.{name}={value}", f"{self.where} has no columns", f"call the members {member}")

    def identity(self) -> str:
        return f"tar\0{self.root.resolve()}\0{digest_of(self.root, self._splits)}"

    def classes(self) -> list[str]:
        return [str(value) for value in self._index.values]

    def count(self) -> int:
        return sum(self._rows)

    def left_out(self) -> list[str]:
        return []

    def facts(self) -> dict[str, Any]:
        found = settings_facts(self.settings)
        if self.settings.attribute_columns:
            found["attributes"] = self.settings.attribute_columns
        if (points := self._first.points) is not None:
            found["points"] = len(points)
        return found

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        for i, first, last in spans(self._rows, start, stop):
            tar, offsets = self._tars[i], self._index.offsets[i]
            labels = self._index.labels[i][first:last].tolist()
            with contextlib.closing(tar.samples(int(offsets[first]))) as samples:
                for label, (sample, file) in zip(labels, samples, strict=False):
                    content = _read(file, sample.members[self._image_of(tar, sample)])
                    more = self._belongings(tar, sample, file, self._first)
                    yield Item(f"{tar.name}:{sample.key}", content, label, tar.split, *more)

    # -- the index ---------------------------------------------------------------------------------------------------

    @cached_property
    def _rows(self) -> list[int]:
        return [len(offsets) for offsets in self._index.offsets]

    @cached_property
    def _index(self) -> Index:
        """The place and the label of every sample that is taken. The first one with a label says where labels stand."""
        offsets, codes = [], []
        values: dict[Any, int] = {}
        label, left = self.settings.label_column, quotas(self._splits.values(), self.settings)
        for tar in self._tars:
            places: list[int] = []
            known: list[int] = []
            for sample, file in islice(tar.samples(), left[tar.split]):
                places.append(sample.offset)
                self._image_of(tar, sample)
                if not self.settings.images_only:
                    label = label or self._usual_label(tar, sample, file)
                value = None if label is None else self._label(tar, sample, file, label)
                known.append(-1 if value in (None, -1) else values.setdefault(value, len(values)))
            if (n := left[tar.split]) is not None:
                left[tar.split] = n - len(places)
            offsets.append(np.array(places, np.int64))
            codes.append(np.array(known, np.int64))
        kinds = {type(value) for value in values}
        if len(kinds) > 1:
            raise UserError(self.where, "some labels are whole numbers and some are texts", "write all of one kind")
        ordered = sorted(values)
        rank = np.full(len(values) + 1, -1, np.int64)  # the last one is that of code -1
        for new, value in enumerate(ordered):
            rank[values[value]] = new
        return Index(offsets, [rank[known] for known in codes], ordered)

    def _usual_label(self, tar: Tar, sample: Sample, file: BinaryIO) -> str | None:
        if CLS in sample.members:
            return CLS
        fields = self._fields(tar, sample, file) if JSON in sample.members else {}
        return next((name for name in USUAL_LABELS if name in fields), None)

    def _label(self, tar: Tar, sample: Sample, file: BinaryIO, label: str) -> int | str | None:
        where = f"{tar.name}: {sample.key}"
        if label in sample.members and label != JSON:
            text = _read(file, sample.members[label]).decode("utf-8", "replace").strip()
            return int(text) if text.removeprefix("-").isdecimal() else text or None
        if JSON not in sample.members:
            what = f"has no member .{label}"
            raise UserError(where, what, nearest(label, sample.members) if self.settings.label_column else "add it")
        value = field_of(self._fields(tar, sample, file), label, "label_column", f"{where}.json")
        if isinstance(value, bool):
            return "true" if value else "false"
        if value is not None and not isinstance(value, int | str):
            hint = "labels are whole numbers or texts"
            raise UserError(f"{where}.json", f"{label} is {value!r:.60}, which is no class", hint)
        return value

    # -- one sample --------------------------------------------------------------------------------------------------

    def _image_of(self, tar: Tar, sample: Sample) -> str:
        """What the image's member is called."""
        if (wanted := self.settings.image_column) is not None:
            if wanted.lower() in sample.members:
                return wanted.lower()
            raise UserError(f"{tar.name}: {sample.key}", f"has no member .{wanted}", nearest(wanted, sample.members))
        found = [
            m for m in sample.members if ("." + m).endswith(IMAGE_SUFFIXES) and m.split(".")[0] not in ("mask", PAIR)
        ]
        plain = [member for member in found if "." not in member]
        if len(plain or found) == 1:
            return (plain or found)[0]
        if found:
            what, hint = f"has several images: {', '.join(found)}", f"set data.image_column={found[0]}"
            raise UserError(f"{tar.name}: {sample.key}", what, hint)
        what = f"has no image (members: {', '.join('.' + member for member in sample.members)})"
        raise UserError(f"{tar.name}: {sample.key}", what, "every sample needs one; is the archive a WebDataset?")

    @cached_property
    def _first(self) -> Belongings:
        """What belongs to the first image; what it has, all have."""
        for tar in self._tars:
            for sample, file in tar.samples():
                return self._belongings(tar, sample, file, None)
        return Belongings()

    def _belongings(self, tar: Tar, sample: Sample, file: BinaryIO, first: Belongings | None) -> Belongings:
        """What belongs to one image. Raises `UserError` unless it is of the kind of what the first one has."""
        s, where = self.settings, f"{tar.name}: {sample.key}"
        n_points = None if first is None or first.points is None else len(first.points)
        wants_fields = s.attribute_columns or s.points_column or (s.group and not names_a_path(s.group))
        fields = self._fields(tar, sample, file) if wants_fields else {}
        members = {} if s.images_only else sample.members
        group = attributes = points = mask = pair = None
        if s.group:
            value = None if names_a_path(s.group) else field_of(fields, s.group, "group", f"{where}.json")
            group = group_of(sample.key, s.group) if names_a_path(s.group) else None if value is None else str(value)
        if s.attribute_columns:
            values = [field_of(fields, name, "attribute_columns", f"{where}.json") for name in s.attribute_columns]
            attributes = yes_or_no(values, len(values), where)
        if s.points_column:
            value = field_of(fields, s.points_column, "points_column", f"{where}.json")
            points = key_points(value, n_points, f"{where}.json: {s.points_column}")
        elif POINTS in members:
            points = key_points(_parsed(file, members[POINTS], f"{where}.{POINTS}"), n_points, f"{where}.{POINTS}")
        if MASK in members:
            mask = _read(file, members[MASK])
        if (second := next((m for m in members if m.split(".")[0] == PAIR), None)) is not None:
            pair = _read(file, members[second])
        found = Belongings(group, attributes, mask, points, pair)
        for name, member in {"mask": MASK, "points": POINTS, "pair": PAIR}.items():
            if first is not None and (getattr(found, name) is None) != (getattr(first, name) is None):
                word = "no" if getattr(found, name) is None else "a"
                raise UserError(where, f"has {word} member .{member}, unlike the first sample", "all or none need one")
        return found

    def _fields(self, tar: Tar, sample: Sample, file: BinaryIO) -> dict[str, Any]:
        where = f"{tar.name}: {sample.key}.json"
        if JSON not in sample.members:
            raise UserError(f"{tar.name}: {sample.key}", "has no member .json", "the settings name fields of it")
        found = _parsed(file, sample.members[JSON], where)
        if not isinstance(found, dict):
            raise UserError(where, "is no JSON object", 'write {"label": ..., ...}')
        return found


class Index(NamedTuple):
    """offsets, labels: an array for each file. values: the classes, sorted."""

    offsets: list[np.ndarray]
    labels: list[np.ndarray]
    values: list[Any]


def _read(file: BinaryIO, place: Place) -> bytes:
    file.seek(place.start)
    return file.read(place.size)


def _parsed(file: BinaryIO, place: Place, where: str) -> Any:
    try:
        return json.loads(_read(file, place))
    except ValueError as error:
        raise UserError(where, f"is no JSON ({error})", "write it again") from error


def _is_hidden(name: str) -> bool:
    if not name.startswith(".") and "/." not in name:
        return False
    return any(part.startswith(".") for part in name.split("/") if part not in (".", ".."))
