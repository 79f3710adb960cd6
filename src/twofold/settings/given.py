"""What `twofold inpaint` and `twofold vary` share: new images from given ones (see `twofold.generate.given`)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .base import Settings
from .sample import SampleSettings

SHARED = ("n", "seed", "label", "at", "sampler", "steps", "grid", "guidance", "guidance_interval", "guide",
          "guide_scale", "guide_interval", "eta", "precision", "micro_batch", "clip")  # fmt: skip


class GivenSettings(Settings):
    """How new images are made of given ones. Where a field is empty the sampler's or the model's own value is used."""

    n: int = Field(4, ge=1, description="results for every image")
    seed: int = Field(0, ge=0, description="seed of the first result; result j of an image has seed + j")
    images: int | None = Field(None, ge=1, description="only the first so many images; default: all")
    label: int | str | None = Field(
        "none", description="none, all (classes in turn over the results), a class name or index, or attributes"
    )
    at: str = Field("last", description="snapshot of a run: last, best-frechet, best-loss or an image count")
    sampler: str | None = Field(None, description="any sampler of `twofold sample`; default: the run's usual one")
    steps: int | None = Field(
        None, ge=1, description="solver steps of the whole way from noise; default: the run's or the sampler's"
    )
    grid: str | None = Field(None, description="spacing of the noise levels, as in `twofold sample`")
    guidance: float = Field(1.0, ge=0, description="1 = conditional, 0 = unconditional, above 1 exaggerates the class")
    guidance_interval: tuple[float, float] | None = Field(
        None, description="guide only where low < sigma <= high, sigma in units of x0; default: everywhere"
    )
    guide: str | None = Field(
        None, description="who pulls to the label: labels, representations, own, or the run of a classifier"
    )
    guide_scale: float | None = Field(
        None, ge=0, description="how much the guide pulls; default: own 5, representations 4, a classifier 1"
    )
    guide_interval: tuple[float, float] | None = Field(
        None, description="the guide acts only where low < sigma <= high; default: at all levels it knows"
    )
    eta: float | None = Field(
        None, ge=0, le=1, description="ddim, euler_ancestral, dpmpp2m_sde: 0 follows the ODE, 1 is ancestral"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="number format of the network; auto: what is fastest here"
    )
    micro_batch: int = Field(64, ge=1, description="images per forward pass; part of what makes images bit-identical")
    clip: bool | None = Field(None, description="clamp x0_hat to [-1, 1]; default: pixel models yes, latent models no")
    on_bad_image: Literal["error", "skip"] = Field("error", description="an unreadable file ends the run or is skipped")
    shown: int = Field(16, ge=1, description="images in overview.png")

    def sampling(self) -> SampleSettings:
        """The same as settings of `twofold sample`. Raises `ValidationError` for values that it does not take."""
        values: dict[str, Any] = {name: getattr(self, name) for name in SHARED if name in self.model_fields_set}
        return SampleSettings.model_validate({"n": self.n, "label": self.label, "sampler": self.sampler, **values})
