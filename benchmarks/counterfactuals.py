"""Do edits become their target while they stay near? Test images of digits, each towards a random other class.

    python benchmarks/counterfactuals.py --run RUN [RUN ...] --judge RUN [--conditional RUN] [--out edits.jsonl]

RUN: of joint-digits-mini (or one for each seed, trained with other seeds), of digits-classifier (an independent judge)
and of digits (class-conditional). An edit counts where the judge, who took no part in it, names the target, and where
the edited image is nearer to its original, in pixels, than the nearest training image of the target class: both at
once. For each configuration and seed of the random targets one line of JSON, kept in --out: what is there is not
computed again. At the end a table with Student's 95 % interval over seeds. --part validation is what the defaults were
chosen on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from common import report
from torch import Tensor

import twofold
from twofold.generate.edit import edit
from twofold.generate.pull import answers
from twofold.hashing import weights_hash
from twofold.learn.probed import mean_interval
from twofold.measure.neighbours import nearest
from twofold.recognize.views import image_noise
from twofold.recognize.zero_shot import ZeroShotClassifier
from twofold.settings.data import DataSettings

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "own": {"guide": "own"},
    "own, first that is enough": {"guide": "own", "search": "first"},
    "own, margin 0": {"guide": "own", "margin": 0.0},
    "own, all of the change": {"guide": "own", "margin": 1.0},
    "own, fresh noise": {"guide": "own", "noise": "random"},
    "representations": {"guide": "representations"},
    "labels": {"guide": "labels"},
}


def targets(labels: Tensor, seed: int, classes: int = 10) -> Tensor:
    """Another class for each image, drawn evenly."""
    steps = torch.randint(1, classes, (len(labels),), generator=torch.Generator().manual_seed(seed))
    return (labels + steps) % classes


def nearest_real(images: Tensor, wanted: Tensor, train: Tensor, labels: Tensor) -> Tensor:
    """L2 in pixels (N,) from each image to the nearest training image of its target class."""
    found = torch.empty(len(images), dtype=torch.float64)
    for k in wanted.unique():
        rows = wanted == k
        flat = images[rows].flatten(1).double(), train[labels == k].flatten(1).double()
        found[rows] = nearest(*flat, 1)[0][:, 0]
    return found


def measure(
    model: Any, judge: Any, how: dict[str, Any], images: Tensor, wanted: Tensor, limit: Tensor
) -> dict[str, Any]:
    """Shares and distances of one configuration."""
    how = dict(how)
    if how.get("noise") == "random":
        how["noise"] = image_noise(images, model.shape)
    if how["guide"] == "labels":
        how["asked"] = ZeroShotClassifier(model, rounds=((8, 3), (32, 1)))
    start = time.monotonic()
    found = edit(model, images, wanted, **how)
    flipped = answers(judge, found.images).argmax(1) == wanted
    l2 = (found.images.double() - images.double()).flatten(1).norm(dim=1)
    near = l2 < limit
    shares = {"flipped": flipped, "near": near, "both": flipped & near, "reached": found.reached}
    return {
        **{name: round(float(rows.double().mean()), 4) for name, rows in shares.items()},
        "l2": round(float(l2.median()), 1),
        "rms": round(float(found.near.rms.median()), 1),
        "features": round(float(found.near.features.median()), 3),
        "l2_nearest_real": round(float(limit.median()), 1),
        "seconds_an_image": round((time.monotonic() - start) / len(images), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", required=True)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--conditional")
    parser.add_argument("--out", type=Path, default=Path("counterfactuals.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    parser.add_argument("--n", type=int, help="only the first so many images")
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    arguments = parser.parse_args()
    store = twofold.open_store(DataSettings(source="digits"))
    rows, real = store.indices(arguments.part)[: arguments.n], store.indices("train")
    images, train = store.batch(rows), store.batch(real)
    labels, train_labels = (torch.from_numpy(store.labels[r].astype("int64")) for r in (rows, real))
    models = {source: twofold.load(source) for source in (*arguments.run, arguments.conditional) if source}
    judge = twofold.load(arguments.judge)
    hashes = {source: [weights_hash(part)[:8] for part in (model, judge)] for source, model in models.items()}
    kept = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done = {key_of(row): row for row in kept}
    wanted_rows: dict[str, list[Any]] = {name: [] for name in arguments.only}
    for seed in range(arguments.seeds):
        for name in arguments.only:
            source = arguments.conditional if name == "labels" else arguments.run[seed % len(arguments.run)]
            if source is None:
                continue
            row = {"configuration": name, "seed": seed, "part": arguments.part, "images": len(images)}
            row["weights"] = hashes[source]
            if key_of(row) not in done:
                wanted = targets(labels, seed)
                limit = nearest_real(images, wanted, train, train_labels)
                done[key_of(row)] = row | measure(models[source], judge, CONFIGURATIONS[name], images, wanted, limit)
                report("counterfactuals", **done[key_of(row)])
                with arguments.out.open("a") as file:
                    file.write(json.dumps(done[key_of(row)]) + "\n")
            wanted_rows[name].append(done[key_of(row)])
    for name, found in wanted_rows.items():
        table(name, found)


def key_of(row: dict[str, Any]) -> str:
    """What a row is kept under: the same models, images and configuration are not measured twice."""
    return json.dumps([row.get(k) for k in ("configuration", "seed", "part", "images", "weights")])


def table(name: str, rows: list[dict[str, Any]]) -> None:
    """One line of means and intervals."""
    if not rows:
        print(f"{name:24} missing")
        return
    parts = []
    for what in ("both", "flipped", "near"):
        values = [row[what] for row in rows]
        low, high = mean_interval(values) if len(values) > 1 else (values[0], values[0])
        parts.append(f"{what} {100 * sum(values) / len(values):5.1f} % ({100 * low:.1f} to {100 * high:.1f})")
    mean = {what: sum(row[what] for row in rows) / len(rows) for what in ("l2", "rms", "seconds_an_image")}
    parts.append(f"L2 {mean['l2']:.0f}, rms {mean['rms']:.1f} grey levels, {mean['seconds_an_image']:.2f} s an image")
    print(f"{name:24} " + "   ".join(parts))


if __name__ == "__main__":
    main()
