"""Settings of the tasks besides classification: segmentation (a class for every pixel) and landmarks (key points)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import Settings
from .faces import pairs_named
from .warp import WarpSettings

HEADS = {  # {objective.kind: kinds of the head of a student that it trains}
    "supervised": ("pool",),
    "freematch": ("pool",),
    "kd": ("pool",),
    "segmentation": ("fcn", "bisenet"),
    "landmarks": ("deconv", "fuse"),
}
SMALLEST_UNBIASED = 0.2  # cells: bumps reach three deviations, and the nearest cell is up to 1/2 away on either axis
OUTER_EYE_CORNERS = {98: (60, 72), 68: (36, 45)}  # of WFLW's and iBUG's points: the inter-ocular distance

Normaliser = (
    Literal["inter_ocular", "box"]
    | tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    | Annotated[float, Field(gt=0)]
)


class Segmentation(Settings):
    """Objective: cross-entropy of every pixel whose class is known (a mask's 255 is void). Gives a segmenter."""

    kind: Literal["segmentation"] = "segmentation"
    class_weights: Literal["none", "sqrt_inverse", "median"] | tuple[Annotated[float, Field(gt=0)], ...] = Field(
        "none",
        description="factors on the loss of each class: sqrt_inverse = 1 / sqrt(share of the pixels), scaled to a mean "
        "of 1 over pixels; median = median frequency balancing; or a list, in the order of the classes",
    )
    auxiliary_weight: float = Field(1.0, ge=0, description="factor on the loss of each auxiliary head")
    warp: WarpSettings = Field(WarpSettings(), description="augmentation of images and their masks together")


class Landmarks(Settings):
    """Objective: squared error of heat maps, a bump at each key point that is there. Gives a landmarker."""

    kind: Literal["landmarks"] = "landmarks"
    heat_sigma: float = Field(2.0, gt=0, description="standard deviation of the bumps, in pixels of the heat maps")
    unbiased: bool = Field(
        False, description="bumps stand where the point is, not at the nearest pixel, and are read off as such (DARK)"
    )
    quarter_shift: bool = Field(
        True, description="a point read off is moved by 1/4 heat-map pixel towards the higher neighbour"
    )
    flip_test: bool = Field(
        True, description="heat maps of an image and its mirror image are averaged, where the data has flip_pairs"
    )
    flip_pairs: list[tuple[int, int]] | None = Field(
        None, description="those pairs, or ibug68 or wflw98; null = those of the data"
    )
    normaliser: Normaliser | None = Field(
        None,
        description="what errors are divided by: inter_ocular, box (sqrt of the points' bounding box), two points, or "
        "pixels; null = inter_ocular for 98 (WFLW) and 68 (iBUG) points, else box",
    )
    threshold: float = Field(0.1, gt=0, description="normalised error above which an image counts as failed")
    warp: WarpSettings = Field(WarpSettings(), description="augmentation of images and their points together")

    @field_validator("flip_pairs", mode="before")
    @classmethod
    def _known_faces(cls, value: Any) -> Any:
        return pairs_named(value)

    @model_validator(mode="after")
    def _of_points(self) -> Landmarks:
        if self.warp.cat_max_ratio is not None:
            raise ValueError("warp.cat_max_ratio is about masks; leave it out for key points")
        if self.unbiased and self.heat_sigma < SMALLEST_UNBIASED:
            what = f"heat_sigma={self.heat_sigma:g} with unbiased=true makes bumps that lie between the cells"
            raise ValueError(f"{what}; give at least {SMALLEST_UNBIASED:g}")
        if isinstance(self.normaliser, tuple) and self.normaliser[0] == self.normaliser[1]:
            raise ValueError(
                f"normaliser={list(self.normaliser)} is the distance of a point to itself; give two points"
            )
        return self


def check_head(objective: Any, network: Any) -> None:
    """Raises `ValueError` where a student's head is none that this objective trains, or these are not students."""
    kinds = HEADS.get(objective.kind)
    if kinds is None or (network.kind != "student" and kinds == ("pool",)):
        return
    if network.kind != "student":
        raise ValueError(
            f"objective.kind={objective.kind} needs network.kind=student with network.head.kind={' or '.join(kinds)}, "
            f"not network.kind={network.kind}"
        )
    head = getattr(network.head, "kind", None)
    if head not in kinds:
        raise ValueError(
            f"objective.kind={objective.kind} trains a student with network.head.kind={' or '.join(kinds)}, "
            f"not {'one without a head' if head is None else head}"
        )
