"""Images become larger ones: a super-resolution model denoises beside what it is given, whole or in tiles.

    low -> enlarged (bicubic) -> sampler( clip( guidance( denoise(x, sigma, {low, ..}) ) ) ) -> images

The model sees the low image at every step (Saharia et al. 2021, SR3). One step from high noise gives about the mean of
all images that fit: smooth. More steps draw one of them: sharp, and its details are made up.

A regression model (`twofold.networks.rdn`) sees the low image alone and answers once: low -> enlarged, no sampler.

An image larger than `tile` is denoised in overlapping tiles at every step, and the tiles' x0_hat are blended there
(Bar-Tal et al. 2023, MultiDiffusion): noise and solver are of the whole image, so no seam can grow from step to step.

A model trained with noise on its low images (Ho et al. 2021, cascaded diffusion) may be given some here, and is told
the level: it then trusts what it sees less, and makes up more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Cond, Denoiser
from ..draws import ImageDraws
from ..errors import UserError
from ..lowres import enlarge
from ..networks.rdn import Upscaler
from .labels import check_labels
from .sample import MAX_SEED, Progress, draw, evaluating, place, plan
from .tiles import Tiles

AT_ONCE = 1 << 16  # pixels denoised together where nothing else is asked for: 64 images of 32x32, one of 256x256
MOST_AT_ONCE = 64  # images
LOW_NOISE = 2  # index of the draws of `low_noise`: 0 is the noise that images start from, 1 chooses labels
TRAINED = 2  # a tile has so many times the side of the images that were trained on, where nothing else is asked for


class Given(Denoiser):
    """A super-resolution model and the low images of one batch, as a denoiser that needs nothing else.

    low: x0 (B, C, h, w). tile: (height, width) of the parts that are denoised, in pixels; None: the whole image.
    low_noise: level of the noise that low has been given. A batch of x has B rows, or all of them once more for each
    further condition (guidance).
    """

    def __init__(
        self, denoiser: Denoiser, low: Tensor, tile: tuple[int, int] | None = None, low_noise: float = 0.0
    ) -> None:
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
        self._tiles, self._low_noise = Tiles(height, width, tile), low_noise

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
        return self.denoiser.size_problem(*self._tiles.sides)

    def _tiled(self, ask: Callable[..., Tensor], x: Tensor, sigma: Tensor | float, cond: Cond | None) -> Tensor:
        low = self.low.to(x.dtype).repeat(len(x) // len(self.low), 1, 1, 1)
        cond = dict(cond or {})
        if self._low_noise:
            cond["low_noise"] = x.new_full((len(x),), self._low_noise)
        return self._tiles.blended(lambda part: ask(x[(..., *part)], sigma, {**cond, "low": low[(..., *part)]}))


def upscale(
    denoiser: Denoiser | Upscaler,
    images: Tensor,
    seeds: Sequence[int],
    label: Any = None,
    guidance: float = 1.0,
    tile: int | None = None,
    micro_batch: int | None = None,
    low_noise: float = 0.0,
    progress: Progress | None = None,
    **how: Any,
) -> Tensor:
    """uint8 (N, C, h, w) -> uint8 (N, C, factor * h, factor * w), on the CPU.

    seeds: one an image. label: as in `sample`, of a class-conditional model. tile: side in pixels of the parts of a
    large image; None: twice that of the images trained on; 0: never in parts. micro_batch: images per forward pass;
    None: as many as have 2^16 pixels, 64 at most. low_noise: level of the noise that the low images are given, up to
    that of training. how: sampler, steps and so on of `sample`. An image is the same with any others beside it. Of a
    regression model seeds, label, guidance and how count for nothing. Raises `UserError` for a model of another kind,
    for images of other channels, and for noise that it was not trained with.
    """
    check_upscales(denoiser)
    n, channels, *sides = images.shape
    if channels != denoiser.shape[0]:
        what = f"these images have {channels} channels, the model's have {denoiser.shape[0]}"
        raise UserError("images", what, "convert them to grey or RGB")
    height, width = (side * denoiser.low_factor for side in sides)
    if micro_batch is None:
        micro_batch = at_once(height, width)
    check_low_noise(denoiser, low_noise)
    device, _ = place(denoiser)
    labels = check_labels(denoiser, label, n, guidance) if isinstance(denoiser, Denoiser) else None
    out = torch.empty((n, channels, height, width), dtype=torch.uint8)
    for start in range(0, n, micro_batch):
        rows = torch.arange(start, start + micro_batch).clamp(max=n - 1)  # filled up with the last one
        part = slice(start, start + micro_batch)
        low = denoiser.codec.encode(images[rows].to(device))
        if isinstance(denoiser, Denoiser):
            low = noised(low, [seeds[row] for row in rows.tolist()], low_noise) if low_noise else low
            given = Given(denoiser, low, tile_of(denoiser, tile), low_noise)
            chosen = plan(given, guidance=guidance, micro_batch=micro_batch, size=(height, width), **how)
            out[part] = draw(given, chosen, seeds[part], None if labels is None else labels[part])
        else:
            out[part] = answered(denoiser, low, tile_of(denoiser, tile))[: n - start]
        if progress:
            progress(min(part.stop, n), n)
    return out


@torch.inference_mode()
def answered(model: Upscaler, low: Tensor, tile: tuple[int, int] | None) -> Tensor:
    """What a regression model makes of x0 (B, C, h, w): uint8 (B, C, H, W) on the CPU. tile: of the large image."""
    factor = model.low_factor
    parts = None if tile is None else (max(tile[0] // factor, 1), max(tile[1] // factor, 1))
    tiles = Tiles(low.shape[2], low.shape[3], parts, factor)
    with evaluating(model):
        return model.codec.decode(tiles.blended(lambda part: model(low[(..., *part)]).float())).cpu()


def noised(low: Tensor, seeds: Sequence[int], level: float) -> Tensor:
    """low + level * noise, x0 (B, C, h, w), each image with the noise of its seed."""
    draws, noise = ImageDraws("sample"), np.empty(low.shape, np.float32)
    for row, seed in zip(noise, seeds, strict=True):
        draws(seed, LOW_NOISE).standard_normal(out=row, dtype=np.float32)
    return low + level * torch.from_numpy(noise).to(low)


def at_once(height: int, width: int) -> int:
    """Images of this size, in pixels of what comes out, per forward pass where nothing else is asked for."""
    return min(max(AT_ONCE // (height * width), 1), MOST_AT_ONCE)


def tile_of(denoiser: Denoiser | Upscaler, tile: int | None) -> tuple[int, int] | None:
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


def check_low_noise(denoiser: Any, level: float) -> None:
    """Raises `UserError` for noise on low images that this model was not trained with."""
    most = float(getattr(getattr(denoiser, "network", None), "low_noise", 0.0))
    if level and not 0 <= level <= most:
        what = f"the model was trained with levels up to {most:g}" if most else "the model was trained without"
        raise UserError(f"low_noise={level:g}", what, f"give 0 to {most:g}" if most else "leave it out")
