"""Attention feature distillation (Ji et al. 2021): every teacher layer is followed by the student layers that suit it.

    share(t, s) = softmax over s of (q_t W_t k_s + p_t p_s) / sqrt(d)        q, k: of pooled maps; p: of layers
    loss        = sum over t, s of share(t, s) |a(resized(f_s)) - a(f_t)|^2, mean over places

a(f) is the mean of squares over channels, made a unit vector; student maps are averaged to the teacher's places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .losses import pooled


class AFD(nn.Module):
    """forward(student maps, teacher maps) -> (B,) losses; teacher, student: their channels. channels: of q and k."""

    def __init__(self, teacher: Sequence[int], student: Sequence[int], channels: int) -> None:
        super().__init__()
        self.query = nn.ModuleList(nn.Linear(width, channels) for width in teacher)
        self.key = nn.ModuleList(nn.Linear(width, channels) for width in student)
        self.between = nn.Parameter(torch.randn(len(teacher), channels, channels) / channels**0.5)
        self.teacher = nn.Parameter(torch.randn(len(teacher), channels) / channels**0.5)
        self.student = nn.Parameter(torch.randn(len(student), channels) / channels**0.5)

    def shares(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """(B, teacher layers, student layers), which sum to 1 over the latter."""
        query = torch.stack([layer(pooled(f)).relu() for layer, f in zip(self.query, teacher, strict=True)], 1)
        key = torch.stack([layer(pooled(f)).relu() for layer, f in zip(self.key, student, strict=True)], 1)
        logits = torch.einsum("btd,tde,bse->bts", query, self.between, key) + self.teacher @ self.student.T
        return (logits / query.shape[2] ** 0.5).softmax(2)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """(B,), of maps (B, D, h, w); without gradient to the teacher's."""
        student = [f.to(self.between.dtype) for f in student]
        teacher = [f.detach().to(self.between.dtype) for f in teacher]
        off = [torch.stack([_difference(mine, theirs) for mine in student], 1) for theirs in teacher]
        return (self.shares(student, teacher) * torch.stack(off, 1)).sum((1, 2))


def _difference(mine: Tensor, theirs: Tensor) -> Tensor:
    """(B,) mean squared difference of where two maps are large, at the teacher's places."""
    found = functional.adaptive_avg_pool2d(mine.square().mean(1, keepdim=True), (theirs.shape[2], theirs.shape[3]))
    return (_unit(found) - _unit(theirs.square().mean(1, keepdim=True))).square().mean(1)


def _unit(maps: Tensor) -> Tensor:
    return functional.normalize(maps.flatten(1), dim=1)
