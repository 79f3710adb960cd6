"""What is mistaken for what: a matrix as a picture, and the pairs that are mistaken most often."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from .figures import drawn, png_of
from .recognition import percent

NUMBERED = 15  # classes up to which a confusion matrix has numbers in it
MOST_NAMES = 40  # classes whose names stand beside a matrix
MOST_PAIRS = 8  # lines of what is mistaken for what


def confusion_figure(counts: Any, classes: Sequence[str], answer: str = "answer") -> bytes:
    """Answers (columns) about the images of each class (rows), as shares of the row. counts: (K, K)."""
    table = np.asarray(counts, np.float64)
    shares = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
    k = len(table)
    with drawn() as figure_of:
        side = 4.4 if k <= MOST_NAMES else 3.6
        figure = figure_of(side, side)
        axis = figure.subplots()
        shown = axis.imshow(shares, cmap="cividis", vmin=0, vmax=100, interpolation="nearest")
        if k <= MOST_NAMES:
            names = [textwrap.shorten(name, 14, placeholder="…") or name[:13] + "…" for name in classes]
            size = min(10, 150 / k + 3)
            upright = max(len(name) for name in names) <= 2
            axis.set_xticks(range(k), names, rotation=0 if upright else 90, fontsize=size)
            axis.set_yticks(range(k), names, fontsize=size)
        axis.set_xlabel(answer)
        axis.set_ylabel("true class")
        axis.grid(visible=False)
        axis.tick_params(length=0)
        for edge in axis.spines.values():
            edge.set_visible(False)
        for (row, column), value in np.ndenumerate(shares) if k <= NUMBERED else ():
            if table[row, column]:
                ink = "#101010" if value > 50 else "#f4f4f4"
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink)
        bar = figure.colorbar(shown, ax=axis, pad=0.02, shrink=0.8)
        bar.set_label("share of the class (%)")
        bar.outline.set_visible(False)
        return png_of(figure)


def confused_pairs(counts: Any, classes: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """What is mistaken for what most often: (class, taken for, images, share of the class)."""
    if counts is None:
        return []
    table = np.asarray(counts, np.int64)
    wrong = table * (1 - np.eye(len(table), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    places = [divmod(int(at), len(table)) for at in order]
    return [
        (str(classes[i]), str(classes[j]), f"{wrong[i, j]:,}", percent(wrong[i, j] / max(1, table[i].sum())))
        for i, j in places
        if wrong[i, j]
    ]
