"""Figures of a run as PNG bytes, from plain data: what was logged, and shares of classes.

Drawn by matplotlib without its global state (no pyplot), 4.4 inches wide with letters of 10 points, which stays
readable at the width of a telephone. Blue and orange can be told apart by colour-blind readers and differ in line
style as well; the background is transparent and the ink mid-grey, for light and dark pages. Grids are in `grids`.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .grids import image_grid, neighbour_grid, short_count, time_grid, trajectory_grid

__all__ = [
    "class_bars",
    "image_grid",
    "interval_bars",
    "loss_curve",
    "neighbour_grid",
    "smooth",
    "time_grid",
    "trajectory_grid",
]

BLUE, ORANGE, INK, FAINT = "#2a83c5", "#d9660a", "#7a7a7a", "#7a7a7a40"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.parse_math": False,  # a class may be called "$x$"
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
}
PANELS = {"frechet": "Fréchet distance", "accuracy": "accuracy"}
MOST_CLASSES = 24  # bars; of more classes, those that differ most are shown


def loss_curve(rows: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Loss of training and of held-out images over images seen; below it Frechet distance or accuracy, if logged.

    rows: {"kind": "train" or "validation", "n_images", "loss", "frechet", "accuracy"}, as in log.jsonl. The training
    loss is shown as logged (faint) and smoothed. A loss that spans more than a factor of 5 gets a logarithmic axis.
    Returns None where no row holds a finite loss.
    """
    train, held_out = _series(rows, "train", "loss"), _series(rows, "validation", "loss")
    if not len(train[0]) and not len(held_out[0]):
        return None
    extra = {name: series for name in PANELS if len((series := _series(rows, "validation", name))[0])}
    with drawn() as figure_of:
        figure = figure_of(4.4, 2.7 + 1.7 * len(extra))
        axes = figure.subplots(
            1 + len(extra), sharex=True, squeeze=False, gridspec_kw={"height_ratios": [2.0] + [1.2] * len(extra)}
        )[:, 0]
        top, smoothed = axes[0], smooth(train[1])
        if len(train[0]):
            top.plot(*train, color=BLUE, alpha=0.3, linewidth=0.8)
            top.plot(train[0], smoothed, color=BLUE, label="training (smoothed)")
        if len(held_out[0]):
            top.plot(*held_out, color=ORANGE, marker="o", markersize=4, linestyle="--", label="held-out")
        _logarithmic(top, np.concatenate([smoothed, held_out[1]]))
        top.set_ylabel("loss")
        top.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=1.6, borderaxespad=0.2)
        for axis, (name, series) in zip(axes[1:], extra.items(), strict=True):
            axis.plot(*series, color=ORANGE, marker="o", markersize=4, linestyle="--")
            axis.set_ylabel(PANELS[name])
            if name == "frechet":
                _logarithmic(axis, series[1])
        axes[-1].set_xlabel("images seen in training")
        axes[-1].xaxis.set_major_formatter(lambda n, _: short_count(round(n)))
        axes[-1].locator_params(axis="x", nbins=5)
        figure.align_ylabels()
        return png_of(figure)


def class_bars(classes: Mapping[str, Mapping[str, float]]) -> bytes | None:
    """Horizontal bars: each class's share of the generated and of the real images, {name: {"samples", "real"}}.

    With more than `MOST_CLASSES` classes those whose shares differ most are shown. Returns None without classes.
    """
    rows = [(name, row["samples"], row["real"]) for name, row in classes.items() if {"samples", "real"} <= row.keys()]
    if not rows:
        return None
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: -abs(row[1] - row[2]))[:MOST_CLASSES]
    place = np.arange(len(rows))
    with drawn() as figure_of:
        figure = figure_of(4.4, 1.2 + 0.34 * len(rows))
        axis = figure.subplots()
        axis.barh(place - 0.18, [100 * row[1] for row in rows], 0.34, color=BLUE, label="generated")
        axis.barh(place + 0.18, [100 * row[2] for row in rows], 0.34, color=INK, alpha=0.55, label="real")
        axis.set_yticks(place, [_shortened(row[0]) for row in rows])
        axis.invert_yaxis()
        axis.set_xlabel("share of images (%)")
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handlelength=1.2)
        return png_of(figure)


def interval_bars(rows: Sequence[tuple[str, float, float, float, bool]], label: str) -> bytes:
    """Horizontal bars with whiskers of shares: (name, value, low, high, whether it is the one to look at).

    The axis begins at 0, or at a multiple of 10 % well below everything, which its label then says.
    """
    place = np.arange(len(rows))
    values = np.array([100 * row[1] for row in rows])
    ends = np.array([[100 * row[2], 100 * row[3]] for row in rows])
    with drawn() as figure_of:
        figure = figure_of(4.4, 0.9 + 0.45 * len(rows))
        axis = figure.subplots()
        axis.barh(place, values, 0.6, color=[ORANGE if row[4] else BLUE for row in rows], alpha=0.85)
        lengths = np.abs(ends.T - values)
        axis.errorbar(values, place, xerr=lengths, fmt="none", ecolor=INK, elinewidth=1.4, capsize=3)
        for at, value, end in zip(place, values, ends[:, 1], strict=True):
            axis.annotate(f"{value:.1f}", (end, at), (4, 0), textcoords="offset points", va="center", color=INK)
        axis.set_yticks(place, [row[0] for row in rows])
        axis.invert_yaxis()
        low = max(0.0, 10 * np.floor((ends.min() - 10) / 10))
        high = max(float(ends.max()), low + 1)
        axis.set_xlim(low, high + 0.15 * (high - low))
        axis.set_xlabel(label + (f", from {low:g} on" if low else ""))
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        return png_of(figure)


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of 4 % of the series around each value, so that it does not lag; same length.

    Towards the ends the window shrinks on both sides, so that a steep start is not averaged away.
    """
    place = np.arange(len(values))
    reach = np.minimum(max(1, round(0.02 * len(values))), np.minimum(place, place[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)


def _series(rows: Sequence[Mapping[str, Any]], kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(images seen, values) of the rows that hold a finite value."""
    found = [
        (row["n_images"], row[name])
        for row in rows
        if row.get("kind") == kind and row.get(name) is not None and math.isfinite(row[name])
    ]
    table = np.array(found, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _logarithmic(axis: Any, values: np.ndarray) -> None:
    """A logarithmic axis with plain numbers where positive values span more than a factor of 5."""
    if values.min() <= 0 or values.max() < 5 * values.min():
        return
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_yscale("log")
    decades = math.log10(values.max() / values.min())
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _shortened(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


@contextlib.contextmanager
def drawn() -> Iterator[Callable[[float, float], Any]]:
    """Within the block: a function (width, height in inches) -> Figure, drawn in this module's style."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for it
        yield lambda width, height: Figure(figsize=(width, height), dpi=200, layout="constrained")


def png_of(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", transparent=True, metadata={"Software": None})  # Figure's own canvas is Agg
    return file.getvalue()
