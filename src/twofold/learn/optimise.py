"""The optimiser and its learning rate, as a pure function of the images seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..settings.train import LoopSettings


def make_optimizer(network: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    """Adam or AdamW in its fused form (one pass over the parameters instead of ten)."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    parameters = [p for p in network.parameters() if p.requires_grad]
    options = {"betas": settings.betas, "eps": settings.adam_eps, "weight_decay": settings.weight_decay}
    return kind(parameters, lr=settings.lr, fused=True, **options)


def learning_rate(settings: LoopSettings, n_images: int) -> float:
    """Learning rate of the step that follows `n_images`: linear warm-up, then constant or cosine to 0."""
    rate = settings.lr
    if settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, n_images / settings.n_images)))
    if n_images < settings.warmup_images:
        rate *= (n_images + settings.batch_size) / (settings.warmup_images + settings.batch_size)
    return rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state by parameter name: {"<parameter>/<entry>": tensor}."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    return {
        f"{names[parameter]}/{entry}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave, in each parameter's own memory format."""
    parameters = dict(network.named_parameters())
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter).copy_(value)
        else:  # the step counter; fused kernels want it beside the parameter
            value = value.to(parameter.device, copy=True)
        optimizer.state[parameter][entry] = value
