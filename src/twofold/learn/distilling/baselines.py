"""What a reward is held against, so that it says which choices are better than usual.

none      0 (published): rewards are below 0, so every choice that was made becomes less likely
batch     the mean reward of the other rewarded images of the batch
running   the mean of earlier steps, decaying
bin       the same for each noise level by itself: it takes out what a level is worth on average and leaves which
          images it suits
"""

from __future__ import annotations

import torch
from accelerate.utils import gather_object
from torch import Tensor, distributed


def others_mean(reward: Tensor, known: Tensor) -> Tensor:
    """(B,) mean reward of the other images that have one; 0 where there is none. known: (B,) bool."""
    kept = reward * known
    count = known.sum() - known.to(reward)
    return (kept.sum() - kept) / count.clamp(min=1) * (count > 0)


class Running:
    """Means of a step's sums over all its images and processes: the plain mean at first, decaying later."""

    def __init__(self, size: int, decay: float) -> None:
        self.decay = decay
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.steps = torch.zeros(size, dtype=torch.float64)  # that have told something of each entry

    def take_in(self, sums: Tensor, counts: Tensor) -> None:
        """sums, counts: (size,) of one step; entries of which nothing was told stay as they are."""
        told = counts > 0
        self.steps += told
        share = torch.maximum(1 / self.steps.clamp(min=1), torch.tensor(1 - self.decay, dtype=torch.float64))
        new = self.mean + share * (sums / counts.clamp(min=1) - self.mean)
        self.mean = torch.where(told, new, self.mean)

    @property
    def known(self) -> Tensor:
        """(size,) bool: whether anything was ever told of an entry."""
        return self.steps > 0

    def memory(self, name: str) -> dict[str, Tensor]:
        """What a training state keeps of it."""
        return {f"{name}.mean": self.mean.clone(), f"{name}.steps": self.steps.clone()}

    def remember(self, memory: dict[str, Tensor], name: str) -> None:
        """The inverse of `memory`."""
        self.mean, self.steps = memory[f"{name}.mean"].cpu().clone(), memory[f"{name}.steps"].cpu().clone()


def several() -> bool:
    """Whether other processes train with this one."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def everyones(images: Tensor, bins: Tensor) -> tuple[tuple[Tensor, Tensor], int]:
    """These of all processes, one behind the other, and where those of this one begin; all have equally many."""
    if not several():
        return (images, bins), 0
    parts = gather_object([(images.cpu(), bins.cpu())])
    joined = torch.cat([part[0] for part in parts]).to(images.device), torch.cat([part[1] for part in parts])
    return joined, first_of_mine(len(joined[1]))


def first_of_mine(count: int) -> int:
    """Where this process's share of so many begins."""
    return distributed.get_rank() * (count // distributed.get_world_size()) if several() else 0


def summed(found: Tensor) -> Tensor:
    """The sum of this tensor over all processes."""
    if not several():
        return found
    return torch.stack(gather_object([found])).sum(0)
