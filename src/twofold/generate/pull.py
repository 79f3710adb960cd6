"""Who pulls an edit towards its target, and who is asked whether it has arrived."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..codec import PixelCodec
from ..denoiser import Classifier, Denoiser
from ..errors import UserError
from .guidance import classifier_guided, guided
from .guide import make_guide
from .invert import down_grid
from .labels import class_names
from .representations import is_joint, own_guided, representation_guided
from .sample import place
from .samplers import Denoise

Towards = Callable[[Tensor, float], Denoise]
SCALES = {"representations": 1.0, "own": 2.0, "labels": 2.0, "classifier": 2.0}  # where none is given
LEVELS = 24  # of all an edit may start at, by which it is seen where a classifier can guide
HINT = "train a joint model (twofold train joint-digits-mini), or give a classifier that knows noise: guide=RUN"


@dataclass(frozen=True)
class Pull:
    """Made by `make_pull`. kind: in `SCALES`. towards: (target (B,) or (B, K), scale) -> a guided denoiser.

    asked: whose answers about clean images count; class_names and multi_label are its, and targets are of them.
    models: the networks that take part beside the denoiser. scale: where none is given.
    """

    kind: str
    towards: Towards
    asked: Any
    class_names: Sequence[str]
    multi_label: bool
    models: tuple[Any, ...]

    @property
    def scale(self) -> float:
        return SCALES[self.kind]


def make_pull(denoiser: Denoiser, guide: Any = None, asked: Any = None) -> Pull:
    """The arguments are those of `edit`. Raises `UserError` saying what would make it possible."""
    kind = kind_of(denoiser, guide)
    if kind not in SCALES:
        raise UserError(f"guide={kind}", "no such guide", f"{', '.join(list(SCALES)[:3])}, or the run of a classifier")
    if kind == "labels":
        return _by_labels(denoiser, guide, asked)
    if kind in ("representations", "own") and not is_joint(denoiser):
        raise UserError(f"guide={kind}", "this model cannot classify, so it cannot guide itself", HINT)
    source: Any = guide if kind == "classifier" else denoiser
    judge = source if asked is None else asked
    if kind == "classifier":
        towards = _by_classifier(denoiser, guide)
    else:
        joint: Any = denoiser
        towards = partial(representation_guided if kind == "representations" else own_guided, joint)
    names, multi = list(source.class_names), bool(getattr(source, "multi_label", False))
    _check_same(names, multi, judge)
    return Pull(kind, towards, judge, names, multi, (judge, source))


def kind_of(denoiser: Denoiser, guide: Any = None) -> str:
    """Which guide this is, or would be where none is named."""
    if guide is None:
        return "own" if is_joint(denoiser) else "labels"
    return guide if isinstance(guide, str) else "classifier"


def _by_classifier(denoiser: Denoiser, classifier: Any) -> Towards:
    low, high = denoiser.sigma_range
    found = make_guide(denoiser, classifier, sigmas=down_grid(LEVELS, high, low))

    def towards(target: Tensor, scale: float) -> Denoise:
        plain = lambda x, sigma: denoiser.denoise(x, sigma)  # noqa: E731
        return classifier_guided(plain, found.classifier, target, scale, found.interval)

    return towards


def _by_labels(denoiser: Denoiser, guide: Any, asked: Any) -> Pull:
    if not denoiser.classes:
        where = "edit" if guide is None else "guide=labels"
        raise UserError(where, "this model is unconditional and cannot classify", HINT)
    if asked is None:
        what = "labels guide, but say nothing about an image"
        raise UserError("guide=labels", what, "name who is asked (asked=), such as a ZeroShotClassifier of this model")
    names = class_names(denoiser)
    _check_same(names, False, asked)

    def towards(target: Tensor, scale: float) -> Denoise:
        return guided(denoiser, target.to(place(denoiser)[0]), scale)

    return Pull("labels", towards, asked, names, False, (asked,))


def _check_same(names: Sequence[str], multi: bool, asked: Any) -> None:
    theirs = list(asked.class_names)
    if theirs != list(names) or bool(getattr(asked, "multi_label", False)) != multi:
        what = f"knows {', '.join(theirs[:5])}, the guide {', '.join(list(names)[:5])}"
        raise UserError("asked", what, "both must answer about the same classes, in the same order")


@torch.inference_mode()
def answers(classifier: Any, images: Tensor) -> Tensor:
    """Logits (N, K) float64 on the CPU about clean uint8 images (N, C, H, W)."""
    by_pixels = getattr(classifier, "image_logits", None)
    if by_pixels is not None:
        return by_pixels(images).double().cpu()
    device = place(classifier)[0] if isinstance(classifier, torch.nn.Module) else torch.device("cpu")
    codec = getattr(classifier, "codec", None) or PixelCodec()
    found: Classifier = classifier
    return found.logits(codec.encode(images.to(device)), 0.0).double().cpu()
