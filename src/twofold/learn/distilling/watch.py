"""Named layers of a network that runs to its end: what it answers, and the maps on the way, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from ...taps import Layer


def watched(
    run: Callable[[], Tensor], layers: Mapping[str, Layer], names: Iterable[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """What `run()` returns, and {name: (B, D, h, w)} of these layers (`taps.read` stops early, and returns no answer).

    Raises `RuntimeError` for a layer that did not run.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            found[name] = output

        return hook

    names = list(names)
    handles = [layers[name].module.register_forward_hook(keep(name)) for name in names]
    try:
        answer = run()
    finally:
        for handle in handles:
            handle.remove()
    silent = [name for name in names if name not in found]
    if silent:
        raise RuntimeError(f"layers {silent} produced no output")
    return answer, found
