"""What is trained beside the network and is no part of the model: adapters of a distillation, heads, a policy.

Their learning rate follows the run's schedule, but for those that an objective sets apart: each of these has an
optimiser of its own at a constant rate. All of it belongs into the training state.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..settings.train import LoopSettings
from .objectives import Objective
from .optimise import load_optimizer_tensors, optimizer_of, optimizer_tensors

MOMENTUM = 0.9
SHARED = "shared"  # the optimiser of all helpers that are not apart


class Helpers:
    """The helpers of an objective, none as a rule, and their optimisers by name."""

    def __init__(self, objective: Objective, settings: LoopSettings) -> None:
        self.module = nn.ModuleDict() if objective.helpers is None else objective.helpers
        self.settings = settings
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        apart: set[int] = set()
        for name, own in objective.apart.items():
            parameters = [p for p in self.module.get_submodule(name).parameters() if p.requires_grad]
            apart |= set(map(id, parameters))
            options: dict[str, Any] = {"momentum": MOMENTUM} if own.kind == "sgd" else {}
            kind = torch.optim.SGD if own.kind == "sgd" else torch.optim.Adam
            self.optimizers[name] = kind(parameters, lr=own.lr, fused=True, **options)
        rest = [p for p in self.module.parameters() if p.requires_grad and id(p) not in apart]
        if rest:
            self.optimizers[SHARED] = optimizer_of([{"params": rest, "scale": 1.0}], settings)

    def ready(self, share: float, scaler: torch.amp.GradScaler) -> bool:
        """Before a step: sets learning rates and clips gradients, those of each optimiser by themselves. Returns
        whether all of them are finite. share: of the run's learning rate that its schedule leaves now.
        """
        finite = True
        for name, optimizer in self.optimizers.items():
            if name == SHARED:
                for group in optimizer.param_groups:
                    group["lr"] = self.settings.lr * share * group["scale"]
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            if not any(p.grad is not None for p in parameters):
                continue  # a policy has no gradient where no image of a batch had a reward
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm or math.inf, foreach=True)
            finite = finite and bool(norm.isfinite())
        return finite

    def step(self, scaler: torch.amp.GradScaler) -> None:
        for optimizer in self.optimizers.values():
            if any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
                scaler.step(optimizer)

    def zero_grad(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """What a training state holds of them."""
        found = {f"weights/{name}": value for name, value in self.module.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            moments = optimizer_tensors(optimizer, self.module)
            found |= {f"optimizer/{name}/{key}": value for key, value in moments.items()}
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        if not tensors:
            return
        self.module.load_state_dict(_below(tensors, "weights/"))
        for name, optimizer in self.optimizers.items():
            load_optimizer_tensors(optimizer, self.module, _below(tensors, f"optimizer/{name}/"))


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
