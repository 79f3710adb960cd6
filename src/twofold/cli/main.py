"""`twofold VERB ...`: finds the verb, reads its words, and tells what went wrong in one line.

A verb is a module with

    add_arguments(parser)      its own words and dash options
    settings_model() -> model  the settings it takes as key=value (absent or None: it takes none)
    run(args) -> exit code     args.assignments holds the key=value words
    OPTIONS                    which of the dash options below it takes (default: all)
    more_help() -> str         further text at the end of --help (optional)

and a line in `VERBS`. It is imported when it is run or helped with, never before, and imports what is heavy inside
its functions: `twofold --help` loads no torch.

Exit codes: 0 done, 1 failed, 2 the user's mistake, 130 interrupted, 141 nobody reads the output.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import re
import select
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn

from ..errors import UserError, nearest

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "the whole story on real images of digits in a few minutes, with a report to look at"),
    "train": ("train", "train a denoiser or a classifier; the same command again continues"),
    "sample": ("sample", "generate images from a trained model"),
    "evaluate": ("evaluate", "measure how good generated images are"),
    "probe": ("probe", "what a model's features know, for every layer and noise level, and from few labels"),
    "predict": ("predict", "labels, features or anomaly scores of new images, as CSV or Parquet"),
    "export": ("export", "a model as ONNX or a PyTorch program, as a folder for diffusers, or on a hub with a card"),
    "import": ("importing", "a model of diffusers', of the hub or a published file, as a run folder"),
    "distill": ("distill", "teach a small network what a diffusion model sees: classes, masks or key points"),
    "fewlabel": ("fewlabel", "from a few labels to a classifier and a generator: dual pseudo training, resumable"),
    "edit": ("edit", "change images towards another class as little as it takes: counterfactuals"),
    "inpaint": ("inpaint", "paint a part of images anew, so that it fits to the rest"),
    "vary": ("vary", "images like the given ones, nearer or further from them"),
    "upscale": ("upscale", "larger images by a super-resolution model, measured where the truth is known"),
    "copies": ("copies", "before images are shared: which of them are copies of training images"),
    "serve": ("serve", "a REST API and a web page over trained models: generate, classify, embed, edit"),
    "data": ("data", "pack, split and describe a source of images"),
    "runs": ("runs", "list runs, or compare some"),
    "doctor": ("doctor", "what this machine has, what will be used, what is missing and how to get it"),
    "completion": ("completion", "a script for bash, zsh or fish that completes verbs, presets, options and settings"),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "--out": {"metavar": "PATH", "help": "where the result goes"},
    "--device": {"metavar": "NAME", "help": "cpu, cuda, cuda:1, mps; default: the best there is"},
    "--dry-run": {"action": "store_true", "help": "print the resolved settings and what the run will need, and stop"},
    "--quiet": {"action": "store_true", "help": "no progress display"},
}

ASSIGNMENT = re.compile(r"[A-Za-z_][\w.-]*=")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)  # places that nothing can be written to
KEPT = "what is finished is kept; the same command continues"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        code = dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        said = str(interrupt) or KEPT
        _tell(f"twofold: stopped; {said}")
        return 130
    except SystemExit as leaving:  # argparse
        return leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
    except Exception as error:
        return _failed(error)
    finally:
        _leave_processes()


def _leave_processes() -> None:
    """Ends this process's part in a torchrun while the interpreter is whole; later its threads may abort it."""
    training = sys.modules.get(f"{__package__.removesuffix('.cli')}.learn.training")
    if training is not None:
        training.leave_process_group()


def dispatch(argv: list[str]) -> int:
    """Runs the verb that the words name; raises what it raises."""
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        from .. import __version__

        print(f"twofold {__version__}")
        return 0
    name, *words = argv
    if name not in VERBS:
        what = "no such option" if name.startswith("-") else "no such verb"
        raise UserError(name, what, nearest(name, VERBS))
    verb = importlib.import_module(f".{VERBS[name][0]}", __package__)
    parser = build_parser(name, verb)
    assignments, others = split_assignments(words, parser)
    args = parser.parse_args(others)
    if assignments and settings_model(verb) is None:
        raise UserError(assignments[0], f"`twofold {name}` takes no settings", f"see `twofold {name} --help`")
    args.assignments = assignments
    return verb.run(args)


def overview() -> str:
    """What `twofold --help` prints."""
    lines = [f"  {name:<10} {text}" for name, (_, text) in VERBS.items()]
    return "\n".join(
        [
            "twofold: train one denoiser on your images; it generates and it recognizes.",
            "",
            "usage: twofold VERB [words] [key=value ...] [--options]",
            "",
            *lines,
            "",
            "`twofold VERB --help` lists every setting with its default. Dash options concern this call; what concerns",
            "the experiment is key=value, as in the YAML file that is saved with the run. Start with `twofold demo`.",
        ]
    )


class _Parser(argparse.ArgumentParser):
    """argparse, but its complaints are one line like all others."""

    verb: ModuleType

    def error(self, message: str) -> NoReturn:
        hint = f"see `{self.prog} --help`"
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            word = unknown.split()[0]
            if not word.startswith("-"):
                hint = (
                    f"did you mean data={word}?" if os.path.exists(word) else f"settings are written key=value; {hint}"
                )
                raise UserError(word, "not expected here", hint)
            raise UserError(word, "no such option", self._meant(word))
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            raise UserError(self.prog, f"{missing} is missing", self.format_usage().strip())
        raise UserError(self.prog, message, hint)

    def _meant(self, word: str) -> str:
        """What an unknown dash option was meant to be: a setting, or another option."""
        name, equals, value = word.lstrip("-").partition("=")
        model = settings_model(self.verb)
        if model is not None:
            from ..settings.shape import settings_of

            key = name.replace("-", "_")
            paths = [path for path, _ in settings_of(model)]
            meant = [path for path in paths if key in (path, path.rpartition(".")[2])]
            if meant:
                found = min(meant, key=lambda path: path.count("."))  # what a run has before what a part of it has
                return f"settings have no dashes: {found}={value if equals else '...'}"
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        return nearest(f"--{name}", options)


class _Help(argparse.Action):
    """--help: the words and dash options, then every setting, then what the verb adds."""

    def __init__(self, option_strings: Sequence[str], dest: str, verb: ModuleType, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)
        self.verb = verb

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        print(parser.format_help().rstrip())
        model = settings_model(self.verb)
        if model is not None:
            from ..settings.describe import describe_text

            print("\nsettings (key=value; the same names, nested, in a YAML file):\n")
            print(describe_text(model))
        if hasattr(self.verb, "more_help"):
            print("\n" + self.verb.more_help())
        parser.exit()


def settings_model(verb: ModuleType) -> Any:
    """The model of the settings that a verb takes as key=value, None where it takes none."""
    return verb.settings_model() if hasattr(verb, "settings_model") else None


def build_parser(name: str, verb: ModuleType) -> argparse.ArgumentParser:
    """The parser of one verb: its own words, the dash options it takes, and --help."""
    parser = _Parser(prog=f"twofold {name}", description=VERBS[name][1], add_help=False, allow_abbrev=False)
    parser.verb = verb
    verb.add_arguments(parser)
    own = [str(a.metavar or a.dest) for a in parser._actions if not a.option_strings]
    settings = ["[key=value ...]"] if settings_model(verb) else []
    parser.usage = " ".join([parser.prog, *own, *settings, "[--options]"])
    for option in getattr(verb, "OPTIONS", OPTIONS):
        parser.add_argument(option, **OPTIONS[option])
    parser.add_argument("-h", "--help", action=_Help, verb=verb, default=argparse.SUPPRESS, help="show this and stop")
    return parser


def split_assignments(words: list[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """(key=value words, all others). The value of a dash option is not a setting, nor is what follows `--`."""
    takes_value = {
        option for action in parser._actions if action.nargs != 0 for option in action.option_strings
    }  # nargs is None for one value
    settings, others = [], []
    rest = iter(words)
    for word in rest:
        if word == "--":
            others += [word, *rest]
        elif word in takes_value:
            others += [word, *_next(rest)]
        elif ASSIGNMENT.match(word):
            settings.append(word)
        else:
            others.append(word)
    return settings, others


def _next(rest: Iterator[str]) -> list[str]:
    word = next(rest, None)
    return [] if word is None else [word]


def _failed(error: Exception) -> int:
    """Says what went wrong and returns the exit code."""
    chain = list(_causes(error))
    full = next((e for e in chain if _is_full_disk(e)), None)
    if full is not None:
        name = getattr(full, "filename", None)
        text = str(error) if isinstance(error, UserError) else f"the disk is full{f' ({name})' if name else ''}"
        _tell(f"twofold: error: {text}; what was saved before is kept: free some room and give the same command again")
        return 1
    if isinstance(error, UserError):
        from .ranks import tell_once

        tell_once(str(error), lambda text: _tell(f"twofold: error: {text}"))
        return 2
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        return 141
    if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename:
        _tell(f"twofold: error: {error.filename}: {error.strerror}; choose another place, or its permissions")
        return 2
    memory = sys.modules.get(f"{__package__.removesuffix('.cli')}.learn.memory")
    if memory is not None and any(memory.is_out_of_memory(e) for e in chain):
        _tell("twofold: error: out of memory; lower micro_batch (or the size of the images), or use another device")
        return 1
    traceback.print_exception(error)
    return 1


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_full_disk(error: BaseException) -> bool:
    """Libraries written in other languages raise kinds of their own, with the system's words in them."""
    return (isinstance(error, OSError) and error.errno in FULL_DISK) or "No space left on device" in str(error)


def _nobody_reads() -> bool:
    """Whether the reader of our output has gone (`| head`); then nothing more may be written to it."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # no file behind it; no poll on this system
            watch = select.poll()
            watch.register(stream.fileno(), 0)
            if any(events & (select.POLLERR | select.POLLHUP) for _, events in watch.poll(0)):
                gone = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return gone


def _tell(text: str) -> None:
    """One line on standard error, whatever the text holds."""
    with contextlib.suppress(BrokenPipeError):
        print(" ".join(text.split()), file=sys.stderr, flush=True)
