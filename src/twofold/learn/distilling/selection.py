"""At which noise level the teacher is read, for each image; `make_selection` gives what the settings ask for.

    fixed      one sigma
    uniform    at random among levels, or ln sigma evenly
    annealed   the same, with a highest level that falls
    multi      a band of levels at random, then a level in it; each band has a layer pair of its own
    policy, expectation   learned: see `policies`

A level is a function of the image's uniform numbers u (and, where learned, of the image and the weights).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...settings.selection import (
    AnnealedSelection,
    FixedSelection,
    MultiSelection,
    SelectionSettings,
    UniformSelection,
)
from .choice import Selection
from .policies import learned
from .unlearned import Annealed, Fixed, Multi, Uniform


def make_selection(
    settings: SelectionSettings,
    teacher_levels: Tensor | None,
    sigma_range: tuple[float, float],
    shape: tuple[int, int, int],
    width: int,
    classes: int,
) -> Selection:
    """The selection of these settings.

    teacher_levels: the teacher's own table of sigmas, None where it has none. sigma_range: its lowest and highest.
    shape: (C, H, W) of x0. width: of its pooled features. classes: of the labels, 0 = there are none.
    Raises `UserError` for levels the teacher has not, and for a reward from labels that are not there.
    """
    table = None if teacher_levels is None else teacher_levels.detach().cpu().double().sort().values
    if isinstance(settings, FixedSelection):
        _within(sigma_range, sigma=settings.sigma)
        return Fixed(settings.sigma or sigma_range[0])
    if isinstance(settings, MultiSelection):
        _within(sigma_range, bounds=settings.bounds[0])
        _within(sigma_range, bounds=settings.bounds[-1])
        ends = settings.bounds[0], settings.bounds[-1]
        return Multi(settings, None if settings.bins is None else _levels(settings.bins, table, *ends))
    low, high = _ends(settings, sigma_range)
    sigmas = None if settings.bins is None else _levels(settings.bins, table, low, high)
    if isinstance(settings, UniformSelection):
        return Uniform(low, high, sigmas)
    if isinstance(settings, AnnealedSelection):
        _within(sigma_range, to_sigma=settings.to_sigma)
        return Annealed(settings, low, high, sigmas)
    assert sigmas is not None
    return learned(settings, sigmas, shape, width, classes)


def _ends(settings: Any, sigma_range: tuple[float, float]) -> tuple[float, float]:
    name = "from_sigma" if isinstance(settings, AnnealedSelection) else "high"
    low, high = settings.low, getattr(settings, name)
    if low is not None:
        _within(sigma_range, low=low)
    if high is not None:
        _within(sigma_range, **{name: high})
    return sigma_range[0] if low is None else low, sigma_range[1] if high is None else high


def _within(sigma_range: tuple[float, float], **given: float) -> None:
    """Raises `UserError` for a level outside the teacher's range; 0 is its lowest."""
    low, high = sigma_range
    for name, sigma in given.items():
        if sigma and not low * (1 - 1e-6) <= sigma <= high * (1 + 1e-6):
            raise UserError(
                f"objective.sigma.{name}={sigma:g}", f"outside [{low:.4g}, {high:.4g}], the teacher's levels"
            )


def _levels(bins: int | str, table: Tensor | None, low: float, high: float) -> Tensor:
    """(bins,) rising float64."""
    if bins != "table":
        ends = torch.tensor([low, high], dtype=torch.float64).log()
        return torch.linspace(float(ends[0]), float(ends[1]), int(bins), dtype=torch.float64).exp().clamp(low, high)
    if table is None:
        hint = "give a number, such as 32"
        raise UserError("objective.sigma.bins=table", "the teacher's noise levels are no table", hint)
    found = table[(table >= low * (1 - 1e-6)) & (table <= high * (1 + 1e-6))]
    if not len(found):
        raise UserError("objective.sigma.bins=table", f"the teacher's table has no level in [{low:g}, {high:g}]")
    return found
