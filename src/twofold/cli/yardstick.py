"""What generated images are compared with; everything that can be wrong with a comparison is found out here, first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError, some
from ..settings.evaluate import EvaluateSettings

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..data import Store
    from ..denoiser import Classifier, Encoder
    from ..measure.statfile import StatisticsFile

MOST_IMAGES = 20_000  # real images of a part that are measured,
MOST_BYTES = 2**28  # of which no more than this, as uint8


@contextlib.contextmanager
def full_precision(model: Any) -> Iterator[None]:
    """Within the block a model computes in its weights' own precision, whatever images were sampled in."""
    before = getattr(model, "autocast", None)
    model.autocast = None
    try:
        yield
    finally:
        model.autocast = before


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


def prepare(
    store: Store, settings: EvaluateSettings, device: torch.device, file: StatisticsFile | None = None
) -> Yardstick:
    """Everything that a comparison needs besides the images. Raises `UserError` for whatever is missing.

    file: statistics that are compared with as well; they must be of this data and of the encoder asked for.
    """
    classifier = judge_of(settings, store, device)
    chosen = named(settings, store.shape, device, file, classifier, store.content_hash)
    store.indices(settings.split)  # raises where it is empty
    train = part_of(store, "train")
    if len(train) < fewest():
        few = f"only {len(train)} training images"
        raise UserError(f"data={store.settings.source}", few, f"at least {fewest()}; hundreds mean something")
    part, held_out = held_out_of(store, fewest())
    return Yardstick(store, bounded(train, store), bounded(held_out, store), part, chosen, classifier)


def named(
    settings: EvaluateSettings,
    shape: tuple[int, ...],
    device: torch.device,
    file: StatisticsFile | None = None,
    classifier: Classifier | None = None,
    data_hash: str | None = None,
) -> Encoder:
    """The encoder that the settings name, for images of this shape (C, H, W); "auto" with a statistics file: the one
    that made it, which is Inception where it tells none. Raises `UserError` where it cannot be, has not the metrics
    asked for, or is not the one of the file.
    """
    import torch

    from ..measure import check_fits, encoder
    from ..measure.statfile import check_statistics

    name = settings.encoder
    if file is not None and name == "auto":
        told = str(file.about.get("encoder", "inception"))
        name = "inception" if told.startswith("inception") else told
        if name not in ("inception", "convnet") and not name.startswith("pixels"):
            what = f"was made with encoder {told}, a pretrained model"
            raise UserError(f"reference={file.path}", what, f"say where it is: encoder=transformers:ORG/{told}")
    chosen = encoder(check_fits(name, tuple(shape)), classifier, settings.weights, device)  # type: ignore[arg-type]
    further(settings, chosen)  # raises where the encoder has no such metric
    if file is not None:
        dims = chosen.embed(torch.zeros((1, *shape), dtype=torch.uint8)).shape[1]
        check_statistics(file, chosen, dims, data_hash)
        if file.images is not None and chosen.embed(file.images[:1]).shape[1] != dims:
            what = f"its images are {by(file.images.shape[1:])}, the generated ones {by(shape)}"
            raise UserError(f"reference={file.path}", what, f"encoder {chosen.name} tells them apart; use another")
    return chosen


def further(settings: EvaluateSettings, encoder: Any) -> tuple[str, ...]:
    """The metrics asked for besides those that are always there, or what is usual for the encoder.

    Raises `UserError` for those that only FID's network has.
    """
    inception = hasattr(encoder, "spatial")
    if settings.metrics is None:
        usual = ("kid", "coverage") if hasattr(encoder, "transform") else ()
        return (*usual, "inception_score") if inception else usual
    foreign = [name for name in settings.metrics if name in ("sfid", "inception_score")]
    if foreign and not inception:
        raise UserError(f"metrics: {foreign[0]}", f"encoder {encoder.name} has none", "use encoder=inception")
    if "sfid" in settings.metrics:
        encoder.spatial()  # raises for a script
    return settings.metrics


def fewest() -> int:
    """Images of a kind that can be measured at all."""
    from ..measure.quality import NEIGHBOURS

    return NEIGHBOURS + 2


def judge_of(settings: EvaluateSettings, store: Store, device: torch.device) -> Any:
    """The classifier that the settings name (a joint model is one), None if they name none. Raises `UserError` where it
    cannot judge."""
    from ..recognize.classifier import answering
    from ..run import load_to_use

    if settings.classifier is None:
        return None
    where, model = f"classifier={settings.classifier}", load_to_use(settings.classifier, device=device)
    classifier = answering(model) or model
    check_judge(classifier, store, where)
    if getattr(classifier, "multi_label", False):
        raise UserError(where, "answers a question about each attribute by itself", "give one that names one class")
    return classifier


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

    store.check_groups()
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
    known, where = list(classifier.class_names), f"classifier={settings.classifier}"
    unnamed = list(names) == [str(k) for k in range(len(names))]
    if len(names) > len(known) or (not unnamed and list(names) != known):
        what = f"knows {some(known)}, the images were asked for as {some(names)}"
        raise UserError(where, what, "give a classifier of the same classes in the same order")


def by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
