"""What this machine has: processor, cores and memory, within the limits that a container sets. No torch here."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CGROUP_MEMORY = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
CGROUP_USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> tuple[str, set[str]]:
    """Name and instruction flags of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor(), set()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    return facts.get("model name", platform.processor()), set(facts.get("flags", facts.get("Features", "")).split())


def memory() -> tuple[int, int]:
    """(all, free) bytes of memory, within the limit that a container sets."""
    pages = {name: os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES") if name in os.sysconf_names}
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = pages.get("SC_PHYS_PAGES", 0) * page, pages.get("SC_AVPHYS_PAGES", 0) * page
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):  # free and what caches would give back
            free = int(line.split()[1]) * 1024
    for path, used in zip(CGROUP_MEMORY, CGROUP_USED, strict=False):
        limit = next((int(line) for line in _lines(path) if line.isdigit()), None)
        if limit is not None and limit < total:  # what the caches of the container hold would be given back too
            taken = next((int(line) for line in _lines(used) if line.isdigit()), 0)
            total, free = limit, min(free, max(limit - taken, 0) + _caches(Path(path).parent))
            free = min(free, limit)
    return total, free


def _caches(folder: Path) -> int:
    """Bytes of files that a container holds in memory and has not used lately."""
    found = (line.split() for line in _lines(str(folder / "memory.stat")))
    return sum(int(row[1]) for row in found if row[:1] == ["inactive_file"])


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().split("\n")
    except OSError:
        return []
