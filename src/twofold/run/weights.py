"""Trained weights in one safetensors file that is the whole model: settings, classes and layer table are inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import networks
from ..adapters.latent_codec import LatentCodec
from ..denoiser import JointDenoiser, NetworkDenoiser
from ..errors import UserError
from ..files import atomic_file
from ..networks.autoencoder import AutoencoderModel
from ..networks.rdn import Upscaler
from ..noise import family
from ..recognize.backbone import Backbone
from ..recognize.classifier import JointClassifier, NetworkClassifier
from ..recognize.landmarker import NetworkLandmarker
from ..recognize.segmenter import NetworkSegmenter
from ..settings.distilling import Distill
from ..settings.network import NetworkSettings, TrunkSettings, WideResNetSettings
from ..settings.noise import EDMNoise, FlowNoise, NoiseSettings
from ..settings.student import StudentSettings
from ..settings.tasks import Landmarks, Segmentation
from ..settings.train import CLEAN, TrainSettings
from .codec import codec_beside, codec_facts

FORMAT = "1"
Trained = (
    NetworkDenoiser | NetworkClassifier | NetworkSegmenter | NetworkLandmarker | Backbone | AutoencoderModel | Upscaler
)
Loaded = (
    NetworkDenoiser
    | NetworkClassifier
    | NetworkSegmenter
    | NetworkLandmarker
    | Backbone
    | JointClassifier
    | LatentCodec
    | Upscaler
)


def build(settings: TrainSettings, shape: tuple[int, int, int], classes: list[str], codec: Any = None) -> Trained:
    """The model these settings describe, freshly initialised, for x0 of this shape and these class names.

    codec: of a latent model (`LatentCodec`, or `NoCodec` where it is not there); None: of pixels.
    """
    network: Any = networks.build(_scaled(settings.network, settings.noise), shape, len(classes))
    if not hasattr(network, "settings"):
        network.settings = settings.network  # type: ignore[assignment]
    if settings.objective.kind == "autoencoder":
        return AutoencoderModel(network, shape)
    if settings.objective.kind == "regression":
        return Upscaler(network, shape)
    if isinstance(settings.objective, Distill):
        return Backbone(network, shape, data_classes=classes)
    if isinstance(settings.objective, Segmentation):
        return NetworkSegmenter(network, classes, shape)
    if isinstance(settings.objective, Landmarks):
        return _landmarker(network, settings.objective, shape, classes)
    if settings.objective.kind in ("supervised", "freematch", "kd"):
        return _classifier(network, settings, shape, classes)
    conditional = settings.network.classes or 0
    known: dict[str, Any] = {"classes": conditional, "class_names": classes}
    model: NetworkDenoiser
    if settings.objective.kind == "joint":
        several = settings.objective.multi_label
        model = JointDenoiser(network, family(settings.noise), shape, **known, multi_label=several)
    else:
        model = NetworkDenoiser(network, family(settings.noise), shape, **known, codec=codec, clip=codec is None)
    looked = settings.validation
    if looked.sampler != model.usual[0]:  # what it was looked at with in training is what it is sampled with
        model.usual = (looked.sampler, looked.steps)
    return model


def _landmarker(
    network: nn.Module, settings: Landmarks, shape: tuple[int, int, int], names: list[str]
) -> NetworkLandmarker:
    """Read as it was trained to be read."""
    read = (settings.flip_test, settings.quarter_shift, settings.unbiased)
    return NetworkLandmarker(network, names, shape, settings.flip_pairs, settings.heat_sigma, *read)


def _classifier(
    network: nn.Module, settings: TrainSettings, shape: tuple[int, int, int], classes: list[str]
) -> NetworkClassifier:
    """Told the noise level, if its network is of a kind that listens."""
    multi_label = getattr(settings.objective, "multi_label", False)
    if settings.network.kind in CLEAN:
        return NetworkClassifier(network, classes, shape, multi_label=multi_label)
    known, sigma = family(settings.noise), getattr(settings.objective, "sigma", 0.0)
    level = 0.0 if sigma == "training" else sigma
    low, high = known.sigma_range
    if level and not low <= level <= high:
        raise UserError(
            f"objective.sigma={level:g}", f"outside [{low:.4g}, {high:.4g}], the levels of the noise family"
        )
    return NetworkClassifier(network, classes, shape, known, level, multi_label)


def _scaled(network: NetworkSettings, noise: NoiseSettings) -> NetworkSettings:
    """The network's settings with the scale of its noise embedding, where that is left to the noise family."""
    if not isinstance(network, WideResNetSettings | TrunkSettings) or network.embedding_scale is not None:
        return network
    if isinstance(noise, EDMNoise):
        scale = 4.0  # c_noise is ln(sigma) / 4
    elif isinstance(noise, FlowNoise):
        scale = 1 / noise.time_scale
    else:
        scale = 1 / ((1000 if noise.table == "continuous" else noise.steps) * noise.time_scale)
    return network.model_copy(update={"embedding_scale": scale})


def save_model(
    path: Path,
    weights: dict[str, Tensor],
    model: Trained,
    settings: TrainSettings,
    n_images: int,
    scale: float | None = None,
) -> None:
    """Writes weights (EMA as a rule) with everything that is needed to use them, atomically.

    scale: of an autoencoder's latents. The autoencoder of a latent model is named, and not inside: see `codec_beside`.
    """
    if isinstance(settings.network, StudentSettings):  # complete, so that it is built again without the hub
        network = settings.network.model_copy(update={"backbone": model.network.settings.backbone})  # type: ignore[union-attr]
        settings = settings.model_copy(update={"network": network})
    table = [{"name": name, "channels": layer.channels, "stride": layer.stride} for name, layer in model.layers.items()]
    facts = {
        "format": FORMAT,
        "settings": settings.model_dump(mode="json"),
        "shape": list(model.shape),
        "classes": list(model.class_names),
        "layers": table,
        "n_images": n_images,
        **({} if scale is None else {"scale": scale}),
        **codec_facts(model),
    }
    # one entry, because safetensors writes several in any order and equal models should be equal files
    metadata = {"twofold": json.dumps(facts)}
    plain = {name: value.detach().to("cpu").contiguous() for name, value in weights.items()}
    atomic_file(path, lambda temporary: save_file(plain, temporary, metadata))


def load_model(path: Path, device: torch.device | str = "cpu") -> Loaded:
    """The model in a file written by `save_model`, in eval mode. Raises `UserError` for anything else.

    A joint model whose decoder was never trained (`objective.denoise=false`) is a classifier alone, and an autoencoder
    the codec it is used as.
    """
    try:
        with safe_open(path, "pt", device="cpu") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(
            str(path), f"not a readable safetensors file ({error})", "train again or copy it anew"
        ) from None
    if "twofold" not in metadata:
        raise UserError(str(path), "holds weights, but not a twofold model", "pass a run folder or a model.safetensors")
    facts = json.loads(metadata["twofold"])
    if facts["format"] != FORMAT:
        raise UserError(str(path), f"has format {facts['format']}, this version reads {FORMAT}", "update twofold")
    try:
        settings = TrainSettings.model_validate(facts["settings"])
    except ValidationError as error:
        first = error.errors()[0]
        what = f"its settings are of another version of twofold ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        raise UserError(str(path), what, "load it with the version that wrote it, or train again") from None
    shape = tuple(facts["shape"])
    # not on the meta device: its random initialisation imports torch's compiler, which takes seconds
    with torch.random.fork_rng(devices=[]):
        model = build(settings, shape, facts["classes"], codec_beside(path, facts.get("codec")))
    check_weights(str(path), model.network, weights)
    model.network.load_state_dict(weights, assign=True)
    if isinstance(model, AutoencoderModel):
        return LatentCodec(model.network.vae, scale=facts.get("scale", 1.0), shift=0.0).to(device)
    model.to(device)
    if settings.train.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval().requires_grad_(False)
    trained = getattr(settings.objective, "denoise", True)
    return model if trained or not isinstance(model, JointDenoiser) else JointClassifier(model)


def check_weights(where: str, module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raises `UserError` naming the first missing, surplus or misshapen weight."""
    expected = module.state_dict()
    missing = [name for name in expected if name not in weights]
    surplus = [name for name in weights if name not in expected]
    if missing or surplus:
        raise UserError(
            where, f"missing weights {missing[:3]}, surplus weights {surplus[:3]}", "not this network's file"
        )
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            has, needs = tuple(value.shape), tuple(expected[name].shape)
            raise UserError(where, f"{name} has shape {has}, the network needs {needs}", "not this network's file")
