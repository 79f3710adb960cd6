"""The shape of DDAE's finding (Xiang et al. 2023), asked of one's own numbers: where are a denoiser's best features?

Published: in the middle of the decoder, at a small noise level (sigma about 0.05 in both frameworks), falling on all
sides, and best earlier in training than the samples are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SMALL_NOISE = (0.03, 0.4)


@dataclass(frozen=True)
class Answer:
    """holds: None where the grid does not reach far enough to say."""

    question: str
    holds: bool | None
    evidence: str


def answers(
    cells: Sequence[Mapping[str, Any]],
    chosen: tuple[str, float],
    layers: Sequence[str],
    over_training: Sequence[Mapping[str, Any]] = (),
) -> list[Answer]:
    """What a grid of accuracies says.

    cells: {places: [[layer, sigma]], validation: accuracy}, single places, all fitted on the same images.
    chosen: the place that was chosen. layers: all of the model, in order of execution.
    over_training: {n_images, accuracy, frechet} of several snapshots.
    """
    table = {tuple(cell["places"][0]): cell["validation"] for cell in cells}
    layer, sigma = chosen
    top = table[layer, sigma]
    found = [
        _middle_of_decoder(table, layers, layer, sigma),
        Answer(
            f"Is the best noise level between {SMALL_NOISE[0]:g} and {SMALL_NOISE[1]:g}?",
            SMALL_NOISE[0] <= sigma <= SMALL_NOISE[1],
            f"best at sigma {sigma:g} ({_share(top)})",
        ),
        _both_sides("noise levels", sorted({s for _, s in table}), sigma, lambda s: table[layer, s], "sigma {:g}"),
        _both_sides(
            "layers", [name for name in layers if (name, sigma) in table], layer, lambda n: table[n, sigma], "{}"
        ),
    ]
    return found + ([_before_samples(over_training)] if len(over_training) > 2 else [])


def _middle_of_decoder(
    table: Mapping[tuple[str, float], float], layers: Sequence[str], layer: str, sigma: float
) -> Answer:
    """Strictly between the first and the last decoder layer, where a network has a decoder; else in the inner half."""
    question = "Is the best layer in the middle of the decoder?"
    decoder = [name for name in layers if name.startswith("dec.")] or list(layers)
    seen = [name for name in decoder if (name, sigma) in table]
    if len(seen) < 3:
        return Answer(question, None, "the grid has too few decoder layers")
    inner = decoder[1:-1] if decoder[0].startswith("dec.") else layers[len(layers) // 4 : -(len(layers) // 4) or None]
    place = f"{layer}, number {decoder.index(layer) + 1} of {len(decoder)}" if layer in decoder else layer
    return Answer(question, layer in inner, f"best layer {place} ({_share(table[layer, sigma])})")


def _both_sides(what: str, axis: Sequence[Any], at: Any, value: Any, form: str) -> Answer:
    question = f"Does accuracy fall towards both ends of the {what}?"
    place = list(axis).index(at)
    if len(axis) < 3:
        return Answer(question, None, f"the grid has too few {what}")
    ends = f"{form.format(axis[0])}: {_share(value(axis[0]))}, {form.format(at)}: {_share(value(at))}, "
    ends += f"{form.format(axis[-1])}: {_share(value(axis[-1]))}"
    if place in (0, len(axis) - 1):
        return Answer(question, False, f"the best is at an end; {ends}")
    return Answer(question, value(axis[0]) < value(at) > value(axis[-1]), ends)


def _before_samples(rows: Sequence[Mapping[str, Any]]) -> Answer:
    question = "Is recognition best earlier in training than the samples are?"
    known = [row for row in rows if row.get("frechet") is not None]
    if len(known) < 3:
        return Answer(question, None, "no Fréchet distances were measured over training")
    top = max(row["accuracy"] for row in known)
    probe = [row["n_images"] for row in known if row["accuracy"] == top][-1]  # of equal ones the latest
    frechet = min(known, key=lambda row: row["frechet"])["n_images"]
    evidence = f"accuracy is best at {probe:,} images, the Fréchet distance at {frechet:,}"
    return Answer(question, probe < frechet, evidence)


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
