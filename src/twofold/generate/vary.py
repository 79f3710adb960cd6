"""Variations of images: noise is added to an image and taken away again (SDEdit; Meng et al. 2022, algorithm 1).

    x = x0 + sigma * noise,  then the sampler from sigma down to 0

sigma is that of a strength 0..1, as for edits (`invert.strength_sigma`): the more noise, the less of the image is left
to steer what comes back. Strength 0 is the image itself; at 1 hardly anything of it remains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import UserError
from .given import check_batch, check_images, given, options_of_part, with_images
from .invert import strength_sigma
from .labels import check_labels
from .sample import Plan, Progress, check_seeds, evaluating, plan
from .samplers import SAMPLERS, Step

STRENGTH = 0.5


def vary(
    denoiser: Denoiser,
    images: Tensor,
    strength: float = STRENGTH,
    seeds: int | Sequence[int] | None = None,
    label: int | str | Sequence[int | str] | Tensor | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> Tensor:
    """Images like the given ones, uint8 (N, C, H, W) in and out, on the CPU.

    strength: 0 (the image itself) to 1 (a new image). seeds: one per image, by default 0..N-1; the same image with
    another seed gives another variation. label, and `how` (sampler, steps, guidance, guide, micro_batch, ...): as
    `sample` takes them; steps are those of the whole way from pure noise, of which a variation walks the last part.
    progress: called with (done, in all).

    Image i depends on its own pixels, seed and label only. Raises `UserError` before any computation for anything that
    cannot be.
    """
    chosen = plan(denoiser, **how)
    seeds = check_seeds(len(images) if seeds is None else seeds)
    labels = check_labels(denoiser, label, len(seeds), chosen.guidance, chosen.guide)
    return varied(denoiser, chosen, images, seeds, strength, labels, progress)


def varied(
    denoiser: Denoiser,
    plan: Plan,
    images: Tensor,
    seeds: Sequence[int],
    strength: float = STRENGTH,
    labels: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """`vary` for a checked plan, seeds and labels (N,) or (N, K)."""
    images = check_images(denoiser, plan, images, len(seeds))
    check_strength(strength)
    found = torch.empty_like(images)
    for start in range(0, len(seeds), plan.micro_batch):
        rows = slice(start, start + plan.micro_batch)
        some = None if labels is None else labels[rows]
        for step in varying(denoiser, plan, images[rows], seeds[rows], strength, some, previews=False):
            last = step
        found[rows] = last.images  # type: ignore[assignment]
        if progress:
            progress(min(rows.stop, len(seeds)), len(seeds))
    return found


def varying(
    denoiser: Denoiser,
    plan: Plan,
    images: Tensor,
    seeds: Sequence[int],
    strength: float = STRENGTH,
    labels: Tensor | None = None,
    previews: bool = True,
) -> Iterator[Step]:
    """One batch while it is made: a `Step` per solver step with `images`, the last one's being the result.

    plan: of `generate.plan`. images: uint8 (N, C, H, W), one per seed, N <= micro_batch. labels: (N,) or (N, K) of
    `check_labels`. `Step.index` counts from 0 to `solver_steps(plan, ...)`. previews: False decodes the last step only.
    Raises `UserError` at once for what does not fit together.
    """
    check_batch(plan, seeds)
    check_strength(strength)
    return _varied(denoiser, plan, check_images(denoiser, plan, images, len(seeds)), seeds, strength, labels, previews)


@torch.inference_mode()
def _varied(
    denoiser: Denoiser,
    plan: Plan,
    images: Tensor,
    seeds: Sequence[int],
    strength: float,
    labels: Tensor | None,
    previews: bool,
) -> Iterator[Step]:
    batch = given(denoiser, plan, images, seeds, labels)
    levels = levels_below(plan, strength, denoiser.sigma_range)
    if len(levels) < 2:
        yield Step(0, 0.0, batch.x0[: batch.n], batch.x0[: batch.n], images)
        return
    x = batch.x0 + float(levels[0]) * batch.noise()
    with evaluating(denoiser, plan.guide.classifier if plan.guide else None):
        options = options_of_part(plan, len(levels) - 1)
        steps = SAMPLERS[plan.sampler].function(batch.denoise, x, levels, batch.draws, **options)
        yield from with_images(denoiser, steps, batch.n, len(levels) - 1, previews, lambda found: found)


def levels_below(plan: Plan, strength: float, sigma_range: tuple[float, float]) -> Tensor:
    """The levels of a variation: the strength's, then those of the plan that lie below it; (1,) for strength 0."""
    if strength == 0:
        return plan.sigmas[-1:]
    sigma = strength_sigma(strength, sigma_range)
    below = plan.sigmas[plan.sigmas < sigma]
    return torch.cat([torch.tensor([sigma], dtype=plan.sigmas.dtype), below])


def solver_steps(plan: Plan, strength: float, sigma_range: tuple[float, float]) -> int:
    """How many solver steps a variation takes; 0 for strength 0."""
    return len(levels_below(plan, strength, sigma_range)) - 1


def check_strength(strength: float) -> None:
    """Raises `UserError` for what is no strength."""
    if not (isinstance(strength, int | float) and 0 <= strength <= 1):
        raise UserError(f"strength={strength}", "not a strength", "0 (the image itself) to 1 (a new image)")
