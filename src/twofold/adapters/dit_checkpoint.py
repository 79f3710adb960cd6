"""DiTs in the layout of Peebles and Xie 2023: `DiT-XL-2-256x256.pt` and what was trained from their code.

Weights tell the width, the depth, the patch, the classes and (by their table of positions) the size; not how many heads
there are, which the published widths (S, B, L, XL) tell. Linear betas 1e-4 .. 0.02, 1000 steps, predicting the noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..codec import Codec
from ..denoiser import NetworkDenoiser
from ..errors import UserError
from ..networks.dit import positions
from ..noise import family
from ..settings.checkpoint import CheckpointSettings
from ..settings.network import DiTSettings
from ..settings.noise import VPNoise
from ..settings.resolve import resolve
from ..weightsfile import read_tensors
from .checkpoint_facts import count_of, options_for, size_of, untold
from .dit_layouts import assembled, published_names
from .latent_codec import NoCodec, codec_for

Weights = Mapping[str, Tensor]
MARKS = ("x_embedder.proj.weight", "t_embedder.mlp.0.weight")  # names that this layout alone has
HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 28): 16}  # by width and depth
ROUNDED = 0.01  # a table of positions in half precision
LATENT = 4  # channels of the autoencoder they were published with
EXAMPLE = '{"heads": 6, "size": 32}'


def read(path: Path | str, **options: Any) -> NetworkDenoiser:
    """The denoiser in a `.pt` or `.safetensors` file of this layout, in eval mode without gradients.

    options: those of `CheckpointSettings`, over the ones in the .json beside the file. Raises `UserError` for weights
    that are missing or too many, and naming what neither weights nor options tell.
    """
    path = Path(path)
    return from_weights(str(path), read_tensors(path, command_line=True), options_for(path, options))


def from_weights(where: str, weights: Weights, options: CheckpointSettings) -> NetworkDenoiser:
    """The denoiser with these weights; see `read`. where: the file, for messages."""
    settings, shape = settings_of(where, weights, options)
    _check_positions(where, weights, settings.width)
    hint = "not a network of this layout, or not all of it"
    network = assembled(where, settings, shape, published_names(settings.depth), weights, hint)
    names, classes = options.class_names, settings.classes or 0
    if names and len(names) != classes:
        raise UserError(f"class_names of {where}", f"{len(names)} names", f"the network knows {classes} classes")
    codec: Codec | None = None
    if options.autoencoder is not None:
        codec = codec_for(Path(where).parent / options.autoencoder, shape)
    elif shape[0] == LATENT:
        codec = NoCodec(where)
    noise = family(options.noise or VPNoise())
    made = NetworkDenoiser(network, noise, shape, classes, codec, clip=codec is None, class_names=names)
    return made.eval().requires_grad_(False)


def settings_of(where: str, weights: Weights, options: CheckpointSettings) -> tuple[DiTSettings, tuple[int, int, int]]:
    """Our settings and (C, H, W). Raises `UserError` naming what neither weights nor options tell."""
    width, channels, patch, _ = size_of(where, weights, "x_embedder.proj.weight", 4)
    depth = count_of(weights, "blocks")
    hidden = size_of(where, weights, "blocks.0.mlp.fc1.weight", 2)[0]
    outputs = size_of(where, weights, "final_layer.linear.weight", 2)[0] // patch**2
    if outputs not in (channels, 2 * channels):
        what = f"{channels} channels in, {outputs} out"
        raise UserError(f"weights of {where}", what, f"valid: {channels}, or {2 * channels} with learned variances")
    heads = options.heads or (width // options.head_channels if options.head_channels else HEADS.get((width, depth)))
    tokens = weights["pos_embed"].shape[1] if "pos_embed" in weights else 0
    size = options.size or math.isqrt(tokens) * patch
    missing = [name for name, value in {"heads": heads, "size": size}.items() if not value]
    if missing:
        raise untold(where, missing, EXAMPLE)
    assert heads is not None
    for name, divisor in (("heads", heads), ("head_channels", options.head_channels)):
        if divisor and width % divisor:
            raise UserError(f"{name}={divisor} of {where}", f"does not divide the width {width}")
    labels = len(weights["y_embedder.embedding_table.weight"]) if "y_embedder.embedding_table.weight" in weights else 1
    found = {
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": hidden / width,
        "dropout": options.dropout,
        "classes": labels - 1,
        "learned_variance": outputs == 2 * channels,
        "embedding_channels": size_of(where, weights, "t_embedder.mlp.0.weight", 2)[1],
    }
    return resolve(DiTSettings, [(f"weights of {where}", found)])[0], (channels, size, size)


def _check_positions(where: str, weights: Weights, width: int) -> None:
    """Raises `UserError` for a table of positions other than the one that is computed here, as learned ones are."""
    if "pos_embed" not in weights:
        return
    table = weights["pos_embed"].float()
    side = math.isqrt(table[..., 0].numel())
    expected = positions(width, (side, side), (side, side))[None]
    if table.shape != expected.shape or not torch.allclose(table, expected, atol=ROUNDED):
        what = f"{tuple(table.shape)} is not the table of sines and cosines of a square of tokens"
        raise UserError(f"pos_embed of {where}", what, "a DiT with other positions cannot be read")
