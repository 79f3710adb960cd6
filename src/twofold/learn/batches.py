"""Training batches: images and their random numbers, found by position and prepared ahead in a thread.

Position n of a run (the n-th image trained on) decides everything about itself: which image it is, its noise, its
noise level, its label dropout and its augmentation. So a batch can be made anywhere: on any rank, after any resume.

What belongs to an image (attributes, mask, points, a paired image) comes with it where it is asked for, mirrored when
the image is. Of a latent model come the stored moments in place of the images, where they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import SPLITS, Store, flip, image_order
from ..data.annotated import annotated_note, annotated_rows
from ..data.augment import flip_points, mirror_partners
from ..data.crop import CROP_DRAWS, crop
from ..data.latents import Latents
from ..data.order import shared_order
from ..draws import ImageDraws
from ..errors import UserError
from ..settings.selection import LABELLED as LABELLED_REWARDS
from ..settings.train import TrainSettings
from .classes import asks_attributes

# Columns of `Batch.uniforms`: one purpose each, so that switching one off leaves the others as they were.
U_SIGMA, U_LABEL, U_FLIP, U_AUGMENT = 0, 1, 2, 3


LABELLED = 1 << 40  # added to the seed of the order of labelled images

STAYS = ("uniforms", "confidence", "rows")  # fields that are never moved to a device

BELONGINGS = {"attributes": "attributes", "mask": "masks", "points": "points", "pair": "pairs"}  # {field: of the store}
ANNOTATIONS = ("mask", "points")  # those that `data.annotated` is about
TASKS = ("segmentation", "landmarks")  # objectives that learn from these


@dataclass
class Batch:
    """images uint8 (B, C, H, W), uniforms (B, k) float64, noise (shape of x0, or an autoencoder's latents) or None.

    label: (B,) int64, -1 = none; of several labels (B, A) int64 in 0, 1, -1 = unknown.
    None unless they were asked for: attributes int8 (B, A) in 0, 1, -1; mask uint8 (B, H, W), 255 = void; points
    float32 (B, P, 2), x and y in pixels, NaN = not there; pair uint8 (B, C2, H, W); confidence (B,) float32, how sure
    each label is; labelled: B further images for a classifier alone, of which those with a label count (the others are
    copies, and there to keep positions together). Of a latent model: moments float16 (B, 2D, h, w), in place of images,
    which are (B, 0) then; posterior, the noise (B, D, h, w) of a draw from the posterior. rows: int64 (B,), which
    images of the store they are; on the CPU.
    """

    images: Tensor
    label: Tensor
    uniforms: Tensor
    noise: Tensor | None
    attributes: Tensor | None = None
    mask: Tensor | None = None
    points: Tensor | None = None
    pair: Tensor | None = None
    confidence: Tensor | None = None
    moments: Tensor | None = None
    posterior: Tensor | None = None
    rows: Tensor | None = None
    labelled: Batch | None = None

    def to(self, device: torch.device) -> Batch:
        """All but the uniforms on `device`; these stay on the CPU, where they become float64 sigmas.

        So does the confidence, with which one of them is compared.
        """
        if device.type == "cpu":
            return self

        def moved(tensor: Tensor, name: str) -> Tensor:
            large = name not in ("label", "attributes", "points")
            return (tensor.pin_memory() if large else tensor).to(device, non_blocking=True)

        return self._each(lambda tensor, name: tensor if name in STAYS else moved(tensor, name))

    def split(self, size: int) -> Iterator[Batch]:
        """Micro-batches of at most `size` images."""
        for start in range(0, len(self.images), size):
            part = slice(start, start + size)
            yield self._each(lambda tensor, _, part=part: tensor[part])  # type: ignore[misc]

    def _each(self, change: Callable[[Tensor, str], Tensor]) -> Batch:
        """A batch of changed tensors; what is None stays None."""
        found: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        inner = found.pop("labelled")
        changed: dict[str, Any] = {
            name: None if tensor is None else change(tensor, name) for name, tensor in found.items()
        }
        return Batch(**changed, labelled=inner and inner._each(change))


def labels_of(store: Store, rows: np.ndarray, several: bool = False) -> Tensor:
    """The labels of these rows as `Batch.label`. several: the attributes, of a store that has them."""
    if several and store.attributes is not None:
        return torch.from_numpy(store.attributes[rows].astype(np.int64))
    return torch.from_numpy(np.asarray(store.labels[rows], dtype=np.int64))


def known_rows(store: Store, rows: np.ndarray, several: bool = False) -> np.ndarray:
    """Those of these rows of which a label is known."""
    known = labels_of(store, rows, several) >= 0
    return rows[(known.any(1) if known.ndim == 2 else known).numpy()]


def labelled_rows(store: Store, rows: np.ndarray, several: bool = False) -> np.ndarray:
    """Those of these rows of which a label is known. Raises `UserError` where there is none."""
    found = known_rows(store, rows, several)
    if not len(found):
        raise UserError(f"data={store.settings.source}", "no training image is labelled", "label some of each class")
    return found


def asks_confidence(settings: TrainSettings) -> bool:
    """Whether it matters how sure a label is: to a conditional denoiser that heeds it."""
    rule = getattr(settings.objective, "label_confidence", "ignore")
    return rule != "ignore" and bool(settings.network.classes)


def trained_rows(settings: TrainSettings, store: Store) -> np.ndarray:
    """Rows of the images that batches are of: of the training part all, or with `labelled_only` those with a label."""
    rows = store.indices("train")
    if not getattr(settings.objective, "labelled_only", False):
        return rows
    return labelled_rows(store, rows, asks_attributes(settings, store))


def labelled_note(settings: TrainSettings, store: Store, rows: np.ndarray) -> str:
    """` (35 labelled)` where labels are learned and not all of these rows have one; or that none is ever dropped.

    ` (annotated, of 367)` where masks or points are learned, and these are the images whose own are.
    """
    if settings.objective.kind in TASKS:
        return annotated_note(store, rows)
    known = len(known_rows(store, rows, asks_attributes(settings, store)))
    learned = settings.objective.kind != "denoising" or bool(settings.network.classes)
    if settings.objective.kind == "distill":
        learned = getattr(settings.objective.sigma, "reward", None) in LABELLED_REWARDS
    trained = (store.codes[rows] == SPLITS.index("train")).any()
    if learned and known < len(rows):
        beside = trained and store.n_generated and rows[-1] < len(store) - store.n_generated
        return f" ({known:,} labelled" + (f", and {store.n_generated:,} generated beside them)" if beside else ")")
    rule, certain = getattr(settings.objective, "label_confidence", "ignore"), store.confidences
    if learned and rule == "published" and trained and certain is not None and (certain[rows] == 1).all():
        return " (every label is certain, so none is ever dropped: guidance will have nothing to start from)"
    return ""


def belongings_of(store: Store, rows: np.ndarray, names: Sequence[str]) -> dict[str, Tensor]:
    """{field of `Batch`: what belongs to the images at these rows}. Raises `UserError` where a store has none of it."""
    out = {}
    for name in names:
        array = getattr(store, BELONGINGS[name])
        if array is None:
            raise UserError(f"data={store.settings.source}", f"its images have no {name}", "give data that have it")
        out[name] = torch.from_numpy(np.ascontiguousarray(array[rows]))
    return out


def learned_rows(store: Store, rows: np.ndarray, belongings: Sequence[str]) -> np.ndarray:
    """Those of these rows that may be learned from: where masks or points are needed, those of which they are known."""
    return annotated_rows(store, rows) if set(belongings) & set(ANNOTATIONS) else rows


class Batches:
    """Makes the batch of any range of positions.

    rows: the rows of the store to train on. uniforms: how many an image needs. noise: whether it needs noise.
    flip: whether images are mirrored at random. belongings: fields of `Batch` that are wanted, of `BELONGINGS`.
    Of the store's settings, `balance` and `crop_area` are heeded.
    Where masks or points are, only images are trained on whose own may be learned from, see `Store.annotated_rows`.
    several: whether an image's label is all its attributes.
    labelled_every: every so many positions an image of the labelled ones comes besides, in an order of its own (as
    `Batch.labelled`); 0: none do. further: as in `Objective`. confidence: whether it is wanted; raises `UserError`
    where no label file can say it. x0_shape: of the noise, where it is not that of the images; latents: moments that
    come in place of images; posterior: whether noise for a draw from the posterior comes too, the last of an image's
    random numbers but for its crop's. real: whether generated images come among the labelled ones alone; real_share:
    share of these that is real, None: as many as there are.
    """

    def __init__(
        self,
        store: Store,
        rows: np.ndarray,
        seed: int,
        uniforms: int,
        noise: bool,
        flip: bool,
        belongings: Sequence[str] = (),
        several: bool = False,
        labelled_every: int = 0,
        further: int = 0,
        confidence: bool = False,
        x0_shape: tuple[int, int, int] | None = None,
        latents: Latents | None = None,
        posterior: bool = False,
        real: bool = False,
        real_share: float | None = None,
    ) -> None:
        belongings_of(store, rows[:1], belongings)
        self.crop_area = store.settings.crop_area
        if self.crop_area != (1.0, 1.0) and set(belongings) & {*ANNOTATIONS, "pair"}:
            hint = "use objective.warp, which moves both"
            raise UserError("data.crop_area", "crops images alone, not the mask, points or pair beside them", hint)
        rows = learned_rows(store, rows, belongings)
        every, first = rows, len(store) - store.n_generated
        rows = rows[rows < first] if real else rows
        self.store, self.rows, self.seed = store, rows, seed
        self.uniforms, self.noise, self.flip, self.further = uniforms, noise, flip, further
        self.belongings, self.several = tuple(belongings), several
        self.x0_shape, self.latents, self.posterior = x0_shape or store.shape, latents, posterior
        self.confidence = store.confidences if confidence else None
        if confidence and self.confidence is None:
            what = "no label file says how sure a label is"
            raise UserError("objective.label_confidence", what, "give data.labels=FILE with a column confidence")
        self._partner = self._mirror_partners() if flip and "points" in belongings else None
        self._classes = mirror_partners(256, store.mask_flip_pairs).to(torch.uint8)
        balance = store.settings.balance
        if balance and not store.classes:
            raise UserError(f"data.balance={balance:g}", "the data has no classes", "leave it at 0")
        self.order = image_order(np.asarray(store.labels[rows]) if balance else rows, seed, balance)
        self._draws = ImageDraws("train")
        self.labelled_every = labelled_every
        if labelled_every:
            self._labelled = labelled_rows(store, every, several)
            own = int((self._labelled < first).sum())
            self._labelled_order = shared_order(len(self._labelled), own, seed + LABELLED, real_share)

    def labels_at(self, start: int, stop: int) -> Tensor:
        """What a classifier is told at positions start..stop-1, as `Batch.label` (or that of `Batch.labelled`)."""
        if not self.labelled_every:
            return labels_of(self.store, self.rows_at(start, stop), self.several)
        return self._further(start, stop)[1]

    def _further(self, start: int, stop: int) -> tuple[np.ndarray, Tensor]:
        """Rows of the labelled images that come besides, and their labels: -1 at positions without one."""
        at = np.arange(start, stop)
        rows = self._labelled[self._labelled_order(at // self.labelled_every)]
        label = labels_of(self.store, rows, self.several)
        label[torch.from_numpy(at % self.labelled_every != 0)] = -1
        return rows, label

    def rows_at(self, start: int, stop: int) -> np.ndarray:
        """Store rows of positions start..stop-1."""
        return self.rows[self.order(np.arange(start, stop))]

    def make(self, start: int, stop: int) -> Batch:
        """The batch of positions start..stop-1."""
        rows = self.rows_at(start, stop)
        batch = self._of_rows(rows, labels_of(self.store, rows, self.several), start)
        if self.labelled_every:
            batch.labelled = self._of_rows(*self._further(start, stop), start, draw=1)
        return batch

    def _of_rows(self, rows: np.ndarray, label: Tensor, start: int, draw: int = 0) -> Batch:
        """The batch of these rows, with the numbers of positions from `start` on."""
        uniforms = np.empty((len(rows), self.uniforms))
        noise = np.empty((len(rows), *self.x0_shape), np.float32) if self.noise else None
        posterior = np.empty((len(rows), *self.x0_shape), np.float32) if self.posterior else None
        places = np.empty((len(rows), CROP_DRAWS)) if self.crop_area != (1.0, 1.0) else None
        for i in range(len(rows)):
            draws = self._draws(self.seed, start + i, draw)
            draws.random(out=uniforms[i, : self.uniforms - self.further])
            if noise is not None:
                draws.standard_normal(out=noise[i], dtype=np.float32)
            draws.random(out=uniforms[i, self.uniforms - self.further :])
            if posterior is not None:
                draws.standard_normal(out=posterior[i], dtype=np.float32)
            if places is not None:  # drawn last: what comes before is as it would be without them
                draws.random(out=places[i])
        images = self.store.batch(rows) if self.latents is None else torch.empty((len(rows), 0), dtype=torch.uint8)
        if places is not None and self.latents is None:
            images = crop(images, torch.from_numpy(places), self.crop_area)
        more: dict[str, Any] = belongings_of(self.store, rows, self.belongings)
        if self.flip:
            u = torch.from_numpy(uniforms[:, U_FLIP])
            images = flip(images, u) if self.latents is None else images
            more = {name: self._flipped(name, tensor, u) for name, tensor in more.items()}
        if self.latents is not None:
            more["moments"] = self.latents(rows, uniforms[:, U_FLIP] < 0.5 if self.flip else None)
        if posterior is not None:
            more["posterior"] = torch.from_numpy(posterior)
        more["rows"] = torch.from_numpy(np.asarray(rows, np.int64))
        if self.confidence is not None:
            more["confidence"] = torch.from_numpy(self.confidence[rows])
        return Batch(
            images, label, torch.from_numpy(uniforms), None if noise is None else torch.from_numpy(noise), **more
        )

    def _flipped(self, name: str, tensor: Tensor, u: Tensor) -> Tensor:
        """What belongs to images that are mirrored where u < 1/2."""
        if name == "points":
            assert self._partner is not None
            return flip_points(tensor, u, self.store.shape[2], self._partner)
        if name == "mask" and self.store.mask_flip_pairs:  # left and right parts
            tensor = torch.where((u < 0.5)[:, None, None], self._classes[tensor.long()], tensor)
        return tensor if name == "attributes" else flip(tensor, u)

    def _mirror_partners(self) -> Tensor:
        if self.store.flip_pairs is None:
            raise UserError(
                "data.flip=true",
                "the points that a mirror exchanges (left and right eye) are not known",
                "list them, data.flip_pairs=[[0,1],...] or [] if there are none, or leave data.flip unset",
            )
        return mirror_partners(len(self.store.point_names), self.store.flip_pairs)

    def stream(self, start: int, batch_size: int, rank: int, world: int) -> Iterator[Batch]:
        """This rank's share of each global batch from position `start` on, without end; two are made ahead."""
        share = batch_size // world
        with ThreadPoolExecutor(1) as pool:
            position = start + rank * share

            def submit():  # type: ignore[no-untyped-def]
                nonlocal position
                future = pool.submit(self.make, position, position + share)
                position += batch_size
                return future

            ahead = [submit(), submit()]
            while True:
                batch = ahead.pop(0).result()
                ahead.append(submit())
                yield batch


def training_batches(
    settings: TrainSettings,
    store: Store,
    uniforms: int,
    noise: bool,
    further: int,
    x0_shape: tuple[int, int, int] | None = None,
    latents: Latents | None = None,
    belongings: Sequence[str] = (),
) -> Batches:
    """Those of a run. uniforms, noise, further, belongings: what its objective needs; the others: see `Batches`."""
    besides, real_share = (getattr(settings.objective, name, None) for name in ("labelled_batch", "real_share"))
    return Batches(
        store,
        trained_rows(settings, store),
        settings.train.seed,
        uniforms,
        noise,
        settings.data.flip,
        belongings,
        several=asks_attributes(settings, store),
        labelled_every=settings.train.batch_size // besides if besides else 0,
        further=further,
        confidence=asks_confidence(settings),
        x0_shape=x0_shape,
        latents=latents,
        posterior=settings.codec is not None and settings.codec.sample,
        real=settings.objective.kind == "freematch",
        real_share=real_share,
    )
