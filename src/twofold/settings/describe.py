"""Every setting of a model as text: the second half of each verb's `--help`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .shape import Group, Model, bounds, group_of, in_short
from .text import plain, write_value

NAME_WIDTH = 40  # columns of "path=TYPE"; longer ones get a line of their own


@dataclass(frozen=True)
class Entry:
    """One setting. kind: the group's kind it belongs to, "" where there is only one. default: None = required."""

    path: str
    kind: str
    accepts: str
    default: str | None
    help: str
    limits: str = ""

    def line(self) -> tuple[str, str]:
        said = "default:" in self.help or (self.default == "null" and "null" in self.help)
        state = "required" if self.default is None else "" if said else f"default {self.default}"
        notes = ", ".join(part for part in (self.limits, state) if part)
        return f"{self.path}={self.accepts}", f"{self.help} ({notes})".removesuffix(" ()")


def describe(model: Model, prefix: str = "", kind: str = "") -> Iterator[Entry]:
    """The settings of a model in order, groups opened, one entry per kind that has it."""
    for name, field in model.model_fields.items():
        group = group_of(field.annotation)
        path = f"{prefix}{name}"
        if group is None:
            if not (kind and name == "kind"):  # said once, by the group
                yield _entry(path, kind, field)
            continue
        default = _default(field)
        if group.kinds:
            own = getattr(default, "kind", None)
            yield Entry(f"{path}.kind", "", "|".join(group.kinds), own, _first_line(group))
        for name_of_kind, member in group.models.items():
            yield from _with_defaults(describe(member, f"{path}.", name_of_kind), default, name_of_kind, f"{path}.")


def describe_text(model: Model, width: int | None = None) -> str:
    """The settings as lines for a terminal of `width` columns (default: this one's)."""
    width = min(width or shutil.get_terminal_size().columns, 130)
    lines: list[str] = []
    group = kind = None
    for entry in describe(model):
        parent = entry.path.rpartition(".")[0]
        if parent != group:
            lines.append("")
        if (parent, entry.kind) != (group, kind) and entry.kind:
            lines.append(f"  with {parent}.kind={entry.kind}")
        group, kind = parent, entry.kind
        lines += _wrapped(*entry.line(), width)
    return "\n".join(lines).lstrip("\n")


def _wrapped(name: str, help_text: str, width: int) -> list[str]:
    body = textwrap.wrap(help_text, max(30, width - NAME_WIDTH - 3), break_long_words=False)
    first = f"  {name:<{NAME_WIDTH}} "
    start = (
        [first + body[0]] if len(name) <= NAME_WIDTH else [f"  {name}", " " * len(f"  {'':<{NAME_WIDTH}} ") + body[0]]
    )
    return start + [" " * (NAME_WIDTH + 3) + line for line in body[1:]]


def _entry(path: str, kind: str, field: FieldInfo) -> Entry:
    limits = ", ".join(bounds(field.metadata))
    default = None if field.is_required() else write_value(_json(field, _default(field)))
    return Entry(path, kind, in_short(field.annotation), default, field.description or "", limits)


def _default(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _json(field: FieldInfo, value: Any) -> Any:
    if isinstance(value, tuple | list) and any(isinstance(one, BaseModel) for one in value):
        return [_json(field, one) for one in value]
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else plain(value)


def _with_defaults(entries: Iterator[Entry], default: Any, kind: str, prefix: str) -> Iterator[Entry]:
    """The same entries with the values that the group's own default sets instead of the model's."""
    own: dict[str, Any] = {}
    if isinstance(default, BaseModel) and getattr(default, "kind", "") in ("", kind):
        own = default.model_dump(mode="json", exclude_unset=True)
    for entry in entries:
        value: Any = own
        for part in entry.path.removeprefix(prefix).split("."):
            value = value.get(part, own) if isinstance(value, dict) else own
        yield entry if value is own else replace(entry, default=write_value(value))


def _first_line(group: Group) -> str:
    """The kinds with the first line of their docstrings."""
    lines = [(kind, (model.__doc__ or "").strip().partition("\n")[0]) for kind, model in group.models.items()]
    return "; ".join(f"{kind}: {line.rstrip('.')}" if line else kind for kind, line in lines)
