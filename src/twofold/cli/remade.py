"""The way of `twofold inpaint` and `twofold vary`: given images in, new ones of them out, batch by batch, resumable."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.data import DataSettings
from ..settings.given import GivenSettings
from .probe import prepare
from .remade_folder import Folder, Original
from .results import alone_on, place_of
from .show import Progress, say
from .told import told_as
from .train import command_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..denoiser import Denoiser
    from ..generate.sample import Plan
    from .masks import Masks

OPTIONS = ("--out", "--device", "--quiet")


@dataclass(frozen=True)
class Maker:
    """Whoever makes new images of given ones. make: images (B, C, H, W), masks (B, 1, H, W) or None, seeds and labels,
    one of each a result. labels: of the n results of one image, None for none."""

    model: Denoiser
    guide: Any
    plan: Plan
    seeds: range
    labels: Tensor | None
    make: Callable[[Tensor, Tensor | None, list[int], Tensor | None], Tensor]


Make = Callable[["Denoiser", "Plan"], Callable[..., "Tensor"]]
Source = Callable[[DataSettings], "Masks"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", help="a run folder, a .safetensors file, or a diffusers folder")
    parser.add_argument("images", metavar="IMAGES", help="an image, a folder, Parquet files, digits or a hub name")


def remake(
    kind: str, args: argparse.Namespace, settings: GivenSettings, making: Make, masking: Source | None = None
) -> str:
    """Makes `settings.n` new images of every one, into --out (default: <kind>/ of the run); returns what to tell the
    user. A batch that is written is not computed again.

    kind: "inpainted" or "varied". making: (model, plan) -> the function that makes them. masking: opens the masks.
    """
    start, source, images, quiet = time.monotonic(), args.source, args.images, args.quiet
    say("loading torch ...", quiet)
    import torch  # noqa: F401 (said in two parts, so that nothing is silent for long)

    say("loading the model ...", quiet)
    from ..data import open_images
    from ..generate.usual import settled
    from ..hashing import weights_hash
    from .predict import data_of, image_shape

    maker = maker_of(source, settings, making, alone_on(args.device, "these images are made"))
    settings = settled(settings, maker.model)
    data = data_of(source, images, image_shape(maker.model), settings)  # type: ignore[arg-type]
    with told_as(f"IMAGES {images}", f"data={images}"):
        opened = open_images(data)
    masks = masking(data) if masking else None
    hashes = [weights_hash(part)[:8] for part in (maker.model, maker.guide) if part is not None]
    place, facts = place_of(kind, source, images, settings, (opened.identity(), masks and masks.identity), hashes)
    folder = Folder(Path(args.out) if args.out else place, kind, facts, settings)
    total = min(opened.count() or 0, settings.images or opened.count() or 0) or None
    with Progress("painting" if masks else "varying", quiet) as progress:
        left_out = lambda one, why: progress.line(f"left out: {one} ({why})")  # noqa: E731
        originals = islice(originals_of(opened, data, masks, left_out), settings.images)
        for batch in batches(originals, max(1, settings.micro_batch // settings.n)):
            if not folder.kept(batch):
                folder.write(batch, made(maker, batch), maker.seeds)
            folder.add(batch)
            progress(folder.done, total)
    if not folder.done:
        raise UserError(images, "holds no readable image", "nothing was written")
    return folder.finish(command_line(), source, time.monotonic() - start)


def maker_of(source: str, settings: GivenSettings, making: Make, device: torch.device) -> Maker:
    """The model and how it makes images, after everything that can be wrong with asking it has been checked."""
    from ..generate.labels import check_labels
    from ..generate.produce import guide_of, plan_of, requested
    from .sample import models

    asked = settings.sampling()
    model, guide = models(source, asked, device)
    prepare(model, settings.precision, device)
    plan = plan_of(model, asked, guide)
    seeds, labels = requested(asked, model, guide_of(asked, guide))
    checked = check_labels(model, labels, settings.n, asked.guidance, plan.guide)
    return Maker(model, guide, plan, seeds, checked, making(model, plan))


def made(maker: Maker, batch: list[Original]) -> Tensor:
    """The results of a batch: uint8 (images, n, C, H, W)."""
    import torch

    n = len(maker.seeds)
    images = torch.stack([original.image for original in batch]).repeat_interleave(n, 0)
    masks = [original.mask for original in batch if original.mask is not None]
    mask = torch.stack(masks).repeat_interleave(n, 0) if masks else None
    labels = None if maker.labels is None else maker.labels.repeat(len(batch), *[1] * (maker.labels.ndim - 1))
    return maker.make(images, mask, [*maker.seeds] * len(batch), labels).unflatten(0, (len(batch), n))


def originals_of(
    source: Any, data: DataSettings, masks: Masks | None, left_out: Callable[[str, str], None]
) -> Iterator[Original]:
    """The images of a source, brought to the model's shape, each with its mask."""
    import numpy as np
    import torch

    from ..data import BadImage
    from ..data.decode import as_channels, decode_placed

    for item in source.items():
        try:
            pixels, placing = decode_placed(item.encoded, data)
        except BadImage as error:
            if data.on_bad_image == "error":
                where = f"{source.where}: {item.id}"
                raise UserError(where, str(error), "mend it, or use on_bad_image=skip") from None
            left_out(item.id, str(error))
            continue
        image = torch.from_numpy(np.array(as_channels(pixels, data.channels or 3)))
        yield Original(item.id, image, masks.of(item.id, placing) if masks else None)


def batches(originals: Iterator[Original], size: int) -> Iterator[list[Original]]:
    while part := list(islice(originals, size)):
        yield part
