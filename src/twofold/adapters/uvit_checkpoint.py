"""U-ViTs in the layout of Bao et al. 2023: `imagenet256_uvit_large.pth`, DPT's, and what was trained from their code.

Weights tell the width, the depth, the patch, the labels, the size (of a square) and whether there is an MLP for the
time and a last convolution; not how many heads there are, which the published widths (S, M, L, H) tell. The noise is
the published models': continuous VP down to t = 1e-4, told as 999 t; that of H, which has no last convolution, the
table of Stable Diffusion, told as n = 1..1000.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..codec import Codec
from ..denoiser import NetworkDenoiser
from ..errors import UserError
from ..networks.uvit import UViT
from ..noise import family
from ..settings.checkpoint import CheckpointSettings
from ..settings.network import UViTSettings
from ..settings.noise import VPNoise
from ..settings.resolve import resolve
from ..weightsfile import read_tensors
from .checkpoint_facts import count_of, exact, options_for, size_of, untold
from .diffusers_files import check_weights
from .latent_codec import NoCodec, codec_for

Weights = Mapping[str, Tensor]
MARKS = ("patch_embed.proj.weight", "decoder_pred.weight", "mid_block.norm1.weight")  # that this layout alone has
HEADS = {512: 8, 768: 12, 1024: 16, 1152: 16}  # by width
LATENT = 4  # channels of the autoencoder they were published with
LABELS, EXAMPLE = "label_emb.weight", '{"heads": 8, "size": 32}'
WITHOUT_NONE = 1000  # labels of the published models of ImageNet at 64x64, which always knew the class
CONTINUOUS = VPNoise(table="continuous", t_min=1e-4)
TABLE = VPNoise(table="scaled_linear", time_offset=1)
RENAMED = (  # ours, as a pattern -> theirs
    (r"^positions$", "pos_embed"),
    (r"^stem\.", "patch_embed.proj."),
    (r"^label\.", "label_emb."),
    (r"^time\.first\.", "time_embed.0."),
    (r"^time\.second\.", "time_embed.2."),
    (r"^enc\.", "in_blocks."),
    (r"^mid\.", "mid_block."),
    (r"^dec\.", "out_blocks."),
    (r"\.attention\.", ".attn."),
    (r"\.(fc[12])\.", r".mlp.\1."),
    (r"\.skip\.", ".skip_linear."),
    (r"^out\.", "decoder_pred."),
    (r"^smooth\.", "final_layer."),
)


def read(path: Path | str, **options: Any) -> NetworkDenoiser:
    """The denoiser in a `.pth`, `.pt` or `.safetensors` file of this layout, in eval mode without gradients.

    options: those of `CheckpointSettings`, over the ones in the .json beside the file. Raises `UserError` for weights
    that are missing or too many, and naming what neither weights nor options tell.
    """
    path = Path(path)
    return from_weights(str(path), read_tensors(path, command_line=True), options_for(path, options))


def from_weights(where: str, weights: Weights, options: CheckpointSettings) -> NetworkDenoiser:
    """The denoiser with these weights; see `read`. where: the file, for messages."""
    weights = with_none(weights, options)
    settings, shape = settings_of(where, weights, options)
    network = _assembled(where, settings, shape, weights)
    names, classes = options.class_names, settings.classes or 0
    if names and len(names) != classes:
        raise UserError(f"class_names of {where}", f"{len(names)} names", f"the network knows {classes} classes")
    codec: Codec | None = None
    if options.autoencoder is not None:
        codec = codec_for(Path(where).parent / options.autoencoder, shape)
    elif shape[0] == LATENT:
        codec = NoCodec(where)
    noise = family(options.noise or (CONTINUOUS if settings.final_conv else TABLE))
    made = NetworkDenoiser(network, noise, shape, classes, codec, clip=codec is None, class_names=names)
    return made.eval().requires_grad_(False)


def with_none(weights: Weights, options: CheckpointSettings) -> Weights:
    """The weights with a row for "no label" where they have none: zeros, which that network has never seen.

    They have none where there is a row for each of `class_names`; without these, where there are as many as the
    published models that were trained so have.
    """
    labels = weights.get(LABELS)
    if labels is None or labels.ndim != 2 or len(labels) != (len(options.class_names) or WITHOUT_NONE):
        return weights
    return {**weights, LABELS: torch.cat([labels, torch.zeros_like(labels[:1])])}


def settings_of(where: str, weights: Weights, options: CheckpointSettings) -> tuple[UViTSettings, tuple[int, int, int]]:
    """Our settings and (C, H, W). Raises `UserError` naming what neither weights nor options tell."""
    width, channels, patch, _ = size_of(where, weights, "patch_embed.proj.weight", 4)
    hidden = size_of(where, weights, "mid_block.mlp.fc1.weight", 2)[0]
    labels = size_of(where, weights, LABELS, 2)[0] if LABELS in weights else 0
    tokens = size_of(where, weights, "pos_embed", 3)[1] - 1 - bool(labels)
    size = options.size or math.isqrt(max(tokens, 0)) * patch
    heads = options.heads or (width // options.head_channels if options.head_channels else HEADS.get(width))
    if heads is None:
        raise untold(where, ["heads"], EXAMPLE)
    for name, divisor in (("heads", heads), ("head_channels", options.head_channels)):
        if divisor and width % divisor:
            raise UserError(f"{name}={divisor} of {where}", f"does not divide the width {width}")
    if size % patch or (size // patch) ** 2 != tokens:
        what = f"{tokens} positions of patches of {patch} are not those of {size}x{size}"
        raise UserError(f"pos_embed of {where}", what, "a square of another size, or another layout of tokens")
    found = {
        "patch": patch,
        "width": width,
        "depth": count_of(weights, "in_blocks") + count_of(weights, "out_blocks"),
        "heads": heads,
        "mlp_ratio": hidden / width,
        "qkv_bias": "mid_block.attn.qkv.bias" in weights,
        "dropout": options.dropout,
        "skip": "concat" if "out_blocks.0.skip_linear.weight" in weights else "none",
        "time_mlp": "time_embed.0.weight" in weights,
        "final_conv": "final_layer.weight" in weights,
        "classes": max(0, labels - 1),
    }
    return resolve(UViTSettings, [(f"weights of {where}", found)])[0], (channels, size, size)


def published_name(name: str) -> str:
    """What a parameter of ours is called in their files."""
    for pattern, theirs in RENAMED:
        name = re.sub(pattern, theirs, name)
    return name


def _assembled(where: str, settings: UViTSettings, shape: tuple[int, int, int], weights: Weights) -> UViT:
    """The network of these settings with copies of these weights, float32 or better."""
    with torch.device("meta"):
        network = UViT(settings, shape)
    ours = network.state_dict()
    expected = {published_name(name): tensor for name, tensor in ours.items()}
    check_weights(where, expected, weights, "not a network of this layout, or not all of it")
    network.load_state_dict({name: exact(weights[published_name(name)]) for name in ours}, assign=True)
    return network
