"""How the layers of a few-label experiment's settings are put together.

    recipe of the diffusion model <- few-label preset <- file <- key=value

The recipe is a training preset (`diffusion.preset`), of which everything but its data is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .fewlabel import IN_DATA, RecipeSettings
from .presets import FEWLABEL, open_preset
from .resolve import Layer
from .short import in_layer

DEFAULT = "mini"  # few-label preset


def layers_of(preset: str, given: Mapping[str, Any]) -> tuple[list[Layer], str]:
    """Layers for `resolve`, and the preset's short name. given: what stands on the command line."""
    opened = open_preset(preset, FEWLABEL)
    layers: list[Layer] = [
        (name, in_layer(values, IN_DATA)) for name, values in (*opened.layers, ("command line", given))
    ]
    recipe = RecipeSettings.model_fields["preset"].default
    for _, values in layers:
        group = values.get("diffusion")
        if isinstance(group, Mapping):
            recipe = group.get("preset", recipe)
    own = [(name, {"diffusion": _recipe(values)}) for name, values in open_preset(str(recipe)).layers]
    return [*own, *layers], opened.name


def _recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a training preset says that a recipe holds."""
    return {name: value for name, value in values.items() if name in RecipeSettings.model_fields}
