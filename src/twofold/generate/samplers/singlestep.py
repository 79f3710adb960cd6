"""DPM-Solver and DPM-Solver++, singlestep (Lu et al. 2022a and 2022b): orders 1, 2, 3 and their mixture "fast".

A step of order k spans k intervals of the grid: its interior nodes are levels of the grid, as in the published code for
every spacing, so N intervals cost N evaluations whatever the order, and the state at an interior node is a `Step` too.
On a grid uniform in ln sigma the nodes are the paper's, r1 = 1/2 for order 2, r1 = 1/3 and r2 = 2/3 for order 3.
(The published grid for "log-SNR" also makes all steps equally long: `twofold.generate.grids.fast_grid`.)

With r = (lambda(node) - lambda(s)) / h the place of a node in its step, a = 1 - s'/s and b = 1 - a/h for the data
prediction m = x0_hat, and a = s' - s and b = s' + a/h for the noise prediction m = eps (integrals of the weight of m,
and of that weight times (lambda - lambda(s))/h), every node and the end of a step is

    x' = carry x + a m(s) + b (m(newest node) - m(s)) / r,     carry = s'/s for data, 1 for noise

where the step of order 1, and the way to the first node, have no b. For the end of the step of order 2 the papers take
a/2 for b. (2022a: algorithms 1 and 2, for any r1 and r2; 2022b: algorithm 1.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from torch import Tensor

from .step import Denoise, Noise, Step, last_step, levels_of, predict


def fast_orders(evaluations: int) -> list[int]:
    """Orders of the steps of "fast" of Lu et al. 2022a's code: as many of order 3 as fit, then 2 and 1, or 1, or 2."""
    thirds, rest = divmod(evaluations, 3)
    if rest == 0:
        return [*[3] * (thirds - 1), 2, 1]
    return [*[3] * thirds, rest]


def _equal_orders(evaluations: int, order: int) -> list[int]:
    """Steps of this order; the last spans what is left."""
    whole, rest = divmod(evaluations, order)
    return [*[order] * whole, *([rest] if rest else [])]


def _into_zero(orders: list[int], levels: list[float]) -> list[int]:
    """The same with a last step of one interval where the grid ends at 0: lambda is infinite there."""
    if levels[-1] > 0 or orders[-1] == 1:
        return orders
    return [*orders[:-1], orders[-1] - 1, 1]


def _singlestep(denoise: Denoise, x: Tensor, levels: list[float], orders: Iterable[int], data: bool) -> Iterator[Step]:
    """Steps of these orders, which add up to the number of intervals."""
    i = 0
    for order in orders:
        start, s, first = x, levels[i], x
        for k in range(order):
            node, t = levels[i], levels[i + 1]
            x0_hat = predict(denoise, x, node)
            yield Step(i, node, x, x0_hat)
            value = x0_hat if data else (x - x0_hat) / node
            first = value if k == 0 else first
            x = x0_hat if t == 0 else _advance(start, first, value, s, node, t, data, midpoint=order == 2)
            i += 1
    yield last_step(levels, x, x0_hat)


def _advance(
    x: Tensor, first: Tensor, newest: Tensor, s: float, node: float, t: float, data: bool, midpoint: bool
) -> Tensor:
    """From s to t > 0 by the predictions at s and at the newest node, see the equation above."""
    h = math.log(s / t)
    a = 1 - t / s if data else t - s
    x = (t / s if data else 1) * x + a * first
    if node == s:
        return x
    b = a / 2 if midpoint else (1 - a / h if data else t + a / h)
    return x + b * h / math.log(s / node) * (newest - first)


def dpm1(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver-1 (Lu et al. 2022a, eq. 3.7), which is `ddim` with eta 0."""
    levels = levels_of(sigmas)
    yield from _singlestep(denoise, x, levels, _equal_orders(len(levels) - 1, 1), data=False)


def dpm2(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver-2 (Lu et al. 2022a, algorithm 1): steps over two intervals, on the noise prediction."""
    levels = levels_of(sigmas)
    yield from _singlestep(denoise, x, levels, _into_zero(_equal_orders(len(levels) - 1, 2), levels), data=False)


def dpm3(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver-3 (Lu et al. 2022a, algorithm 2): steps over three intervals, on the noise prediction.

    What three does not divide is left to the last step, which is of order 1 or 2.
    """
    levels = levels_of(sigmas)
    yield from _singlestep(denoise, x, levels, _into_zero(_equal_orders(len(levels) - 1, 3), levels), data=False)


def dpm_fast(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver-fast (Lu et al. 2022a): orders by `fast_orders`, on the noise prediction.

    As `dpm3`, but intervals that three divides end in steps of order 2 and 1; into sigma 0 `dpm3` does so too.
    """
    levels = levels_of(sigmas)
    yield from _singlestep(denoise, x, levels, _into_zero(fast_orders(len(levels) - 1), levels), data=False)


def dpmpp2s(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1): steps over two intervals, on the data prediction."""
    levels = levels_of(sigmas)
    yield from _singlestep(denoise, x, levels, _into_zero(_equal_orders(len(levels) - 1, 2), levels), data=True)


def dpmpp3s(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver++(3S), `dpm3` on the data prediction (Lu et al. 2022b's code)."""
    levels = levels_of(sigmas)
    yield from _singlestep(denoise, x, levels, _into_zero(_equal_orders(len(levels) - 1, 3), levels), data=True)


def dpmpp_fast(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Iterator[Step]:
    """`dpm_fast` on the data prediction, as in DPT's huge models (You et al. 2023)."""
    levels = levels_of(sigmas)
    yield from _singlestep(denoise, x, levels, _into_zero(fast_orders(len(levels) - 1), levels), data=True)
