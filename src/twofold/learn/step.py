"""One optimiser step: what a batch does to the weights, their average and the optimiser's moments.

    micro-batches -> losses -> gradients of the mean over the global batch -> clip -> optimiser -> average

A step is a function of (weights, position), so one that ran out of memory is tried again in smaller parts and is the
same step, up to the order of sums and the draws of dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UserError
from ..run import State
from ..settings.train import LoopSettings
from .batches import Batch
from .buffers import agree_on_buffers, kept, untouched
from .ema import Average, decay
from .helpers import Helpers
from .memory import is_out_of_memory, release
from .objectives import Objective
from .optimise import learning_rate, load_optimizer_tensors, make_optimizer, optimizer_tensors

LOWER = "lower network.channels or data.size, set train.precision=bf16, or use a device with more memory"


@dataclass(frozen=True)
class Taken:
    """loss: sum over this rank's images. norm: of the gradient. finite: whether the weights were changed."""

    loss: Tensor
    norm: Tensor
    finite: bool


class Stepper:
    """Takes the steps of one run, on this rank's share of each global batch.

    wrapped: the objective as processes share it. micro_batch: images per forward pass, halved where memory runs out.
    """

    def __init__(
        self,
        objective: Objective,
        wrapped: nn.Module,
        settings: LoopSettings,
        accelerator: Accelerator,
        micro_batch: int,
        precision: str,
        shape: tuple[int, int, int],
    ) -> None:
        self.objective, self.wrapped, self.settings = objective, wrapped, settings
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.device, self.micro_batch = accelerator.device, micro_batch
        self.network = objective.network
        self.optimizer = make_optimizer(self.network, settings, shape)
        self.helpers = Helpers(objective, settings)
        self.average = Average(self.network)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        self.would_fit: Callable[[], str | None] = lambda: None  # settings with which a step needs less

    def __call__(self, batch: Batch, start: int, counted: int) -> Taken:
        """The step at position `start`. counted: images of the global batch that count in its mean, on any rank.

        Raises `UserError` where memory runs out with one image at a time, or while others wait for this process.
        """
        settings, put_back = self.settings, kept(self.objective)
        while (losses := self._gradients(batch, start, counted)) is None:
            put_back()
            self._halve(start)
        rate = learning_rate(settings, start)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained, settings.clip_norm or math.inf, foreach=True)
        finite = bool(norm.isfinite()) & self.helpers.ready(rate / settings.lr, self.scaler)
        if not finite:
            put_back()
        else:
            agree_on_buffers(self.objective, self.world)
            self._apply(start + settings.batch_size)
            if self.objective.learns_levels:
                self.objective.observe(start, self._everyones(losses))
        self.scaler.update()
        self._drop_gradients()
        return Taken(losses.sum(), norm, finite)

    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.helpers.zero_grad()

    def _apply(self, n_images: int) -> None:
        """The optimiser's step; its moments are made in the first one."""
        settings = self.settings
        try:
            self.scaler.step(self.optimizer)
            self.helpers.step(self.scaler)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError("train", "no memory for the optimiser's moments beside the weights", LOWER) from error
        self.average.update(decay(settings.batch_size, n_images, settings.ema_halflife_images, settings.ema_rampup))

    def _gradients(self, batch: Batch, start: int, counted: int) -> Tensor | None:
        """Accumulates gradients; returns the losses of this rank's images, None where memory ran out."""
        torch.manual_seed(dropout_seed(self.settings.seed, start, self.rank))
        parts, losses = list(batch.split(self.micro_batch)), []
        try:
            for i, part in enumerate(parts):
                part = part.to(self.device)
                last = i == len(parts) - 1
                alone = nullcontext() if last or self.world == 1 else self.wrapped.no_sync()  # type: ignore[operator]
                with alone, weights_once(self.network):
                    each: Tensor = self.wrapped(part)
                    # DDP averages over ranks, so each contributes its sum * world / (images that count anywhere)
                    self.scaler.scale(each.sum() * (self.world / max(counted, 1))).backward()
                losses.append(each.detach())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        return torch.cat(losses)

    def _halve(self, start: int) -> None:
        """After a step without enough memory: drops its gradients and asks for smaller parts."""
        tried = self.micro_batch
        self._drop_gradients()
        release(self.device)
        if tried == 1:
            hint = self.would_fit() or LOWER
            raise UserError("train", f"out of memory with one image at a time, at {start:,} images", hint)
        self.micro_batch = tried // 2
        if self.world > 1:  # the others wait for these gradients: it cannot be tried again
            what = f"process {self.rank} ran out of memory with {tried} images at a time, at {start:,} images"
            hint = f"the same command continues at the last save, {self.micro_batch} at a time"
            raise UserError("train", what, hint)

    def agree(self, batch: Batch) -> None:
        """Before the first step of several processes: finds parts that all of them have the memory for.

        Each tries a forward and backward pass by itself, beside what the optimiser will need, without a message to the
        others; then all take the smallest. batch: this rank's share of the first one.
        """
        fits = self._fits(batch)
        while not fits and self.micro_batch > 1:
            release(self.device)
            self.micro_batch //= 2
            fits = self._fits(batch)
        smallest = min(gather_object([self.micro_batch if fits else 0]))  # whoever fails, all of them hear of it
        if not smallest:
            raise UserError("train", "out of memory with one image at a time, before the first step", LOWER)
        self.micro_batch = smallest

    def _fits(self, batch: Batch) -> bool:
        moments = 0 if self.device.type == "cpu" else 1 if self.settings.optimizer == "sgd" else 2
        try:
            held = [torch.empty_like(p) for p in self.trained for _ in range(moments)]
            part = next(iter(batch.to(self.device).split(self.micro_batch)))
            # not through `wrapped`, and not into .grad: nothing is sent
            with untouched(self.objective), weights_once(self.network):
                torch.autograd.grad(self.objective(part).sum(), self.trained, allow_unused=True)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        del held
        return True

    def _everyones(self, losses: Tensor) -> Tensor:
        """Losses (B,) float64 of the global batch in position order: ranks have contiguous shares."""
        mine = losses.double().cpu()
        return torch.cat(gather_object([mine])) if self.world > 1 else mine

    def tensors(self) -> dict[str, Tensor]:
        """What a training state holds of it."""
        found = {f"weights/{n}": v for n, v in self.network.state_dict().items()}
        found |= {f"average/{n}": self.average.tensors[n] for n in self.average.own}
        found |= {f"optimizer/{n}": v for n, v in optimizer_tensors(self.optimizer, self.network).items()}
        found |= {f"helpers/{n}": v for n, v in self.helpers.tensors().items()}
        return found | {f"objective/{n}": v for n, v in self.objective.memory().items()}

    def restore(self, state: State) -> None:
        """The inverse of `tensors`."""
        self.network.load_state_dict(_part(state, "weights/"))
        self.average.load(_part(state, "average/"))
        load_optimizer_tensors(self.optimizer, self.network, _part(state, "optimizer/"))
        self.helpers.load(_part(state, "helpers/"))
        if memory := _part(state, "objective/"):
            self.objective.remember(memory)
        if self.scaler.is_enabled() and state.facts["scaler"]:
            self.scaler.load_state_dict(state.facts["scaler"])


@contextmanager
def weights_once(network: nn.Module) -> Iterator[None]:
    """Within the block, the weights of low-rank updates are computed once. For one backward pass, or for none."""
    with parametrize.cached() if any(map(parametrize.is_parametrized, network.modules())) else nullcontext():
        yield


def _part(state: State, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.tensors.items() if name.startswith(prefix)}


def dropout_seed(seed: int, n_images: int, rank: int) -> int:
    """One 64-bit seed per (seed, images seen, rank), far from those of other steps."""
    return int(np.random.SeedSequence([seed, n_images, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
