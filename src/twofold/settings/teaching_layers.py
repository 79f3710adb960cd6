"""How the layers of a distillation's settings are put together.

preset of the task <- file <- key=value, with RUN as the teacher
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .presets import DISTILL, open_preset, preset_names
from .resolve import Layer
from .short import in_layer
from .teaching import IN_DATA
from .text import BARE

DEFAULTS = {"classify": "classify", "segment": "segment", "landmarks": "landmarks"}  # {task: preset}


def layers_of(words: list[str], given: Mapping[str, Any]) -> tuple[list[Layer], str]:
    """Layers for `resolve`, and the preset's short name. words: RUN and PRESET, either may be missing."""
    teacher, preset = told_apart(words, str(given.get("task", "classify")))
    opened = open_preset(preset, DISTILL)
    presets = (
        opened.layers if not _has_source(given) else [(name, _without_choice(name, v)) for name, v in opened.layers]
    )
    layers: list[Layer] = [(name, in_layer(values, IN_DATA)) for name, values in (*presets, ("command line", given))]
    if teacher is not None:
        layers.append(("command line", _taught_by(teacher, layers, given)))
    elif given.get("student") is not None or given.get("stage") == "scratch":
        layers.append(("command line", {"pretrain": None}))
    return layers, opened.name


def told_apart(words: list[str], task: str) -> tuple[str | None, str]:
    """(teacher, preset): the words are RUN PRESET, RUN, PRESET or none."""
    names = preset_names(DISTILL)
    if len(words) == 1 and (words[0] in names or words[0].endswith((".yaml", ".yml"))):
        return None, words[0]
    return (words[0] if words else None), (words[1] if len(words) > 1 else DEFAULTS.get(task, "classify"))


def _taught_by(teacher: str, layers: list[Layer], given: Mapping[str, Any]) -> dict[str, Any]:
    """Where the teacher belongs: into the distillation, or into the task where a classifier teaches."""
    kind = None
    for _, values in layers:
        kind = _group(_group(values, "finetune"), "objective").get("kind", kind)
    if kind == "kd":
        own = {"finetune": {"objective": {"teacher": teacher}}}
        return own if "pretrain" in given else {**own, "pretrain": None}
    if "pretrain" in given and given["pretrain"] is None:
        raise UserError("pretrain=null", f"leaves {teacher} nothing to teach", "leave one of them out")
    return {"pretrain": {"objective": {"teacher": teacher}}}


def names_teacher(layers: list[Layer]) -> bool:
    """Whether any layer says who teaches."""
    parts = [_group(values, part) for _, values in layers for part in ("pretrain", "finetune")]
    return any(_group(part, "objective").get("teacher") for part in parts)


def _has_source(given: Mapping[str, Any]) -> bool:
    """Whether the data are the user's own."""
    data = given.get("data")
    return isinstance(data, str) or bool({BARE, "source"} & _group(given, "data").keys())


def _without_choice(name: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A preset's settings without how many labels it keeps of its own data: of the user's, none is hidden unasked."""
    if not name.startswith("preset ") or not isinstance(values.get("data"), Mapping):
        return values
    return {**values, "data": {key: value for key, value in values["data"].items() if key not in IN_DATA}}


def _group(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}
