"""Bits per dimension of held-out images beside the other figures of `twofold evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.evaluate import EvaluateSettings
from .show import Progress

if TYPE_CHECKING:
    import numpy as np

    from ..data import Store

OPTIONS = ("likelihood_images", "likelihood_steps", "likelihood_evaluations", "likelihood_draws", "likelihood_labels")
OF_LIKELIHOOD = ("likelihood", *OPTIONS)
OF_ONE = {"likelihood_evaluations": "bound", "likelihood_draws": "ode"}


@dataclass(frozen=True)
class HeldOut:
    """The images whose bits are counted: rows of a store, and the name of their part."""

    store: Store
    part: str
    rows: np.ndarray


def check_options(settings: EvaluateSettings) -> None:
    """Raises `UserError` for settings of a likelihood that mean nothing without one, or to this one."""
    given = [name for name in OPTIONS if name in settings.model_fields_set]
    if settings.likelihood is None and given:
        raise UserError(", ".join(given), "no likelihood is asked for", "add likelihood=bound or likelihood=ode")
    for name in given:
        kind = OF_ONE.get(name, settings.likelihood)
        if kind != settings.likelihood:
            raise UserError(name, f"means nothing to likelihood={settings.likelihood}", f"use likelihood={kind}")


def prepare_likelihood(
    source: str, model: Any, settings: EvaluateSettings, opened: Callable[[], Store]
) -> HeldOut | None:
    """The images to count bits of, None where no likelihood is asked for; before anything is sampled.

    opened: opens the store of the model's images. Raises `UserError` for what has no bits per pixel, classifiers and
    models of latents, and for data that the model does not fit.
    """
    check_options(settings)
    if settings.likelihood is None:
        return None
    from ..data import spread
    from ..denoiser import Denoiser
    from ..recognize.likelihood import check_pixels
    from .yardstick import by, held_out_of

    where = f"likelihood={settings.likelihood}"
    if not isinstance(model, Denoiser):
        raise UserError(where, f"{source} is a classifier: it has no density of images", "give a denoiser")
    check_pixels(model)
    store = opened()
    if tuple(store.shape) != tuple(model.shape):
        what = f"its images are {by(store.shape)}, those of {source} {by(model.shape)}"
        raise UserError(f"data={store.settings.source}", what, "set data.size and data.channels, or give other data")
    if settings.likelihood_labels and not model.classes:
        raise UserError("likelihood_labels=true", f"{source} is unconditional", "leave likelihood_labels out")
    part, rows = held_out_of(store, 2)
    return HeldOut(store, part, rows[spread(len(rows), settings.likelihood_images)])


def measure_likelihood(model: Any, held_out: HeldOut, settings: EvaluateSettings, quiet: bool) -> dict[str, Any]:
    """{"likelihood": ...} of a result, as plain data: bits per dimension with a 95 % interval over images. Processes of
    a torchrun share the images; all have to come here. In full precision: bits add up what rounding leaves of them."""
    from ..recognize.likelihood import bits_per_dimension
    from .yardstick import full_precision

    labels = None
    if settings.likelihood_labels:
        labels = own_labels(model, held_out)
    with full_precision(model), Progress("bits per dimension", quiet) as progress:
        found = bits_per_dimension(
            model,
            held_out.store.batch(held_out.rows),
            str(settings.likelihood),
            settings.likelihood_steps,
            settings.likelihood_evaluations,
            draws=settings.likelihood_draws,
            labels=labels,
            micro_batch=settings.micro_batch,
            progress=progress,
            share=True,
        )
    low, high = found.interval()
    value = {"bits_per_dimension": found.mean, "low": low, "high": high, "standard_error": found.standard_error}
    counted = {"images": len(held_out.rows), "split": held_out.part}
    parts = {name: float(part.mean()) for name, part in found.parts.items()}
    about = {"name": held_out.store.name, "hash": held_out.store.content_hash}
    return {"likelihood": value | counted | found.facts | {"parts": parts, "levels": found.levels, "data": about}}


def own_labels(model: Any, held_out: HeldOut) -> list[int]:
    """Of the held-out images, -1 where there is none. Raises `UserError` where the model has other classes."""
    names, ours = list(held_out.store.classes), list(model.class_names)
    if len(names) != model.classes or (ours and names != ours):
        what = f"its {len(names)} classes are not the {model.classes} of the model"
        raise UserError(f"data={held_out.store.settings.source}", what, "leave likelihood_labels out")
    return [int(label) for label in held_out.store.labels[held_out.rows]]


def print_likelihood(found: dict[str, Any]) -> None:
    """One row, and how it came about."""
    low, high = f"{found['low']:.4f}", f"{found['high']:.4f}"
    print(f"{'bits_per_dimension':28}{found['bits_per_dimension']:12.4f}   [{low}, {high}] (95 %)")
    images = f"on {found['images']:,} images of the {found['split']} part"
    if found["labels"]:
        images += ", given their labels"
    calls = f"{found['evaluations']:,} evaluations an image"
    if found["method"] == "ode":
        way = f"along the ODE, {found['steps']:,} steps of {found['solver']}, {found['draws']} x uniform noise"
        print(f"{way}, {calls}, {images}")
        return
    parts = ", ".join(f"{name} {value:.4f}" for name, value in found["parts"].items())
    drawn = "all" if found["evaluations"] == found["steps"] else "drawn"
    print(f"bound: {parts}; {found['steps']:,} levels, {drawn}: {calls}, {images}")
