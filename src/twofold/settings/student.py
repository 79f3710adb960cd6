"""Settings of students: a small network that learns from a teacher, as a backbone and a head for its task."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from .base import Settings


def whole_blocks(depth: int) -> int:
    """The depth of a WideResNet; raises `ValueError` unless it has whole blocks."""
    if depth % 6 != 4:
        near = depth - (depth - 4) % 6
        raise ValueError(f"{depth} is not 6 k + 4; {near} and {near + 6} are")
    return depth


class NormSettings(Settings):
    """The batch norms of a backbone."""

    norm_momentum: float = Field(
        0.1, gt=0, le=1, description="share of a step's statistics in the running ones of the batch norms"
    )
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of the batch norms")


class ResNetSettings(NormSettings):
    """A residual network (He et al. 2016), with the stem of CIFAR or that of ImageNet."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50] = Field(18, description="convolutional layers: 18 and 34 of basic blocks, 50 of wide")
    blocks: tuple[PositiveInt, ...] | None = Field(
        None, min_length=1, description="blocks per stage ([1,1,1,1] is a small network); null = those of its depth"
    )
    channels: int = Field(64, ge=4, description="channels of the first stage; doubled at each stage")
    stem: Literal["cifar", "imagenet"] = Field(
        "cifar", description="3x3 of stride 1, or 7x7 of stride 2 and a maximum over 3x3: a quarter of each side"
    )
    zero_init: bool = Field(True, description="the last norm of each block begins at 0: a block begins as nothing")


class MobileNetV2Settings(NormSettings):
    """MobileNetV2 (Sandler et al. 2018): inverted residuals of depthwise convolutions."""

    kind: Literal["mobilenetv2"] = "mobilenetv2"
    width_mult: float = Field(1.0, gt=0, le=4, description="factor on all channels")
    stem: Literal["cifar", "imagenet"] = Field("cifar", description="total stride 8 (CIFAR), or 32 (ImageNet)")


class WideSettings(NormSettings):
    """The WideResNet of RepFusion: pre-activation, leaky ReLUs, convolutions without biases."""

    kind: Literal["wide"] = "wide"
    depth: int = Field(28, ge=10, description="convolutional layers: 6 k + 4 for k blocks in each of three groups")
    width: int = Field(2, ge=1, description="channels of the groups: 16, 32 and 64 times this")
    slope: float = Field(0.1, ge=0, lt=1, description="slope of the leaky ReLUs below 0")
    norm_momentum: float = Field(
        0.1, gt=0, le=1, description="share of a step's statistics in the running ones (published: 0.001)"
    )

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, value: int) -> int:
        return whole_blocks(value)


class HRNetSettings(NormSettings):
    """HRNetV2 (Sun et al. 2019): four resolutions side by side, from a quarter of each side on."""

    kind: Literal["hrnet"] = "hrnet"
    width: int = Field(18, ge=1, description="channels of the finest maps; doubled at each coarser one")
    modules: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
        (1, 4, 3), description="exchanges between 2, 3 and 4 resolutions"
    )
    blocks: int = Field(4, ge=1, description="blocks per resolution between two exchanges")
    stem_channels: int = Field(64, ge=4, description="channels of the stem and of its bottlenecks, which give 4 times")
    stem: Literal["cifar", "imagenet"] = Field("imagenet", description="finest maps at the full size, or at a quarter")
    neck: int | None = Field(
        None,
        ge=64,
        multiple_of=64,
        description="all resolutions fused into one last map of so many channels (RepFusion: 2048), for pooling; "
        "null = none",
    )


class TransformersSettings(Settings):
    """Any image model of transformers, from its options or from published weights."""

    kind: Literal["transformers"] = "transformers"
    model: str = Field(
        min_length=1, description="an architecture (resnet, convnextv2, dinov2, swin), a folder, or a name on the hub"
    )
    config: dict[str, Any] | None = Field(None, description="its options, which differ from the model's own")
    pretrained: bool = Field(False, description="start from the weights of the folder or the hub (safetensors)")
    stages: tuple[int, ...] | None = Field(
        None, min_length=1, description="which of its maps are read, from 0; null = one per resolution, at most 4"
    )
    normalize: bool | None = Field(
        None, description="give it images with the mean and deviation of ImageNet; null = if pretrained"
    )

    @model_validator(mode="after")
    def _weights_have_their_options(self) -> TransformersSettings:
        if self.pretrained and self.config:
            raise ValueError("config= belongs to a new network; with pretrained=true leave it out")
        if self.stages is not None and list(self.stages) != sorted({*self.stages}):
            raise ValueError(f"stages={list(self.stages)} must rise, each once")
        return self


class PoolHeadSettings(Settings):
    """Classification: the mean over the last map, and a linear layer."""

    kind: Literal["pool"] = "pool"
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the linear layer")
    grid: int = Field(1, ge=1, le=8, description="means over the parts of a grid of so many by so many; 1 = one mean")


class FCNHeadSettings(Settings):
    """Segmentation: the last maps at the finest one's size, summed, one convolution, one answer per pixel."""

    kind: Literal["fcn"] = "fcn"
    channels: int = Field(128, ge=1, description="channels that the maps are brought to")
    stages: int | None = Field(None, ge=1, description="so many of the last maps are read; null = all")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout before the last layer")


class BiSeNetHeadSettings(Settings):
    """Segmentation: BiSeNetV1 (Yu et al. 2018), a path of detail beside the backbone, and two auxiliary heads."""

    kind: Literal["bisenet"] = "bisenet"
    channels: int | None = Field(
        None, ge=2, multiple_of=2, description="channels of the context path; null = a quarter of the backbone's width"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout before the last layers")


class DeconvHeadSettings(Settings):
    """Landmarks: the heat maps of SimpleBaseline (Xiao et al. 2018), by transposed convolutions of the last map."""

    kind: Literal["deconv"] = "deconv"
    channels: int = Field(256, ge=1, description="channels of the transposed convolutions")
    layers: int = Field(3, ge=0, description="transposed convolutions, each doubling both sides")


class FuseHeadSettings(Settings):
    """Landmarks: heat maps from all maps side by side at the finest one's size, as HRNetV2's."""

    kind: Literal["fuse"] = "fuse"


BackboneSettings = Annotated[
    ResNetSettings | MobileNetV2Settings | WideSettings | HRNetSettings | TransformersSettings,
    Field(discriminator="kind"),
]
HeadSettings = Annotated[
    PoolHeadSettings | FCNHeadSettings | BiSeNetHeadSettings | DeconvHeadSettings | FuseHeadSettings,
    Field(discriminator="kind"),
]


class StudentSettings(Settings):
    """A backbone and a head for its task: what a teacher is distilled into, and a plain classifier besides."""

    kind: Literal["student"] = "student"
    backbone: BackboneSettings = Field(ResNetSettings(), description="what computes the maps")
    head: HeadSettings | None = Field(None, description="what makes answers of them; null = none, the maps alone")
    classes: int | None = Field(
        None, ge=0, description="classes of images or of pixels, or points; null = those of the data; 0 without a head"
    )
    freeze: bool = Field(False, description="train the head alone; with head.kind=pool that is a linear probe")

    @model_validator(mode="after")
    def _a_head_to_train(self) -> StudentSettings:
        if self.freeze and self.head is None:
            raise ValueError("freeze=true trains the head alone, and there is none; give network.head.kind")
        return self
