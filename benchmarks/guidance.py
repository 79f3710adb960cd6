"""Which way of guiding gets the class that was asked for, at what price in quality and time?

    python benchmarks/guidance.py --run RUN [RUN ...] --judge RUN [--conditional RUN] --figure docs/figures/guidance.png

RUN: of a joint model (preset joint-digits-mini), or one for each seed, trained with other seeds; --judge: a classifier
that was trained by itself (digits-classifier); --conditional: a denoiser that is told the class (digits), for
classifier-free guidance. Classes in turn. share: of samples in which the judge sees the class asked for; accepted: of
those it gives 90 % to any class; frechet: pixels, to all images of the run's data; cost: products of an evaluation by
those of an unguided one (FLOPs, gradients included); seconds: per image, on this machine. One row per configuration and
seed (of the samples: seed s takes s * n, s * n + 1, ...), kept in --rows and not computed again; an interval is 95 % of
Student's t over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import machine

from twofold import load
from twofold.data import open_store
from twofold.denoiser import Denoiser
from twofold.generate import draw, plan
from twofold.generate.cost import relative_cost
from twofold.generate.labels import check_labels
from twofold.hashing import weights_hash
from twofold.measure import Gaussian, embed, encoder, frechet_distance
from twofold.measure.encoders import probabilities
from twofold.run import Run

CONFIDENCE = 0.9
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided 95 %, by the number of seeds
JOINT: list[tuple[str, dict[str, Any]]] = [
    ("unguided", {}),
    *(("representations", {"guide": "representations", "guide_scale": s}) for s in (0.5, 1.0, 2.0, 4.0, 6.0)),
    ("representations, sigma > 0.2", {"guide": "representations", "guide_scale": 4.0, "guide_interval": (0.2, 80.0)}),
    ("representations, sigma > 0.2", {"guide": "representations", "guide_scale": 6.0, "guide_interval": (0.2, 80.0)}),
    *(("own classifier", {"guide": "own", "guide_scale": s}) for s in (1.0, 2.0, 5.0, 10.0)),
]
CONDITIONAL: list[tuple[str, dict[str, Any]]] = [("labels", {"guidance": g}) for g in (1.0, 2.0, 4.0, 6.0)]


def measured(model: Denoiser, judge: Any, real: Gaussian, how: dict[str, Any], n: int, seed: int) -> dict[str, float]:
    """One row: n samples, classes in turn."""
    made = plan(model, micro_batch=250, **how)
    wanted = torch.arange(n) % len(judge.class_names)
    told = check_labels(model, wanted, n, made.guidance, made.guide) if model.classes or made.guide else None
    start = time.perf_counter()
    images = draw(model, made, range(seed * n, (seed + 1) * n), told)
    seconds = time.perf_counter() - start
    answers = torch.as_tensor(probabilities(judge, images))
    return {
        "share": float((answers.argmax(1) == wanted).double().mean()),
        "accepted": float((answers.amax(1) >= CONFIDENCE).double().mean()),
        "frechet": frechet_distance(Gaussian.of(embed(encoder("pixels"), images)), real),
        "cost": relative_cost(model, made),
        "seconds": seconds / n,
    }


def scale_of(how: dict[str, Any]) -> float:
    return float(how.get("guide_scale", how.get("guidance", 0.0)))


def spread(values: list[float]) -> str:
    """Mean and half the width of its 95 % interval; one value stands alone."""
    mean = statistics.mean(values)
    if len(values) not in STUDENT:
        return f"{mean:.3f}"
    return f"{mean:.3f} +- {STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5:.3f}"


def table(rows: list[dict[str, Any]], wanted: list[tuple[str, dict[str, Any]]], seeds: list[int]) -> str:
    """Markdown; a configuration whose seeds are not all there says how many are."""
    lines = ["| method | scale | share of the wanted class | accepted | Frechet distance | cost |", "|" + " --- |" * 6]
    for method, how in wanted:
        mine = [row for row in rows if row["method"] == method and row["how"] == json.loads(json.dumps(how))]
        mine = [row for row in mine if row["seed"] in seeds]
        values = {k: spread([row[k] for row in mine]) for k in ("share", "accepted", "frechet")} if mine else {}
        missing = f" ({len(mine)} of {len(seeds)} seeds)" if len(mine) < len(seeds) else ""
        cost = f"{mine[0]['cost']:.2f}" if mine else ""
        cells = [values.get(k, "missing") for k in ("share", "accepted", "frechet")]
        lines.append("| " + " | ".join([method + missing, f"{scale_of(how):g}", *cells, cost]) + " |")
    return "\n".join(lines)


def draw_figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Share and Frechet distance along the scale, a line per method, a dot per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    methods = [m for m in dict.fromkeys(row["method"] for row in rows) if m not in ("unguided", "") and ">" not in m]
    for place, method in enumerate(methods):
        mine = [row for row in rows if row["method"] == method]
        scales = sorted({scale_of(row["how"]) for row in mine})
        means = {
            key: [statistics.mean(r[key] for r in mine if scale_of(r["how"]) == s) for s in scales]
            for key in ("share", "frechet")
        }
        for axis, key in zip(axes, ("share", "frechet"), strict=False):
            axis.plot(scales, means[key], color=f"C{place}", label=method)
            axis.plot([scale_of(r["how"]) for r in mine], [r[key] for r in mine], ".", color=f"C{place}", alpha=0.5)
        axes[2].plot(means["share"], means["frechet"], "o-", color=f"C{place}", label=method)
    plain = [row for row in rows if row["method"] == "unguided"]
    for axis, key, name in zip(
        axes, ("share", "frechet"), ("share of the wanted class", "Frechet distance"), strict=False
    ):
        if plain:
            axis.axhline(statistics.mean(r[key] for r in plain), color="grey", linestyle=":", label="unguided")
        axis.set(xlabel="scale", ylabel=name)
    axes[2].set(xlabel="share of the wanted class", ylabel="Frechet distance")
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", required=True)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--conditional")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=Path, default=Path("runs/benchmarks/guidance.jsonl"))
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = {name: load(name) for name in (*arguments.run, arguments.conditional) if name}
    judge = load(arguments.judge)
    store = open_store(Run.open(arguments.run[0]).settings().data)
    real = Gaussian.of(embed(encoder("pixels"), store.batch(store.indices("all"))))
    wanted = [*JOINT, *(CONDITIONAL if arguments.conditional else [])]
    rows = [json.loads(line) for line in arguments.rows.read_text().splitlines()] if arguments.rows.exists() else []
    names = {source: [weights_hash(part)[:8] for part in (model, judge)] for source, model in models.items()}
    kept = [row for row in rows if row.get("weights") in names.values()]  # of these models
    done = {json.dumps([row[k] for k in ("method", "how", "seed", "n")]) for row in kept}
    arguments.rows.parent.mkdir(parents=True, exist_ok=True)
    for place, seed in enumerate(arguments.seeds):
        for method, how in wanted:
            joint = arguments.run[place % len(arguments.run)]
            name = arguments.conditional if method == "labels" else joint
            if json.dumps([method, how, seed, arguments.n]) in done:
                continue
            row = {"method": method, "how": how, "seed": seed, "n": arguments.n, "weights": names[name]}
            row |= measured(models[name], judge, real, how, arguments.n, seed) | {"machine": machine()}
            kept.append(json.loads(json.dumps(row)))
            with arguments.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print({k: row[k] for k in ("method", "seed", "share", "frechet", "cost")}, scale_of(how), flush=True)
    kept = [row for row in kept if row["n"] == arguments.n]
    print(table(kept, wanted, arguments.seeds))
    if arguments.figure:
        draw_figure(kept, arguments.figure)


if __name__ == "__main__":
    main()
