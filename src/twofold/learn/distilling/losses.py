"""What a student's maps s are held against a frozen teacher's maps t with; g(.) is the mean over places.

    hint         distance(g(A s), g(t))             A: a 1x1 convolution to the teacher's channels, one for each pair
    dense        distance(resized(A s), t)          resized bilinearly to the teacher's places
    attention    |a(resized(s)) - a(t)|^2, mean over places,  a(f) = sum_c f_c^2 over its length  (Zagoruyko 2017)
    rkd          distances and angles within the batch, of g(s) and g(t)                          (Park et al. 2019)
    contrastive  -log softmax_j(cos(g(A s_i), g(t_j)) / temperature) at j = i                     (Tian et al. 2020)

    distances    l2, l1: mean of squared, absolute differences; l2_norm: l2 of unit vectors; cosine: 1 - cos

RepFusion (Yang and Wang 2023) pools its hint; its published cosine had the wrong sign, its unknown names no effect.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...settings.imitation import LossSettings
from .relations import relational

ADAPTED = ("hint", "dense", "contrastive")  # kinds that see the student through adapters


class Losses(nn.Module):
    """The weighted losses of these settings over layer pairs.

    pairs: (channels of the teacher's map, of the student's), for each pair. adapters: a 1x1 convolution for each pair,
    none where no loss uses them. They are trained with the student, and not needed afterwards.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]], settings: Sequence[LossSettings]) -> None:
        super().__init__()
        self.settings = tuple(settings)
        adapted = pairs if any(loss.kind in ADAPTED for loss in settings) else ()
        self.adapters = nn.ModuleList(nn.Conv2d(mine, theirs, 1) for theirs, mine in adapted)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], pair: Tensor | None = None) -> Tensor:
        """(B,) float32 or better: the sum over losses, with their weights, of the mean over layer pairs.

        student, teacher: maps (B, S, h, w) and (B, T, h', w') of each pair, the second without gradient.
        pair: (B,) which pair counts for each image; None: all of them. A loss that is about a batch (rkd) is every
        image's.
        """
        if pair is None:
            found = [self.of_pair(i, s, t) for i, (s, t) in enumerate(zip(student, teacher, strict=True))]
            return torch.stack(found).mean(0)
        total = torch.zeros(len(pair), device=student[0].device, dtype=_at_least_single(student[0]))
        for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
            at = (pair == i).nonzero()[:, 0].to(s.device)
            total = total.index_add(0, at, self.of_pair(i, s[at], t[at]))
        return total

    def of_pair(self, index: int, student: Tensor, teacher: Tensor) -> Tensor:
        """(n,): the losses of one layer pair."""
        student, teacher = student.to(_at_least_single(student)), teacher.detach()
        teacher = teacher.to(student.dtype)
        adapter = self.adapters[index] if len(self.adapters) else None
        total = student.new_zeros(len(student))
        for settings in self.settings:
            total = total + settings.weight * _loss(settings, adapter, student, teacher)
        return total


def _at_least_single(maps: Tensor) -> torch.dtype:
    return torch.promote_types(maps.dtype, torch.float32)


def _loss(settings: LossSettings, adapter: nn.Module | None, student: Tensor, teacher: Tensor) -> Tensor:
    match settings.kind:
        case "dense":
            return distance(settings.distance, dense(adapter, student, teacher.shape[2:]), teacher)
        case "attention":
            return attention_transfer(student, teacher)
        case "rkd":
            loss = relational(pooled(student), pooled(teacher), settings.distance, settings.angle)
            return loss.expand(len(student))
    assert adapter is not None
    mine = pooled(adapter(student.mean((2, 3), keepdim=True)))  # linear: pooled first it is the same, and cheaper
    if settings.kind == "contrastive":
        return info_nce(mine, pooled(teacher), settings.temperature)
    return distance(settings.distance, mine, pooled(teacher))


def pooled(maps: Tensor) -> Tensor:
    """(B, D): means over places."""
    return maps.mean((2, 3))


def distance(kind: str, mine: Tensor, theirs: Tensor) -> Tensor:
    """(B,) distance of features (B, D) or maps (B, D, h, w), whose vectors are those of places."""
    if kind == "cosine":
        found = 1 - functional.cosine_similarity(mine, theirs, dim=1)[:, None]
    elif kind == "l1":
        found = (mine - theirs).abs()
    elif kind == "l2_norm":
        found = (functional.normalize(mine, dim=1) - functional.normalize(theirs, dim=1)).square()
    else:
        found = (mine - theirs).square()
    return found.flatten(1).mean(1)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, D, *size), bilinearly."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def dense(adapter: nn.Module | None, student: Tensor, size: Sequence[int]) -> Tensor:
    """The student's map as the teacher's; adapting and resizing exchange, so the smaller map is adapted."""
    assert adapter is not None
    if student.shape[2] * student.shape[3] > size[0] * size[1]:
        adapted: Tensor = adapter(resized(student, size))
        return adapted
    return resized(adapter(student), size)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """(B,) mean squared difference of attention maps, at the teacher's places."""
    return (attention_map(resized(student, teacher.shape[2:])) - attention_map(teacher)).square().mean(1)


def attention_map(maps: Tensor, eps: float = 1e-6) -> Tensor:
    """(B, h * w): sums of squares over channels, over the length of that map (plus eps, as published)."""
    found = maps.square().sum(1).flatten(1)
    return found / (found.norm(dim=1, keepdim=True) + eps)


def info_nce(mine: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """(B,) cross-entropy of finding each image's own among the batch's features (B, D), by cosine / temperature."""
    logits = functional.normalize(mine, dim=1) @ functional.normalize(theirs, dim=1).T / temperature
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
