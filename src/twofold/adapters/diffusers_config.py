"""What UNet2DModel's and a scheduler's configurations are called here, and what has no name on the other side.

Every option is either translated or refused by its name: `config_of` and `betas_of` for going out, `settings_of` and
`noise_of` for coming in. Nothing here imports diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import nn

from ..denoiser import Denoiser
from ..errors import UserError, nearest
from ..networks.unet import UNet
from ..noise import VP, alpha_bar
from ..settings.network import UNetSettings
from ..settings.noise import VPNoise

DOWN = {"conv": "DownBlock2D", "residual": "ResnetDownsampleBlock2D"}
UP = {"conv": "UpBlock2D", "residual": "ResnetUpsampleBlock2D"}
RESAMPLE = {"conv": "conv", "residual": "resnet"}
PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
BETAS = {  # noise table -> diffusers' schedule, its start and its end; the linear ones are for 1000 steps
    "linear": ("linear", 1e-4, 0.02),
    "joint": ("linear", 1e-3, 0.02),
    "scaled_linear": ("scaled_linear", 0.00085, 0.012),
    "cosine": ("squaredcos_cap_v2", 1e-4, 0.02),
}
ATTENTION_DOWN, ATTENTION_UP = "AttnDownBlock2D", "AttnUpBlock2D"
DEFAULTS: dict[str, Any] = {  # UNet2DModel's, diffusers 0.42
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", ATTENTION_DOWN, ATTENTION_DOWN, ATTENTION_DOWN),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": (ATTENTION_UP, ATTENTION_UP, ATTENTION_UP, "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
ONLY: dict[str, tuple[Any, ...]] = {  # the values that a unet of ours can have
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "freq_shift": (0, 1),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "downsample_type": ("conv", "resnet", None),
    "upsample_type": ("conv", "resnet", None),
}


def exportable_network(denoiser: Denoiser) -> UNet:
    """The denoiser's U-Net. Raises `UserError` naming the first option that UNet2DModel cannot express."""
    network = getattr(denoiser, "network", None)
    if not isinstance(network, UNet):
        raise UserError(f"network {type(network).__name__}", "UNet2DModel holds no such network", "export a unet")
    return expressible(network)


def expressible(network: UNet) -> UNet:
    """The network itself. Raises `UserError` naming the first of its options that UNet2DModel cannot express."""
    if network.mid is None or len(network.dec) == 0:
        raise UserError("network", "only the part of a unet up to one of its layers", "export the whole denoiser")
    s = network.settings
    refused = {
        "multipliers": (s.multipliers, s.multipliers[0] != 1, "the first must be 1"),
        "skip_scale": (s.skip_scale, s.skip_scale != 1, ""),
        "low_factor": (s.low_factor, bool(s.low_factor), "no pipeline shows a network a second image"),
        "augment_dim": (s.augment_dim, s.augment_dim > 0, ""),
        "embedding_channels": (s.embedding_channels, s.embedding_channels not in (None, s.channels), "use null"),
        "label_position": (s.label_position, bool(s.classes) and s.label_position == "before", "use after"),
        "resample_projection": (True, s.resample == "residual" and s.resample_projection, ""),
        "decoder_attention": (s.decoder_attention, bool(s.attention) and s.decoder_attention == "last", "use all"),
        "out_norm_groups": (s.out_norm_groups, s.out_norm_groups not in (None, s.norm_groups), "use norm_groups"),
    }
    for name, (value, is_refused, hint) in refused.items():
        if is_refused:
            raise UserError(f"network.{name}={value}", "UNet2DModel cannot express it", hint)
    if any(side % network.multiple for side in network.shape[1:]):
        hint = f"UNet2DModel needs multiples of {network.multiple}"
        raise UserError(f"shape {'x'.join(map(str, network.shape))}", "this network pads inside", hint)
    check_groups(network, f"network.norm_groups={s.norm_groups}")
    return network


def exportable_noise(denoiser: Denoiser) -> VPNoise:
    """The denoiser's table. Raises `UserError` where diffusers has no such table, or would feed other times."""
    noise_family = getattr(denoiser, "family", None)
    if not isinstance(noise_family, VP):
        raise UserError(f"noise {type(noise_family).__name__}", "not a DDPM table", "UNet2DModel is fed table times")
    noise = noise_family.settings
    for name, wanted in {"time_offset": 0, "time_scale": 1}.items():
        if getattr(noise, name) != wanted:
            raise UserError(f"noise.{name}={getattr(noise, name)}", "diffusers feeds table times", f"{name}={wanted}")
    if noise.table not in BETAS:
        raise UserError(f"noise.table={noise.table}", "diffusers has no such schedule", f"valid: {', '.join(BETAS)}")
    return noise


def check_groups(network: UNet, where: str) -> None:
    """UNet2DModel has as many groups in every norm; raises `UserError` where this network has not."""
    for norm in network.modules():
        if isinstance(norm, nn.GroupNorm) and norm.num_groups != network.settings.norm_groups:
            what = f"a norm over {norm.num_channels} channels has {norm.num_groups} groups here"
            fewest = min(n.num_groups for n in network.modules() if isinstance(n, nn.GroupNorm))
            raise UserError(where, what, f"all norms must have equally many: train with network.norm_groups={fewest}")


def config_of(network: UNet) -> dict[str, Any]:
    """UNet2DModel's configuration of an exportable network."""
    s, (channels, height, width) = network.settings, network.shape
    # every level has blocks + 1 decoder blocks, the lowest first
    attends = [block.attention is not None for block in list(network.dec)[:: s.blocks + 1]]
    return {
        "sample_size": height if height == width else (height, width),
        "in_channels": channels,
        "out_channels": channels * (1 + s.learned_variance),
        "freq_shift": int(s.embedding_endpoint),
        "flip_sin_to_cos": s.embedding_order == "cos_sin",
        "down_block_types": tuple(ATTENTION_DOWN if a else DOWN[s.resample] for a in reversed(attends)),
        "up_block_types": tuple(ATTENTION_UP if a else UP[s.resample] for a in attends),
        "block_out_channels": tuple(s.channels * m for m in s.multipliers),
        "layers_per_block": s.blocks,
        "downsample_padding": 0 if s.downsample_padding == "end" else 1,
        "downsample_type": RESAMPLE[s.resample],
        "upsample_type": RESAMPLE[s.resample],
        "dropout": s.dropout,
        "attention_head_dim": _head_dim(network),
        "norm_num_groups": s.norm_groups,
        "attn_norm_num_groups": s.norm_groups,
        "norm_eps": s.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if s.conditioning == "scale_shift" else "default",
        "num_class_embeds": s.classes + 1 if s.classes else None,
    }


def _head_dim(network: UNet) -> int | None:
    """Channels per head, None for one head over all of them. UNet2DModel has one number for all levels."""
    s = network.settings
    if s.head_channels or s.heads == 1:
        return s.head_channels
    assert network.mid is not None  # as `exportable_network` has checked
    blocks = [network.mid.first, *network.dec]
    dims = {b.attention.norm.num_channels // s.heads for b in blocks if b.attention is not None}
    if len(dims) > 1:
        raise UserError(f"network.heads={s.heads}", "UNet2DModel needs heads of one width", "use head_channels")
    return dims.pop()


def settings_of(config: Mapping[str, Any]) -> tuple[UNetSettings, tuple[int, int, int]]:
    """Our settings and (C, H, W) of UNet2DModel's configuration; what it leaves out has diffusers' default.

    Raises `UserError` naming the first key, or the first value, that our U-Net has nothing for.
    """
    c = {**DEFAULTS, **{key: value for key, value in config.items() if not key.startswith("_")}}
    _check(config, c)
    widths = tuple(c["block_out_channels"])
    height, width = (c["sample_size"],) * 2 if isinstance(c["sample_size"], int) else c["sample_size"]
    attends = [kind == ATTENTION_DOWN for kind in c["down_block_types"]]
    settings = UNetSettings(
        channels=widths[0],
        multipliers=tuple(w // widths[0] for w in widths),
        blocks=c["layers_per_block"],
        attention=tuple(min(height, width) >> level for level, attend in enumerate(attends) if attend),
        head_channels=c["attention_head_dim"],
        dropout=c["dropout"],
        classes=c["num_class_embeds"] or 0,
        learned_variance=c["out_channels"] == 2 * c["in_channels"],
        resample=_resample(c),
        downsample_padding="end" if c["downsample_padding"] == 0 else "both",
        conditioning="scale_shift" if c["resnet_time_scale_shift"] == "scale_shift" else "add",
        embedding_order="cos_sin" if c["flip_sin_to_cos"] else "sin_cos",
        embedding_endpoint=c["freq_shift"] == 1,
        norm_groups=c["norm_num_groups"],
        norm_group_channels=max(1, min(4, min(widths) // c["norm_num_groups"])),
        norm_eps=c["norm_eps"],
    )
    return settings, (c["in_channels"], height, width)


def _check(config: Mapping[str, Any], c: Mapping[str, Any]) -> None:
    """Raises `UserError` for what a UNet2DModel may be and a U-Net of ours may not."""
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise UserError(f"_class_name={config['_class_name']}", "another network", "only UNet2DModel can be imported")
    for key in c:
        if key not in DEFAULTS:
            raise UserError(f"{key}={c[key]}", "unknown key of UNet2DModel's configuration", nearest(key, DEFAULTS))
    widths, sides, head = c["block_out_channels"], c["sample_size"], c["attention_head_dim"]
    attends = [kind == ATTENTION_DOWN for kind in c["down_block_types"]]
    attending = {width for width, attend in zip(widths, attends, strict=False) if attend} | {widths[-1]}
    valid = {key: (c[key] in values, " or ".join(map(str, values))) for key, values in ONLY.items()} | {
        "sample_size": (sides is not None, "twofold needs the size of the images"),
        "out_channels": (
            c["out_channels"] in (c["in_channels"], 2 * c["in_channels"]),
            f"in_channels={c['in_channels']}, or twice that with learned variances",
        ),
        "time_embedding_dim": (c["time_embedding_dim"] in (None, 4 * widths[0]), f"{4 * widths[0]}"),
        "block_out_channels": (all(w % widths[0] == 0 for w in widths), "multiples of the first"),
        "down_block_types": (len(attends) == len(widths), f"{len(widths)} blocks, as in block_out_channels"),
        "up_block_types": (
            [kind == ATTENTION_UP for kind in reversed(c["up_block_types"])] == attends,
            "attention at the same levels as down_block_types",
        ),
        "attention_head_dim": (
            head is None or all(width % head == 0 for width in attending),
            "a divisor of the channels that attend",
        ),
        "attn_norm_num_groups": (
            c["attn_norm_num_groups"] == c["norm_num_groups"]
            or (c["attn_norm_num_groups"] is None and c["resnet_time_scale_shift"] == "default"),
            f"norm_num_groups={c['norm_num_groups']}",
        ),
    }
    for key, (is_valid, right) in valid.items():
        if not is_valid:
            raise UserError(f"{key}={c[key]}", "twofold's unet has no such option", f"valid: {right}")


def _resample(c: Mapping[str, Any]) -> Literal["conv", "residual"]:
    """How all levels change resolution. Raises `UserError` for unknown blocks and where levels differ."""
    kinds: set[str] = set()
    for key, plain, attention, by_attention in (
        ("down_block_types", DOWN, ATTENTION_DOWN, c["downsample_type"]),
        ("up_block_types", UP, ATTENTION_UP, c["upsample_type"]),
    ):
        known = {name: kind for kind, name in plain.items()}
        known[attention] = "residual" if by_attention == RESAMPLE["residual"] else "conv"
        for level, name in enumerate(c[key]):
            if name not in known:
                raise UserError(f"{key}={name}", "twofold's unet has no such block", nearest(name, known))
            if level < len(c[key]) - 1:  # the last one does not change the resolution
                kinds.add(known[name])
    if len(kinds) > 1:
        raise UserError(f"down_block_types={c['down_block_types']}", "strided and residual resampling are mixed", "")
    return "residual" if "residual" in kinds else "conv"


def noise_of(scheduler: Mapping[str, Any]) -> VPNoise:
    """The table and prediction of a diffusers scheduler's configuration. Raises `UserError` for any other than ours."""
    known = {theirs: ours for ours, theirs in PREDICTION.items()}
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in known:
        raise UserError(f"prediction_type={prediction}", "unknown", nearest(prediction, known))
    steps = int(scheduler.get("num_train_timesteps", 1000))
    alphas = _alphas(scheduler, steps)
    for table in BETAS:
        noise = VPNoise(table=table, steps=steps, predicts=known[prediction])
        if alphas is not None and len(alphas) == steps and np.allclose(alphas, alpha_bar(noise), rtol=1e-5, atol=0):
            return noise
    shown = {key: scheduler[key] for key in ("beta_schedule", "beta_start", "beta_end") if key in scheduler}
    where = ", ".join(f"{key}={value}" for key, value in shown.items()) or str(
        scheduler.get("_class_name", "scheduler")
    )
    raise UserError(where, f"no noise table of twofold over {steps} steps", f"twofold has {', '.join(BETAS)}")


def _alphas(scheduler: Mapping[str, Any], steps: int) -> np.ndarray | None:
    """alpha-bar of a scheduler's configuration, (steps,) float64; None for a schedule that is not one of `BETAS`."""
    schedule = scheduler.get("beta_schedule")
    low, high = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    if scheduler.get("rescale_betas_zero_snr"):
        return None
    if scheduler.get("trained_betas") is not None:
        return np.cumprod(1 - np.asarray(scheduler["trained_betas"], dtype=np.float64))
    match schedule:
        case "linear":
            return np.cumprod(1 - np.linspace(low, high, steps))
        case "scaled_linear":
            return np.cumprod(1 - np.linspace(low**0.5, high**0.5, steps) ** 2)
        case "squaredcos_cap_v2":
            return alpha_bar(VPNoise(table="cosine", steps=steps))
    return None


def betas_of(noise: VPNoise) -> dict[str, Any]:
    """num_train_timesteps, beta_schedule, beta_start, beta_end and prediction_type of a scheduler for this table.

    Raises `UserError` for a table so short that its betas are capped, which diffusers' schedules do not do.
    """
    schedule, low, high = BETAS[noise.table]
    scale = 1000 / noise.steps if schedule == "linear" else 1.0
    if high * scale > 0.999:
        raise UserError(f"noise.steps={noise.steps}", "too short for a linear schedule of diffusers", "use 21 or more")
    return {
        "num_train_timesteps": noise.steps,
        "beta_schedule": schedule,
        "beta_start": low * scale,
        "beta_end": high * scale,
        "prediction_type": PREDICTION[noise.predicts],
    }
