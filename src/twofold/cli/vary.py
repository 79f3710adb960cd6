"""`twofold vary RUN IMAGES strength=0.5`: images like the given ones."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..settings.resolve import parse_assignments, resolve
from ..settings.vary import VarySettings
from .remade import OPTIONS as OPTIONS
from .remade import add_arguments as add_arguments
from .remade import remake

if TYPE_CHECKING:
    from torch import Tensor


def settings_model() -> type[VarySettings]:
    return VarySettings


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(VarySettings, [("command line", parse_assignments(args.assignments))])

    def making(model: Any, plan: Any) -> Any:
        from ..generate.vary import varied

        def make(images: Tensor, mask: None, seeds: list[int], labels: Tensor | None) -> Tensor:
            return varied(model, plan, images, seeds, settings.strength, labels)

        return make

    print(remake("varied", args, settings, making))
    return 0
