"""diffusers' UNet2DModel in both directions: options, weights, and the scheduler's table.

The same network twice: what one side cannot say is refused by the name of the option (`diffusers_config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser, NetworkDenoiser
from ..errors import UserError, some
from ..networks.blocks import Block
from ..networks.unet import UNet, sinusoid
from ..noise import family
from ..settings.noise import NoiseSettings, VPNoise
from .diffusers_config import (
    DEFAULTS,
    betas_of,
    check_groups,
    config_of,
    exportable_network,
    exportable_noise,
    settings_of,
)
from .diffusers_files import class_name, present_name, read_json, read_weights
from .diffusers_schedulers import noise_from, table_times
from .diffusers_told import NONE, told_codec, told_names, told_of

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

# names of a block's parts here and there; the three projections of attention are one matrix here
RESNET = {"norm1": "norm1", "conv1": "conv1", "emb": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}
ATTENTION = {"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "proj": ("to_out.0",)}
LABELS = "class_embedding.weight"
TIMES = "time_proj.weight"
PARTS = ("unet", "scheduler", "vqvae", "vae")  # of a pipeline; the last two are an autoencoder


def to_diffusers(denoiser: Denoiser) -> UNet2DModel:
    """The denoiser's network as a UNet2DModel in evaluation mode, with copies of the weights, on the CPU.

    A network with labels gets one class more: the last one is "none", a row of zeros.
    Raises `UserError` naming the first option that UNet2DModel cannot express. The noise must be a DDPM table
    (`to_scheduler` gives its scheduler) whose integer times the network is fed.
    """
    exportable_noise(denoiser)
    return unet_model(exportable_network(denoiser))


def unet_model(network: UNet, table: Tensor | None = None) -> UNet2DModel:
    """An exportable network as a UNet2DModel; see `to_diffusers`.

    table: (steps, channels), what the first layer is given at each whole time, where that is not the sinusoid of the
    time itself: its time embedding is then a "learned" one with these rows.
    """
    config = config_of(network)
    names = _names(network)
    theirs: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        parts = tensor.to("cpu", copy=True).chunk(len(names[name]))
        theirs |= {their: part.contiguous() for their, part in zip(names[name], parts, strict=True)}
    if LABELS in theirs:
        theirs[LABELS] = torch.cat([theirs[LABELS], theirs[LABELS].new_zeros(1, theirs[LABELS].shape[1])])
    if table is not None:
        config |= {"time_embedding_type": "learned", "num_train_timesteps": len(table)}
        theirs[TIMES] = table

    from diffusers import UNet2DModel

    model: Any = UNet2DModel(**config)  # its stubs do not say that it is a module
    model.load_state_dict(theirs, assign=True)
    return model.eval()


def to_scheduler(denoiser: Denoiser) -> DDPMScheduler:
    """The DDPMScheduler with the denoiser's betas and prediction type. Raises `UserError` if there is none."""
    betas = betas_of(exportable_noise(denoiser))
    variance = "learned_range" if denoiser.learns_variance else "fixed_small"

    from diffusers import DDPMScheduler

    return DDPMScheduler(**betas, clip_sample=denoiser.clip, variance_type=variance)


def from_diffusers(source: Any, scheduler: Any = None) -> NetworkDenoiser:
    """A UNet2DModel, or a folder that holds one (a pipeline's, or the unet's own), as a denoiser in evaluation mode.

    scheduler: a diffusers scheduler with betas, of EDM or of flow matching, or its configuration; a pipeline's folder
    brings its own. Without one
    the network is taken for DDPM's: linear betas 1e-4 .. 0.02, 1000 steps, predicting the noise.
    A last class whose embedding is zero is "none" (label -1) and not counted. Twice as many output channels as input
    channels are noise and learned variance. Weights become float32 or better copies.

    Raises `UserError` naming the first configuration key that twofold has nothing for, and for weights that are not
    those of the configuration.
    """
    if isinstance(source, str | Path):
        found = _read_folder(Path(source))
        scheduler = found.scheduler if scheduler is None else scheduler
    else:
        found = _Folder(type(source).__name__, dict(source.config), source.state_dict())
    where, config, weights, told = found.where, found.config, found.weights, found.told
    scheduler = dict(getattr(scheduler, "config", scheduler) or {})
    noise = noise_from(scheduler, told.get("noise")) if scheduler else VPNoise()
    if config.get("time_embedding_type") == "learned":
        config, weights = without_table(where, config, weights, noise)
    table = weights.get(LABELS)
    if table is not None and len(table) > 1 and not table[-1].any():
        weights = {**weights, LABELS: table[:-1]}
        config = {**config, "num_class_embeds": len(table) - 1}
    settings, shape = settings_of(config)
    with torch.device("meta"):
        network = UNet(settings, shape)
    check_groups(network, f"norm_num_groups={settings.norm_groups}")
    _assign(network, {present_name(name): tensor for name, tensor in weights.items()}, where)
    codec = None if found.autoencoder is None else told_codec(found.autoencoder, shape, told)
    clip = codec is None and bool(scheduler.get("clip_sample", told.get("clip", True)))
    classes = settings.classes or 0
    names = told_names(told, classes)
    return NetworkDenoiser(network, family(noise), shape, classes, codec, clip=clip, class_names=names).eval()


def without_table(
    where: str, config: Mapping[str, Any], weights: Mapping[str, Tensor], noise: NoiseSettings
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights with the sinusoid of `noise`'s times in the place of a table that holds just that.

    Raises `UserError` for a table of anything else, such as one that was learned.
    """
    times, table = table_times(noise), weights.get(TIMES)
    given = {**DEFAULTS, **config}
    order, endpoint = "cos_sin" if given["flip_sin_to_cos"] else "sin_cos", given["freq_shift"] == 1
    width = given["block_out_channels"][0]
    if times is None or table is None or not torch.equal(table, sinusoid(times, width, order, endpoint)):
        what = "a table of time embeddings that is not the sinusoid of known times"
        raise UserError(f"time_embedding_type=learned of {where}", what, "valid: positional, or what twofold wrote")
    rest = {name: tensor for name, tensor in weights.items() if name != TIMES}
    return {**config, "time_embedding_type": "positional", "num_train_timesteps": None}, rest


def _assign(network: UNet, theirs: Mapping[str, Tensor], where: str) -> None:
    """Gives the network (on the meta device) copies of these weights. Raises `UserError` unless they fit exactly."""
    names, ours = _names(network), {}
    missing = [their for group in names.values() for their in group if their not in theirs]
    surplus = [their for their in theirs if their not in {name for group in names.values() for name in group}]
    for problem, keys in (("missing", missing), ("surplus", surplus)):
        if keys:
            raise UserError(
                f"weights of {where}", f"{len(keys)} {problem}: {some(keys)}", "config and weights disagree"
            )
    for name, parameter in network.state_dict().items():
        right = (len(parameter) // len(names[name]), *parameter.shape[1:])
        for their in names[name]:
            if theirs[their].shape != right:
                what = f"{their} has shape {tuple(theirs[their].shape)}, not {right}"
                raise UserError(f"weights of {where}", what, "config and weights disagree")
        tensor = torch.cat([theirs[their] for their in names[name]])
        ours[name] = tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
    network.load_state_dict(ours, assign=True)


def _names(network: UNet) -> dict[str, tuple[str, ...]]:
    """{our parameter: theirs}; where theirs are several, ours is their concatenation."""
    modules: dict[str, tuple[str, ...]] = {
        "embedding.first": ("time_embedding.linear_1",),
        "embedding.second": ("time_embedding.linear_2",),
        "embedding.label": ("class_embedding",),
        "enc.0": ("conv_in",),
        "norm": ("conv_norm_out",),
        "out": ("conv_out",),
    }
    levels, blocks = len(network.settings.multipliers), network.settings.blocks
    for k in range(1, len(network.enc)):  # per level: its blocks, then the change of resolution
        level, i = divmod(k - 1, blocks + 1)
        modules |= _module(network.enc[k], f"enc.{k}", f"down_blocks.{level}", i if i < blocks else "downsamplers")
    assert network.mid is not None  # as `exportable_network` has checked
    modules |= _module(network.mid.first, "mid.first", "mid_block", 0)
    modules |= _module(network.mid.second, "mid.second", "mid_block", 1)
    for j, block in enumerate(network.dec):
        modules |= _module(block, f"dec.{j}", f"up_blocks.{j // (blocks + 1)}", j % (blocks + 1))
    for level in range(levels - 1):
        modules |= _module(network.up[level], f"up.{level}", f"up_blocks.{level}", "upsamplers")
    return {
        f"{module}.{parameter}": tuple(f"{their}.{parameter}" for their in modules[module])
        for module, _, parameter in (name.rpartition(".") for name in network.state_dict())
    }


def _module(module: nn.Module, ours: str, theirs: str, place: int | str) -> dict[str, tuple[str, ...]]:
    """{our module: theirs} of one residual block with its attention, or of one change of resolution."""
    if not isinstance(module, Block):
        return {ours: (f"{theirs}.{place}.0.conv",)}
    resnet = f"{theirs}.{place}.0" if isinstance(place, str) else f"{theirs}.resnets.{place}"
    names: dict[str, tuple[str, ...]] = {f"{ours}.{our}": (f"{resnet}.{their}",) for our, their in RESNET.items()}
    names[f"{ours}.skip"] = (f"{resnet}.conv_shortcut",)
    for our, parts in ATTENTION.items():
        names[f"{ours}.attention.{our}"] = tuple(f"{theirs}.attentions.{place}.{part}" for part in parts)
    return names


@dataclass(frozen=True)
class _Folder:
    """A unet with what lies beside it: the scheduler's configuration, the folder of an autoencoder, what twofold wrote
    into the index."""

    where: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    scheduler: dict[str, Any] | None = None
    autoencoder: Path | None = None
    told: Mapping[str, Any] = field(default_factory=dict)


def _read_folder(folder: Path) -> _Folder:
    scheduler, autoencoder, told = None, None, told_of({})
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json")
        for part, value in index.items():
            if not part.startswith("_") and part not in PARTS and value not in NONE:
                raise UserError(f"{folder}: {part}={value}", "only pipelines of a unet and a scheduler can be imported")
        if (folder / "scheduler" / "scheduler_config.json").is_file():
            scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        autoencoder = next((folder / part for part in PARTS[2:] if index.get(part) not in NONE), None)
        told = told_of(index)
        folder = folder / "unet"
    class_name(folder)  # there is a config.json
    weights = read_weights(folder)
    return _Folder(str(folder), read_json(folder / "config.json"), weights, scheduler, autoencoder, told)
