"""Features of new images by a backbone that was taught without labels: `predict` for these models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.probe import PredictSettings

if TYPE_CHECKING:
    from torch import Tensor


def encoding(source: str, model: Any, settings: PredictSettings) -> Callable[[Tensor, list[str]], dict[str, list[Any]]]:
    """Images and ids -> columns: what a backbone without a head makes of them, or the means of the maps of `layers`."""
    import torch

    for name in ("anomaly", "method", "sigma", "draws"):
        if name in settings.model_fields_set:
            raise UserError(name, f"{source} holds a backbone, which it says nothing to", f"leave {name} out")

    @torch.no_grad()
    def read(images: Tensor) -> dict[str, Tensor]:
        if not settings.layers:
            return {"embedding": model.embed(images)}
        return {name: map.mean((2, 3)) for name, map in model.features(images, settings.layers).items()}

    def answer(images: Tensor, ids: list[str]) -> dict[str, list[Any]]:
        parts = [read(part) for part in images.split(settings.micro_batch)]
        joined = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
        return {f"{name}[{k}]": found[:, k].tolist() for name, found in joined.items() for k in range(found.shape[1])}

    return answer
