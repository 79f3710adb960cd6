"""Are the generated images good? An evaluation, judged criterion by criterion against real images.

No criterion stands alone: a Gaussian fitted to the pixels gets a low Frechet distance, copies of training images get
everything but the last one.
"""

from __future__ import annotations

from typing import Any

from ..measure.neighbours import UNLIKE
from ..measure.quality import meaning
from .page import Criterion

ACCEPTED = 0.9  # of the share of real images that the classifier accepts
COVERED = 0.85  # of the precision and recall of held-out real images
CLASS_GAP = 5.0  # percentage points
BESIDE = {"samples": "generated", "real": "real", "gaussian": "fitted Gaussian"}


def verdict(found: dict[str, Any], frechet_target: float | None = None) -> list[Criterion]:
    """The criteria an evaluation (as `twofold evaluate` writes it) allows, each with value, target and pass or fail.

    frechet_target: the distance to reach on this data and encoder, if there is one.
    """
    metrics = found["metrics"]
    criteria = [_distance(found, frechet_target)] if "frechet_to_split" in found else []
    for name, row in metrics.items():
        kind, both = name.split("/")[0], {"samples", "real"} <= row.keys()
        if kind in ("precision", "recall") and both:
            criteria.append(_at_least(kind.capitalize(), name, row, COVERED))
        elif kind == "acceptance" and both:
            criteria.append(_at_least("Recognized by an independent classifier", name, row, ACCEPTED))
        elif kind == "class_share_gap":
            value = row["samples"]
            criteria.append(
                Criterion(
                    "Every class as often as it occurs",
                    f"{value:.1f} points at most",
                    f"at most {CLASS_GAP:g} points",
                    value <= CLASS_GAP,
                    meaning(name),
                )
            )
    return criteria + _copies(metrics)


def _distance(found: dict[str, Any], target: float | None) -> Criterion:
    whole = found["frechet_to_split"]
    name, row = next((name, row) for name, row in found["metrics"].items() if name.startswith("frechet/"))
    values = (f"{word} {row[key]:.3f}" for key, word in BESIDE.items())
    beside = "at equal numbers: " + ", ".join(values)
    return Criterion(
        f"Fréchet distance ({name.split('/')[1]}), {whole['images']:,} samples to all real images",
        f"{whole['value']:.3f}",
        (f"at most {target:.2f}; " if target is not None else "") + beside,
        whole["value"] <= target if target is not None else None,
        meaning(name),
    )


def _at_least(title: str, name: str, row: dict[str, Any], share: float) -> Criterion:
    goal = share * row["real"]
    target = f"at least {goal:.1%} ({share:g} times the {row['real']:.1%} of new real images)"
    return Criterion(title, f"{row['samples']:.1%}", target, row["samples"] >= goal, meaning(name))


def _copies(metrics: dict[str, Any]) -> list[Criterion]:
    """Not nearer to the training images than new real images are, within what their number leaves uncertain: of
    genuinely new digits, half would miss the point value.

    Not judged of images that look like none of the real ones: that noise is no copy is no merit.
    """
    criteria = []
    far = metrics.get("farther_than_real", {}).get("samples", 0.0)
    note = f"says nothing here: {far:.0%} of the images are farther from them than 99 of 100 new real images; "
    for name, title in (("nearest_median", "typical image"), ("nearest_5_percent", "nearest twentieth")):
        if name in metrics:
            row = metrics[name]
            low, high = row["real_interval"]
            criteria.append(
                Criterion(
                    f"No copies: distance of the {title} to its nearest training image",
                    f"{row['samples']:.3f}",
                    (note if far > UNLIKE else "")
                    + f"not below that of new real images, {row['real']:.3f} ({low:.3f} to {high:.3f})",
                    row["samples"] >= low if far <= UNLIKE else None,
                    meaning(name),
                )
            )
    return criteria
