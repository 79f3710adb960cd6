"""Bits per dimension of 8-bit images under a denoiser: how many bits a pixel and channel it would take to send them.

    bound   the variational bound over a chain of reverse steps, see `twofold.recognize.likelihood_bound`
    ode     the density along the probability-flow ODE of the images with uniform noise of one level added to every
            pixel (Theis et al. 2016): -E log2 p(x0 + u) / D - log2(2 / 255)

8 is what sending raw pixels costs; lower is better. Each is an upper bound for its own way of making images (the chain;
the ODE and rounding), so they differ; the second also by the solver's error, which may have either sign. All noise
belongs to the images' own pixels: an image has the same bits in any file, order and batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ..codec import PixelCodec
from ..denoiser import Denoiser
from ..errors import UserError, nearest
from ..generate.sample import check_labels, evaluating, place
from ..measure import processes
from ..reverse import LEVEL
from .denoising_error import DenoisingError
from .likelihood_bound import Chain, PixelNoise, bound_terms, draw_levels, make_chain, prior_bits
from .likelihood_ode import DIVERGENCES, SOLVERS, log_density

METHODS = ("bound", "ode")
SOLVER_STEPS = 20
DRAW = 2**41  # number of the first draw of noise below one level
Progress = Callable[[int, int], None]  # (images done, images in all)


@dataclass(frozen=True)
class Likelihood:
    """bits: (N,) float64, bits per dimension of each image. facts: how they were found, as plain data.

    Of a bound, parts: {"prior", "steps", "last"}, (N,) float64 each, which sum to bits; levels: a row for each step of
    the chain, {"sigma", "below", "bits", "images"}: its mean cost over the images that it was evaluated on.
    """

    bits: Tensor
    facts: dict[str, Any]
    parts: dict[str, Tensor] = field(default_factory=dict)
    levels: list[dict[str, Any]] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return float(self.bits.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean over images; whatever was drawn at random for each image is in it. NaN for one image."""
        return float(self.bits.std() / math.sqrt(len(self.bits)))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Of the mean, if the images are a sample of many more."""
        half = NormalDist().inv_cdf((1 + confidence) / 2) * self.standard_error
        return self.mean - half, self.mean + half


def bits_per_dimension(
    denoiser: Denoiser,
    images: Tensor,
    method: str = "bound",
    steps: int | None = None,
    evaluations: int | None = None,
    variance: str | None = None,
    clip: bool | None = None,
    solver: str = "rk4",
    divergence: str = "hutchinson",
    draws: int = 1,
    labels: int | str | Sequence[int | str] | Tensor | None = None,
    seed: int = 0,
    micro_batch: int = 64,
    progress: Progress | None = None,
    share: bool = False,
) -> Likelihood:
    """Bits per dimension of uint8 images (N, C, H, W) under a denoiser of pixels, of any noise family.

    steps: of the chain, default: a whole table, or 1,000; or of the solver, default 20. labels: as `sample` takes them;
    default: none. seed: of all noise. share: processes of a torchrun share the images, and all get the result.
    Bound: evaluations: of the network per image, default: every step; fewer are drawn, without bias, but the bits of
    one image scatter then. variance: small, large or learned, default: learned if it has. clip: as `sample` does.
    ODE: solver: rk4 (4 evaluations a step) or heun (2). divergence: hutchinson, or exact for few dimensions. draws: of
    noise per image, whose ln p is averaged.

    Raises `UserError` for models of latents, images that do not fit, and values that cannot be.
    """
    check_pixels(denoiser)
    if method not in METHODS:
        raise UserError(f"method={method}", "no such likelihood", nearest(method, METHODS))
    x0 = DenoisingError(denoiser, denoiser.sigma_range, "x0", micro_batch=micro_batch).encode(images)
    known = check_labels(denoiser, labels, len(images))
    label = None
    if denoiser.classes:
        label = (torch.full((len(images),), -1) if known is None else known).to(x0.device)
    about: dict[str, Any] = {"method": method, "labels": known is not None, "seed": seed}
    job = _Job(denoiser, x0, images, label, seed, micro_batch, progress, share)
    if method == "bound":
        return _bound(job, about, make_chain(denoiser, steps, variance), evaluations, clip)
    return _ode(job, about, SOLVER_STEPS if steps is None else steps, solver, divergence, draws)


def check_pixels(denoiser: Denoiser) -> None:
    """Raises `UserError` where bits of pixels have no meaning."""
    if not isinstance(denoiser.codec, PixelCodec):
        what = "this is a model of latents: its density says nothing about pixels"
        raise UserError("likelihood", what, "give a model of pixels")


@dataclass(frozen=True)
class _Job:
    """Which images, and how their batches are worked through."""

    denoiser: Denoiser
    x0: Tensor
    images: Tensor
    label: Tensor | None
    seed: int
    micro_batch: int
    progress: Progress | None
    share: bool

    def __call__(self, work: Callable[[slice, PixelNoise], Tensor]) -> Tensor:
        """work's rows for all images, (N, ...) on the CPU."""

        def told(part: slice) -> Tensor:
            rows = work(part, PixelNoise(self.images[part], self.seed))
            if self.progress:
                self.progress(part.stop, len(self.images))
            return rows

        with evaluating(self.denoiser):
            return processes.gathered(len(self.images), self.micro_batch, told, self.share)

    def labels(self, part: slice) -> Tensor | None:
        return None if self.label is None else self.label[part]


def _bound(job: _Job, about: dict[str, Any], chain: Chain, evaluations: int | None, clip: bool | None) -> Likelihood:
    drawn = draw_levels(len(chain), evaluations, PixelNoise(job.images, job.seed))

    def work(part: slice, pixels: PixelNoise) -> Tensor:
        return bound_terms(
            job.denoiser, chain, job.x0[part], pixels, drawn.levels[part], job.labels(part), job.micro_batch, clip
        )

    terms = job(work)
    start = float(chain.sigmas[0])
    weighted = terms * torch.from_numpy(drawn.weight)
    parts = {
        "prior": prior_bits(job.denoiser, job.x0.cpu().double(), start),
        "steps": weighted[:, :-1].sum(1),
        "last": weighted[:, -1],
    }
    at = torch.from_numpy(drawn.levels).reshape(-1)
    counts = torch.bincount(at, minlength=len(chain))
    sums = torch.zeros(len(chain), dtype=torch.float64).index_add_(0, at, terms.reshape(-1))
    rows = zip(chain.sigmas.tolist(), chain.below.tolist(), (sums / counts).tolist(), counts.tolist(), strict=True)
    levels = [{"sigma": s, "below": t, "bits": bits, "images": count} for s, t, bits, count in rows if count]
    about |= {"steps": len(chain), "evaluations": terms.shape[1], "variance": chain.variance}
    about |= {"sigma_min": float(chain.sigmas[-1]), "sigma_max": start}
    return Likelihood(parts["prior"] + parts["steps"] + parts["last"], about, parts, levels)


def _ode(job: _Job, about: dict[str, Any], steps: int, solver: str, divergence: str, draws: int) -> Likelihood:
    for name, value, valid in (("solver", solver, SOLVERS), ("divergence", divergence, DIVERGENCES)):
        if value not in valid:
            raise UserError(f"{name}={value}", f"no such {name}", nearest(value, valid))
    for name, number in (("steps", steps), ("draws", draws)):
        if number < 1:
            raise UserError(f"{name}={number}", "nothing to do", "at least 1")
    shape = tuple(job.x0.shape[1:])
    device, dtype = place(job.denoiser)

    def one(part: slice, uniforms: Tensor) -> Tensor:
        """Of these images with this noise and these signs, (B, 2, C, H, W); padded to a whole batch."""
        rows = torch.arange(job.micro_batch).clamp(max=len(uniforms) - 1)
        uniforms = uniforms[rows]
        x = job.x0[part][rows.to(device)] + (LEVEL * (uniforms[:, 0] - 0.5)).to(device, dtype)
        signs = torch.where(uniforms[:, 1] < 0.5, -1.0, 1.0).to(device) if divergence == "hutchinson" else None
        label = job.labels(part)
        cond = None if label is None else {"label": label[rows.to(device)]}
        return log_density(job.denoiser, x, steps, solver, signs, cond)[: part.stop - part.start]

    def work(part: slice, pixels: PixelNoise) -> Tensor:
        uniforms = (torch.from_numpy(pixels.uniform(DRAW + draw, (2, *shape))) for draw in range(draws))
        return torch.stack([one(part, drawn) for drawn in uniforms], 1).mean(1)

    nats = job(work)
    stages = len(SOLVERS[solver][1])
    about |= {"steps": steps, "solver": solver, "evaluations": steps * stages * draws, "draws": draws}
    about |= {"divergence": divergence, "sigma_min": job.denoiser.sigma_range[0]}
    about |= {"sigma_max": job.denoiser.sigma_range[1]}
    return Likelihood(-nats / (math.prod(shape) * math.log(2)) - math.log2(LEVEL), about)
