"""Counterfactuals: what would have to change in an image for it to be of another class?

    x      = the image brought up to sigma       along the probability-flow ODE, or x0 + sigma * noise
    edited = sampler(guided denoise, x)          from there down to 0, towards the target
    kept   = x0 + share * (edited - x0)          the least share that still is the target for sure

as Deja et al. 2023 (section 5.4) do it with fresh noise. Up the ODE an image keeps who it is; the way down without a
guide would end in the image itself. How much may change is said by a strength 0..1 (see `invert.strength_sigma`) and
by the guide's scale. `strength="auto"` climbs a ladder of both. A rung is enough where the model's own answer about the
clean, edited, 8-bit image is the target with a probability of at least `confidence`; of those that are enough the
nearest to the original is kept.

The least share that is enough convinces the guide and often nobody else, so a `margin` of what it would save is not
given back. On validation images of digits an independent classifier agrees with 80 % of edits at margin 0, 88 % at
0.25, 90 % at 1, whose median distances are 415, 471 and 571 (nearest real image of the target class: 617).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import UserError, nearest
from .distances import Distances, distances
from .guidance import clipped
from .invert import down_grid, inverted, strength_sigma
from .pull import Pull, answers, make_pull
from .sample import evaluating, place
from .samplers import Denoise, dpmpp2m
from .targets import probability

LOWEST = 0.02  # sigma of the last step before 0, in units of x0: 2.5 grey levels
HALVINGS = 6  # of the share that is kept: to 1/64
STEPS = 12
CONFIDENCE = 0.999
MARGIN = 0.25
LADDER = tuple((strength, times) for times in (1.0, 2.0, 4.0) for strength in (0.7, 0.8, 0.9))  # times the scale
SEARCHES = ("nearest", "first")

Progress = Callable[[int, int], None]  # (images done, images in all)


@dataclass(frozen=True)
class Edited:
    """Edited images in the order of the originals, and how they came about; N images, S solver steps.

    images: uint8 (N, C, H, W). before, after: logits (N, K) about the originals and the edited images, of whoever was
    asked. p_before, p_after: of the target, (N,) (see `targets.probability`). reached: (N,) bool, the answer is the
    target with at least the confidence asked for. sigma, scale: (N,) where the edit started and how much was guided.
    share: (N,) of the change that was kept. steps: uint8 (N, S, C, H, W), what was believed at the levels
    step_sigmas (N, S), before the share was taken. near: distances to the original.
    """

    images: Tensor
    before: Tensor
    after: Tensor
    p_before: Tensor
    p_after: Tensor
    reached: Tensor
    sigma: Tensor
    scale: Tensor
    share: Tensor
    steps: Tensor
    step_sigmas: Tensor
    near: Distances


@dataclass(frozen=True)
class Recipe:
    """How to edit, checked and complete. rungs: (sigma, scale), tried in turn."""

    pull: Pull
    rungs: tuple[tuple[float, float], ...]
    steps: int = STEPS
    confidence: float = CONFIDENCE
    margin: float = MARGIN
    search: str = SEARCHES[0]


def recipe(
    denoiser: Denoiser,
    guide: Any = None,
    strength: float | str = "auto",
    sigma: float | None = None,
    scale: float | None = None,
    steps: int = STEPS,
    confidence: float = CONFIDENCE,
    margin: float = MARGIN,
    search: str = SEARCHES[0],
    asked: Any = None,
) -> Recipe:
    """Checks everything that does not depend on the images; the arguments are those of `edit`. Raises `UserError`."""
    _check_numbers(strength, scale, steps, confidence, margin, search)
    if getattr(denoiser.codec, "latent", False):
        raise UserError("edit", "this is a latent model, whose decoder changes every pixel", "give a pixel model")
    pull = make_pull(denoiser, guide, asked)
    if sigma is not None:
        low, high = denoiser.sigma_range
        if not low <= sigma <= high:
            raise UserError(
                f"sigma={sigma:g}", f"the model knows {low:.4g} to {high:.4g}", "choose one of these levels"
            )
    by = pull.scale if scale is None else scale
    if strength == "auto":
        ladder = [(at if sigma is None else None, by * times) for at, times in LADDER]
    else:
        ladder = [(float(strength) if sigma is None else None, by)]
    levels = [(sigma if at is None else strength_sigma(at, denoiser.sigma_range), by) for at, by in ladder]
    return Recipe(pull, tuple(dict.fromkeys(levels)), steps, confidence, margin, search)  # type: ignore[arg-type]


def _check_numbers(
    strength: float | str, scale: float | None, steps: int, confidence: float, margin: float, search: str
) -> None:
    if steps < 1:
        raise UserError(f"steps={steps}", "an edit needs at least one step", f"{STEPS} is usual")
    if not 0 < confidence < 1:
        raise UserError(f"confidence={confidence:g}", "not a probability to reach", "between 0 and 1, such as 0.99")
    if not 0 <= margin <= 1:
        raise UserError(
            f"margin={margin:g}", "not a share of the change", "0 (as near as can be) to 1 (all of the change)"
        )
    if search not in SEARCHES:
        raise UserError(f"search={search}", "no such search", nearest(search, SEARCHES))
    if strength != "auto" and not (isinstance(strength, int | float) and 0 <= strength <= 1):
        raise UserError(f"strength={strength}", "not a strength", "0 (hardly any change) to 1 (a new image), or auto")
    if scale is not None and not 0 < scale < float("inf"):
        raise UserError(f"scale={scale:g}", "does not pull towards the target", "a number above 0")


def edit(
    denoiser: Denoiser,
    images: Tensor,
    target: int | Tensor,
    guide: Any = None,
    strength: float | str = "auto",
    sigma: float | None = None,
    scale: float | None = None,
    steps: int = STEPS,
    noise: Tensor | None = None,
    confidence: float = CONFIDENCE,
    margin: float = MARGIN,
    search: str = SEARCHES[0],
    asked: Any = None,
    micro_batch: int = 64,
    progress: Progress | None = None,
) -> Edited:
    """Images changed towards another class, uint8 (N, C, H, W) in and out.

    target: a class for all, (N,) int64 of the guide's classes, or (N, K) attributes in 1, 0, -1 (left free).
    guide: "representations", "own" (both by the head of a joint model), "labels" (of a conditional denoiser), or a
    `Classifier` that knows noise; None: own, else labels. asked: the `Classifier` whose answers about clean images
    count; default: the guide. strength: 0..1, or "auto": as little as it takes. sigma: where the edit starts instead,
    in units of x0; with strength="auto" only the scale then grows. scale: of the guide; default: `pull.SCALES`.
    noise: standard normal (N, *shape) to add; None: the image's own, by inversion. margin: 0 steps back as far as the
    answer allows, 1 not at all. search: "nearest" tries all rungs of the ladder, "first" stops at the first one that is
    enough. micro_batch: images at a time.

    An image's edit does not depend on the others, but for rounding. Raises `UserError` before anything is computed.
    """
    how = recipe(denoiser, guide, strength, sigma, scale, steps, confidence, margin, search, asked)
    return apply(denoiser, how, images, check_target(target, len(images), how.pull), noise, micro_batch, progress)


def check_target(target: int | Tensor, n: int, pull: Pull) -> Tensor:
    """One target per image: (n,) int64, or (n, K). Raises `UserError` for what the guide cannot be asked for."""
    k = len(pull.class_names)
    wanted = torch.as_tensor(target, dtype=torch.int64)
    if wanted.ndim == 0:
        wanted = wanted.expand(n)
    if wanted.shape not in ((n,), (n, k)) or (wanted.ndim == 2) != pull.multi_label:
        needed = f"({n}, {k}) attributes" if pull.multi_label else f"({n},) classes"
        raise UserError("target", f"has shape {tuple(wanted.shape)}", f"expected {needed}")
    low, high = (-1, 1) if pull.multi_label else (0, k - 1)
    if wanted.numel() and not low <= int(wanted.min()) <= int(wanted.max()) <= high:
        raise UserError("target", "no such class", f"targets are {low}..{high}")
    return wanted


def apply(
    denoiser: Denoiser,
    how: Recipe,
    images: Tensor,
    target: Tensor,
    noise: Tensor | None = None,
    micro_batch: int = 64,
    progress: Progress | None = None,
) -> Edited:
    """`edit` for a checked recipe and targets (N,) or (N, K)."""
    parts = []
    for start in range(0, len(images), micro_batch):
        rows = slice(start, start + micro_batch)
        one = None if noise is None else noise[rows]
        parts += [found for found in editing(denoiser, how, images[rows], target[rows], one) if found is not None]
        if progress:
            progress(min(rows.stop, len(images)), len(images))
    return joined(parts)


@torch.inference_mode()
def editing(
    denoiser: Denoiser, how: Recipe, images: Tensor, target: Tensor, noise: Tensor | None = None
) -> Iterator[Edited | None]:
    """The edit of one batch while it is being made: None after each attempt but the last, so that others may have a
    turn, and then what came of it.
    """
    with evaluating(denoiser, *how.pull.models):
        yield from _batch(denoiser, how, images, target, noise)


def joined(parts: Sequence[Edited]) -> Edited:
    """Several batches as one."""
    tensors = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Edited) if f.name != "near"}
    near = Distances(*(torch.cat([getattr(p.near, f.name) for p in parts]) for f in fields(Distances)))
    return Edited(**{name: torch.cat(values).clone() for name, values in tensors.items()}, near=near)


def _batch(
    denoiser: Denoiser, how: Recipe, images: Tensor, target: Tensor, noise: Tensor | None
) -> Iterator[Edited | None]:
    """Of all attempts at an image the nearest that is enough, or the likeliest where none is."""
    x0 = denoiser.codec.encode(images.to(place(denoiser)[0]))
    before = answers(how.pull.asked, images)
    tried: list[_Rung] = []
    started: dict[float, Tensor] = {}  # the way up is the same for all scales
    left = torch.arange(len(images))
    for sigma, scale in how.rungs:
        if sigma not in started:
            started[sigma] = _start(denoiser, how, x0, noise, sigma)
        tried.append(_climb(denoiser, how, x0, started[sigma], target, sigma, scale, left))
        if how.search == "first":
            left = left[~tried[-1].reached]
        if not len(left):
            break
        yield None
    every = {f.name: torch.cat([getattr(rung, f.name) for rung in tried]) for f in fields(_Rung)}
    row = every.pop("row")
    rms = (every["images"].double() - images[row].double()).square().flatten(1).mean(1).sqrt()
    worth = torch.where(every["reached"], 2 - rms / 255, probability(every["after"], target[row]))
    best = [int(rows[worth[rows].argmax()]) for rows in ((row == i).nonzero()[:, 0] for i in range(len(images)))]
    found = {name: values[best] for name, values in every.items()}
    yield Edited(
        before=before,
        p_before=probability(before, target),
        p_after=probability(found["after"], target),
        near=distances(denoiser, images, found["images"]),
        **found,
    )


@dataclass(frozen=True)
class _Rung:
    """The fields of `Edited` that one rung of the ladder decides, of the images that were tried on it (`row`)."""

    images: Tensor
    after: Tensor
    reached: Tensor
    sigma: Tensor
    scale: Tensor
    share: Tensor
    steps: Tensor
    step_sigmas: Tensor
    row: Tensor


def _grid(denoiser: Denoiser, how: Recipe, sigma: float) -> Tensor:
    return down_grid(how.steps, sigma, max(LOWEST, denoiser.sigma_range[0]))


def _start(denoiser: Denoiser, how: Recipe, x0: Tensor, noise: Tensor | None, sigma: float) -> Tensor:
    """x at sigma, in the dtype of the solver's state."""
    device, dtype = place(denoiser)
    clean = x0.to(torch.float32 if device.type == "mps" else torch.float64)
    if noise is not None:
        return clean + sigma * noise.to(clean)
    return inverted(_as(dtype, lambda x, s: denoiser.denoise(x, s)), clean, _grid(denoiser, how, sigma))


def _climb(
    denoiser: Denoiser,
    how: Recipe,
    x0: Tensor,
    x: Tensor,
    target: Tensor,
    sigma: float,
    scale: float,
    row: Tensor,
) -> _Rung:
    """One edit of these rows of a batch, with the share of the change that is worth keeping."""
    dtype, rows = place(denoiser)[1], row.to(x.device)
    x0, x, target, n = x0[rows].to(x), x[rows], target[row], len(row)
    denoise = _as(dtype, how.pull.towards(target, scale))
    grid = _grid(denoiser, how, sigma)
    steps = list(dpmpp2m(clipped(denoise) if denoiser.clip else denoise, x, grid))
    believed = torch.stack([denoiser.codec.decode(step.x0_hat.to(dtype)).cpu() for step in steps[:-1]], 1)
    ask = lambda tensor: _asked(denoiser, how, tensor, target)  # noqa: E731
    images, after, enough = ask(steps[-1].x)
    share = torch.ones(n)
    if how.margin < 1:
        least = _least_share(lambda s: ask(_between(x0, steps[-1].x, s))[2], enough)
        nearer = torch.where(ask(x0)[2], 0.0, least + how.margin * (1 - least))
        found = ask(_between(x0, steps[-1].x, nearer))
        still = found[2]  # an answer may come and go along the way; then the whole change stays
        images, after = (torch.where(_like(still, a), a, b) for a, b in zip(found[:2], (images, after), strict=True))
        share, enough = torch.where(still, nearer, share), enough | still
    levels = grid[:-1].expand(n, -1)
    return _Rung(images, after, enough, torch.full((n,), sigma), torch.full((n,), scale), share, believed, levels, row)


def _asked(denoiser: Denoiser, how: Recipe, x0: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """These x0 as 8-bit images, the logits about them, and whether they are the target for sure."""
    images = denoiser.codec.decode(x0.to(place(denoiser)[1])).cpu()
    logits = answers(how.pull.asked, images)
    return images, logits, is_target(logits, target) & (probability(logits, target) >= how.confidence)


def is_target(logits: Tensor, target: Tensor) -> Tensor:
    """Whether the answer is the target, (N,) bool: the most probable class, or every attribute on its side."""
    if target.ndim == 1:
        return logits.argmax(1) == target
    return (((logits > 0) == (target == 1)) | (target < 0)).all(1)


def _between(x0: Tensor, edited: Tensor, share: Tensor) -> Tensor:
    return x0 + _like(share.to(x0), x0) * (edited - x0)


def _like(each: Tensor, x: Tensor) -> Tensor:
    """One value an image (N,), to go with x (N, ...)."""
    return each.view(-1, *[1] * (x.ndim - 1))


def _least_share(sure: Callable[[Tensor], Tensor], whole: Tensor) -> Tensor:
    """The least share (N,) of a change at which the target is still sure, by halving; 1 where the whole is not."""
    low, high = torch.zeros(len(whole)), torch.ones(len(whole))
    for _ in range(HALVINGS if bool(whole.any()) else 0):
        middle = (low + high) / 2
        enough = sure(middle) & whole
        high, low = torch.where(enough, middle, high), torch.where(enough, low, middle)
    return torch.where(whole, high, 1.0)


def _as(dtype: torch.dtype, denoise: Denoise) -> Denoise:
    return lambda x, sigma: denoise(x.to(dtype), sigma).to(x.dtype)


def path(edited: Edited, target: Tensor, asked: Any) -> tuple[Tensor, Tensor | None]:
    """p of the target and of the original class along the steps, (N, S) float64 each, as `asked` sees what was
    believed at each of them. The original class is its answer about the original; None for attributes.
    """
    logits = [answers(asked, step) for step in edited.steps.unbind(1)]
    every = torch.stack([probability(each, target) for each in logits], 1)
    if target.ndim == 2:
        return every, None
    original = edited.before.argmax(1)
    return every, torch.stack([probability(each, original) for each in logits], 1)
