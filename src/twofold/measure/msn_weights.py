"""Vision transformers as Meta's MSN and DeiT publish them, as the model of `transformers` that they are.

A file is a training state: {"target_encoder": {"module.blocks.0.attn.qkv.weight": ...}, ...}, or the weights alone. All
sizes are read off the shapes but the number of heads, which these models have as width / 64 (16 for width 1280).

    file                                   here
    cls_token, pos_embed                   the embeddings'
    patch_embed.proj                       the patches' convolution
    blocks.N.norm1, norm2                  the block's norms, before attention and before the MLP
    blocks.N.attn.qkv (3 D, D)             query, key, value (D, D) each
    blocks.N.attn.proj, mlp.fc1, mlp.fc2   the other linear layers
    norm                                   the last norm
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UserError, some
from ..weightsfile import read_tensors

FILES = (".tar", ".pth", ".pt", ".safetensors")
HINT = "the files of github.com/facebookresearch/msn are meant, as vitb4_300ep.pth.tar"
PARTS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
IGNORED = re.compile(r"^(fc|head|pred|mask_token)\b")  # heads that served training, which features do not pass


def msn_model(path: Path, size: int = 224) -> Any:
    """The encoder in a file, for images of size x size, in evaluation mode without gradients.

    Position embeddings of another number of patches are interpolated (bicubic), as the published code does.
    Raises `UserError` for a file that is not in this layout or lacks weights, and sizes that are no multiple of the
    patches.
    """
    weights = {name.removeprefix("module."): value.float() for name, value in read_tensors(path, HINT).items()}
    weights = {name: value for name, value in weights.items() if not IGNORED.match(name)}
    try:
        width, _, patch, _ = weights["patch_embed.proj.weight"].shape
        hidden = len(weights["blocks.0.mlp.fc1.weight"])
        weights["pos_embed"] = interpolated(weights["pos_embed"], (size // patch) ** 2 + 1, path)
    except (KeyError, ValueError):
        what = f"is no vision transformer in MSN's layout (it holds {some(sorted(weights))})"
        raise UserError(str(path), what, HINT) from None
    if size % patch:
        raise UserError(
            str(path), f"its patches of {patch} x {patch} pixels do not fill {size} x {size}", "another size"
        )
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    _check(path, weights, depth)
    model = _empty(width, depth, hidden, patch, size)
    _fill(model, weights, path)
    return model.eval().requires_grad_(False)


def _empty(width: int, depth: int, hidden: int, patch: int, size: int) -> Any:
    from transformers import ViTMSNConfig, ViTMSNModel

    heads = 16 if width == 1280 else max(1, width // 64)
    config = ViTMSNConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=hidden,
        patch_size=patch,
        image_size=size,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.device("meta"):
        model = ViTMSNModel(config)
    return model.to_empty(device="cpu")


def _check(path: Path, weights: Mapping[str, Tensor], depth: int) -> None:
    """Raises `UserError` where a weight is missing or left over."""
    plain = {"cls_token", "pos_embed"}
    layers = ["patch_embed.proj", "norm", *(f"blocks.{n}.{part}" for n in range(depth) for part in PARTS)]
    wanted = plain | {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    for names, what in ((wanted - set(weights), "lacks"), (set(weights) - wanted, "also holds")):
        if names:
            raise UserError(str(path), f"{what} {some(sorted(names))}: no vision transformer in MSN's layout", HINT)


def interpolated(positions: Tensor, tokens: int, path: Path) -> Tensor:
    """Position embeddings (1, 1 + n^2, D) as (1, tokens, D): the class token's stays, the map is resized."""
    if positions.shape[1] == tokens:
        return positions
    old, new = math.isqrt(positions.shape[1] - 1), math.isqrt(tokens - 1)
    if old**2 + 1 != positions.shape[1]:
        raise UserError(str(path), f"its {positions.shape[1]} positions are no square and a class token", HINT)
    patches = positions[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    patches = functional.interpolate(patches, scale_factor=new / old, mode="bicubic")
    return torch.cat([positions[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2)], 1)


@torch.no_grad()
def _fill(model: Any, weights: Mapping[str, Tensor], path: Path) -> None:
    """By the order of layers within a block, which versions of `transformers` agree on; their names they do not."""
    blocks = next(part for part in model.modules() if isinstance(part, nn.ModuleList))
    inside = {id(part) for part in blocks.modules()}
    embeddings = model.embeddings
    pairs = [(embeddings.cls_token, weights["cls_token"]), (embeddings.position_embeddings, weights["pos_embed"])]
    convolution = next(part for part in embeddings.modules() if isinstance(part, nn.Conv2d))
    norm = next(part for part in model.modules() if isinstance(part, nn.LayerNorm) and id(part) not in inside)
    layers = [(convolution, "patch_embed.proj"), (norm, "norm")]
    for n, block in enumerate(blocks):
        first, second = (part for part in block.modules() if isinstance(part, nn.LayerNorm))
        query, key, value, *rest = (part for part in block.modules() if isinstance(part, nn.Linear))
        for kind in ("weight", "bias"):
            parts = weights[f"blocks.{n}.attn.qkv.{kind}"].chunk(3)
            pairs += [(getattr(layer, kind), part) for layer, part in zip((query, key, value), parts, strict=True)]
        names = [f"blocks.{n}.{part}" for part in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")]
        layers += zip((first, second, *rest), names, strict=True)
    pairs += [
        (getattr(layer, kind), weights[f"{name}.{kind}"]) for layer, name in layers for kind in ("weight", "bias")
    ]
    for parameter, found in pairs:
        if parameter.shape != found.shape:
            what = f"a weight of shape {tuple(found.shape)} where {tuple(parameter.shape)} is expected"
            raise UserError(str(path), what, HINT)
        parameter.copy_(found)
