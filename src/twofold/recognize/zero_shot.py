"""A class-conditional denoiser is a classifier that nobody trained: the right label denoises best.

    log p(x0 | k) = const - 1/2 E int |x0_hat_k(x) - x0|^2 d(1/sigma^2)
                  = const - E int |eps_hat_k(x) - noise|^2 d(ln sigma)

(Kong et al. 2023, "Information-theoretic diffusion"; with other weights it is the bound that Li et al. 2023, "Your
diffusion model is secretly a zero-shot classifier", start from.)

The integral is a mean over trials (noise level, noise), the same ones for all classes, so that what they have in common
cancels. Classes that are behind after a few trials are dropped, and the others are measured further (Li et al. 2023,
algorithms 1 and 2).

The levels of the trials are a low-discrepancy sequence (multiples of the golden ratio), so that the first n trials
cover the range evenly for every n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import UserError, nearest
from ..generate.produce import class_names
from ..generate.sample import place
from ..noise import as_sigma
from .denoising_error import DenoisingError, ImageNoise, Rows

Progress = Callable[[int, int], None]  # (images done, images in all)
LEVELS = ("log", "training")
ROUNDS = ((25, 5), (250, 1))
# Where classes differ. On digits 8 trials over it give 98 %, over EDM's whole range 95 %; with 32 they are alike.
INFORMATIVE = (0.02, 20.0)
ROWS, ELEMENTS = 2**20, 2**24  # of a block of images: its rows of work, and the size of its x0
GOLDEN = (math.sqrt(5) - 1) / 2
MARGIN = 1e-9  # by which a dropped class ranks below the others


class ZeroShotClassifier:
    """A `Classifier` of clean images made of a class-conditional denoiser, without any training.

    rounds: (trials, classes kept) one after another. Trials are counted from the start: 25, then up to 250. A round
        that would keep as many classes as are left drops none; an image with one class left is done.
    levels: "log", uniform in ln sigma over `sigma_range`, or "training", the denoiser's own training distribution.
    sigma_range: (low, high) of levels "log" in units of x0; default: what the denoiser knows of 0.02 to 20.
    weight: of the squared error, see `denoising_error`. With "eps" and levels "log" the softmax of `logits` is
        the posterior of the classes for equal shares, as far as the denoiser is right and the range wide enough.
    noise: (images uint8, draw) -> (B, *shape); default: noise that belongs to the image's pixels and `seed`.
    micro_batch: rows per forward pass; an image takes (classes x first trials + ...) rows.

    Raises `UserError` for an unconditional denoiser, rounds that do not narrow down, and levels outside its range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        rounds: Sequence[tuple[int, int]] = ROUNDS,
        levels: str = "log",
        sigma_range: tuple[float, float] | None = None,
        weight: str = "eps",
        noise: ImageNoise | None = None,
        micro_batch: int = 64,
    ) -> None:
        if denoiser.classes < 1:
            what = "this model is unconditional: it cannot be asked about classes"
            raise UserError("zero-shot", what, "train one with labels, or probe its features")
        self.denoiser, self.rounds = denoiser, check_rounds(rounds)
        self.class_names = class_names(denoiser)
        self.shape, self.codec = denoiser.shape, denoiser.codec
        if sigma_range is None and levels == "log":
            sigma_range = informative(denoiser)
        sigmas = trial_sigmas(denoiser, self.rounds[-1][0], levels, sigma_range)
        self._errors = DenoisingError(denoiser, sigmas, weight, noise, micro_batch)
        low, high = sigma_range or denoiser.sigma_range
        self._nats = math.prod(self.shape) * math.log(high / low)

    def scores(self, images: Tensor, progress: Progress | None = None) -> Tensor:
        """Minus the mean error of every class, (N, K) float64 on the CPU, for uint8 images (N, C, H, W).

        A class that was dropped keeps the score it had, lowered where need be to rank below all that were kept.
        Raises `UserError` for images that are not the model's.
        """
        return self._scores(images, lambda part: self._errors.encode(images[part]), progress)

    def probabilities(self, images: Tensor, progress: Progress | None = None) -> Tensor:
        """The posterior of the classes, (N, K) float64 on the CPU, for uint8 images: the softmax of `logits`."""
        return (self.scores(images, progress) * self._nats).softmax(1)

    def logits(self, x0: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """(N, K) in nats for clean x0 (N, *shape): `scores` times the number of elements and the width of ln sigma.

        Raises `UserError` for sigma > 0: it judges clean images and makes its own noise.
        """
        if float(as_sigma(sigma).max()) > 0:
            raise UserError("sigma", "this classifier makes its own noise", "give it clean images, with sigma = 0")
        if tuple(x0.shape[1:]) != tuple(self.shape):
            raise UserError("x0", f"of shape {tuple(x0.shape)}", f"the model knows {tuple(self.shape)}")
        device, dtype = place(self.denoiser)
        with torch.inference_mode():  # the pixels only choose the noise
            parts = x0.split(self._errors.micro_batch)
            images = torch.cat([self.codec.decode(part.to(device, dtype)).cpu() for part in parts])
        found = self._scores(images, lambda part: x0[part].to(device, dtype))
        return (found * self._nats).to(device=x0.device, dtype=torch.float32)

    def _scores(self, images: Tensor, x0_of: Callable[[slice], Tensor], progress: Progress | None = None) -> Tensor:
        if not len(images):
            raise UserError("images", "none", "give at least one")
        most = max(1, min(ROWS // (len(self.class_names) * self.rounds[0][0]), ELEMENTS // math.prod(self.shape)))
        done: list[Tensor] = []
        for start in range(0, len(images), most):
            part = slice(start, start + most)
            done.append(torch.from_numpy(self._block(x0_of(part), images[part])))
            if progress:
                progress(min(part.stop, len(images)), len(images))
        return torch.cat(done)

    def _block(self, x0: Tensor, images: Tensor) -> np.ndarray:
        """(n, K): all rounds for some images."""
        n, k = len(images), len(self.class_names)
        sums, left = np.zeros((n, k)), np.ones((n, k), bool)
        scores, dropped_in = np.zeros((n, k)), np.full((n, k), len(self.rounds))
        before = 0
        for number, (trials, keep) in enumerate(self.rounds):
            active = left & (left.sum(1) > 1)[:, None]
            if not active.any() and before:
                break
            active = active if before else left  # a model of one class still gets its score
            self._measure(x0, images, active, range(before, trials), sums)
            scores = np.where(active, -sums / trials, scores)
            before = trials
            dropped = active & (ranks(np.where(active, scores, -np.inf)) >= keep)
            left &= ~dropped
            dropped_in[dropped] = number
        return below(scores, dropped_in)

    def _measure(self, x0: Tensor, images: Tensor, active: np.ndarray, trials: range, sums: np.ndarray) -> None:
        """Adds the mean error of every active (image, class) in every trial to sums (n, K)."""
        image, label = np.nonzero(active)
        count = max(1, ROWS // max(1, len(image)))
        for start in range(trials.start, trials.stop, count):
            some = np.arange(start, min(start + count, trials.stop))
            rows = Rows(np.tile(image, len(some)), np.repeat(some, len(image)), np.tile(label, len(some)))
            found = [error.flatten(1).mean(1) for _, error in self._errors(x0, images, rows)]
            if found:
                values = torch.cat(found).double().cpu().numpy().reshape(len(some), len(image))
                for row in values:  # trial by trial, so that sums do not depend on how trials are grouped
                    sums[image, label] += row


def check_rounds(rounds: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Raises `UserError` unless trials grow and classes shrink from round to round."""
    found = tuple((int(trials), int(keep)) for trials, keep in rounds)
    grows = all(a[0] < b[0] and a[1] >= b[1] for a, b in pairwise(found))
    if not found or min(min(pair) for pair in found) < 1 or not grows:
        raise UserError(
            f"rounds={list(found)}", "do not narrow down", "(trials, classes kept): more trials, fewer kept"
        )
    return found


def trial_sigmas(denoiser: Denoiser, trials: int, levels: str, sigma_range: tuple[float, float] | None) -> Tensor:
    """Noise levels of the trials, (trials,) float64; every beginning of them covers the range evenly."""
    u = torch.from_numpy((0.5 + GOLDEN * np.arange(trials)) % 1)
    if levels == "training":
        if sigma_range is not None:
            raise UserError("sigma_range", "levels=training has its own", "leave it out, or use levels=log")
        family = getattr(denoiser, "family", None)
        if family is None:
            raise UserError("levels=training", "this model does not say how it was trained", "use levels=log")
        return family.training_sigma(u)
    if levels != "log":
        raise UserError(f"levels={levels}", "no such levels", nearest(levels, LEVELS))
    low, high = sigma_range or denoiser.sigma_range
    if not 0 < low < high:
        raise UserError(f"sigma_range={low:g}, {high:g}", "not a range of sigma", "0 < low < high")
    return (math.log(low) + u * math.log(high / low)).exp().clamp(low, high)


def informative(denoiser: Denoiser) -> tuple[float, float]:
    """The part of `INFORMATIVE` that the denoiser knows, or all that it knows where there is none."""
    low, high = denoiser.sigma_range
    part = max(low, INFORMATIVE[0]), min(high, INFORMATIVE[1])
    return part if part[0] < part[1] else (low, high)


def ranks(scores: np.ndarray) -> np.ndarray:
    """Place of every score in its row (n, K), 0 = highest; equal ones by their index."""
    return np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")


def below(scores: np.ndarray, dropped_in: np.ndarray) -> np.ndarray:
    """Scores (n, K) in which whatever was dropped in an earlier round ranks below all that was dropped later.

    Those of a round move together, and only where they have to; their distances stay.
    """
    scores = scores.copy()
    for number in range(int(dropped_in.max()) - 1, -1, -1):
        group = dropped_in == number
        best = np.where(group, scores, -np.inf).max(1)
        floor = np.where(dropped_in > number, scores, np.inf).min(1)
        moved = np.where(best >= floor, best - floor + MARGIN * (1 + np.abs(floor)), 0.0)
        scores -= np.where(group, moved[:, None], 0.0)
    return scores
