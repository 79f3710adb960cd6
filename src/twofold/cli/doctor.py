"""`twofold doctor`: what this machine has, what will be used, what is missing and how to get it."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from .. import __version__

OPTIONS = ()
MINIMUM_PYTHON = (3, 11)
LITTLE_DISK, LITTLE_MEMORY = 2 * 2**30, 2 * 2**30  # bytes; below these training is likely to fail
CGROUP_MEMORY = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

NEEDED = {  # package: importable name; the dependencies of pyproject.toml
    "torch": "torch",
    "accelerate": "accelerate",
    "annotated-types": "annotated_types",
    "datasets": "datasets",
    "diffusers": "diffusers",
    "filelock": "filelock",
    "huggingface-hub": "huggingface_hub",
    "jinja2": "jinja2",
    "markupsafe": "markupsafe",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "pillow": "PIL",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "pyyaml": "yaml",
    "rich": "rich",
    "safetensors": "safetensors",
    "scikit-learn": "sklearn",
    "simplejpeg": "simplejpeg",
    "xxhash": "xxhash",
    "transformers": "transformers",
}

EXTRAS = {  # importable name: (what for, extra that brings it)
    "tensorboard": ("TensorBoard event files, train.tensorboard=true", "tensorboard"),
    "onnxruntime": ("twofold export to=onnx", "onnx"),
    "pytest": ("tests and development tools", "dev"),
}

Row = tuple[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", action="store_true", help="also ask whether the model and data hub can be reached")


def run(args: argparse.Namespace) -> int:
    """Prints what it finds as it finds it; exit code 1 where something necessary is missing."""
    missing, warnings = missing_packages(), []
    _print([("twofold", f"{__version__}, Python {platform.python_version()} ({sys.executable})")])
    _print(machine())
    if memory()[0] < LITTLE_MEMORY:
        warnings.append("little memory: use small networks and train.micro_batch")
    folders = {"runs": Path("runs").resolve()}
    if not missing:
        _print(devices())
        folders["data"] = cache_folder()
    for name, path in folders.items():
        free = disk_free(path)
        _print([(f"disk for {name}", f"{_size(free)} free at {path}")])
        if free < LITTLE_DISK:
            warnings.append(f"little room for {name} at {path}")
    _print(extras())
    if args.network:
        reachable, said = hub()
        _print([("hub", said)])
        if not reachable:
            warnings.append("the hub cannot be reached: local data and models still work")
    print()
    if missing:
        print(f"Not ready: {', '.join(missing)} missing. Get it with: pip install {' '.join(missing)}")
        return 1
    print("Ready." if not warnings else "Ready, but: " + "; ".join(warnings) + ".")
    return 0


def _print(rows: list[Row]) -> None:
    for name, text in rows:
        print(f"{name:<16} {text}", flush=True)


def missing_packages() -> list[str]:
    """Packages that twofold needs and that cannot be imported here."""
    missing = [package for package, name in NEEDED.items() if importlib.util.find_spec(name) is None]
    return ["python>=3.11", *missing] if sys.version_info < MINIMUM_PYTHON else missing


def machine() -> list[Row]:
    """Processor, cores that may be used, memory."""
    total, free = memory()
    model, flags = processor()
    fast = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]
    return [
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("processor", f"{model or 'unknown'}; bf16 instructions: {', '.join(fast) or 'none found'}"),
        ("cores", f"{cores()} to use, {os.cpu_count()} in the machine"),
        ("memory", f"{_size(total)}, {_size(free)} of it free"),
    ]


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
    for path in CGROUP_MEMORY:
        for line in _lines(path):
            if line.isdigit():
                total, free = min(total, int(line)), min(free, int(line))
    return total, free


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().split("\n")
    except OSError:
        return []


def devices() -> list[Row]:
    """What torch can compute on, and what will be chosen."""
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA in this build"
    rows = [("torch", f"{torch.__version__} ({built}), {torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        rows.append((f"cuda:{index}", f"{facts.name}, {_size(facts.total_memory)}, {_cuda_precision()}"))
    if torch.backends.mps.is_available():
        rows.append(("mps", "Apple GPU, fp32"))
    cpu_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    on_cpu = "bf16 or fp32, whichever is faster for the network" if cpu_bf16 else "fp32 (no bf16 instructions)"
    rows.append(("cpu", on_cpu))
    used = f"{torch.cuda.device_count()} x cuda, {_cuda_precision()}" if torch.cuda.is_available() else f"cpu, {on_cpu}"
    return [*rows, ("will be used", f"{used}; another one with --device and train.precision")]


def _cuda_precision() -> str:
    import torch

    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16 (no native bf16)"


def cache_folder() -> Path:
    """Where packed data is kept."""
    from ..data import cache_root

    return cache_root()


def disk_free(path: Path) -> int:
    """Free bytes where this path is or would be."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(there).free


def extras() -> list[Row]:
    """Optional packages, and how to get those that are missing."""
    rows = []
    for name, (purpose, extra) in EXTRAS.items():
        if importlib.util.find_spec(name) is None:
            rows.append((name, f"missing ({purpose}): pip install 'twofold[{extra}]'"))
        else:
            rows.append((name, f"{importlib.metadata.version(name)} ({purpose})"))
    return rows


def hub(timeout: float = 5.0) -> tuple[bool, str]:
    """Whether the hub answers. The only thing here that uses the network."""
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout):
            return True, "reachable"
    except urllib.error.HTTPError as error:
        return True, f"reachable (it answers {error.code})"
    except (OSError, ValueError) as error:
        return False, f"not reachable ({getattr(error, 'reason', error)})"


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB"
