"""Low-rank adaptation of a trained network (Hu et al. 2021, eq. 3).

    W' = W + alpha / rank * B A        W (D, N) stays as it is, A (r, N) random, B (D, r) zero, N = C k k of a kernel

B A is zero at first, so that training begins at the source exactly. W' is what every layer multiplies by, whatever it
does with it; the same cost as the plain layer and a small product more. Saved models hold W', plain networks.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UserError, nearest
from ..files import atomic_file
from ..networks.trunk import Trunk
from ..networks.unet import UNet
from ..settings.train import LoraSettings

NEW = re.compile(r"(^|\.)(label|augment)(\.|$)")  # what a source has not for other classes: trained as it is
PART = ".parametrizations.weight."


class LowRank(nn.Module):
    """W -> W + scale * B A, for the weight of a linear layer (D, N) or a convolution (D, C, k, k)."""

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = weight.shape[0], weight[0].numel()
        rank = min(rank, outputs, inputs)
        self.scale = scale
        bound = 1 / math.sqrt(inputs)  # as torch draws the weight of a layer with so many inputs
        a = torch.empty(rank, inputs, device="cpu").uniform_(-bound, bound, generator=generator)
        self.a = nn.Parameter(a.to(weight.device))
        self.b = nn.Parameter(torch.zeros(outputs, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        # in full precision: the update is small beside W, and is saved as it was used
        plain = nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False)
        with plain:
            return weight + self.scale * (self.b @ self.a).view(weight.shape)


def adapt(network: nn.Module, settings: LoraSettings, seed: int) -> str:
    """Freezes a network but for low-rank updates of `settings.targets` and what is new; returns what to tell the user.

    New are the embeddings of labels and augmentations, and the head of a trunk or of a joint model. Raises `UserError`
    where no layer is meant.
    """
    chosen = targeted(network, settings.targets)
    network.requires_grad_(False)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(_is_new(network, name) or (settings.biases and parameter.ndim == 1))
    scale = (settings.alpha or settings.rank) / settings.rank
    for name, layer in chosen.items():
        # by name, so that adapting one layer more leaves the others as they were
        generator = torch.Generator().manual_seed((seed << 32) + zlib.crc32(name.encode()))
        update = LowRank(layer.weight, settings.rank, scale, generator)  # type: ignore[arg-type]
        parametrize.register_parametrization(layer, "weight", update)
    size, trained = parameters(network)
    return f"low-rank updates of {len(chosen)} layers: {trained:,} parameters train beside the {size:,} of the network"


def _is_new(network: nn.Module, name: str) -> bool:
    """Whether a layer, or a parameter, is trained as it is."""
    return bool(NEW.search(name)) or (isinstance(network, Trunk | UNet) and name.split(".")[0] == "head")


def targeted(network: nn.Module, targets: str) -> dict[str, nn.Module]:
    """{name: layer} of the linear layers and convolutions that are meant. Raises `UserError` where there is none."""
    layers: dict[str, nn.Module] = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and not _is_new(network, name)
    }
    if targets == "all":
        return layers
    if targets == "conv":
        return {name: layer for name, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    try:
        pattern = re.compile(r"(^|\.)(attention|attn)\." if targets == "attention" else targets)
    except re.error as error:
        raise UserError(f"lora.targets={targets}", f"is not a pattern ({error})", "all, attention or conv") from None
    found = {name: layer for name, layer in layers.items() if pattern.search(name)}
    if not found:
        raise UserError(f"lora.targets={targets}", "no layer of the network is meant", nearest(targets, layers))
    return found


def _updates(network: nn.Module) -> Iterator[tuple[LowRank, str]]:
    """(update, name of its layer)."""
    for name, module in network.named_modules():
        if isinstance(module, LowRank):
            yield module, name.split(PART)[0]


def parameters(network: nn.Module) -> tuple[int, int]:
    """How many a network has (an adapted one when it is merged), and how many of them train."""
    factors = sum(p.numel() for update, _ in _updates(network) for p in update.parameters())
    every = list(network.parameters())
    return sum(p.numel() for p in every) - factors, sum(p.numel() for p in every if p.requires_grad)


def merged(network: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain network, from the state of an adapted one (or its average); others as they are."""
    plain = {name: value for name, value in tensors.items() if PART not in name}
    for update, name in _updates(network):
        weight, a, b = (tensors[f"{name}{PART}{part}"] for part in ("original", "0.a", "0.b"))
        plain[f"{name}.weight"] = weight + update.scale * (b @ a).view(weight.shape)
    return plain


def save_factors(path: Path, network: nn.Module, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Writes what was trained alone: `<layer>.a`, `<layer>.b`, and other trained weights by their names.

    Its metadata holds `facts` and the scale of each update, as JSON under "twofold_lora".
    """
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    plain = {name.replace(f"{PART}0", ""): tensors[name].detach().to("cpu").contiguous() for name in trained}
    scales = {name: update.scale for update, name in _updates(network)}
    metadata = {"twofold_lora": json.dumps({**facts, "scales": scales})}
    atomic_file(path, lambda temporary: save_file(plain, temporary, metadata))
