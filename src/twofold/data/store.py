"""A packed data set: every image as uint8 in one memory-mapped array, with labels, stable ids and splits.

`open_store(settings)` packs a source the first time and reopens it from the cache afterwards (see `pack`). The split
lies in a small file of its own, so another seed or share never packs the images again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, nearest
from ..files import atomic_file
from ..settings.data import DataSettings
from .annotated import annotated_rows
from .augment import mirror_partners
from .duplicates import components, image_hashes
from .items import SPLITS
from .joined import GENERATED_CLASSES, places
from .listed import Listed, attributes_from, lists_attributes
from .pack import Progress, cache_root, complete, pack
from .sources import fingerprint, fingerprint_of, open_source
from .split import assign, split_key
from .subsets import Labelling, few_labels, labelling_from
from .transform import VOID


def open_store(settings: DataSettings, progress: Progress | None = None) -> Store:
    """The packed images of `settings.source`; packs them if the cache does not hold them yet.

    progress: called as progress(images done, total or None) at least once a second while packing.
    Raises `UserError` for whatever is wrong with the source, an image, the settings, or the cache.
    """
    source = open_source(settings)
    if settings.flip_pairs is not None and (points := source.facts().get("points")) is not None:
        mirror_partners(points if isinstance(points, int) else len(points), settings.flip_pairs)  # before hours of work
    key = fingerprint_of(source, settings)
    name = re.sub(r"[^\w.-]+", "_", source.name)[:60] or "images"
    folder = cache_root() / "data" / f"{name}-{key[:20]}"
    if not complete(folder):
        pack(source, settings, folder, lambda: fingerprint(settings) == key, progress)
    return Store(folder, settings)


class Store:
    """A packed data set on disk; opening reads no pixels.

    images: uint8 (N, C, H, W) memory map. all_labels: int64 (N,) memory map, -1 = none; `labels` are those to be used.
    own_classes: what the source calls its classes, in label order, may be empty; see `classes`. shape: (C, H, W).
    content_hash: sha256 hex of shape, pixels, labels and what else there is. name: short name of the source. meta: what
    packing noted, with `bad_images` and `left_out`. folder: where it lies. n_own: images of `data.source`; those of
    `data.unlabelled`, if any, are the rows behind them, and `n_generated` of `data.generated` the last ones.

    Memory maps, or None where the source has none of it: all_attributes int8 (N, A) in 0, 1, -1 = unknown (`attributes`
    are those to be used); masks uint8 (N, H, W), class indices, 255 = void; points float32 (N, P, 2), x and y in
    pixels, NaN = not there; pairs uint8 (N, C2, H, W); groups int64 (N,), -1 = none. attribute_names, mask_classes,
    point_names: their names, as far as they are known. flip_pairs: points that a mirror exchanges, None if nobody has
    said. mask_flip_pairs: classes of the masks that it exchanges.

    Raises `UserError` if files are missing or damaged, and for settings about masks or points that it has not.
    """

    def __init__(self, folder: Path | str, settings: DataSettings) -> None:
        self.folder, self.settings = Path(folder), settings
        try:
            self.meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text("utf-8"))
            self.images: np.memmap = self._load("images")
            self.all_labels: np.ndarray = self._load("labels")
            self._own: np.ndarray = self._load("splits")
            self._id_offsets, self._id_bytes = self._load("id_offsets"), self._load("id_bytes")
            self.all_attributes, self.masks = self._load_if_there("attributes"), self._load_if_there("masks")
            self.points, self.pairs = self._load_if_there("points"), self._load_if_there("pairs")
            self.groups = self._load_if_there("groups")
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(" ".join(str(error).split())) from error
        self.shape: tuple[int, int, int] = tuple(self.meta["shape"])
        self.own_classes: list[str] = self.meta["classes"]
        self.name: str = self.meta["name"]
        self.content_hash: str = self.meta["content_hash"]
        facts = self.meta.get("facts", {})
        self.all_attribute_names: list[str] = _names(facts.get("attributes"), self.all_attributes)
        self.point_names: list[str] = _names(facts.get("points"), self.points)
        self.mask_classes: list[str] = facts.get("mask_classes") or []
        self.flip_pairs: list[list[int]] | None = facts.get("flip_pairs")
        self.mask_flip_pairs: list[list[int]] = facts.get("mask_flip_pairs") or []
        n = self.meta["images"]
        self.n_generated: int = self.meta.get("generated", {}).get("images", 0)
        self.n_own: int = n - self.meta.get("joined", {}).get("images", 0) - self.n_generated
        more = (self.all_attributes, self.masks, self.points, self.pairs, self.groups)
        rows = (self.all_labels, self._own, *(array for array in more if array is not None))
        if self.images.shape != (n, *self.shape) or any(len(array) != n for array in rows):
            raise self._damaged(f"{len(self.images)} images instead of {n}")
        self._check_settings()
        self._pixels = np.asarray(self.images)  # the same memory without np.memmap's cost per index
        self._codes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._pixels)

    def __repr__(self) -> str:
        return f"Store({self.name!r}, {len(self)} images, shape={self.shape}, classes={len(self.classes)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.folder, self.settings)  # worker processes open the files again

    def indices(self, split: str) -> np.ndarray:
        """Rows of "train", "validation", "test" or "all": int64, sorted. Raises `UserError` if there are none."""
        if split == "all":
            return np.arange(len(self))
        if split not in SPLITS:
            raise UserError(f"split={split}", "no such split", nearest(split, (*SPLITS, "all")))
        self.check_groups()
        rows = np.flatnonzero(self.codes == SPLITS.index(split))
        if not len(rows):
            raise UserError(f"data={self.settings.source}", f"its {split} split holds no image", self._why_empty(split))
        return rows

    def annotated_rows(self, split: str = "train") -> np.ndarray:
        """Those of `indices(split)` whose mask or key points may be learned from, as `data.annotated` says.

        Raises `UserError` where there are fewer than it asks for.
        """
        return annotated_rows(self, self.indices(split))

    def check_groups(self) -> None:
        """Raises `UserError` where the split was to keep groups whole and no image has one."""
        if self.settings.group is not None and not self.n_groups:
            what = f"no image of {self.settings.source} has a group there"
            raise UserError(f"data.group={self.settings.group}", what, "name another column, or leave data.group unset")

    @cached_property
    def n_groups(self) -> int:
        """How many groups there are."""
        return 0 if self.groups is None else len(np.unique(self.groups[self.groups >= 0]))

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,), -1 = none. `data.labels` and `data.labels_per_class` take away those of other training images.

        A label file of attributes takes away none of them. Generated images keep theirs, unless they are held out.
        """
        if self._labelling is not None:
            return self._labelling.labels
        if self.settings.labels_per_class is not None:
            own, k, seed = slice(self.n_own), self.settings.labels_per_class, self.settings.labels_seed
            chosen = few_labels(self.all_labels[own], self.codes[own], k, seed)
            return self._and_generated(np.concatenate([chosen, self.all_labels[self.n_own :]]))
        return self._and_generated(self.all_labels)

    def _and_generated(self, labels: np.ndarray, classes: list[str] | None = None) -> np.ndarray:
        """labels (N,) with those of generated images: what they were made as, -1 where they are not for training.

        classes: of a label file, of which those are where the source has none. Raises `UserError` where they are not.
        """
        if not self.n_generated:
            return labels
        behind, labels = slice(len(self) - self.n_generated, None), np.array(labels)
        made = self.all_labels[behind]
        if (theirs := self.meta["facts"].get(GENERATED_CLASSES)) is not None:
            where, ours = f"data.generated={self.settings.generated}", f"data={self.settings.source}"
            ours = ours if classes is None else f"data.labels={self.settings.labels}"
            made = np.array([*places(theirs, classes or [], where, ours), -1])[made]
        labels[behind] = np.where(self.codes[behind] == SPLITS.index("train"), made, -1)
        return labels

    @cached_property
    def classes(self) -> list[str]:
        """Names in label order: those of the source or, where it has none, of a label file; may be empty."""
        return self.own_classes if self.own_classes or self._labelling is None else self._labelling.classes

    @property
    def own_splits(self) -> np.ndarray:
        """int8 (N,): the split that the source itself names for each image, -1 where it names none."""
        return self._own

    @property
    def confidences(self) -> np.ndarray | None:
        """float32 (N,) in 0..1: how sure each label is, 1 where nothing is said, 0 without a label. None: no file."""
        return None if self._labelling is None else self._labelling.confidences

    @cached_property
    def _labelling(self) -> Labelling | None:
        """What the label file says, if it is one of classes."""
        if self.settings.labels is None or self._listed is not None:
            return None
        found = labelling_from(Path(self.settings.labels).expanduser(), self)
        labels, sure = self._and_generated(found.labels, found.classes), np.array(found.confidences)
        sure[len(self) - self.n_generated :] = labels[len(self) - self.n_generated :] >= 0
        return found._replace(labels=labels, confidences=sure)

    @cached_property
    def attributes(self) -> np.ndarray | None:
        """int8 (N, A), 1 yes, 0 no, -1 unknown: those of the data, or as a label file of attributes has them."""
        return self.all_attributes if self._listed is None else self._listed.values

    @property
    def attribute_names(self) -> list[str]:
        return self.all_attribute_names if self._listed is None else self._listed.names

    @property
    def lists_attributes(self) -> bool:
        """Whether `data.labels` is a file of attributes."""
        return self._listed is not None

    @cached_property
    def _listed(self) -> Listed | None:
        """What the label file says, if it is one of attributes."""
        path = None if self.settings.labels is None else Path(self.settings.labels).expanduser()
        return attributes_from(path, self) if path is not None and lists_attributes(path) else None

    @cached_property
    def training_hash(self) -> str:
        """`content_hash`, or another one where a label file, which may be edited, decides what is learned."""
        if self.settings.labels is None:
            return self.content_hash
        if self._labelling is not None:
            labels = np.ascontiguousarray(self.labels, np.int64).tobytes()
            labels += b"" if self._labelling.certain else self._labelling.confidences.tobytes()
            labels += b"" if self.own_classes else json.dumps(self.classes).encode()
        else:
            assert self._listed is not None
            labels = json.dumps(self._listed.names).encode() + self._listed.values.tobytes()
        return hashlib.sha256(self.content_hash.encode() + labels).hexdigest()

    @cached_property
    def hashes(self) -> np.ndarray:
        """uint64 (N, 2): of each image's pixels. A store that was packed without them gets them now."""
        path = self.folder / "hashes.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):
            hashes = np.load(path, allow_pickle=False)
            if hashes.shape == (len(self), 2) and hashes.dtype == np.uint64:
                return hashes
        hashes = image_hashes(self._pixels)
        self._keep(path, hashes)
        return hashes

    @cached_property
    def component(self) -> np.ndarray:
        """int64 (N,): the first row of what belongs together with each image: duplicates, and groups if there are."""
        return components(self.hashes, self.groups)

    @property
    def codes(self) -> np.ndarray:
        """The split of every image: int8 (N,), indices into ("train", "validation", "test")."""
        if self._codes is None:
            self._codes = self._stored_codes()
        return self._codes

    def batch(self, indices: np.ndarray | Sequence[int] | Tensor) -> Tensor:
        """Images at these rows: uint8 (B, C, H, W), a copy, on the CPU. Raises `IndexError` for rows there are not."""
        rows = np.asarray(indices, np.int64)
        if rows.size and rows.min() < 0:
            raise IndexError(f"row {rows.min()}")  # numpy would count from the end
        return torch.from_numpy(self._pixels[rows])

    def id(self, i: int) -> str:
        """Stable id of image i: its path within the folder, or file:row."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i}")
        start, end = self._id_offsets[i : i + 2]
        return self._id_bytes[start:end].tobytes().decode("utf-8", "surrogateescape")

    def _check_settings(self) -> None:
        """What is said of masks and points must be about some that are there."""
        masks, points = (self.masks, "masks", "mask_column"), (self.points, "key points", "points_column")
        about = {"mask_classes": masks, "mask_void": masks, "mask_flip_pairs": masks}
        about |= {"flip_pairs": points, "points_outside": points}
        for name, (array, kind, column) in about.items():
            if getattr(self.settings, name) is not None and array is None:
                what = f"the images of {self.settings.source} have no {kind}"
                raise UserError(f"data.{name}", what, f"leave it out, or say where they are: data.{column}=COLUMN")
        if self.points is not None and self.flip_pairs is not None:
            mirror_partners(self.points.shape[1], self.flip_pairs)
        if self.mask_flip_pairs:
            count, name = len(self.mask_classes) or VOID, "data.mask_flip_pairs"
            mirror_partners(count, self.mask_flip_pairs, name, "class")

    def _load(self, name: str) -> Any:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def _load_if_there(self, name: str) -> np.ndarray | None:
        return self._load(name) if (self.folder / f"{name}.npy").exists() else None

    def _damaged(self, reason: str) -> UserError:
        return UserError(str(self.folder), f"this packed store is damaged ({reason})", "delete it; it is packed again")

    def _stored_codes(self) -> np.ndarray:
        """The split these settings ask for, from its file or made now and kept."""
        path = self.folder / f"split-{split_key(self.settings)}.npy"
        try:
            codes = np.load(path, allow_pickle=False)
            if codes.shape == (len(self),):
                return codes
        except (OSError, ValueError, EOFError):
            pass  # not there yet, or cut short: made again below
        codes = assign(self._own, self.all_labels, self.settings, self.component, self.groups is not None)
        self._keep(path, codes)
        return codes

    def _keep(self, path: Path, array: np.ndarray) -> None:
        # a cache that is read-only or full is no reason to stop: the array is the same every time it is made
        with contextlib.suppress(OSError, UserError):
            atomic_file(path, lambda aside: _save(aside, array))

    def _why_empty(self, split: str) -> str:
        if split == "train":
            return "its files all belong to other splits; add a train split, or use split all"
        if getattr(self.settings, f"{split}_share") == 0:
            return f"data.{split}_share is 0; set it to hold images out"
        if self.n_groups == 1:
            return "all images belong to one group, which stays whole; leave data.group unset, or name another column"
        if self.groups is not None:
            return f"there are too few groups to hold any out; raise data.{split}_share, or leave data.group unset"
        return f"there are too few training images to hold any out; raise data.{split}_share or add images"


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would append .npy to a path
        np.save(file, array)


def _names(said: list[str] | int | None, array: np.ndarray | None) -> list[str]:
    """The names that a source gives its attributes or points, or their numbers."""
    if array is None:
        return []
    return list(said) if isinstance(said, list) else [str(i) for i in range(array.shape[1])]
