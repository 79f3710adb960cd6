"""The shape of DDAE's finding (Xiang et al. 2023), asked of one's own numbers: where are a denoiser's best features?

Published: in the middle of the decoder, at a small noise level (sigma about 0.05 in both frameworks), falling on all
sides, and best earlier in training than the samples are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SMALL_NOISE = (0.03, 0.4)


@dataclass(frozen=True)
class Answer:
    """holds: None where the grid does not reach far enough, or the images are too few, to say."""

    question: str
    holds: bool | None
    evidence: str


def answers(
    cells: Sequence[Mapping[str, Any]],
    chosen: tuple[str, float],
    layers: Sequence[str],
    images: int,
    over_training: Sequence[Mapping[str, Any]] = (),
) -> list[Answer]:
    """What a grid of accuracies says, and "unknown" where the validation images cannot tell.

    cells: {places: [[layer, sigma]], validation: accuracy}, single places, all fitted on the same images.
    chosen: the place that was chosen. layers: all of the model, in order of execution. images: of validation; two
    accuracies differ where they are more than a standard error of the higher one apart.
    over_training: {n_images, accuracy, frechet} of several snapshots.
    """
    table = {tuple(cell["places"][0]): cell["validation"] for cell in cells}
    layer, sigma = chosen
    top = table[chosen]
    doubt = math.sqrt(top * (1 - top) / images) + 1 / images
    by_layer = {name: table[name, sigma] for name in layers if (name, sigma) in table}
    by_sigma = {s: table[layer, s] for s in sorted({s for _, s in table})}
    found = [
        _middle_of_decoder(by_layer, layers, layer, doubt),
        _within(
            f"Is the best noise level between {SMALL_NOISE[0]:g} and {SMALL_NOISE[1]:g}?",
            {s: value for s, value in by_sigma.items() if SMALL_NOISE[0] <= s <= SMALL_NOISE[1]},
            {s: value for s, value in by_sigma.items() if not SMALL_NOISE[0] <= s <= SMALL_NOISE[1]},
            doubt,
            "sigma {:g}",
        ),
        _both_sides("noise levels", by_sigma, doubt, "sigma {:g}"),
        _both_sides("layers", by_layer, doubt, "{}"),
    ]
    return found + ([_before_samples(over_training, doubt)] if len(over_training) > 2 else [])


def _within(
    question: str, inside: Mapping[Any, float], outside: Mapping[Any, float], doubt: float, form: str
) -> Answer:
    """Whether the best is among `inside`; unknown where the best of both differ by less than `doubt`."""
    if not inside or not outside:
        return Answer(question, None, "the grid does not reach beyond it" if inside else "the grid does not reach it")
    best, other = max(inside, key=inside.__getitem__), max(outside, key=outside.__getitem__)
    evidence = f"{form.format(best)}: {_share(inside[best])}, {form.format(other)}: {_share(outside[other])}"
    gap = inside[best] - outside[other]
    return Answer(question, None if abs(gap) < doubt else gap > 0, evidence + _undecided(abs(gap) < doubt))


def _middle_of_decoder(by_layer: Mapping[str, float], layers: Sequence[str], layer: str, doubt: float) -> Answer:
    """Strictly between the first and the last decoder layer, where a network has a decoder; else in the inner half."""
    question = "Is the best layer in the middle of the decoder?"
    decoder = [name for name in layers if name.startswith("dec.")]
    quarter = len(layers) // 4
    inner = decoder[1:-1] if decoder else layers[quarter : len(layers) - quarter]
    return _within(
        question,
        {name: value for name, value in by_layer.items() if name in inner},
        {name: value for name, value in by_layer.items() if name not in inner},
        doubt,
        "{}",
    )


def _both_sides(what: str, axis: Mapping[Any, float], doubt: float, form: str) -> Answer:
    question = f"Does accuracy fall towards both ends of the {what}?"
    if len(axis) < 3:
        return Answer(question, None, f"the grid has too few {what}")
    first, *_, last = axis
    best = max(axis, key=axis.__getitem__)
    ends = ", ".join(f"{form.format(at)}: {_share(axis[at])}" for at in dict.fromkeys((first, best, last)))
    undecided = any(abs(axis[best] - axis[end]) < doubt for end in (first, last))
    if best in (first, last) and not any(axis[best] - v < doubt for at, v in axis.items() if at != best):
        return Answer(question, False, f"the best is at an end; {ends}")
    return Answer(question, None if undecided else True, ends + _undecided(undecided))


def _before_samples(rows: Sequence[Mapping[str, Any]], doubt: float) -> Answer:
    question = "Is recognition best earlier in training than the samples are?"
    known = [row for row in rows if row.get("frechet") is not None]
    if len(known) < 3:
        hint = "no Fréchet distances were measured over training (validation.samples, train.validate_images)"
        return Answer(question, None, hint)
    top = max(row["accuracy"] for row in known)
    probe = [row["n_images"] for row in known if row["accuracy"] == top][-1]  # of equal ones the latest
    frechet = min(known, key=lambda row: row["frechet"])["n_images"]
    there = next(row["accuracy"] for row in known if row["n_images"] == frechet)
    evidence = (
        f"accuracy is best at {probe:,} images ({_share(top)}), the Fréchet distance at {frechet:,} ({_share(there)})"
    )
    undecided = top - there < doubt
    return Answer(question, None if undecided else probe < frechet, evidence + _undecided(undecided))


def _undecided(undecided: bool) -> str:
    return "; too close for so few validation images" if undecided else ""


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
