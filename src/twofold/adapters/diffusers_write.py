"""A denoiser as a folder in diffusers' layout: weights, scheduler, autoencoder, and an index that a pipeline opens.

    model_index.json    which pipeline; under "_twofold" what the layout has no place for: names of classes, the noise
                        family's settings, the size of images of a latent model
    unet/ or transformer/      scheduler/      vqvae/ or vae/

The weights are the same numbers under other names. What diffusers' classes cannot express is refused by its name, so a
folder that was written computes what the model computes.

| model                    | pipeline                | it makes                                                        |
| U-Net, VP or flow        | DDPMPipeline            | images (VP: DDIMPipeline opens it too)                          |
| the same, with classes   | ConsistencyModelPipeline| images of `class_labels=` (of VP; a flow needs the loop)        |
| U-Net, EDM               | ConsistencyModelPipeline| images; it is the one for pixels that scales the network's input|
| U-Net of latents         | LDMPipeline             | images, without classes, by VP or EDM                           |
| DiT                      | DiTPipeline             | images by VP, from latents; of pixels: the loop                 |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..denoiser import Denoiser
from ..errors import UserError
from ..files import atomic_bytes, atomic_folder
from ..networks.dit import DiT
from ..networks.unet import UNet, sinusoid
from ..noise import EDM, VP, Flow
from ..settings.network import DiTSettings, UNetSettings
from ..settings.noise import NoiseSettings
from .diffusers_config import expressible
from .diffusers_schedulers import scheduler_of, table_times
from .diffusers_told import EXTRA, NONE
from .diffusers_unet import unet_model
from .dit_layouts import diffusers_names
from .latent_codec import LatentCodec, write_autoencoder

INDEX = "model_index.json"
DIT_EPS = 1e-6  # of all layer norms of DiTTransformer2DModel but those before the MLPs


def write_diffusers(denoiser: Denoiser, folder: Path) -> dict[str, Any]:
    """Writes the model into the new folder, all or nothing; `twofold.load` reads it back with bit-identical weights.

    Returns {"pipeline", "samples": whether that pipeline makes images by itself, "parts", "notes": in plain words}.
    Raises `UserError` naming the option that diffusers cannot express, before anything is written.
    """
    parts = exportable_parts(denoiser)
    with atomic_folder(folder) as temporary:
        facts = write_parts(denoiser, parts, temporary)
    return facts


def exportable_parts(denoiser: Denoiser) -> dict[str, Any]:
    """{folder: diffusers' object (or our codec)}: everything that can be refused has been checked."""
    network = getattr(denoiser, "network", None)
    name, options = scheduler_of(denoiser)
    if isinstance(network, DiT):
        parts: dict[str, Any] = {"transformer": _transformer(denoiser, network)}
        if "variance_type" in options:  # its pipeline shows the scheduler no learned variance
            options["variance_type"] = "fixed_small"
    else:
        parts = {"unet": _unet(denoiser)}
    import diffusers

    parts["scheduler"] = getattr(diffusers, name)(**options)
    if isinstance(denoiser.codec, LatentCodec):
        parts["vae" if "transformer" in parts else "vqvae"] = denoiser.codec
    elif getattr(denoiser.codec, "latent", False):
        raise UserError("codec", "the autoencoder of this latent model is not there", "put it beside the model first")
    return parts


def write_parts(denoiser: Denoiser, parts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Writes checked parts into a folder that is there; see `write_diffusers`."""
    import diffusers

    index: dict[str, Any] = {"_class_name": pipeline_of(denoiser), "_diffusers_version": diffusers.__version__}
    index[EXTRA] = extra(denoiser)
    for name, part in parts.items():
        if isinstance(part, LatentCodec):
            write_autoencoder(part, folder / name)
            index[name] = ["diffusers", "AutoencoderKL"]
        else:
            part.save_pretrained(folder / name)
            index[name] = ["diffusers", type(part).__name__]
    if index["_class_name"] == "DiTPipeline":
        index.setdefault("vae", NONE[1])
        index["id2label"] = {str(k): name for k, name in enumerate(names_of(denoiser))}
    atomic_bytes(folder / INDEX, json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return {
        "pipeline": index["_class_name"],
        "samples": makes_images(denoiser),
        "parts": list(parts),
        "notes": notes(denoiser),
    }


def pipeline_of(denoiser: Denoiser) -> str:
    """The pipeline that opens the folder; see the table above."""
    if isinstance(getattr(denoiser, "network", None), DiT):
        return "DiTPipeline"
    if isinstance(denoiser.codec, LatentCodec):
        return "LDMPipeline"
    family = getattr(denoiser, "family", None)
    if isinstance(family, EDM) or (denoiser.classes and not isinstance(family, Flow)):
        return "ConsistencyModelPipeline"
    return "DDPMPipeline"


def makes_images(denoiser: Denoiser) -> bool:
    """Whether that pipeline makes right images; otherwise they take the loop in the model card."""
    family, (_, height, width) = getattr(denoiser, "family", None), denoiser.shape
    match pipeline_of(denoiser):
        case "DDPMPipeline":
            return not denoiser.classes
        case "ConsistencyModelPipeline":
            return height == width
        case "LDMPipeline":
            shifted = bool(getattr(denoiser.codec, "shift", 0))
            return not denoiser.classes and height == width and not shifted and not isinstance(family, Flow)
    shifted = bool(getattr(denoiser.codec, "shift", 0))
    return isinstance(denoiser.codec, LatentCodec) and isinstance(family, VP) and not shifted


def notes(denoiser: Denoiser) -> list[str]:
    """What somebody who opens the folder should know."""
    found = []
    if denoiser.classes and isinstance(getattr(denoiser, "network", None), UNet):
        found.append(f"class {denoiser.classes} is none of them: what the network is told where nothing is asked for")
    if hasattr(denoiser, "read"):
        found.append("the classifier of this joint model has no place in diffusers' layout and is left out")
    if table_times(_noise(denoiser)) is not None:
        found.append("times reach the network through a table (time_embedding_type=learned): only whole ones")
    if denoiser.learns_variance and not isinstance(getattr(denoiser, "network", None), DiT):
        found.append("the output has a learned variance beside it: DDPMScheduler and DDPMPipeline use it")
    return found


def names_of(denoiser: Denoiser) -> list[str]:
    """What its labels are called: numbers where nobody said."""
    names = list(denoiser.class_names)
    return names if len(names) == denoiser.classes else [str(k) for k in range(denoiser.classes)]


def extra(denoiser: Denoiser) -> dict[str, Any]:
    """What the layout has no place for."""
    codec = denoiser.codec
    found: dict[str, Any] = {"version": __version__, "noise": _noise(denoiser).model_dump(mode="json")}
    found |= {"classes": names_of(denoiser)} if denoiser.classes else {}
    found |= {"clip": denoiser.clip}
    if isinstance(codec, LatentCodec):
        found["codec"] = {"size": codec.size, "channels": codec.channels}
    return found


def _noise(denoiser: Any) -> NoiseSettings:
    """Settings of a family that `scheduler_of` has accepted."""
    found: NoiseSettings = denoiser.family.settings
    return found


def _unet(denoiser: Denoiser) -> Any:
    network = getattr(denoiser, "network", None)
    if not isinstance(network, UNet):
        what = "diffusers has no such network"
        raise UserError(f"network {type(network).__name__}", what, "a unet or a dit can be exported")
    network = expressible(alone(network))
    times = table_times(_noise(denoiser))
    return unet_model(network, None if times is None else waves(network.settings, times))


def waves(settings: UNetSettings, times: Tensor) -> Tensor:
    """What the network's embedding makes of these times before anything is learned of them: (N, channels) float32."""
    width = settings.embedding_channels or settings.channels
    return sinusoid(times.float(), width, settings.embedding_order, settings.embedding_endpoint)


def alone(network: UNet) -> UNet:
    """The U-Net without the head of a joint model and without the embedding of augmentation labels (which adds zero
    where there are none): sharing its weights."""
    s = network.settings
    if s.head is None and not s.augment_dim:
        return network
    with torch.device("meta"):
        channels, height, width = network.shape
        made = UNet(s.model_copy(update={"head": None, "augment_dim": 0}), (channels, height, width))
    weights = network.state_dict()
    made.load_state_dict({name: weights[name] for name in made.state_dict()}, assign=True)
    return made.eval()


def _transformer(denoiser: Denoiser, network: DiT) -> Any:
    """Our DiT as DiTTransformer2DModel. Raises `UserError` naming the first option that it cannot express."""
    s, (channels, height, width) = network.settings, network.shape
    _check_transformer(denoiser, s, height, width)
    from diffusers import DiTTransformer2DModel

    model: Any = DiTTransformer2DModel(
        num_attention_heads=s.heads,
        attention_head_dim=s.width // s.heads,
        in_channels=channels,
        out_channels=channels * (1 + s.learned_variance),
        num_layers=s.depth,
        dropout=s.dropout,
        sample_size=height,
        patch_size=s.patch,
        num_embeds_ada_norm=s.classes,
        norm_eps=s.mlp_norm_eps or s.norm_eps,
    )
    names = diffusers_names(s.depth)
    theirs: dict[str, Tensor] = {}
    ours = network.state_dict()
    for k in range(s.depth if s.embedders == "shared" else 0):  # one for each block there
        copies = {n.replace("embedders.0.", f"embedders.{k}."): t for n, t in ours.items() if "embedders.0." in n}
        ours = {**ours, **copies}
    for name, tensor in ours.items():
        module, _, parameter = name.rpartition(".")
        parts = tensor.detach().to("cpu", copy=True).chunk(len(names[module]))
        theirs |= {f"{t}.{parameter}": part.clone() for t, part in zip(names[module], parts, strict=True)}
    model.load_state_dict(theirs, assign=True)
    return model.eval()


def _check_transformer(denoiser: Denoiser, s: DiTSettings, height: int, width: int) -> None:
    noise = _noise(denoiser)
    refused = {
        "network.classes": (s.classes, not s.classes, "it is always told a class"),
        "network.embedding_endpoint": (s.embedding_endpoint, not s.embedding_endpoint, "train with true"),
        "network.embedding_channels": (s.embedding_channels, s.embedding_channels != 256, "it has 256"),
        "network.mlp_ratio": (s.mlp_ratio, s.mlp_ratio != 4, "it has 4"),
        "network.norm_eps": (s.norm_eps, s.norm_eps != DIT_EPS, f"it has {DIT_EPS:g}"),
        "shape": (f"{height}x{width}", height != width, "it is square"),
        "noise.time_scale, time_offset": (
            "other than 1 and 0",
            table_times(noise) is not None,
            "it is fed table times",
        ),
    }
    for name, (value, is_refused, hint) in refused.items():
        if is_refused:
            raise UserError(f"{name}={value}", "DiTTransformer2DModel cannot express it", hint)
