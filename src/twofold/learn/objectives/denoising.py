"""The denoising objective: F against its own target at random noise levels (Ho et al. 2020, eq. 14; Karras et al.
2022, eq. 8; Lipman et al. 2023, eq. 9; which one is the noise family's business).

    mse       |F - target|^2, mean over pixels
    vlb       T times the variational bound's term at this level, in bits per dimension: its sum, estimated
    hybrid    mse + 0.001 vlb, where the second part trains the variance alone (Nichol and Dhariwal 2021, eq. 16)

One forward pass gives both parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import noise as theory
from ... import reverse
from ...data.augment import AUGMENT_DRAWS, augment
from ...denoiser import NetworkDenoiser
from ...draws import ImageDraws
from ...errors import UserError
from ...settings.train import Denoising
from ..batches import U_AUGMENT, U_LABEL, U_SIGMA, Batch
from ..crops import CROP_DRAWS, check_crop, cropped
from ..lowered import low_draws, lowered
from .base import Objective
from .levels import Importance, levels

VARIANCE_WEIGHT = 1e-3  # of the bound in `hybrid`


def huber(off: Tensor) -> Tensor:
    """Elementwise: off^2 / 2 up to 1, |off| - 1/2 beyond (Huber 1964)."""
    size = off.abs()
    return torch.where(size < 1, 0.5 * off.square(), size - 0.5)


DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": torch.square,
    "l1": torch.abs,
    "huber": huber,
    "smooth_l1": huber,  # of width 1 they are the same
}


@dataclass(frozen=True)
class Noised:
    """x = x0 + sigma * noise (B, C, H, W), sigma (B,) float64, weight (B,) of each loss, cond for the network."""

    x0: Tensor
    x: Tensor
    noise: Tensor
    sigma: Tensor
    weight: Tensor
    cond: dict[str, Tensor]


def drop_chance(settings: Denoising, confidence: Tensor | None) -> float | Tensor:
    """With what probability an image is trained without its label; p = label_dropout, c = confidence (B,) in 0..1.

        ignore        p
        published     p (1 - c), the rule of DPT's first code (You et al. 2023): a certain label is never dropped, and a
                      set of nothing but such labels trains no unconditional part, which guidance needs
        proportional  1 - c (1 - p): a label is used as often as it is right

    Labels of which nothing is said (None) are certain.
    """
    p, rule = settings.label_dropout, settings.label_confidence
    if rule == "ignore":
        return p
    c = torch.ones((), dtype=torch.float64) if confidence is None else confidence.double()
    return p * (1 - c) if rule == "published" else 1 - c * (1 - p)


class DenoisingObjective(Objective):
    """forward(batch) -> weighted loss per image (B,).

    Raises `UserError` for hybrid and vlb where the network learns no variance or its noise has no table.
    """

    classifies = False
    needs_noise = True

    def __init__(self, denoiser: NetworkDenoiser, settings: Denoising, seed: int = 0) -> None:
        super().__init__()
        self.denoiser: NetworkDenoiser = denoiser
        self.network = denoiser.network
        self.settings = settings
        self.uniforms = U_AUGMENT + (AUGMENT_DRAWS if settings.augment_probability else 0)
        if settings.crop:
            check_crop(settings.crop, denoiser.shape)
        self._on_low = low_draws(denoiser, settings.crop)  # they come before those of the crop, which are the last
        self.further = self._on_low + (CROP_DRAWS if settings.crop else 0)
        self.uniforms += self.further
        self.levels = levels(denoiser.family, settings)
        self.learns_levels = isinstance(self.levels, Importance)
        self._seed, self._draws = seed, ImageDraws("train")
        if settings.loss != "mse":
            reverse.table_family(denoiser.family)
            if not denoiser.learns_variance:
                hint = "set network.learned_variance=true"
                raise UserError(f"objective.loss={settings.loss}", "the network says nothing of a variance", hint)

    def counted(self, label: Tensor) -> int:
        """All of them: an image without a label is still an image."""
        return len(label)

    def forward(self, batch: Batch) -> Tensor:
        noised = self.noised(batch)
        return self.loss(self.denoiser(noised.x, noised.sigma, noised.cond), noised)

    def noised(self, batch: Batch) -> Noised:
        """The images of a batch as the network will see them."""
        settings = self.settings
        if settings.crop and self.training:  # held-out images are whole
            batch = cropped(batch, settings.crop)
        x0 = self._x0(batch)
        cond = {}
        if settings.augment_probability:
            u = batch.uniforms[:, U_AUGMENT : U_AUGMENT + AUGMENT_DRAWS]
            x0, cond["augment"] = augment(x0, u, settings.augment_probability)
        if self.denoiser.classes:
            chance = drop_chance(settings, batch.confidence)
            dropped = (batch.uniforms[:, U_LABEL] < chance).to(batch.label.device)
            cond["label"] = torch.where(dropped, -1, batch.label)
        if self.denoiser.low_factor:
            first = self.uniforms - self.further if self._on_low and self.training else None
            cond |= lowered(self.denoiser, batch, first)
        sigma, weight = self._levels(batch.uniforms[:, U_SIGMA])
        assert batch.noise is not None
        return Noised(x0, theory.add(x0, batch.noise, sigma), batch.noise, sigma, weight, cond)

    def _x0(self, batch: Batch) -> Tensor:
        """What is noised: pixels, or latents, drawn from their posterior where the batch has noise for that."""
        codec: Any = self.denoiser.codec
        if batch.moments is not None:
            return codec.draw(batch.moments, batch.posterior)
        return codec.encode(batch.images) if batch.posterior is None else codec.encode(batch.images, batch.posterior)

    def loss(self, output: Tensor, noised: Noised) -> Tensor:
        """(B,): of what the network said to `noised`."""
        family, settings, sigma = self.denoiser.family, self.settings, noised.sigma
        output, *about_variance = output.chunk(2, 1) if self.denoiser.learns_variance else (output,)
        off = output - family.target(self.denoiser.less(noised.x0, noised.cond), noised.noise, sigma)
        loss = DISTANCES[settings.distance](off).flatten(1).mean(1)
        loss = loss * theory.expand(theory.loss_weight(family, sigma, settings.min_snr_gamma), loss)
        if settings.loss != "mse":
            loss = self._with_bound(loss, noised.x0, off, about_variance[0], sigma)
        return loss * theory.expand(noised.weight, loss)

    def _levels(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """What importance sampling draws changes as it learns; held-out losses, to be compared, go without it."""
        if self.learns_levels and not self.training:
            return self.denoiser.family.training_sigma(u), torch.ones_like(u)
        return self.levels(u)

    def _with_bound(self, mse: Tensor, x0: Tensor, off: Tensor, about_variance: Tensor, sigma: Tensor) -> Tensor:
        """off: F - target, of which x0_hat - x0 is c_out times as much."""
        family = reverse.table_family(self.denoiser.family)
        hybrid = self.settings.loss == "hybrid"
        error = theory.expand(family.coefficients(sigma).c_out, off) * (off.detach() if hybrid else off)
        bound = family.settings.steps * reverse.bits(family, x0, error, (about_variance + 1) / 2, sigma)
        return mse + VARIANCE_WEIGHT * bound if hybrid else bound

    def observe(self, start: int, losses: Tensor) -> None:
        if isinstance(self.levels, Importance):
            u = [self._draws(self._seed, start + i).random() for i in range(len(losses))]  # the first is U_SIGMA
            self.levels.observe(torch.tensor(u, dtype=torch.float64), losses)

    def memory(self) -> dict[str, Tensor]:
        return self.levels.memory() if isinstance(self.levels, Importance) else {}

    def remember(self, memory: dict[str, Tensor]) -> None:
        if isinstance(self.levels, Importance):
            self.levels.remember(memory)
