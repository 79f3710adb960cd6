"""Inpainting: a part of an image is painted anew, the rest stays as it is, bit for bit.

    known  = 1 - mask                                    mask: 1 = paint anew
    x      = known * (x0 + sigma_0 * noise) + mask * start_scale(sigma_0) * noise
    x0_hat = known * x0 + mask * denoise(x, sigma)       at every evaluation

Any solver may run on that x0_hat: with what is known in place of what is believed, the known part of x is x0 plus noise
of the right size at every level, as when it is replaced there (Song et al. 2021b, appendix I; Lugmayr et al. 2022,
eq. 8). One pass down is not enough: what is painted first is decided while noise still hides the known part, and does
not fit it. So steps are taken again: noise leads from the lower end of a stretch of `jump` steps back to its upper end,
and what was painted is reconsidered (Lugmayr et al. 2022, section 4.2; with an ODE solver it is the restart of Xu et
al. 2023). They do so at all levels. Here only the levels of `interval` are walked `repaints` times, in which a picture
is decided, and with the same evaluations there are many more chances of each: `docs/inpainting.md` has the measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..denoiser import Denoiser
from ..errors import UserError
from ..settings.inpaint import JUMP, REPAINTS, SAMPLER, STEPS
from .given import check_batch, check_images, given, options_of_part, padded, with_images
from .guidance import check_interval
from .labels import check_labels
from .sample import Plan, Progress, check_seeds, evaluating, plan
from .samplers import SAMPLERS, Denoise, Step

LOWEST = 0.2  # sigma below which a picture in [-1, 1] is decided
PER_SIDE = 1 / 8  # sigma above which nothing is, for a side of one pixel: larger things are seen through more noise

Interval = tuple[float, float]
Stretch = tuple[int, int, int]  # (index of its upper level, of its lower level, how often it is walked)


@dataclass(frozen=True)
class Again:
    """Which steps are taken how often: see `inpaint`. Raises `UserError` for what cannot be."""

    repaints: int = REPAINTS
    jump: int = JUMP
    interval: Interval | None = None

    def __post_init__(self) -> None:
        for name, value in (("repaints", self.repaints), ("jump", self.jump)):
            if value < 1:
                raise UserError(f"{name}={value}", "not a number of times or of steps", "1 or more")
        check_interval(self.interval)


def inpaint(
    denoiser: Denoiser,
    images: Tensor,
    mask: Tensor,
    seeds: int | Sequence[int] | None = None,
    label: int | str | Sequence[int | str] | Tensor | None = None,
    repaints: int = REPAINTS,
    jump: int = JUMP,
    interval: Interval | None = None,
    sampler: str = SAMPLER,
    steps: int | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> Tensor:
    """Images with the masked part painted anew, uint8 (N, C, H, W) on the CPU; all other pixels are bit-identical.

    images: uint8 (N, C, H, W). mask: bool, True = paint anew: (H, W) for all, or (N, 1, H, W). seeds: one per image, by
    default 0..N-1; the same image with other seeds gives other paintings. label, and `how` (sampler, steps, guidance,
    guide, micro_batch, ...): as `sample` takes them; default: 20 steps of euler_ancestral, or those of another sampler.
    repaints: how often every stretch of `jump` steps from a level low < sigma <= high of `interval` is walked, 1 =
    once; default interval: `decisive`. `solver_steps` counts them. progress: called with (done, in all).

    Image i depends on its own pixels, mask, seed and label only. Latent models paint whole cells of their codec's
    stride; kept pixels are put back, so that a seam may be seen where the decoder changed them.
    Raises `UserError` before any computation for anything that cannot be.
    """
    again = Again(repaints, jump, interval)
    chosen = plan(denoiser, sampler, STEPS if steps is None and sampler == SAMPLER else steps, **how)
    seeds = check_seeds(len(images) if seeds is None else seeds)
    labels = check_labels(denoiser, label, len(seeds), chosen.guidance, chosen.guide)
    return paint(denoiser, chosen, images, mask, seeds, labels, again, progress)


def paint(
    denoiser: Denoiser,
    plan: Plan,
    images: Tensor,
    mask: Tensor,
    seeds: Sequence[int],
    labels: Tensor | None = None,
    again: Again = Again(),
    progress: Progress | None = None,
) -> Tensor:
    """`inpaint` for a checked plan, seeds and labels (N,) or (N, K)."""
    images, mask = check_painting(denoiser, plan, images, mask, len(seeds))
    found = torch.empty_like(images)
    for start in range(0, len(seeds), plan.micro_batch):
        rows = slice(start, start + plan.micro_batch)
        some = None if labels is None else labels[rows]
        for step in inpainting(denoiser, plan, images[rows], mask[rows], seeds[rows], some, again, previews=False):
            last = step
        found[rows] = last.images  # type: ignore[assignment]
        if progress:
            progress(min(rows.stop, len(seeds)), len(seeds))
    return found


def inpainting(
    denoiser: Denoiser,
    plan: Plan,
    images: Tensor,
    mask: Tensor,
    seeds: Sequence[int],
    labels: Tensor | None = None,
    again: Again = Again(),
    previews: bool = True,
) -> Iterator[Step]:
    """One batch while it is painted: a `Step` per solver step with `images`, the last one's being the result.

    plan: of `generate.plan`. images: uint8 (N, C, H, W), one per seed, N <= micro_batch. mask: see `inpaint`. labels:
    (N,) or (N, K) of `check_labels`. again: which steps are taken how often; `Step.index` counts to
    `solver_steps(plan, again)`. previews: False decodes the last step only.
    Raises `UserError` at once for what does not fit together.
    """
    check_batch(plan, seeds)
    images, mask = check_painting(denoiser, plan, images, mask, len(seeds))
    return _painted(denoiser, plan, images, mask, seeds, labels, again, previews)


@torch.inference_mode()
def _painted(
    denoiser: Denoiser,
    plan: Plan,
    images: Tensor,
    mask: Tensor,
    seeds: Sequence[int],
    labels: Tensor | None,
    again: Again,
    previews: bool,
) -> Iterator[Step]:
    """The steps of `inpainting`, everything being checked."""
    batch = given(denoiser, plan, images, seeds, labels)
    anew = padded(mask, plan.micro_batch).to(batch.x0.device)
    unknown = cells(anew, plan.shape).to(batch.x0.dtype)
    known = (1 - unknown) * batch.x0
    sigma = float(plan.sigmas[0])
    noise = batch.noise()
    x = known + noise * (unknown * denoiser.start_scale(sigma) + (1 - unknown) * sigma)
    kept = with_known(batch.denoise, known, unknown)
    finish = lambda found: torch.where(mask, found, images)  # noqa: E731
    with evaluating(denoiser, plan.guide.classifier if plan.guide else None):
        steps = walked(plan, kept, x, batch.noise, stretches(plan, again))
        yield from with_images(denoiser, steps, batch.n, solver_steps(plan, again), previews, finish)


def with_known(denoise: Denoise, known: Tensor, unknown: Tensor) -> Denoise:
    """The same with x0_hat replaced where x0 is known. known: x0 there and 0 elsewhere, unknown: 1 elsewhere and 0
    there; what a denoiser says of the variance stays."""
    channels = known.shape[1]

    def replaced(x: Tensor, sigma: Tensor) -> Tensor:
        output = denoise(x, sigma)
        x0_hat = known + unknown * output[:, :channels]
        return x0_hat if output.shape[1] == channels else torch.cat([x0_hat, output[:, channels:]], 1)

    return replaced


def walked(
    plan: Plan, denoise: Denoise, x: Tensor, noise: Callable[[], Tensor], route: Sequence[Stretch]
) -> Iterator[Step]:
    """The plan's sampler from x at sigmas[0] down, every stretch as often as the route says. Steps are counted on."""
    sampler, count, last = SAMPLERS[plan.sampler].function, 0, None
    for high, low, times in route:
        levels = plan.sigmas[high : low + 1]
        options = options_of_part(plan, low - high)
        back = math.sqrt(float(levels[0]) ** 2 - float(levels[-1]) ** 2)
        for k in range(times):
            x = x + back * noise() if k else x
            for step in sampler(denoise, x, levels, noise, **options):
                last = replace(step, index=count)
                if step.index < low - high:  # the end of a stretch is the beginning of the next one
                    yield last
                    count += 1
            assert last is not None
            x = last.x
    assert last is not None
    yield last


def stretches(plan: Plan, again: Again) -> list[Stretch]:
    """The way down: what lies above the interval, then stretches of `jump` steps within it, then what lies below."""
    n = len(plan.sigmas) - 1
    low, high = again.interval or decisive(plan.shape)
    inside = [k for k in range(n) if low < float(plan.sigmas[k]) <= high]
    if again.repaints == 1 or not inside:
        return [(0, n, 1)]
    first, end = inside[0], inside[-1] + 1
    repeated = [(start, min(start + again.jump, end), again.repaints) for start in range(first, end, again.jump)]
    return [part for part in ((0, first, 1), *repeated, (end, n, 1)) if part[0] < part[1]]


def solver_steps(plan: Plan, again: Again = Again()) -> int:
    """How many solver steps a painting takes: the index of its last `Step`."""
    return sum((low - high) * times for high, low, times in stretches(plan, again))


def decisive(shape: tuple[int, int, int]) -> Interval:
    """The noise levels at which it is decided what an image of this shape (C, H, W) of x0 shows, in units of x0."""
    return LOWEST, max(1.0, PER_SIDE * math.sqrt(shape[1] * shape[2]))


def cells(mask: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """A mask of pixels (N, 1, H, W) as one of x0 (N, 1, h, w): a cell is painted anew where any of its pixels is."""
    return functional.adaptive_max_pool2d(mask.float(), shape[1:])


def check_painting(denoiser: Denoiser, plan: Plan, images: Tensor, mask: Tensor, seeds: int) -> tuple[Tensor, Tensor]:
    """The images, and the mask as bool (N, 1, H, W). Raises `UserError` for what does not fit together."""
    images = check_images(denoiser, plan, images, seeds)
    return images, check_mask(mask, tuple(images.shape))


def check_mask(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask (H, W), (1, H, W) or (N, 1, H, W) as bool (N, 1, H, W) on the CPU. shape: (N, C, H, W) of the images.

    Raises `UserError` where it is no mask of these images, and where it paints nothing or all of one.
    """
    n, _, height, width = shape
    if mask.dtype != torch.bool:
        raise UserError("mask", f"is {mask.dtype}", "expected bool, True = paint anew")
    sizes = ((height, width), (1, height, width), (1, 1, height, width), (n, 1, height, width))
    if tuple(mask.shape) not in sizes:
        is_ = " x ".join(map(str, mask.shape))
        what = f"is {is_}, the images are {height} x {width}"
        raise UserError("mask", what, f"give ({height}, {width}), or ({n}, 1, {height}, {width})")
    mask = mask.cpu().expand(n, 1, height, width)
    painted = mask.flatten(1).double().mean(1)
    for share, what, hint in (
        (0.0, "paints nothing anew", "mark what is to be painted"),
        (1.0, "keeps nothing of the image", "leave some of it, or use sample"),
    ):
        if bool((painted == share).any()):
            where = "mask" if n == 1 else f"mask of image {int((painted == share).nonzero()[0])}"
            raise UserError(where, what, hint)
    return mask
