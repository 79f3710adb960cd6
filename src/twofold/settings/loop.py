"""Settings of the training loop: how long, how fast, how exactly, and what is kept and looked at on the way."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Settings
from .every import Duration, check_rising


class LoopSettings(Settings):
    """How long, how fast and how exactly the network is trained."""

    n_images: Duration = Field(
        1_000_000, ge=1, description="images to train on, counting repeats, or epochs: 300epochs (here and below)"
    )
    batch_size: int = Field(128, ge=1, description="images per optimiser step, over all devices")
    micro_batch: int | None = Field(None, ge=1, description="images per forward pass and device; default: all at once")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="Adam, AdamW, or SGD with momentum")
    lr: float = Field(2e-4, gt=0, description="learning rate (absolute, not per device)")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's betas")
    adam_eps: float = Field(1e-8, gt=0, description="Adam's epsilon")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum")
    nesterov: bool = Field(False, description="SGD with Nesterov's momentum")
    weight_decay: float = Field(0.0, ge=0, description="weight decay (decoupled with adamw)")
    decay_all: bool = Field(True, description="false: no weight decay on biases and the gains of norms")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate per layer away from the head")
    warmup_images: Duration = Field(0, ge=0, description="images over which the learning rate rises linearly from 0")
    schedule: Literal["constant", "cosine", "cosine_7_16", "step", "poly"] = Field(
        "constant",
        description="learning rate after the warm-up; cosine_7_16 falls to a fifth, as FixMatch's; step by step_factor "
        "at each of step_images; poly as (1 - images / n_images)^0.9 down to 1e-4",
    )
    lr_end: float = Field(
        0.0,
        ge=0,
        lt=1,
        exclude_if=lambda value: value == 0,  # older settings keep their hash
        description="cosine: where it ends, as a share of lr (IDDM: 0.01)",
    )
    step_images: tuple[Annotated[Duration, Field(ge=1)], ...] = Field(
        (), description="step: image counts, or epochs, at which it falls, rising: [100epochs, 150epochs]"
    )
    step_factor: float = Field(0.1, gt=0, lt=1, description="step: what it is multiplied by there")
    clip_norm: float | None = Field(1.0, gt=0, description="largest gradient norm; null = no clipping")
    ema_halflife_images: Duration = Field(
        500_000, ge=0, description="half-life of the weight average; 0 = no averaging"
    )
    ema_rampup: float | None = Field(0.05, gt=0, description="half-life is at most this share of the images seen")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the network; auto = what is fastest"
    )
    channels_last: bool = Field(True, description="channels-last memory format")
    compile: bool = Field(False, description="torch.compile the network (worth it on a GPU)")
    seed: int = Field(0, ge=0, description="seed of weights, noise, order and dropout")
    save_images: Duration = Field(100_000, ge=1, description="save the training state every so many images")
    keep_states: int = Field(2, ge=1, description="training states kept")
    snapshot_images: tuple[Duration, ...] = Field(
        (), description="image counts, or epochs, whose averaged weights are kept for good"
    )
    snapshot_every: Duration | None = Field(
        None,
        ge=1,
        exclude_if=lambda value: value is None,  # likewise; and so below
        description="also keep them every so many images, numbered; default: no others",
    )
    snapshots_from: Duration = Field(
        0, ge=0, exclude_if=lambda value: value == 0, description="but none of those before so many images"
    )
    validate_images: Duration = Field(100_000, ge=1, description="validate every so many images")
    preview_images: Duration = Field(100_000, ge=1, description="draw a preview grid every so many images")
    preview_n: Annotated[int, Field(ge=1)] | Literal["classes"] = Field(
        64,
        exclude_if=lambda value: value == 64,
        description="images of that grid; classes: one of each class (eight where there are none)",
    )
    preview_raw: bool = Field(
        False,
        exclude_if=lambda value: value is False,
        description="also draw it with the weights as they are, not averaged",
    )
    log_images: Duration = Field(5_000, ge=1, description="write a log line every so many images")
    nonfinite_limit: int = Field(10, ge=1, description="non-finite steps in a row that end training")
    tensorboard: bool = Field(False, description="also write TensorBoard event files")

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> LoopSettings:
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch={self.micro_batch} must divide batch_size={self.batch_size}")
        return self

    @model_validator(mode="after")
    def _ends_belong_to_cosine(self) -> LoopSettings:
        if self.lr_end and self.schedule != "cosine":
            raise ValueError(f"lr_end={self.lr_end:g} is where schedule=cosine ends, not {self.schedule}; leave it out")
        if self.snapshots_from and self.snapshot_every is None:
            raise ValueError("snapshots_from says where snapshot_every begins; give both, or neither")
        return self

    @model_validator(mode="after")
    def _steps_rise(self) -> LoopSettings:
        if bool(self.step_images) != (self.schedule == "step"):
            raise ValueError("schedule=step and step_images belong together; give both, or neither")
        check_rising("step_images", self.step_images)
        return self

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> LoopSettings:
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError("nesterov=true is a kind of momentum; it needs optimizer=sgd and momentum above 0")
        return self
