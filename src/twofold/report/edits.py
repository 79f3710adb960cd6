"""Pictures of counterfactuals: the original, what it became, where it changed, and how the answer changed on the way.

A change is shown in diverging colours on one scale for all pictures: blue = darker by `FULL` grey levels or more, white
= no change, orange = brighter. Of colours it is the mean over the channels. Pixels stay squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .figures import BLUE, INK, ORANGE, drawn, png_of
from .grids import WIDTH, _draw, as_tiles

FULL = 128  # grey levels of change at which a colour is strongest
DARKER, BRIGHTER = np.array([23.0, 92.0, 158.0]), np.array([196.0, 84.0, 0.0])
ACROSS = 10  # edits in a row of an overview


@dataclass(frozen=True)
class Shown:
    """One edit. original, edited: uint8 (C, H, W). before, after: answers in words. sigmas, p_target, p_original: of
    its steps, (S,); p_original None where there is no single original class. kept: p of the target in the end.
    rms: distance in grey levels. target, original: names. by: who answered.
    """

    original: np.ndarray
    edited: np.ndarray
    before: str
    after: str
    target: str
    original_class: str
    sigmas: Sequence[float]
    p_target: Sequence[float]
    p_original: Sequence[float] | None
    kept: float
    rms: float
    by: str = "the model"


def change_colours(original: Any, edited: Any) -> np.ndarray:
    """uint8 (3, H, W): where the edited image is darker (blue) or brighter (orange); both uint8 (C, H, W)."""
    change = (np.asarray(edited, np.float64) - np.asarray(original, np.float64)).mean(0)
    return _colours(change / FULL)


def _colours(share: np.ndarray) -> np.ndarray:
    """-1..1 (H, W) to uint8 (3, H, W)."""
    share = np.clip(share, -1, 1)[None]
    end = np.where(share < 0, DARKER[:, None, None], BRIGHTER[:, None, None])
    return np.rint(255 + np.abs(share) * (end - 255)).astype(np.uint8)


def edit_figure(shown: Shown) -> bytes:
    """A PNG of one edit: original, edited, change with its scale, and the probabilities along the steps."""
    with drawn() as figure_of:
        figure = figure_of(9.0, 2.7)
        axes = figure.subplots(1, 5, gridspec_kw={"width_ratios": [1, 1, 1, 0.06, 1.6]})
        change = change_colours(shown.original, shown.edited)
        pictures = (shown.original, shown.edited, change)
        titles = (f"original: {shown.before}", f"edited: {shown.after}", f"change: {shown.rms:.1f} levels rms")
        for axis, picture, title in zip(axes[:3], pictures, titles, strict=True):
            axis.imshow(as_tiles(picture[None])[0], interpolation="nearest")
            axis.set_title(_fitting(title), fontsize=10)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
            for side in axis.spines.values():
                side.set_visible(True)
                side.set_color(INK)
        _scale(figure, axes[3])
        _path(axes[4], shown)
        return png_of(figure)


def _scale(figure: Any, axis: Any) -> None:
    """The bar that says what the colours of a change mean."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    ramp = _colours(np.linspace(-1, 1, 255)[None])[:, 0].T / 255
    bar = figure.colorbar(ScalarMappable(Normalize(-FULL, FULL), ListedColormap(ramp)), cax=axis)
    bar.set_ticks([-FULL, 0, FULL], labels=[f"-{FULL}", "0", f"+{FULL}"])
    bar.outline.set_visible(False)


def _path(axis: Any, shown: Shown) -> None:
    """Probabilities over the solver's steps, from the noisiest on the left; the kept image is the dot at the right."""
    place = np.arange(len(shown.sigmas))
    axis.plot(place, shown.p_target, color=ORANGE, label=_fitting(f"p({shown.target})", 24))
    if shown.p_original is not None:
        axis.plot(place, shown.p_original, color=BLUE, linestyle="--", label=_fitting(f"p({shown.original_class})", 24))
    end = len(place) - 1 + max(2, len(place) / 5)  # apart from the steps, which it is none of
    axis.plot([end], [shown.kept], color=ORANGE, marker="o", markersize=5, linestyle="none")
    chosen = sorted({0, len(place) // 2, len(place) - 1})
    axis.set_xticks([*chosen, end], [*(f"{shown.sigmas[k]:.2g}" for k in chosen), "kept"])
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("noise level of the step")
    axis.set_title(_fitting(f"what {shown.by} sees", 40), fontsize=10)
    axis.legend(loc="best", fontsize=9, handlelength=1.6)


def _fitting(text: str, most: int = 26) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def edits_overview(originals: Any, edited: Any, words: Sequence[str], width: int = 2 * WIDTH) -> bytes:
    """A PNG of many edits: original, edited and change below each other, with a few words under each.

    originals, edited: uint8 (N, C, H, W). Raises `ValueError` unless all three are of one length, and not empty.
    """
    before, after = as_tiles(originals), as_tiles(edited)
    if not len(before) == len(after) == len(words):
        raise ValueError(f"{len(before)} originals, {len(after)} edited images, {len(words)} texts")
    pairs = zip(np.asarray(originals), np.asarray(edited), strict=True)
    changes = as_tiles(np.stack([change_colours(a, b) for a, b in pairs]))
    cells: list[list[np.ndarray | None]] = []
    below: list[list[str]] = []
    left: list[str] = []
    for start in range(0, len(before), ACROSS):
        part = slice(start, start + ACROSS)
        cells += [before[part], after[part], changes[part]]
        below += [[], [], list(words[part])]
        left += ["original", "edited", "change"]
    return _draw(cells, left=left, below=below, width=width)
