"""The noise levels of sampling, of any grid; among them published ones that need more than a number of levels:
respaced tables, and the nodes of DPM-Solver-fast.

Those of `twofold.noise.grid` end at sigma 0, as `respaced_grid` does; `fast_grid` ends at the smallest sigma, where its
recipe stops. A sampler takes either: `grid[:-1]` of one that ends at 0 is a grid that ends above it.
"""

from __future__ import annotations

import math
from itertools import accumulate, repeat

import torch
from torch import Tensor

from .. import noise
from ..errors import UserError
from ..noise import VP, Family
from ..settings.sample import FAST, RESPACING
from .samplers import fast_orders


def is_respacing(text: str) -> bool:
    """Whether this names a respacing: "ddim25", "250" or "10,15,20"."""
    return RESPACING.fullmatch(text.replace(" ", "")) is not None


def respaced_times(total: int, sections: int | str) -> list[int]:
    """The times that a table of `total` entries keeps, ascending (guided-diffusion's rule).

    sections: "ddimN", every k-th time from 0, with the smallest k that keeps exactly N; or numbers, "10,15,20": the
    table is cut into as many sections (the first ones longer by one where it does not divide), and of each so many
    evenly spaced times are kept, its first and last among them (only the first where one is kept).

    Raises `UserError` for a text of another form and for numbers that the table cannot give.
    """
    text = str(sections).replace(" ", "")
    where = f"grid={sections}"
    if not is_respacing(text):
        raise UserError(where, "not a respacing", "write ddim25, 250 or 10,15,20")
    if text.startswith("ddim"):
        wanted = int(text.removeprefix("ddim"))
        for stride in range(1, total + 1):
            if len(kept := range(0, total, stride)) == wanted:
                return list(kept)
        raise UserError(where, f"no whole stride keeps {wanted} of {total} times", f"grid={wanted} spaces them evenly")
    counts = [int(part) for part in text.split(",")]
    size, longer = divmod(total, len(counts))
    kept_times, start = [], 0
    for i, count in enumerate(counts):
        length = size + (i < longer)
        if not 1 <= count <= length:
            raise UserError(where, f"{count} times of a section of {length}", f"give 1 to {length}")
        apart = (length - 1) / (count - 1) if count > 1 else 1.0
        # added up, not multiplied: the published rule rounds these very sums
        kept_times += [start + round(offset) for offset in accumulate(repeat(apart, count - 1), initial=0.0)]
        start += length
    return kept_times


def respaced_grid(family: Family, sections: int | str) -> Tensor:
    """The sigmas of the kept times, descending, then 0: float64, (number kept + 1,).

    The respaced table's alpha-bar, betas and posterior variances follow from the sigmas, and the network is told the
    original time, so nothing else changes. Raises `UserError` where there is no discrete table, and see
    `respaced_times`.
    """
    if not isinstance(family, VP) or family.settings.table == "continuous":
        raise UserError(f"grid={sections}", "this model has no discrete table", "use grid=karras or grid=log")
    first = family.settings.first
    times = respaced_times(family.settings.steps - first, sections)
    sigma = family.sigma(first + torch.tensor(times[::-1], dtype=torch.float64))
    return torch.cat([sigma, sigma.new_zeros(1)])


def fast_grid(evaluations: int, sigma_min: float, sigma_max: float) -> Tensor:
    """All nodes of DPM-Solver-fast as in Lu et al. 2022a's code: (evaluations + 1,) float64.

    Its steps, of orders `fast_orders(evaluations)`, are equally long in ln sigma, and so are the parts between the
    nodes of one step; from sigma_max down to sigma_min, not 0. For the samplers "dpm_fast" and "dpmpp_fast".
    """
    if evaluations < 1:
        raise UserError(f"evaluations={evaluations}", "a grid needs at least one step")
    if not 0 < sigma_min < sigma_max:
        raise UserError(f"sigma_min={sigma_min:.6g}", f"not between 0 and sigma_max={sigma_max:.6g}")
    orders = fast_orders(evaluations)
    places = [(k + part / order) / len(orders) for k, order in enumerate(orders) for part in range(order)]
    ramp = torch.tensor([*places, 1.0], dtype=torch.float64)
    ends = math.log(sigma_max), math.log(sigma_min)
    grid = (ends[0] + ramp * (ends[1] - ends[0])).exp()
    grid[0], grid[-1] = sigma_max, sigma_min  # not off by a rounding, which a family might refuse
    return grid


def levels(
    family: Family,
    steps: int | None,
    usual: int,
    grid: str,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    to_zero: bool = True,
) -> Tensor:
    """The levels of sampling, descending, float64: of `noise.grid`, of a respaced table, or DPM-Solver-fast's nodes.

    usual: steps where none are given. to_zero: the last step goes to sigma 0; otherwise it ends at the smallest level,
    as some recipes do ("fast" always does), in as many steps. Raises `UserError` for what the family has not.
    """
    if is_respacing(grid):
        return _respaced(family, steps, grid, (sigma_min, sigma_max), to_zero)
    steps = usual if steps is None else steps
    if grid == FAST:
        low, high = family.sigma_range
        ends = (low if sigma_min is None else sigma_min), (high if sigma_max is None else sigma_max)
        family.check(torch.tensor(ends, dtype=torch.float64))
        return fast_grid(steps, *ends)
    if to_zero:
        return noise.grid(family, steps, grid, sigma_min, sigma_max)
    return noise.grid(family, steps + 1, grid, sigma_min, sigma_max)[:-1]


def _respaced(
    family: Family, steps: int | None, grid: str, ends: tuple[float | None, float | None], to_zero: bool
) -> Tensor:
    """Of a respaced table, which says by itself how many levels there are and where they end."""
    if ends != (None, None):
        raise UserError(f"grid={grid}", "takes no sigma_min or sigma_max", "use grid=karras or grid=log")
    sigmas = respaced_grid(family, grid)
    if steps not in (None, len(sigmas) - 1):
        raise UserError(f"steps={steps}", f"grid={grid} has {len(sigmas) - 1} levels", "leave steps out")
    if not to_zero and len(sigmas) == 2:
        raise UserError("to_zero=false", f"grid={grid} has one level, and nowhere to go", "leave to_zero out")
    return sigmas if to_zero else sigmas[:-1]
