"""Settings of `twofold fewlabel`: from a few labels to a class-conditional generator and a classifier (DPT)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from .base import Settings
from .codec import CodecSettings
from .data import DataSettings
from .network import NetworkSettings, UNetSettings
from .noise import EDMNoise, NoiseSettings
from .sample import GRIDS
from .short import in_model
from .train import Denoising, LoopSettings, ValidationSettings

IN_DATA = ("labels", "labels_per_class", "labels_seed")  # settings of `data` that may be given without its name


class RecipeSettings(Settings):
    """How a diffusion model of these images is trained: a training preset, and what is to be other than there."""

    preset: str = Field("fewlabel-mini", min_length=1, description="training preset that the rest begins with")
    network: NetworkSettings = UNetSettings()
    noise: NoiseSettings = EDMNoise()
    objective: Denoising = Denoising()
    train: LoopSettings = LoopSettings()
    validation: ValidationSettings = ValidationSettings(split="train", samples=0)
    codec: CodecSettings | None = Field(None, description="autoencoder of a latent model; default: it sees pixels")


class OwnFeatures(Settings):
    """Features of a diffusion model that is trained on all images, without labels: no download."""

    kind: Literal["diffusion"] = "diffusion"
    model: str | None = Field(
        None, min_length=1, description="a denoiser to read, instead of training one: RUN, a file, a folder, a hub name"
    )
    n_images: int | None = Field(None, ge=1, description="images it is trained on; default: the recipe's")
    layers: tuple[str, ...] = Field(
        (), description="layers to read and join; default: those after the middle, without the last ones"
    )
    sigmas: tuple[NonNegativeFloat, ...] = Field(
        (0.05, 0.1, 0.2), min_length=1, description="noise levels they are read at, in units of x0"
    )
    pool: str = Field("grid2", description="mean, max, grid2 (averages over 2 x 2 fields) or map")
    draws: int = Field(4, ge=1, description="noise draws that are averaged")


class EncoderFeatures(Settings):
    """Features of a frozen encoder (DPT: the class token of MSN)."""

    kind: Literal["encoder"] = "encoder"
    encoder: str = Field(
        min_length=1,
        description="cls:SRC (first token before the final norm; cls4:SRC of the last 4 blocks) or transformers:SRC, "
        "where SRC is a hub name, a folder or MSN's published .pth.tar; inception; pixels",
    )


FeatureSettings = Annotated[OwnFeatures | EncoderFeatures, Field(discriminator="kind")]

Space = Literal["raw", "rows", "columns", "columns+rows", "whitened", "whitened+rows"]
SPACE = "what is done to features first; rows: each centred and of length 1, columns: each scaled over all images"
DIMS = "whitened: principal components that are kept; default: 64"


class Logistic(Settings):
    """Logistic regression on the labelled images alone, in DPT's published form."""

    kind: Literal["logistic"] = "logistic"
    space: Space = Field("rows", description=SPACE)
    dims: int | None = Field(None, ge=1, description=DIMS)
    lam: float = Field(0.0025, gt=0, description="strength of L2, over the number of images (1 / scikit-learn's C)")


class Propagation(Settings):
    """Label propagation along a graph of nearest neighbours."""

    kind: Literal["propagation"] = "propagation"
    space: Space = Field("rows", description=SPACE)
    dims: int | None = Field(None, ge=1, description=DIMS)
    k: int = Field(8, ge=1, description="nearest neighbours of an image, in the graph and to be asked about a new one")
    alpha: float = Field(0.99, gt=0, lt=1, description="how far labels travel")
    power: float = Field(3.0, gt=0, description="cosine: edges weigh similarity to this power")
    affinity: Literal["cosine", "local"] = Field("local", description="weights of edges; local: scaled to each place")
    mass: bool = Field(False, description="scale classes to equal shares")


class Prototypes(Settings):
    """The nearest class mean."""

    kind: Literal["prototypes"] = "prototypes"
    space: Space = Field("columns+rows", description=SPACE)
    dims: int | None = Field(None, ge=1, description=DIMS)
    sharpness: float = Field(10.0, gt=0, description="logits per squared distance, over the mean squared length")


class Mixture(Settings):
    """A mixture of Gaussians, a cluster a class, of all images; label propagation says where it begins, and clusters of
    all images where it begins again."""

    kind: Literal["mixture"] = "mixture"
    start: Literal["labels", "propagation", "best"] = Field(
        "best", description="who says where its means begin; best: propagation, and clusters if they explain far more"
    )
    space: Space = Field("whitened", description=SPACE)
    dims: int | None = Field(None, ge=1, description=DIMS)
    covariance: Literal["spherical", "tied"] = Field("tied", description="of all clusters: one number, or one matrix")
    even: bool = Field(True, description="take classes for equally frequent")


class SelfTraining(Settings):
    """Another learner's surest answers become labels, more of them in each round."""

    kind: Literal["self_training"] = "self_training"
    first: Literal["logistic", "propagation", "prototypes", "mixture"] = Field(
        "propagation", description="who answers first"
    )
    space: Space = Field("columns+rows", description=SPACE)
    dims: int | None = Field(None, ge=1, description=DIMS)
    rounds: int = Field(5, ge=1, description="rounds")
    l2: float = Field(1e-4, gt=0, description="strength of L2 of its logistic regressions")


class Network(Settings):
    """A classifier network, trained on the images themselves by a preset such as digits-classifier."""

    kind: Literal["network"] = "network"
    preset: str = Field("fewlabel-classifier", min_length=1, description="training preset of a classifier")
    n_images: int | None = Field(None, ge=1, description="images it is trained on; default: the preset's")


LearnerSettings = Annotated[
    Logistic | Propagation | Prototypes | Mixture | SelfTraining | Network, Field(discriminator="kind")
]


class PseudoSettings(Settings):
    """From the first classifier's answers to the labels that the diffusion model learns."""

    balanced: bool = Field(True, description="take classes for equally frequent: answers are evened out by Sinkhorn")
    temperature: float | Literal["auto"] = Field(
        "auto", description="divides the logits; auto: calibrated by leaving labelled images out"
    )
    least: float = Field(0.0, ge=0, lt=1, description="below this confidence an image stays unlabelled")
    surest: float = Field(1.0, gt=0, le=1, description="share of each class's images, the surest, that are labelled")
    folds: int = Field(
        0,
        ge=0,
        description="parts of the images; networks that learned the labels of the others correct each; 0: none do",
    )
    folds_surest: float = Field(0.8, gt=0, le=1, description="share of each class's images, the surest, they learn")
    network: Network = Network()

    @model_validator(mode="after")
    def _at_least_two(self) -> PseudoSettings:
        if self.folds == 1:
            raise ValueError("folds=1 leaves nothing to learn from; use 2 or more, or 0 for none")
        return self


class GeneratorSettings(Settings):
    """The class-conditional diffusion model, trained on pseudo labels."""

    warm_start: bool = Field(True, description="begin with the weights of the denoiser whose features were read")
    n_images: int | None = Field(None, ge=1, description="images it is trained on; default: the recipe's")
    lr: float | None = Field(None, gt=0, description="learning rate; default: the recipe's")
    level_mean: float | None = Field(
        None, description="mean of ln sigma in its training, where labels are learned; default: the recipe's levels"
    )


class ImageSettings(Settings):
    """Pseudo images: so many of each class, every one with a seed of its own."""

    per_class: int = Field(128, ge=1, description="images of each class")
    guidance: float = Field(1.4, ge=0, description="guidance scale; 1.4 is 0.4 in DPT's frame")
    sampler: str = Field("dpmpp2m", description="solver, as of `twofold sample`; DPT: dpm_fast")
    steps: int | None = Field(None, ge=1, description="its steps; default: the solver's own (DPT: 50)")
    grid: Literal[GRIDS] | None = Field(None, description="spacing of the noise levels; default: the solver's")  # type: ignore[valid-type]
    to_zero: bool = Field(True, description="the last step goes to sigma 0; false (DPT): it ends at the smallest level")
    agreeing: bool = Field(False, description="leave out images that the first classifier takes for another class")
    seed: int = Field(0, ge=0, description="seed of the first image")
    micro_batch: int = Field(256, ge=1, description="images per forward pass")


class FinalSettings(Settings):
    """The classifier that also learns from pseudo images."""

    learner: LearnerSettings = Logistic()
    generated: float = Field(1.0, ge=0, description="weight of a generated image; 0: none are used")
    pseudo: float = Field(0.0, ge=0, description="weight of a pseudo-labelled image, times its confidence (DPT: 0)")
    compare: bool = Field(True, description="also learn without pseudo images, and from them alone, for the report")


class FewLabelSettings(Settings):
    """Dual pseudo training: few labels -> pseudo labels -> conditional diffusion -> pseudo images -> a classifier."""

    data: DataSettings
    labels: str | None = Field(None, min_length=1, description="short for data.labels: a file of labels")
    labels_per_class: int | None = Field(None, ge=1, description="short for data.labels_per_class")
    labels_seed: int | None = Field(None, ge=0, description="short for data.labels_seed")
    stage: Literal["all", 1, 2, 3] = Field("all", description="run one stage (and what it needs) and stop")
    features: FeatureSettings = OwnFeatures()
    learner: LearnerSettings = Mixture()
    pseudo: PseudoSettings = PseudoSettings()
    diffusion: RecipeSettings = RecipeSettings()
    generator: GeneratorSettings = GeneratorSettings()
    images: ImageSettings = ImageSettings()
    final: FinalSettings = FinalSettings()
    rounds: int = Field(
        1, ge=1, description="how often the final classifier's answers become new pseudo labels, and on"
    )
    seed: int = Field(0, ge=0, description="seed of weights, order and noise")
    micro_batch: int = Field(256, ge=1, description="images per forward pass when features are read")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="of networks that are read")

    @model_validator(mode="before")
    @classmethod
    def _short_names(cls, values: Any) -> Any:
        return in_model(values, IN_DATA)

    @property
    def record(self) -> FewLabelSettings:
        """The same settings whichever stage is asked for: what an experiment's folder is named by."""
        return self.model_copy(update={"stage": "all"})
