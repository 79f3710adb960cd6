"""What images are asked to be: labels, by name or number, or attributes, checked against who is to understand them.

An unconditional model that is guided takes the labels of its guide, and so does any model guided by its own head, which
then is shown none; where a guide answers a question about each of its names, a label is a target of attributes (see
`targets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Classifier, Denoiser
from ..draws import ImageDraws
from ..errors import UserError, nearest
from ..settings.sample import SampleSettings
from .guide import CLASSIFIER, OWN, REPRESENTATIONS, Guide
from .representations import is_joint
from .targets import only, read_target, target_text

ALL, NONE, TRAIN = "all", "none", "train"


def of_guide(denoiser: Denoiser, guide: Classifier | Guide | str | None) -> bool:
    """Whether labels are the guide's: of a model that takes none, or that its own head guides."""
    own = isinstance(guide, str) or (isinstance(guide, Guide) and guide.kind != CLASSIFIER)
    return guide is not None and (own or not denoiser.classes)


def guides_of(denoiser: Denoiser) -> str:
    """Who could pull samples of this model to a label, as settings are written."""
    own = f"guide={OWN}, guide={REPRESENTATIONS}, or " if is_joint(denoiser) else ""
    return own + "guide=RUN of a classifier that knows noise"


def class_names(denoiser: Denoiser, guide: Classifier | str | None = None) -> list[str]:
    """Names of the labels 0..classes-1: the model's own, or the numbers; those of its guide where labels are its.

    guide: a classifier, "representations", "own", or None.
    """
    if of_guide(denoiser, guide):
        return list(getattr(denoiser if isinstance(guide, str) else guide, "class_names", ()))
    names = list(getattr(denoiser, "class_names", ()))
    return names if len(names) == denoiser.classes else [str(k) for k in range(denoiser.classes)]


def asks_attributes(denoiser: Denoiser, guide: Classifier | str | None) -> bool:
    """Whether labels are targets of attributes."""
    judge = denoiser if isinstance(guide, str) else guide
    return of_guide(denoiser, guide) and bool(getattr(judge, "multi_label", False))


def requested(
    settings: SampleSettings, denoiser: Denoiser, guide: Classifier | str | None = None
) -> tuple[range, np.ndarray | None]:
    """Seeds and labels (N,) that settings ask for, or attributes (N, K); labels None for none.

    A label is looked up among the class names first, also one that is a number: of classes "1", "2", "3", label=1
    is "1". Only what is no class name is an index. Raises `UserError` for a class name the model does not have.
    """
    seeds = range(settings.seed, settings.seed + settings.n)
    label = settings.label
    names = class_names(denoiser, guide)
    if label == TRAIN and TRAIN not in names:
        raise UserError("label=train", "the training data of this model is not known here", "name a label")
    if label in (None, NONE) or (label == ALL and not names):
        return seeds, None
    if label == ALL:
        return seeds, np.arange(settings.n, dtype=np.int64) % len(names)
    if str(label) in names:
        label = names.index(str(label))
    elif isinstance(label, str) and not label.isdecimal():
        if asks_attributes(denoiser, guide):
            return seeds, np.tile(np.asarray(read_target(label, names), np.int64), (settings.n, 1))
        raise UserError(f"label={label}", "no such class", nearest(label, [*names, ALL, NONE]) + _how(names, denoiser))
    return seeds, np.full(settings.n, int(label), np.int64)


def _how(names: Sequence[str], denoiser: Denoiser) -> str:
    """What to do about a label where the model knows none."""
    return "" if names else f"; this model takes labels with {guides_of(denoiser)}"


def drawn_labels(values: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """One of these labels (M,), or rows of attributes (M, K), for each seed, whatever the other seeds are.

    values: of the training images. Joint Diffusion's targets of CelebA are drawn in this way.
    """
    draws = ImageDraws("sample")  # index 0 is the noise of the image
    return np.asarray(values, np.int64)[[int(draws(seed, 1).integers(len(values))) for seed in seeds]]


def check_labels(
    denoiser: Denoiser,
    label: int | str | Sequence[int | str] | Tensor | np.ndarray | None,
    n: int,
    guidance: float = 1.0,
    guide: Guide | None = None,
) -> Tensor | None:
    """One label per image, (n,) int64 on the CPU, or attributes (n, K) in 1, 0, -1 where that is what its guide knows;
    None where there is none at all.

    Raises `UserError` for a label the model does not know, for labels on an unconditional model, for another number of
    labels than images, and for guidance without a label to guide towards.
    """
    labels = _labels(denoiser, label, n, guide)
    if labels is None or bool((labels == -1).all()):
        if guidance not in (0.0, 1.0):
            raise UserError(f"guidance={guidance:g}", "there is no label to guide towards", "give label=")
        if guide is not None and guide.scale > 0:
            raise UserError(f"guide_scale={guide.scale:g}", "there is no label to guide towards", "give label=")
        return None
    if not denoiser.classes and guidance not in (0.0, 1.0):
        raise UserError(f"guidance={guidance:g}", "this model is unconditional", "use guide_scale instead")
    return labels


def _labels(denoiser: Denoiser, label: Any, n: int, guide: Guide | None) -> Tensor | None:
    if label is None:
        return None
    guides = guide if of_guide(denoiser, guide) else None
    several = guides is not None and guides.multi_label
    names = guides.names if guides else list(denoiser.class_names)
    labels = torch.as_tensor(_indices(label, names, several), dtype=torch.int64).cpu()
    if labels.ndim == 0 or (several and isinstance(label, str)):
        labels = labels.expand(n, *labels.shape)
    if labels.shape[:1] != (n,) or labels.ndim > 2:
        raise UserError(f"label: {labels.numel()} labels", f"for {n} images", "give one label, or one per image")
    classes = len(guides.index) if guides else denoiser.classes
    if labels.ndim == 2:
        return _check_attributes(labels, classes, several)
    low, high = int(labels.min()), int(labels.max())
    if not classes and high >= 0:
        raise UserError(
            f"label={high}", "this model is unconditional", f"leave the label out, or give {guides_of(denoiser)}"
        )
    if low < -1 or high >= classes > 0:
        bad = low if low < -1 else high
        known = f": {', '.join(names[:30])}" if names and names != [str(k) for k in range(classes)] else ""
        raise UserError(f"label={bad}", "no such class", f"labels are 0..{classes - 1}{known}, or -1 for none")
    return only(labels, classes) if several else labels


def _check_attributes(labels: Tensor, questions: int, several: bool) -> Tensor:
    if not several:
        what = f"attributes {tuple(labels.shape)} were asked for, this model takes one label per image"
        raise UserError("label", what, "give labels (N,), or a guide that knows attributes")
    if labels.shape[1] != questions or int(labels.min()) < -1 or int(labels.max()) > 1:
        what = f"attributes {tuple(labels.shape)} of {int(labels.min())} to {int(labels.max())}"
        raise UserError("label", what, f"(N, {questions}) of 1 = there, 0 = absent, -1 = free")
    return labels


def _indices(label: Any, names: Sequence[str], several: bool) -> Any:
    """Names become indices, or targets of attributes; whatever else it is stays. Raises `UserError` for a name that
    is not among these.
    """
    if isinstance(label, str):
        if several:
            return read_target(label, names)
        if label not in names:
            raise UserError(f"label={label}", "no such class", nearest(label, names) or "this model has no class names")
        return list(names).index(label)
    if isinstance(label, Sequence) and any(isinstance(one, str) for one in label):
        return [_indices(one, names, several) for one in label]
    return label


def in_words(labels: Tensor | None, n: int, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """(N,) int64, -1 = none, and what these numbers are called: the classes' names, or the texts of the different
    attribute targets there are, in the order of their first image.
    """
    if labels is None:
        return np.full(n, -1, np.int64), list(names)
    if labels.ndim == 1:
        return labels.numpy().astype(np.int64), list(names)
    texts = [target_text(row, names) for row in labels.tolist()]
    place = {text: k for k, text in enumerate(dict.fromkeys(filter(None, texts)))}
    return np.asarray([place.get(text, -1) for text in texts], np.int64), list(place)
