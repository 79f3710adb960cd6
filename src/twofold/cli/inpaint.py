"""`twofold inpaint RUN IMAGES mask=...`: a part of images is painted anew, the rest stays as it is."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..settings.inpaint import InpaintSettings
from ..settings.resolve import parse_assignments, resolve
from .masks import Masks
from .remade import OPTIONS as OPTIONS
from .remade import add_arguments as add_arguments
from .remade import remake

if TYPE_CHECKING:
    from torch import Tensor


def settings_model() -> type[InpaintSettings]:
    return InpaintSettings


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(InpaintSettings, [("command line", parse_assignments(args.assignments))])

    def making(model: Any, plan: Any) -> Any:
        from ..generate.inpaint import Again, paint

        again = Again(settings.repaints, settings.jump, settings.repaint_interval)

        def make(images: Tensor, mask: Tensor, seeds: list[int], labels: Tensor | None) -> Tensor:
            return paint(model, plan, images, mask, seeds, labels, again)

        return make

    print(remake("inpainted", args, settings, making, lambda data: Masks(settings.mask, data)))
    return 0
