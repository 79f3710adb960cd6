"""Does it fit? What a device has free, what a step or a batch of samples takes, and the settings that would fit.

The counts are those of `estimate` and `footprint`; a tenth is left for what no count knows (an allocator's gaps, the
workspaces of kernels).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import machine
from ..adapters.latent_codec import PIXELS_AT_ONCE, LatentCodec
from ..settings.train import TrainSettings
from .footprint import evaluation_bytes
from .needs import Needs, coding_bytes

SPARE = 1.1
COPIES = 3  # of every layer's output, in a generous look at the layers


@dataclass(frozen=True)
class Fit:
    """Changes of the settings, and the bytes that a step takes with them."""

    changes: tuple[str, ...]
    memory: int


def free_bytes(device: torch.device) -> int | None:
    """Bytes that this process can still take on a device, those it holds unused among them. None: it does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return machine.memory()[1] if device.type == "cpu" else None


def advice(needs: Needs, device: torch.device, free: int | None = None) -> str | None:
    """A line for whoever is about to train: None where it fits, else what is missing and which settings would fit.

    free: bytes; default: those of the device.
    """
    free = free_bytes(device) if free is None else free
    if free is None or _surely_fits(needs, free):
        return None
    need = needs.memory(needs.share)
    if need * SPARE <= free:
        return None
    asked = f"train.micro_batch={needs.share} needs about {gib(need)} and {device} has {gib(free)} free"
    found = next(fits(needs, device, free), None)
    if found is None:
        return f"{asked}; {smaller(needs)}"
    return f"{asked}; {' '.join(found.changes)} would fit ({gib(found.memory)})"


def fits(needs: Needs, device: torch.device, free: int) -> Iterator[Fit]:
    """Settings with which a step fits, those that change least first: smaller parts of a batch, then half precision,
    then checkpointing, then both."""
    kinds: list[tuple[tuple[str, ...], Needs]] = [((), needs)]
    if not needs.half and (device.type == "cuda" or (device.type == "cpu" and _cpu_bf16())):
        kinds.append((("train.precision=bf16",), needs.changed(half=True)))
    if getattr(needs.settings.network, "checkpoint", None) is False:
        kinds += [((*words, "network.checkpoint=true"), some.changed(checkpoint=True)) for words, some in list(kinds)]
    for words, some in kinds:
        size = some.largest(free / SPARE)
        if size:
            yield Fit((f"train.micro_batch={size}", *words), some.memory(size))


def told_beforehand(
    settings: TrainSettings, model: Any, images: int, half: bool, device: torch.device, world: int, codec: Any = None
) -> list[str]:
    """What to tell before the first step of a model that is on its device: nothing where it fits."""
    needs = _needs(settings, model, images, half, device, world, codec)
    free = free_bytes(device)
    line = None if free is None else advice(needs, device, free + 4 * needs.own)
    return [line] if line else []


def would_fit(
    settings: TrainSettings, model: Any, images: int, half: bool, device: torch.device, world: int, codec: Any = None
) -> str | None:
    """After memory ran out with so few images at a time: the settings that would fit, if a count knows any."""
    needs = _needs(settings, model, images, half, device, world, codec)
    free = free_bytes(device)
    if free is None:
        return None
    free += needs.fixed()  # all of it is held now
    if needs.memory(images) * SPARE <= free:  # the count is wrong, or somebody else takes the memory
        return None
    found = next(fits(needs, device, free), None)
    return f"{' '.join(found.changes)} would fit ({gib(found.memory)})" if found else smaller(needs)


def _needs(
    settings: TrainSettings, model: Any, images: int, half: bool, device: torch.device, world: int, codec: Any
) -> Needs:
    needs = Needs(settings, tuple(model.shape), list(model.class_names), world, half, device.type == "cpu", codec)
    needs.share = images
    return needs


def smaller(needs: Needs) -> str:
    """What to say where even one image at a time does not fit."""
    settings = needs.settings
    words = [f"one image at a time needs {gib(needs.memory(1))}"]
    latents = settings.codec is None and max(needs.shape[1:]) >= 64 and settings.objective.kind == "denoising"
    if latents:
        words.append("train latent-128 or latent-256, which denoise latents of an autoencoder")
    size = "x".join(str(side // 2) for side in needs.shape[1:])
    narrower = f"lower data.size ({size}) or network.channels"
    words.append(narrower if settings.codec is None else "narrow the network")
    return ", or ".join([f"{words[0]}: {words[1]}", *words[2:]])


def sampling_bytes(
    network: nn.Module, shape: tuple[int, int, int], images: int, half: bool, cpu: bool, codec: Any = None
) -> int:
    """Bytes of one evaluation of F over so many images, or of decoding them, beside the weights."""
    x, c_noise = torch.zeros(images, *shape, device="meta"), torch.zeros(images, device="meta")
    need = evaluation_bytes(network, (x, c_noise), half=half, cpu=cpu)
    if not isinstance(codec, LatentCodec):
        return need
    size = (shape[1] * codec.stride, shape[2] * codec.stride)
    together = min(images, max(PIXELS_AT_ONCE // (size[0] * size[1]), 1))
    return max(need, coding_bytes(codec, size, together, cpu))


def sampling_advice(
    denoiser: Any,
    micro_batch: int,
    device: torch.device,
    shape: tuple[int, int, int] | None = None,
    *,
    guided: bool = False,
    free: int | None = None,
) -> str | None:
    """A line for whoever is about to sample, or to read features, with a model that is on its device already: None
    where a forward pass of micro_batch images fits, and where it cannot be known.

    shape: of x0, by default the model's. guided: the network sees every image twice, with its label and without.
    """
    network, shape, codec = denoiser.network, shape or tuple(denoiser.shape), getattr(denoiser, "codec", None)
    free = free_bytes(device) if free is None else free
    rows = 2 if guided else 1
    latent = isinstance(codec, LatentCodec)
    if free is None or (not latent and _generous(network, shape) * micro_batch * rows <= free):
        return None
    half, cpu = getattr(denoiser, "autocast", None) is not None, device.type == "cpu"
    sizes = [2**k for k in range(micro_batch.bit_length()) if 2**k < micro_batch]
    try:
        need = sampling_bytes(network, shape, rows * micro_batch, half, cpu, codec)
        if need * SPARE <= free:
            return None
        found = next((n for n in reversed(sizes) if fitting(network, shape, rows * n, half, cpu, codec, free)), 0)
    except (RuntimeError, NotImplementedError, TypeError):  # a network from elsewhere that cannot be counted so
        return None
    asked = f"micro_batch={micro_batch} needs about {gib(need)} and {device} has {gib(free)} free"
    if found:
        return f"{asked}; micro_batch={found} would fit"
    return f"{asked}; not even one image at a time would fit: ask for a smaller size, or use another device"


def fitting(*asked: Any) -> bool:
    """Whether `sampling_bytes` of all but the last fit into the last."""
    return sampling_bytes(*asked[:-1]) * SPARE <= asked[-1]


def _surely_fits(needs: Needs, free: int) -> bool:
    latent = needs.codec is not None
    return not latent and needs.fixed() + _generous(needs.network, needs.shape) * needs.share <= free


def _generous(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Bytes of an image's maps if every layer had as many outputs as the widest, at full resolution."""
    weights = [w for m in network.modules() if isinstance(w := getattr(m, "weight", None), torch.Tensor)]
    widest = max((w.shape[0] for w in weights), default=1)
    return 4.0 * shape[1] * shape[2] * widest * len(weights) * COPIES


def _cpu_bf16() -> bool:
    from .fastest import has_bf16

    return has_bf16()


def gib(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.0f} MiB"
