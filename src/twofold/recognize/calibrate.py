"""How sure a learner of few labels may be: one temperature (Guo et al. 2017), from the labelled images alone.

Labels are hidden from the learner, one of each class at a time where a class has several, and asked for:

    T = argmin  mean_i CE(softmax(scores_i / T), (1 - e) onehot(y_i) + e / K),      e = 1 / (number of answers + 1)

The share e stands for one more image whose answer nobody knows (Platt 1999): without it a learner that made no mistake
on twenty images would be sure of everything.

Classes with one label cannot lose it. They are asked the other way round (Bruzzone and Marconcini 2010; Zhong et al.
2010): the learner's answers for images drawn from each class become the labels, and the true labels are hidden. Where
the answers are wrong, so are the labels the learner then starts from, and it misses the images whose class is known.

Hiding one of few labels makes a learner look worse than it is, the other way makes it look somewhat better: with two to
four labels a class the geometric mean of both temperatures is taken (on digits it is within a few per cent of the best
one). From five labels on, hiding alone is fair enough.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from .heads import TEMPERATURES, Features, as_float, labelled
from .learned import Fitting, Learned, Learner

FOLDS = 10  # rounds of hidden labels at most
DRAWS = 10  # rounds of the other way
ENOUGH = 5  # labels of each class, from which hiding one is fair


def calibrated(
    learner: Learner, x: Features, y: Tensor, classes: int, weight: Features | None = None, seed: int = 0
) -> Learned:
    """What a learner makes of features (N, D) and labels (N,), -1 = unlabelled, with its temperature.

    It learns up to `FOLDS` + `DRAWS` more times, and needs unlabelled images where classes have few labels. The
    learner's work without labels is done once. seed: of what is hidden and drawn. Errors are the learner's.
    """
    fit = learner.on(as_float(x), classes)
    learned = fit(y, weight)
    return replace(learned, temperature=temperature_of(fit, learned, y, classes, weight, seed))


def temperature_of(
    fit: Fitting, learned: Learned, y: Tensor, classes: int, weight: Features | None = None, seed: int = 0
) -> float:
    """T of what `fit` has learned from labels y (N,): see above."""
    y = torch.as_tensor(y).cpu()
    rows, truth = labelled(y, len(y), classes)
    generator = torch.Generator().manual_seed(seed)
    fewest = int(truth.unique(return_counts=True)[1].min())
    found = []
    if fewest > 1:
        found.append(smoothed_temperature(*_hidden(fit, y, rows, truth, weight, generator)))
    if fewest < ENOUGH and (answered := _reversed(fit, learned, y, rows, truth, generator)) is not None:
        found.append(smoothed_temperature(*answered))
    if not found:
        warnings.warn("one label a class and too few other images: answers are not calibrated", stacklevel=3)
    return math.prod(found) ** (1 / max(1, len(found)))


def smoothed_temperature(scores: Tensor, truth: Tensor) -> float:
    """T for scores (M, K) and labels (M,), within `TEMPERATURES`. Convex in 1 / T: bisection of the slope."""
    scores = scores.double()
    wrong = 1 / (len(scores) + 1)
    right = (1 - wrong) * scores.gather(1, truth[:, None])[:, 0] + wrong * scores.mean(1)
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(60):
        beta = (low * high) ** 0.5
        slope = float(((torch.softmax(beta * scores, 1) * scores).sum(1) - right).mean())
        low, high = (beta, high) if slope < 0 else (low, beta)
    return 1 / (low * high) ** 0.5


def _hidden(
    fit: Fitting, y: Tensor, rows: Tensor, truth: Tensor, weight: Features | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Every label hidden once, in as many rounds as the largest class has labels, or `FOLDS`."""
    order = torch.randperm(len(rows), generator=generator)
    rows, truth = rows[order], truth[order]
    place = torch.zeros_like(truth)  # of an image among those of its class
    for c in truth.unique():
        place[truth == c] = torch.arange(int((truth == c).sum()))
    folds = min(FOLDS, int(place.max()) + 1)
    found: list[Tensor] = []
    parts = [(place % folds) == fold for fold in range(folds)]
    for part in parts:
        seen = y.clone()
        seen[rows[part]] = -1
        found.append(fit(seen, weight).scores[rows[part]])
    return torch.cat(found), torch.cat([truth[part] for part in parts])


def _reversed(
    fit: Fitting, learned: Learned, y: Tensor, rows: Tensor, truth: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor] | None:
    """Labels of drawn answers, one for each label there is; the labelled images are asked. None where a class is the
    answer of no other image."""
    free = (y < 0).nonzero()[:, 0]
    present = torch.bincount(truth, minlength=learned.scores.shape[1]) > 0
    answers = learned.balanced(present)[free].argmax(1)
    if set(truth.tolist()) - set(answers.tolist()):
        return None
    found: list[Tensor] = []
    for _ in range(DRAWS):
        seen = torch.full_like(y, -1)
        for c, count in zip(*truth.unique(return_counts=True), strict=True):
            candidates = free[answers == c]
            chosen = candidates[torch.randperm(len(candidates), generator=generator)[: int(count)]]
            seen[chosen] = c
        found.append(fit(seen, None).scores[rows])
    return torch.cat(found), truth.repeat(DRAWS)
