"""What a training run will need, before it is started: parameters, memory, FLOPs and time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from ..adapters.latent_codec import LatentCodec
from ..data.latents import moments_bytes
from ..run import build
from ..settings.train import TrainSettings
from .distilling.cost import TeacherCost, opened, teacher_cost
from .fastest import precision
from .needs import Needs, forward, images_besides, seen

SOME = 8  # images that operations are counted with


@dataclass(frozen=True)
class Estimate:
    """parameters, and how many of them train; memory in bytes; flops of the whole run; seconds, None where the device
    was not measured. kept: bytes of latents that are kept for each training image. needs: for other batches."""

    parameters: int
    trained: int
    memory: int
    flops: float
    seconds: float | None
    kept: int = 0
    needs: Needs | None = None


def estimate(
    settings: TrainSettings,
    shape: tuple[int, int, int],
    classes: list[str],
    world: int = 1,
    flops_per_second: float = 0,
    codec: LatentCodec | None = None,
    images: int | None = None,
    teacher: bool = True,
    device: torch.device | None = None,
) -> Estimate:
    """Counted on the meta device: no weights are made. Memory is that of the fullest moment of a step (see `Needs`).

    shape: of x0. codec: of a latent model, whose weights and (where every step encodes) maps take memory too.
    images: in the training part, None = not known. teacher: whether that of a distillation is opened and counted.
    device: where it would run, a CPU by default: decides precision and what kernels keep.
    """
    device = device or torch.device("cpu")
    needs = needs_of(settings, shape, classes, world, device, codec)
    network = needs.network
    if settings.lora is not None:  # products of low rank do not count
        with torch.device("meta"):
            network = build(settings, shape, classes).network
    count, trained = needs.own, needs.trained
    # a backward pass costs two forward passes; frozen layers, about their share of the weights, have none
    passes = 1.0 + 2.0 * trained / count
    if settings.lora is not None:  # the backward pass goes through every layer, and each has its sum of weights
        passes = 3.0
    if getattr(settings.network, "checkpoint", False):  # what was not kept is computed anew
        passes += 1.0
    taught = TeacherCost()
    if teacher and settings.objective.kind in ("distill", "kd"):
        taught = teacher_cost(opened(settings, shape, classes), settings, shape, images)
    needs.besides += taught.memory
    forward_flops = _forward_flops(network, seen(settings, shape), images_besides(settings))
    flops = passes * forward_flops * settings.train.n_images + taught.flops
    kept = 0
    if codec is not None and settings.codec is not None:
        views = 2 if (settings.data.flip if settings.codec.mirror is None else settings.codec.mirror) else 1
        kept = views * moments_bytes((2 * shape[0], *shape[1:])) if settings.codec.store else 0
    seconds = flops / flops_per_second if flops_per_second else None
    return Estimate(count, trained, needs.memory(needs.share), flops, seconds, kept, needs)


def needs_of(
    settings: TrainSettings,
    shape: tuple[int, int, int],
    classes: list[str],
    world: int,
    device: torch.device,
    codec: LatentCodec | None = None,
) -> Needs:
    """What a step takes on this device, in the precision that it would be trained in there."""
    needs = Needs(settings, shape, classes, world, False, device.type == "cpu", codec)
    chosen = settings.train.precision
    needs.half = (precision(needs.model, shape, device) if chosen == "auto" else chosen) != "fp32"
    return needs


def _forward_flops(network: nn.Module, shape: tuple[int, int, int], besides: float = 0.0) -> int:
    """FLOPs of one image."""
    from torch.utils.flop_counter import FlopCounterMode  # takes a second

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(network, shape, SOME, besides)()
    return counter.get_total_flops() // SOME


def measure_flops_per_second(device: torch.device, dtype: torch.dtype = torch.float32, seconds: float = 0.3) -> float:
    """Sustained FLOP/s of a convolution like those of the networks, in about `seconds`."""
    layer = nn.Conv2d(128, 128, 3, padding=1, device=device, dtype=dtype)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(16, 128, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    flops = 2 * 16 * 32 * 32 * 128 * 128 * 9
    done, start = 0, time.perf_counter()
    with torch.no_grad():
        layer(x)
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            layer(x)
            done += 1
            if device.type == "cuda":
                torch.cuda.synchronize()
    return flops * done / (time.perf_counter() - start)
