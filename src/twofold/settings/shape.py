"""The shape of a settings model: its groups, their kinds, and what each setting accepts, in words. No values here."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Model = type[BaseModel]
NONE = type(None)


@dataclass(frozen=True)
class Group:
    """A setting that holds settings: one model, or several told apart by their `kind`.

    models: {kind: model}; {"": model} where there is only one.
    plain: it also accepts a plain value besides (such as "auto"), which is then not read as a shorthand.
    """

    models: Mapping[str, Model]
    plain: bool = False

    @property
    def kinds(self) -> list[str]:
        """Valid values of `kind`; empty for a group of one model."""
        return [kind for kind in self.models if kind]

    def model(self, kind: str | None = None) -> Model:
        return self.models[kind if kind and self.kinds else next(iter(self.models))]

    def bare(self) -> str | None:
        """The setting that a bare value stands for: `network=unet` is its kind, `data=digits` its source."""
        if self.kinds:
            return "kind"
        return next((name for name, field in self.model().model_fields.items() if field.is_required()), None)


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union, flat and without what `Annotated` adds to them; one entry if it is no union."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for member in get_args(annotation) for part in alternatives(member)]
    return [annotation]


def group_of(annotation: Any) -> Group | None:
    """The group that an annotation describes, or None where it describes a single value."""
    parts = alternatives(annotation)
    models = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    if not models:
        return None
    plain = any(part is not NONE and part not in models for part in parts)
    if len(models) == 1:
        return Group({"": models[0]}, plain)
    kinds = [(str(kind), model) for model in models for kind in get_args(model.model_fields["kind"].annotation)]
    return Group(dict(kinds), plain)


def settings_of(model: Model, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted path, field) of every setting under a model, over all kinds, groups before what they hold."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path, field
        group = group_of(field.annotation)
        for member in group.models.values() if group else ():
            yield from settings_of(member, f"{path}.")


def takes_text_only(annotation: Any) -> bool:
    """True where text is the only single value: there, `to=7` is the text '7'."""
    return {part for part in alternatives(annotation) if part is not NONE} == {str}


def list_length(annotation: Any) -> int | None:
    """Entries of a list setting that accepts no text: -1 for any number of them, None if it is no such list."""
    parts = [part for part in alternatives(annotation) if part is not NONE]
    if len(parts) != 1 or get_origin(parts[0]) not in (tuple, list):
        return None
    args = get_args(parts[0])
    return -1 if get_origin(parts[0]) is list or Ellipsis in args else len(args)


def holds_mapping(annotation: Any) -> bool:
    """True for a free mapping, whose names are not settings."""
    return any((get_origin(part) or part) in (dict, Mapping, Any) for part in alternatives(annotation))


WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NONE: "null"}
SHORT = {bool: "true|false", int: "INT", float: "NUMBER", str: "TEXT", NONE: "null"}


def bounds(metadata: Sequence[Any]) -> list[str]:
    """The limits in a field's metadata, as [">= 0", "< 1"]."""
    found = []
    for item in metadata:
        match item:
            case Ge(ge=limit):
                found.append(f">= {_limit(limit)}")
            case Gt(gt=limit):
                found.append(f"> {_limit(limit)}")
            case Le(le=limit):
                found.append(f"<= {_limit(limit)}")
            case Lt(lt=limit):
                found.append(f"< {_limit(limit)}")
            case MinLen(min_length=limit):
                found.append("not empty" if limit == 1 else f"of length >= {limit}")
            case MaxLen(max_length=limit):
                found.append(f"of length <= {limit}")
            case FieldInfo():
                found += bounds(item.metadata)
    return found


def _limit(limit: Any) -> str:
    power = limit.bit_length() - 1 if isinstance(limit, int) else 0
    return f"2^{power}" if power > 30 and limit == 1 << power else str(limit)


def in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a setting accepts: "a number >= 0 and < 1", "a list of 2 whole numbers or null"."""
    limits = " and ".join(bounds(metadata))
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(args[0], [*args[1:], *metadata])
    if (group := group_of(annotation)) and not group.plain:
        words = "a group of settings" + (" or null" if NONE in args else "")
    elif origin in (Union, types.UnionType):
        first = in_words(Union[*(a for a in args if a is not NONE)], metadata) if NONE in args else ""
        return f"{first} or null" if first else " or ".join(in_words(a, metadata) for a in args)
    elif origin is Literal:
        words = "one of " + ", ".join(map(str, args)) if len(args) > 1 else str(args[0])
    elif origin in (tuple, list):
        count = list_length(annotation)
        entry = in_words(args[0]) if args else "value"
        words = "a list of " + (f"{count} " if count and count > 0 else "") + _plural(entry)
    elif origin is dict or annotation is dict:
        words = "a mapping"
    else:
        words = WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return f"{words} {limits}" if limits else words


def in_short(annotation: Any) -> str:
    """What a setting accepts, as the help shows it after `=`: "INT", "crop|stretch|pad", "[INT,INT]"."""
    parts = [part for part in alternatives(annotation) if part is not NONE]
    return "|".join(_short(part) for part in parts)


def _short(part: Any) -> str:
    args = get_args(part)
    if get_origin(part) is Literal:
        return "|".join(map(str, args))
    if get_origin(part) in (tuple, list):
        several = list_length(part) == -1
        return f"[{in_short(args[0])},...]" if several else "[" + ",".join(in_short(a) for a in args) + "]"
    if get_origin(part) is dict or part is dict:
        return "{...}"
    return SHORT.get(part, getattr(part, "__name__", str(part)).upper())


def _plural(words: str) -> str:
    head, _, tail = words.removeprefix("a ").partition(" of ")
    noun = {"whole number": "whole numbers", "number": "numbers", "text": "texts", "list": "lists"}.get(head)
    if noun is None:
        return f"entries, each {words}"
    return f"{noun} of {tail}" if tail else noun
