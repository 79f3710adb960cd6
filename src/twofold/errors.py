"""The user's mistakes, told in one line each.

Everything a person can get wrong raises a `UserError`; the command line prints its one line and exits
with 2, the web service answers 4xx. Any other exception is our mistake and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """`where: what is wrong; what would be right`.

    where: the file, setting, layer or value at fault, as the user wrote it.
    what:  what is wrong with it.
    hint:  what would be right, or what to do next.
    """

    def __init__(self, where: str, what: str, hint: str = "") -> None:
        self.where, self.what, self.hint = str(where), what, hint
        super().__init__(f"{where}: {what}" + (f"; {hint}" if hint else ""))


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint naming the nearest valid name, or all of them when none is near."""
    valid = [str(v) for v in valid]
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(valid[:30]) + (", ..." if len(valid) > 30 else "")
    return f"valid: {shown}" if valid else ""


def some(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c and 5 more`: the first of these names and how many are left."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def first_line(error: BaseException, most: int = 120) -> str:
    """What an exception of somebody else's says, short enough for brackets within a line; its kind if it is silent."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:most]
