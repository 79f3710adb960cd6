"""A distillation in words: what came of it, what each student took, and whether the teacher helped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .recognition import percent

LESS = ("nme", "failure_rate")  # measures of which less is better
TAUGHT, SCRATCH, EQUAL = "taught", "scratch", "equal compute"
TITLES = {TAUGHT: "Taught", SCRATCH: "From scratch", EQUAL: "From scratch, equal computing"}
TASKS = {"classify": "classification", "segment": "segmentation", "landmarks": "key points"}
KNOWN = {"classify": "labelled", "segment": "given with masks", "landmarks": "given with points"}
MEASURES = {
    "accuracy": "Accuracy",
    "miou": "Mean IoU",
    "macc": "Mean accuracy of the classes",
    "aacc": "Accuracy of all pixels",
    "nme": "Normalised mean error (NME)",
    "failure_rate": "Failures",
    "auc": "Area under the curve (AUC)",
}
REACHES = {"accuracy": "an accuracy", "miou": "a mean IoU", "nme": "a normalised mean error"}
APART = "more than their 95 % intervals leave open"
UNSETTLED = "the 95 % intervals overlap, so these test images alone do not settle it"


def title_of(arm: str) -> str:
    """What a student is called on the page."""
    return TITLES.get(arm, arm[:1].upper() + arm[1:])


def in_order(arms: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The students as the page has them; others come behind, under their own names."""
    known = [(name, arms[name]) for name in TITLES if name in arms]
    return known + [(name, arm) for name, arm in arms.items() if name not in TITLES]


def found(arm: Mapping[str, Any] | None, measure: str) -> tuple[float, float, float] | None:
    """(value, low, high) of a measure of a student; without an interval its ends are the value. None: not known."""
    row = ((arm or {}).get("metrics") or {}).get(measure) or {}
    value = row.get("value")
    if value is None or not math.isfinite(value):
        return None
    low, high = row.get("interval") or (value, value)
    ends = (low, high) if all(end is not None and math.isfinite(end) for end in (low, high)) else (value, value)
    return float(value), float(ends[0]), float(ends[1])


def shown(measure: str, value: float) -> str:
    """A measure's value as people read it: shares as percentages, the AUC as in the papers."""
    return f"{value:.3f}" if measure == "auc" else f"{100 * value:.2f} %" if measure == "nme" else percent(value)


def between(measure: str, low: float, high: float) -> str:
    """An interval in words."""
    return f"{shown(measure, low)} to {shown(measure, high)}"


# -- the verdict --------------------------------------------------------------------------------------------------


def summary(result: Mapping[str, Any]) -> list[str]:
    """What was done and what came of it, in a few sentences."""
    data = result["data"]
    lines = [_who(result)]
    text = f"{data['known_images']:,} of {data['train_images']:,} training images are {KNOWN[result['task']]}"
    lines.append(f"{text}; {data['test_images']:,} images, which nobody learned from, test the students.")
    return lines + verdict(result)


def verdict(result: Mapping[str, Any]) -> list[str]:
    """Whether the teacher helped, as far as the students that are there can say."""
    arms, measure = result.get("arms") or {}, result["measure"]
    if not arms:
        return ["The student has been taught; it has not learned a task yet."]
    known = {name: here for name, arm in in_order(arms) if (here := found(arm, measure)) is not None}
    if not known:
        return ["Nothing is known of the test images, or there are none, so how good the students are is not known."]
    if TAUGHT not in known:
        return [f"{title_of(name)}, the student reaches {_reached(measure, *known[name])}." for name in known]
    line = f"The taught student reaches {_reached(measure, *known[TAUGHT])}"
    if SCRATCH not in known and EQUAL not in known:
        return [f"{line}. Nothing is here to hold it against; stage=all trains the same without a teacher."]
    lines = []
    if SCRATCH in known:
        line += f", the same student from scratch {_reached(measure, *known[SCRATCH], bare=True)}"
        lines.append(f"{line}: {_compared(measure, known[TAUGHT], known[SCRATCH])}.")
    else:
        lines.append(f"{line}.")
    if EQUAL in known:
        beside = _reached(measure, *known[EQUAL], bare=True)
        compared = _compared(measure, known[TAUGHT], known[EQUAL])
        lines.append(f"From scratch with as much computing as teaching took in all, it is {beside}: {compared}.")
    return lines


def _reached(measure: str, value: float, low: float, high: float, bare: bool = False) -> str:
    text = shown(measure, value) + (f" ({between(measure, low, high)})" if low < high else "")
    return text if bare else f"{REACHES.get(measure, measure)} of {text}"


def _compared(measure: str, ours: tuple[float, float, float], theirs: tuple[float, float, float]) -> str:
    """How the taught student (value, low, high) stands to another."""
    gain = (ours[0] - theirs[0]) * (-1 if measure in LESS else 1)
    size = f"{100 * abs(gain):.2f}" if measure == "nme" else f"{100 * abs(gain):.1f}"
    if float(size) == 0:
        return "there is no difference"
    apart = ours[1] > theirs[2] or theirs[1] > ours[2]
    if gain > 0:
        return f"the taught one is {size} points better, {APART if apart else f'but {UNSETTLED}'}"
    if apart:
        return f"the taught one is {size} points worse, {APART}; here teaching did not help"
    return f"the taught one is {size} points worse, though {UNSETTLED}"


def _who(result: Mapping[str, Any]) -> str:
    """Student and teacher, in a line."""
    sizes = {arm.get("parameters") for arm in (result.get("arms") or {}).values()} - {None}
    text = f"Student: {student_of(result)}" + (f", {max(sizes):,} parameters" if sizes else "")
    teacher = teacher_of(result)
    return f"{text}. Teacher: {teacher or 'none'}."


def student_of(result: Mapping[str, Any]) -> str:
    """The student's network, as its settings name it."""
    settings = result.get("settings") or {}
    if settings.get("student"):
        return f"that of {settings['student']}"
    backbone = settings.get("backbone") or {}
    kind = str(backbone.get("kind", "a small network"))
    if kind == "resnet":
        blocks = backbone.get("blocks")
        return f"resnet, blocks {', '.join(map(str, blocks))}" if blocks else f"resnet, {backbone.get('depth')} layers"
    if kind == "wide":
        return f"WideResNet-{backbone.get('depth')}-{backbone.get('width')}"
    if kind == "transformers":
        return str(backbone.get("model"))
    return f"HRNet-W{backbone.get('width')}" if kind == "hrnet" else kind


def teacher_of(result: Mapping[str, Any]) -> str | None:
    """Who taught: a diffusion model in pre-training, a classifier in the task, or whoever taught a student before."""
    made, settings = result.get("pretraining") or {}, result.get("settings") or {}
    if not made and TAUGHT not in (result.get("arms") or {}):
        return None
    if made.get("teacher"):
        return str(made["teacher"]["source"])
    for part in ("pretrain", "finetune"):
        source = ((settings.get(part) or {}).get("objective") or {}).get("teacher")
        if source:
            return str(source)
    return f"that of {made['student']}" if made.get("student") else None


# -- tables -------------------------------------------------------------------------------------------------------


def measures_of(result: Mapping[str, Any]) -> dict[str, str]:
    """{measure: heading} of what is known of the students, the main one first."""
    arms = [arm for _, arm in in_order(result.get("arms") or {})]
    names = dict.fromkeys([result["measure"], *(name for arm in arms for name in arm.get("metrics") or {})])
    return {name: MEASURES.get(name, name) for name in names if any(found(arm, name) for arm in arms)}


def score_rows(result: Mapping[str, Any], measures: Sequence[str]) -> list[dict[str, Any]]:
    """A line of the table for each student: {"title", "cells": [(value, interval)]}."""
    rows = []
    for name, arm in in_order(result.get("arms") or {}):
        cells = []
        for measure in measures:
            here = found(arm, measure)
            interval = between(measure, *here[1:]) if here and here[1] < here[2] else ""
            cells.append((shown(measure, here[0]) if here else "not known", interval))
        rows.append({"title": title_of(name), "cells": cells})
    return rows


def effort_rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """What each student is and took: parameters, images, learning rate, computing, seconds."""
    before, rows = result.get("pretraining") or {}, []
    for name, arm in in_order(result.get("arms") or {}):
        taught = name == TAUGHT and before.get("n_images")
        parameters, images, lr = arm.get("parameters"), arm.get("n_images"), arm.get("lr")
        seconds = None if arm.get("seconds") is None else arm["seconds"] + (before.get("seconds") or 0) * bool(taught)
        rows.append(
            {
                "title": title_of(name),
                "parameters": "" if parameters is None else f"{parameters:,}",
                "images": "" if images is None else f"{images:,}",
                "before": f"after {before['n_images']:,} with the teacher" if taught else "",
                "lr": "" if lr is None else f"{lr:g}{', head alone' if arm.get('freeze') else ''}",
                "tried": _tried(arm.get("tried") or {}, result["measure"]),
                "flops": "" if arm.get("flops") is None else flops_text(arm["flops"]),
                "seconds": "" if seconds is None else time_text(seconds),
            }
        )
    return rows


def _tried(tried: Mapping[str, float | None], measure: str) -> str:
    """What was tried and what it came to on the validation part; nothing for one way."""
    if len(tried) < 2:
        return ""
    said = (f"{lr}: {'not known' if value is None else shown(measure, value)}" for lr, value in tried.items())
    return "tried " + ", ".join(said)


def flops_text(flops: float) -> str:
    """1.5e12 -> "1.5 TFLOP"."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}FLOP"
    return f"{flops:.3g} FLOP"


def time_text(seconds: float) -> str:
    """75 -> "75 s", 600 -> "10 min", 10000 -> "2.8 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def pretraining_words(result: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """What the student was taught before its task: sentences, and names and values."""
    made = result.get("pretraining") or {}
    if made.get("student"):
        return [f"It was taught before: {made['student']}."], {}
    teacher = made.get("teacher")
    if not teacher:
        return [], {}
    images = f"{made['n_images']:,} images" if made.get("n_images") is not None else "the images"
    line = f"The student imitated the teacher's maps on {images}, before it learned its task."
    facts = {"teacher": str(teacher["source"])}
    if teacher.get("parameters") is not None:
        facts["its parameters"] = f"{teacher['parameters']:,}"
    if teacher.get("input"):
        facts["what it sees"] = {"noised": "noised images", "clean": "clean images, named as noisy ones"}.get(
            teacher["input"], str(teacher["input"])
        )
    pairs = list(zip(teacher.get("student_layers") or (), teacher.get("layers") or (), strict=False))
    facts |= {"layers": ", ".join(f"{own} imitates {their}" for own, their in pairs)} if pairs else {}
    facts |= {"computing": flops_text(made["flops"])} if made.get("flops") else {}
    facts |= {"time": time_text(made["seconds"])} if made.get("seconds") is not None else {}
    facts |= {"run": str(made["run"])} if made.get("run") else {}
    return [line], facts


def subset_rows(result: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Errors on images with an attribute: (titles of students, [{"name", "images", "cells"}]); attributes of no image
    are left out."""
    arms = [(name, (arm.get("details") or {}).get("subsets") or {}) for name, arm in in_order(result.get("arms") or {})]
    arms = [(name, subsets) for name, subsets in arms if subsets]
    rows = []
    for attribute in dict.fromkeys(one for _, subsets in arms for one in subsets):
        here = [subsets.get(attribute) or {} for _, subsets in arms]
        images = max((row.get("images") or 0 for row in here), default=0)
        if images:
            known = [row.get("nme") for row in here]
            cells = [shown("nme", nme) if nme is not None and math.isfinite(nme) else "" for nme in known]
            rows.append({"name": str(attribute), "images": f"{images:,.0f}", "cells": cells})
    return [title_of(name) for name, _ in arms], rows


def next_steps(result: Mapping[str, Any], out: str) -> list[tuple[str, str]]:
    """(command, what it does): what there is to do with what was made."""
    measure, arms = result["measure"], dict(in_order(result.get("arms") or {}))
    if not arms:
        made = result.get("pretraining") or {}
        again = f"twofold distill student={out} task={result['task']} data=SOURCE"
        return [(again, "A task for the taught student")] if made else []
    known = {name: here[0] for name, arm in arms.items() if (here := found(arm, measure))}
    sign = -1 if measure in LESS else 1
    best = max(known, key=lambda name: sign * known[name]) if known else next(iter(arms))
    answers = {"classify": "classes", "segment": "masks", "landmarks": "points"}[result["task"]]
    run = arms[best].get("run", "RUN")
    return [
        (f"twofold predict {run} IMAGES", f"{answers.capitalize()} of your own images, by the best student"),
        (f"twofold export {run}", "The student as files that run without this program"),
    ]
