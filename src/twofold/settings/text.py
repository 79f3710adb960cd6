"""Settings as text: `key=value` words and YAML, read the same way.

YAML 1.1 reads `on`, `no` and `1:30` as something else than what stands there, and `1e-4` as text. Here, as in YAML
1.2: `true` and `false` are the only booleans, `null`, `~` and nothing at all are null, `1e-4` is a number, dates are
text. Numbers remember how they were written, so that a folder or a class may be called 007 or 1.10.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from ..errors import UserError

INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$")
KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*$")
BARE = ""  # the name under which `data=digits` is kept beside `data.size=8`, until the model says which setting it is


class _WrittenInt(int):
    text: str


class _WrittenFloat(float):
    text: str


def as_text(value: Any) -> Any:
    """A number or truth value as it was written; anything else unchanged."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return getattr(value, "text", str(value)) if isinstance(value, int | float) else value


def plain(value: Any) -> Any:
    """The value in Python's own types, through lists and mappings."""
    match value:
        case bool() | None | str():
            return value
        case int():
            return int(value)
        case float():
            return float(value)
        case list() | tuple():
            return [plain(v) for v in value]
        case Mapping():
            return {k: plain(v) for k, v in value.items()}
    return value


def read_scalar(text: str) -> Any:
    """null, true, false, a number, or the text itself."""
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    number: _WrittenInt | _WrittenFloat
    if INT.match(text):
        number = _WrittenInt(text)
    elif FLOAT.match(text):
        number = _WrittenFloat(text)
    else:
        return text
    number.text = text
    return number


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of `read_scalar`; a name given twice in one mapping is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Block style with lists on one line. Quotes what either YAML version would read as something else than text."""


_Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1's
_NULL = re.compile(r"(~|null|)$")
_BOOL = re.compile(r"(true|false)$")
for _tag, _pattern, _first in (
    ("null", _NULL, ["~", "n", ""]),
    ("bool", _BOOL, list("tf")),
    ("int", INT, list("-+0123456789")),
    ("float", FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", lambda loader, node: read_scalar(node.value))
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, None if text.isprintable() else '"'),
)
_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def load_yaml(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping (an empty file is an empty one). Raises `UserError` naming `where` and the line."""
    try:
        values = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}", f"not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(where, "not valid YAML: " + " ".join(str(error).split())) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(where, "holds no settings", "write one `name: value` a line")
    return values


def read_text(file: Traversable) -> str:
    """A settings file's text. Raises `UserError` where it is missing, unreadable or no text."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(str(file), "not a text file", "settings are YAML") from None
    except OSError as error:
        raise UserError(str(file), f"cannot be read ({error.strerror})") from None


def dump_yaml(values: Mapping[str, Any], header: str = "") -> str:
    """YAML of plain values under a header of comment lines; `load_yaml` reads it back equal."""
    shown = "".join(c if c.isprintable() or c == "\n" else "?" for c in header)
    lines = [line if line.startswith("#") else f"# {line}".rstrip() for line in shown.splitlines()]
    comment = "".join(f"{line}\n" for line in lines)
    return comment + yaml.dump(plain(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def write_value(value: Any) -> str:
    """A value as it would stand after `key=`; `read_value` reads it back equal. null is written out."""
    value = plain(value)
    if isinstance(value, str):
        if value[:1] not in ("[", "{", '"', "'") and value.isprintable() and isinstance(read_scalar(value), str):
            return value
        return yaml.dump(value, default_style='"', width=float("inf")).strip()  # type: ignore[arg-type]
    if isinstance(value, float):
        return repr(value)
    flow = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=float("inf"), sort_keys=False)  # type: ignore[arg-type]
    return flow.strip().removesuffix("...").strip()


def read_value(text: str, where: str = "") -> Any:
    """The value after `key=`: null, true, false, a number, [a, list], {a: mapping}, "quoted text", or plain text.

    Plain text is taken as it is, colons, hashes and blanks included. Nothing at all is null: `data.size=` unsets.
    """
    if text[:1] not in ("[", "{", '"', "'"):
        return read_scalar(text)
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "unreadable"
        kind = {"[": "list", "{": "mapping"}.get(text[0], "quoted text")
        hint = f"put text that starts with {text[0]} in quotes within quotes" if kind == "quoted text" else ""
        raise UserError(f"{where}={text}", f"not a complete {kind} ({problem})", hint) from None


def parse_assignments(words: Iterable[str]) -> dict[str, Any]:
    """["train.lr=1e-4", "network.multipliers=[1,2]"] -> {"train": {"lr": 1e-4}, "network": {"multipliers": [1, 2]}}.

    The order does not matter: a group's bare value (`data=digits`) and its settings (`data.size=8`) go together.
    The same setting twice with different values is an error, as is a word without `=`.
    """
    tree: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(word, "not a setting", f"settings are written key=value: {word.strip('.-') or 'key'}=VALUE")
        if not KEY.match(key):
            raise UserError(word, f"{key!r} cannot be the name of a setting", "write group.name=value")
        _put(tree, key.split("."), read_value(text, key), word)
    return tree


def _put(tree: dict[str, Any], path: list[str], value: Any, word: str) -> None:
    """Adds a value at a path; a mapping is merged, a bare value stays beside the settings of its group."""
    for name in path[:-1]:
        inner = tree.setdefault(name, {})
        if not isinstance(inner, dict):
            inner = tree[name] = {BARE: inner}
        tree = inner
    name, old = path[-1], tree.get(path[-1], value)
    if isinstance(value, dict):
        inner = tree.setdefault(name, {})
        for key, entry in value.items():
            _put(tree, [name, str(key)], entry, word)
    elif isinstance(old, dict):
        _put(old, [BARE], value, word)
    elif old != value:
        raise UserError(word, f"the same setting was also given as {write_value(old)}", "keep one of them")
    else:
        tree[name] = value
