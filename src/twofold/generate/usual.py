"""The sampler where nobody names one: the model's usual one (`Denoiser.usual`), for plans and for settings."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

from ..denoiser import Denoiser
from .grids import is_respacing

S = TypeVar("S", bound=BaseModel)


def usual(denoiser: Any, sampler: str | None, steps: int | None, grid: str | None = None) -> tuple[str, int | None]:
    """Sampler and steps, those of the model in place of what was not said. steps None: as many as the sampler takes.

    The model's steps go with its sampler alone, and not with a respaced grid, which has its own. denoiser: whatever is
    no denoiser has no say.
    """
    if sampler is not None:
        return sampler, steps
    own, many = denoiser.usual if isinstance(denoiser, Denoiser) else Denoiser.usual
    return own, many if steps is None and not is_respacing(grid or "") else steps


def settled(settings: S, denoiser: Any) -> S:
    """Settings that have `sampler` and `steps` with both filled in as above: what is asked for without naming a sampler
    gets the hash, and so the folder, of what is asked for with that name.
    """
    given: Any = settings
    sampler, steps = usual(denoiser, given.sampler, given.steps, getattr(given, "grid", None))
    return settings.model_copy(update={"sampler": sampler, "steps": steps})
