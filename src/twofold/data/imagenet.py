"""ImageNet and Tiny ImageNet as they are published: folders named by WordNet id, validation images by a list.

    imagenet/train/<wnid>/*.JPEG                     imagenet/val/<wnid>/*.JPEG, or val/*.JPEG with one of `MAPPINGS`
    ILSVRC/Data/CLS-LOC/{train,val,test}             the same inside Kaggle's folder, LOC_val_solution.csv above it
    tiny-imagenet-200/train/<wnid>/images/*.JPEG     val/images/*.JPEG with val/val_annotations.txt

Classes are the WordNet ids of `train`, sorted: the usual order of labels. What they are called in words is told as
`class_titles`. The test images have no labels and are left out.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..settings.data import DataSettings
from .folder import ImageFolder
from .tables import digest_of
from .walking import IMAGE_SUFFIXES, names_in

WNID = re.compile(r"n\d{8}")
KAGGLE = Path("ILSVRC/Data/CLS-LOC")
MAPPINGS = (
    "LOC_val_solution.csv",
    "val_annotations.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "val_labels.txt",
    "val.txt",
)
TITLES = ("LOC_synset_mapping.txt", "words.txt")


class WordNetFolder(ImageFolder):
    """train/<wnid>, and val by folders or by a list. root: where train and val lie. above: where lists may lie too."""

    def __init__(self, settings: DataSettings, root: Path, above: Path | None = None) -> None:
        self._above = above or root
        self._lists = [root, root / "val", *([self._above] if self._above != root else [])]
        super().__init__(root, settings)
        self.name = self._above.resolve().name

    def identity(self) -> str:
        mapping = self._mapping_file
        lists = "" if mapping is None else digest_of(mapping.parent, [mapping.name])
        return f"wordnet\0{super().identity()}\0{lists}"

    def left_out(self) -> list[str]:
        return ["test"] if any(folder[:1] == ("test",) for folder in self.found.runs) else []

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), **({"class_titles": self._titles} if self._titles else {})}

    def check_layout(self) -> bool:
        return True

    def class_names(self) -> list[str]:
        names = sorted(name for name in self.found.classes.get("train", {}) if name)
        if not names:
            raise UserError(
                f"{self.where}/train", "holds no folders of images", "one for each WordNet id belongs there"
            )
        return names

    def folders(self) -> dict[tuple[str, ...], int]:
        return {folder: n for folder, n in self.found.runs.items() if folder[:1] in (("train",), ("val",))}

    def labels_of(self, folder: tuple[str, ...], names: list[str]) -> list[int]:
        if len(folder) > 1 and folder[1] != "images":
            return [self._label(folder[1], "/".join(folder))] * len(names)
        if folder[0] == "train":
            raise UserError(f"{self.where}/{'/'.join(folder)}", "images lie beside the class folders", "move them away")
        return [self._label(self._wnid(name), f"{'/'.join(folder)}/{name}") for name in names]

    def _label(self, wnid: str, where: str) -> int:
        label = self._order.get(wnid)
        if label is None:
            raise UserError(
                f"{self.where}/{where}", f"its class {wnid} has no folder in train", "copy train completely"
            )
        return label

    def _wnid(self, name: str) -> str:
        """The class of a validation image, by the list."""
        found = self._mapping.get(name) or self._mapping.get(name.partition(".")[0])
        if found is None:
            file = self._mapping_file
            raise UserError(f"{file}: {name}", "has no line", "download the list again")
        return found

    @cached_property
    def _order(self) -> dict[str, int]:
        return {wnid: label for label, wnid in enumerate(self.folder_classes)}

    @cached_property
    def _mapping_file(self) -> Path | None:
        return next((place / file for file in MAPPINGS for place in self._lists if (place / file).is_file()), None)

    @cached_property
    def _mapping(self) -> dict[str, str]:
        """{file name, with or without its ending: wnid}."""
        file = self._mapping_file
        if file is None:
            names = ", ".join(MAPPINGS)
            what = "its images are not in folders of classes, and no list says what they are"
            raise UserError(f"{self.where}/val", what, f"add one of {names}, or sort them into val/<wnid>/")
        images = self.root / "val"
        return read_mapping(file, lambda: names_in(images, (), IMAGE_SUFFIXES))

    @cached_property
    def _titles(self) -> list[str] | None:
        file = next((place / name for name in TITLES for place in self._lists if (place / name).is_file()), None)
        if file is None:
            return None
        lines = (re.split(r"\s+", line.strip(), maxsplit=1) for line in file.read_text("utf-8", "replace").splitlines())
        words = {line[0]: line[1] for line in lines if len(line) == 2}
        return [words.get(wnid, wnid) for wnid in self.folder_classes]


def read_mapping(file: Path, images: Any) -> dict[str, str]:
    """{image: wnid} of a list: `image,wnid ...`, `image<tab>wnid ...`, `image wnid`, or a wnid for each image by name.

    images: gives the images' names in order, for the last kind. Raises `UserError` naming a line that has no class.
    """
    found: dict[str, str] = {}
    alone: list[str] = []
    with file.open(encoding="utf-8", errors="replace") as lines:  # what is no text has no WordNet id either
        for number, fields in enumerate((re.split(r"[,\s]+", line.strip()) for line in lines), 1):
            if fields[0] in ("", "ImageId"):
                continue
            wnid = next((field for field in fields if WNID.fullmatch(field)), None)
            if wnid is None:
                hint = "a line holds an image and its WordNet id, or that id alone"
                raise UserError(f"{file} line {number}", f"names no WordNet id ({' '.join(fields)[:60]})", hint)
            if fields[0] == wnid:
                alone.append(wnid)
            else:
                found[fields[0]] = wnid
    if not alone:
        return found
    names = images()
    if found or len(names) != len(alone):
        what = f"holds {len(alone)} classes without images' names, and there are {len(names)} images"
        raise UserError(str(file), what, "it needs a line for each image, sorted by name")
    return dict(zip(names, alone, strict=True))


def is_tiny_imagenet(root: Path) -> bool:
    return (root / "train").is_dir() and (root / "val/val_annotations.txt").is_file()


def is_imagenet(root: Path) -> bool:
    """Whether train holds WordNet ids and the validation images are loose: anything else is a folder like any other."""
    return (root / KAGGLE / "train").is_dir() or (_is_wordnet(root) and not _has_folders(root / "val"))


def _is_wordnet(root: Path) -> bool:
    return any(WNID.fullmatch(name) for name in _visible(root / "train")[:5]) and (root / "val").is_dir()


def _has_folders(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in _visible(folder)[:5])


def _visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def wordnet(settings: DataSettings, root: Path) -> WordNetFolder:
    """ImageNet or Tiny ImageNet in `root`."""
    return WordNetFolder(settings, root / KAGGLE, root) if (root / KAGGLE).is_dir() else WordNetFolder(settings, root)
