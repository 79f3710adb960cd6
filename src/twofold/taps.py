"""Named layers of any network: read them, and stop as soon as the deepest one wanted has run.

A tap is a forward hook on a module of a layer table, so it works on networks written elsewhere as well.
Hooks do not fire inside an already compiled graph: callers pass the eager network, and a wanted layer that
stays silent raises instead of returning nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from .errors import UserError, nearest


@dataclass(frozen=True)
class Layer:
    """One row of a layer table.

    module: its output is the layer's feature map (B, channels, h, w).
    channels: D of that map. stride: input pixels per map pixel (h = H / stride).
    """

    module: nn.Module
    channels: int
    stride: int


class _Stop(Exception):
    """Raised inside a hook to leave the forward pass; never leaves this module."""


def check_layers(
    names: Iterable[str], layers: Mapping[str, Layer], aliases: Mapping[str, str] | None = None
) -> list[str]:
    """The wanted names, as the table has them, in order of execution.

    aliases: {published name: name in the table}. Raises `UserError` for a name that neither holds.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise UserError("layers", "no layer was asked for", nearest("", layers))
    known = {**(aliases or {}), **{name: name for name in layers}}
    for name in wanted:
        if name not in known:
            raise UserError(f"layers: {name!r}", "no such layer", nearest(name, known))
    chosen = {known[name] for name in wanted}
    return [name for name in layers if name in chosen]


def read(
    run: Callable[[], object],
    layers: Mapping[str, Layer],
    names: Iterable[str],
    aliases: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Calls `run()` and returns {name: (B, D, h, w)} of the wanted layers, in order of execution.

    A layer that was asked for by an alias is there under both names.

    Nothing after the deepest wanted layer runs, and what did run is bit-equal to the full pass.

    Raises `UserError` for unknown names and `RuntimeError` for a layer that produced no output.
    """
    names = [names] if isinstance(names, str) else list(names)
    wanted = check_layers(names, layers, aliases)
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            found[name] = output
            if len(found) == len(wanted):
                raise _Stop

        return hook

    handles = [layers[name].module.register_forward_hook(keep(name)) for name in wanted]
    try:
        run()
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    silent = [name for name in wanted if name not in found]
    if silent:
        raise RuntimeError(f"layers {silent} produced no output; was the network compiled before it was tapped?")
    asked = {name: found[aliases[name]] for name in names if name not in layers and aliases}
    return {**{name: found[name] for name in wanted}, **asked}
