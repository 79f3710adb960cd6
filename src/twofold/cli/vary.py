"""`twofold vary RUN IMAGES strength=0.5`: images like the given ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings.resolve import parse_assignments, resolve
from ..settings.vary import VarySettings
from .remade import remake
from .train import command_line

if TYPE_CHECKING:
    from torch import Tensor

OPTIONS = ("--out", "--device", "--quiet")


def settings_model() -> type[VarySettings]:
    return VarySettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", help="a run folder, a .safetensors file, or a diffusers folder")
    parser.add_argument("images", metavar="IMAGES", help="an image, a folder, Parquet files, digits or a hub name")


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(VarySettings, [("command line", parse_assignments(args.assignments))])
    out = Path(args.out) if args.out else None
    asked = args.source, args.images, settings
    print(vary(*asked, args.device, args.quiet, out, command_line()))
    return 0


def vary(
    source: str,
    images: str,
    settings: VarySettings,
    device: str | None,
    quiet: bool,
    out: Path | None = None,
    command: str = "",
) -> str:
    """Varies all images into `out` (default: `varied/` of the run); returns what to tell the user."""

    def making(model: Any, plan: Any) -> Any:
        from ..generate.vary import varied

        def make(images: Tensor, mask: None, seeds: list[int], labels: Tensor | None) -> Tensor:
            return varied(model, plan, images, seeds, settings.strength, labels)

        return make

    return remake("varied", source, images, settings, making, None, device, quiet, out, command)
