"""Finds the commands in Markdown: in fenced blocks of a shell, in other fences and in indented blocks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHELLS = ("bash", "sh", "shell", "console")
# What begins a command where a block does not say that it is one of a shell: trees, tables and output stand there, too
FIRST = re.compile(r"(twofold|python3?|torchrun|accelerate|make|curl|source|pip|docker|kubectl|mkdocs|pytest|git) \S")
ASSIGNED = re.compile(r"[A-Z_][A-Z0-9_]*=")  # of the environment, before a command
SEPARATORS = ("|", "&&", "||", ";", ">", ">>", "<", "&", "2>&1")


@dataclass(frozen=True)
class Command:
    """One command as a person reads it. page: from the root of the repository. line: where it begins, from 1."""

    page: str
    line: int
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def pages() -> list[str]:
    """Every page for people, from the root of the repository."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found if path.name != "CHANGELOG.md")


def commands(page: str, text: str | None = None) -> list[Command]:
    """The commands of a page in order; a line with a pipe or && holds several."""
    found = []
    for line, written in _lines((ROOT / page).read_text() if text is None else text):
        try:
            words = shlex.split(_without_comment(written))
        except ValueError as error:
            raise ValueError(f"{page}:{line}: {written}: {error}") from None
        found += [Command(page, line, part) for part in _parts(words)]
    return found


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, whole line) of what is written to be typed, continued lines joined."""
    fence, kept, started = None, "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        mark = re.match(r"\s*```(\S*)", line)
        if mark:
            fence = None if fence is not None else (mark[1].lower() or "none")
            continue
        stripped = re.sub(r"^\s*\$ ", "", line).strip()
        if not kept:
            indented = fence is None and line.startswith("    ") and FIRST.match(stripped)
            shell = fence in SHELLS and stripped and not stripped.startswith("#")
            if not (indented or shell or (fence == "none" and FIRST.match(stripped))):
                continue
            started = number
        kept += stripped.removesuffix("\\")
        if stripped.endswith("\\"):
            continue
        yield started, kept
        kept = ""


def _without_comment(line: str) -> str:
    """The line up to a # that stands alone, outside quotes."""
    quote = ""
    for at, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#" and (at == 0 or line[at - 1].isspace()):
            return line[:at]
    return line


def _parts(words: list[str]) -> list[tuple[str, ...]]:
    """The commands between pipes and the like; what is behind > is a file."""
    parts: list[list[str]] = [[]]
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in (">", ">>", "<"):
            skip = True
        elif word in SEPARATORS:
            parts.append([])
        elif not (ASSIGNED.match(word) and not parts[-1]) and word not in ("...", "…"):
            parts[-1].append(word)
    return [tuple(part) for part in parts if part]
