"""`twofold sample RUN [n=100 steps=20 ...]`: seeded images from a trained model, resumable."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, nearest, some
from ..settings.resolve import parse_assignments, resolve, settings_hash
from ..settings.sample import GUIDES, SampleSettings
from .packed import packed
from .show import Progress, say
from .told import told_as

if TYPE_CHECKING:
    import torch

    from ..data import Store
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
    from ..generate.usual import settled
    from ..hashing import weights_hash
    from ..learn.fastest import DTYPES
    from ..learn.training import make_accelerator

    accelerator = make_accelerator(args.device)
    model, guide = models(args.source, settings, accelerator.device)
    settings = settled(settings, model)
    labels = asked_of(args.source, settings, model, guide, args.quiet)
    weights = [weights_hash(part) for part in (model, guide) if part is not None]
    out = Path(args.out) if args.out else default_folder(Path(args.source), settings, *weights)
    # one process decides for all: each of them might measure something else
    chosen = [precision(model, settings.precision, accelerator.device, out) if accelerator.is_main_process else ""]
    broadcast_object_list(chosen)
    model.autocast = DTYPES[chosen[0]]
    warn_of_memory(model, settings, accelerator.device)
    torch.manual_seed(0)
    with Progress("sampling", args.quiet) as progress:
        progress(0, settings.n)  # shown at once: the first batch may take a while
        share = accelerator.process_index, accelerator.num_processes
        produce(model, out, settings, weights[0], *share, progress, labels=labels, guide=guide)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        how = settings.sampler if settings.steps is None else f"{settings.sampler} in {settings.steps} steps"
        print(f"{out}: {settings.n} images by {how} (grid.png, images.npz, manifest.json)")
    return 0


def warn_of_memory(model: Denoiser, settings: SampleSettings, device: torch.device) -> None:
    """Says where so many images at a time are too many for the device, and how many are not."""
    from ..generate.sample import shape_at
    from ..learn.room import sampling_advice

    twice = model.classes > 0 and settings.guidance not in (0, 1)
    line = sampling_advice(model, settings.micro_batch, device, shape_at(model, settings.size), guided=twice)
    if line:
        say(f"twofold: {line}")


def models(source: str, settings: SampleSettings, device: torch.device) -> tuple[Denoiser, Any]:
    """The denoiser and its guide (None without one), after everything that can be wrong with asking them has been
    checked.
    """
    from ..denoiser import Denoiser
    from ..generate.produce import plan_of
    from ..run import load_to_use

    model = load_to_use(source, settings.at, device)
    if not isinstance(model, Denoiser):
        raise UserError(source, "holds a classifier, which generates nothing", "give a denoiser's run")
    guide = guide_run(settings.guide, device)
    with told_as(f"guide={settings.guide}", "guide"):
        plan_of(model, settings, guide)
    return model, guide


def guide_run(guide: str | None, device: torch.device) -> Any:
    """The classifier in the run that a setting names; None where it names a kind of guide, or none."""
    from ..run import load_to_use

    if guide is None or guide in GUIDES:
        return None
    if not Path(guide).exists() and "did you mean" in nearest(guide, GUIDES):
        raise UserError(f"guide={guide}", "neither a kind of guide nor a run", nearest(guide, GUIDES))
    with told_as(f"guide={guide}", guide):
        return load_to_use(guide, device=device)


def asked_of(source: str, settings: SampleSettings, model: Denoiser, guide: Any, quiet: bool) -> Any:
    """The labels of label=train, drawn from the training images of the run: (N,), or attributes (N, K). None for every
    other label, after it has been checked.
    """
    from ..generate.labels import TRAIN, class_names, drawn_labels
    from ..generate.produce import guide_of, requested

    by = guide_of(settings, guide)
    if settings.label != TRAIN or TRAIN in class_names(model, by):
        requested(settings, model, by)
        return None
    from ..run import Run

    if not (Path(source) / "settings.yaml").is_file():
        raise UserError("label=train", f"{source} is no run, whose training images are known", "name a label")
    store = packed(Run.open(Path(source)).settings().data, quiet)
    return drawn_labels(known_labels(store, model, by), range(settings.seed, settings.seed + settings.n))


def known_labels(store: Store, model: Denoiser, by: Any) -> Any:
    """What is known of the training images, as the model and its guide number it: (M,), or attributes (M, K).

    Raises `UserError` where the data has none of it, or other names.
    """
    import numpy as np

    from ..generate.labels import asks_attributes, class_names, guides_of

    names, rows, where = class_names(model, by), store.indices("train"), f"data={store.settings.source}"
    several = asks_attributes(model, by)
    known = list(store.attribute_names if several else store.classes)
    if not names:
        raise UserError("label=train", "this model takes no labels", f"add {guides_of(model)}")
    values = store.attributes if several else store.labels
    values = None if values is None else np.asarray(values[rows], np.int64)
    if values is None or not bool((values >= 0).any()):
        raise UserError(where, f"its images have no {'attributes' if several else 'labels'}", "name a label")
    missing = [name for name in known if name not in names]
    if missing:
        raise UserError(where, f"the guide does not know {some(missing)}", f"it knows {some(names)}")
    place = [names.index(name) for name in known]
    if not several:
        return np.asarray(place, np.int64)[values[values >= 0]]
    found = np.full((len(values), len(names)), -1, np.int64)
    found[:, place] = values
    return found


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
