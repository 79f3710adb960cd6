"""`twofold doctor`: what this machine has, what will be used, what is missing and how to get it."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from .. import __version__
from ..machine import cores, memory, processor

OPTIONS = ()
MINIMUM_PYTHON = (3, 11)
LITTLE_DISK, LITTLE_MEMORY = 2 * 2**30, 2 * 2**30  # bytes; below these training is likely to fail

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
    "fastapi": ("twofold serve", "serve"),
    "pytest": ("tests and development tools", "dev"),
}

Row = tuple[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", action="store_true", help="also ask whether the model and data hub can be reached")
    parser.add_argument("--fits", action="store_true", help="also count what fits on this device; takes some seconds")
    parser.add_argument("--json", action="store_true", help="print the same as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Prints what it finds as it finds it; exit code 1 where something necessary is missing."""
    missing, warnings = missing_packages(), []
    found: dict[str, str] = {}

    def _print(rows: list[Row]) -> None:
        found.update(rows)
        for name, text in () if args.json else rows:
            print(f"{name:<16} {text}", flush=True)

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
    if args.fits and not missing:
        _print(what_fits())
    verdict = "Ready." if not warnings else "Ready, but: " + "; ".join(warnings) + "."
    if missing:
        verdict = f"Not ready: {', '.join(missing)} missing. Get it with: pip install {' '.join(missing)}"
    if args.json:
        print(json.dumps({"ready": not missing, "verdict": verdict, "missing": missing, "found": found}, indent=2))
    else:
        print(f"\n{verdict}")
    return int(bool(missing))


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


FITS = ("images-32", "images-64", "latent-256")


def what_fits(free: int | None = None) -> list[Row]:
    """The largest micro-batch of some presets on the device that would be used. free: its bytes; default: as found."""
    from ..learn.room import free_bytes, gib
    from ..learn.training import check_device

    device = check_device(None)
    free = free_bytes(device) if free is None else free
    if free is None:
        return [("fits", f"{device} does not say how much memory is free")]
    rows = [("fits", f"counted, with {gib(free)} free on {device}; `twofold train PRESET --dry-run` says it for yours")]
    return [*rows, *((name, _largest(name, device, free)) for name in FITS)]


def _largest(name: str, device: Any, free: int) -> str:
    """What is said of one preset."""
    from ..learn.estimate import needs_of
    from ..learn.room import SPARE, gib
    from ..settings.presets import open_preset
    from ..settings.resolve import resolve
    from ..settings.train import TrainSettings

    layers = [*open_preset(name).layers, ("doctor", {"data": {"source": "digits"}, "network": {"classes": 0}})]
    settings, _ = resolve(TrainSettings, layers)
    assert settings.data.size is not None
    height, width = settings.data.size
    shape = (3, height, width) if settings.codec is None else (4, height // 8, width // 8)
    needs = needs_of(settings, shape, [], 1, device, kl_f8((height, width)) if settings.codec else None)
    size = needs.largest(free / SPARE)
    if not size:
        return f"not even one image at a time ({gib(needs.memory(1))})"
    least = "all of" if size == needs.whole else f"train.micro_batch={size} of"
    return f"{least} the {needs.whole} images of a step ({gib(needs.memory(size))})"


def kl_f8(size: tuple[int, int]) -> Any:
    """The autoencoder of Stable Diffusion without its weights, for images of this size."""
    import torch
    from diffusers import AutoencoderKL

    from ..adapters.latent_codec import LatentCodec
    from ..networks.autoencoder import kl_options
    from ..settings.network import AutoencoderSettings

    with torch.device("meta"):
        return LatentCodec(AutoencoderKL(**kl_options(AutoencoderSettings(), 3)), size)


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
