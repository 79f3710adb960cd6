"""The autoencoder in its published layout (`autoencoder_kl.pth`, Rombach et al. 2022), as diffusers names its weights.

    encoder.down.I.block.J    encoder.down_blocks.I.resnets.J      decoder.up.I.block.J    decoder.up_blocks.(L-1-I)...
    mid.block_1, mid.block_2  mid_block.resnets.0, 1               mid.attn_1              mid_block.attentions.0

Weights tell every width; the 32 groups of the norms, which they do not, are those of all published ones. Attention's
1x1 convolutions are linear layers in diffusers: the same numbers without the last two axes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import UserError, some
from ..weightsfile import read_tensors
from .checkpoint_facts import exact, size_of
from .diffusers_files import check_weights

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Weights = Mapping[str, Tensor]
MARKS = ("encoder.mid.attn_1.q.weight", "decoder.up.0.block.0.conv1.weight", "post_quant_conv.weight")
INSIDE = "first_stage_model."  # where a latent model's whole checkpoint keeps its autoencoder
TRAINED_WITH = "loss."  # a discriminator and a perceptual network, in states of the training
SCALE = 0.18215  # with which the latents of KL-f8 are diffused
GROUPS = 32
BLOCK = {"nin_shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
MIDDLE = {"block_1": "resnets.0", "block_2": "resnets.1", "attn_1": "attentions.0"}


def read_kl(path: Path) -> AutoencoderKL:
    """The autoencoder in a file of this layout, with its published scale in its configuration, in eval mode.

    Raises `UserError` for a file that is not weights, is of another layout, or lacks a weight.
    """
    weights = read_tensors(path, command_line=True)
    if any(name.startswith(INSIDE) for name in weights):
        weights = {name.removeprefix(INSIDE): v for name, v in weights.items() if name.startswith(INSIDE)}
    missing = [mark for mark in MARKS if mark not in weights]
    if missing:
        what = f"no autoencoder in its published layout ({some(missing)} missing)"
        raise UserError(str(path), what, "give one such as autoencoder_kl.pth, a folder of diffusers' or a run")
    return assembled(str(path), {name: v for name, v in weights.items() if not name.startswith(TRAINED_WITH)})


def assembled(where: str, weights: Weights) -> AutoencoderKL:
    """The autoencoder with these weights, under their published names. where: the file, for messages."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL

    options = options_of(where, weights)
    levels = len(options["block_out_channels"])
    named = {present_name(where, name, levels): _as_here(name, value) for name, value in weights.items()}
    try:
        with init_empty_weights(include_buffers=False):  # no random numbers are drawn
            vae: Any = AutoencoderKL(**options)
    except ValueError as error:
        what = f"diffusers refuses them ({error})"
        raise UserError(f"weights of {where}", what, "not KL-f8 or one like it") from error
    check_weights(where, vae.state_dict(), named, "not an autoencoder of this layout, or not all of it")
    vae.load_state_dict({name: exact(value) for name, value in named.items()}, assign=True)
    return vae.eval().requires_grad_(False)


def options_of(where: str, weights: Weights) -> dict[str, Any]:
    """The arguments of diffusers' AutoencoderKL that these weights tell. Raises `UserError` for what it cannot be."""
    width, channels, *_ = size_of(where, weights, "encoder.conv_in.weight", 4)
    levels = _count(weights, "encoder.down.")
    widths = tuple(size_of(where, weights, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels))
    latent = size_of(where, weights, "post_quant_conv.weight", 4)[0]
    outputs = size_of(where, weights, "encoder.conv_out.weight", 4)[0]
    attends = re.compile(r"(en|de)coder\.(down|up)\.\d+\.attn\.")
    problems = {
        "attention outside the middle": any(attends.match(name) for name in weights),
        f"{outputs} channels out of the encoder for {latent} of latents": outputs != 2 * latent,
        f"{width} channels, which {GROUPS} groups do not divide": bool(width % GROUPS),
    }
    for what, wrong in problems.items():
        if wrong:
            raise UserError(f"weights of {where}", f"{what}: not supported", "give KL-f8 or KL-f4")
    return {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": widths,
        "layers_per_block": _count(weights, "encoder.down.0.block."),
        "latent_channels": latent,
        "norm_num_groups": GROUPS,
        "scaling_factor": SCALE,
    }


def present_name(where: str, name: str, levels: int) -> str:
    """The name that diffusers has for a weight. Raises `UserError` for a name that this layout has not."""
    if name.startswith(("quant_conv.", "post_quant_conv.")):
        return name
    side, _, rest = name.partition(".")
    found = _inside(rest, levels) if side in ("encoder", "decoder") else None
    if found is None:
        raise UserError(f"weights of {where}", f"{name} is not of this layout", "not an autoencoder such as KL-f8")
    return f"{side}.{found}"


def _inside(name: str, levels: int) -> str | None:
    """The same for a name within the encoder or the decoder."""
    if name.startswith(("conv_in.", "conv_out.")):
        return name
    if name.startswith("norm_out."):
        return "conv_" + name
    if found := re.fullmatch(r"mid\.(block_1|block_2|attn_1)\.(\w+)\.(\w+)", name):
        part, layer, kind = found.groups()
        layers = ATTENTION if part == "attn_1" else BLOCK
        return f"mid_block.{MIDDLE[part]}.{layers.get(layer, layer)}.{kind}"
    found = re.fullmatch(r"(down|up)\.(\d+)\.(?:block\.(\d+)\.(\w+)|(down|up)sample\.conv)\.(\w+)", name)
    if found is None:
        return None
    way, level, block, layer, resample, kind = found.groups()
    place = f"{way}_blocks.{level if way == 'down' else levels - 1 - int(level)}"  # the decoder runs its last one first
    if resample:
        return f"{place}.{resample}samplers.0.conv.{kind}"
    return f"{place}.resnets.{block}.{BLOCK.get(layer, layer)}.{kind}"


def _as_here(name: str, value: Tensor) -> Tensor:
    return value[..., 0, 0] if ".attn_1." in name and value.ndim == 4 else value


def _count(weights: Weights, prefix: str) -> int:
    """How many numbered parts follow this prefix."""
    found = {name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)}
    return sum(part.isdecimal() for part in found)
