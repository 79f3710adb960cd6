"""`twofold sample RUN [n=100 steps=20 ...]`: seeded images from a trained model, resumable."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UserError
from ..settings.resolve import parse_assignments, resolve, settings_hash
from ..settings.sample import SampleSettings
from .show import Progress, say

OPTIONS = ("--out", "--device", "--quiet")


def settings_model() -> type[SampleSettings]:
    return SampleSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", help="a run folder, a .safetensors file, or a diffusers folder")


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(SampleSettings, [("command line", parse_assignments(args.assignments))])
    say("loading the model ...", args.quiet)
    import torch

    from ..denoiser import Denoiser
    from ..files import sha256
    from ..generate.produce import produce
    from ..learn.training import make_accelerator
    from ..run import Run, load

    accelerator = make_accelerator(args.device)
    model = load(args.source, settings.at, accelerator.device)
    if not isinstance(model, Denoiser):
        raise UserError(args.source, "holds a classifier, which generates nothing", "give a denoiser's run")
    source = Path(args.source)
    in_run = (source / "settings.yaml").is_file()
    file = Run.open(source).snapshot_file(settings.at) if in_run else source
    checkpoint = sha256(file) if file.is_file() else "unknown"
    name = settings_hash(settings)
    out = Path(args.out) if args.out else (source / "samples" / name if in_run else Path("samples") / name)
    torch.manual_seed(0)
    with Progress("sampling", args.quiet) as progress:
        produce(model, out, settings, checkpoint, accelerator.process_index, accelerator.num_processes, progress)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print(f"{out}: {settings.n} images (grid.png, images.npz, manifest.json)")
    return 0
