"""Frechet distance against evaluations of the network, for samplers on each of their grids.

    python benchmarks/samplers.py --run runs/demo/digits --n 1000

The distance is to all real images of the run's data, in pixel space, so it is comparable only within this table. The
last line gives the claim: evaluations and seconds that the default sampler needs to reach the distance of DDIM-100.
All samplers at equal cost: `sampler_default.py`; their order: `sampler_order.py`.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import alternate, ratio, report

from twofold import load, sample
from twofold.data import open_store
from twofold.errors import UserError
from twofold.generate import SAMPLERS
from twofold.measure import Gaussian, embed, encoder, frechet_distance
from twofold.run import Run

STEPS = (4, 6, 8, 10, 12, 15, 20, 30, 50, 100)
GRIDS = ("karras", "log", "time", "ddim")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/demo/digits")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--samplers", nargs="+", default=["ddim", "heun", "dpmpp2m", "unipc"], choices=list(SAMPLERS))
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    arguments = parser.parse_args()
    denoiser = load(arguments.run)
    store = open_store(Run.open(arguments.run).settings().data)
    pixels = encoder("pixels")
    real = Gaussian.of(embed(pixels, store.batch(store.indices("all"))))
    labels = [i % denoiser.classes for i in range(arguments.n)] if denoiser.classes else None
    rows = []
    for name in arguments.samplers:
        for grid in GRIDS:
            for steps in arguments.steps:
                start = time.perf_counter()
                try:
                    images = sample(denoiser, arguments.n, labels, name, steps, grid=grid, micro_batch=250)
                except UserError:
                    continue  # this family has no such grid
                taken = time.perf_counter() - start
                distance = frechet_distance(Gaussian.of(embed(pixels, torch.as_tensor(images))), real)
                evaluations = SAMPLERS[name].evaluations(steps)
                rows.append((name, grid, evaluations, round(distance, 4), round(taken, 2)))
                print(*rows[-1], sep="\t", flush=True)
    best = {}  # (sampler, evaluations) -> its best grid
    for name, grid, evaluations, distance, taken in rows:
        if (name, evaluations) not in best or distance < best[name, evaluations][0]:
            best[name, evaluations] = (distance, grid, taken)
    claim = None
    if ("ddim", 100) in best:
        goal = best["ddim", 100][0]
        reached = [(e, *best[s, e]) for s, e in sorted(best) if s == "dpmpp2m" and best[s, e][0] <= goal]
        if reached:
            evaluations, distance, grid, _ = reached[0]
            slow, n = best["ddim", 100][1], min(arguments.n, 250)
            timed = alternate(  # the times above were taken one after the other
                {
                    "dpmpp2m": lambda: sample(denoiser, n, labels and labels[:n], "dpmpp2m", evaluations, grid=grid),
                    "ddim": lambda: sample(denoiser, n, labels and labels[:n], "ddim", 100, grid=slow),
                },
                rounds=3,
            )
            claim = {
                "ddim-100": {"distance": goal, "grid": slow},
                "dpmpp2m": {"distance": distance, "evaluations": evaluations, "grid": grid},
                "fewer_evaluations": round(100 / evaluations, 2),
                "faster": ratio(timed, "dpmpp2m", "ddim"),
            }
    curve = [[name, evaluations, *best[name, evaluations][:2]] for name, evaluations in sorted(best)]
    report("samplers", run=arguments.run, n=arguments.n, claim=claim, curve_at_best_grid=curve)


if __name__ == "__main__":
    main()
