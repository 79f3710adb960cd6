"""The name of trained weights: the same for the same numbers, whatever file or repository they came from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn


def weights_hash(module: nn.Module) -> str:
    """SHA-256 (64 hex digits) of the names, types, shapes and bytes of a module's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def model_hash(model: nn.Module) -> str:
    """SHA-256 of a model's weights and of what else its answers depend on: shape, noise family, network options.

    Two models with equal weights but another number of heads, or another table of noise levels, differ.
    """
    facts = [type(model).__name__, list(getattr(model, "shape", ())), _options(getattr(model, "family", None))]
    facts += [_options(part) for part in model.modules()]
    return hashlib.sha256((weights_hash(model) + json.dumps(facts, default=str)).encode()).hexdigest()


def _options(part: Any) -> Any:
    """The settings of a part of a model: ours, or the config of a diffusers or transformers module."""
    settings, config = getattr(part, "settings", None), getattr(part, "config", None)
    if settings is not None and hasattr(settings, "model_dump"):
        return settings.model_dump(mode="json")
    if config is None:
        return None
    plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {name: value for name, value in plain.items() if not name.startswith("_")}
