"""The buffers of a network, such as a batch norm's running statistics: what a forward pass changes besides its result.

They belong to the training state as the weights do, so a pass that is no step (one that measures time or memory, or a
step that is not taken) must leave them as they were, and processes that train together must hold the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn


def kept(network: nn.Module) -> Callable[[], None]:
    """Keeps the buffers as they are now. Returns what puts them back."""
    buffers = list(network.buffers())
    before = [buffer.clone() for buffer in buffers]

    def put_back() -> None:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)

    return put_back


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Whatever runs within the block, afterwards the buffers are as they were."""
    put_back = kept(network)
    try:
        yield
    finally:
        put_back()


@torch.no_grad()
def agree_on_buffers(network: nn.Module, world: int) -> None:
    """Each floating-point buffer becomes its mean over all processes; to be called by every one of them."""
    found: list[Tensor] = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if world == 1 or not found:
        return
    flat = torch.cat([buffer.flatten().double() for buffer in found])
    distributed.all_reduce(flat)
    for buffer, mean in zip(found, (flat / world).split([buffer.numel() for buffer in found]), strict=True):
        buffer.copy_(mean.view_as(buffer))
