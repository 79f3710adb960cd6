"""Settings of training by distillation: a small network imitates the maps of a frozen diffusion model (RepFusion)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import Settings
from .imitation import HintLoss, LossSettings
from .selection import SelectionSettings, UniformSelection
from .warp import WarpSettings


class Distill(Settings):
    """Objective: the student's maps imitate those of a frozen denoiser; labels are not needed. Gives a backbone."""

    kind: Literal["distill"] = "distill"
    teacher: str = Field(min_length=1, description="the denoiser: RUN, a file, a folder, a hub name")
    teacher_layers: tuple[str, ...] = Field(
        (), description="its layers that are imitated; default: the best of its probe, else the middle one"
    )
    student_layers: tuple[str, ...] = Field(
        (), description="the student's layer for each of them; default: those of the nearest strides, its last for one"
    )
    input: Literal["clean", "noised"] = Field(
        "noised",
        description="what the teacher sees: the image with the noise of the level it is told, or (as published) the "
        "clean image whatever the level",
    )
    sigma: SelectionSettings = UniformSelection()
    losses: tuple[LossSettings, ...] = Field((HintLoss(),), min_length=1, description="what is compared; summed")
    cache: Literal["none", "pooled", "maps"] = Field(
        "none",
        description="ask the teacher about every image once and keep what it says: means over pixels, or whole maps; "
        "then it sees images as they are (and mirrored), whatever the student's views",
    )
    standardise: bool = Field(
        False, description="scale each of the teacher's channels by its mean and deviation over some training images"
    )
    warp: WarpSettings = Field(WarpSettings(), description="augmentation of what both of them see")
    student_warp: WarpSettings = Field(WarpSettings(), description="augmentation of what the student sees besides")

    @model_validator(mode="after")
    def _fits(self) -> Distill:
        if self.student_layers and len(self.student_layers) != len(self.teacher_layers):
            given = f"{len(self.student_layers)} student_layers for {len(self.teacher_layers)} teacher_layers"
            raise ValueError(f"{given}; give one for each")
        if self.warp.crop is not None:
            what = "warp.crop gives the teacher images of another size than those of the data"
            raise ValueError(f"{what}; use warp.scale and warp.shift, or crop the student's view by student_warp.crop")
        if self.cache == "pooled" and any(loss.kind in ("dense", "attention") for loss in self.losses):
            raise ValueError(
                "cache=pooled keeps no maps, which losses of kind dense and attention need; use cache=maps"
            )
        few = self.sigma.kind == "fixed" or isinstance(self.sigma.bins, int)
        if self.cache != "none" and not few:
            raise ValueError(f"cache={self.cache} is for a few noise levels; give sigma.bins a number, such as 8")
        if self.cache != "none" and (self.warp.moves or self.warp.colour):
            what = "keeps what the teacher says of images as they are"
            raise ValueError(
                f"cache={self.cache} {what}; leave warp out, student_warp changes the student's view alone"
            )
        return self
