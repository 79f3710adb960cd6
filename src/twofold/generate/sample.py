"""Seeds and labels become images.

    seeds -> start_scale(sigma_0) * noise -> sampler( clip( guide( guidance( denoise ) ) ) ) -> codec.decode -> uint8

Image i is a function of (denoiser, its seed, its label, the plan). Its noise never depends on its neighbours, and every
forward pass has exactly micro_batch rows (short batches are padded), so at one micro_batch an image is bit-identical
in any batch, order and number of processes; at another one kernels may sum in another order, which moves it by at most
one uint8 level. The solver's state is float64 (float32 where the device has none); the network sees its own dtype.

Default, unless the model has another one: DPM-Solver++(2M) on 20 levels uniform in ln sigma, the spacing of its
theory. For exact denoisers of mixtures around CIFAR-10 images (EDM's and DDPM's ranges of sigma) its samples have the
right spread around the images within 2 %; 20 Karras levels are up to 7 % off, 50 steps of DDIM 7 %, 18 of EDM's Heun
(35 evaluations) 11 %. All of them reach about as many different images. Every sampler at equal cost, on an exact
denoiser and on digits: `docs/samplers.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import noise
from ..denoiser import Classifier, Denoiser
from ..draws import SampleNoise
from ..errors import UserError
from ..settings.size import LARGEST_SIDE
from .grids import levels
from .guidance import check_interval, clipped, guided
from .guide import CLASSIFIER, LABELS, REPRESENTATIONS, Guide, make_guide
from .labels import check_labels, guides_of
from .samplers import SAMPLERS, Denoise, Sampler, Step, resolve
from .usual import usual

Progress = Callable[[int, int], None]  # (images done, images in all)
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Plan:
    """How to sample, checked and complete: no default is left open. Made by `plan`."""

    sampler: str
    options: dict[str, Any]
    grid: str
    sigmas: Tensor  # (steps + 1,) float64, descending to 0
    guidance: float
    interval: tuple[float, float] | None
    micro_batch: int
    clip: bool
    shape: tuple[int, int, int]  # (C, H, W) of x0
    guide: Guide | None = None

    @property
    def learned_variance(self) -> bool:
        """Whether the sampler is told what the model says of the variance."""
        return self.options.get("variance") == "learned"


def plan(
    denoiser: Denoiser,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float = 1.0,
    interval: tuple[float, float] | None = None,
    grid: str | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    micro_batch: int = 64,
    clip: bool | None = None,
    guide: Classifier | str | None = None,
    guide_scale: float | None = None,
    guide_interval: tuple[float, float] | None = None,
    size: tuple[int, int] | int | None = None,
    to_zero: bool = True,
    **options: Any,
) -> Plan:
    """Checks everything that does not depend on the images; the arguments are those of `sample`.

    Raises `UserError` for an unknown sampler, option or grid, for values out of range, for a size the model cannot
    make, and for a guide that does not fit the denoiser or refuses noise.
    """
    if denoiser.low_factor:
        raise UserError("this model", "is for super-resolution alone", "use `twofold upscale RUN IMAGES`")
    sampler, steps = usual(denoiser, sampler, steps, grid)
    chosen, options = _options(denoiser, sampler, options, guide)
    shape = shape_at(denoiser, size)
    if micro_batch < 1:
        raise UserError(f"micro_batch={micro_batch}", "at least one image per forward pass is needed")
    check_interval(interval)
    family = getattr(denoiser, "family", None)
    if family is None:  # a denoiser from elsewhere: its range of sigma is all that is known
        family = noise.Family()
        family.sigma_range = denoiser.sigma_range
    has_time = isinstance(family, noise.VP | noise.Flow)
    kind = grid or (chosen.grid if has_time or chosen.grid != "time" else "log")
    sigmas = levels(family, steps, chosen.steps, kind, sigma_min, sigma_max, to_zero)
    clip = denoiser.clip if clip is None else clip
    if guide in (None, LABELS) and (guide_scale is not None or guide_interval is not None):
        hint = "give who guides: guide=own, representations, or a classifier; of labels the scale is guidance="
        raise UserError("guide_scale, guide_interval", "there is no guide", hint)
    by = None
    if guide == LABELS and not denoiser.classes:
        raise UserError("guide=labels", "this model is unconditional", f"use {guides_of(denoiser)}")
    if guide not in (None, LABELS):
        _check_guided(denoiser, guide, shape, guidance)
        by = make_guide(denoiser, guide, guide_scale, guide_interval, sigmas)
    return Plan(sampler, options, kind, sigmas, float(guidance), interval, micro_batch, clip, shape, by)


def _check_guided(denoiser: Denoiser, guide: Any, shape: tuple[int, ...], guidance: float) -> None:
    """Raises `UserError` for what cannot be together with this guide."""
    if not isinstance(guide, str) and shape != tuple(denoiser.shape):
        size = "x".join(map(str, shape[1:]))
        raise UserError(f"size={size}", "the guide knows one size of images", "leave the size or the guide out")
    if isinstance(guide, str) and denoiser.classes and guidance != 1:
        what = f"guide={guide} shows the network no labels"
        raise UserError(f"guidance={guidance:g}", what, "leave guidance out; the scale is guide_scale")


def _options(
    denoiser: Denoiser, sampler: str, options: dict[str, Any], guide: Classifier | str | None
) -> tuple[Sampler, dict[str, Any]]:
    """The sampler and all its options. A variance that the model has learned is used unless another one is named;
    guidance through representations has none.
    """
    chosen, complete = resolve(sampler, options)
    if "variance" in complete:
        if "variance" not in options and denoiser.learns_variance and guide != REPRESENTATIONS:
            complete["variance"] = "learned"
        if complete["variance"] == "learned" and guide == REPRESENTATIONS:
            what = "is not told by edited representations"
            raise UserError("variance=learned", what, "use variance=small or large, or guide=own")
        if complete["variance"] == "learned" and not denoiser.learns_variance:
            raise UserError("variance=learned", "this model learned no variance", "use variance=small or large")
    return chosen, complete


def shape_at(denoiser: Denoiser, size: tuple[int, int] | int | None) -> tuple[int, int, int]:
    """(C, H, W) of x0 for images of this size (height, width) in pixels; None: as the model was trained.

    Raises `UserError` with the reason where the model makes no images of this size.
    """
    channels, *trained = denoiser.shape
    if size is None:
        return (channels, trained[0], trained[1])
    size = (size, size) if isinstance(size, int) else size
    if len(size) != 2 or not all(isinstance(side, int) and 1 <= side <= LARGEST_SIDE for side in size):
        raise UserError(f"size={size}", "not a size", f"height and width in pixels, 1 to {LARGEST_SIDE}")
    stride = getattr(denoiser.codec, "stride", 1)
    height, width = size[0] // stride, size[1] // stride
    whole = (height * stride, width * stride) == tuple(size)
    problem = denoiser.size_problem(height, width) if whole else f"its latents are made of {stride} x {stride} pixels"
    if problem:
        raise UserError(f"size={size[0]}x{size[1]}", problem, f"it was trained at {_by(trained, stride)}")
    return (channels, height, width)


def _by(sides: Sequence[int], stride: int) -> str:
    return "x".join(str(side * stride) for side in sides)


def check_seeds(seeds: int | Sequence[int]) -> Sequence[int]:
    """One seed per image; a number n means 0..n-1. Raises `UserError` for none and for negative ones."""
    if isinstance(seeds, int | np.integer):
        seeds = range(int(seeds))
    seeds = seeds if isinstance(seeds, range) else [int(seed) for seed in seeds]
    if not len(seeds):
        raise UserError("seeds", "no image was asked for", "give at least one seed")
    for bad in (min(seeds), max(seeds)):
        if not 0 <= bad <= MAX_SEED:
            raise UserError(f"seed={bad}", "not a seed", "seeds are 0..2^63-1")
    return seeds


def sample(
    denoiser: Denoiser,
    seeds: int | Sequence[int],
    label: int | str | Sequence[int | str] | Tensor | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float = 1.0,
    interval: tuple[float, float] | None = None,
    grid: str | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    micro_batch: int = 64,
    clip: bool | None = None,
    progress: Progress | None = None,
    guide: Classifier | str | None = None,
    guide_scale: float | None = None,
    guide_interval: tuple[float, float] | None = None,
    size: tuple[int, int] | int | None = None,
    to_zero: bool = True,
    **options: Any,
) -> Tensor:
    """Images of these seeds, uint8 (N, C, H, W) on the CPU.

    seeds: one per image, or their number (0..n-1). label: a class's index or name for all, one per image, or None.
    sampler: a name in `SAMPLERS`, by default the model's usual one; `options` are its own (eta, variance, ...). steps,
    grid: default to the sampler's. guidance: 1 = conditional, 0 = unconditional; acts where low < sigma <= high if
    there is an interval. sigma_min, sigma_max: ends of a karras or log grid, by default the model's. micro_batch:
    images per forward pass. clip: clamp x0_hat to [-1, 1]; by default what the denoiser says. progress: called with
    (done, in all). guide: who pulls towards the label: "labels" (None: the model's own condition, whose scale is
    guidance), "representations" or "own" (the head of a joint model, by the maps its decoder reads or as a
    classifier), or a classifier that knows noise. guide_scale: how much, 0 = not at all; default: what is usual for
    it. It acts where low < sigma <= high of guide_interval, by default at all levels it knows. An unconditional model
    then takes labels of its guide: classes, or for a guide that knows attributes "Smiling;not Male" or (N, K) in 1, 0,
    -1 (free). Classes are matched by name where both have names. size: (height, width) in pixels, by default what the
    model was trained at. grid: karras, log, time, ddim, fast (DPM-Solver-fast's nodes), or a respacing such as ddim25
    or 10,15,20. to_zero: False ends at the smallest level, as some published recipes do.

    Runs in inference mode with the network in eval mode, which is undone afterwards. Raises `UserError` before any
    computation for anything that cannot be.
    """
    chosen = plan(
        denoiser, sampler, steps, guidance, interval, grid, sigma_min, sigma_max, micro_batch, clip,
        guide, guide_scale, guide_interval, size, to_zero, **options
    )  # fmt: skip
    seeds = check_seeds(seeds)
    return draw(denoiser, chosen, seeds, check_labels(denoiser, label, len(seeds), guidance, chosen.guide), progress)


def draw(
    denoiser: Denoiser,
    plan: Plan,
    seeds: Sequence[int],
    labels: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """`sample` for a checked plan, seeds and labels (N,) or (N, K): uint8 (N, C, H, W) on the CPU."""
    images: Tensor | None = None
    for start in range(0, len(seeds), plan.micro_batch):
        part = slice(start, start + plan.micro_batch)
        for step in _steps(denoiser, plan, seeds[part], None if labels is None else labels[part]):
            last = step
        batch = _decode(denoiser, last.x)[: len(seeds[part])]
        if images is None:  # an ordinary tensor, which its owner may change: batches come from inference mode
            images = torch.empty((len(seeds), *batch.shape[1:]), dtype=torch.uint8)
        images[part] = batch
        if progress:
            progress(min(part.stop, len(seeds)), len(seeds))
    assert images is not None
    return images


def trajectory(
    denoiser: Denoiser,
    seeds: int | Sequence[int],
    label: int | str | Sequence[int | str] | Tensor | None = None,
    micro_batch: int = 64,
    **how: Any,
) -> Iterator[Step]:
    """One batch while it is being made: a `Step` per solver step with `images`, x0_hat decoded, uint8 (N, C, H, W).

    The arguments are those of `sample`, and the last step's images are bit-identical to what it returns. The network
    is in eval mode until the iterator ends or is closed. Raises `UserError` at once, and for more images than
    micro_batch.
    """
    guidance = how.get("guidance", 1.0)
    chosen = plan(denoiser, micro_batch=micro_batch, **how)
    seeds = check_seeds(seeds)
    if len(seeds) > micro_batch:
        raise UserError(f"seeds: {len(seeds)} images", f"a trajectory is one batch of {micro_batch}", "ask for fewer")
    labels = check_labels(denoiser, label, len(seeds), guidance, chosen.guide)
    return drawing(denoiser, chosen, seeds, labels)


def drawing(
    denoiser: Denoiser, plan: Plan, seeds: Sequence[int], labels: Tensor | None = None, previews: bool = True
) -> Iterator[Step]:
    """`trajectory` for a checked plan, at most micro_batch seeds, and labels (N,) or (N, K).

    previews: False decodes the last step alone, whose images are the result; the others then have none.
    """
    n, last = len(seeds), len(plan.sigmas) - 1
    for step in _steps(denoiser, plan, seeds, labels):
        images = _decode(denoiser, step.x0_hat)[:n] if previews or step.index == last else None
        yield replace(step, x=step.x[:n], x0_hat=step.x0_hat[:n], images=images)


@torch.inference_mode()
def _steps(denoiser: Denoiser, plan: Plan, seeds: Sequence[int], labels: Tensor | None) -> Iterator[Step]:
    """The sampler's steps for one batch, padded to micro_batch rows with its last image."""
    device, dtype = place(denoiser)
    state = torch.float32 if device.type == "mps" else torch.float64
    padding = plan.micro_batch - len(seeds)
    draws = SampleNoise([*seeds, *[seeds[-1]] * padding], plan.shape, device)
    if labels is not None:
        labels = torch.cat([labels, labels[-1:].expand(padding, *labels.shape[1:])]).to(device)
    x = draws().to(state) * denoiser.start_scale(float(plan.sigmas[0]))
    denoise = _network_dtype(guided_as_planned(denoiser, plan, labels), dtype)
    if plan.clip:
        denoise = clipped(denoise)
    with evaluating(denoiser, plan.guide.classifier if plan.guide else None):
        yield from SAMPLERS[plan.sampler].function(denoise, x, plan.sigmas, draws, **plan.options)


def guided_as_planned(denoiser: Denoiser, plan: Plan, labels: Tensor | None) -> Denoise:
    """The callable (x, sigma) -> x0_hat that a plan samples with, not yet clipped; labels are on the model's device."""
    own = plan.guide is not None and plan.guide.kind != CLASSIFIER
    shown = labels if denoiser.classes and not own else None
    denoise = guided(denoiser, shown, plan.guidance, plan.interval, plan.learned_variance)
    if plan.guide is None or labels is None:
        return denoise
    return plan.guide.over(denoiser, denoise, labels, plan.learned_variance)


@torch.inference_mode()
def _decode(denoiser: Denoiser, x0: Tensor) -> Tensor:
    return denoiser.codec.decode(x0.to(place(denoiser)[1])).cpu()


@contextmanager
def evaluating(*models: object) -> Iterator[None]:
    """Every module of these models in eval mode inside, and each in its previous mode afterwards."""
    roots = [model for model in models if isinstance(model, nn.Module)]
    modes = [(module, module.training) for root in roots for module in root.modules()]
    for root in roots:
        root.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def image_shape(denoiser: Denoiser, shape: tuple[int, int, int] | None = None) -> tuple[int, int, int]:
    """(C, H, W) of decoded images, found by decoding one x0. shape: of x0; default: the denoiser's."""
    device, _ = place(denoiser)
    c, h, w = _decode(denoiser, torch.zeros((1, *(shape or denoiser.shape)), device=device)).shape[1:]
    return c, h, w


def place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the network is, and the dtype x is given to it in: float64 if it is, float32 otherwise."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return torch.device("cpu"), torch.float32


def _network_dtype(denoise: Denoise, dtype: torch.dtype) -> Denoise:
    return lambda x, sigma: denoise(x.to(dtype), sigma).to(x.dtype)
