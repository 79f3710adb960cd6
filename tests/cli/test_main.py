"""The shell of the command line: verbs, help, exit codes, one line for every mistake."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import Field

import twofold
from twofold.cli import main as shell
from twofold.cli.main import VERBS, main
from twofold.errors import UserError
from twofold.settings.base import Settings
from twofold.settings.describe import describe

SRC = str(Path(twofold.__file__).parents[1])


class Loop(Settings):
    lr: float = Field(0.1, gt=0, description="learning rate")


class Toy(Settings):
    train: Loop = Loop()


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Registers a verb `toy PRESET [RUN]` that calls `does(args)`."""

    def make(does: Callable[[argparse.Namespace], int] = lambda args: 0, **attributes: Any) -> ModuleType:
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("preset", metavar="PRESET", help="what to start from")
            parser.add_argument("other", metavar="OTHER", nargs="?", help="something else")

        module = ModuleType("twofold.cli.toy")
        facts = {"add_arguments": add_arguments, "run": does, "settings_model": lambda: Toy, **attributes}
        for name, value in facts.items():
            setattr(module, name, value)
        monkeypatch.setitem(sys.modules, "twofold.cli.toy", module)
        monkeypatch.setitem(VERBS, "toy", ("toy", "a verb for tests"))
        return module

    return make


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1
    return found.err.strip()


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_overview_lists_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    text = capsys.readouterr().out
    for name, (_, help_text) in VERBS.items():
        assert name in text
        assert help_text in text
    assert all(len(line) <= 110 for line in text.splitlines())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"twofold {twofold.__version__}\n"


@pytest.mark.parametrize("name", list(VERBS))
def test_help_of_every_verb_names_every_option_and_setting(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"twofold.cli.{VERBS[name][0]}")
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    for option in (*getattr(module, "OPTIONS", shell.OPTIONS), "--help"):
        assert option in text
    model = shell.settings_model(module)
    for entry in describe(model) if model else ():
        assert f"{entry.path}={entry.accepts}" in text


def test_help_shows_what_the_verb_adds(verb: Callable[..., ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    verb(more_help=lambda: "presets: one, two", OPTIONS=("--out",))
    assert main(["toy", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: twofold toy PRESET OTHER [key=value ...] [--options]\n")
    assert "train.lr=NUMBER" in text
    assert "learning rate (> 0, default 0.1)" in text
    assert text.endswith("presets: one, two\n")
    assert "--out" in text
    assert "--device" not in text


def test_words_options_and_settings_in_any_order(verb: Callable[..., ModuleType]) -> None:
    seen: list[argparse.Namespace] = []

    def keep(args: argparse.Namespace) -> int:
        seen.append(args)
        return 7

    verb(keep)
    for words in (
        ["digits", "train.lr=3", "--out", "a=b", "--quiet", "x.y=[1, 2]"],
        ["train.lr=3", "--quiet", "x.y=[1, 2]", "--out", "a=b", "digits"],
        ["--out=a=b", "train.lr=3", "digits", "x.y=[1, 2]", "--quiet"],
    ):
        assert main(["toy", *words]) == 7
        args = seen.pop()
        assert args.assignments == ["train.lr=3", "x.y=[1, 2]"]
        assert (args.preset, args.other, args.out, args.quiet) == ("digits", None, "a=b", True)
        assert (args.device, args.dry_run) == (None, False)


def test_what_looks_like_a_path_is_no_setting(verb: Callable[..., ModuleType]) -> None:
    seen: list[argparse.Namespace] = []
    verb(lambda args: seen.append(args) or 0)
    assert main(["toy", "runs/lr=3", "./a=b"]) == 0
    assert (seen[0].preset, seen[0].other, seen[0].assignments) == ("runs/lr=3", "./a=b", [])
    assert main(["toy", "--", "a=b"]) == 0
    assert (seen[1].preset, seen[1].assignments) == ("a=b", [])


ALL_VERBS = (
    "demo, train, sample, evaluate, probe, predict, export, import, distill, fewlabel, edit, inpaint, vary, upscale, "
    "copies, serve, data, runs, doctor, completion, toy"
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tarin"], "tarin: no such verb; did you mean 'train'?"),
        (
            ["zzz"],
            f"zzz: no such verb; valid: {ALL_VERBS}",
        ),
        (
            ["--verson"],
            f"--verson: no such option; valid: {ALL_VERBS}",
        ),
        (["toy"], "twofold toy: PRESET is missing; usage: twofold toy PRESET OTHER [key=value ...] [--options]"),
        (["toy", "a", "--qiet"], "--qiet: no such option; did you mean '--quiet'?"),
        (["toy", "a", "--quie"], "--quie: no such option; did you mean '--quiet'?"),  # no abbreviations
        (["toy", "a", "--lr=3"], "--lr=3: no such option; settings have no dashes: train.lr=3"),
        (["toy", "a", "--train.lr", "3"], "--train.lr: no such option; settings have no dashes: train.lr=..."),
        (["toy", "a", "--out"], "twofold toy: argument --out: expected one argument; see `twofold toy --help`"),
        (
            ["toy", "a", "b", "c"],
            "c: not expected here; settings are written key=value; see `twofold toy --help`",
        ),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, verb: Callable[..., ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    verb()
    assert main(words) == 2
    assert said(capsys) == f"twofold: error: {message}"


def test_settings_for_a_verb_that_takes_none(
    verb: Callable[..., ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(settings_model=lambda: None)
    assert main(["toy", "a", "lr=3"]) == 2
    assert said(capsys) == "twofold: error: lr=3: `twofold toy` takes no settings; see `twofold toy --help`"


def raising(error: BaseException, cause: BaseException | None = None) -> Callable[[argparse.Namespace], int]:
    def does(args: argparse.Namespace) -> int:
        raise error from cause

    return does


FULL = OSError(errno.ENOSPC, "No space left on device", "/data/images.npy")
KEPT = "what is finished is kept; the same command continues"
FREE = "what was saved before is kept: free some room and give the same command again"


@pytest.mark.parametrize(
    ("error", "cause", "code", "message"),
    [
        (UserError("a", "wrong\nthing", "do b"), None, 2, "twofold: error: a: wrong thing; do b"),
        (KeyboardInterrupt(), None, 130, f"twofold: stopped; {KEPT}"),
        (KeyboardInterrupt("kept runs/a at 100 images"), None, 130, "twofold: stopped; kept runs/a at 100 images"),
        (FULL, None, 1, f"twofold: error: the disk is full (/data/images.npy); {FREE}"),
        (RuntimeError("failed"), FULL, 1, f"twofold: error: the disk is full (/data/images.npy); {FREE}"),
        (
            RuntimeError("I/O: No space left on device (os error 28)"),
            None,
            1,
            f"twofold: error: the disk is full; {FREE}",
        ),
        (
            UserError("d", "the disk is full (3 MiB free)"),
            FULL,
            1,
            f"twofold: error: d: the disk is full (3 MiB free); {FREE}",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/x"),
            None,
            2,
            "twofold: error: /root/x: Permission denied; choose another place, or its permissions",
        ),
    ],
)
def test_what_goes_wrong_while_running(
    error: BaseException,
    cause: BaseException | None,
    code: int,
    message: str,
    verb: Callable[..., ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    verb(raising(error, cause))
    assert main(["toy", "a"]) == code
    assert said(capsys) == message


@pytest.mark.parametrize("error", [ValueError("our own"), BrokenPipeError(errno.EPIPE, "a worker died")])
def test_our_mistakes_keep_their_traceback(
    error: Exception, verb: Callable[..., ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raising(error))
    assert main(["toy", "a"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("Traceback (most recent call last):")
    assert str(error) in text


def run(code: str, **kwargs: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": SRC}
    return subprocess.Popen([sys.executable, "-c", code], text=True, stderr=subprocess.PIPE, env=environment, **kwargs)


@pytest.mark.parametrize("unbuffered", ["", "-u"])
def test_a_reader_that_leaves_is_no_error(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, *filter(None, [unbuffered]), "-m", "twofold", "train", "--help"]
    environment = {**os.environ, "PYTHONPATH": SRC}
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_verb_is_imported_only_when_it_is_asked_for() -> None:
    code = "import sys; from twofold.cli.main import main; main([]); print(*sys.modules, sep='\\n')"
    process = run(code, stdout=subprocess.PIPE)
    loaded = process.communicate(timeout=60)[0].split()
    assert process.returncode == 0
    assert {name for name in loaded if name.startswith("twofold.cli.")} == {"twofold.cli.main"}
