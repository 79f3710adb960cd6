"""The page of a run: one HTML file with everything in it, to look at, to keep and to send to someone.

Takes plain data and knows nothing about training. Sections without data vanish. Names of classes, settings and
commands come from users and are escaped; the page has no scripts and refers to nothing outside itself.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_bytes
from ..measure.quality import meaning
from . import answers, noising, recognition
from .figures import class_bars, loss_curve
from .grids import WIDTH, as_tiles, image_grid, neighbour_grid, short_count, time_grid, trajectory_grid
from .noising import Noising
from .template import CAPTIONS, CSS, PAGE

ROWS = 6  # of images in a grid of samples
CHECKPOINTS = 8  # rows of samples over time
STRIP = 6  # images per class

METRICS = {
    "frechet": "Fréchet distance",
    "precision": "Precision",
    "recall": "Recall",
    "FID": "FID",
    "sFID": "sFID",
    "inception_score": "Inception score",
    "kid": "Kernel distance (KID)",
    "kid_all": "Kernel distance, all images",
    "density": "Density",
    "coverage": "Coverage",
    "nearest_median": "Distance to the nearest training image, median",
    "nearest_5_percent": "Distance to the nearest training image, lowest 5 %",
    "nearer_than_real": "Unusually near to a training image",
    "farther_than_real": "Unusually far from every training image",
    "acceptance": "Recognized by the classifier",
    "agreement": "Of the class asked for",
    "class_share_gap": "Largest gap of class shares",
    "accuracy": "Accuracy",
    "calibration_error": "Calibration error",
    "bits_per_dimension": "Bits per dimension",
}
SHARES = {
    *("precision", "recall", "coverage", "nearer_than_real", "farther_than_real"),
    *("acceptance", "agreement", "accuracy"),
}
COLUMNS = {"samples": "Generated", "real": "Real images", "gaussian": "Fitted Gaussian"}
CLASS_COLUMNS = {
    "samples": "Share generated",
    "real": "Share real",
    "acceptance": "Recognized",
    "agreement": "Right class",
}


@dataclass(frozen=True)
class Criterion:
    """One line of the verdict, in words: "Precision", "93 %", "at least 85 %"; passed or not, None where not judged."""

    name: str
    value: str
    target: str = ""
    passed: bool | None = None
    meaning: str = ""


@dataclass(frozen=True)
class Neighbours:
    """Generated images, the training image nearest to each, and their distances; both uint8 (N, C, H, W)."""

    samples: Any
    neighbours: Any
    distances: Sequence[float]


@dataclass(frozen=True)
class Trajectory:
    """Denoising of N images: uint8 (steps, N, C, H, W) from noise to image, and the sigma of each step."""

    images: Any
    sigmas: Sequence[float]


@dataclass(frozen=True)
class Report:
    """What is known about a run. Everything but the title is optional; a section without data is left out.

    Images are uint8 (N, C, H, W), NumPy or torch on the CPU; the page shows as many as fit.
    real_caption: which real images they are, where that is known.
    recognition: what a probe found, as its result.json holds it. answers: what an evaluation says of the model's own,
    with "ood" where images of another kind were compared.
    log: rows of log.jsonl. over_time: (images seen, samples of the same seeds); with a time_caption, what the model
    says of the same held-out images, as that tells. sample_classes: the class asked for in
    each sample, by name. classes and metrics: as `measure.quality.quality` returns them. meanings: sentences for
    metrics of your own. settings: YAML. command: what reproduces the run. data, machine, versions: names and values.
    notes: sentences at the end of the page.
    """

    title: str
    summary: str = ""
    criteria: Sequence[Criterion] = ()
    log: Sequence[Mapping[str, Any]] = ()
    over_time: Sequence[tuple[int, Any]] = ()
    time_caption: str = ""
    samples: Any = None
    sample_classes: Sequence[str] | None = None
    real: Any = None
    real_caption: str = ""
    noising: Noising | None = None
    trajectory: Trajectory | None = None
    classes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    neighbours: Neighbours | None = None
    recognition: Mapping[str, Any] | None = None
    answers: Mapping[str, Any] | None = None
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics_note: str = ""
    meanings: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""
    command: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(run_dir: Path, content: Report) -> Path:
    """Writes report.html, and its pictures as figures/*.png, into an existing folder; returns the page's path.

    Atomic: a page that was there stays until the new one is complete. Raises `ValueError` for images that are not
    uint8 (N, C, H, W).
    """
    pictures = draw(content)
    page = render(content, pictures)
    (run_dir / "figures").mkdir(exist_ok=True)
    for name, png in pictures.items():
        atomic_bytes(run_dir / "figures" / f"{name}.png", png)
    path = run_dir / "report.html"
    atomic_bytes(path, page)
    return path


def draw(content: Report) -> dict[str, bytes]:
    """The pictures the content has data for, {name: PNG}; the names are those of `template.CAPTIONS`."""
    pictures: dict[str, bytes | None] = {
        "loss": loss_curve(content.log),
        "classes": class_bars(content.classes),
    }
    if content.over_time:
        chosen = _spread(content.over_time, CHECKPOINTS)
        pictures["time"] = time_grid(chosen, _columns(chosen[0][1]))
    for name, images in (("samples", content.samples), ("real", content.real)):
        if images is not None:
            columns = _columns(images)
            pictures[name] = image_grid(images[: columns * ROWS], columns)
    if content.noising is not None:
        pictures["noising"] = noising.picture(content.noising)
    if content.trajectory is not None:
        steps = _spread(list(zip(content.trajectory.images, content.trajectory.sigmas, strict=True)), 8)
        pictures["trajectory"] = trajectory_grid([images[:4] for images, _ in steps], [sigma for _, sigma in steps])
    if content.neighbours is not None:
        columns = min(8, _columns(content.neighbours.samples))
        part = slice(0, 2 * columns)
        near = content.neighbours
        pictures["neighbours"] = neighbour_grid(
            near.samples[part], near.neighbours[part], near.distances[part], columns
        )
    if content.recognition is not None:
        pictures |= recognition.pictures(content.recognition)
    if content.answers:
        pictures |= answers.pictures(content.answers)
    return {name: png for name, png in pictures.items() if png is not None}


def render(content: Report, pictures: Mapping[str, bytes]) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    strips = _strips(content)
    rows = [_metric_row(name, row, content.meanings) for name, row in content.metrics.items()]
    machine = {**content.machine, **content.versions}
    return environment.from_string(PAGE).render(
        css=Markup(CSS),
        report=content,
        sections=_sections(content, pictures, strips),
        overall=_overall(content.criteria),
        criteria=[_criterion(one) for one in content.criteria],
        captions=CAPTIONS | {n: c for n, c in (("real", content.real_caption), ("time", content.time_caption)) if c},
        images=dict.fromkeys(CAPTIONS) | {name: _inlined(png, ALT[name](content)) for name, png in pictures.items()},
        strips=strips,
        class_rows={name: _percentages(row) for name, row in content.classes.items()} or {name: {} for name in strips},
        class_columns=[c for c in CLASS_COLUMNS.items() if any(c[0] in row for row in content.classes.values())],
        metric_rows=rows,
        metric_columns=[c for c in COLUMNS.items() if any(c[0] in row["cells"] for row in rows)],
        metric_note=content.metrics_note,
        recognition=None if content.recognition is None else recognition.table(content.recognition),
        answers=answers.table(content.answers) if content.answers else None,
        machine=machine,
    )


def _sections(content: Report, pictures: Mapping[str, bytes], strips: Mapping[str, Any]) -> dict[str, str]:
    """The sections that have something to show, in order: {anchor: heading}."""
    both = "samples" in pictures and "real" in pictures
    there = {
        "verdict": ("Verdict", content.criteria),
        "loss": ("Loss", "loss" in pictures),
        "time": (f"{'Held-out images' if content.time_caption else 'Samples'} over training time", "time" in pictures),
        "samples": (
            "Generated beside real images" if both else "Generated images" if "samples" in pictures else "Real images",
            "samples" in pictures or "real" in pictures,
        ),
        "noising": ("From image to noise", "noising" in pictures),
        "trajectory": ("From noise to image", "trajectory" in pictures),
        "classes": ("Per class", content.classes or strips),
        "neighbours": ("Nearest training images", "neighbours" in pictures),
        "recognition": ("Recognition", content.recognition),
        "answers": ("Answers" if content.answers and "metrics" in content.answers else "Other images", content.answers),
        "metrics": ("All metrics", content.metrics),
        "settings": ("Settings", content.settings),
        "reproduce": ("How to reproduce", content.command),
        "data": ("Data", content.data),
        "machine": ("Machine and versions", content.machine or content.versions),
    }
    return {name: title for name, (title, present) in there.items() if present}


def _overall(criteria: Sequence[Criterion]) -> str:
    judged = [one for one in criteria if one.passed is not None]
    passed = sum(bool(one.passed) for one in judged)
    if not judged:
        return ""
    return (
        f"All {passed} criteria are met." if passed == len(judged) else f"{passed} of {len(judged)} criteria are met."
    )


def _criterion(one: Criterion) -> dict[str, str]:
    """For the template: the state is said in words and signs, not by colour alone."""
    state, mark = {True: ("passed", "✓ met"), False: ("missed", "✗ missed"), None: ("", "")}[one.passed]
    words = {"name": one.name, "value": one.value, "target": one.target, "meaning": one.meaning}
    return words | {"state": state, "mark": mark}


def _metric_row(name: str, row: Mapping[str, Any], meanings: Mapping[str, str]) -> dict[str, Any]:
    kind, _, encoder = name.partition("/")
    interval = row.get("interval")
    return {
        "title": METRICS.get(kind, kind) + (f" ({encoder})" if encoder else ""),
        "cells": {key: shown(kind, row[key]) for key in COLUMNS if key in row},
        "interval": f"{shown(kind, interval[0])} to {shown(kind, interval[1])}" if interval else "",
        "meaning": meanings.get(name) or meaning(name),
    }


def shown(metric: str, value: float) -> str:
    """A metric's value as people read it: "93.4 %", "2.1 points", "0.137"."""
    kind = metric.split("/")[0]
    if kind in SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:.1f} points" if kind == "class_share_gap" else f"{value:.3g}"


def _percentages(row: Mapping[str, float]) -> dict[str, str]:
    return {key: f"{100 * value:.1f} %" for key, value in row.items()}


def _strips(content: Report) -> dict[str, dict[str, Any]]:
    """A row of samples for each class that was asked for."""
    if content.samples is None or content.sample_classes is None:
        return {}
    tiles = np.asarray(content.samples)
    if len(content.sample_classes) != len(tiles):
        raise ValueError(f"{len(content.sample_classes)} sample classes for {len(tiles)} samples")
    order = list(content.classes) or sorted(set(content.sample_classes))
    strips = {}
    for name in order:
        rows = [i for i, asked in enumerate(content.sample_classes) if asked == name][:STRIP]
        if rows:
            png = image_grid(tiles[rows], STRIP, width=round(WIDTH * len(rows) / STRIP / 2))
            strips[name] = _inlined(png, f"{len(rows)} generated images of class {name}")
    return strips


def _inlined(png: bytes, alt: str) -> dict[str, Any]:
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    return {
        "source": "data:image/png;base64," + base64.b64encode(png).decode(),
        "width": width,
        "height": height,
        "alt": alt,
    }


def _columns(images: Any) -> int:
    """So many tiles a row that they are neither tiny nor wider than the page."""
    return max(3, min(10, WIDTH // as_tiles(images[:1])[0].shape[1]))


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _loss_words(content: Report) -> str:
    """What a reader who cannot see the curve needs to know of it."""
    words = []
    for kind, name in (("train", "training loss"), ("validation", "held-out loss")):
        rows = [row for row in content.log if row.get("kind") == kind and row.get("loss") is not None]
        if rows:
            words.append(f"{name} from {rows[0]['loss']:.3g} to {rows[-1]['loss']:.3g}")
    last = max(row["n_images"] for row in content.log)
    return f"Curves over {short_count(last)} training images: " + ", ".join(words)


ALT = {
    "loss": _loss_words,
    "time": lambda content: (
        f"{'Held-out images' if content.time_caption else 'Samples'} at "
        f"{min(len(content.over_time), CHECKPOINTS)} moments of training, one row each"
    ),
    "samples": lambda content: (
        f"Grid of {min(len(content.samples), ROWS * _columns(content.samples))} generated images"
    ),
    "real": lambda content: f"Grid of {min(len(content.real), ROWS * _columns(content.real))} real images",
    "noising": lambda content: (
        f"A training image at {len(content.noising.sigmas)} noise levels from sigma {content.noising.sigmas[0]:.2g} to "
        f"{content.noising.sigmas[-1]:.2g}, and what the model makes of each"
    ),
    "trajectory": lambda content: "Images becoming clear from noise, one column per step",
    "classes": lambda content: "Bars: each class's share of generated and of real images, as in the table below",
    "features": lambda content: "Heat map of accuracy: a row for every layer, a column for every noise level",
    "labels": lambda content: "Accuracy over labelled images of each class, as in the table below",
    "training": lambda content: "Probe accuracy and other measures over training",
    "reliability": lambda content: "Share of right answers over confidence, and how many answers are that sure",
    "against_noise": lambda content: "Accuracy over the noise level of the images",
    "strangeness": lambda content: "Histograms of scores, of its own and of other images; AUROCs as in the table",
    "neighbours": lambda content: "Pairs of a generated image and its nearest training image",
}
