"""Settings of a training run. Durations are counted in images, batches are global, learning rates absolute,
so a recipe means the same on 1 or 64 devices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Settings
from .data import DataSettings
from .network import NetworkSettings, UNetSettings
from .noise import NoiseSettings, VPNoise


class Denoising(Settings):
    """Objective: predict x0 (or noise, v, ...) at random noise levels. Gives a denoiser."""

    kind: Literal["denoising"] = "denoising"
    min_snr_gamma: float | None = Field(None, gt=0, description="min-SNR loss weight (5 is usual); null = unweighted")
    label_dropout: float = Field(0.1, ge=0, le=1, description="share of images trained without their label")
    augment_probability: float = Field(
        0.0, ge=0, le=1, description="EDM's non-leaky augmentation (needs augment_dim=9)"
    )


class Supervised(Settings):
    """Objective: cross-entropy on images, clean or noisy. Gives a classifier; label -1 is left out of the loss."""

    kind: Literal["supervised"] = "supervised"
    sigma: Annotated[float, Field(ge=0)] | Literal["training"] = Field(
        0.0, description="noise on the images: 0 = none, a level, or training = all levels, as a denoiser is trained"
    )
    multi_label: bool = Field(
        False, description="each class is a yes-or-no question: an image may be of several, or of none"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")
    shift: int = Field(0, ge=0, description="random shifts in pixels, up to this many in each direction")
    pad: Literal["edge", "black"] = Field("edge", description="what comes in at the side of a shifted image")


ObjectiveSettings = Annotated[Denoising | Supervised, Field(discriminator="kind")]


class LoopSettings(Settings):
    """How long, how fast and how exactly the network is trained."""

    n_images: int = Field(1_000_000, ge=1, description="images to train on, counting repeats")
    batch_size: int = Field(128, ge=1, description="images per optimiser step, over all devices")
    micro_batch: int | None = Field(None, ge=1, description="images per forward pass and device; default: all at once")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="Adam, AdamW, or SGD with momentum")
    lr: float = Field(2e-4, gt=0, description="learning rate (absolute, not per device)")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's betas")
    adam_eps: float = Field(1e-8, gt=0, description="Adam's epsilon")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum")
    weight_decay: float = Field(0.0, ge=0, description="weight decay (decoupled with adamw)")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate per layer away from the head")
    warmup_images: int = Field(0, ge=0, description="images over which the learning rate rises linearly from 0")
    schedule: Literal["constant", "cosine"] = Field("constant", description="learning rate after the warm-up")
    clip_norm: float | None = Field(1.0, gt=0, description="largest gradient norm; null = no clipping")
    ema_halflife_images: int = Field(500_000, ge=0, description="half-life of the weight average; 0 = no averaging")
    ema_rampup: float | None = Field(0.05, gt=0, description="half-life is at most this share of the images seen")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the network; auto = what is fastest"
    )
    channels_last: bool = Field(True, description="channels-last memory format")
    compile: bool = Field(False, description="torch.compile the network (worth it on a GPU)")
    seed: int = Field(0, ge=0, description="seed of weights, noise, order and dropout")
    save_images: int = Field(100_000, ge=1, description="save the training state every so many images")
    keep_states: int = Field(2, ge=1, description="training states kept")
    snapshot_images: tuple[int, ...] = Field((), description="image counts whose averaged weights are kept for good")
    validate_images: int = Field(100_000, ge=1, description="validate every so many images")
    preview_images: int = Field(100_000, ge=1, description="draw a preview grid every so many images")
    log_images: int = Field(5_000, ge=1, description="write a log line every so many images")
    nonfinite_limit: int = Field(10, ge=1, description="non-finite steps in a row that end training")
    tensorboard: bool = Field(False, description="also write TensorBoard event files")

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> LoopSettings:
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch={self.micro_batch} must divide batch_size={self.batch_size}")
        return self


class ValidationSettings(Settings):
    """What is measured on held-out images during training (never on the test part)."""

    split: Literal["validation", "train"] = Field("validation", description="part of the data; never the test part")
    max_images: int = Field(2_000, ge=1, description="held-out images used for the loss, at most")
    samples: int = Field(256, ge=0, description="images generated for the Frechet distance; 0 = none")
    encoder: str = Field("pixels", description="encoder of the Frechet distance")
    sampler: str = Field("dpmpp2m", description="sampler of those images")
    steps: int = Field(12, ge=1, description="its steps")


class TrainSettings(Settings):
    """Everything about a training run; saved as the run's settings.yaml."""

    data: DataSettings
    network: NetworkSettings = UNetSettings()
    noise: NoiseSettings = VPNoise()
    objective: ObjectiveSettings = Denoising()
    train: LoopSettings = LoopSettings()
    validation: ValidationSettings = ValidationSettings()
    init_from: str | None = Field(None, min_length=1, description="the denoiser (run or file) that a trunk starts from")

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainSettings:
        objective, network = self.objective, self.network
        if self.init_from is not None and network.kind != "trunk":
            raise ValueError(f"init_from is for network.kind=trunk; this network is a {network.kind}")
        if objective.kind == "denoising":
            if network.kind != "unet":
                raise ValueError(f"network.kind={network.kind} cannot denoise; use unet")
            if objective.augment_probability > 0 and network.augment_dim != 9:
                raise ValueError("objective.augment_probability > 0 needs network.augment_dim=9")
            return self
        if network.kind == "unet":
            raise ValueError("network.kind=unet does not classify; use convnet, wideresnet, unet_encoder or trunk")
        if network.kind == "convnet" and objective.sigma != 0:
            raise ValueError(
                "network.kind=convnet is not told the noise level; use wideresnet, unet_encoder or trunk "
                "where objective.sigma is not 0"
            )
        if self.train.compile:
            raise ValueError("train.compile=true is for denoisers; leave it false for a classifier")
        return self
