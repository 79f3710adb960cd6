"""Each message that the page on troubleshooting quotes is what its command says."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from pathlib import Path

import pytest

from twofold.cli.main import main

from . import stand_ins
from .reading import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text()
ROWS = re.findall(r"^\| `(twofold [^`]*)` \| `([^`]*)` \|", PAGE, re.M)
IN_THE_CODE = re.findall(r"^\| `([^`]*)` \|", PAGE.split("## The machine")[1], re.M)


@pytest.fixture(scope="module")
def here(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands in for a person's files, with some that are wrong."""
    folder = stand_ins.copied(prepared, tmp_path_factory.mktemp("trouble") / "here")
    for name in ("bad", "mixed", "empty"):
        (folder / name).mkdir()
    for i in range(4):
        for name in ("bad", "mixed"):
            shutil.copy(folder / f"new/{i}.png", folder / name)
    (folder / "bad/broken.png").write_bytes(b"no image")
    shutil.copy(folder / "photos/cat/0.png", folder / "mixed/large.png")
    return folder


def test_there_are_enough() -> None:
    assert 20 <= len(ROWS) <= 40 and len(IN_THE_CODE) >= 3


@pytest.mark.parametrize(("command", "message"), ROWS, ids=[command for command, _ in ROWS])
def test_message_of(
    command: str, message: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with contextlib.chdir(here):
        assert main(shlex.split(command)[1:]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("twofold: error: ")]
    assert len(lines) == 1
    pattern = ".*".join(map(re.escape, re.split(r"(?<![=])\.\.\.", message)))
    assert re.fullmatch(pattern + r"(.*)?" if message.endswith("...") else pattern, lines[0].partition("error: ")[2])


@pytest.mark.parametrize("message", [message for message in IN_THE_CODE if " " in message])
def test_message_in_the_code(message: str) -> None:
    assert any(message in path.read_text() for path in (ROOT / "src/twofold").rglob("*.py"))
