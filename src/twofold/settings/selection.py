"""Settings of the noise levels that a teacher is read at, one for each image."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from .base import Settings

LABELLED = ("task", "least_squares", "student")  # rewards of a policy that labels give
Bins = PositiveInt | Literal["table"]
LOW = "lowest level, in units of x0; null = the teacher's lowest"
HIGH = "highest level; null = the teacher's highest"


class FixedSelection(Settings):
    """One level for all images."""

    kind: Literal["fixed"] = "fixed"
    sigma: float = Field(0.1, ge=0, description="noise level in units of x0; 0 = the teacher's lowest")


class _Between(Settings):
    @model_validator(mode="after")
    def _in_order(self) -> _Between:
        low, high = getattr(self, "low", None), getattr(self, "high", None)
        if low is not None and high is not None and low > high:
            raise ValueError(f"low={low:g} is above high={high:g}")
        return self


class UniformSelection(_Between):
    """Levels at random, evenly over ln sigma or over the teacher's own table."""

    kind: Literal["uniform"] = "uniform"
    low: float | None = Field(None, gt=0, description=LOW)
    high: float | None = Field(None, gt=0, description=HIGH)
    bins: Bins | None = Field(
        None, description="so many levels evenly spaced in ln sigma, table = those of the teacher, null = any"
    )


class AnnealedSelection(_Between):
    """The same, with a highest level that falls during training."""

    kind: Literal["annealed"] = "annealed"
    low: float | None = Field(None, gt=0, description=LOW)
    from_sigma: float | None = Field(None, gt=0, description="highest level at first; null = the teacher's highest")
    to_sigma: float = Field(0.5, gt=0, description="highest level in the end")
    until_images: int = Field(100_000, ge=1, description="images over which it falls")
    falls: Literal["position", "sigma"] = Field(
        "position", description="linearly in the place among the levels (the time of a table, else ln sigma), or sigma"
    )
    bins: Bins | None = Field(None, description="levels, as for uniform")

    @model_validator(mode="after")
    def _falls(self) -> AnnealedSelection:
        high = self.from_sigma
        if high is not None and high < self.to_sigma:
            raise ValueError(f"to_sigma={self.to_sigma:g} is above from_sigma={high:g}; the highest level falls")
        if self.low is not None and self.low > self.to_sigma:
            raise ValueError(f"low={self.low:g} is above to_sigma={self.to_sigma:g}")
        return self


class MultiSelection(Settings):
    """Bands of levels, each with a layer pair of its own: an image draws a band, and a level within it."""

    kind: Literal["multi"] = "multi"
    bounds: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.02, 0.2, 2.0), min_length=2, description="where bands begin and end, rising: one more than layer pairs"
    )
    bins: Bins | None = Field(
        None, description="so many levels evenly spaced in ln sigma from end to end, table = the teacher's, null = any"
    )

    @model_validator(mode="after")
    def _rise(self) -> MultiSelection:
        if any(a >= b for a, b in zip(self.bounds, self.bounds[1:], strict=False)):
            raise ValueError(f"bounds={list(self.bounds)} do not rise")
        return self


class _Learned(_Between):
    network: Literal["auto", "small32", "small64", "alexnet", "mlp"] = Field(
        "auto", description="policy network; small32 for 32 pixels and fewer, small64 for 64, alexnet for 128 and more"
    )
    bins: Bins = Field(32, description="levels evenly spaced in ln sigma; table = the teacher's own (published: 1000)")
    low: float | None = Field(None, gt=0, description=LOW)
    high: float | None = Field(None, gt=0, description=HIGH)
    entropy: float = Field(0.1, ge=0, description="factor on the policy's entropy at first (published: 0.1, 1 or 0)")
    entropy_until_images: int | None = Field(
        None, ge=1, description="images over which that factor falls linearly to 0; null = it stays"
    )
    task_divisor: int = Field(
        1, ge=1, description="the task head's hidden layers have width / this (published: 1, 2, 4)"
    )
    temperature: float = Field(0.1, gt=0, description="infonce: that cosines are divided by")
    ridge: float = Field(0.1, gt=0, description="least squares: ridge, in mean squared lengths of a feature")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="optimiser of the policy and its task head")
    lr: float = Field(1e-3, gt=0, description="its learning rate")
    shared: bool = Field(False, description="true: the student's optimiser trains them, as published")


class PolicySelection(_Learned):
    """A policy drawn from and learned by REINFORCE, as published with RepFusion; with a baseline."""

    kind: Literal["policy"] = "policy"
    reward: Literal["task", "infonce", "least_squares", "student"] = Field(
        "task",
        description="minus a task head's loss on the teacher's features, minus their InfoNCE, minus their "
        "least-squares residual, or minus the student's in the step after",
    )
    baseline: Literal["none", "batch", "running", "bin"] = Field(
        "batch", description="what a reward is held against: nothing (published), the other images', a running mean"
    )
    baseline_decay: float = Field(0.99, ge=0, lt=1, description="decay of running means, per step")

    @model_validator(mode="after")
    def _can_learn(self) -> PolicySelection:
        if self.reward == "student" and self.baseline == "batch":
            raise ValueError(
                "baseline=batch tells nothing where all images have one reward, as with reward=student; use running"
            )
        return self


class ExpectationSelection(_Learned):
    """The same policy with its exact gradient: the teacher is read at every level, which few bins allow."""

    kind: Literal["expectation"] = "expectation"
    reward: Literal["task", "infonce", "least_squares"] = Field("task", description="as for policy")


SelectionSettings = Annotated[
    FixedSelection | UniformSelection | AnnealedSelection | MultiSelection | PolicySelection | ExpectationSelection,
    Field(discriminator="kind"),
]
