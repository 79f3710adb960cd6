"""What stands beside a folder of images and belongs to them.

    photos/images/...                        the images; without any of the others they may lie in photos/ itself
    photos/masks/<same name>.png             class index of every pixel, 255 = void
    photos/pairs/<same name>.<image>         a second image of the same field of view
    photos/points/<same name>.json | .csv    [[x, y], ...], or a line `x,y` for each point
    photos/metadata.csv | metadata.jsonl     a row for each image: file_name, and whatever the settings name

`metadata` may lie in the folder, in images/ or in the folder of a split; file_name is relative to where it lies (the
convention of the Hugging Face image folder). "Same name" means the path below images/ without its extension.
"""

from __future__ import annotations

import csv
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..settings.data import DataSettings
from .annotations import Annotations, Belongings, key_points, names_a_path, refuse, settings_facts
from .arrow import ArrowShard
from .columns import Labels, label_column
from .items import FOLDER_SPLITS
from .walking import IMAGE_SUFFIXES, names_in, walk

IMAGES, MASKS, PAIRS, POINTS = "images", "masks", "pairs", "points"
SUFFIXES = {MASKS: (".png",), PAIRS: IMAGE_SUFFIXES, POINTS: (".json", ".csv")}
METADATA = ("metadata.csv", "metadata.jsonl")
COLUMN_SETTINGS = ("label_column", "attribute_columns", "mask_column", "points_column", "pair_column")
NOTHING = Belongings()


def images_root(root: Path) -> Path:
    """Where the images of a folder lie: in its `images` if one of the others stands beside that, else in itself."""
    if not (root / IMAGES).is_dir():
        return root
    is_beside = any((root / kind).is_dir() for kind in SUFFIXES) or any((root / name).is_file() for name in METADATA)
    return root / IMAGES if is_beside else root


class Beside:
    """The folders and the table beside the images of `root`; reads none of them before it is asked."""

    def __init__(self, root: Path, settings: DataSettings) -> None:
        self._settings, self._where = settings, f"data={settings.source}"
        self.images_root = images_root(root)
        kinds = SUFFIXES if self.images_root != root and not settings.images_only else ()
        self._siblings = {kind: root / kind for kind in kinds if (root / kind).is_dir()}
        self._tables = self._find_tables(root)
        self.folders_are_classes = False  # said by the one who has looked at the folders
        self._listed: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {}
        self._n_points: int | None = None
        refuse(settings, ["image_column"], self._where, "has no columns", "only Parquet and hub data have")
        if not self._tables:
            hint = "only Parquet and hub data have, or a folder with a metadata.csv"
            refuse(settings, COLUMN_SETTINGS, self._where, "has no columns", hint)
            if self._group is not None:
                what = f"{self._where} has no columns"
                raise UserError(f"data.group={self._group}", what, "write folder, or re:REGEX on the image's name")

    def identity(self) -> str:
        """Of everything that is beside the images; "" where nothing is."""
        found = []
        for kind, folder in self._siblings.items():
            found += [f"{kind}/{file.name}\0{file.size}\0{file.mtime_ns}" for file in walk(folder, SUFFIXES[kind])]
        for table in self._tables:
            status = table.path.stat()
            found.append(f"{table.name}\0{status.st_size}\0{status.st_mtime_ns}")
        return "".join("\0" + entry for entry in found)

    def classes(self, folders: list[str]) -> list[str]:
        """The classes of the metadata where the labels come from there, else those that the folders name."""
        return folders if self._labels is None else self._labels.classes

    def facts(self) -> dict[str, Any]:
        found = self._annotations.facts() if self._annotations else settings_facts(self._settings)
        if POINTS in self._siblings:
            first = next(iter(walk(self._siblings[POINTS], SUFFIXES[POINTS])), None)
            found["points"] = len(self._points(self._siblings[POINTS].joinpath(*first.parts))) if first else 0
        return found

    def of(self, folder: tuple[str, ...], name: str, label: int) -> tuple[int, Belongings]:
        """The label, by the folder unless the metadata has it, and what belongs to one image."""
        if not self._siblings and not self._tables:
            return label, NOTHING
        more = NOTHING
        if self._uses_table:
            row = self._row("/".join((*folder, name)))
            more = self._belongings[row]
            label = label if self._labels is None else int(self._row_labels[row])
        if MASKS in self._siblings:
            more = more._replace(mask=self._sibling(MASKS, folder, name))
        if PAIRS in self._siblings:
            more = more._replace(pair=self._sibling(PAIRS, folder, name))
        if POINTS in self._siblings:
            more = more._replace(points=self._points(self._sibling(POINTS, folder, name)))
        return label, more

    def lone(self) -> dict[str, Path]:
        """{what it is: the image it is about} of rows of the table and files beside that no image belongs to.

        Raises `UserError` for the first of them, unless bad images are to be skipped.
        """
        if not self._siblings and not self._uses_table:
            return {}
        images = {file.name for file in walk(self.images_root, IMAGE_SUFFIXES)}
        found: dict[str, str] = {}
        if self._uses_table:
            numbers = [(t.name, row, name) for t in self._tables for row, name in enumerate(t.files())]
            found |= {f"{table} row {row}: {name}": name for table, row, name in numbers if name not in images}
        stems = {name.rpartition(".")[0] for name in images}
        for kind, root in self._siblings.items():
            names = (file.name for file in walk(root, SUFFIXES[kind]))
            found |= {f"{root}/{n}": n.rpartition(".")[0] for n in names if n.rpartition(".")[0] not in stems}
        if found and self._settings.on_bad_image == "error":
            where, name = next(iter(found.items()))
            what = f"there is no image {self.images_root}/{name}"
            raise UserError(where, what, "add it, remove what is said of it, or set data.on_bad_image=skip")
        return {where: self.images_root / name for where, name in found.items()}

    def unused(self) -> str:
        """One line on the table's columns that nothing is read from; "" where there are none."""
        used = {"file_name"} | ({self._labels.column} if self._labels else set())
        used |= set(self._annotations.columns) if self._annotations else set()
        others = [name for name in dict.fromkeys(n for t in self._tables for n in t.schema.names) if name not in used]
        settings = "data.label_column=..., data.group=..., data.attribute_columns=[...], ..."
        return f"{self._tables[0].path.name} has also: {', '.join(others)} (unused; {settings})" if others else ""

    # -- folders -----------------------------------------------------------------------------------------------------

    def _sibling(self, kind: str, folder: tuple[str, ...], name: str) -> Path:
        """The file of an image in one of the folders beside; raises `UserError` where there is none."""
        root = self._siblings[kind]
        if kind not in self._listed or self._listed[kind][0] != folder:
            known = names_in(root, folder, SUFFIXES[kind]) if root.joinpath(*folder).is_dir() else []
            self._listed[kind] = (folder, {file.rpartition(".")[0]: file for file in known})
        stem = name.rpartition(".")[0]
        file = self._listed[kind][1].get(stem)
        if file is None:
            path = "/".join((*folder, stem))
            what = f"there is none for the image {'/'.join((*folder, name))}"
            raise UserError(
                f"{root}/{path}{SUFFIXES[kind][0]}",
                what,
                f"every image needs one in {kind}/; those without go to a folder of their own, data.unlabelled=FOLDER",
            )
        return root.joinpath(*folder, file)

    def _points(self, path: Path) -> np.ndarray:
        try:
            text = path.read_text("utf-8")
            if path.suffix.lower() == ".json":
                value = json.loads(text)
                value = value["points"] if isinstance(value, dict) and "points" in value else value
            else:
                value = [
                    [float(x) if x.strip() else None for x in line.split(",")] for line in text.splitlines() if line
                ]
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(str(path), f"holds no key points ({reason})", "[[x, y], ...], or lines x,y") from error
        points = key_points(value, self._n_points, str(path))
        self._n_points = len(points)
        return points

    # -- the table ---------------------------------------------------------------------------------------------------

    @property
    def _group(self) -> str | None:
        group = self._settings.group
        return None if group is None or names_a_path(group) else group

    def _find_tables(self, root: Path) -> list[Metadata]:
        """Every metadata file, with what its names are relative to."""
        images = self.images_root
        places = {"": images}
        if images != root:
            places = {IMAGES + "/": root, **places}
        if images.is_dir():
            places |= {f"{p.name}/": p for p in sorted(images.iterdir()) if p.name.lower() in FOLDER_SPLITS}
        found = []
        for prefix, place in places.items():
            files = [place / name for name in METADATA if (place / name).is_file()]
            if len(files) > 1:
                raise UserError(str(place), f"holds both {METADATA[0]} and {METADATA[1]}", "keep one of them")
            found += [Metadata(file, prefix, self._settings) for file in files]
        return found

    @cached_property
    def _uses_table(self) -> bool:
        wanted = any(getattr(self._settings, name) is not None for name in COLUMN_SETTINGS) or self._group is not None
        return bool(self._tables) and (wanted or self._labels is not None)

    @cached_property
    def _labels(self) -> Labels | None:
        """The metadata's labels: those of the column that the settings name, or of any if no folder is a class."""
        if not self._tables or self._settings.images_only:
            return None
        if self.folders_are_classes and self._settings.label_column is None:
            return None
        column = label_column(self._tables[0].schema, self._settings.label_column, self._tables[0].name)
        return None if column is None else Labels(column, list(self._tables))

    @cached_property
    def _annotations(self) -> Annotations | None:
        return Annotations(self._settings, self._tables, self._tables[0].name) if self._tables else None

    @cached_property
    def _rows(self) -> dict[str, int]:
        """{path below the images' folder: row}, over all tables."""
        rows: dict[str, int] = {}
        for table in self._tables:
            for name in table.files():
                if name in rows:
                    raise UserError(f"{table.name}: {name}", "has two rows", "give every image one")
                rows[name] = len(rows)
        return rows

    def _row(self, name: str) -> int:
        if name not in self._rows:
            raise UserError(
                f"{self._tables[0].name}: {name}", "has no row", "give every image one, with this file_name"
            )
        return self._rows[name]

    @cached_property
    def _row_labels(self) -> np.ndarray:
        labels = self._labels
        assert labels is not None
        return np.concatenate(
            [labels(batch.column(labels.column), t, 0) for t in self._tables for batch in t.batches([labels.column])]
        )

    @cached_property
    def _belongings(self) -> list[Any]:
        annotations = self._annotations
        assert annotations is not None
        if not annotations.columns:
            return [NOTHING] * len(self._rows)
        found: list[Any] = []
        for table in self._tables:
            row = 0
            for batch in table.batches(annotations.columns):
                found += annotations(batch, table, row)
                row += len(batch)
        return found


class Metadata(ArrowShard):
    """metadata.csv or metadata.jsonl as a shard of one table. prefix: of its names, below the images' folder.

    Where the names are relative to the folder above, they begin with images/, and `prefix` is that.
    """

    kind = "a table"

    def __init__(self, path: Path, prefix: str, settings: DataSettings) -> None:
        super().__init__(path, str(path), None)
        self._prefix, self._settings = prefix, settings
        self._wrong_row: UserError | None = None

    def files(self) -> list[str]:
        """Paths below the images' folder, a row each."""
        if "file_name" not in self.schema.names:
            raise UserError(self.name, f"has no column file_name (columns: {', '.join(self.schema.names)})", "add it")
        names = [str(name) for name in self._table.column("file_name").to_pylist()]
        if self._prefix == IMAGES + "/":
            return [name.removeprefix(self._prefix) for name in names]
        return [self._prefix + name for name in names]

    def _ragged(self, row: Any) -> str:
        """A row of another length than the header: says which cell is too many, or which column has none."""
        with self.path.open(encoding="utf-8", errors="replace", newline="") as file:
            names = next(csv.reader(file), [])
        where, cells = f"{self.name} line {row.number}", f"has {row.actual_columns} cells of {row.expected_columns}"
        if row.actual_columns < len(names):
            what = f"{cells}: none is left for column {names[row.actual_columns]!r}"
            self._wrong_row = UserError(where, what, "an unknown value is an empty cell, with its comma")
        else:
            what = f"{cells}: cell {row.expected_columns + 1} is in no column"
            self._wrong_row = UserError(where, what, "remove it, or name its column in line 1")
        return "error"

    @cached_property
    def _table(self) -> Any:
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.json

        s = self._settings
        try:
            if self.path.suffix == ".csv":
                texts = {name: pa.string() for name in ("file_name", s.group, s.mask_column, s.pair_column) if name}
                # only empty is nothing: a class may be called NA or null
                options = pa.csv.ConvertOptions(column_types=texts, strings_can_be_null=True, null_values=[""])
                reading = pa.csv.ReadOptions(use_threads=False)  # which would not know the number of a row
                parsing = pa.csv.ParseOptions(invalid_row_handler=self._ragged)
                table = pa.csv.read_csv(self.path, reading, parsing, options)
            else:
                table = pa.json.read_json(self.path)
        except (pa.ArrowException, OSError) as error:
            raise self._wrong_row or self._unreadable(error) from error
        for name in {s.mask_column, s.pair_column} & set(table.schema.names):
            if not (pa.types.is_string(type := table.schema.field(name).type) or pa.types.is_null(type)):
                raise UserError(f"{self.name}: {name}", f"holds {type}, which is no path", "write paths of images")
            paths = table.column(name).combine_chunks().cast(pa.string())
            cells = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), paths], ["bytes", "path"])
            table = table.set_column(table.schema.get_field_index(name), name, cells)
        return table
