"""Which number format a device computes this network fastest in."""

from __future__ import annotations

import time

import torch
from torch import nn

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose(model: nn.Module, shape: tuple[int, int, int], device: torch.device) -> str:
    """`bf16`, `fp16` or `fp32`.

    On CUDA by what the card computes natively. On a CPU with bf16 instructions by timing a few training steps of
    both: small networks are slower in bf16 there. Exactness depends on the choice, so a run stores it.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type != "cpu" or not has_bf16():
        return "fp32"
    seconds = {name: _time(model, shape, device, DTYPES[name]) for name in ("fp32", "bf16")}
    return "bf16" if seconds["bf16"] < 0.95 * seconds["fp32"] else "fp32"


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (avx512_bf16 or amx_bf16)."""
    capabilities = torch.backends.cpu.get_cpu_capability(), torch.cpu._is_avx512_bf16_supported()
    return bool(capabilities[1]) or bool(torch.cpu._is_amx_tile_supported())


def _time(model: nn.Module, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype | None) -> float:
    x = torch.zeros(16, *shape, device=device)
    network: nn.Module = model.network  # type: ignore[assignment]
    c_noise = torch.zeros(16, device=device)
    best = float("inf")
    for _ in range(4):  # the first call also sets up kernels; the best of the others counts
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            network(x, c_noise).float().square().mean().backward()
        best = min(best, time.perf_counter() - start)
    network.zero_grad(set_to_none=True)
    return best
