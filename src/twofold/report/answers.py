"""How good answers are, as figures and tables: confidence against accuracy, other kinds of images, class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .figures import BLUE, INK, ORANGE, drawn, png_of
from .recognition import noise_curves, percent

MOST = 40  # classes or attributes in the table; of more, the least known are shown
METRICS = {
    "accuracy": ("Accuracy", "Share of held-out images that are named rightly; of attributes, the mean over them."),
    "always": ("Accuracy of the commoner answer", "What saying the same of every image would reach."),
    "macro_f1": ("F1, mean over attributes", "Precision and recall of yes in one number; 1 is best."),
    "average_precision": (
        "Average precision, mean over attributes",
        "How far the images that have an attribute are ranked before those that have not; 1 is best.",
    ),
    "exact": ("All attributes right", "Share of images without a single wrong answer."),
    "calibration_error": (
        "Calibration error",
        "How far confidence is from the share of right answers, on average (15 bins); 0 is best.",
    ),
    "brier": ("Brier score", "Squared distance between probabilities and the truth; 0 is best."),
    "log_loss": ("Negative log-likelihood", "Of the true answer, in nats; sure mistakes cost most. 0 is best."),
    "temperature": (
        "Temperature",
        "What logits are best divided by, found on validation images: above 1, the model is too sure of itself.",
    ),
    "calibration_error_scaled": ("Calibration error at that temperature", "The same after dividing by it."),
    "log_loss_scaled": ("Negative log-likelihood at that temperature", "The same after dividing by it."),
}
SHARES = {"accuracy", "always", "exact"}
SCORES = {
    "max_probability": "1 - highest probability",
    "energy": "Energy of the logits",
    "entropy": "Entropy",
    "denoising_error": "Denoising error",
}


def reliability_figure(rows: Sequence[Mapping[str, float]]) -> bytes:
    """Accuracy of the answers in every bin of confidence, with 95 % intervals, beside the diagonal; below, how many
    answers each bin holds. rows: as `measure.answers.reliability` gives them."""
    total = sum(row["answers"] for row in rows)
    with drawn() as figure_of:
        figure = figure_of(4.4, 4.2)
        top, below = figure.subplots(2, sharex=True, gridspec_kw={"height_ratios": [2.4, 1.0]})
        top.plot([0, 100], [0, 100], "--", color=INK, linewidth=1, label="as right as sure")
        middle = [100 * row["confidence"] for row in rows]
        share = [100 * row["accuracy"] for row in rows]
        ends = [[100 * abs(row[f"accuracy_{side}"] - row["accuracy"]) for row in rows] for side in ("low", "high")]
        top.errorbar(
            middle, share, ends, fmt="o", color=BLUE, markersize=4, elinewidth=1, capsize=2, label="accuracy (95 %)"
        )
        top.set_ylabel("right answers (%)")
        top.set_ylim(-3, 103)
        top.legend(loc="upper left")
        lefts = [100 * row["low"] for row in rows]
        widths = [100 * (row["high"] - row["low"]) for row in rows]
        heights = [100 * row["answers"] / total for row in rows]
        below.bar(lefts, heights, widths, align="edge", color=BLUE, alpha=0.55, edgecolor=BLUE, linewidth=0.6)
        below.set_ylabel("answers (%)")
        below.set_xlabel("confidence (%)")
        below.set_xlim(-2, 102)
        figure.align_ylabels()
        return png_of(figure)


def strangeness_figure(found: Mapping[str, Any]) -> bytes:
    """For every score a panel: how it is distributed among the model's own images and among the others. found: "ood"
    of an evaluation."""
    scores = found["scores"]
    with drawn() as figure_of:
        figure = figure_of(4.4, 0.5 + 1.7 * len(scores))
        axes = figure.subplots(len(scores), squeeze=False)[:, 0]
        for axis, (name, row) in zip(axes, scores.items(), strict=True):
            bars = row["histogram"]
            for side, kind, colour, line in (("inside", "own", BLUE, "-"), ("outside", "other", ORANGE, "--")):
                label = f"{_short(found[kind]['name'])} ({kind})"
                shares = [100 * value for value in bars[side]]
                axis.stairs(shares, bars["edges"], color=colour, fill=True, alpha=0.22)
                axis.stairs(shares, bars["edges"], color=colour, linestyle=line, linewidth=1.4, label=label)
            axis.set_title(f"{SCORES.get(name, name)}: AUROC {row['auroc']:.3f}", fontsize=10, color=INK, loc="left")
            axis.set_ylabel("images (%)")
            if row.get("log"):
                axis.set_xscale("log")
                axis.minorticks_off()
                axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, handlelength=1.6)
        axes[-1].set_xlabel("score: the higher, the stranger to the model")
        figure.align_ylabels()
        return png_of(figure)


def pictures(found: Mapping[str, Any]) -> dict[str, bytes | None]:
    """The figures that answers have data for."""
    return {
        "reliability": reliability_figure(found["reliability"]) if found.get("reliability") else None,
        "against_noise": noise_curves({"": found["noise"]}) if found.get("noise") else None,
        "strangeness": strangeness_figure(found["ood"]) if found.get("ood") else None,
    }


def table(found: Mapping[str, Any]) -> dict[str, Any]:
    """Answers as the page shows them, in words: {summary, rows, columns, classes, left_out, scores, scores_note,
    notes}."""
    scores = found.get("ood")
    per_class = found.get("per_class", {})
    several = found.get("kind") == "attributes"
    return {
        "summary": _summary(found) if "metrics" in found else "",
        "rows": [_metric(name, row) for name, row in found.get("metrics", {}).items()],
        "kind": "Attribute" if several else "Class",
        "columns": ATTRIBUTE_COLUMNS if several else CLASS_COLUMNS,
        "classes": _classes(per_class, several),
        "left_out": max(0, len(per_class) - MOST),
        "scores": [] if scores is None else [_score(name, row) for name, row in scores["scores"].items()],
        "scores_note": "" if scores is None else _scores_note(scores),
        "notes": [*found.get("notes", ()), *(scores["notes"] if scores else ())],
    }


CLASS_COLUMNS = ("Images", "Named rightly", "95 % interval", "Precision")
ATTRIBUTE_COLUMNS = ("Have it", "Accuracy", "Commoner answer", "F1", "Average precision")


def _summary(found: Mapping[str, Any]) -> str:
    accuracy, part = found["metrics"]["accuracy"], found["held_out"]
    what = "of its answers about attributes are right" if found["kind"] == "attributes" else "are named rightly"
    low_high = accuracy.get("interval")
    interval = f" ({percent(low_high[0])} to {percent(low_high[1])})" if low_high else ""
    level = found.get("asked_at", 0)
    noise = f", shown with noise of sigma {level:g}" if level else ""
    known = part.get("labelled", part["images"])
    of = f" images of the {part['split']} part of {found['data']['name']}"
    images = f"{known:,}{of}" if known == part["images"] else f"{known:,} labelled{of}, which holds {part['images']:,}"
    return f"Of {images}{noise}, {percent(accuracy['samples'])} {what}{interval}."


def _metric(name: str, row: Mapping[str, Any]) -> dict[str, str]:
    title, meaning = METRICS.get(name, (name, ""))
    value = percent(row["samples"]) if name in SHARES else f"{row['samples']:.3g}"
    interval = row.get("interval")
    told = f"{percent(interval[0])} to {percent(interval[1])}" if interval else ""
    return {"title": title, "value": value, "interval": told, "meaning": meaning}


def _classes(rows: Mapping[str, Mapping[str, Any]], several: bool) -> list[dict[str, Any]]:
    """In their order, or the least known of many."""
    names = list(rows)
    if len(names) > MOST:
        names = sorted(names, key=lambda name: rows[name]["accuracy"])[:MOST]
    shown = lambda value: "" if value is None else percent(value)  # noqa: E731
    short = lambda value: "" if value is None else f"{value:.3f}"  # noqa: E731
    found = []
    for name in names:
        row = rows[name]
        if several:
            cells = [shown(row["share"]), shown(row["accuracy"]), shown(row["always"])]
            cells += [short(row["f1"]), short(row["average_precision"])]
        else:
            cells = [f"{row['images']:,}", shown(row["accuracy"]), f"{percent(row['low'])} to {percent(row['high'])}"]
            cells.append(shown(row["precision"]))
        found.append({"name": name, "cells": cells})
    return found


def _score(name: str, row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "title": SCORES.get(name, name),
        "auroc": f"{row['auroc']:.3f}",
        "interval": f"{row['low']:.3f} to {row['high']:.3f}",
        "fpr95": percent(row["fpr95"]),
        "aupr": f"{row['aupr']:.3f}",
    }


def _scores_note(found: Mapping[str, Any]) -> str:
    own, other = found["own"], found["other"]
    chance = other["images"] / (own["images"] + other["images"])
    return (
        f"{own['images']:,} held-out images of {own['name']} and {other['images']:,} of {other['name']}. AUROC: the "
        "chance that one of the others looks stranger to the model than one of its own; 0.5 is guessing. FPR: the "
        "share of the others that pass where 95 % of its own do. AUPR: of finding the others; guessing gets "
        f"{chance:.3f}."
    )


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"
