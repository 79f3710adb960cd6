"""Layers of partial settings become one complete, checked settings object; every value knows its layer.

    preset <- file <- key=value

Groups are merged setting by setting. Where a layer changes the `kind` of a group, the group starts anew, because the
settings of one kind mean nothing to another. Every mistake is one line that says which layer it stands in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ..errors import UserError
from . import problems
from .shape import Group, group_of, holds_mapping, list_length, takes_text_only
from .text import BARE, as_text, dump_yaml, load_yaml, parse_assignments, plain, read_scalar, read_text, write_value

__all__ = [
    "Origin",
    "differences",
    "flatten",
    "from_yaml",
    "load_yaml",
    "merge",
    "parse_assignments",
    "resolve",
    "settings_hash",
    "to_yaml",
    "write_value",
]

Layer = tuple[str, Mapping[str, Any]]
M = TypeVar("M", bound=BaseModel)


class Origin(dict[str, str]):
    """{dotted path: name of the layer it was set in}; what is absent kept its default."""

    def of(self, path: str) -> str:
        """The layer of a setting, or the layers of a group's settings; "default" where none set it."""
        found = [self[path]] if path in self else []
        found += [layer for name, layer in self.items() if name.startswith(f"{path}.") or not path]
        return ", ".join(dict.fromkeys(found)) or "default"

    def forget(self, path: str) -> None:
        for name in [name for name in self if name == path or name.startswith(f"{path}.")]:
            del self[name]


def merge(model: type[BaseModel], layers: Iterable[Layer]) -> tuple[dict[str, Any], Origin]:
    """Layers as one tree of what was set, not yet checked for types and completeness; see `resolve`."""
    merged = _Merge(model)
    for name, values in layers:
        merged.add(name, values)
    return merged.tree, merged.origin


def resolve(model: type[M], layers: Iterable[Layer]) -> tuple[M, Origin]:
    """Complete settings from partial ones, later layers over earlier ones, and where each value came from.

    layers: (name for messages, nested mapping), for example ("preset digits", {...}), ("command line", {...}).
    Raises `UserError` for an unknown setting, a wrong type, a value out of range, a missing value.
    """
    tree, origin = merge(model, layers)
    try:
        return model.model_validate(tree), origin
    except ValidationError as error:
        raise problems.explain(model, error, tree, origin.of) from None


class _Merge:
    """The tree of what was set, in the form the model accepts, and the layer of every entry."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model
        self.tree: dict[str, Any] = {}
        self.origin = Origin()

    def add(self, layer: str, values: Mapping[str, Any]) -> None:
        self.layer = layer
        self._group(self.tree, values, Group({"": self.model}), "")

    def _group(self, tree: dict[str, Any], values: Mapping[str, Any], group: Group, path: str) -> None:
        """Overlays the settings of one group; a bare value among them is the setting that it stands for."""
        values = self._without_bare(values, group, path)
        kind = self._kind(tree, values, group, path)
        for name, value in values.items():
            field = group.model(kind).model_fields.get(name)
            if field is None:
                raise problems.unknown(self.model, group, kind, path, str(name), self.layer)
            self._setting(tree, name, value, field, f"{path}{name}")

    def _setting(self, tree: dict[str, Any], name: str, value: Any, field: FieldInfo, path: str) -> None:
        inner = group_of(field.annotation)
        if inner and not isinstance(value, Mapping) and value is not None and not inner.plain:
            value = {BARE: value}
        if inner and isinstance(value, Mapping):
            if not isinstance(tree.get(name), dict):
                tree[name] = _set_in_default(field)
            self._group(tree[name], value, inner, f"{path}.")
            return
        if isinstance(value, Mapping) and not holds_mapping(field.annotation):
            entry = next(iter(value), "")
            raise problems.not_a_group(f"{path}.{entry}" if entry else path, path, field, self.layer)
        self.origin.forget(path)
        tree[name] = _fit(value, field.annotation)
        self.origin[path] = self.layer

    def _without_bare(self, values: Mapping[str, Any], group: Group, path: str) -> dict[str, Any]:
        values = dict(values)
        if BARE not in values:
            return values
        value, name = values.pop(BARE), group.bare()
        where = f"{path.rstrip('.') or 'settings'}={problems.shown(value)} ({self.layer})"
        if name is None:
            raise UserError(where, "a group of settings", f"set one of: {', '.join(group.model().model_fields)}")
        if name in values and values[name] != value:
            raise UserError(
                where, f"{path}{name} is given as well ({problems.shown(values[name])})", "keep one of them"
            )
        return {name: value, **values}

    def _kind(self, tree: dict[str, Any], values: Mapping[str, Any], group: Group, path: str) -> str | None:
        """The kind this group has after this layer; a new kind empties it."""
        if not group.kinds:
            return None
        wanted, current = values.get("kind"), tree.get("kind")
        if "kind" in values and wanted not in group.kinds:
            raise problems.no_such_kind(f"{path}kind", as_text(wanted), group, self.layer)
        if wanted is None and current is None:
            raise problems.no_kind(path.rstrip("."), group, self.layer)
        if wanted is not None and wanted != current:
            tree.clear()
            self.origin.forget(path.rstrip("."))
            tree["kind"] = wanted
        return tree["kind"]


def _set_in_default(field: FieldInfo) -> dict[str, Any]:
    """What a group's own default sets, so that naming one of its settings keeps the others."""
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    if not isinstance(default, BaseModel):
        return {}
    kind = {"kind": default.kind} if "kind" in type(default).model_fields else {}  # type: ignore[attr-defined]
    return {**kind, **plain(default.model_dump(mode="json", exclude_unset=True))}


def _fit(value: Any, annotation: Any) -> Any:
    """A value as its setting takes it: `to=7` is text where text is wanted, `1,2` a list where a list is wanted."""
    if takes_text_only(annotation):
        return plain(value) if value is None or isinstance(value, list | dict) else as_text(value)
    length = list_length(annotation)
    if length is not None:
        if isinstance(value, str) and "," in value:
            return [plain(read_scalar(part.strip())) for part in value.split(",")]
        if length == -1 and value is not None and not isinstance(value, list | tuple):
            return [plain(value)]
    return plain(value)


def flatten(settings: BaseModel | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted path: value} of every setting, in plain types."""
    tree = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else settings
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(a: BaseModel | Mapping[str, Any], b: BaseModel | Mapping[str, Any]) -> list[str]:
    """Dotted paths of the settings that differ, or that only one of the two has."""
    left, right, absent = flatten(a), flatten(b), object()
    return [path for path in dict.fromkeys([*left, *right]) if left.get(path, absent) != right.get(path, absent)]


def settings_hash(settings: BaseModel) -> str:
    """8 hex digits that depend on every setting and on nothing else (SHA-256 of the canonical JSON)."""
    text = json.dumps(settings.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def to_yaml(settings: BaseModel, header: str = "") -> str:
    """Complete settings as YAML under a header comment; `from_yaml` gives equal settings back."""
    return dump_yaml(settings.model_dump(mode="json"), header)


def from_yaml(model: type[M], source: Path | str, where: str = "") -> M:
    """Settings from YAML, complete or partial: a file, or the text itself with its name for messages."""
    if isinstance(source, Path):
        source, where = read_text(source), where or str(source)
    return resolve(model, [(where or "YAML", load_yaml(source, where or "YAML"))])[0]
