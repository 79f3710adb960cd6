"""What an experiment is about: the images, the labels that may be seen, and those that are only there to be compared.

Nothing that learns gets more than `labels`. `hidden` is asked for by whoever reports, and by nobody else.
"""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np

from ...data import Store, open_store
from ...errors import UserError, some
from ...networks.unet import resolutions_of
from ...settings.data import DataSettings
from ...settings.fewlabel import FewLabelSettings
from ...settings.network import UNetSettings

FEWEST = 2  # classes
LARGEST = 16  # pixels of a level that attends where a recipe does not say so
SHOWN = 30  # classes whose labels are counted in words


class Subject:
    """train, test: rows of the store; test may be empty. labels: int64 (train images,), -1 = none."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.train = store.indices("train")
        self.test = np.flatnonzero(store.codes == 2)
        self.labels = np.asarray(store.labels[self.train], np.int64)
        self.classes = list(store.classes)
        self._check()

    def _check(self) -> None:
        """Raises `UserError` where there is nothing to learn from, before anything is computed."""
        where = f"data={self.store.settings.source}"
        if len(self.classes) < FEWEST:
            hint = "give labels=FILE (id,class), or a folder with one sub-folder per class"
            raise UserError(where, f"has {len(self.classes)} classes, at least {FEWEST} are needed", hint)
        counts = np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes))
        lacking = [self.classes[i] for i in np.flatnonzero(counts == 0)]
        if lacking:
            what = f"no training image of {'class' if len(lacking) == 1 else 'classes'} {some(lacking)} is labelled"
            raise UserError(where, what, "label at least one image of every class")

    @cached_property
    def images_key(self) -> str:
        """A name of all pixels, in order; no label has a part in it."""
        rows = np.concatenate([self.train, self.test])
        pixels = np.ascontiguousarray(self.store.hashes[rows]).tobytes()
        facts = f"{self.store.shape} {len(self.train)} {len(self.test)}".encode()
        return hashlib.sha256(facts + pixels).hexdigest()

    @cached_property
    def labels_key(self) -> str:
        """A name of the labels that may be seen, and of the classes."""
        return hashlib.sha256(repr(self.classes).encode() + self.labels.tobytes()).hexdigest()

    @cached_property
    def hidden(self) -> np.ndarray:
        """int64 (train images,): all labels there are, for reports alone. -1 where nobody knows."""
        return np.asarray(self.store.all_labels[self.train], np.int64)

    @cached_property
    def truth(self) -> np.ndarray:
        """int64 (test images,): for reports alone."""
        return np.asarray(self.store.all_labels[self.test], np.int64)

    def in_words(self) -> str:
        """How many labelled training images each class has, for people to see a slip of the pen."""
        counts = self.counts()
        shown = [f"{name} {count}" for name, count in list(counts.items())[:SHOWN]]
        more = f" and {len(counts) - SHOWN} more classes" if len(counts) > SHOWN else ""
        return ", ".join(shown) + more

    def counts(self) -> dict[str, int]:
        """How many labelled training images each class has."""
        found = np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes))
        return {name: int(n) for name, n in zip(self.classes, found, strict=True)}


def complete(settings: FewLabelSettings) -> FewLabelSettings:
    """The settings with what the data decides: no image is held out unless somebody asked for it, or all have labels.

    Where labels are few, those that there are had better be learned from.
    """
    data = settings.data
    update: dict[str, float] = {}
    if "validation_share" not in data.model_fields_set:
        update["validation_share"] = 0.0
    if "test_share" not in data.model_fields_set and (data.labels is not None or _some_unlabelled(data)):
        update["test_share"] = 0.0
    return settings.model_copy(update={"data": data.model_copy(update=update)}) if update else settings


def fitted(settings: FewLabelSettings, shape: tuple[int, ...]) -> tuple[FewLabelSettings, str]:
    """The settings with a U-Net that attends where images of this shape (C, H, W) have a level, and what to tell of it.

    Recipes are made for images of one size. Of levels above 16 pixels none attends: that would take most of the time.
    """
    network = settings.diffusion.network
    if not isinstance(network, UNetSettings) or settings.diffusion.codec is not None or not network.attention:
        return settings, ""
    levels = resolutions_of(network, shape)
    if any(wanted in levels for wanted in network.attention):
        return settings, ""
    attention = (levels[-1],) if levels[-1] <= LARGEST else ()
    diffusion = settings.diffusion.model_copy(update={"network": network.model_copy(update={"attention": attention})})
    said = f"{levels[-1]}" if attention else "none"
    return (
        settings.model_copy(update={"diffusion": diffusion}),
        f"diffusion.network.attention={list(network.attention)} is made for other sizes: with these images, {said}",
    )


def _some_unlabelled(data: DataSettings) -> bool:
    """Whether the source itself has images that nobody labelled."""
    if data.labels_per_class is not None:
        return False
    return bool((open_store(data).all_labels < 0).any())
