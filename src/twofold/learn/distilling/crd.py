"""Contrastive representation distillation (Tian et al. 2020): an image's two embeddings among those of other images.

    s, t   unit vectors: linear embeddings of the student's and the teacher's pooled features, both learned
    h(a)   e^a / (e^a + N c),   a = product / temperature       N negatives; c: mean of e^a over negatives, at first
    loss   -log h(s . t) - sum over negatives of log(1 - h(s . t_j)),   and the same with s and t exchanged

Their eq. 19 with their normalisation, which their code keeps from the first step on; the number of images cancels out.
Negatives come from a memory of every image seen, which follows by momentum; those of its own label, and the image
itself, are none. The positive is the other network's embedding of the same view, without gradient (theirs is the
memory's). A part of a step shares its negatives, so a product of matrices finds all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate.utils import gather_object
from torch import Tensor, distributed, nn
from torch.nn import functional

from ...settings.kd import CRDLoss


@dataclass
class Seen:
    """Embeddings of a part of a step: rows (B,), label (B,), student and teacher (B, D), all on the CPU."""

    rows: Tensor
    label: Tensor
    student: Tensor
    teacher: Tensor

    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.rows, self.label, self.student, self.teacher


class CRD(nn.Module):
    """forward(student's pooled features (B, S), teacher's (B, T), ...) -> (B,) losses.

    Around every step `begin` and, once it was taken, `observe` keep its memory, which `memory` gives to the training
    state.
    """

    def __init__(self, teacher: int, student: int, settings: CRDLoss) -> None:
        super().__init__()
        self.settings = settings
        self.student, self.teacher = (nn.Linear(width, settings.channels) for width in (student, teacher))
        empty = torch.zeros(0, dtype=torch.int64)
        self.bank = Seen(empty, empty, torch.zeros(0, settings.channels), torch.zeros(0, settings.channels))
        self._places: dict[int, int] = {}  # {row: place in the bank}
        self.log_mean = torch.full((2,), torch.nan, dtype=torch.float64)  # ln c of both directions
        self._told: list[tuple[Seen, Tensor]] = []  # of this step's parts

    def forward(self, student: Tensor, teacher: Tensor, rows: Tensor, label: Tensor, u: Tensor) -> Tensor:
        """rows: (B,) which images they are. label: (B,), -1 = none. u: (B,) float64 in [0, 1), draws negatives."""
        mine = functional.normalize(self.student(student), dim=1)
        theirs = functional.normalize(self.teacher(teacher.detach()), dim=1)
        seen = Seen(*(part.detach().cpu() for part in (rows, label, mine, theirs)))
        other = self._negatives(seen, u)
        allowed = (other.rows != seen.rows[:, None]) & (
            (other.label != seen.label[:, None]) | (seen.label < 0)[:, None]
        )
        allowed = allowed.to(mine.device)
        loss, means = mine.new_zeros(len(mine)), []
        for i, (a, b, memory) in enumerate(((mine, theirs, other.teacher), (theirs, mine, other.student))):
            positive = (a * b.detach()).sum(1) / self.settings.temperature
            negative = a @ memory.to(a).T / self.settings.temperature
            mean = _log_mean(negative.detach(), allowed)
            means.append(mean.double().cpu())
            known = not bool(self.log_mean[i].isnan())
            loss = loss + contrast(positive, negative, allowed, self.log_mean[i].to(mean) if known else mean)
        self._told.append((seen, torch.stack(means)))
        return loss

    def _negatives(self, seen: Seen, u: Tensor) -> Seen:
        """Of the memory; in the first step, when there is none, of the batch."""
        size, most = len(self.bank.rows), self.settings.negatives
        if not size:
            return seen
        if size <= most:
            return self.bank
        generator = torch.Generator().manual_seed(int(float(u[0]) * 2**53))
        at = torch.randint(size, (most,), generator=generator)
        return Seen(*(part[at] for part in self.bank.fields()))

    def begin(self) -> None:
        """Before every step: forgets what an attempt that failed has left."""
        self._told.clear()

    def observe(self, count: int) -> None:
        """After a step was taken, of `count` images on this process: the memory follows, on all processes alike."""
        parts: list[tuple[Seen, Tensor]] = []
        while self._told and sum(len(seen.rows) for seen, _ in parts) < count:
            parts.insert(0, self._told.pop())
        self._told.clear()
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            parts = gather_object(parts)
        if bool(self.log_mean.isnan().any()) and parts:
            self.log_mean = torch.stack([mean for _, mean in parts]).exp().mean(0).log()
        for seen, _ in parts:
            self._follow(seen)

    def _follow(self, seen: Seen) -> None:
        new = [i for i, row in enumerate(seen.rows.tolist()) if row not in self._places]
        fresh: dict[int, int] = {int(seen.rows[i]): i for i in new}
        self._places.update({row: len(self._places) + n for n, row in enumerate(fresh)})
        added = list(fresh.values())
        if added:
            joined = (
                torch.cat([old, part[added]]) for old, part in zip(self.bank.fields(), seen.fields(), strict=True)
            )
            self.bank = Seen(*joined)
        at = torch.tensor([self._places[row] for row in seen.rows.tolist()])
        for memory, now in ((self.bank.student, seen.student), (self.bank.teacher, seen.teacher)):
            memory[at] = functional.normalize(torch.lerp(now, memory[at], self.settings.momentum), dim=1)

    def memory(self) -> dict[str, Tensor]:
        """What it has learned besides weights."""
        names = ("rows", "label", "student", "teacher")
        kept = dict(zip(names, self.bank.fields(), strict=True))
        return {**{f"crd.{name}": part.clone() for name, part in kept.items()}, "crd.log_mean": self.log_mean.clone()}

    def remember(self, memory: dict[str, Tensor]) -> None:
        """The inverse of `memory`."""
        self.bank = Seen(*(memory[f"crd.{name}"].cpu().clone() for name in ("rows", "label", "student", "teacher")))
        self._places = {row: place for place, row in enumerate(self.bank.rows.tolist())}
        self.log_mean = memory["crd.log_mean"].cpu().clone()


def contrast(positive: Tensor, negative: Tensor, allowed: Tensor, log_mean: Tensor) -> Tensor:
    """(B,) losses of products over temperature: positive (B,), negative (B, N), of which the allowed ones (B, N) count.

    log_mean: () ln c. 0 for an image without negatives.
    """
    count = allowed.sum(1)
    level = count.clamp(min=1).to(positive).log() + log_mean
    right = positive - torch.logaddexp(positive, level)
    wrong = (level[:, None] - torch.logaddexp(negative, level[:, None])) * allowed
    return -(right + wrong.sum(1)) * (count > 0)


def _log_mean(negative: Tensor, allowed: Tensor) -> Tensor:
    """() ln of the mean of e^a over what is allowed; 0 where nothing is."""
    count = allowed.sum()
    found = negative.masked_fill(~allowed, -torch.inf).flatten().logsumexp(0) - count.clamp(min=1).to(negative).log()
    return torch.where(count > 0, found, 0.0)
