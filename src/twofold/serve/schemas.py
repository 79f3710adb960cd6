"""What is asked and answered in JSON. The same models check requests and make the OpenAPI schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

MAX_SEED = 2**63 - 1
Seed = Annotated[StrictInt, Field(ge=0, le=MAX_SEED)]
Number = StrictFloat | StrictInt
Label = StrictStr | StrictInt
Picture = Annotated[StrictStr, Field(min_length=1, description="a PNG, JPEG or WebP file in base64")]


class Asked(BaseModel):
    """A request. Unknown names are mistakes."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Sampled(Asked):
    """How images are made."""

    seed: Seed = Field(0, description="of the first image; image i has seed + i")
    n: StrictInt = Field(1, ge=1, description="images; `limits.images` of the model at most")
    seeds: list[Seed] | None = Field(None, min_length=1, description="one per image, instead of seed and n")
    label: Label | list[Label] | None = Field(None, description="class, by name or number, or one per image")
    sampler: StrictStr | None = Field(None, description="one of the model's `samplers`")
    steps: StrictInt | None = Field(None, ge=1, description="solver steps; default: the sampler's")
    guidance: Number = Field(1.0, ge=0, le=100, description="guidance scale: 1 = conditional, 0 = unconditional")
    guide: Literal["own", "representations"] | None = Field(
        None, description="a joint model guides itself by its own head; label says where to"
    )
    guide_scale: Number | None = Field(None, ge=0, le=1000, description="how much; default: what is usual")


class Generate(Sampled):
    """Images to be made."""

    size: Annotated[list[Annotated[StrictInt, Field(ge=1, le=4096)]], Field(min_length=2, max_length=2)] | None = Field(
        None, description="height and width in pixels, up to `limits.area` times the model's own; default: its own"
    )


class Inpaint(Sampled):
    """A part of a picture to be painted anew."""

    image: Picture
    mask: Annotated[Picture, Field(description="white where the picture is painted anew, of the picture's size")]


class Vary(Sampled):
    """Variations of a picture."""

    image: Picture
    strength: Number = Field(0.5, ge=0, le=1, description="0 = the picture itself, 1 = a new one")


class Pictures(Asked):
    """Pictures to say something about."""

    images: list[Picture] = Field(min_length=1, description="`limits.images` of the model at most")


class Edit(Asked):
    """A counterfactual."""

    image: Picture
    to: Annotated[StrictStr, Field(min_length=1, max_length=1000)] = Field(description="class it is to become")
    guide: Literal["own", "representations", "labels"] | None = Field(None, description="who pulls; default: the usual")
    strength: Annotated[Number, Field(ge=0, le=1)] | Literal["auto"] = Field(
        "auto", description="how much may change; auto: as little as it takes"
    )
    frames: StrictInt = Field(9, ge=2, le=64, description="pictures along the change")


class Answer(BaseModel):
    """An answer."""


class Problem(Answer):
    where: str = Field(description="what is at fault: a setting, a file, the queue")
    what: str = Field(description="what is wrong with it")
    hint: str = Field(description="what would be right, or what to do next; may be empty")
    message: str = Field(description="all of it in one line")


class Error(Answer):
    error: Problem


class Image(Answer):
    seed: int
    label: str | None
    png: str = Field(description="base64")


class Images(Answer):
    model: str
    sampler: str
    steps: int
    guidance: float
    seconds: float = Field(description="of computation")
    images: list[Image]


class Prediction(Answer):
    name: str = Field(description="of the file that was sent")
    label: str = Field(description="the most probable class; of attributes: all that are likely, with ; between them")
    probability: float | None = Field(description="of that class; null for attributes")
    probabilities: list[float]


class Predictions(Answer):
    model: str
    classes: list[str]
    multi_label: bool
    by: str = Field(description="who answers: head, probe, zero-shot or classifier")
    predictions: list[Prediction]


class Vectors(Answer):
    model: str
    layers: list[str] = Field(description="layer@sigma that was read")
    width: int
    vectors: list[list[float]]


class Neighbour(Answer):
    id: str
    label: str | None
    distance: float
    png: str


class Neighbourhood(Answer):
    model: str
    searched: int = Field(description="training images")
    pixels: list[Neighbour] = Field(description="nearest in grey levels (rms)")
    features: list[Neighbour] = Field(description="nearest in what the model sees")


class Said(Answer):
    label: str
    p_target: float = Field(description="probability of the class asked for")


class Frame(Answer):
    share: float = Field(description="of the change, 0 = the picture, 1 = the counterfactual")
    p_target: float
    label: str
    png: str


class Edited(Answer):
    model: str
    to: str
    reached: bool = Field(description="whether the model is sure of the class asked for in the end")
    change: float = Field(description="rms over pixels, in grey levels")
    before: Said
    after: Said
    frames: list[Frame]


class Limit(Answer):
    images: int
    steps: int
    pixels: int
    bytes: int
    area: int = Field(description="pixels of an image that is made, in multiples of the model's own")


class Default(Answer):
    sampler: str
    steps: int
    guidance: float


class Model(Answer):
    name: str
    kind: Literal["denoiser", "joint", "classifier", "encoder"]
    shape: list[int] = Field(description="channels, height, width of its images")
    classes: list[str] = Field(description="that it can be asked to generate")
    answers: list[str] = Field(description="that it can recognize")
    answers_by: str
    multi_label: bool
    guides: list[str]
    abilities: list[str]
    samplers: dict[str, int] = Field(description="and their usual numbers of steps")
    defaults: Default
    limits: Limit
    sigma_range: list[float] | None
    parameters: int
    data: str | None


class Models(Answer):
    models: list[Model]
    default: str
    key_needed: bool


class Status(Answer):
    status: str


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """A reference to a model's schema in the OpenAPI document."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}
