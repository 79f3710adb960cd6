"""`twofold import SOURCE [data=SOURCE] [--out RUN]`: a model from elsewhere as a run folder."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..settings.importing import ImportSettings
from ..settings.resolve import parse_assignments, resolve
from .show import say
from .train import command_line

OPTIONS = ("--out", "--quiet")


def settings_model() -> type[ImportSettings]:
    return ImportSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder of diffusers', a hub name (org/name, org/name@revision) or a published file of weights",
    )


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(ImportSettings, [("command line", parse_assignments(args.assignments))])
    out = Path(args.out) if args.out else default_out(args.source)
    say("loading torch ...", args.quiet)
    from ..run.imported import UNKNOWN, import_model

    found = import_model(args.source, out, settings.data, command_line())
    print(f"{out}: {found.get('parameters', 0):,} parameters, weights {found['imported']['weights'][:12]}")
    if settings.data is None and (found.get("data") or {}).get("name", UNKNOWN) == UNKNOWN:
        print("its data are not known: sampling needs none; evaluate and probe take data=SOURCE")
    return 0


def default_out(source: str) -> Path:
    """runs/NAME, NAME being the last part of where it comes from."""
    name = Path(source).stem if Path(source).is_file() else Path(source.partition("@")[0]).name
    return Path("runs") / (re.sub(r"[^\w.-]+", "-", name).strip("-") or "imported")
