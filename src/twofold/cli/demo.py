"""`twofold demo`: the whole story on embedded real data, ending in a report to look at."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..settings.evaluate import EvaluateSettings
from .show import say
from .train import resolved, train_run

HELP = "train, sample and measure on scikit-learn's digits (about 5 minutes on 2 cores), with a report"

CRITERIA = (
    """frechet_to_all <= 0.20; acceptance >= 0.9 x real; class gap <= 5 points; precision, recall >= 0.85 x real"""
)


def settings_model() -> None:
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(assignments=[])


def run(args: argparse.Namespace) -> int:
    out = Path(args.out or "runs/demo")
    start = time.monotonic()
    denoiser, judge = out / "digits", out / "judge"
    say("1/3 a diffusion model of handwritten digits", args.quiet)
    settings, _ = resolved("digits", [])
    train_run(settings, denoiser, args.device, args.quiet, "twofold train digits", "training the denoiser")
    say("2/3 an independent classifier, to judge its images", args.quiet)
    judging, _ = resolved("digits-classifier", [])
    train_run(judging, judge, args.device, args.quiet, "twofold train digits-classifier", "training the judge")
    say("3/3 a thousand new digits, measured", args.quiet)
    found = measured(denoiser, judge, args.device, args.quiet)
    path = write(denoiser, found)
    print_verdict(found)
    print(f"report: {path}   ({time.monotonic() - start:.0f} s)")
    return 0 if all(row["passed"] for row in found["verdict"]) else 1


def measured(denoiser: Path, judge: Path, device: str | None, quiet: bool) -> dict[str, Any]:
    """The evaluation of a thousand samples, with the judge's own accuracy and the verdict."""
    raise NotImplementedError


def write(denoiser: Path, found: dict[str, Any]) -> Path:
    raise NotImplementedError


def print_verdict(found: dict[str, Any]) -> None:
    raise NotImplementedError
