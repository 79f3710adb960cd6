"""`twofold sample RUN [n=100 steps=20 ...]`: seeded images from a trained model, resumable."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.resolve import parse_assignments, resolve, settings_hash
from ..settings.sample import SampleSettings
from .show import Progress, say

if TYPE_CHECKING:
    import torch

    from ..denoiser import Denoiser

OPTIONS = ("--out", "--device", "--quiet")


def settings_model() -> type[SampleSettings]:
    return SampleSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", help="a run folder, a .safetensors file, or a diffusers folder")


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(SampleSettings, [("command line", parse_assignments(args.assignments))])
    say("loading torch ...", args.quiet)
    import torch

    say("loading the model ...", args.quiet)
    from accelerate.utils import broadcast_object_list

    from ..generate.produce import produce
    from ..hashing import weights_hash
    from ..learn.fastest import DTYPES
    from ..learn.training import make_accelerator

    accelerator = make_accelerator(args.device)
    model, guide = models(args.source, settings, accelerator.device)
    weights = [weights_hash(part) for part in (model, guide) if part is not None]
    out = Path(args.out) if args.out else default_folder(Path(args.source), settings, *weights)
    # one process decides for all: each of them might measure something else
    chosen = [precision(model, settings.precision, accelerator.device, out) if accelerator.is_main_process else ""]
    broadcast_object_list(chosen)
    model.autocast = DTYPES[chosen[0]]
    torch.manual_seed(0)
    with Progress("sampling", args.quiet) as progress:
        progress(0, settings.n)  # shown at once: the first batch may take a while
        share = accelerator.process_index, accelerator.num_processes
        produce(model, out, settings, weights[0], *share, progress, guide=guide)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print(f"{out}: {settings.n} images (grid.png, images.npz, manifest.json)")
    return 0


def models(source: str, settings: SampleSettings, device: torch.device) -> tuple[Denoiser, Any]:
    """The denoiser and its guide (None without one), after everything that can be wrong with asking them has been
    checked.
    """
    from ..denoiser import Denoiser
    from ..generate.produce import plan_of, requested
    from ..run import load

    model = load(source, settings.at, device)
    if not isinstance(model, Denoiser):
        raise UserError(source, "holds a classifier, which generates nothing", "give a denoiser's run")
    guide: Any = load(settings.guide, device=device) if settings.guide else None
    plan_of(model, settings, guide)
    requested(settings, model, guide)
    return model, guide


def default_folder(source: Path, settings: SampleSettings, *weights: str) -> Path:
    """Of these settings and these weights, of the model and its guide: others, or the same trained further, have
    another folder.
    """
    parent = source if (source / "settings.yaml").is_file() else Path()
    return parent / "samples" / "-".join([settings_hash(settings), *(name[:8] for name in weights)])


def precision(model: Denoiser, wanted: str, device: torch.device, out: Path | None = None) -> str:
    """`fp32`, `bf16` or `fp16`: what is wanted. For `auto`, that of the images begun in `out`, which stay
    bit-identical only so, or else what this device computes the network fastest with.
    """
    if wanted != "auto":
        return wanted
    from ..generate import manifest
    from ..learn.fastest import DTYPES
    from ..learn.fastest import precision as fastest

    begun = manifest.read(out) if out is not None else None
    names = {str(dtype or "full").removeprefix("torch."): name for name, dtype in DTYPES.items()}
    kept = names.get(begun["request"].get("precision")) if begun else None
    return kept or fastest(model, model.shape, device)
