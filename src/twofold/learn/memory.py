"""Running out of memory: how it is recognised, and what is given back before a step is tried again."""

from __future__ import annotations

import gc

import torch

# what allocators say that have no exception of their own: CPU, MPS, cuBLAS and cuDNN
SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is the error of an allocator; smaller parts of a batch may pass then."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def release(device: torch.device) -> None:
    """Gives back what nobody holds any more. Not to be called while the exception is: its frames hold activations."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
