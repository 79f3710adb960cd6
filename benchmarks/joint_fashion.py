"""Does one network that generates and names do both as well as two that do one of them each?

    python benchmarks/joint_fashion.py FASHION_MNIST --seeds 0 1 2 --work runs/joint-fashion

Fashion-MNIST at 14x14 with 10 labels per class, preset `joint-fashion-mini`. Three arms for every seed (of weights,
noise, order and of which images are labelled):

    joint        the preset
    generative   the same network without its head and labels: as many steps of the denoising loss alone
    classifier   the same encoder and head, trained on the labelled images alone, as many steps

Measured on the test part: accuracy of clean images (joint, classifier; interval over images in each row), and the
Frechet distance (pixels, --n samples to the training part; joint, generative). One JSON line per (arm, seed) in --work,
which is not computed again; at the end the paired differences with 95 % intervals (Student's t over seeds).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from scipy import stats

from twofold import load, sample
from twofold.data import open_store
from twofold.learn import train
from twofold.measure import Gaussian, accuracy, embed, encoder, frechet_distance
from twofold.measure.answers import share_interval
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

PRESET = "joint-fashion-mini"
ARMS = ("joint", "generative", "classifier")


def settings_of(arm: str, seed: int, data: str, changes: dict[str, Any]) -> TrainSettings:
    own = {"data": {"source": data, "labels_seed": seed}, "train": {"seed": seed}}
    joint = resolve(TrainSettings, [*open_preset(PRESET).layers, ("benchmark", own), ("changes", changes)])[0]
    whole = joint.model_dump(mode="json")
    if arm == "generative":
        whole["objective"], whole["network"]["head"] = {"kind": "denoising"}, None
    if arm == "classifier":
        whole["objective"] |= {"denoise": False, "weight": 1.0, "pseudo_labels": "none"}
        whole["objective"] |= {"weight_from_images": 0, "weight_rampup_images": 0}  # all of the time
    return resolve(TrainSettings, [(arm, whole)])[0]


def measured(run: Path, settings: TrainSettings, n: int) -> dict[str, Any]:
    """What the arm can do, on the test part."""
    model: Any = load(run)
    store = open_store(settings.data)
    found: dict[str, Any] = {}
    if settings.objective.kind == "joint":
        rows = store.indices("test")
        with torch.inference_mode():
            parts = store.batch(rows).split(500)
            logits = torch.cat([model.logits(model.codec.encode(part), 0.0) for part in parts])
        share = accuracy(logits, torch.from_numpy(np.asarray(store.all_labels[rows]).astype(np.int64)))
        low, high = share_interval(share, len(rows))
        found |= {"accuracy": share, "low": low, "high": high}
    if getattr(settings.objective, "denoise", True):
        pixels = encoder("pixels")
        images = torch.as_tensor(sample(model, n, micro_batch=250))
        real = Gaussian.of(embed(pixels, store.batch(store.indices("train"))))
        found["frechet"] = frechet_distance(Gaussian.of(embed(pixels, images)), real)
    return found


def row_of(arm: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Of one configuration and seed: read if it is there, else trained and measured."""
    file = arguments.work / f"{arm}-{seed}.json"
    settings = settings_of(arm, seed, arguments.data, arguments.changes)
    if file.is_file():
        row: dict[str, Any] = json.loads(file.read_text())
        if row["settings"] == settings.model_dump(mode="json"):
            return row
    result = train(settings, arguments.work / f"{arm}-{seed}", "cpu")
    row = {
        "arm": arm,
        "seed": seed,
        "n": arguments.n,
        **measured(arguments.work / f"{arm}-{seed}", settings, arguments.n),
    }
    row |= {"seconds": result["seconds"], "images": result["n_images"], "machine": machine()}
    file.write_text(json.dumps(row | {"settings": settings.model_dump(mode="json")}))
    return row


def interval(values: list[float]) -> dict[str, Any]:
    """Mean and 95 % interval over seeds."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else float("nan")
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4), "each": values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="Fashion-MNIST: a folder, or fashion_mnist")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--work", type=Path, default=Path("runs/joint-fashion"))
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--changes", type=json.loads, default={}, help="to the preset's settings, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for seed in arguments.seeds:
        for arm in arguments.arms:
            rows[arm, seed] = row = row_of(arm, seed, arguments)
            shown = {k: v for k, v in row.items() if k not in ("settings", "machine")}
            print(json.dumps(shown), flush=True)
    if set(arguments.arms) == set(ARMS):
        gain = [rows["joint", s]["accuracy"] - rows["classifier", s]["accuracy"] for s in arguments.seeds]
        worse = [rows["joint", s]["frechet"] / rows["generative", s]["frechet"] for s in arguments.seeds]
        print(json.dumps({"accuracy gained": interval(gain), "Frechet distance, ratio": interval(worse)}), flush=True)


if __name__ == "__main__":
    main()
