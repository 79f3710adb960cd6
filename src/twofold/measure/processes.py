"""Work on a list shared among the processes of a torchrun, with the same bits as one process.

The list is cut into the same batches whatever the number of processes; process r of w computes batches r, r + w, ...,
and they are put together in the list's order. Nothing is summed across processes, so nothing depends on how many there
are. Without a process group everything happens here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed

Work = Callable[[slice], Tensor]


def count(share: bool = True) -> tuple[int, int]:
    """(this process, how many there are); (0, 1) for work that is not shared."""
    if share and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def is_first(share: bool = True) -> bool:
    """Whether this process is the one that computes from what was gathered, writes and prints."""
    return count(share)[0] == 0


def batches(n: int, size: int, work: Work, share: bool = True) -> Iterator[Tensor]:
    """work(slice) for each batch of 0..n, in order, in every process: one batch of each process is held at a time.

    work returns (rows, ...) on any device with as many rows as the slice; what is yielded is on the CPU. Every process
    must consume all of it.
    """
    rank, world = count(share)
    parts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    if world == 1:
        for part in parts:
            yield work(part).cpu()
        return
    device = _device()
    like: tuple[Any, ...] | None = None
    for first in range(0, len(parts), world):
        mine = work(parts[first + rank]) if first + rank < len(parts) else None
        if like is None:
            like = _agreed(None if mine is None else (tuple(mine.shape[1:]), mine.dtype))
        sent = torch.zeros((size, *like[0]), dtype=like[1], device=device)
        if mine is not None:
            sent[: len(mine)] = mine
        received = [torch.empty_like(sent) for _ in range(world)]
        distributed.all_gather(received, sent)
        for part, rows in zip(parts[first : first + world], received, strict=False):
            yield rows[: part.stop - part.start].cpu()


def gathered(n: int, size: int, work: Work, share: bool = True) -> Tensor:
    """All of `batches` joined, in every process: (n, ...) on the CPU."""
    joined: Tensor | None = None
    done = 0
    for rows in batches(n, size, work, share):
        if joined is None:
            joined = torch.empty((n, *rows.shape[1:]), dtype=rows.dtype)
        joined[done : done + len(rows)] = rows
        done += len(rows)
    assert joined is not None, "no rows"
    return joined


def agreed(value: Any, share: bool = True) -> Any:
    """The first process's value, in every process."""
    return _agreed(value) if count(share)[1] > 1 else value


def _agreed(value: Any) -> Any:
    box = [value]
    distributed.broadcast_object_list(box, src=0, device=_device())
    return box[0]


def _device() -> torch.device:
    """Where the process group exchanges tensors."""
    nccl = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
