"""Pictures of a few-label experiment: accuracy per stage, pseudo labels against the truth, confidence, images."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..measure.answers import share_interval
from .figures import BLUE, INK, drawn, interval_bars, png_of
from .grids import _draw, as_tiles, image_grid

STAGES = {  # in the order of the page; others come behind, under their own names
    "stage 1": ("Stage 1", "a classifier of the labelled images"),
    "self-training": ("Self-training", "a classifier of pseudo-labelled images"),
    "self-training, corrected": ("Self-training, corrected", "the same, of pseudo labels corrected out of fold"),
    "generated alone": ("Generated alone", "a classifier of generated images, no real one"),
    "stage 3": ("Stage 3", "a classifier of labelled and generated images"),
}
MOST_ROWS, MOST_COLUMNS = 20, 10  # of a grid of images: classes, and images of each


def stages_figure(accuracy: Mapping[str, Mapping[str, Any]]) -> bytes | None:
    """A bar for each stage with its 95 % interval; None where no accuracy is known."""
    rows = [(name, row) for name, row in in_order(accuracy) if row.get("value") is not None]
    if not rows:
        return None
    shown = [
        (title_of(name)[0], row["value"], *(row.get("interval") or (row["value"],) * 2), name == "stage 3")
        for name, row in rows
    ]
    return interval_bars(shown, "accuracy on test images (%)")


def in_order(accuracy: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The stages as the page has them."""
    known = [(name, accuracy[name]) for name in STAGES if name in accuracy]
    return known + [(name, row) for name, row in accuracy.items() if name not in STAGES]


def title_of(stage: str) -> tuple[str, str]:
    """What a stage is called, and what it is."""
    return STAGES.get(stage, (stage[:1].upper() + stage[1:], ""))


def confidence_figure(found: Mapping[str, Any]) -> bytes | None:
    """How sure the pseudo labels are and, where that is known, how often those of a confidence are right.

    found: edges (B + 1,) in 0..1, count (B,); where some are known, right (B,) of known (B,), else None; mean (B,)
    confidences, default: the middles of the bins. None where nothing was counted.
    """
    edges, count = np.asarray(found["edges"], float), np.asarray(found["count"], float)
    if not count.sum():
        return None
    right = None if found.get("right") is None else np.asarray(found["right"], float)
    known = count if found.get("known") is None else np.asarray(found["known"], float)
    middles = (edges[:-1] + edges[1:]) / 2
    mean = [middle if m is None else m for m, middle in zip(found.get("mean") or middles, middles, strict=True)]
    with drawn() as figure_of:
        figure = figure_of(4.4, 4.2 if right is not None else 2.2)
        panels = 1 if right is None else 2
        axes = figure.subplots(panels, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [2.4, 1.0][-panels:]})
        below = axes[-1, 0]
        if right is not None:
            _reliability(axes[0, 0], np.array(mean, float), known, right)
        below.bar(
            100 * edges[:-1], 100 * count / count.sum(), 100 * np.diff(edges), align="edge",
            color=BLUE, alpha=0.55, edgecolor=BLUE, linewidth=0.6,
        )  # fmt: skip
        below.set_ylabel("images (%)")
        below.set_xlabel("confidence (%)")
        below.set_xlim(-2, 102)
        figure.align_ylabels()
        return png_of(figure)


def _reliability(axis: Any, confidence: np.ndarray, known: np.ndarray, right: np.ndarray) -> None:
    there = known > 0
    share = 100 * right[there] / known[there]
    both = zip(right[there], known[there], strict=True)
    ends = 100 * np.array([share_interval(r / n, int(n)) for r, n in both])
    axis.plot([0, 100], [0, 100], "--", color=INK, linewidth=1, label="as right as sure")
    lengths = np.abs(ends.reshape(-1, 2).T - share)
    style = {"fmt": "o", "color": BLUE, "markersize": 4, "elinewidth": 1, "capsize": 2}
    axis.errorbar(100 * confidence[there], share, lengths, label="right (95 %)", **style)
    axis.set_ylabel("right pseudo labels (%)")
    axis.set_ylim(-3, 103)
    axis.legend(loc="upper left")


def class_grid(images: Any, classes: Sequence[str]) -> bytes:
    """A row of images for each class, its name at the left. images: uint8 (K, n, C, H, W)."""
    rows = [as_tiles(part[:MOST_COLUMNS]) for part in np.asarray(images)[:MOST_ROWS]]
    names = [textwrap.shorten(name, 18, placeholder="…") for name in classes[: len(rows)]]
    return _draw(rows, left=names)


def titled_grid(images: Any, titles: Sequence[str] | None) -> bytes:
    """Images beside each other with a title below each. images: uint8 (n, C, H, W)."""
    most = 3 * MOST_COLUMNS
    return image_grid(np.asarray(images)[:most], 8, None if titles is None else list(titles)[:most])
