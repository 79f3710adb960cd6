"""Settings of `twofold probe`: which features are read off a model, and which heads are fitted on them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from .base import Settings
from .data import DataSettings

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of L2: mean cross-entropy + l2 / 2 |W|^2; scikit-learn's C is 1 / (l2 n)


class Logistic(Settings):
    """Logistic regression on standardised features (a BatchNorm and a linear layer, in closed form), by L-BFGS."""

    kind: Literal["logistic"] = "logistic"
    l2: tuple[PositiveFloat, ...] = Field(
        STRENGTHS, min_length=1, description="strengths of L2 to choose from on the validation part"
    )
    standardise: bool = Field(True, description="divide each feature by its standard deviation first")


class Ridge(Settings):
    """Least squares to one-hot targets, in closed form."""

    kind: Literal["ridge"] = "ridge"
    l2: tuple[PositiveFloat, ...] = Field(
        STRENGTHS, min_length=1, description="strengths of L2 to choose from on the validation part"
    )
    standardise: bool = Field(True, description="divide each feature by its standard deviation first")


class Recipe(Settings):
    """DDAE's published recipe: a linear layer, Adam, cosine per epoch, one augmented copy after another."""

    kind: Literal["recipe"] = "recipe"
    epochs: int = Field(15, ge=1, description="passes over the images")
    batch_size: int = Field(512, ge=1, description="images per step (published: 128 on each of 4 GPUs)")
    lr: float = Field(4e-3, gt=0, description="learning rate (published: 1e-3 times 4 GPUs)")
    norm: Literal["none", "batch"] = Field("none", description="batch: BatchNorm before the linear layer (REPA, MAE)")


class KNearest(Settings):
    """Votes of the nearest training images, by cosine."""

    kind: Literal["knn"] = "knn"
    k: int = Field(20, ge=1, description="neighbours")
    temperature: float | None = Field(0.07, gt=0, description="votes weigh exp(similarity / this); null: all the same")


class Attentive(Settings):
    """Attentive pooling: a learned query looks at all positions of one layer (needs pool=map)."""

    kind: Literal["attentive"] = "attentive"
    heads: int = Field(1, ge=1, description="learned queries")
    epochs: int = Field(60, ge=1, description="passes over the images")
    batch_size: int = Field(512, ge=1, description="images per step")
    lr: float = Field(1e-2, gt=0, description="learning rate")
    weight_decay: float = Field(0.05, ge=0, description="weight decay (AdamW)")


HeadSettings = Annotated[Logistic | Ridge | Recipe | KNearest | Attentive, Field(discriminator="kind")]


class ProbeSettings(Settings):
    """What is read off a model, how it is classified, and what is reported."""

    data: DataSettings | None = Field(None, description="labelled images; default: what the model was trained on")
    at: str = Field(
        "last", description="snapshot of a run: last, best-frechet, an image count, or all (a curve over training)"
    )
    layers: Literal["all"] | tuple[str, ...] = Field("all", description="layers to look at, by name or published alias")
    sigmas: tuple[NonNegativeFloat, ...] = Field(
        (0.02, 0.05, 0.1, 0.2, 0.4, 0.8), min_length=1, description="noise levels in units of x0; 0: the clean image"
    )
    pool: str = Field("mean", description="mean, max, grid2 (averages over 2 x 2 fields) or map")
    clean: bool = Field(False, description="the network is told sigma but sees no noise (RepFusion's clean input)")
    head: HeadSettings = Logistic()
    copies: int = Field(2, ge=1, description="views of each training image, each with noise of its own")
    flip: bool = Field(False, description="mirror half of the training views")
    shift: int = Field(0, ge=0, description="move training views by up to so many pixels, black beyond the border")
    draws: int = Field(5, ge=1, description="noise draws of validation and test images")
    concat: tuple[PositiveInt, ...] = Field(
        (2, 4, 8), description="also join the best so many layers, each at its best noise level; empty: none"
    )
    labels_per_class: tuple[PositiveInt, ...] = Field(
        (), description="label-efficiency curve: labelled images of each class, then all; empty: none"
    )
    label_draws: int = Field(5, ge=2, description="random choices of those labelled images")
    contrastive: bool = Field(False, description="also alignment and uniformity of every layer")
    zero_shot: int = Field(0, ge=0, description="test images that a conditional model also classifies zero-shot")
    max_train: int | None = Field(None, ge=10, description="training images used at most, spread over the part")
    max_test: int | None = Field(None, ge=10, description="validation and test images used at most, each")
    screen: int | None = Field(
        5_000, ge=100, description="of more training images, only so many compare all places; the best go on to all"
    )
    seed: NonNegativeInt = Field(0, description="seed of noise, augmentation, label draws and heads")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="number format of the network; auto: what is fastest here"
    )
    micro_batch: int = Field(128, ge=1, description="images per forward pass")

    @field_validator("layers", mode="before")
    @classmethod
    def _one_layer(cls, value: object) -> object:
        """layers=dec.3 is a list of one."""
        return (value,) if isinstance(value, str) and value != "all" else value

    @field_validator("sigmas")
    @classmethod
    def _different(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a noise level is named twice")
        return value


class PredictSettings(Settings):
    """What is said about new images, and how."""

    probe: str | None = Field(None, description="folder of a probe; default: the newest one on the run's own data")
    method: Literal["auto", "zero_shot"] = Field(
        "auto", description="auto: the run's own classifier or its probe; zero_shot: by the denoising error per class"
    )
    embed: bool = Field(False, description="write features instead of probabilities")
    anomaly: bool = Field(False, description="write an anomaly score, and a map as a picture, for every image")
    normal: str | None = Field(
        None, description="anomaly: images of good parts to compare with; default: the run's validation images"
    )
    good: str | None = Field(
        None, description="anomaly: the class of good parts among IMAGES; then the AUROC is said as well"
    )
    layers: tuple[str, ...] = Field((), description="embed: layers to join; default: those of the probe, or the middle")
    sigma: float | None = Field(
        None,
        ge=0,
        description="noise level: of features (default: the probe's, or 0.05), or of a classifier of noisy images",
    )
    at: str = Field("last", description="snapshot of a run: last, best-frechet, best-loss or an image count")
    draws: int | None = Field(
        None, ge=1, description="noise draws that are averaged; default: those of the probe, or 5"
    )
    score: Literal["mean", "peak"] = Field(
        "mean", description="anomaly: over the whole image, or the highest 1 % of its map, for small defects"
    )
    on_bad_image: Literal["error", "skip"] = Field("error", description="an unreadable file ends the run or is skipped")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="number format of the network; auto: what is fastest here"
    )
    micro_batch: int = Field(128, ge=1, description="images per forward pass")
