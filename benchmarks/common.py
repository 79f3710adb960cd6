"""What the benchmarks share: alternating measurement, machine facts, one JSON line per result."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    flags = {name for name in ("avx512f", "avx512_bf16", "amx_bf16") if name in _cpu_flags()}
    return {
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores, {' '.join(sorted(flags)) or 'no wide vectors'}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }


def _cpu_flags() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return ""


def alternate(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender, A B A B ..., after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], ours: str, theirs: str) -> dict[str, float]:
    """How many times faster ours is: the median over rounds of their time by ours, with the extremes."""
    each = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    return {"ratio": round(statistics.median(each), 3), "least": round(min(each), 3), "most": round(max(each), 3)}


def report(name: str, **values: Any) -> None:
    """One JSON line with the command and the machine."""
    command = "python " + " ".join([os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    print(json.dumps({"benchmark": name, "command": command, **values, "machine": machine()}), flush=True)
