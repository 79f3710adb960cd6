"""Settings of a training run. Durations are counted in images, batches are global, learning rates absolute,
so a recipe means the same on 1 or 64 devices."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .base import Settings
from .codec import CodecSettings
from .data import DataSettings
from .distilling import Distill
from .freematch import FreeMatch
from .kd import KD
from .loop import LoopSettings as LoopSettings
from .network import NetworkSettings, TapHeadSettings, UNetSettings
from .noise import NoiseSettings, VPNoise
from .regression import Regression, check_regression
from .tasks import Landmarks, Segmentation, check_head

DENOISERS = ("unet", "dit", "uvit", "iddm")  # kinds of networks that denoise
CLEAN = ("convnet", "wrn", "student")  # kinds that classify, and are not told the noise level


class Denoising(Settings):
    """Objective: predict x0 (or noise, v, ...) at random noise levels. Gives a denoiser."""

    kind: Literal["denoising"] = "denoising"
    loss: Literal["mse", "hybrid", "vlb"] = Field(
        "mse", description="squared error; with 0.001 of the variational bound, for a learned variance; the bound alone"
    )
    distance: Literal["mse", "l1", "huber", "smooth_l1"] = Field(
        "mse",
        exclude_if=lambda value: value == "mse",  # older settings keep their hash
        description="what being off costs: its square; its size; half the square up to 1 and linear beyond (huber and "
        "smooth_l1 are one formula at that width)",
    )
    levels: Literal["family", "uniform", "log_normal", "importance"] = Field(
        "family", description="noise levels in training: the noise family's own, evenly, ln sigma normal, or by loss"
    )
    level_mean: float = Field(-1.2, description="log_normal: mean of ln sigma")
    level_std: float = Field(1.2, gt=0, description="log_normal: standard deviation of ln sigma")
    min_snr_gamma: float | None = Field(None, gt=0, description="min-SNR loss weight (5 is usual); null = unweighted")
    label_dropout: float = Field(0.1, ge=0, le=1, description="share of images trained without their label")
    label_confidence: Literal["ignore", "published", "proportional"] = Field(
        "ignore",
        description="what unsure labels (confidence c in the label file) change in that share p: nothing; p (1 - c), "
        "as published with DPT; 1 - c (1 - p)",
    )
    augment_probability: float = Field(
        0.0, ge=0, le=1, description="EDM's non-leaky augmentation (needs augment_dim=9)"
    )
    crop: int | None = Field(
        None,
        ge=1,
        exclude_if=lambda value: value is None,
        description="super-resolution: trained on squares of this side, cut from the images at random; null = whole",
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
    labelled_only: bool = Field(
        False,
        description="batches are of labelled images alone; false: unlabelled ones are among them, and count in nothing",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")
    shift: int = Field(0, ge=0, description="random shifts in pixels, up to this many in each direction")
    pad: Literal["edge", "black"] = Field("edge", description="what comes in at the side of a shifted image")
    affine: float = Field(
        0.0, ge=0, description="strength of random turns, scalings and shears; 1 = up to 15 degrees, 10 % and 10 %"
    )


class Joint(Denoising):
    """Objective: the denoising loss, and a classifier on the encoder's maps. Gives a joint model: both at once."""

    kind: Literal["joint"] = "joint"  # type: ignore[assignment]
    weight: float = Field(0.1, ge=0, description="factor on the classification loss (Joint Diffusion: 0.001)")
    weight_from_images: int = Field(0, ge=0, description="images after which the classifier begins to be trained")
    weight_rampup_images: int = Field(0, ge=0, description="images over which the factor then rises linearly from 0")
    weight_until_images: int | None = Field(None, ge=1, description="images after which it is 0 again; null = never")
    reads: Literal["clean", "noised", "both"] = Field(
        "both", description="images that the classifier learns from; guidance needs one that knows noise"
    )
    multi_label: bool = Field(
        False, description="each class is a yes-or-no question; of attributes where there are any"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")
    labelled_batch: int | None = Field(
        None,
        ge=0,
        description="labelled images per step that the classifier gets besides; 0 = those of the batch alone; null = "
        "0, or a quarter of the batch where fewer than half of the images are labelled",
    )
    vary: float = Field(
        0.0, ge=0, description="strength of the augmentation of its clean images; 1 = Joint Diffusion's"
    )
    vary_flip: bool = Field(True, description="whether that mirrors images; false for digits and letters")
    mix: float = Field(0.0, ge=0, le=1, description="share of its clean images that are mixed with another one (MixUp)")
    pseudo_labels: Literal["none", "sure", "soft"] = Field(
        "none",
        description="learn from own answers about clean images: those that are sure (FixMatch), or all, sharpened "
        "(MixMatch; with mix=1)",
    )
    pseudo_threshold: float = Field(0.95, ge=0, lt=1, description="sure: probability from which an answer counts")
    pseudo_balanced: bool = Field(
        False, description="for that, take classes for equally frequent: without it rare answers become ever rarer"
    )
    pseudo_weight: float = Field(1.0, ge=0, description="factor on that part of the classification loss")
    denoise: bool = Field(True, description="false: train the encoder and the classifier alone, as a baseline")

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Joint:
        if self.weight_until_images is not None and self.weight_until_images <= self.weight_from_images:
            raise ValueError(
                f"weight_until_images={self.weight_until_images} is not after "
                f"weight_from_images={self.weight_from_images}"
            )
        return self


class Autoencoding(Settings):
    """Objective: reconstruct images from their latents. Gives the autoencoder of a latent model (`codec=RUN`)."""

    kind: Literal["autoencoder"] = "autoencoder"
    loss: Literal["l1", "mse"] = Field("mse", description="how far a pixel is off: |error|, or its square")
    kl_weight: float = Field(
        1e-4,
        ge=0,
        description="factor on the latents' divergence from a standard normal, in nats per pixel and channel",
    )


ObjectiveSettings = Annotated[
    Denoising | Supervised | Joint | Autoencoding | FreeMatch | Segmentation | Landmarks | Distill | KD | Regression,
    Field(discriminator="kind"),
]


class ValidationSettings(Settings):
    """What is measured on held-out images during training (never on the test part)."""

    split: Literal["validation", "train"] = Field("validation", description="part of the data; never the test part")
    max_images: int = Field(2_000, ge=1, description="held-out images used for the loss, at most")
    samples: int = Field(256, ge=0, description="images generated for the Frechet distance; 0 = none")
    encoder: str = Field("pixels", description="encoder of the Frechet distance")
    sampler: str = Field(
        "dpmpp2m",
        description="sampler of those images and of previews; another one than this is the run's usual sampler later",
    )
    steps: int = Field(12, ge=1, description="its steps")
    keep_best: bool = Field(
        True, description="keep the weights that were best at each measure; false where labels are few: it uses more"
    )


class LoraSettings(Settings):
    """Low-rank adaptation: weights W of the source stay, W + alpha / rank * B A is used, and A and B are trained."""

    rank: int = Field(8, ge=1, description="rank of the updates, at most; narrow layers have less")
    alpha: float | None = Field(None, gt=0, description="factor on the updates, times the rank; null = the rank")
    targets: str = Field(
        "all", min_length=1, description="adapted layers: all, attention, conv, or a pattern found in their names"
    )
    biases: bool = Field(False, description="also train biases and the gains of norms")


class TrainSettings(Settings):
    """Everything about a training run; saved as the run's settings.yaml."""

    data: DataSettings
    codec: CodecSettings | None = Field(None, description="autoencoder of a latent model; null = a model of pixels")
    network: NetworkSettings = UNetSettings()
    noise: NoiseSettings = VPNoise()
    objective: ObjectiveSettings = Denoising()
    train: LoopSettings = LoopSettings()
    validation: ValidationSettings = ValidationSettings()
    init_from: str | None = Field(
        None, min_length=1, description="model to start from: RUN, RUN@SNAPSHOT, a file, a folder or a hub name"
    )
    resume_from: str | None = Field(
        None, min_length=1, description="training state of another run to branch off: RUN@IMAGES, or RUN for its newest"
    )
    lora: LoraSettings | None = Field(None, description="train low-rank updates only; null = all weights")

    @model_validator(mode="before")
    @classmethod
    def _head_of_a_joint_model(cls, values: Any) -> Any:
        """A joint model has a head, whether or not somebody said so; but what is inherited is left to its source."""
        if not isinstance(values, dict) or _entry(values.get("objective"), "kind") != "joint":
            return values
        if values.get("init_from") or values.get("resume_from"):
            return values
        network = values.get("network")
        network = {"kind": "unet"} if network is None else network
        if isinstance(network, dict) and network.get("kind", "unet") == "unet" and network.get("head") is None:
            return {**values, "network": {"kind": "unet", **network, "head": {"kind": "taps"}}}
        if isinstance(network, UNetSettings) and network.head is None:
            return {**values, "network": network.model_copy(update={"head": TapHeadSettings()})}
        return values

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainSettings:
        objective, network = self.objective, self.network
        self._codec_fits()
        for mine, its in (("autoencoder", "autoencoder"), ("rdn", "regression")):
            if (network.kind == mine) != (objective.kind == its):
                raise ValueError(f"network.kind={mine} and objective.kind={its} belong together; set both")
        if isinstance(objective, Regression):
            check_regression(self)
            return self
        if isinstance(objective, Autoencoding):
            self._autoencoder_fits()
            return self
        if isinstance(objective, Distill):
            self._distill_fits()
            return self
        if self.lora is not None and not isinstance(objective, Denoising) and network.kind != "trunk":
            raise ValueError(f"lora is for denoisers and trunks, not for network.kind={network.kind}; train it whole")
        if self.lora is not None and network.kind == "trunk" and network.freeze:
            raise ValueError("lora adapts what network.freeze=true leaves alone; keep one of them")
        if isinstance(objective, Denoising):
            if objective.kind == "joint":
                self._joint_fits(objective)
            if network.kind not in DENOISERS:
                raise ValueError(f"network.kind={network.kind} cannot denoise; use unet, dit, uvit or iddm")
            starts = self.init_from is not None or self.resume_from is not None
            if starts and "network" not in self.model_fields_set:  # it is the source's, and looked at with it
                return self
            self._variance_fits(objective)
            self._low_fits(objective)
            if objective.kind != "joint" and getattr(network, "head", None) is not None:
                raise ValueError("network.head is trained by objective.kind=joint; leave network.head out")
            if objective.augment_probability > 0 and getattr(network, "augment_dim", 0) != 9:
                raise ValueError("objective.augment_probability > 0 needs network.augment_dim=9")
            return self
        check_head(objective, network)
        if network.kind in DENOISERS:
            kinds = "convnet, wideresnet, wrn, unet_encoder or trunk"
            raise ValueError(f"network.kind={network.kind} does not classify; use {kinds}")
        if isinstance(objective, FreeMatch):
            self._freematch_fits(objective)
        elif isinstance(objective, Supervised) and network.kind in CLEAN and objective.sigma != 0:
            raise ValueError(
                f"network.kind={network.kind} is not told the noise level; use wideresnet, unet_encoder or trunk "
                "where objective.sigma is not 0"
            )
        if self.train.compile:
            raise ValueError(f"train.compile=true is for denoisers; leave it false for objective.kind={objective.kind}")
        return self

    def _low_fits(self, objective: Denoising) -> None:
        """Super-resolution is denoising of pixels, beside an image at a lower resolution that is made of them."""
        factor = getattr(self.network, "low_factor", None)
        if factor and (objective.kind != "denoising" or self.codec is not None or objective.augment_probability > 0):
            hint = "leave codec out and set objective.kind=denoising and objective.augment_probability=0"
            raise ValueError(f"network.low_factor={factor} is for super-resolution of pixels; {hint}")
        if factor and self.data.crop_area != (1.0, 1.0):
            hint = "and such images are blurred; leave it out (objective.crop cuts parts as they are)"
            raise ValueError(f"data.crop_area enlarges what it crops, {hint}")
        if objective.crop and (not factor or objective.crop % factor):
            raise ValueError(f"objective.crop={objective.crop} needs network.low_factor, and to be a multiple of it")

    def _freematch_fits(self, objective: FreeMatch) -> None:
        if self.train.batch_size % objective.labelled_batch:
            what = f"objective.labelled_batch={objective.labelled_batch}"
            raise ValueError(f"{what} must divide train.batch_size={self.train.batch_size}")

    def _distill_fits(self) -> None:
        """What learns from a denoiser is a student without a head."""
        if self.network.kind != "student":
            raise ValueError(f"objective.kind=distill needs network.kind=student, not network.kind={self.network.kind}")
        if self.network.head is not None:
            raise ValueError("objective.kind=distill trains a student without a head; leave network.head out")
        if self.lora is not None or self.train.compile:
            raise ValueError("lora and train.compile=true are for denoisers; leave them out")

    def _codec_fits(self) -> None:
        """Latents are for denoisers, and what works on pixels does not work on them."""
        codec, objective = self.codec, self.objective
        if codec is None:
            return
        if objective.kind != "denoising":
            raise ValueError(f"objective.kind={objective.kind} works on pixels; leave codec out")
        if objective.augment_probability > 0:
            raise ValueError("objective.augment_probability > 0 changes pixels, and with codec= there are none; set 0")
        if codec.store and self.data.crop_area != (1.0, 1.0):
            raise ValueError("data.crop_area crops pixels, and codec.store=true keeps those of whole images; unset one")
        if codec.store and self.data.flip and codec.mirror is False:
            raise ValueError("data.flip=true needs what mirror images become; leave codec.mirror out")

    def _autoencoder_fits(self) -> None:
        for name in ("lora", "init_from"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is not for autoencoders; leave it out")
        if self.train.compile:
            raise ValueError("train.compile=true is for denoisers; leave it false for an autoencoder")

    def _joint_fits(self, objective: Joint) -> None:
        """A joint model is a U-Net, and in a multi-label one an attribute vector is no condition."""
        network, extra = self.network, objective.labelled_batch
        if network.kind != "unet":
            raise ValueError(f"objective.kind=joint is for network.kind=unet, not {network.kind}")
        if objective.levels == "importance":
            raise ValueError("objective.levels=importance goes by the denoising loss alone, not with kind=joint")
        if objective.pseudo_balanced and objective.multi_label:
            raise ValueError("objective.pseudo_balanced=true is for one label per image, not for multi_label=true")
        if objective.multi_label and network.classes:
            raise ValueError(
                "objective.multi_label=true needs network.classes=0: a network is conditioned on one label"
            )
        if extra and self.train.batch_size % extra:
            raise ValueError(f"objective.labelled_batch={extra} must divide train.batch_size={self.train.batch_size}")

    def _variance_fits(self, objective: Denoising) -> None:
        """A learned variance needs a network that says something of it, a table to step through, and a loss."""
        if objective.distance != "mse" and objective.loss != "mse":
            what = f"objective.distance={objective.distance} is no part of objective.loss={objective.loss}"
            raise ValueError(f"{what}; leave one of them out")
        learned = getattr(self.network, "learned_variance", False)
        if learned and objective.loss == "mse":
            raise ValueError("network.learned_variance=true is not trained by objective.loss=mse; use hybrid or vlb")
        if objective.loss == "mse":
            return
        what = f"objective.loss={objective.loss}"
        if not learned:
            raise ValueError(f"{what} needs network.learned_variance=true")
        if self.noise.kind != "vp" or self.noise.table == "continuous":
            raise ValueError(f"{what} needs a table of noise levels; use noise.kind=vp with a discrete table")
        if objective.levels == "log_normal":
            raise ValueError(f"{what} needs levels of the table; objective.levels=log_normal lies between them")


def _entry(group: Any, name: str) -> Any:
    return group.get(name) if isinstance(group, dict) else getattr(group, name, None)
