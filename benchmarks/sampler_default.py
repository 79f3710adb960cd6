"""Which sampler, grid and number of steps the default should be: error and Frechet distance against evaluations.

    python benchmarks/sampler_default.py --run runs/demo/digits --n 1000

error: on the exact denoiser of a mixture around 200 digits (std 0.2, EDM's range of sigma): the median over 128 starts
of the root mean square distance from where 600 steps of UniPC of order 3 lead; only for deterministic samplers.
distance: Frechet, pixels, of n samples (seeds 0..n-1, classes in turn) of the run to all images of its data.
Each sampler gets as many steps as cost no more than the evaluations given. Samplers that are the same map on these
grids are left out by default: euler and dpm1 are ddim, ddpm is euler_ancestral, dpm3 and dpmpp3s are dpm_fast and
dpmpp_fast.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import report
from sklearn.datasets import load_digits
from torch import Tensor

from twofold import load, sample
from twofold.data import open_store
from twofold.generate import SAMPLERS, final
from twofold.measure import Gaussian, embed, encoder, frechet_distance
from twofold.noise import grid, log_grid
from twofold.oracle import MixtureDenoiser
from twofold.run import Run

SAME = ("euler", "dpm1", "ddpm", "dpm3", "dpmpp3s")


def oracle_error() -> Callable[[str, int, str], float | None]:
    """Of a sampler with so many steps on a grid."""
    images = torch.from_numpy(load_digits().images[:200]) / 8 - 1
    oracle = MixtureDenoiser(images[:, None], [0.2] * len(images), [1.0] * len(images))
    low, high = oracle.sigma_range
    x = high * torch.randn((128, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = final(SAMPLERS["unipc"].function(oracle.denoise, x, log_grid(600, low, high), order=3))

    def error(name: str, steps: int, spacing: str) -> float | None:
        if not SAMPLERS[name].deterministic:
            return None
        end = final(SAMPLERS[name].function(oracle.denoise, x, grid(oracle.family, steps, spacing)))
        return float((end - exact).square().mean((1, 2, 3)).sqrt().median())

    return error


def digits_distance(run: str, n: int) -> Callable[[str, int, str], float]:
    """Of n samples of this run."""
    denoiser, pixels = load(run), encoder("pixels")
    store = open_store(Run.open(run).settings().data)
    real = Gaussian.of(embed(pixels, store.batch(store.indices("all"))))
    labels = [i % denoiser.classes for i in range(n)] if denoiser.classes else None

    def distance(name: str, steps: int, spacing: str) -> float:
        images: Tensor = sample(denoiser, n, labels, name, steps, grid=spacing, micro_batch=250)
        return frechet_distance(Gaussian.of(embed(pixels, images)), real)

    return distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/demo/digits")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--samplers", nargs="+", default=[name for name in SAMPLERS if name not in SAME])
    parser.add_argument("--evaluations", type=int, nargs="+", default=[5, 10, 15, 20, 30, 50])
    parser.add_argument("--grids", nargs="+", default=["log", "karras"])
    arguments = parser.parse_args()
    error, distance = oracle_error(), digits_distance(arguments.run, arguments.n)
    rows = []
    for spacing in arguments.grids:
        for name in arguments.samplers:
            for evaluations in arguments.evaluations:
                steps = max(k for k in range(1, evaluations + 1) if SAMPLERS[name].evaluations(k) <= evaluations)
                off, away = error(name, steps, spacing), distance(name, steps, spacing)
                off = None if off is None else round(off, 4)
                rows.append((name, spacing, evaluations, steps, off, round(away, 4)))
                print(*rows[-1], sep="\t", flush=True)
    report("sampler_default", run=arguments.run, n=arguments.n, rows=rows)


if __name__ == "__main__":
    main()
