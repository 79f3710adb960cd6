"""`twofold distill RUN task=T data=SOURCE`: a small network learns from a diffusion model, then its task."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..settings.presets import DISTILL, preset_listing
from ..settings.resolve import parse_assignments, resolve, settings_hash, to_yaml
from ..settings.teaching import TeachingSettings
from ..settings.teaching_layers import layers_of, names_teacher
from .show import Progress, duration, say
from .train import command_line, is_first
from .watch import watching

KNOWN = {"classify": "are labelled", "segment": "have a known mask", "landmarks": "have known points"}


def more_help() -> str:
    return preset_listing(DISTILL)


def settings_model() -> type[TeachingSettings]:
    return TeachingSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", metavar="[RUN] [PRESET]", nargs="*", help="the teacher; a preset of distillation")
    parser.add_argument(
        "--parts", metavar="FOLDER", help="artefacts shared with other experiments (default: OUT/parts)"
    )


def run(args: argparse.Namespace) -> int:
    settings, name = resolved(args.words, args.assignments)
    out = Path(args.out or f"runs/distill-{name}-{settings_hash(settings.record)}")
    if args.dry_run:
        return dry_run(settings, out, args.device)
    quiet = args.quiet or not is_first()
    result = distill(settings, out, args.device, quiet, command_line(), args.parts)
    if is_first():
        print_result(result, out)
    return 0


def resolved(words: list[str], assignments: list[str]) -> tuple[TeachingSettings, str]:
    """Settings from RUN, PRESET and key=value words, and the preset's short name."""
    from ..errors import UserError

    if len(words) > 2:
        raise UserError(words[2], "not expected here", "twofold distill RUN [PRESET] key=value ...")
    given = parse_assignments(assignments)
    layers, name = layers_of(words, given)
    if given.get("student") is None and given.get("stage") != "scratch" and not names_teacher(layers):
        hint = "`twofold distill RUN`, or student=RUN for one that was taught before"
        raise UserError(f"twofold distill {name}", "the teacher is missing", hint)
    return resolve(TeachingSettings, layers)[0], name


def distill(
    settings: TeachingSettings, out: Path, device: str | None, quiet: bool, command: str, parts: str | None = None
) -> dict[str, Any]:
    """Runs an experiment with a live display and writes its report."""
    say("loading torch ...", quiet)
    import torch  # noqa: F401 (said in two parts, so that nothing is silent for long)

    say("opening the data ...", quiet)
    from ..learn.teaching import run as run_stages
    from ..report.teaching import write_page

    watch = watching(quiet, settings.finetune.validation.split != "train")
    with Progress("packing the data", quiet) as packing:
        result, pictures = run_stages(settings, out, device, watch, command, packing, parts)
    if is_first():
        write_page(out, result, pictures)
    return result


def dry_run(settings: TeachingSettings, out: Path, device: str | None) -> int:
    """Prints the settings, and what every part would take."""
    say("estimating ...")
    import torch

    from ..learn.crew import Crew
    from ..learn.estimate import measure_flops_per_second
    from ..learn.teaching import prepare
    from ..learn.training import make_accelerator

    teaching = prepare(settings, out, Crew(make_accelerator(device)))
    teaching.check()
    chosen: torch.device = teaching.crew.device
    speed, shape = measure_flops_per_second(chosen), teaching.store.shape
    print(to_yaml(settings))
    print(f"images      {shape[0]} x {shape[1]} x {shape[2]}; {teaching.in_words()}")
    works, total = teaching.works(), 0.0
    for what, images, flops, parameters in works:
        total += flops
        size = f"{parameters:,} parameters, " if parameters else ""
        print(f"{what:<16}{size}{images:,} images, about {duration(flops / speed)}")
    print(f"in all      {total / 1e15:.3g} PFLOP, about {duration(total / speed)} on this {chosen.type} in fp32")
    return 0


def print_result(result: dict[str, Any], out: Path) -> None:
    """The students side by side, and what to do next."""
    data, measure = result["data"], result["measure"]
    print(
        f"{out}: {data['known_images']:,} of {data['train_images']:,} training images {KNOWN[result['task']]}, "
        f"{data['test_images']:,} test"
    )
    for name, arm in result["arms"].items():
        found = arm.get("metrics", {}).get(measure)
        if found and found["value"] is not None:
            low, high = found["interval"]
            print(f"  {measure + ', ' + name:<28} {found['value']:.1%} ({low:.1%} to {high:.1%})")
    print(f"  report: {out / 'report.html'}   ({result['seconds']:.0f} s)")
    if result["arms"]:
        best = best_of(result)
        print(f"  next: twofold predict {best['run']} IMAGES    twofold export {best['run']}")
    elif result["pretraining"]:
        print(f"  next: twofold distill student={out} task=... data=SOURCE")


def best_of(result: dict[str, Any]) -> dict[str, Any]:
    """The student that did best on the test images; the first one where nothing was measured."""
    measure = result["measure"]
    sign = -1 if measure == "nme" else 1

    def value(arm: dict[str, Any]) -> float:
        found = arm.get("metrics", {}).get(measure)
        return sign * found["value"] if found and found["value"] is not None else float("-inf")

    best: dict[str, Any] = max(result["arms"].values(), key=value)
    return best
