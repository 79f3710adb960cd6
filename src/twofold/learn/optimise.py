"""The optimiser and its learning rate, as a pure function of the images seen."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..settings.train import LoopSettings

POLY_POWER, POLY_LEAST = 0.9, 1e-4


def make_optimizer(
    network: nn.Module, settings: LoopSettings, shape: tuple[int, int, int] = (1, 8, 8)
) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD in its fused form (one pass over the parameters instead of ten).

    Each group's `scale` is what its learning rate is multiplied by: 1, or settings.layer_decay to the power of how far
    its parameters are from the head. shape: (C, H, W) of x0, to find that out; it must fit the network only then.
    """
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    groups: list[dict[str, Any]] = [{"params": list(parameters.values()), "scale": 1.0}]
    if settings.layer_decay < 1:
        far = distances(network, shape)
        groups = [
            {"params": [p for name, p in parameters.items() if far[name] == d], "scale": settings.layer_decay**d}
            for d in sorted({far[name] for name in parameters})
        ]
    return optimizer_of(groups, settings)


def optimizer_of(groups: list[dict[str, Any]], settings: LoopSettings) -> torch.optim.Optimizer:
    """The optimiser these settings ask for, of these groups of parameters."""
    if settings.weight_decay and not settings.decay_all:
        groups = [part for group in groups for part in _without_decay(group)]
    options: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": True}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.nesterov, **options)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(groups, betas=settings.betas, eps=settings.adam_eps, **options)


def _without_decay(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The group in two: weight decay is for what has more than one dimension, not for biases and gains."""
    parts = [[p for p in group["params"] if (p.ndim > 1) == wide] for wide in (True, False)]
    made = [{**group, "params": parts[0]}, {**group, "params": parts[1], "weight_decay": 0.0}]
    return [part for part in made if part["params"]]


def distances(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """{parameter name: how many layers of the table are still to finish when its module runs}; 0 is the head.

    Found out by a forward pass over one image of zeros, so that what runs before the first layer (a stem, the
    embedding) counts as that layer, and what runs between two layers as the later one.
    """
    layers = network.layers.values()  # type: ignore[union-attr, operator]
    left, found = len(layers), dict[nn.Module, int]()

    def runs(module: nn.Module, args: object) -> None:
        found.setdefault(module, left)

    def finishes(module: nn.Module, args: object, output: object) -> None:
        nonlocal left
        left -= 1

    handles = [module.register_forward_pre_hook(runs) for module in network.modules()]
    handles += [layer.module.register_forward_hook(finishes) for layer in layers]
    device = next(network.parameters()).device
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *shape, device=device), torch.zeros(1, device=device))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return {name: _nearest(network, name, found) for name, _ in network.named_parameters()}


def _nearest(network: nn.Module, name: str, found: dict[nn.Module, int]) -> int:
    """The distance of the module that holds a parameter, or of the one around it that was called as a module."""
    path = name.split(".")[:-1]
    while path:
        module = network.get_submodule(".".join(path))
        if module in found:
            return found[module]
        path.pop()
    return found[network]


def learning_rate(settings: LoopSettings, n_images: int) -> float:
    """Learning rate of the step that follows `n_images`: linear warm-up, then constant, cosine to 0 (or to a
    share `lr_end` of it), the part of a cosine that ends at cos(7 pi / 16) = 0.195 (Sohn et al. 2020, FixMatch), in
    steps, or (1 - share)^0.9 of the images that are left, but not below 1e-4 (mmsegmentation's, of BiSeNet)."""
    rate = settings.lr
    if settings.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, n_images / settings.n_images)))
        rate *= settings.lr_end + (1 - settings.lr_end) * left if settings.lr_end else left
    elif settings.schedule == "cosine_7_16":
        rate *= math.cos(7 * math.pi / 16 * min(1.0, n_images / settings.n_images))
    elif settings.schedule == "step":
        rate *= settings.step_factor ** sum(n_images >= at for at in settings.step_images)
    elif settings.schedule == "poly":
        least = min(POLY_LEAST, rate)
        rate = (rate - least) * (1 - min(1.0, n_images / settings.n_images)) ** POLY_POWER + least
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
