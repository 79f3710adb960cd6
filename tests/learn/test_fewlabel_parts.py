"""Parts of a few-label experiment: named, noted, damaged, and the same on every machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twofold.errors import UserError
from twofold.learn.parts import FACTS, Part, Parts


class Alone:
    """One process, or the first of two on machines that share no disk; what the second one says is given."""

    def __init__(self, other: tuple[str, bool] | None = None) -> None:
        self.other, self.first, self.rank, self.world = other, True, 0, 1 if other is None else 2
        self.machine = "anna"

    def wait(self) -> None: ...

    def told(self, value: Any) -> Any:
        return value

    def by_first(self, work: Any) -> Any:
        return work()

    def everyones(self, value: Any) -> list[Any]:
        return [value] if self.other is None else [value, self.other]


class Second(Alone):
    """The second of two: it makes nothing, and is told what the first one knows."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(("anna", True))
        self.first, self.rank, self.machine, self.facts = False, 1, "bert", facts

    def told(self, value: Any) -> Any:
        return True if isinstance(value, bool) else self.facts

    def everyones(self, value: Any) -> list[Any]:
        return [("anna", True), value]


def parts_of(folder: Path, crew: Any = None) -> Parts:
    return Parts(folder / "parts", crew or Alone(), folder / "parts.json")


def make(parts: Parts, k: int = 1, kind: str = "answers", calls: list[Path] | None = None) -> Part:
    def work(path: Path) -> None:
        (path / "file.txt").write_text(str(k))
        if calls is not None:
            calls.append(path)

    return parts.make(kind, {"k": k}, lambda path: [path / "file.txt"], work)


def test_a_part_is_made_once_and_another_input_makes_another(tmp_path: Path) -> None:
    calls: list[Path] = []
    first = make(parts_of(tmp_path), 1, calls=calls)
    again = make(parts_of(tmp_path), 1, calls=calls)
    other = make(parts_of(tmp_path), 2, calls=calls)
    assert [part.made for part in (first, again, other)] == ["made", "found", "redone"]
    assert other.because == "k: 1 -> 2" and first.content == again.content != other.content
    assert calls == [first.path, other.path] and first.path.is_dir()
    assert make(parts_of(tmp_path), 1).made == "found"
    assert make(parts_of(tmp_path), 3).because == "k: 1 -> 3"  # than what was used last, not than what is newest


def test_kinds_whose_names_begin_alike_and_other_experiments_are_no_earlier_form(tmp_path: Path) -> None:
    make(parts_of(tmp_path), 1, "classifier-run")
    assert make(parts_of(tmp_path), 2, "classifier").made == "made"
    other = Parts(tmp_path / "parts", Alone(), tmp_path / "other.json")  # type: ignore[arg-type]
    assert make(other, 5, "classifier").made == "made"
    assert make(other, 2, "classifier").made == "found"


def test_a_part_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    part = make(parts_of(tmp_path))
    (part.path / "file.txt").unlink()
    calls: list[Path] = []
    assert make(parts_of(tmp_path), calls=calls).content == part.content and calls == [part.path]


def test_a_maker_that_leaves_a_file_out_is_told(tmp_path: Path) -> None:
    parts = parts_of(tmp_path)
    with pytest.raises(UserError, match="is damaged: file.txt is not there; remove the folder"):
        parts.make("answers", {"k": 1}, lambda path: [path / "file.txt"], lambda path: None)
    assert not list((tmp_path / "parts").glob(f"*/{FACTS}"))


def test_a_machine_without_a_copy_says_what_to_copy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bert has no copy with the content of anna's .*rsync -a anna:/\S+/ /\S+/"):
        make(parts_of(tmp_path, Alone(("bert", False))))
    assert make(parts_of(tmp_path, Alone(("bert", True)))).made == "found"


@pytest.mark.parametrize("lost", ["part.json", "file.txt", "its content"])
def test_a_copy_is_compared_by_content(tmp_path: Path, lost: str) -> None:
    part = make(parts_of(tmp_path))
    facts = json.loads((part.path / FACTS).read_text())
    assert make(parts_of(tmp_path, Second(facts))).content == part.content
    if lost == "its content":
        (part.path / "file.txt").write_text("other")
    else:
        (part.path / lost).unlink()
    with pytest.raises(UserError, match="bert has no copy"):
        make(parts_of(tmp_path, Second(facts)))
