"""What generated images are compared with; everything that can be wrong with a comparison is found out here, first."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.evaluate import EvaluateSettings

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..data import Store
    from ..denoiser import Classifier, Encoder

MOST_IMAGES = 20_000  # real images of a part that are measured,
MOST_BYTES = 2**28  # of which no more than this, as uint8


@dataclass(frozen=True)
class Yardstick:
    """What images are compared with: real ones (rows of the store, and the name of the held-out part), an encoder, and
    a classifier that judges them."""

    store: Store
    train: np.ndarray
    held_out: np.ndarray
    part: str
    encoder: Encoder
    judge: Classifier | None


def prepare(store: Store, settings: EvaluateSettings, device: torch.device) -> Yardstick:
    """Everything that a comparison needs besides the images. Raises `UserError` for whatever is missing."""
    from ..measure import check_fits, encoder
    from ..run import load

    classifier: Any = load(settings.classifier, device=device) if settings.classifier else None
    if classifier is not None:
        check_judge(classifier, store, f"classifier={settings.classifier}")
    chosen = encoder(check_fits(settings.encoder, store.shape), classifier)
    store.indices(settings.split)  # raises where it is empty
    train = part_of(store, "train")
    if len(train) < fewest():
        few = f"only {len(train)} training images"
        raise UserError(f"data={store.settings.source}", few, f"at least {fewest()}; hundreds mean something")
    part, held_out = held_out_of(store, fewest())
    return Yardstick(store, bounded(train, store), bounded(held_out, store), part, chosen, classifier)


def fewest() -> int:
    """Images of a kind that can be measured at all."""
    from ..measure.quality import NEIGHBOURS

    return NEIGHBOURS + 2


def check_judge(model: Any, store: Store, where: str) -> None:
    """Raises `UserError` unless this is a classifier of images of the store's shape."""
    from ..denoiser import Denoiser

    if isinstance(model, Denoiser):
        raise UserError(where, "holds a denoiser, not a classifier", "train one: twofold train digits-classifier")
    if tuple(model.shape) != tuple(store.shape):
        what = f"is for images of {by(model.shape)}, those of {store.name} are {by(store.shape)}"
        raise UserError(where, what, "train one on this data, or set data.size and data.channels")


def part_of(store: Store, split: str) -> np.ndarray:
    """The rows of a part, none where it is empty."""
    import numpy as np

    with contextlib.suppress(UserError):
        return store.indices(split)
    return np.empty(0, np.int64)


def held_out_of(store: Store, at_least: int) -> tuple[str, np.ndarray]:
    """("test", its rows), or those of the validation part where there are too few. Raises `UserError` for neither."""
    parts = {name: part_of(store, name) for name in ("test", "validation")}
    for name, rows in parts.items():
        if len(rows) >= at_least:
            return name, rows
    counts = " and ".join(f"{len(rows)} {name}" for name, rows in parts.items())
    hint = f"at least {at_least} of either; raise data.test_share or add images"
    raise UserError(f"data={store.settings.source}", f"holds out only {counts} images", hint)


def bounded(rows: np.ndarray, store: Store) -> np.ndarray:
    """Evenly thinned to what fits in memory easily."""
    import numpy as np

    from ..data import spread

    most = min(MOST_IMAGES, max(500, MOST_BYTES // int(np.prod(store.shape))))
    return rows[spread(len(rows), most)]


def check_images(
    shape: tuple[int, ...], names: Sequence[str], yardstick: Yardstick, settings: EvaluateSettings
) -> None:
    """Raises `UserError` where images of this shape and these classes cannot be compared with the real ones."""
    store, classifier = yardstick.store, yardstick.judge
    if tuple(shape) != tuple(store.shape):
        what = f"its images are {by(store.shape)}, the generated ones {by(shape)}"
        raise UserError(f"data={store.settings.source}", what, "set data.size and data.channels, or give other data")
    if classifier is None or not names:
        return
    known, where = list(classifier.classes), f"classifier={settings.classifier}"
    unnamed = list(names) == [str(k) for k in range(len(names))]
    if len(names) > len(known) or (not unnamed and list(names) != known):
        what = f"knows {short(known)}, the images were asked for as {short(names)}"
        raise UserError(where, what, "give a classifier of the same classes in the same order")


def by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def short(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} classes)" if len(names) > most else "")
