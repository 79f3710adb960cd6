"""The page of a distillation: what each student is worth, what the teacher taught, their answers, what was done.

One HTML file with everything in it, as the page of a run is (see `page`). Whatever was not done or is not known is left
out: a page of pre-training alone has no students, one of a student from scratch no teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .confusions import confused_pairs, confusion_figure
from .frame import assembled, written
from .page import _inlined
from .recognition import percent
from .teaching_figures import (
    class_iou_figure,
    errors_figure,
    imitation_figure,
    iou_table,
    levels_figure,
    students_figure,
)
from .teaching_grids import cards, legend, pictures_of
from .teaching_template import BODY, CAPTIONS, EXTRA_CSS
from .teaching_words import (
    SCRATCH,
    TASKS,
    TAUGHT,
    effort_rows,
    in_order,
    measures_of,
    next_steps,
    pretraining_words,
    score_rows,
    subset_rows,
    summary,
    title_of,
)

HEADINGS = {"classify": "Answers", "segment": "Masks", "landmarks": "Points"}
NORMALISERS = {
    "inter_ocular": "the distance of the outer corners of the eyes",
    "box": "the size of the points' bounding box",
}


def write_page(out: Path, result: Mapping[str, Any], pictures: Mapping[str, Any] | None = None) -> Path:
    """Writes report.html, and its pictures as figures/*.png, into the folder; returns the page's path. Atomic.

    result, pictures: as `learn.teaching.run` returns them; what is missing in them is left out.
    """
    shown = pictures or {}
    drawn = draw(result, shown)
    return written(Path(out), render(result, drawn, shown, str(out)), drawn)


def draw(result: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, bytes]:
    """The pictures there are data for: {name: PNG}."""
    arms, made = result.get("arms") or {}, result.get("pretraining") or {}
    pictures: dict[str, bytes | None] = {
        "students": students_figure(arms, result["measure"]),
        "loss": imitation_figure(made.get("losses") or ()),
        "levels": levels_figure(made.get("selection")),
        "iou": class_iou_figure(arms),
        "errors": errors_figure(arms),
    }
    for name, (_, details) in _confused(result).items():
        pictures[name] = confusion_figure(details["confusion"], [str(one) for one in details["classes"]])
    pictures |= pictures_of(shown)
    return {name: png for name, png in pictures.items() if png is not None}


def render(result: Mapping[str, Any], pictures: Mapping[str, bytes], shown: Mapping[str, Any], out: str) -> str:
    """The page as text. out: the folder, as a command would name it."""
    alt, confused = _alt(result), _confused(result)
    taught, taught_facts = pretraining_words(result)
    measures, steps = measures_of(result), next_steps(result, out)
    subset_columns, subsets = subset_rows(result)
    answered = cards(shown)
    class_columns, classes = _classes(result)
    sections = {
        "students": ("The students", result.get("arms")),
        "teaching": ("What the student was taught", taught),
        "answers": (
            HEADINGS[result["task"]],
            answered or confused or {"masks", "points", "iou", "errors"} & pictures.keys(),
        ),
        "next": ("What to do next", steps),
    }
    return assembled(
        BODY,
        f"Distillation: {TASKS[result['task']]} of {result['data']['name']}",
        summary(result),
        sections,
        pictures,
        alt,
        _data(result["data"]),
        result,
        extra_css=EXTRA_CSS,
        captions=CAPTIONS,
        measures=list(measures.values()),
        scores=score_rows(result, list(measures)),
        efforts=effort_rows(result),
        taught=taught,
        taught_facts=taught_facts,
        confusions=[(name, CAPTIONS["confusion"].format(title_of(arm))) for name, (arm, _) in confused.items()],
        mistakes=[(title_of(arm), confused_pairs(one["confusion"], one["classes"])) for arm, one in confused.values()],
        cards=[card | {"image": _inlined(card["png"], f"Test image {card['id']}")} for card in answered],
        legend=legend(shown),
        classes=classes,
        class_columns=class_columns,
        normaliser=_normaliser(result),
        subsets=subsets,
        subset_columns=subset_columns,
        next=steps,
    )


def _confused(result: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """{picture: (student, details)}: two confusion matrices, of the taught student and of the one from scratch if there
    are these."""
    arms = {name: arm.get("details") or {} for name, arm in in_order(result.get("arms") or {})}
    known = [name for name, details in arms.items() if details.get("confusion") is not None and details["confusion"]]
    known.sort(key=lambda name: name not in (TAUGHT, SCRATCH))
    return {f"confusion-{name.replace(' ', '-')}": (name, arms[name]) for name in known[:2]}


def _classes(result: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The IoU of every class of pixels: (students, [(class, IoUs)])."""
    kept = iou_table(result.get("arms") or {})
    if kept is None:
        return [], []
    classes, names, table = kept
    cells = [["nowhere" if np.isnan(v) else percent(v) for v in column] for column in table.T]
    return [title_of(name) for name in names], list(zip(classes, cells, strict=True))


def _normaliser(result: Mapping[str, Any]) -> str:
    """What errors of points are divided by, in a sentence; "" for other tasks."""
    for arm in (result.get("arms") or {}).values():
        details = arm.get("details") or {}
        if "normaliser" in details:
            kind = details["normaliser"]
            if isinstance(kind, list | tuple):
                text = f"the distance of points {kind[0]} and {kind[1]}"
            else:
                text = NORMALISERS.get(kind, f"{kind} pixels") if isinstance(kind, str) else f"{kind:g} pixels"
            failure = f"above {100 * details['threshold']:g} % an image counts as a failure"
            return f"Errors are distances to the true points, divided by {text}; {failure}."
    return ""


def _data(data: Mapping[str, Any]) -> dict[str, str]:
    return {
        "source": str(data.get("source", "")),
        "training images": f"{data['train_images']:,}",
        "of them known": f"{data['known_images']:,}",
        "test images": f"{data['test_images']:,}",
        "hash": str(data.get("hash", ""))[:16],
    }


def _alt(result: Mapping[str, Any]) -> dict[str, str]:
    """What a reader who cannot see the pictures needs to know of them."""
    alt = {
        "students": "Bars: how good each student is, as in the table below",
        "loss": "Curve: the loss of imitation over the images seen",
        "levels": "Histogram: how often each noise level was chosen",
        "iou": "Bars: the intersection over union of each class, as in the table below",
        "errors": "Curves: the share of images over the largest error, one for each student",
        "masks": "Grid of test images, their true masks and the students'",
        "points": "Grid of test images with true points and the students'",
    }
    said = {name: title_of(arm) for name, (arm, _) in _confused(result).items()}
    return alt | {name: f"Heat map: true classes against answers, {title}" for name, title in said.items()}
