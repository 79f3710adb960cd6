"""Charts of a distillation: students beside each other, noise levels, classes of pixels, errors of key points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..measure.landmarks import cumulative
from .figures import BLUE, INK, MOST_CLASSES, ORANGE, _shortened, drawn, interval_bars, loss_curve, png_of
from .teaching_words import EQUAL, LESS, MEASURES, SCRATCH, TAUGHT, found, in_order, shown, title_of

GREEN = "#3d9a50"
LOOKS = {TAUGHT: (ORANGE, "-"), SCRATCH: (BLUE, "--"), EQUAL: (INK, ":")}  # the colour and the line of a student
FEW = 64  # noise levels that are drawn as bars


def students_figure(arms: Mapping[str, Any], measure: str) -> bytes | None:
    """A bar for each student with its 95 % interval; None where nothing is known of them."""
    rows = [
        (title_of(name).replace(", ", ",\n"), here[0], here[1], here[2], name == TAUGHT)
        for name, arm in in_order(arms)
        if (here := found(arm, measure)) is not None
    ]
    better = ", less is better" if measure in LESS else ""
    name = "NME" if measure == "nme" else MEASURES.get(measure, measure)
    return interval_bars(rows, f"{name} (%){better}") if rows else None


def imitation_figure(losses: Sequence[Mapping[str, Any]]) -> bytes | None:
    """The loss on held-out images over images seen; None for fewer than two."""
    rows = [{**row, "kind": "validation"} for row in losses if row.get("loss") is not None]
    return loss_curve(rows) if len(rows) > 1 else None


def levels_figure(selection: Mapping[str, Any] | None) -> bytes | None:
    """How often each noise level is chosen, over sigma. selection: {"sigma", "probability"}, both (bins,); None where
    there are fewer than two levels above 0."""
    sigma, share = (np.asarray((selection or {}).get(name) or (), float) for name in ("sigma", "probability"))
    there = sigma > 0
    sigma, share = sigma[there], share[there]
    if len(sigma) < 2:
        return None
    order = np.argsort(sigma)
    sigma, share = sigma[order], 100 * share[order]
    with drawn() as figure_of:
        figure = figure_of(4.4, 2.6)
        axis = figure.subplots()
        axis.set_xscale("log")
        place = np.log(sigma)
        middles = (place[1:] + place[:-1]) / 2
        edges = np.exp([2 * place[0] - middles[0], *middles, 2 * place[-1] - middles[-1]])
        if len(sigma) <= FEW:
            axis.bar(edges[:-1], share, np.diff(edges), align="edge", color=BLUE, alpha=0.55, edgecolor=BLUE)
        else:
            axis.stairs(share, edges, fill=True, color=BLUE, alpha=0.55)
        even = 100 / len(sigma)
        axis.axhline(even, color=INK, linestyle="--", linewidth=1, label="all alike")
        axis.set_ylim(0, 1.25 * max(share.max(), even))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_formatter(lambda value, _: "")
        if sigma[-1] < 30 * sigma[0]:  # within a decade or so a logarithmic axis would have one number
            chosen = sigma[np.unique(np.linspace(0, len(sigma) - 1, min(5, len(sigma))).round().astype(int))]
            axis.set_xticks(chosen, [f"{value:.2g}" for value in chosen])
            axis.minorticks_off()
        axis.set_xlabel("noise level sigma")
        axis.set_ylabel("chosen (%)")
        axis.legend(loc="upper right")
        return png_of(figure)


def class_iou_figure(arms: Mapping[str, Any]) -> bytes | None:
    """The IoU of each class of pixels, for each student; None where none is known.

    With more than `MOST_CLASSES` classes those are shown whose IoU differs most between students.
    """
    kept = iou_table(arms)
    if kept is None:
        return None
    classes, names, table = kept
    if len(classes) > MOST_CLASSES:
        spread = np.nan_to_num(np.nanmax(np.nan_to_num(table), 0) - np.nanmin(np.nan_to_num(table), 0))
        chosen = np.sort(np.argsort(-spread, kind="stable")[:MOST_CLASSES])
        classes, table = [classes[i] for i in chosen], table[:, chosen]
    place, count = np.arange(len(classes)), len(names)
    with drawn() as figure_of:
        figure = figure_of(4.4, 1.3 + len(classes) * (0.16 * count + 0.12))
        axis = figure.subplots()
        high = 0.8 / count
        for k, (name, row) in enumerate(zip(names, table, strict=True)):
            colour = LOOKS.get(name, (GREEN, "-"))[0]
            at = place + (k - (count - 1) / 2) * high
            axis.barh(at, 100 * np.nan_to_num(row), high, color=colour, alpha=0.85, label=title_of(name))
        axis.set_yticks(place, [_shortened(name) for name in classes])
        axis.set_ylim(len(classes) - 0.5, -0.5)
        axis.set_xlabel("intersection over union (%)")
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        axis.legend(loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=1, handlelength=1.2)
        return png_of(figure)


def iou_table(arms: Mapping[str, Any]) -> tuple[list[str], list[str], np.ndarray] | None:
    """(classes, students, IoUs (students, classes) with NaN for a class that is nowhere); None where none is known."""
    kept = [(name, arm["details"]) for name, arm in in_order(arms) if (arm.get("details") or {}).get("iou")]
    if not kept:
        return None
    table = np.array([[math.nan if v is None else v for v in details["iou"]] for _, details in kept], float)
    return [str(name) for name in kept[0][1]["classes"]], [name for name, _ in kept], table


def errors_figure(arms: Mapping[str, Any]) -> bytes | None:
    """The share of images with at most an error, over it, up to the threshold; None where none is known."""
    known = [(name, arm["details"], arm) for name, arm in in_order(arms) if (arm.get("details") or {}).get("errors")]
    curves = []
    for name, details, arm in known:
        errors = np.array([math.nan if v is None else v for v in details["errors"]], float)
        if not np.isnan(errors).all():
            at, share = cumulative(errors, details["threshold"])
            area = found(arm, "auc")
            curves.append((name, at, share, "" if area is None else f", AUC {shown('auc', area[0])}"))
    if not curves:
        return None
    with drawn() as figure_of:
        figure = figure_of(4.4, 3.2)
        axis = figure.subplots()
        for name, at, share, said in curves:
            colour, line = LOOKS.get(name, (GREEN, "-"))
            axis.step(100 * at, 100 * share, line, where="post", color=colour, label=title_of(name) + said)
        axis.set_xlim(0, 100 * known[0][1]["threshold"])
        axis.set_ylim(0, 102)
        axis.set_xlabel("normalised error of an image (%)")
        axis.set_ylabel("images with at most it (%)")
        axis.legend(loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=1, handlelength=1.8)
        return png_of(figure)
