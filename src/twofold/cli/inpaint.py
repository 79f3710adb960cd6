"""`twofold inpaint RUN IMAGES mask=...`: a part of images is painted anew, the rest stays as it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings.data import DataSettings
from ..settings.inpaint import InpaintSettings
from ..settings.resolve import parse_assignments, resolve
from .masks import Masks
from .remade import remake
from .train import command_line

if TYPE_CHECKING:
    from torch import Tensor

OPTIONS = ("--out", "--device", "--quiet")


def settings_model() -> type[InpaintSettings]:
    return InpaintSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", help="a run folder, a .safetensors file, or a diffusers folder")
    parser.add_argument("images", metavar="IMAGES", help="an image, a folder, Parquet files, digits or a hub name")


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(InpaintSettings, [("command line", parse_assignments(args.assignments))])
    out = Path(args.out) if args.out else None
    asked = args.source, args.images, settings
    print(inpaint(*asked, args.device, args.quiet, out, command_line()))
    return 0


def inpaint(
    source: str,
    images: str,
    settings: InpaintSettings,
    device: str | None,
    quiet: bool,
    out: Path | None = None,
    command: str = "",
) -> str:
    """Paints all images into `out` (default: `inpainted/` of the run); returns what to tell the user."""

    def making(model: Any, plan: Any) -> Any:
        from ..generate.inpaint import Again, paint

        again = Again(settings.repaints, settings.jump, settings.repaint_interval)

        def make(images: Tensor, mask: Tensor, seeds: list[int], labels: Tensor | None) -> Tensor:
            return paint(model, plan, images, mask, seeds, labels, again)

        return make

    def masking(data: DataSettings) -> Masks:
        return Masks(settings.mask, data)

    return remake("inpainted", source, images, settings, making, masking, device, quiet, out, command)
