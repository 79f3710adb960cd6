"""Better pseudo labels: what networks say of images whose labels they have not learned.

A classifier that learned a wrong label repeats it. So images are split into folds; a network learns the surest labels
of all folds but one, and pseudo images where there are some, and answers about that one. Its answers and the first
ones, geometrically averaged, are the new ones: an error has to be made by both.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..parts import Part
from . import pseudo, recipes
from .workshop import IMAGES, TEST_FILE, TRAIN_FILE, Workshop, write_answers


def refined(shop: Workshop, answers: Part, base: Part, made: Part | None, name: str, turn: int) -> Part:
    """Answers about all images, better than `base`'s. answers: whose surest labels the networks learn.

    made: pseudo images that they learn beside them; None: none. name: of the new part.
    """
    settings, subject = shop.settings.pseudo, shop.subject
    fold = np.random.default_rng(shop.settings.seed).permutation(len(subject.train)) % settings.folds
    told = [_network(shop, answers, fold, held_out, made, name, turn) for held_out in range(settings.folds)]
    facts = {"base": base.content, "folds": [part.content for part in told]}

    def work(path: Path) -> None:
        first = [_log(np.load(base.path / file)) for file in (TRAIN_FILE, TEST_FILE)]
        found = [[_log(np.load(part.path / file)) for part in told] for file in (TRAIN_FILE, TEST_FILE)]
        own = np.stack(found[0])[
            fold, np.arange(len(fold))
        ]  # of each image, by the network that has not seen its label
        write_answers(path, (first[0] + own) / 2, (first[1] + np.mean(found[1], axis=0)) / 2)

    return shop.small(name, facts, work)


def _network(
    shop: Workshop, answers: Part, fold: np.ndarray, held_out: int, made: Part | None, name: str, turn: int
) -> Part:
    """The answers of a network that learned what is sure in the other folds."""
    settings, subject = shop.settings.pseudo, shop.subject
    facts = {
        "answers": answers.content,
        "labels": subject.labels_key,
        "surest": settings.folds_surest,
        "balanced": settings.balanced,
        "fold": [held_out, settings.folds, shop.settings.seed],
    }

    def work(path: Path) -> None:
        chosen = settings.model_copy(update={"surest": settings.folds_surest, "least": 0.0})
        found = pseudo.pseudo_labels(np.load(answers.path / TRAIN_FILE), subject.labels, chosen)
        learned = np.where((fold == held_out) & (subject.labels < 0), -1, found.labels)
        pseudo.write(path / pseudo.FILE, subject, pseudo.Pseudo(learned, found.confidence))

    kind = f"{name}-fold{held_out + 1}"
    labels = shop.small(f"{kind}-labels", facts, work, files=lambda path: [path / pseudo.FILE])
    images = None if made is None else made.path / IMAGES
    run = recipes.classifier(shop.settings, settings.network, labels.path / pseudo.FILE, images, turn)
    return shop.network(kind, run, {"pseudo": labels.content, "images": "" if made is None else made.content})


def _log(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, none of them below one in a million."""
    return torch.from_numpy(logits).double().softmax(1).clamp(min=1e-6).log().numpy()
