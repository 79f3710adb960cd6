"""A DiT in diffusers' layout, with its autoencoder, as a denoiser of latents.

DiTTransformer2DModel's configuration and weights become our own network (`twofold.networks.dit`), which computes what
diffusers computes: the lowest frequency of its noise embedding is exactly 1/10000, and the norm before an MLP has an
epsilon of its own. Trained as DDPM: linear betas 1e-4 .. 0.02, 1000 steps, predicting the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..codec import Codec
from ..denoiser import NetworkDenoiser
from ..errors import UserError, nearest
from ..noise import family
from ..settings.network import DiTSettings
from ..settings.noise import NoiseSettings, VPNoise
from .diffusers_files import NOTHING, class_name, read_json, read_weights
from .diffusers_schedulers import noise_from
from .diffusers_told import NONE, told_codec, told_names, told_of
from .dit_layouts import assembled, diffusers_names, with_one_embedder
from .latent_codec import NoCodec

TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")  # the second is what early folders say
DEFAULTS: dict[str, Any] = {  # DiTTransformer2DModel's, diffusers 0.42
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "upcast_attention": False,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
ONLY = {"activation_fn": "gelu-approximate", "norm_type": "ada_norm_zero", "norm_elementwise_affine": False}


def read_dit(folder: Path) -> NetworkDenoiser:
    """The DiT in a DiTPipeline's folder (transformer, vae, scheduler), or in the transformer's own (latents only).

    Raises `UserError` naming what is missing, of another class, or not in the weights. No pickle is opened.
    """
    index: Mapping[str, Any] = {}
    home = folder
    noise: NoiseSettings = VPNoise()
    if (folder / "model_index.json").is_file():
        index, home = read_json(folder / "model_index.json"), folder / "transformer"
        scheduler = folder / "scheduler" / "scheduler_config.json"
        if scheduler.is_file():
            noise = noise_from(read_json(scheduler), told_of(index).get("noise"))
    if class_name(home) not in TRANSFORMERS:
        what = "another class than a DiT is run with"
        raise UserError(f"{home}: {class_name(home)}", what, f"valid: {TRANSFORMERS[0]}")
    settings, shape = settings_of(read_json(home / "config.json"), str(home / "config.json"))
    weights = _with_biases(settings.depth, read_weights(home))
    names = diffusers_names(settings.depth)
    network = with_one_embedder(assembled(str(home), settings, shape, names, weights, "config and weights disagree"))
    classes, told = settings.classes or 0, told_of(index)
    codec, clip = _codec(folder, index, shape), bool(told.get("clip", False))
    called = told_names(told, classes) or _names(index, classes)
    made = NetworkDenoiser(network, family(noise), shape, classes, codec, clip, called)
    return made.eval().requires_grad_(False)


def _codec(folder: Path, index: Mapping[str, Any], shape: tuple[int, int, int]) -> Codec | None:
    """The autoencoder of a pipeline; None of one of ours for pixels."""
    if not index:
        return NoCodec(str(folder))
    told = told_of(index)
    return None if told and index.get("vae") in NONE else told_codec(folder / "vae", shape, told)


def settings_of(config: Mapping[str, Any], where: str) -> tuple[DiTSettings, tuple[int, int, int]]:
    """Our settings and (C, H, W) of DiTTransformer2DModel's configuration, one embedder to each block.

    Raises `UserError` naming the first key, or the first value, that our DiT has nothing for.
    """
    for key, value in config.items():
        if key not in DEFAULTS and not key.startswith("_") and value not in NOTHING:
            hint = nearest(key, DEFAULTS)
            raise UserError(f"{where}: {key}={value}", "DiTTransformer2DModel has no such option", hint)
    c = DEFAULTS | {key: value for key, value in config.items() if key in DEFAULTS}
    for key, only in ONLY.items():
        if c[key] != only:
            raise UserError(f"{where}: {key}={c[key]}", "twofold's dit has no such option", f"valid: {only}")
    channels, outputs = c["in_channels"], c["out_channels"] or c["in_channels"]
    if outputs not in (channels, 2 * channels):
        hint = f"valid: {channels}, or {2 * channels} with learned variances"
        raise UserError(f"{where}: out_channels={outputs}", "neither noise nor noise and variance", hint)
    settings = DiTSettings(
        patch=c["patch_size"],
        width=c["num_attention_heads"] * c["attention_head_dim"],
        depth=c["num_layers"],
        heads=c["num_attention_heads"],
        dropout=c["dropout"],
        classes=c["num_embeds_ada_norm"],
        learned_variance=outputs == 2 * channels,
        embedding_endpoint=True,
        embedders="each",
        mlp_norm_eps=c["norm_eps"],
    )
    return settings, (channels, c["sample_size"], c["sample_size"])


def _with_biases(depth: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Projections without biases (attention_bias: false) are projections with zeros."""
    names = [f"transformer_blocks.{k}.attn1.to_{part}" for k in range(depth) for part in "qkv"]
    if any(f"{name}.bias" in weights for name in names) or not all(f"{name}.weight" in weights for name in names):
        return weights
    return weights | {f"{name}.bias": torch.zeros(len(weights[f"{name}.weight"])) for name in names}


def _names(index: Mapping[str, Any], classes: int) -> list[str]:
    """The pipeline's names of all classes in order, or none at all."""
    names = index.get("id2label")
    if not isinstance(names, Mapping) or not all(str(k) in names for k in range(classes)):
        return []
    return [str(names[str(k)]) for k in range(classes)]
