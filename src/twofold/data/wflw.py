"""WFLW: faces in the wild with 98 points and six attributes (Wu et al. 2018), one item a face.

As published:

    WFLW_images/<event>/<name>.jpg
    WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt, ..._test.txt
        a face a line: 196 coordinates, the box (left, top, right, bottom), six attributes 0 or 1, the image's name

As MMPose converts it, in the style of COCO:

    images/... and annotations/face_landmarks_wflw_train.json, ..._test.json, ..._test_<subset>.json
        annotations with keypoints (x, y, visible), center, and scale: the box's longer side in units of 200 pixels

A face is cut out as a square round its box's middle, `data.padding` (1.25) times the box's longer side, in whole
pixels, black beyond the image; its points move with it. Points beyond the square count as not there, and are counted.
Faces of one image are one group. 7,500 faces are for training and 2,500 for the test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError, nearest
from ..settings.data import DataSettings
from ..settings.faces import WFLW98
from .annotations import COLUMNS, group_of, names_a_path, refuse
from .decode import Cut
from .items import Item, limited, spans
from .tables import digest_of
from .walking import scan

POINTS, PADDING, UNIT = 98, 1.25, 200.0
ATTRIBUTES = ("largepose", "expression", "illumination", "makeup", "occlusion", "blur")  # as the lists have them
PARTS = {"train": "train", "validation": "val", "test": "test"}
LISTS = ("", "WFLW_annotations/")
LISTED = "list_98pt_rect_attr_train_test/list_98pt_rect_attr_{}.txt"
COCO = "annotations/face_landmarks_wflw_{}.json"
IMAGES, COCO_IMAGES = "WFLW_images", "images"


class Face(NamedTuple):
    """where: its line, for errors. points: float64 (98, 2) in the whole image. centre, side: of the box, in pixels."""

    where: str
    name: str
    points: np.ndarray
    centre: tuple[float, float]
    side: float
    attributes: tuple[int, ...]


def is_wflw(root: Path) -> bool:
    return bool(_files(root))


def _files(root: Path) -> dict[str, Path]:
    """{split: its list}, as published or converted."""
    for pattern in (*(prefix + LISTED for prefix in LISTS), COCO):
        found = {split: root / pattern.format(name) for split, name in PARTS.items()}
        if there := {split: path for split, path in found.items() if path.is_file()}:
            return there
    return {}


class Wflw:
    """The folder as a source: no classes, but points, and attributes where the lists say them."""

    def __init__(self, settings: DataSettings, root: Path) -> None:
        self.settings, self.root, self.where = settings, root, f"data={settings.source}"
        self.name = root.resolve().name
        refused = [*(name for name in COLUMNS if name != "attribute_columns"), "flip_pairs"]
        refuse(settings, refused, self.where, "has its own points and attributes only", "leave it out")
        group = settings.group
        if group and not names_a_path(group):
            hint = "leave it out: faces of one image are a group"
            raise UserError(f"data.group={group}", f"{self.where} knows no such group", hint)
        self._files = _files(root)
        coco = next(iter(self._files.values())).suffix == ".json"
        self._images = root / (COCO_IMAGES if coco else IMAGES)
        if not self._images.is_dir():
            raise UserError(str(self._images), "is not there", "unpack the images beside the annotations")
        self._subsets = {} if not coco else {n: root / COCO.format(f"test_{n}") for n in ATTRIBUTES}
        self._scan = scan(self._images)

    def identity(self) -> str:
        lists = [*self._files.values(), *self._subsets.values()]
        digest = digest_of(self.root, [str(path.relative_to(self.root)) for path in lists])
        return f"wflw\0{self.root.resolve()}\0{self._scan.digest}\0{digest}"

    def classes(self) -> list[str]:
        return []

    def count(self) -> int:
        return sum(self._rows)

    def left_out(self) -> list[str]:
        return []

    def facts(self) -> dict[str, Any]:
        found = {"points": POINTS, "flip_pairs": [list(pair) for pair in WFLW98], "points_outside": "missing"}
        return {**found, "attributes": self._attributes} if self._attributes else found

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        bare = self.settings.images_only
        splits = list(self._files)
        for i, first, last in spans(self._rows, start, stop):
            for row in range(first, last):
                face = self._faces[splits[i]][row]
                box = self._box(face)
                group = self.settings.group
                yield Item(
                    f"{face.name}#{splits[i]}-{row}",
                    Cut(self._images / face.name, box),
                    -1,
                    splits[i],
                    face.name if group is None else group_of(face.name, group),
                    None if bare or not self._attributes else self._chosen(face.attributes),
                    points=None if bare else (face.points - box[:2]).astype(np.float32),
                )

    def _box(self, face: Face) -> tuple[int, int, int, int]:
        """The square that is cut out: whole pixels, the box's middle in the middle of it."""
        side = max(1, round(face.side * (self.settings.padding or PADDING)))
        left, top = (round(middle - (side - 1) / 2) for middle in face.centre)
        return left, top, left + side, top + side

    @cached_property
    def _attributes(self) -> list[str]:
        """Those that are kept, where there are any."""
        known = all(path.is_file() for path in self._subsets.values())
        wanted = self.settings.attribute_columns
        for name in wanted or ():
            if name not in ATTRIBUTES or not known:
                hint = nearest(name, ATTRIBUTES if known else [])
                raise UserError(f"data.attribute_columns={name}", f"{self.where} has no such attribute", hint)
        return (wanted or list(ATTRIBUTES)) if known else []

    def _chosen(self, values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(values[ATTRIBUTES.index(name)] for name in self._attributes)

    @cached_property
    def _rows(self) -> list[int]:
        return limited([len(self._faces[split]) for split in self._files], list(self._files), self.settings)

    @cached_property
    def _faces(self) -> dict[str, list[Face]]:
        """{split: its faces}. Raises `UserError` for a wrong line, and for one whose image is not there."""
        found = {}
        for split, path in self._files.items():
            read = read_coco(path, self._subsets if split == "test" else {}) if self._subsets else read_faces(path)
            found[split] = list(read)
            if self.settings.on_bad_image == "error":
                for face in found[split]:
                    if not (self._images / face.name).is_file():
                        hint = "add it, or set data.on_bad_image=skip"
                        raise UserError(face.where, f"there is no image {self._images / face.name}", hint)
        return found


def read_faces(path: Path) -> Iterator[Face]:
    """The faces of a published list. Raises `UserError` naming the line that is none."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            if not fields:
                continue
            where = f"{path} line {number}"
            wanted = 2 * POINTS + 4 + len(ATTRIBUTES) + 1
            if len(fields) != wanted:
                hint = f"{2 * POINTS} coordinates, a box, {len(ATTRIBUTES)} attributes and a name"
                raise UserError(where, f"has {len(fields)} entries instead of {wanted}", hint)
            try:
                numbers = np.array(fields[: 2 * POINTS + 4], np.float64)
                codes = tuple(map(int, fields[2 * POINTS + 4 : -1]))
            except ValueError as error:
                raise UserError(where, f"holds no numbers ({error})", "download it again") from error
            if not np.isfinite(numbers).all() or not set(codes) <= {0, 1}:
                what = "holds a coordinate that is not finite, or an attribute beside 0 and 1"
                raise UserError(where, what, "download it again")
            left, top, right, bottom = numbers[2 * POINTS :].tolist()
            if right <= left or bottom <= top:
                what = f"its box {left:g}, {top:g}, {right:g}, {bottom:g} is empty"
                raise UserError(where, what, "a box is left, top, right, bottom")
            centre = ((left + right) / 2, (top + bottom) / 2)
            side = max(right - left, bottom - top)
            yield Face(where, fields[-1], numbers[: 2 * POINTS].reshape(POINTS, 2), centre, side, codes)


def read_coco(path: Path, subsets: dict[str, Path]) -> Iterator[Face]:
    """The faces of a converted list. subsets: {attribute: the list of the faces that have it}, of the test part.

    Raises `UserError` naming the annotation that is none.
    """
    names, members = _names(_parsed(path)), []
    for file in subsets.values():
        if file.is_file():
            found = _parsed(file)
            inside = _names(found)
            members.append({(inside.get(a.get("image_id")), _key(a)) for a in found["annotations"]})
    for number, entry in enumerate(_parsed(path)["annotations"]):
        where = f"{path} annotation {number}"
        try:
            points = np.array(entry["keypoints"], np.float64).reshape(POINTS, 3)
            centre = (float(entry["center"][0]), float(entry["center"][1]))
            side = float(entry["scale"]) * UNIT
            name = names[entry["image_id"]]
        except (KeyError, ValueError, TypeError, IndexError) as error:
            hint = f"keypoints (3 x {POINTS} numbers), center, scale and the image_id of one of its images"
            raise UserError(where, f"is no face ({type(error).__name__}: {error})", hint) from error
        if side <= 0 or not np.isfinite([*points.ravel(), *centre, side]).all():
            raise UserError(where, "holds a coordinate that is not finite, or an empty box", "download it again")
        seen = np.where(points[:, 2:] > 0, points[:, :2], np.nan)
        codes = tuple(int((name, _key(entry)) in faces) for faces in members)
        unknown = (-1,) * len(ATTRIBUTES)
        yield Face(where, name, seen, centre, side, codes if len(codes) == len(ATTRIBUTES) else unknown)


def _key(entry: dict[str, Any]) -> tuple[float, ...]:
    """Tells faces of one image apart: lists of subsets number them anew."""
    return tuple(map(float, entry.get("keypoints", ())[:6]))


def _names(parsed: dict[str, Any]) -> dict[Any, str]:
    return {image["id"]: image["file_name"] for image in parsed["images"]}


def _parsed(path: Path) -> dict[str, Any]:
    """A list with images, each with id and file_name, and annotations. Raises `UserError` for anything else."""
    try:
        found = json.loads(path.read_text("utf-8"))
        _names(found)
        if not all(isinstance(entry, dict) for entry in found["annotations"]):
            raise TypeError("an annotation has no fields")
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"is no list in the style of COCO ({type(error).__name__})"
        raise UserError(str(path), what, "it holds images (id, file_name) and annotations") from error
    return found
