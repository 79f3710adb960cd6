"""The memory that training takes, for any number of images at a time: weights, moments, average, and a step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..adapters.latent_codec import PIXELS_AT_ONCE, LatentCodec
from ..run import build
from ..settings.train import Joint, TrainSettings
from .footprint import evaluation_bytes, step_bytes
from .lora import adapt, parameters

WEIGHT_BYTES = GRADIENT_BYTES = AVERAGE_BYTES = 4  # float32
MOMENTS = {"sgd": 1, "adam": 2, "adamw": 2}


class Needs:
    """Of these settings on one device of `world`.

    shape: of x0. half: the network runs in bfloat16 or float16. cpu: the device is a CPU. codec: of a latent model.
    besides: bytes of other models, such as a teacher. Nothing is computed and no weights are made: see `footprint`.
    """

    def __init__(
        self,
        settings: TrainSettings,
        shape: tuple[int, int, int],
        classes: list[str],
        world: int = 1,
        half: bool = False,
        cpu: bool = True,
        codec: LatentCodec | None = None,
        besides: int = 0,
    ) -> None:
        self.settings, self.shape, self.classes, self.world = settings, shape, classes, world
        self.half, self.cpu, self.codec, self.besides = half, cpu, codec, besides
        self.whole = max(1, settings.train.batch_size // world)
        self.share = min(settings.train.micro_batch or self.whole, self.whole)
        with torch.device("meta"):
            self.model = build(settings, shape, classes)
        self.network: nn.Module = self.model.network.train()
        self.own = parameters(self.network)[0]
        if settings.lora is not None:
            adapt(self.network, settings.lora, 0)
        self.trained = parameters(self.network)[1]
        self._steps: dict[int, int] = {}
        self._codings: dict[int, int] = {}
        self._evaluations: dict[int, int] = {}

    def fixed(self) -> int:
        """Bytes of what is there between steps: weights, gradients, moments, average; and other models."""
        weights = WEIGHT_BYTES * sum(p.numel() for p in self.network.parameters())
        moments = WEIGHT_BYTES * MOMENTS[self.settings.train.optimizer]
        codec = 0 if self.codec is None else WEIGHT_BYTES * sum(p.numel() for p in self.codec.parameters())
        return weights + (GRADIENT_BYTES + moments + AVERAGE_BYTES) * self.trained + codec + self.besides

    def memory(self, images: int) -> int:
        """Bytes at the fullest moment of a step with so many images at a time."""
        gradients = GRADIENT_BYTES * self.trained
        step = self._step(images) + (gradients if images < self.whole else 0)
        return self.fixed() - gradients + max(step, gradients, self._decoding(images), self._held_out(images))

    def largest(self, room: float) -> int:
        """Most images at a time, up to those asked for, that fit into so many bytes and divide the batch; 0: none."""
        if self.memory(1) > room:
            return 0
        sizes = [n for n in range(1, self.share + 1) if self.whole % n == 0]
        fits = bisect_right(sizes[1:], room, key=self.memory)
        return sizes[fits]

    def changed(self, half: bool | None = None, checkpoint: bool | None = None) -> Needs:
        """Those with another precision, or with checkpointing."""
        settings = self.settings
        if checkpoint is not None:
            network = settings.network.model_copy(update={"checkpoint": checkpoint})
            settings = settings.model_copy(update={"network": network})
        half = self.half if half is None else half
        return Needs(settings, self.shape, self.classes, self.world, half, self.cpu, self.codec, self.besides)

    def _step(self, images: int) -> int:
        if images not in self._steps:
            shape = seen(self.settings, self.shape)
            call = forward(self.network, shape, images, images_besides(self.settings))
            with parametrize.cached():
                again = images < self.whole
                self._steps[images] = step_bytes(self.network, call, half=self.half, cpu=self.cpu, again=again)
        return self._steps[images]

    def _held_out(self, images: int) -> int:
        """Bytes of looking at held-out images, where those are larger than what is trained on."""
        if seen(self.settings, self.shape) == self.shape:
            return 0
        if images not in self._evaluations:
            call = forward(self.network, self.shape, images)
            self._evaluations[images] = step_bytes(self.network, call, half=self.half, cpu=self.cpu, backward=False)
        return self._evaluations[images]

    def _decoding(self, images: int) -> int:
        """Bytes of an autoencoder's largest maps: it encodes before training or in it, and decodes previews."""
        codec = self.codec
        if codec is None or codec.size is None:
            return 0
        stored = self.settings.codec is not None and self.settings.codec.store
        together = max(PIXELS_AT_ONCE // (codec.size[0] * codec.size[1]), 1)
        count = together if stored else min(together, images)
        if count not in self._codings:
            self._codings[count] = coding_bytes(codec, codec.size, count, self.cpu)
        return self._codings[count]


def coding_bytes(codec: LatentCodec, size: tuple[int, int], images: int, cpu: bool) -> int:
    """Bytes of encoding or decoding so many images of this size at once, whichever takes more."""
    x = torch.zeros(images, codec.vae.config.in_channels, *size, device="meta")
    return evaluation_bytes(codec.vae, (x,), cpu=cpu)


def forward(network: nn.Module, shape: tuple[int, int, int], images: int, besides: float = 0.0) -> Callable[[], Any]:
    """A call of a network on the meta device with so many images, and those that only an encoder sees."""
    many = images + round(images * besides)
    x, c_noise = torch.zeros(many, *shape, device="meta"), torch.zeros(many, device="meta")
    every: Any = torch.arange(many, device="meta")
    if hasattr(network, "both") and network.head is not None:
        return lambda: network.both(x, c_noise, None, images, every)  # type: ignore[operator]
    return lambda: network(x, c_noise)


def seen(settings: TrainSettings, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(C, H, W) of what a step computes on, of x0 (C, H, W): itself, or the squares of super-resolution."""
    side = getattr(settings.objective, "crop", None)
    return (shape[0], side, side) if side else shape


def images_besides(settings: TrainSettings) -> float:
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
