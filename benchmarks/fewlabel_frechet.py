"""Are images better when the model was told pseudo labels? The same network, start, budget and noise levels, both ways.

    python benchmarks/fewlabel_frechet.py runs/fewlabel/1-5 runs/fewlabel/1-6 ... --judge runs/judge

Arguments are experiments of `twofold fewlabel` (or of fewlabel.py). Of each, the conditional model is compared with one
that was trained alike but sees no label. Frechet distances of --n images of each, to the training part (the labels of
the conditional model's images in turn): in pixels, and on the features of a classifier trained on all labels (--judge,
the run of `twofold train digits-classifier`), where only that one is called by its name: frechet/convnet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from fewlabel import interval

from twofold import load, sample
from twofold.data import Store, open_store
from twofold.learn import train
from twofold.measure import Gaussian, embed, encoder, frechet_distance
from twofold.run import Run


def distances(model: Any, store: Store, judge: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """{encoder: Frechet distance}; with guidance, where the model knows labels."""
    found = {}
    label = [i % model.classes for i in range(arguments.n)] if model.classes else None
    real = store.batch(store.indices("train"))
    for guidance in arguments.guidance if model.classes else [1.0]:
        images = torch.as_tensor(sample(model, arguments.n, label, guidance=guidance, micro_batch=250))
        for name, reads in (("pixels", encoder("pixels")), ("convnet", encoder("convnet", judge))):
            statistics = [Gaussian.of(embed(reads, part)) for part in (images, real)]
            found[f"{name}, guidance {guidance:g}"] = frechet_distance(*statistics)
    return found


def row_of(folder: Path, judge: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Of one experiment."""
    generator = Path(json.loads((folder / "result.json").read_text())["generator"])
    settings = Run.open(generator).settings()
    plain = settings.model_copy(update={"network": settings.network.model_copy(update={"classes": 0})})
    out = folder / "unconditional"
    train(plain, out, "cpu")
    store = open_store(settings.data)
    row: dict[str, Any] = {"experiment": folder.name, "images": settings.train.n_images, "machine": machine()}
    for name, run in (("conditional", generator), ("unconditional", out)):
        row[name] = distances(load(run), store, judge, arguments)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", type=Path, nargs="+")
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.4])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judge, rows = load(arguments.judge), []
    for folder in arguments.experiments:
        rows.append(row_of(folder, judge, arguments))
        print(json.dumps({k: v for k, v in rows[-1].items() if k != "machine"}), flush=True)
    for name in rows[0]["conditional"]:
        plain = name.partition(",")[0] + ", guidance 1"
        ratios = [row["conditional"][name] / row["unconditional"][plain] for row in rows]
        print(json.dumps({name: interval([float(np.log(r)) for r in ratios]), "ratios": ratios}), flush=True)


if __name__ == "__main__":
    main()
