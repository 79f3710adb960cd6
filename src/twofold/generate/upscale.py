"""Images become larger ones: a super-resolution model denoises beside what it is given, whole or in tiles.

    low -> enlarged (bicubic) -> sampler( clip( guidance( denoise(x, sigma, {low, ..}) ) ) ) -> images

The model sees the low image at every step (Saharia et al. 2021, SR3). One step from high noise gives about the mean of
all images that fit: smooth. More steps draw one of them: sharp, and its details are made up.

An image larger than `tile` is denoised in overlapping tiles at every step, and the tiles' x0_hat are blended there
(Bar-Tal et al. 2023, MultiDiffusion): noise and solver are of the whole image, so no seam can grow from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Cond, Denoiser
from ..errors import UserError
from ..lowres import enlarge
from .labels import check_labels
from .sample import MAX_SEED, Progress, draw, place, plan

AT_ONCE = 1 << 16  # pixels denoised together where nothing else is asked for: 64 images of 32x32, one of 256x256
MOST_AT_ONCE = 64  # images
ALIGNED = 16  # pixels between the beginnings of tiles are a multiple of this: levels of a U-Net fall on the same places
TRAINED = 2  # a tile has so many times the side of the images that were trained on, where nothing else is asked for


class Given(Denoiser):
    """A super-resolution model and the low images of one batch, as a denoiser that needs nothing else.

    low: x0 (B, C, h, w). tile: (height, width) of the parts that are denoised, in pixels; None: the whole image.
    A batch of x has B rows, or all of them once more for each further condition (guidance).
    """

    def __init__(self, denoiser: Denoiser, low: Tensor, tile: tuple[int, int] | None = None) -> None:
        super().__init__()
        check_upscales(denoiser)
        factor = denoiser.low_factor
        height, width = low.shape[2] * factor, low.shape[3] * factor
        self.denoiser, self.low = denoiser, enlarge(low, height, width)
        self.shape = (low.shape[1], height, width)
        self.sigma_range, self.clip, self.codec = denoiser.sigma_range, denoiser.clip, denoiser.codec
        self.classes, self.class_names = denoiser.classes, denoiser.class_names
        self.learns_variance = denoiser.learns_variance
        self.family = getattr(denoiser, "family", None)
        sides = [min(side, wanted) for side, wanted in zip((height, width), tile or (height, width), strict=True)]
        self._sides, self._places = sides, [starts(n, side) for n, side in zip((height, width), sides, strict=True)]
        self._ramp = ramp(sides, [len(places) > 1 for places in self._places], low.device)

    def denoise(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> Tensor:
        return self._tiled(self.denoiser.denoise, x, sigma, cond)

    def denoise_and_variance(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
        def both(*given: Any) -> Tensor:
            return torch.cat(self.denoiser.denoise_and_variance(*given), 1)

        x0_hat, share = self._tiled(both, x, sigma, cond).chunk(2, 1)
        return x0_hat, share

    def start_scale(self, sigma: float) -> float:
        return self.denoiser.start_scale(sigma)

    def size_problem(self, height: int, width: int) -> str | None:
        return self.denoiser.size_problem(*self._sides)

    def _tiled(self, ask: Callable[..., Tensor], x: Tensor, sigma: Tensor | float, cond: Cond | None) -> Tensor:
        low = self.low.to(x.dtype).repeat(len(x) // len(self.low), 1, 1, 1)
        cond = dict(cond or {})
        if all(len(places) == 1 for places in self._places):
            return ask(x, sigma, {**cond, "low": low})
        total, weight = None, x.new_zeros(x.shape[2:])
        ramp = self._ramp.to(x.dtype)
        for top in self._places[0]:
            for left in self._places[1]:
                part = (..., slice(top, top + self._sides[0]), slice(left, left + self._sides[1]))
                found = ask(x[part], sigma, {**cond, "low": low[part]})
                total = found.new_zeros((*found.shape[:2], *x.shape[2:])) if total is None else total
                total[part] += ramp * found
                weight[part] += ramp
        assert total is not None
        return total / weight


def starts(length: int, tile: int) -> list[int]:
    """Where tiles of this length begin along a side: they overlap by a quarter at least, and cover all of it."""
    step = max(1, tile * 3 // 4)
    step = step - step % ALIGNED or step
    return [*range(0, max(length - tile, 0), step), length - tile] if length > tile else [0]


def ramp(sides: Sequence[int], several: Sequence[bool], device: torch.device) -> Tensor:
    """(h, w): what a tile's pixels weigh, rising from its edges over a quarter of it where there are several tiles."""
    weights = []
    for side, many in zip(sides, several, strict=True):
        at = torch.arange(side, dtype=torch.float64, device=device)
        edge = torch.minimum(at + 0.5, side - at - 0.5) / (side / 4)
        weights.append(edge.clamp(max=1) if many else torch.ones_like(edge))
    return weights[0][:, None] * weights[1][None]


def upscale(
    denoiser: Denoiser,
    images: Tensor,
    seeds: Sequence[int],
    label: Any = None,
    guidance: float = 1.0,
    tile: int | None = None,
    micro_batch: int | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> Tensor:
    """uint8 (N, C, h, w) -> uint8 (N, C, factor * h, factor * w), on the CPU.

    seeds: one an image. label: as in `sample`, of a class-conditional model. tile: side in pixels of the parts of a
    large image; None: twice that of the images trained on; 0: never in parts. micro_batch: images per forward pass;
    None: as many as have 2^16 pixels, 64 at most. how: sampler, steps and so on of `sample`. An image is the same with
    any others beside it. Raises `UserError` for a model of another kind and for images of other channels.
    """
    check_upscales(denoiser)
    n, channels, *sides = images.shape
    if channels != denoiser.shape[0]:
        what = f"these images have {channels} channels, the model's have {denoiser.shape[0]}"
        raise UserError("images", what, "convert them to grey or RGB")
    height, width = (side * denoiser.low_factor for side in sides)
    if micro_batch is None:
        micro_batch = at_once(height, width)
    device, _ = place(denoiser)
    labels = check_labels(denoiser, label, n, guidance)
    out = torch.empty((n, channels, height, width), dtype=torch.uint8)
    for start in range(0, n, micro_batch):
        rows = torch.arange(start, start + micro_batch).clamp(max=n - 1)  # filled up with the last one
        part = slice(start, start + micro_batch)
        given = Given(denoiser, denoiser.codec.encode(images[rows].to(device)), tile_of(denoiser, tile))
        chosen = plan(given, guidance=guidance, micro_batch=micro_batch, size=(height, width), **how)
        out[part] = draw(given, chosen, seeds[part], None if labels is None else labels[part])
        if progress:
            progress(min(part.stop, n), n)
    return out


def at_once(height: int, width: int) -> int:
    """Images of this size, in pixels of what comes out, per forward pass where nothing else is asked for."""
    return min(max(AT_ONCE // (height * width), 1), MOST_AT_ONCE)


def tile_of(denoiser: Denoiser, tile: int | None) -> tuple[int, int] | None:
    """(height, width) of tiles; None: images are never cut."""
    if tile == 0:
        return None
    if tile is None:
        return TRAINED * denoiser.shape[1], TRAINED * denoiser.shape[2]
    return tile, tile


def seed_of(image: Tensor, seed: int) -> int:
    """The seed of an image uint8 (C, h, w): of this number and its pixels, so the same in any folder and order."""
    from hashlib import sha256

    text = f"{seed} {tuple(image.shape)} ".encode() + image.contiguous().numpy().tobytes()
    return int.from_bytes(sha256(text).digest()[:8], "big") & MAX_SEED


def check_upscales(denoiser: Any, where: str = "the model") -> None:
    """Raises `UserError` for a model that is not one of super-resolution."""
    if not getattr(denoiser, "low_factor", 0):
        what = "is no super-resolution model"
        raise UserError(where, what, "train one: twofold train sr-x4 data=SOURCE (sr-digits-mini to see it)")
