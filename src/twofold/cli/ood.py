"""How well a model tells images of another kind from those it knows, and what a joint model answers beside its images.

Everything that can be wrong is found out by `prepare_beside`, before any image is sampled or measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.evaluate import EvaluateSettings
from .answered import judge, rows_of, truth_of
from .show import Progress, say
from .yardstick import by, full_precision, part_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..data import Store

FEWEST = 100  # images that the test part of the other kind must hold; else all of them are taken
KNOWN = 200  # training images that say how large denoising errors usually are


@dataclass(frozen=True)
class Beside:
    """What is measured of a model besides its images. classifier: it, or the one that a joint model is, None if it
    answers nothing, and why in `note`. store: its own kind of images. others: another kind, None if none was named."""

    model: Any
    classifier: Any
    store: Store | None
    others: Store | None
    note: str = ""

    @property
    def joint(self) -> bool:
        """Whether there are answers to measure that are not the model's only purpose."""
        return self.classifier is not None and self.classifier is not self.model and not self.note

    @property
    def asked(self) -> bool:
        """Whether there is anything to measure."""
        return self.joint or self.others is not None

    def add_to(self, found: dict[str, Any], settings: EvaluateSettings, quiet: bool) -> None:
        """Puts what `measure` finds into an evaluation, and why there are no answers into its notes."""
        say("measuring answers ...", quiet or not self.asked)
        found |= self.measure(settings, quiet)
        if self.note:
            found["notes"] = [*found.get("notes", ()), self.note]

    def measure(self, settings: EvaluateSettings, quiet: bool) -> dict[str, Any]:
        """{"answers", "ood"}, of what there is; in full precision."""
        if self.store is None:
            return {}
        with full_precision(self.model):
            found = {"answers": judge(self.classifier, self.store, settings, quiet)} if self.joint else {}
            return found | (told_apart(self, settings, quiet) if self.others is not None else {})


def prepare_beside(model: Any, store: Store | None, settings: EvaluateSettings, quiet: bool) -> Beside:
    """Raises `UserError` for noise levels that the model does not know, and another kind of images that cannot be
    compared. A joint model whose answers these data cannot judge says so in `note`."""
    from ..denoiser import JointDenoiser
    from ..recognize.classifier import answering
    from ..recognize.noise_curve import levels_of

    classifier, note = answering(model), ""
    if isinstance(model, JointDenoiser):
        levels_of(classifier, settings.noise_levels)
        if store is None:
            note = "no data=SOURCE"
        else:
            try:
                truth_of(classifier, store, rows_of(store, settings)[1])
            except UserError as error:
                note = f"{error.where} {error.what}"
    others = None
    if settings.ood is not None:
        if store is None:
            raise UserError("data", "not given, and the model comes from no run that knows its data", "add data=SOURCE")
        rows_of(store, settings)  # raises where none is held out
        others = other_kind(model, classifier, store, settings, quiet)
    return Beside(model, classifier, store, others, note and f"answers are left out: {note}")


def other_kind(model: Any, classifier: Any, store: Store, settings: EvaluateSettings, quiet: bool) -> Store:
    """The images of `ood`, brought to the shape of the model's own as these were; unreadable ones are left out."""
    from ..data import open_store
    from ..generate.sample import image_shape
    from ..settings.data import DataSettings

    shape = tuple(classifier.shape) if classifier is not None else image_shape(model)
    if tuple(store.shape) != shape:
        what = f"its images are {by(store.shape)}, the model knows {by(shape)}"
        raise UserError(f"data={store.settings.source}", what, "set data.size and data.channels, or give other data")
    own = store.settings
    how = {"fit": own.fit, "background": own.background, "on_bad_image": "skip"}
    data = DataSettings.model_validate({"source": settings.ood, "size": shape[1:], "channels": shape[0], **how})
    try:
        with Progress("packing the images of another kind", quiet=True) as packing:
            packing.quiet = quiet
            return open_store(data, packing)
    except UserError as error:
        where = error.where.replace(f"data={settings.ood}", f"ood={settings.ood}")
        raise UserError(where, error.what, error.hint) from error


def told_apart(beside: Beside, settings: EvaluateSettings, quiet: bool) -> dict[str, Any]:
    """{"ood": ...}: each score's separation of held-out images of the model's own kind from those of the other."""
    from ..data import spread
    from ..denoiser import Denoiser
    from ..measure.encoders import image_logits
    from ..recognize.strangeness import BY_DENOISING, by_answers, by_denoising

    store, others, model = beside.store, beside.others, beside.model
    assert store is not None and others is not None
    split, own = rows_of(store, settings)
    part, foreign = others_part(others)
    inside, outside = (
        kind.batch(rows[spread(len(rows), settings.ood_images)]) for kind, rows in ((store, own), (others, foreign))
    )
    found: dict[str, Any] = {}
    if beside.classifier is not None:
        several = bool(getattr(beside.classifier, "multi_label", False))
        known, strange = (by_answers(image_logits(beside.classifier, x), several) for x in (inside, outside))
        found |= {name: row_of(name, known[name], strange[name]) for name in known}
    denoiser = model if isinstance(model, Denoiser) else getattr(model, "denoiser", None)
    if denoiser is not None:
        train = part_of(store, "train")
        usual = store.batch(train[spread(len(train), KNOWN)]) if len(train) > 1 else inside
        with Progress("denoising images of both kinds", quiet) as progress:
            errors = by_denoising(denoiser, usual, (inside, outside), settings.micro_batch, progress)
        found[BY_DENOISING] = row_of(BY_DENOISING, *errors)
    bad = len(others.meta["bad_images"])
    notes = [f"unreadable images of {others.name}, left out: {bad:,}"] if bad else []
    if others.content_hash == store.content_hash:
        notes.append("these are the model's own data: 0.5 is all there can be")
    return {
        "ood": {
            "source": settings.ood,
            "own": {"name": store.name, "split": split, "images": len(inside)},
            "other": {"name": others.name, "split": part, "images": len(outside), "hash": others.content_hash},
            "scores": found,
            "notes": notes,
        }
    }


def others_part(others: Store) -> tuple[str, np.ndarray]:
    """The other kind's held-out images, or all where these are few: a model may have seen the others without labels."""
    rows = part_of(others, "test")
    return ("test", rows) if len(rows) >= FEWEST else ("all", others.indices("all"))


def row_of(score: str, inside: Tensor, outside: Tensor) -> dict[str, Any]:
    from ..measure.separation import histogram, separation
    from ..recognize.strangeness import LOGARITHMIC

    log = score in LOGARITHMIC
    return {**separation(inside, outside), "histogram": histogram(inside, outside, logarithmic=log), "log": log}


def print_told_apart(found: Mapping[str, Any]) -> None:
    """One line a score."""
    own, other = found["own"], found["other"]
    print(f"{'other kinds of images':28}{'AUROC':>12}{'FPR95':>12}{'AUPR':>12}")
    for name, row in found["scores"].items():
        interval = f"   [{row['low']:.4f}, {row['high']:.4f}] (95 %)"
        print(f"{name:28}{row['auroc']:12.4f}{row['fpr95']:12.4f}{row['aupr']:12.4f}{interval}")
    chance = other["images"] / (own["images"] + other["images"])
    print(
        f"{own['images']} images of {own['name']} ({own['split']}) and {other['images']} of {other['name']} "
        f"({other['split']}); FPR95: share of the others that pass where 95 % of its own do; AUPR by chance "
        f"{chance:.4f}"
    )
    for note in found["notes"]:
        print(note)
