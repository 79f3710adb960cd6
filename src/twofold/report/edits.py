"""Pictures of counterfactuals: the original, what it became, where it changed, and how the answer changed on the way.

A change is shown in diverging colours on one scale for all pictures: blue = darker by `FULL` grey levels or more, white
= no change, orange = brighter. Of colours it is the mean over the channels. Pixels stay squares.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .figures import BLUE, INK, ORANGE, drawn, png_of
from .grids import INK as GREY
from .grids import _font, as_tiles

FULL = 128  # grey levels of change at which a colour is strongest
DARKER, BRIGHTER = np.array([23.0, 92.0, 158.0]), np.array([196.0, 84.0, 0.0])
# of an overview, in pixels
CELL = 96  # what small images are enlarged to
GAP, APART, EDGE = 4, 16, 8  # between images, between columns of edits, around all
SMALL, SPACING = 18, 24  # letters and lines
WORDS, HEADING = 320, 900  # the longest lines beside an edit and above all
DOWN = 10  # edits below each other
PICTURES = ("original", "edited", "change")


@dataclass(frozen=True)
class Shown:
    """One edit. original, edited: uint8 (C, H, W). before, after: answers in words. sigmas, p_target, p_original: of
    its steps, (S,); p_original None where there is no single original class. kept: p of the target in the end.
    rms: distance in grey levels. target, original_class: names. by: who answered. verdict: what came of it.
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
    verdict: str = ""


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
        below = (shown.before, shown.after, f"{shown.rms:.1f} levels rms")
        for axis, picture, name, words in zip(axes[:3], pictures, PICTURES, below, strict=True):
            axis.imshow(as_tiles(picture[None])[0], interpolation="nearest")
            axis.set_title(f"{name}\n{_fitting(words)}", fontsize=10)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
            for side in axis.spines.values():
                side.set_visible(True)
                side.set_color(INK)
        _scale(figure, axes[3])
        _path(axes[4], shown)
        if shown.verdict:
            figure.suptitle(
                _fitting(f"target: {shown.target}", 60) + f"; {shown.verdict}", x=0.005, ha="left", fontsize=10
            )
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
    axis.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])  # short: the colour bar's are beside them
    axis.set_xlabel("noise level of the step")
    axis.set_title(_fitting(f"what {shown.by} sees", 40), fontsize=10)
    axis.legend(loc="best", fontsize=9, handlelength=1.6)


def _fitting(text: str, most: int = 22) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


@dataclass(frozen=True)
class Listed:
    """One edit in an overview. original, edited: uint8 (C, H, W). words: lines beside it, the first in orange where it
    failed.
    """

    original: np.ndarray
    edited: np.ndarray
    words: Sequence[str]
    failed: bool = False


def edits_overview(edits: Sequence[Listed], heading: Sequence[str] = ()) -> bytes:
    """A PNG of many edits of one size: original, edited, change and words in a row, up to `DOWN` rows below each other.

    heading: lines above all. Small images are enlarged by a whole number, to about `CELL` pixels; larger ones keep
    theirs. Raises `ValueError` where there is no edit, or images are of different sizes.
    """
    from PIL import Image, ImageDraw

    tiles = [_tiles(edit) for edit in edits]
    sizes = {part.shape for part in tiles}
    if len(sizes) != 1:
        raise ValueError(f"{len(edits)} edits of {len(sizes)} sizes")
    scale = max(1, round(CELL / max(next(iter(sizes))[1:3])))
    tiles = [part.repeat(scale, axis=1).repeat(scale, axis=2) for part in tiles]
    high, wide = tiles[0].shape[1:3]
    room = _longest([line for edit in edits for line in edit.words], WORDS)
    down = max(high, SPACING * max(len(edit.words) for edit in edits)) + GAP
    across = 3 * (wide + GAP) + GAP + room + APART
    top = EDGE + SPACING * (len(heading) + 1) + GAP
    width = max(-(-len(edits) // DOWN) * across - APART, _longest(heading, HEADING))
    canvas = Image.new("RGBA", (width + 2 * EDGE, top + min(len(edits), DOWN) * down - GAP + EDGE), (0, 0, 0, 0))
    pen = ImageDraw.Draw(canvas)
    for k, line in enumerate(heading):
        _line(pen, line, (EDGE, EDGE + SPACING * (k + 0.5)), width)
    for k, (edit, part) in enumerate(zip(edits, tiles, strict=True)):
        x, y = EDGE + k // DOWN * across, top + k % DOWN * down
        for tile, name in zip(part, PICTURES, strict=True):
            pen.rectangle((x - 1, y - 1, x + wide, y + high), outline=GREY)  # an unchanged image is all white
            canvas.paste(Image.fromarray(tile), (x, y))
            if k % DOWN == 0:
                _line(pen, name, (x, y - SPACING / 2 - GAP), wide)
            x += wide + GAP
        for place, line in enumerate(edit.words):
            ink = ORANGE if edit.failed and place == 0 else GREY
            _line(pen, line, (x + GAP, y + SPACING * (place + 0.5)), room, ink)
    file = io.BytesIO()
    canvas.save(file, "PNG", optimize=True)
    return file.getvalue()


def _tiles(edit: Listed) -> np.ndarray:
    """Original, edited and change, (3, H, W, 3)."""
    pictures = (edit.original, edit.edited, change_colours(edit.original, edit.edited))
    return np.stack([as_tiles(picture[None])[0] for picture in pictures])


def _longest(lines: Sequence[str], most: int) -> int:
    """Pixels that the longest of these lines needs, at most so many."""
    return max((min(most, math.ceil(_font(SMALL).getlength(line))) for line in lines), default=0)


def _line(pen: Any, text: str, left: tuple[float, float], room: int, ink: Any = GREY) -> None:
    """One line that begins here, shortened until it fits into `room` pixels."""
    font, shown = _font(SMALL), text
    while len(text) > 1 and font.getlength(shown) > room:
        text = text[:-1]
        shown = text.rstrip() + "…"
    pen.text(left, shown, ink, font, anchor="lm")
