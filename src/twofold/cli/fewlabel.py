"""`twofold fewlabel [PRESET] data=SOURCE labels_per_class=K`: from a few labels to a classifier and a generator."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..settings.fewlabel import FewLabelSettings
from ..settings.fewlabel_layers import DEFAULT, layers_of
from ..settings.presets import FEWLABEL, preset_listing
from ..settings.resolve import parse_assignments, resolve, settings_hash, to_yaml
from .show import Progress, duration, say
from .train import command_line, is_first
from .watch import watching


def more_help() -> str:
    return preset_listing(FEWLABEL)


def settings_model() -> type[FewLabelSettings]:
    return FewLabelSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "preset",
        metavar="PRESET",
        nargs="?",
        default=DEFAULT,
        help=f"few-label preset or YAML file (default {DEFAULT})",
    )
    parser.add_argument(
        "--parts", metavar="FOLDER", help="artefacts shared with other experiments (default: OUT/parts)"
    )


def run(args: argparse.Namespace) -> int:
    settings, name = resolved(args.preset, args.assignments)
    out = Path(args.out or f"runs/fewlabel-{name}-{settings_hash(settings.record)}")
    if args.dry_run:
        return dry_run(settings, out, args.device, args.parts)
    quiet = args.quiet or not is_first()
    result = fewlabel(settings, out, args.device, quiet, command_line(), args.parts)
    if is_first():
        print_result(result, out)
    return 0


def resolved(preset: str, assignments: list[str]) -> tuple[FewLabelSettings, str]:
    """Settings from a few-label preset and key=value words, and the preset's short name."""
    layers, name = layers_of(preset, parse_assignments(assignments))
    return resolve(FewLabelSettings, layers)[0], name


def fewlabel(
    settings: FewLabelSettings, out: Path, device: str | None, quiet: bool, command: str, parts: str | None = None
) -> dict[str, Any]:
    """Runs an experiment with a live display and writes its report."""
    say("loading torch ...", quiet)
    import torch  # noqa: F401 (said in two parts, so that nothing is silent for long)

    say("opening the data ...", quiet)
    from ..learn.fewlabel import run as run_stages
    from ..report.fewlabel import write_page

    with Progress("packing the data", quiet) as packing:
        result, pictures = run_stages(settings, out, device, watching(quiet, False), command, packing, parts)
    if is_first():
        write_page(out, result, pictures)
    return result


def dry_run(settings: FewLabelSettings, out: Path, device: str | None, parts: str | None) -> int:
    """Prints the settings and what the experiment would do: every training run, every image, and about how long."""
    say("estimating ...")
    import torch

    from ..learn.estimate import measure_flops_per_second
    from ..learn.fewlabel import Crew, foresee, prepare
    from ..learn.training import make_accelerator

    experiment = prepare(settings, out, Crew(make_accelerator(device)), parts=parts)
    foresee.check(experiment.shop)
    last = 3 if settings.stage == "all" else settings.stage
    works = [work for work in foresee.works(experiment.shop) if work.stage <= last]
    subject = experiment.subject
    chosen: torch.device = experiment.crew.device
    speed, flops = measure_flops_per_second(chosen), sum(work.flops for work in works)
    print(to_yaml(experiment.settings))
    known, shape = sum(subject.counts().values()), subject.store.shape
    print(f"images      {shape[0]} x {shape[1]} x {shape[2]}, {len(subject.classes)} classes")
    print(f"            {len(subject.train):,} to learn from, {known:,} labelled; {len(subject.test):,} to test")
    print(f"labels      {subject.in_words()}")
    for i, work in enumerate(works):
        stage = f"stage {work.stage}" if i == 0 or works[i - 1].stage != work.stage else ""
        size = f"{work.parameters:,} parameters, " if work.parameters else ""
        print(f"{stage:<12}{work.what:<26}{size}{work.images:,} images, about {duration(work.flops / speed)}")
    again = f"; stages 2 and 3 {settings.rounds} times" if settings.rounds > 1 else ""
    time = f"about {duration(flops / speed)} on this {chosen.type} in fp32"
    print(f"in all      {flops / 1e15:.3g} PFLOP, {time}{again}")
    return 0


def print_result(result: dict[str, Any], out: Path) -> None:
    """Accuracies, and what to do next."""
    labelled = sum(result["data"]["labelled"].values())
    print(f"{out}: {labelled} labels, {result['data']['train_images']:,} images, {len(result['classes'])} classes")
    told = result["pseudo"]["accuracy"]
    if told is not None:
        print(f"  {'pseudo labels that are right':<28} {told:.1%}")
    from ..report.fewlabel_figures import in_order

    for name, found in in_order(result["accuracy"]):
        if found["value"] is not None:
            low, high = found["interval"]
            print(f"  {'accuracy, ' + name:<28} {found['value']:.1%} ({low:.1%} to {high:.1%})")
    print(f"  report: {out / 'report.html'}   ({result['seconds']:.0f} s)")
    if result["classifier"]:
        print(f"  next: twofold predict {result['classifier']} IMAGES    twofold sample {result['generator']}")
