"""What pydantic finds wrong with a request, in the words in which everything else is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .refused import Refused

SHOWN = 40  # characters of a value that are repeated to who sent it
KINDS = {
    "bool_type": "is not true or false", "dict_type": "is no JSON object", "float_type": "is no number",
    "int_from_float": "is no whole number", "int_parsing": "is no whole number", "int_type": "is no whole number",
    "list_type": "is no list", "string_type": "is no text",
}  # fmt: skip
WORDS = KINDS | {
    "finite_number": "is not finite", "greater_than_equal": "is less than {ge}", "less_than_equal": "is more than {le}",
    "literal_error": "is not {expected}", "missing": "is missing", "string_too_long": "is longer than {max_length}",
    "string_too_short": "is empty", "too_long": "has more than {max_length} items",
    "too_short": "has fewer than {min_length} items",
}  # fmt: skip


def mistake(errors: Sequence[Any], known: Sequence[str] = ()) -> Refused:
    """The first mistake of pydantic's list: its place, its value where that is short, and what is wrong with it.
    known: settings that there are."""
    path = _path(errors[0])
    where = ".".join(str(part) for part in path) or "body"
    same = [error for error in errors if _path(error) == path]  # a value that may be of several kinds is none of them
    if same[0]["type"] == "extra_forbidden":  # whatever it is called: of settings none lies in another
        return Refused(422, str(same[0]["loc"][-1])[:200], "no such setting", f"valid: {', '.join(known)}")
    found = [error for error in same if error["type"] not in KINDS and error["type"] != "literal_error"] or same
    said = list(dict.fromkeys(_word(error) for error in found))
    if len(said) > 1 and "is no number" in said and "is no whole number" in said:
        said.remove("is no whole number")
    value = same[0].get("input")
    if isinstance(value, str | int | float) and "missing" not in same[0]["type"] and 0 < len(str(value)) <= SHOWN:
        where = f"{where}={str(value).lower() if isinstance(value, bool) else value}"
    return Refused(422, where[:200], ", ".join([said[0], *(word.removeprefix("is ") for word in said[1:])]))


def _path(error: Any) -> tuple[int | str, ...]:
    """Where, without the names that pydantic gives the members of a union and the parts of a request."""
    names = ("str", "int", "float", "constrained-str", "query", "path")
    return tuple(part for part in error["loc"] if isinstance(part, int) or not (part in names or "[" in part))


def _word(error: Any) -> str:
    word = WORDS.get(error["type"])
    return str(error["msg"]).lower() if word is None else word.format_map(error.get("ctx", {}))
