"""A classifier as a guide of a denoiser: whether the two fit is found out before any image is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import Classifier, Denoiser
from ..errors import UserError, nearest
from ..noise import RANGE_TOLERANCE
from .guidance import check_interval, check_scale, class_gradient


@dataclass(frozen=True)
class Guide:
    """A classifier that was found to fit a denoiser, and how it guides. Made by `make_guide`.

    scale, interval: as in `classifier_guided`. index: the classifier's class of every label that images may have.
    """

    classifier: Classifier
    scale: float
    interval: tuple[float, float] | None
    index: tuple[int, ...]

    def labels(self, label: Tensor) -> Tensor:
        """The classifier's classes (B,) int64 of the denoiser's labels; -1 stays -1."""
        return torch.tensor([*self.index, -1], device=label.device)[label]


def make_guide(
    denoiser: Denoiser,
    classifier: Any,
    scale: float = 1.0,
    interval: tuple[float, float] | None = None,
    sigmas: Tensor | Sequence[float] = (),
) -> Guide:
    """The guide that a classifier is for a denoiser sampled on this grid (N + 1,), of which the last is not asked.

    interval: where it guides, low < sigma <= high; default: wherever the classifier knows the grid's noise levels.
    Raises `UserError` for what is no classifier, or one of other images or classes, or one that refuses noise.
    """
    _check_kind(denoiser, classifier)
    check_scale(scale)
    check_interval(interval, "guide_interval")
    levels = [float(sigma) for sigma in sigmas][:-1] or list(denoiser.sigma_range)
    interval = _interval(getattr(classifier, "sigma_range", None), levels, interval)
    asked = [s for s in levels if interval is None or interval[0] < s <= interval[1]]
    if not asked:
        what = f"none of the sampler's noise levels, {min(levels):.4g} to {max(levels):.4g}, is one the guide acts at"
        raise UserError("guide_interval", what, "give a wider one")
    for sigma in {max(asked), min(asked)}:
        _check_hears_noise(denoiser, classifier, sigma)
    return Guide(classifier, float(scale), interval, match_classes(denoiser, classifier.class_names))


def match_classes(denoiser: Denoiser, classes: Sequence[str], where: str = "guide") -> tuple[int, ...]:
    """The place in `classes` of every label of the denoiser: by name where both have names, by number otherwise.

    classes: of a classifier, or of data; `where` names it. An unconditional denoiser takes them as they are. Raises
    `UserError` for a class of the denoiser that is not among them.
    """
    known, own = list(classes), list(denoiser.class_names)
    if not denoiser.classes:
        return tuple(range(len(known)))
    named = len(own) == denoiser.classes and not _only_numbers(own) and not _only_numbers(known)
    if not named:
        if len(known) != denoiser.classes:
            what = f"knows {len(known)} classes, the model {denoiser.classes}"
            raise UserError(where, what, "give one of the same classes")
        return tuple(range(len(known)))
    for name in own:
        if name not in known:
            raise UserError(where, f"does not know the model's class {name!r}", nearest(name, known))
    return tuple(known.index(name) for name in own)


def _only_numbers(names: Sequence[str]) -> bool:
    return list(names) == [str(k) for k in range(len(names))]


def _check_kind(denoiser: Denoiser, classifier: Any) -> None:
    if isinstance(classifier, Denoiser) or not hasattr(classifier, "logits"):
        raise UserError("guide", "is no classifier", "give one that was trained with noise")
    if getattr(classifier, "multi_label", False):
        raise UserError("guide", "answers a question about each class by itself", "give one with a single answer")
    shape = getattr(classifier, "shape", None)
    if shape is not None and tuple(shape) != tuple(denoiser.shape):
        its, needs = (" x ".join(map(str, s)) for s in (shape, denoiser.shape))
        raise UserError("guide", f"is a classifier of {its}, the model makes {needs}", "give one of the same images")


def _interval(
    known: tuple[float, float] | None, levels: list[float], wanted: tuple[float, float] | None
) -> tuple[float, float] | None:
    """Where the classifier is asked: as wanted, or where it knows the levels; None = everywhere."""
    if known is None:
        return wanted
    low, high = known[0] * (1 - RANGE_TOLERANCE), known[1] * (1 + RANGE_TOLERANCE)
    unknown = [s for s in levels if not low < s <= high]
    if wanted is None:
        return (low, high) if unknown else None
    if any(wanted[0] < s <= wanted[1] for s in unknown):
        what = f"the guide knows noise levels {known[0]:.4g} to {known[1]:.4g} only"
        raise UserError(f"guide_interval={wanted[0]:g}, {wanted[1]:g}", what, "stay within, or leave it out")
    return wanted


def _check_hears_noise(denoiser: Denoiser, classifier: Any, sigma: float) -> None:
    """Asks it once: a classifier of clean images refuses, and one without gradients cannot guide."""
    module = classifier if isinstance(classifier, nn.Module) else denoiser
    device = next((p.device for p in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
    x = torch.zeros((1, *denoiser.shape), device=device)
    try:
        class_gradient(classifier, x, torch.tensor(sigma, dtype=torch.float64), torch.zeros(1, dtype=torch.int64))
    except (UserError, ValueError) as error:
        what = f"it does not judge noisy images ({error})"
        raise UserError("guide", what, "give a classifier that was trained with noise") from None
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        raise UserError("guide", "its answers have no gradient", "give a network, not a fitted probe") from None
