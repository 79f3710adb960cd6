"""What is wrong with a setting, in one line that a person can act on.

train.batch_sise (command line): unknown setting; did you mean 'batch_size'?
train.lr='fast' (preset digits): must be a number > 0; learning rate after the warm-up
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ..errors import UserError, nearest
from .shape import Group, Model, alternatives, group_of, in_words, settings_of
from .text import plain

LONGEST = 60  # characters of a value that a message shows


def shown(value: Any) -> str:
    """A value as messages show it: text in quotes, YAML's words for the rest, shortened where it is long."""
    value = plain(value)
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def unknown(root: Model, group: Group, kind: str | None, path: str, name: str, layer: str) -> UserError:
    """A name that its group does not have: the same name elsewhere, the nearest one here, or the valid ones.

    path: the group's, with its closing dot ("" at the top).
    """
    where = f"{path}{name} ({layer})"
    others = [k for k, model in group.models.items() if name in model.model_fields]
    if others:
        here = f"unknown setting of {path}kind={kind}"
        return UserError(where, here, f"it belongs to kind={' and '.join(others)}")
    valid = list(group.model(kind).model_fields)
    paths = list(dict.fromkeys(found for found, _ in settings_of(root)))
    elsewhere = [found for found in paths if found == name or found.rpartition(".")[2] == name]
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if name == "epochs":
        hint = "durations are train.n_images=5epochs, or a number of images"
    elif "." in name and name in paths:
        hint = "write it nested: " + ": {".join(name.split(".")) + ": ..." + "}" * name.count(".")
    elif elsewhere:
        hint = "did you mean " + " or ".join(repr(found) for found in elsewhere[:3]) + "?"
    elif close:
        hint = nearest(name, valid)
    else:
        far = _described_as(name, root) or _near_elsewhere(name, paths)
        hint = f"did you mean {far!r}?" if far else nearest(name, valid)
    return UserError(where, "unknown setting", hint)


def _near_elsewhere(name: str, paths: list[str]) -> str | None:
    leaves = {path.rpartition(".")[2]: path for path in reversed(paths)}
    close = difflib.get_close_matches(name, leaves, n=1, cutoff=0.75)
    return leaves[close[0]] if close else None


def _described_as(name: str, root: Model) -> str | None:
    """The setting whose help begins with these words: `learning_rate` is train.lr."""
    words = name.replace("_", " ").replace("-", " ").lower()
    return next((p for p, field in settings_of(root) if (field.description or "").lower().startswith(words)), None)


def not_a_group(where: str, path: str, field: FieldInfo, layer: str) -> UserError:
    """Settings given under a name that is a single value."""
    what = "unknown setting" if where != path else "is given settings of its own"
    accepts = in_words(field.annotation, field.metadata)
    return UserError(f"{where} ({layer})", what, f"{path} is a single value, {accepts}")


def no_such_kind(where: str, value: Any, group: Group, layer: str) -> UserError:
    hint = nearest(str(value), group.kinds)
    return UserError(f"{where}={shown(value)} ({layer})", f"must be one of {', '.join(group.kinds)}", _if_near(hint))


def no_kind(path: str, group: Group, layer: str) -> UserError:
    return UserError(f"{path} ({layer})", "its kind is not set", f"add {path}.kind={'|'.join(group.kinds)}")


def explain(root: Model, error: ValidationError, tree: Mapping[str, Any], layer_of: Callable[[str], str]) -> UserError:
    """The first of pydantic's errors as a `UserError`; how many others there are is said at its end.

    Raises the error itself where nothing that was set is at fault: then a default of ours is invalid.
    """
    found = []
    for item in error.errors():
        place = _locate(root, item["loc"], tree)
        if item["type"] != "missing" and not place.was_set:
            raise error
        found.append(_problem(item, place, layer_of))
    others = len({problem.where for problem in found}) - 1
    first = found[0]
    if others:
        return UserError(first.where, first.what, f"{first.hint} ({others} more after this one)".strip())
    return first


@dataclass
class _Place:
    """Where an error of pydantic's belongs.

    path: dotted, as the user writes it. field: of the setting, None for the whole. value: what was set there.
    inside: a setting of a group that stands in a list, where `value` is the entry itself.
    """

    path: str
    field: FieldInfo | None
    group: Group | None
    value: Any
    was_set: bool
    inside: bool


def _locate(root: Model, loc: tuple[int | str, ...], tree: Any) -> _Place:
    """Follows pydantic's location: names of settings, kinds, positions in lists, and names of union branches."""
    path, field, group, inside, was_set, entered = "", None, group_of(root), False, True, False
    value: Any = tree
    for part in loc:
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if entered and group and group.kinds and part == kind:  # the name of the branch, which a setting may have too
            entered = False
            continue
        fields = {
            name: f for model in (group.models.values() if group else ()) for name, f in model.model_fields.items()
        }
        if group and isinstance(part, str) and part in fields:
            own = group.models.get(str(kind)) if group.kinds else None
            field = (own.model_fields if own else fields).get(part, fields[part])
            was_set = isinstance(value, Mapping) and part in value
            value = value[part] if was_set else None
            path, group, entered = f"{path}.{part}".lstrip("."), _group_within(field.annotation), True
        elif isinstance(part, int) and group and isinstance(value, list):
            path, value, inside = f"{path}[{part}]", value[part], True
    return _Place(path, field, group, value, was_set, inside)


def _group_within(annotation: Any) -> Group | None:
    """The group of a setting, or of the entries of a list of groups."""
    entries = [arg for part in alternatives(annotation) for arg in get_args(part) if arg is not Ellipsis]
    return group_of(annotation) or next(filter(None, map(group_of, entries)), None)


def _problem(item: Any, place: _Place, layer_of: Callable[[str], str]) -> UserError:
    path, field = place.path, place.field
    layer = layer_of(path.partition("[")[0])
    help_text = (field.description or "") if field else ""
    if item["type"] == "missing":
        return _missing(path, field)
    if item["type"] == "extra_forbidden":
        name = str(item["loc"][-1])
        valid = list(place.group.model().model_fields) if place.group else []
        return UserError(f"{path}.{name} ({layer})", "unknown setting", nearest(name, valid))
    if item["type"] in ("value_error", "assertion_error"):
        what, _, hint = str(item["ctx"]["error"]).partition("; ")
        value = "" if place.group else f"={shown(place.value)}"
        return UserError(f"{path or 'settings'}{value} ({layer})", what, hint)
    where = f"{path or 'settings'}={shown(place.value)} ({layer})"
    if item["type"] == "finite_number":
        return UserError(where, "must be a finite number", help_text)
    if field is None:
        return UserError(where, item["msg"][:1].lower() + item["msg"][1:])
    choices = [
        str(arg) for part in alternatives(field.annotation) if get_origin(part) is Literal for arg in get_args(part)
    ]
    if choices:
        help_text = _if_near(nearest(str(place.value), choices)) or help_text
    return UserError(where, "must be " + in_words(field.annotation, field.metadata), help_text)


def _missing(path: str, field: FieldInfo | None) -> UserError:
    """A required setting that no layer gives; of a group, the setting that its bare value stands for."""
    group = group_of(field.annotation) if field else None
    bare = group.bare() if group else None
    if group and bare:
        field = group.model().model_fields[bare]
    return UserError(path, "not set", f"give {path}=...: {(field and field.description) or ''}".rstrip(": "))


def _if_near(hint: str) -> str:
    return hint if hint.startswith("did you mean") else ""
