"""What chooses noise levels: the contract of every selection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Choice:
    """sigma (B,) float64 and bin (B,) int64 into `Selection.sigmas`, on the CPU; bin is None where there are none.

    log_probs (B, bins): of a policy, with gradient. pair (B,) int64: which layer pair, None: all. images: what a
    policy saw (B, C, H, W).
    """

    sigma: Tensor
    bin: Tensor | None = None
    log_probs: Tensor | None = None
    pair: Tensor | None = None
    images: Tensor | None = None


class Selection(nn.Module):
    """`pick` chooses levels, `losses` teaches it how.

    sigmas: (bins,) float64 levels there are, None where there is no table of them. uniforms: random numbers of an image
    that it uses. needs_all: whether `losses` wants the teacher's features at every level. policy, task_head: what is
    trained, None where nothing is.
    Around every step `begin` and, once it was taken, `observe` keep what it learns besides its weights; `memory` is
    that, for the training state.
    """

    uniforms = 1
    needs_all = False

    def __init__(self, sigmas: Tensor | None) -> None:
        super().__init__()
        self.sigmas = sigmas
        self.policy: nn.Module | None = None
        self.task_head: nn.Module | None = None

    def pick(self, x0: Tensor, u: Tensor, seen: float) -> Choice:
        """Levels for x0 (B, C, H, W). u: (B, uniforms) float64 in [0, 1). seen: images trained on so far."""
        raise NotImplementedError

    def losses(
        self,
        choice: Choice,
        z: Tensor,
        every: Tensor | None,
        label: Tensor,
        seen: float,
        student: Tensor | None = None,
    ) -> Tensor:
        """(B,) float32, to be added to the loss of features; its gradient goes to policy and task head alone.

        z: (B, D) the teacher's pooled features at the chosen levels; every: (bins, B, D) at all of them, where
        `needs_all`. label: (B,) int64, -1 = none. student: (B, S) its pooled features.
        """
        return torch.zeros(len(z), device=z.device)

    def probabilities(self) -> Tensor | None:
        """(bins,) float64: how likely each level is, now, on average over images; None where there is no table."""
        return None if self.sigmas is None else torch.full_like(self.sigmas, 1 / len(self.sigmas))

    def begin(self, labelled: float | None = None) -> None:
        """Before every step: forgets what an attempt that failed has left. labelled: images of the step, of all its
        parts and processes, for each labelled one; None: none is, or nobody asks.
        """

    def observe(self, count: int) -> None:
        """After a step was taken, of `count` images on this process; all processes call it."""

    def memory(self) -> dict[str, Tensor]:
        """What it has learned besides weights."""
        return {}

    def remember(self, memory: dict[str, Tensor]) -> None:
        """The inverse of `memory`."""
