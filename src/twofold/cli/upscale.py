"""`twofold upscale RUN [IMAGES]`: larger images by a super-resolution model, measured where the truth is known."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.resolve import parse_assignments, resolve
from ..settings.upscale import UpscaleSettings
from .packed import packed
from .pictures import Pictures
from .probe import prepare
from .results import alone_on, place_of
from .show import Progress, say
from .told import told_as
from .train import command_line
from .upscaled import Folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..denoiser import Denoiser

OPTIONS = ("--out", "--device", "--quiet")
SAMPLED = ("sampler", "steps", "sigma_max", "seed", "label", "guidance", "low_noise")  # settings of denoisers alone


def settings_model() -> type[UpscaleSettings]:
    return UpscaleSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", help="a run of a super-resolution model (sr-x4 and the like)")
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="?",
        help="an image, a folder, Parquet files or a hub name; left out: the run's own held-out images, shrunk first",
    )


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(UpscaleSettings, [("command line", parse_assignments(args.assignments))])
    print(upscale(args, settings))
    return 0


def upscale(args: argparse.Namespace, settings: UpscaleSettings) -> str:
    """Enlarges all images into --out (default: `upscaled/` of the run); returns what to tell the user.

    A batch that is written is not computed again.
    """
    start, source, images, quiet = time.monotonic(), args.source, args.images, args.quiet
    say("loading torch ...", quiet)
    import torch  # noqa: F401 (said in two parts, so that nothing is silent for long)

    say("loading the model ...", quiet)
    from ..hashing import weights_hash

    model = model_of(source, settings, alone_on(args.device, "images are enlarged"))
    pictures = of_run(source, settings, model, quiet) if images is None else of_source(images, settings, model)
    identity, weights, name = pictures.identity, weights_hash(model)[:8], images or settings.split
    place, facts = place_of("upscaled", source, name, settings, identity, weights, factor=model.low_factor)
    folder = Folder(Path(args.out) if args.out else place, facts, settings)
    with Progress("enlarging", quiet) as progress:
        pictures.tell = progress.line
        for part in alike(pictures.first(settings.n), settings.micro_batch):
            lows = [picture.low for picture in part]
            if not folder.kept(part):
                folder.write(part, enlarged(model, lows, settings))
            folder.add(part)
            progress(folder.done, min(pictures.total, settings.n or pictures.total))
    if not folder.done:
        raise UserError(images or source, "holds no readable image", "nothing was written")
    return folder.finish(command_line(), source, time.monotonic() - start)


def model_of(source: str, settings: UpscaleSettings, device: torch.device) -> Denoiser:
    """The model, after everything that can be wrong with asking it has been checked."""
    import torch

    from ..generate.upscale import check_low_noise, check_upscales, upscale
    from ..networks.rdn import Upscaler
    from ..run import load

    model: Any = load(source, settings.at, device)
    check_upscales(model, source)
    given = [name for name in SAMPLED if name in settings.model_fields_set]
    if given and isinstance(model, Upscaler):
        what = f"{source} is a regression model, which draws nothing: one pass, and always the same image"
        raise UserError(given[0], what, f"leave {given[0]} out")
    check_low_noise(model, settings.low_noise)
    prepare(model, settings.precision, device)
    how = {**asked(settings), "steps": 1, "micro_batch": 1, "tile": 0}
    upscale(model, torch.zeros(1, model.shape[0], 4, 4, dtype=torch.uint8), [0], **how)
    return model


def asked(settings: UpscaleSettings) -> dict[str, Any]:
    names = ("sampler", "steps", "label", "guidance", "sigma_max", "low_noise", "tile", "micro_batch")
    return {name: getattr(settings, name) for name in names}


def enlarged(model: Denoiser, lows: list[Tensor], settings: UpscaleSettings) -> Tensor:
    """Low images of one size, uint8 (C, h, w), become uint8 (N, C, H, W)."""
    import torch

    from ..generate.upscale import seed_of, upscale

    seeds = [seed_of(low, settings.seed) for low in lows]
    return upscale(model, torch.stack(lows), seeds, **asked(settings))


def alike(pictures: Iterable[Any], most: int | None) -> Iterator[list[Any]]:
    """Parts of pictures in their order, all of one size, so many as are enlarged together."""
    from ..generate.upscale import at_once

    part: list[Any] = []
    for picture in pictures:
        if part and picture.low.shape != part[0].low.shape:
            yield part
            part = []
        part.append(picture)
        if len(part) == (most or at_once(*picture.size)):
            yield part
            part = []
    if part:
        yield part


def of_run(source: str, settings: UpscaleSettings, model: Denoiser, quiet: bool) -> Pictures:
    """Held-out images of the run's own data, which are the truth. Raises `UserError` for what is no run."""
    from ..run import Run

    if not (Path(source) / "settings.yaml").is_file():
        raise UserError("IMAGES", f"not given, and {source} is no run whose data are known", "name some images")
    if settings.truth is not None:
        raise UserError(f"truth={settings.truth}", "the run's own images are the truth", "name IMAGES, or leave it out")
    return Pictures.of_store(packed(Run.open(source).settings().data, quiet), settings, model)


def of_source(images: str, settings: UpscaleSettings, model: Denoiser) -> Pictures:
    """The images of a source, each of its own size."""
    from ..data import open_images
    from ..settings.data import DataSettings

    def opened(where: str, typed: str) -> Any:
        with told_as(typed, f"data={where}"):
            return open_images(DataSettings(source=where))

    truth = None if settings.truth is None else opened(settings.truth, f"truth={settings.truth}")
    found = Pictures.of_source(opened(images, f"IMAGES {images}"), truth, settings, model)
    found.where = f"IMAGES {images}"
    return found
