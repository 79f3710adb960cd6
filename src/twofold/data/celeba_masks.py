"""CelebAMask-HQ as it is published: 30,000 faces with masks of their parts (Lee et al. 2020).

    CelebA-HQ-img/0.jpg ...                                   images of 1024x1024
    CelebAMask-HQ-mask-anno/<0 to 14>/00000_skin.png ...      a part of one face, white on black, 512x512; 2,000 faces
                                                              a folder, and no file for a part that is not to be seen
    CelebA-HQ-to-CelebA-mapping.txt                           `idx orig_idx orig_file`: which image of CelebA it is
    list_eval_partition.txt                                   CelebA's: `000001.jpg 0`, 0 train, 1 validation, 2 test

A mask has 19 classes: 0 is the background, and the parts are written over it one after the other, in the order below.
The split is CelebA's own, of 24,183, 2,993 and 2,824 faces, where the mapping is there; without the list its known
ranges of numbers are used. Without the mapping the source names no split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..settings.data import DataSettings
from .annotations import COLUMNS, group_of, names_a_path, refuse
from .celeba import PARTITION, find, read_list
from .decode import Layers
from .items import SPLITS, Item, limited, spans
from .tables import digest_of
from .walking import File, scan, walk

IMAGES, MASKS, MAPPING = "CelebA-HQ-img", "CelebAMask-HQ-mask-anno", "CelebA-HQ-to-CelebA-mapping.txt"
PARTS = (
    *("skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r"),
    *("nose", "mouth", "u_lip", "l_lip", "neck", "neck_l", "cloth", "hair", "hat"),
)
CLASSES = ["background", *PARTS]
FLIP_PAIRS = [[CLASSES.index(f"l_{part}"), CLASSES.index(f"r_{part}")] for part in ("brow", "eye", "ear")]
FIRST_VALIDATION, FIRST_TEST = 162_771, 182_638  # numbers of CelebA's images, from 1


def is_celeba_masks(root: Path) -> bool:
    return (root / IMAGES).is_dir() and (root / MASKS).is_dir()


class CelebAMasks:
    """The folder as a source: no classes of images, but a mask for each."""

    def __init__(self, settings: DataSettings, root: Path) -> None:
        self.settings, self.root, self.where = settings, root, f"data={settings.source}"
        self.name = root.resolve().name
        refused = [*COLUMNS, "mask_classes", "mask_void", "mask_flip_pairs", "flip_pairs"]
        refuse(settings, refused, self.where, "has its own masks only", "leave it out")
        group = settings.group
        if group and not names_a_path(group):
            raise UserError(f"data.group={group}", f"{self.where} knows no groups", "leave it out")
        self._partition = find(root, PARTITION)
        self._digest = scan(root / IMAGES).digest

    def identity(self) -> str:
        lists = [MAPPING, *([str(self._partition.relative_to(self.root))] if self._partition else [])]
        digest = hashlib.sha256(f"{self.root.resolve()}\0{self._digest}\0{digest_of(self.root, lists)}".encode())
        for file in () if self.settings.images_only else self._walked:
            digest.update(f"{file.name}\0{file.size}\0{file.mtime_ns}\n".encode("utf-8", "surrogateescape"))
        return f"celebamask\0{digest.hexdigest()}"

    def classes(self) -> list[str]:
        return []

    def count(self) -> int:
        return sum(self._rows)

    def left_out(self) -> list[str]:
        return []

    def facts(self) -> dict[str, Any]:
        return {"mask_classes": CLASSES, "mask_flip_pairs": FLIP_PAIRS}

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        group = self.settings.group
        for i, first, last in spans(self._rows, start, stop):
            split = (*SPLITS, None)[i]
            for number in self._numbers[split][first:last]:
                name = f"{number}.jpg"
                whose = None if group is None else group_of(name, group)
                yield Item(name, self.root / IMAGES / name, -1, split, whose, mask=self._mask(number))

    # -- what is there -----------------------------------------------------------------------------------------------

    def _mask(self, number: int) -> Layers | None:
        return None if self.settings.images_only else Layers(tuple(self._layers.get(number, ())))

    @cached_property
    def _walked(self) -> list[File]:
        return list(walk(self.root / MASKS, (".png",)))

    @cached_property
    def _layers(self) -> dict[int, list[tuple[Path, int]]]:
        """{image: (file, class) of its parts, in the order in which they are written}."""
        found: dict[int, list[tuple[Path, int]]] = {}
        for file in self._walked:
            path = self.root.joinpath(MASKS, *file.parts)
            number, _, part = path.stem.partition("_")
            if not number.isdecimal() or part not in PARTS:
                what = f"its name is no image's number and one of {len(PARTS)} parts"
                raise UserError(str(path), what, "names are like 00000_skin.png; remove it, or copy it again")
            found.setdefault(int(number), []).append((path, CLASSES.index(part)))
        return {number: sorted(layers, key=lambda layer: layer[1]) for number, layers in found.items()}

    @cached_property
    def _numbers(self) -> dict[str | None, list[int]]:
        """{split: its images, by number}."""
        found: dict[str | None, list[int]] = {split: [] for split in (*SPLITS, None)}
        for number in self._all:
            found[self._splits.get(number) if self._splits else None].append(number)
        lost = found[None] if self._splits else []
        if lost:
            raise UserError(f"{self.root / MAPPING}: {lost[0]}", "has no line", "download it again")
        return found

    @cached_property
    def _all(self) -> list[int]:
        """The images, by number; those too whose masks are there without them: they are bad images."""
        files = [path.stem for path in (self.root / IMAGES).iterdir() if path.suffix.lower() == ".jpg"]
        if wrong := [stem for stem in files if not stem.isdecimal()]:
            raise UserError(f"{self.root / IMAGES / min(wrong)}.jpg", "its name is no number", "remove it")
        there = set(map(int, files))
        if self.settings.images_only:
            return sorted(there)
        if (lone := sorted(set(self._layers) - there)) and self.settings.on_bad_image == "error":
            path = self._layers[lone[0]][0][0]
            hint = f"add {IMAGES}/{lone[0]}.jpg, or set data.on_bad_image=skip"
            raise UserError(str(path), f"there is no image for it ({len(lone):,} images are missing)", hint)
        return sorted(there | set(lone))

    @cached_property
    def _rows(self) -> list[int]:
        numbers = self._numbers
        return limited([len(numbers[split]) for split in (*SPLITS, None)], [*SPLITS, None], self.settings)

    @cached_property
    def _splits(self) -> dict[int, str]:
        """{image: CelebA's split}; {} without the mapping."""
        path = self.root / MAPPING
        if not path.is_file():
            return {}
        parts = None
        if self._partition:
            _, names, values = read_list(self._partition)
            parts = dict(zip(names, values[:, 0].tolist(), strict=True))
        found = {}
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
            fields = line.split()
            if not fields or fields[0] == "idx":
                continue
            where = f"{path} line {number}"
            if len(fields) != 3 or not fields[0].isdecimal() or not (stem := fields[2].partition(".")[0]).isdecimal():
                raise UserError(where, f"is no `idx orig_idx orig_file` ({line.strip()[:60]})", "download it again")
            code = _by_range(int(stem)) if parts is None else parts.get(fields[2])
            if code not in (0, 1, 2):
                raise UserError(where, f"{fields[2]} has no part in {self._partition}", "download that again")
            found[int(fields[0])] = SPLITS[code]
        return found


def _by_range(number: int) -> int:
    """The part of an image of CelebA by its number."""
    return (number >= FIRST_VALIDATION) + (number >= FIRST_TEST)
