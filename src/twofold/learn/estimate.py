"""What a training run will need, before it is started: parameters, memory, FLOPs and time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..adapters.latent_codec import PIXELS_AT_ONCE, LatentCodec
from ..data.latents import moments_bytes
from ..run import build
from ..settings.train import Joint, TrainSettings
from .distilling.cost import TeacherCost, opened, teacher_cost
from .lora import adapt, parameters

BYTES_PER_PARAMETER = 4 * 5  # weight, gradient, two Adam moments, average; all float32
SOME = 8  # images that costs are counted with
FROZEN_BYTES = 4  # the weight alone
MAPS_AT_ONCE = 3  # of a block without gradients: its input, its output and one between


@dataclass(frozen=True)
class Estimate:
    """parameters, and how many of them train; memory in bytes; flops of the whole run; seconds, None where the device
    was not measured. kept: bytes of latents that are kept for each training image."""

    parameters: int
    trained: int
    memory: int
    flops: float
    seconds: float | None
    kept: int = 0


def estimate(
    settings: TrainSettings,
    shape: tuple[int, int, int],
    classes: list[str],
    world: int = 1,
    flops_per_second: float = 0,
    codec: LatentCodec | None = None,
    images: int | None = None,
    teacher: bool = True,
) -> Estimate:
    """Counted on the meta device: no weights are made. Memory is weights, optimiser and saved activations.

    shape: of x0. codec: of a latent model, whose weights and (where every step encodes) maps take memory too.
    images: in the training part, None = not known. teacher: whether that of a distillation is opened and counted.
    """
    with torch.device("meta"):
        model = build(settings, shape, classes)
    network = model.network
    share = settings.train.micro_batch or settings.train.batch_size // world
    half = settings.train.precision in ("bf16", "fp16")
    forward, saved = _forward_cost(network, shape, _images_besides(settings))
    count, trained = parameters(network)
    # a backward pass costs two forward passes; frozen layers, about their share of the weights, have none
    passes = 1.0 + 2.0 * trained / count
    frozen = (count - trained) * FROZEN_BYTES
    if settings.lora is not None:  # the backward pass goes through every layer, and each has its sum of weights
        adapt(network, settings.lora, 0)
        passes, trained, frozen = 3.0, parameters(network)[1], 2 * count * FROZEN_BYTES
    if getattr(settings.network, "checkpoint", False):  # what was not kept is computed anew
        passes += 1.0
    taught = TeacherCost()
    if teacher and settings.objective.kind in ("distill", "kd"):
        taught = teacher_cost(opened(settings, shape, classes), settings, shape, images)
    flops = passes * forward * settings.train.n_images + taught.flops
    memory = taught.memory + trained * BYTES_PER_PARAMETER + frozen + saved * share // (2 if half else 1)
    kept = 0
    if codec is not None and settings.codec is not None:
        memory += _codec_memory(codec, share, settings.codec.store)
        views = 2 if (settings.data.flip if settings.codec.mirror is None else settings.codec.mirror) else 1
        kept = views * moments_bytes((2 * shape[0], *shape[1:])) if settings.codec.store else 0
    return Estimate(count, trained, memory, flops, flops / flops_per_second if flops_per_second else None, kept)


def _codec_memory(codec: LatentCodec, share: int, stored: bool) -> int:
    """Bytes of its weights, and of the largest maps of an encoder that runs in every step."""
    weights = FROZEN_BYTES * sum(p.numel() for p in codec.parameters())
    if stored or codec.size is None:
        return weights
    pixels = min(share * codec.size[0] * codec.size[1], max(PIXELS_AT_ONCE, codec.size[0] * codec.size[1]))
    widest: int = codec.vae.config.block_out_channels[0]
    return weights + MAPS_AT_ONCE * FROZEN_BYTES * widest * pixels


def _forward_cost(network: nn.Module, shape: tuple[int, int, int], besides: float = 0.0) -> tuple[int, int]:
    """(FLOPs, bytes saved for the backward pass) of one image."""
    many = SOME + round(SOME * besides)
    x, c_noise = torch.zeros(many, *shape, device="meta"), torch.zeros(many, device="meta")
    saved, every = 0, torch.arange(many, device="meta")
    weights = {id(p) for p in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        if id(tensor) not in weights:
            saved += tensor.nbytes
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        if hasattr(network, "both") and network.head is not None:
            network.both(x, c_noise, None, SOME, every)  # type: ignore[operator]
        else:
            network(x, c_noise)
    return counter.get_total_flops() // SOME, saved // SOME


def _images_besides(settings: TrainSettings) -> float:
    """Images that only the encoder of a joint model sees, for each that is denoised; views of FreeMatch."""
    objective = settings.objective
    if objective.kind == "freematch":  # the other view, and labelled images
        return 1 + objective.labelled_batch / settings.train.batch_size
    if not isinstance(objective, Joint):
        return 0.0
    clean, noised = objective.reads != "noised", objective.reads != "clean"
    few = objective.labelled_batch or 0
    besides = few / settings.train.batch_size * (clean + noised) if few else float(clean)
    return besides + float(clean) * (objective.pseudo_labels != "none")


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
