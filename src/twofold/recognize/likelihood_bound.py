"""The variational bound on -ln p(x0): what a chain of reverse steps pays, step by step (Ho et al. 2020, eq. 5).

    -log2 p(x0)  <=  prior + sum over steps s -> t > 0 of KL(q(x_t | x_s, x0) || p(x_t | x_s)) + last

    prior   KL(N(x0, sigma_T^2) || N(0, start_scale(sigma_T)^2))        no network in it
    last    -log2 P(the pixels' 8-bit levels) under N(x0_hat, std^2)     the discretised decoder (eq. 13)

A model with a table of noise levels steps through it, or through as many of its entries as are wanted, with the
variance it has learned or with the lower bound (see `twofold.reverse`). One without a table (EDM, flow, continuous VP)
gets a chain of levels even in ln sigma over its own range, where a step costs (1/t^2 - 1/s^2) |x0_hat - x0|^2 / 2 nats
(Kingma et al. 2021, section 4) and the last one has std = sigma_min: no denoiser's error need be larger. With every
step more the bound gets tighter, towards that of continuous time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Denoiser, NetworkDenoiser
from ..draws import ImageDraws
from ..errors import UserError, nearest
from ..generate.grids import respaced_grid
from ..noise import VP, add, expand, log_grid
from ..reverse import StepDown, large, small, step_bits
from .views import pixel_hash

STEPS = 1_000  # of a chain without a table
STRATA = 2**40  # number of the draw that chooses levels; the noise of level k is draw k
VARIANCES = ("small", "large", "learned")


@dataclass(frozen=True)
class Chain:
    """Reverse steps, first to last. sigmas, below, low, high: (T,) float64; below[-1] = 0.

    variance: small (low), large (high), or learned (in between, as the network says).
    """

    sigmas: Tensor
    below: Tensor
    low: Tensor
    high: Tensor
    variance: str

    def __len__(self) -> int:
        return len(self.sigmas)

    def step(self, levels: Tensor) -> StepDown:
        """The steps of these numbers, (B,) each."""
        return StepDown(self.sigmas[levels], self.below[levels], self.low[levels], self.high[levels])


def make_chain(denoiser: Denoiser, steps: int | None = None, variance: str | None = None) -> Chain:
    """The chain of a denoiser. steps: default: all entries of its table, or `STEPS`. variance: default: learned if it
    has learned one, small otherwise. Raises `UserError` for what it cannot have.
    """
    family = getattr(denoiser, "family", None)
    table = isinstance(family, VP) and family.settings.table != "continuous"
    variance = variance or ("learned" if table and denoiser.learns_variance else "small")
    if variance not in VARIANCES:
        raise UserError(f"variance={variance}", "no such variance", nearest(variance, VARIANCES))
    if variance == "learned" and not denoiser.learns_variance:
        raise UserError("variance=learned", "this model learned no variance", "use variance=small or large")
    if variance != "small" and not table:
        raise UserError(f"variance={variance}", "this model has no table of noise levels", "use variance=small")
    if steps is not None and steps < 2:
        raise UserError(f"steps={steps}", "no chain", "at least 2; hundreds make a tight bound")
    if isinstance(family, VP) and table:
        most = family.settings.steps - family.settings.first
        if steps is not None and steps > most:
            raise UserError(f"steps={steps}", f"the table has {most} entries", f"at most {most}")
        sigmas = respaced_grid(family, str(steps or most))[:-1]
        least = small(sigmas[-2], sigmas[-1]) / (1 + sigmas[-1] ** 2)  # as `reverse.table_step`
    else:
        low, high = denoiser.sigma_range
        sigmas = log_grid(steps or STEPS, low, high)[:-1].clamp(low, high)
        least = sigmas[-1] ** 2
    below = torch.cat([sigmas[1:], sigmas.new_zeros(1)])
    lower = torch.cat([small(sigmas[:-1], below[:-1]), least[None]])
    return Chain(sigmas, below, lower, large(sigmas, below) if table else lower, variance)


def prior_bits(denoiser: Denoiser, x0: Tensor, sigma: float) -> Tensor:
    """What it costs that a chain starts from noise alone, in bits per dimension: (B,), of x0 (B, C, H, W)."""
    variance = denoiser.start_scale(sigma) ** 2
    nats = 0.5 * (math.log(variance / sigma**2) + (sigma**2 + x0.square()) / variance - 1)
    return nats.flatten(1).mean(1) / math.log(2)


@dataclass(frozen=True)
class Drawn:
    """Which steps of the chain are evaluated, (N, K) int64, and how many each stands for, (K,); the last is always
    among them, and stands for itself."""

    levels: np.ndarray
    weight: np.ndarray


class PixelNoise:
    """Random numbers that belong to the pixels of uint8 images (N, C, H, W), as those of `views.image_noise` do."""

    def __init__(self, images: Tensor, seed: int = 0) -> None:
        self._hashes = [pixel_hash(image) for image in images.cpu().contiguous().numpy()]
        self._seed, self._draws = seed, ImageDraws("recognize")

    def __len__(self) -> int:
        return len(self._hashes)

    def uniform(self, draw: int, shape: tuple[int, ...]) -> np.ndarray:
        """(N, *shape) float64 in [0, 1)."""
        return np.stack([self._draws(pixels, self._seed, draw).random(shape) for pixels in self._hashes])

    def normal(self, images: Sequence[int], draws: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) float32 on the CPU: one row for each number of an image and of a draw."""
        noise = np.empty((len(images), *shape), np.float32)
        for row, image, draw in zip(noise, images, draws, strict=True):
            self._draws(self._hashes[image], self._seed, int(draw)).standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(noise)


def draw_levels(steps: int, evaluations: int | None, pixels: PixelNoise) -> Drawn:
    """All steps, or so many evaluations: the last step, and one at random of each of as many equal parts of the rest.

    Weighted sums of what they cost have the whole sum as expectation, for every image.
    """
    if evaluations is None or evaluations >= steps:
        return Drawn(np.tile(np.arange(steps), (len(pixels), 1)), np.ones(steps))
    if evaluations < 2:
        raise UserError(f"evaluations={evaluations}", "too few", "at least 2: the last step, and one of all others")
    edges = np.arange(evaluations) * (steps - 1) // (evaluations - 1)
    size = np.diff(edges)
    levels = edges[:-1] + (pixels.uniform(STRATA, size.shape) * size).astype(np.int64)
    last = np.full((len(pixels), 1), steps - 1)
    return Drawn(np.concatenate([levels, last], 1), np.append(size, 1).astype(np.float64))


@torch.inference_mode()
def bound_terms(
    denoiser: Denoiser,
    chain: Chain,
    x0: Tensor,
    pixels: PixelNoise,
    levels: np.ndarray,
    label: Tensor | None = None,
    micro_batch: int = 64,
    clip: bool | None = None,
) -> Tensor:
    """What each image pays at each of its own steps, in bits per dimension: (N, K) float64 on the CPU.

    x0: (N, C, H, W) where the network is, of 8-bit images. pixels: theirs. levels: (N, K) steps of the chain. label:
    (N,) int64 there too. clip: x0_hat is clamped to [-1, 1], as in sampling; default: what the denoiser says. Every
    forward pass has micro_batch rows, the last one repeated.
    """
    clip = denoiser.clip if clip is None else clip
    count, per_image = levels.shape
    flat = torch.from_numpy(levels.reshape(-1))
    found = torch.empty(flat.shape, dtype=torch.float64)
    for start in range(0, len(flat), micro_batch):
        stop = min(start + micro_batch, len(flat))
        rows = torch.arange(start, start + micro_batch).clamp(max=len(flat) - 1)
        image, step = rows // per_image, chain.step(flat[rows])
        clean = x0[image.to(x0.device)]
        noise = pixels.normal(image.tolist(), flat[rows].tolist(), tuple(x0.shape[1:])).to(clean)
        cond = None if label is None else {"label": label[image.to(label.device)]}
        error, v = predicted(denoiser, clean, noise, step.sigma, cond, chain.variance)
        exact = torch.float32 if x0.device.type == "mps" else torch.float64
        clean, error, v = clean.to(exact), error.to(exact), v.to(exact)
        if clip:
            error = error.clamp(-1 - clean, 1 - clean)
        found[start:stop] = step_bits(step, clean, error, v, least=0.0)[: stop - start].cpu()
    return found.view(count, per_image)


def predicted(
    denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor, cond: dict[str, Tensor] | None, variance: str
) -> tuple[Tensor, Tensor]:
    """x0_hat - x0 and v, both of the shape of x0. Where F is known the first is c_out (F - target): nothing cancels."""
    x, v = add(x0, noise, sigma), torch.full_like(x0, float(variance == "large"))
    if isinstance(denoiser, NetworkDenoiser) and type(denoiser).denoise is NetworkDenoiser.denoise:
        output = denoiser(x, sigma, cond)
        if denoiser.learns_variance:
            output, share = output.chunk(2, 1)
            v = (share + 1) / 2 if variance == "learned" else v
        family = denoiser.family
        off = output - family.target(x0, noise, sigma)
        return expand(family.coefficients(sigma).c_out, x0) * off, v
    if variance == "learned":
        x0_hat, v = denoiser.denoise_and_variance(x, sigma, cond)
        return x0_hat - x0, v
    return denoiser.denoise(x, sigma, cond) - x0, v
