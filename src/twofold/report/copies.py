"""The page of `twofold copies`: a verdict, the most suspicious pairs, and how the rule was calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..measure.neighbours import UNLIKE
from .figures import BLUE, ORANGE, drawn, png_of
from .frame import assembled, written
from .grids import neighbour_grid
from .recognition import percent

BINS = 50
ALT = {
    "pairs": "Pairs of a generated image and the training image nearest to it, the most suspicious ones first.",
    "pixels": "Histogram of generated and of new real images by the value that decides, in pixels.",
    "features": "Histogram of generated and of new real images by the value that decides, in features.",
}


@dataclass(frozen=True)
class Pairs:
    """The most suspicious pairs: images and their nearest training images, uint8 (n, C, H, W), and their ratios."""

    images: np.ndarray
    nearest: np.ndarray
    ratios: Sequence[float]


def verdict(result: Mapping[str, Any]) -> list[str]:
    """What the numbers mean, in a few sentences; the first one is the verdict."""
    share, n, rate = result["flagged"]["share"], result["images"], result["rate"]
    count, (low, _) = result["flagged"]["images"], result["flagged"]["interval"]
    strange = unlike(result)
    if count == 0:
        which = f"None of the {n:,} images is" if n > 1 else "The image is not"
        text = f"{which} suspiciously near to a training image{', which says little of these' if strange else ''}."
    elif low > rate:
        text = f"{count:,} of {n:,} images ({percent(share)}) are too near to a training image to be new: look at them."
    else:
        text = f"{count:,} of {n:,} images are flagged, which is no more than chance would flag of new real images."
    held_out = f"{result['held_out']['images']:,} real images that were not trained on"
    lines = [text, *strange, f"The rule was set by {held_out}; of new real images it flags at most {percent(rate)}."]
    for name, space in result["spaces"].items():
        low, high = space["nearer_interval"]
        if low > 0.5:
            odds = f"{space['nearer']:.2f} ({low:.2f} to {high:.2f}; 0.5 is none the nearer)"
            lines.append(
                f"As a whole they lie nearer to the training images than new real images do (by {name}): of two, "
                f"one of either, the generated one is nearer with probability {odds}. That is overfitting, even where "
                "nothing is flagged."
            )
    return lines


def unlike(result: Mapping[str, Any]) -> list[str]:
    """What to say of images most of which look like none of the training images: for them it means nothing to be no
    copy. [] for others."""
    shares = {name: space["farther_than_real"]["samples"] for name, space in result["spaces"].items()}
    name, share = max(shares.items(), key=lambda one: one[1])
    if share <= UNLIKE:
        return []
    which = f"{percent(share)} of the images lie" if result["images"] > 1 else "The image lies"
    return [
        f"{which} farther from every training image than 99 of 100 new real images do (by {name}): what looks like "
        "none of the data, such as noise or images of another kind, is no copy, and that is no merit."
    ]


def write_page(folder: Path, result: Mapping[str, Any], pairs: Pairs, values: Mapping[str, Any]) -> Path:
    """Writes report.html, and its pictures as figures/*.png, into the folder; returns the page's path. Atomic.

    result: what result.json holds. values: {space: (generated (N,), held out (H,), limit)} of what decides.
    """
    pictures = {"pairs": neighbour_grid(pairs.images, pairs.nearest, pairs.ratios)}
    for name, (ours, real, limit) in values.items():
        pictures["pixels" if name == "pixels" else "features"] = histogram(ours, real, limit, result["rule"])
    return written(folder, render(result, pictures), pictures)


def histogram(ours: Any, real: Any, limit: float, rule: str) -> bytes:
    """A PNG: how often each value occurs among generated and held-out images, and the limit below which is flagged."""
    ours, real = np.asarray(ours, np.float64), np.asarray(real, np.float64)
    with drawn() as figure_of:
        figure = figure_of(6.0, 3.2)
        axis = figure.subplots()
        edges = np.linspace(0, max(float(ours.max()), float(real.max()), 1e-9) * 1.001, BINS + 1)
        for values, name, colour in ((real, "new real images", BLUE), (ours, "generated", ORANGE)):
            heights = np.histogram(values, edges)[0] / len(values)
            axis.stairs(heights, edges, color=colour, label=name, fill=name.startswith("new"), alpha=0.6, linewidth=1.5)
        axis.axvline(limit, color=ORANGE, linestyle="--", label="flagged left of this")
        axis.set_xlabel("nearest / second nearest picture" if rule == "ratio" else "distance to the nearest")
        axis.set_ylabel("share of images")
        axis.legend(fontsize=9)
        return png_of(figure)


def render(result: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page as text."""
    known = result["training"]
    data = {
        "training images": f"{known['images']:,} of {result['data']['name']} ({result['data']['hash'][:8]})",
        "exact duplicates among them": f"{known['exact_duplicates']:,}",
        "near duplicates among them": f"about {percent(known['near_duplicates'])}",
        "new real images": f"{result['held_out']['images']:,}, {result['held_out']['from']}",
        "images looked at": f"{result['images']:,} of {result['samples']}",
    }
    return assembled(
        BODY,
        "Are these images copies?",
        verdict(result),
        {"pairs": ("The most suspicious pairs", True), "calibration": ("How this is decided", True)},
        pictures,
        ALT,
        data,
        result,
        rows=[_row(name, space) for name, space in result["spaces"].items()],
        flagged=result["flagged"]["images"],
        rule=result["rule"],
    )


def _row(name: str, space: Mapping[str, Any]) -> dict[str, str]:
    low, high = space["nearer_interval"]
    return {
        "name": name,
        "flagged": f"{space['flagged']:,}",
        "limit": f"{space['limit']:.3g}",
        "rate": percent(space["rate"]),
        "median": f"{space['nearest_median']['samples']:.3g}",
        "real": f"{space['nearest_median']['real']:.3g}",
        "nearer": f"{space['nearer']:.2f} ({low:.2f} to {high:.2f})",
        "farther": percent(space["farther_than_real"]["samples"]),
    }


BODY = """\
<section aria-labelledby="pairs">
<h2 id="pairs">{{ sections.pairs }}</h2>
{{ figure("pairs", "Above a generated image, below the training image nearest to it, and the ratio of its distance to "
 ~ "that of the nearest other picture: near 0 for copies. " ~ flagged ~ " are flagged; copies.csv lists all images.") }}
</section>
<section aria-labelledby="calibration">
<h2 id="calibration">{{ sections.calibration }}</h2>
<p>For every image the nearest training image is searched among all of them, and the nearest one that shows another
picture. A copy is much nearer to the first than to the second. How much nearer is too near is taken from real images
that were not trained on.</p>
<div class="pair">
{{ figure("pixels", "In pixels.", "chart") }}
{{ figure("features", "In features.", "chart") }}
</div>
<table>
<thead><tr><th scope="col">Compared by</th><th scope="col">Flagged</th><th scope="col">Limit of the {{ rule }}</th>
<th scope="col">Flagged of new real ones, at most</th><th scope="col">Median distance</th>
<th scope="col">of new real ones</th><th scope="col">Nearer than a new real one</th>
<th scope="col">Farther than 99 of 100 new real ones</th></tr></thead>
<tbody>
{% for row in rows %}<tr><th scope="row">{{ row.name }}</th>
<td class="number" data-label="Flagged">{{ row.flagged }}</td><td class="number" data-label="Limit">{{ row.limit }}</td>
<td class="number" data-label="At most">{{ row.rate }}</td>
<td class="number" data-label="Median distance">{{ row.median }}</td>
<td class="number" data-label="of new real ones">{{ row.real }}</td>
<td class="number" data-label="Nearer">{{ row.nearer }}</td>
<td class="number" data-label="Farther">{{ row.farther }}</td></tr>
{% endfor %}</tbody>
</table>
</section>
"""
