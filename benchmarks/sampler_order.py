"""Error against evaluations of every deterministic sampler, and the order this shows.

    python benchmarks/sampler_order.py --figure docs/figures/sampler_order.png

On the exact denoiser of a mixture of four Gaussians in nine dimensions, from sigma 10 down to 0.05 on grids uniform in
ln sigma, so that no step goes into 0. Error: median over 64 starts of the root mean square distance to where 4,000
steps of fourth order lead. measured: slope of a line through the last three points. short_start: the same where the
first step h (in ln sigma) is preceded by two of h^2/4, which takes the error of a multistep method's start away.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import report
from torch import Tensor

from twofold.generate import SAMPLERS, final
from twofold.noise import log_grid
from twofold.oracle import MixtureDenoiser

EVALUATIONS = (8, 17, 32, 65, 131, 263, 527)  # 2 more than a multiple of 3: "fast" ends in a step of order 2
HIGH, LOW = 10.0, 0.05
HISTORY = ("dpmpp2m", "dpmpp3m", "unipc", "plms", "lms")
PANELS = {
    "Runge-Kutta and DPM-Solver": {"ddim": "ddim, euler, dpm1", "heun": "", "dpm2": "", "dpm3": "dpm3, dpm_fast"},
    "DPM-Solver++": {"dpmpp2s": "", "dpmpp3s": "dpmpp3s, dpmpp_fast", "dpmpp2m": "", "dpmpp3m": ""},
    "Other multistep": {"unipc": "", "unipc order=3": "", "plms": "", "lms": ""},
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def short_start(sigmas: Tensor) -> Tensor:
    top, h = sigmas[0].log(), (sigmas[0] / sigmas[1]).log()
    return torch.cat([sigmas[:1], torch.stack([top - h**2 / 4, top - h**2 / 2]).exp(), sigmas[1:]])


def problem() -> tuple[MixtureDenoiser, Tensor, Tensor]:
    """The denoiser, where it starts and where it should end."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn((4, 1, 3, 3), generator=generator, dtype=torch.float64)
    oracle = MixtureDenoiser(means, [0.2, 0.3, 0.4, 0.5], [1.0, 2.0, 1.0, 3.0])
    x = HIGH * torch.randn((64, 1, 3, 3), generator=generator, dtype=torch.float64)
    sigmas = short_start(log_grid(4_001, LOW, HIGH)[:-1])
    return oracle, x, final(SAMPLERS["unipc"].function(oracle.denoise, x, sigmas, order=3))


def slope(points: list[tuple[int, float]]) -> float:
    x, y = (torch.tensor(column, dtype=torch.float64).log() for column in zip(*points[-3:], strict=True))
    return float(-((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def curve(case: str, start: Callable[[Tensor], Tensor], given: tuple[Any, ...]) -> list[tuple[int, float]]:
    """(evaluations, error) of a sampler, "unipc order=3" being one with an option."""
    name, *option = case.split()
    options = {key: int(value) for key, value in (text.split("=") for text in option)}
    oracle, x, exact = given
    points = []
    for wanted in EVALUATIONS:
        steps = wanted // 2 if name == "heun" else wanted
        calls: list[int] = []

        def denoise(x: Tensor, sigma: Tensor, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return oracle.denoise(x, sigma)

        end = final(SAMPLERS[name].function(denoise, x, start(log_grid(steps + 1, LOW, HIGH)[:-1]), **options))
        points.append((len(calls), float((end - exact).square().mean((1, 2, 3)).sqrt().median())))
    return points


def draw(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 4.8), sharey=True, layout="constrained")
    for axis, (title, cases) in zip(axes, PANELS.items(), strict=True):
        axis.set(title=title, xlabel="evaluations of the denoiser", xscale="log", yscale="log", xlim=(7, 5500))
        axis.grid(True, which="major", color="#e5e5e5", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xticks([10, 30, 100, 300], ["10", "30", "100", "300"])
        axis.minorticks_off()
        for order in (1, 2, 3, 4):  # a fan of slopes where no curve passes
            end = 1e-6 * 4.0**-order
            axis.plot([8, 32], [1e-6, end], ":", color="#888888", linewidth=1.2)
            axis.text(35, end, f"order {order}" if order == 1 else str(order), color="#666666", fontsize=8, va="center")
        places = spread({case: math.log10(curves[case][-1][1]) for case in cases})
        for (case, label), colour in zip(cases.items(), COLOURS, strict=True):
            x, y = zip(*curves[case], strict=True)
            axis.plot(x, y, "o-", color=colour, markersize=3.5, linewidth=1.6)
            axis.annotate(
                label or case, (x[-1], y[-1]), (620, 10 ** places[case]), color=colour, fontsize=9, va="center"
            )
    axes[0].set_ylabel("error (median of root mean squares)")
    figure.suptitle("Every deterministic sampler on an exact denoiser", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def spread(heights: dict[str, float], apart: float = 0.5) -> dict[str, float]:
    """Heights of labels in decades, at least so far apart."""
    placed: dict[str, float] = {}
    for case in sorted(heights, key=heights.__getitem__):
        placed[case] = max([heights[case], *(other + apart for other in placed.values())])
    return placed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    given = problem()
    curves: dict[str, list[tuple[int, float]]] = {}
    orders: dict[str, dict[str, float]] = {}
    cases = [name for name, sampler in SAMPLERS.items() if sampler.deterministic] + ["unipc order=3", "lms order=2"]
    for case in cases:
        curves[case] = curve(case, lambda sigmas: sigmas, given)
        orders[case] = {"measured": round(slope(curves[case]), 2)}
        if case.split()[0] in HISTORY:
            orders[case]["short_start"] = round(slope(curve(case, short_start, given)), 2)
        print(case, orders[case], f"{curves[case][1][1]:.1e}", f"{curves[case][-1][1]:.1e}", sep="\t", flush=True)
    if arguments.figure:
        draw(curves, arguments.figure)
    report("sampler_order", orders=orders, curves=curves)


if __name__ == "__main__":
    main()
