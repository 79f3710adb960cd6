"""What guides a denoiser, checked: whether the two fit is found out before any image is made.

labels             the denoiser's own condition (`guided`): no guide in this sense, its scale is called guidance
representations    the head of the model itself, by way of the maps that its decoder reads
own                the same head, as a classifier of the image
a classifier       of somebody else, that knows noise
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..denoiser import Classifier, Denoiser
from ..errors import UserError, nearest
from ..noise import RANGE_TOLERANCE
from ..settings.sample import GUIDES
from .guidance import check_interval, check_scale, class_gradient, classifier_guided
from .representations import Joint, is_joint, own_guided, representation_guided
from .samplers import Denoise
from .targets import only

LABELS, REPRESENTATIONS, OWN = GUIDES
CLASSIFIER = "classifier"
USUAL_SCALE = {CLASSIFIER: 1.0, OWN: 5.0, REPRESENTATIONS: 4.0}


@dataclass(frozen=True)
class Guide:
    """What was found to fit a denoiser, and how it guides. Made by `make_guide`.

    kind: "classifier", "representations" or "own". classifier: who names the images; for the last two the denoiser
    itself. scale, interval: as in `classifier_guided` and `representation_guided`. index: the classifier's class of
    every label that images may have. multi_label: it answers a question about each of them.
    """

    classifier: Classifier
    scale: float
    interval: tuple[float, float] | None
    index: tuple[int, ...]
    kind: str = CLASSIFIER
    multi_label: bool = False

    @property
    def names(self) -> list[str]:
        """The classes or attributes that it knows."""
        return list(self.classifier.class_names)

    def labels(self, label: Tensor) -> Tensor:
        """What the classifier is asked for, given the denoiser's labels (B,) int64, -1 = none, or attributes (B, K):
        (B,) classes, or (B, K) if it is multi-label.
        """
        if label.ndim == 2:
            return label
        index = torch.tensor([*self.index, -1], device=label.device)[label]
        return only(index, len(self.classifier.class_names)) if self.multi_label else index

    def over(self, denoiser: Denoiser, denoise: Denoise, label: Tensor, variance: bool = False) -> Denoise:
        """The guided callable (x, sigma) -> x0_hat for these labels.

        denoise: what the denoiser says without the guide, which guides of their own model replace. variance: whether
        it says v too.
        """
        target = self.labels(label)
        if self.kind == REPRESENTATIONS:
            return representation_guided(cast(Joint, denoiser), target, self.scale, self.interval)
        if self.kind == OWN and not variance:
            return own_guided(cast(Joint, denoiser), target, self.scale, self.interval)
        return classifier_guided(denoise, self.classifier, target, self.scale, self.interval)

    def request(self, name: str) -> dict[str, Any]:
        """What a manifest says of it. name: of a classifier's weights."""
        who = {"classifier": name} if self.kind == CLASSIFIER else {"kind": self.kind}
        return {**who, "scale": self.scale, "interval": self.interval}


def make_guide(
    denoiser: Denoiser,
    classifier: Any,
    scale: float | None = None,
    interval: tuple[float, float] | None = None,
    sigmas: Tensor | Sequence[float] = (),
) -> Guide:
    """The guide that a classifier, or "representations" or "own", is for a denoiser sampled on this grid (N + 1,), of
    which the last is not asked.

    scale: default: what is usual for its kind (`USUAL_SCALE`). interval: where it guides, low < sigma <= high; default:
    wherever the classifier knows the grid's noise levels. Raises `UserError` for what is no classifier, or one of other
    images or classes, or one that refuses noise, and for a model without a head.
    """
    kind = classifier if isinstance(classifier, str) else CLASSIFIER
    if kind == CLASSIFIER:
        _check_kind(denoiser, classifier)
    else:
        classifier = _head_of(denoiser, kind)
    scale = USUAL_SCALE[kind] if scale is None else scale
    check_scale(scale)
    check_interval(interval, "guide_interval")
    levels = [float(sigma) for sigma in sigmas][:-1] or list(denoiser.sigma_range)
    interval = _interval(getattr(classifier, "sigma_range", None), levels, interval)
    asked = [s for s in levels if interval is None or interval[0] < s <= interval[1]]
    if not asked:
        what = f"none of the sampler's noise levels, {min(levels):.4g} to {max(levels):.4g}, is one the guide acts at"
        raise UserError("guide_interval", what, "give a wider one")
    names, several = list(classifier.class_names), bool(getattr(classifier, "multi_label", False))
    if kind != CLASSIFIER:
        return Guide(classifier, float(scale), interval, tuple(range(len(names))), kind, several)
    for sigma in {max(asked), min(asked)}:
        _check_hears_noise(denoiser, classifier, sigma)
    return Guide(classifier, float(scale), interval, match_classes(denoiser, names), kind, several)


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


def _head_of(denoiser: Denoiser, kind: str) -> Any:
    """The denoiser, if it can be guided in this way."""
    if kind not in (REPRESENTATIONS, OWN):
        raise UserError(f"guide={kind}", "is no kind of guide", f"{nearest(kind, GUIDES)}, or a loaded classifier")
    if not is_joint(denoiser):
        hint = "`twofold train joint-digits-mini` trains one that does; or guide=RUN of a classifier that knows noise"
        raise UserError(f"guide={kind}", "this model does not classify what it makes", hint)
    return denoiser


def _check_kind(denoiser: Denoiser, classifier: Any) -> None:
    if not hasattr(classifier, "logits") or not list(getattr(classifier, "class_names", ())):
        raise UserError("guide", "is no classifier", "give one that was trained with noise (`twofold train noisy-...`)")
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
    label = torch.zeros(1, dtype=torch.int64)
    if getattr(classifier, "multi_label", False):
        label = only(label, len(classifier.class_names))
    try:
        class_gradient(classifier, x, torch.tensor(sigma, dtype=torch.float64), label)
    except (UserError, ValueError) as error:
        reason = error.what if isinstance(error, UserError) else str(error).partition(";")[0]  # the rest is for Python
        what = f"it does not judge noisy images ({reason})"
        raise UserError("guide", what, "give a classifier that was trained with noise") from None
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        raise UserError("guide", "its answers have no gradient", "give a network, not a fitted probe") from None
