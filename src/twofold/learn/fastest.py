"""What this device computes this network fastest with: number format and, on a CPU, threads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .buffers import untouched

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
WIDE = 1.5e8  # FLOPs of a forward pass per image from which bf16 pays on a CPU that multiplies it
SMALL = 5e10  # FLOPs of a training step (about half a second of one core) up to which threads are worth measuring
SHARED = 1e9  # FLOPs of a single call (about 10 ms of one core) from which threads share it
WORTH = 1.75  # times faster that all threads must be than one: less is soon lost when somebody else uses a core


def precision(model: nn.Module, shape: tuple[int, int, int], device: torch.device) -> str:
    """`bf16`, `fp16` or `fp32`.

    On CUDA by what the card computes natively. On a CPU with bf16 instructions by the network's size, and not by a
    clock: the same command must give the same images whatever else the machine does. Measured there, fp32 over bf16:
    0.83 at 0.01 GFLOP per image, 1.1 to 1.5 at 0.17, 1.6 at 2.7 (training; sampling alike).
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type != "cpu" or not has_bf16():
        return "fp32"
    return "bf16" if step_flops(model, shape) / 3 >= WIDE else "fp32"


def threads(model: nn.Module, shape: tuple[int, int, int], batch: int, dtype: torch.dtype | None) -> int:
    """CPU threads for training steps of `batch` images: all of torch's, or one where they are hardly faster.

    A small network spends its step on starting and joining threads. On a quiet machine two may take 60 ms where one
    takes 95; with other work on the cores they took 380, because they wait for each other, and one took 130.
    """
    most = torch.get_num_threads()
    device = torch.device("cpu")
    if most == 1 or step_flops(model, shape) * batch > SMALL:
        return most
    seconds = {}
    for count in (most, 1):
        with _threads(count):
            seconds[count] = step_seconds(model, shape, device, batch, dtype)
    return most if seconds[1] > WORTH * seconds[most] else 1


@contextmanager
def threads_for(flops: float) -> Iterator[None]:
    """Within the block: one CPU thread where calls of so many FLOPs are too small to share out, else all of torch's.

    Fitting 78 heads on 2,516 x 64 features took 10 s of one thread, and 36 s of two that waited for each other.
    """
    with _threads(torch.get_num_threads() if flops >= SHARED else 1):
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (avx512_bf16 or amx_bf16)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def step_flops(model: nn.Module, shape: tuple[int, int, int]) -> float:
    """FLOPs of a training step per image (2 per multiply-add; a backward pass costs two forward passes).

    Convolutions and matrix products of its layers only, which is near enough to tell small from large networks;
    torch's own counter (see `estimate`) takes a second to import, and this runs before the first sample is shown.
    """
    network: nn.Module = model.network  # type: ignore[assignment]
    flops = 0.0

    def count(module: nn.Module, args: object, output: torch.Tensor) -> None:
        nonlocal flops
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        flops += 2.0 * output.numel() * weight[0].numel()

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    device = next(model.parameters()).device
    try:
        with torch.no_grad(), untouched(network):
            network(torch.zeros(1, *shape, device=device), torch.zeros(1, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return 3.0 * flops


def step_seconds(
    model: nn.Module,
    shape: tuple[int, int, int],
    device: torch.device,
    batch: int,
    dtype: torch.dtype | None,
    times: int = 4,
) -> float:
    """Seconds of a forward and backward pass (a forward pass alone for a model without gradients, which will only be
    sampled); the best of `times`, the first of which also sets up kernels."""
    network: nn.Module = model.network  # type: ignore[assignment]
    trains = any(p.requires_grad for p in network.parameters())
    x, c_noise = torch.zeros(batch, *shape, device=device), torch.zeros(batch, device=device)
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        with (
            untouched(network),
            torch.set_grad_enabled(trains),
            torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
        ):
            found = network(x, c_noise)
            answers = found if isinstance(found, list) else [found]  # auxiliary heads answer too
            loss = torch.stack([answer.float().square().mean() for answer in answers]).sum()
            if trains:
                loss.backward()
        best = min(best, time.perf_counter() - start)
    network.zero_grad(set_to_none=True)
    return best
