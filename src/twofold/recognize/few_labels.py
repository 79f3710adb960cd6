"""Label efficiency: how well a head does with k labelled images of each class, beside the same head on raw pixels.

Everything that needs no labels (centring, scaling) is taken from all training images. For every k, the layer and the
noise level are those with the best mean accuracy on the validation part; the test part is looked at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .choose import MOST_NUMBERS, Fit, Place


@dataclass(frozen=True)
class Few:
    """Results with k labels per class: test accuracies, one per choice of the labelled images. places: what was read;
    validation: mean accuracy there, by which it was chosen."""

    k: int
    places: tuple[Place, ...]
    validation: float
    test: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.test))


def scaled(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Features (..., N, D), centred and scaled by the mean and deviation of `train`; constant ones become 0."""
    flat = train.flatten(0, -2).double()
    mean, std = flat.mean(0), flat.std(0, correction=0)
    scale = torch.where(std > 1e-8 * std.max().clamp(min=1e-30), 1 / std.clamp(min=1e-30), 0.0)
    return [((x.double() - mean) * scale).float() for x in (train, *others)]


def curve(
    read: Callable[[str, tuple[Place, ...]], Tensor],
    labels: Mapping[str, Tensor],
    candidates: Sequence[tuple[Place, ...]],
    subsets: Mapping[int, np.ndarray],
    fit: Fit,
) -> list[Few]:
    """One `Few` per k.

    read: (part, places) -> features (n, D) of "train", "validation" or "test"; the test part is read only for places
    that were chosen. labels: {part: (n,)}. candidates: sets of places to choose from. subsets: see `label_subsets`.
    fit: as for `choose.search`, with one strength; a problem is a choice of labelled images.
    """
    scores = {k: [0.0] * len(candidates) for k in subsets}
    for group in _groups(read, candidates, len(next(iter(subsets.values()))), len(labels["validation"])):
        pairs = [scaled(read("train", candidates[i]), read("validation", candidates[i])) for i in group]
        for k, rows in subsets.items():
            found = _accuracies(fit, pairs, labels["train"], rows, labels["validation"])
            for i, values in zip(group, found, strict=True):
                scores[k][i] = float(np.mean(values))
    results = []
    for k, rows in subsets.items():
        place = int(np.argmax(scores[k]))
        pair = scaled(read("train", candidates[place]), read("test", candidates[place]))
        found = _accuracies(fit, [pair], labels["train"], rows, labels["test"])
        results.append(Few(k, candidates[place], scores[k][place], tuple(found[0])))
    return results


def _groups(
    read: Callable[[str, tuple[Place, ...]], Tensor], candidates: Sequence[tuple[Place, ...]], draws: int, images: int
) -> Iterator[list[int]]:
    """Candidates of equal width, so many that their features of the validation part fit in memory for every draw."""
    widths: dict[int, list[int]] = {}
    for i, places in enumerate(candidates):
        widths.setdefault(read("validation", places).shape[1], []).append(i)
    for width, members in widths.items():
        most = max(1, MOST_NUMBERS // max(1, width * images * draws))
        yield from (members[start : start + most] for start in range(0, len(members), most))


def baseline(
    train: Tensor, test: Tensor, labels: Mapping[str, Tensor], subsets: Mapping[int, np.ndarray], fit: Fit
) -> list[Few]:
    """The same on other features, as raw pixels (n, D), with the same labelled images and heads; nothing to choose."""
    pair = scaled(train.float(), test.float())
    found = {k: _accuracies(fit, [pair], labels["train"], rows, labels["test"])[0] for k, rows in subsets.items()}
    return [Few(k, (), math.nan, tuple(values)) for k, values in found.items()]


def _accuracies(
    fit: Fit, pairs: Sequence[Sequence[Tensor]], y: Tensor, rows: np.ndarray, truth: Tensor
) -> list[list[float]]:
    """Accuracy of every choice of labelled images, for each pair of (training features, other features): one batched
    fit, for the choices have the same labels in the same order."""
    chosen = torch.from_numpy(rows)
    heads = fit(torch.cat([x[chosen] for x, _ in pairs])[:, None], y[chosen[0]], ())
    several = [unseen.expand(len(chosen), -1, -1) for _, unseen in pairs]
    others = torch.cat(several) if len(pairs) > 1 else several[0]  # one is not copied
    known = truth >= 0
    right = (heads.logits(others)[:, 0].argmax(-1) == truth)[:, known].double().mean(1)
    return right.view(len(pairs), len(chosen)).tolist()
