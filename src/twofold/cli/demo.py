"""`twofold demo`: the whole story on embedded real data, ending in a report to look at."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..settings.evaluate import EvaluateSettings
from ..settings.fewlabel import FewLabelSettings
from ..settings.fewlabel_layers import layers_of
from ..settings.probe import ProbeSettings
from ..settings.resolve import parse_assignments, resolve
from .evaluate import evaluate, print_table
from .fewlabel import fewlabel
from .probe import probe
from .show import say
from .train import resolved, train_run

FRECHET_TARGET = 0.20  # pixels in [-1, 1], 1,000 samples to all digits; means little without the other criteria
JUDGE_ACCURACY = 0.98  # on held-out digits; a worse judge judges nothing
FEW_ACCURACY = 0.90  # with two labels of each class
OPTIONS = ("--out", "--device", "--quiet")
PROBE_WORDS = "pool=grid2 copies=1 labels_per_class=[1,2,5,10,50] draws=3 concat=[4]"
PROBE, _ = resolve(ProbeSettings, [("demo", parse_assignments(PROBE_WORDS.split()))])
FEW_WORDS = (
    "data=digits labels_per_class=2 features.n_images=30720 generator.n_images=20480 images.per_class=100 "
    "final.compare=false"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains a diffusion model on scikit-learn's digits (1,797 real images) and an independent classifier, samples "
        "a thousand new digits, measures them, reads the features and writes a report; then does it all again with two "
        "labels of each class. About 8 minutes on 2 CPU cores. The same command again continues."
    )


def run(args: argparse.Namespace) -> int:
    out, start = Path(args.out or "runs/demo"), time.monotonic()
    denoiser, judge = out / "digits", out / "judge"
    say("1/5  training a diffusion model of handwritten digits", args.quiet)
    settings, _ = resolved("digits", [])
    train_run(settings, denoiser, args.device, args.quiet, "twofold train digits", "denoiser")
    say("2/5  training an independent classifier, to judge its images", args.quiet)
    judging, _ = resolved("digits-classifier", [])
    train_run(judging, judge, args.device, args.quiet, "twofold train digits-classifier", "classifier")
    say("3/5  reading its features: what do they tell of digits?", args.quiet)
    known, _ = probe(str(denoiser), PROBE, args.device, args.quiet, None, f"twofold probe {denoiser} {PROBE_WORDS}")
    say("4/5  generating and measuring a thousand new digits", args.quiet)
    accuracy = judge_accuracy(judge, args)
    how = EvaluateSettings(n=1000, classifier=str(judge), micro_batch=250)
    found, page = evaluate(str(denoiser), how, args.device, args.quiet, None, FRECHET_TARGET, "twofold demo")
    print_table(found)
    if known is not None:
        print_known(known)
    passed = print_verdict(found, accuracy)
    say("5/5  the same from two labels of each class: a generator and a classifier", args.quiet)
    few = few_labels(out / "fewlabel", args)
    passed &= print_few(few)
    print(f"report: {page}   of few labels: {out / 'fewlabel' / 'report.html'}   ({time.monotonic() - start:.0f} s)")
    return 0 if passed else 1


def judge_accuracy(judge: Path, args: argparse.Namespace) -> float:
    """How often the classifier is right on digits that neither model was trained on."""
    found, _ = evaluate(str(judge), EvaluateSettings(split="test"), args.device, True)
    return found["metrics"]["accuracy"]["samples"]


def few_labels(out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Dual pseudo training from 20 labels: what it found."""
    layers, _ = layers_of("mini", parse_assignments(FEW_WORDS.split()))
    settings, _ = resolve(FewLabelSettings, layers)
    return fewlabel(settings, out, args.device, args.quiet, f"twofold fewlabel {FEW_WORDS}")


def print_few(found: dict[str, Any]) -> bool:
    """Prints what became of two labels of each class; whether it is good."""
    first, last = (found["accuracy"][stage]["value"] for stage in ("stage 1", "stage 3"))
    ok = last >= FEW_ACCURACY
    print(f"[{'ok' if ok else '--'}] from 2 labels of each class {last:.1%} of test digits ({FEW_ACCURACY:.0%} wanted)")
    print(f"     labels spread along features alone: {first:.1%}; then a generator and its images joined in")
    return ok


def print_known(known: dict[str, Any]) -> None:
    """What the denoiser's features tell apart."""
    row = known["results"][known["winner"]]
    raw = known["results"]["raw pixels"]["accuracy"]
    print(f"{'features':<30} {row['accuracy']:.1%} of test digits by a linear head (raw pixels: {raw:.1%})")


def print_verdict(found: dict[str, Any], accuracy: float) -> bool:
    """Prints every criterion; whether all are met."""
    from ..report.verdict import verdict

    criteria = verdict(found, FRECHET_TARGET)
    ok = accuracy >= JUDGE_ACCURACY
    print(f"[{'ok' if ok else '--'}] the classifier is right on {accuracy:.1%} of held-out digits (98 % or more)")
    for one in criteria:
        print(f"[{'ok' if one.passed else '--'}] {one.name}: {one.value} ({one.target})")
    return ok and all(one.passed for one in criteria)
