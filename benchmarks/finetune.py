"""Does fine-tuning to a new class set beat training from scratch for the same time?

    python benchmarks/finetune.py --seconds 15 30 60 --seeds 0 1 2

scikit-learn's digits: the source is trained on 0 to 4 (once, kept in --work), the new classes are 5 to 9. Each arm may
train for so many seconds of one thread; how many images that is, is measured first, by turns. Measured on --n samples:
the Frechet distance (pixels) to the new classes' held-out images, and how many of them the preset `digits-classifier`,
trained on all ten classes, recognises as what was asked for, with 90 % confidence or at all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import report
from PIL import Image

from twofold import load, sample
from twofold.data import open_store
from twofold.learn import train
from twofold.learn.events import Stepped
from twofold.measure import Gaussian, embed, encoder, frechet_distance
from twofold.measure.encoders import probabilities
from twofold.run import Run
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

CONFIDENCE, STEPS = 0.9, 12
QUIET = {"validate_images": 10**9, "preview_images": 10**9, "save_images": 10**9}  # nothing but training in the time
FEW = {"samples": 0, "max_images": 1}
# an arm: the preset, and changes to it
ARMS: dict[str, dict[str, Any]] = {
    "lora": {"preset": "lora"},
    "scratch": {"preset": "digits"},
    "scratch, loop of lora": {
        "preset": "digits",
        "train": {"batch_size": 64, "warmup_images": 1000, "ema_halflife_images": 10_000},
    },
    "whole": {"preset": "lora", "lora": None, "train": {"lr": 3e-3}},
}


def settings_of(preset: str, *changes: dict[str, Any]) -> TrainSettings:
    return resolve(TrainSettings, [*open_preset(preset).layers, *(("benchmark", change) for change in changes)])[0]


def write_digits(folder: Path, classes: range) -> None:
    """Digits of these classes as a folder of images with a sub-folder per class."""
    store = open_store(settings_of("digits").data)
    for row, label in enumerate(np.asarray(store.labels)):
        if int(label) in classes:
            path = folder / str(label) / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(store.batch([row])[0, 0].numpy()).save(path)


def once(path: Path, settings: TrainSettings) -> Path:
    """Trains a run unless it is there already."""
    train(settings, path, "cpu")
    return path


def arm_settings(arm: dict[str, Any], new: Path, source: Path, **loop: Any) -> TrainSettings:
    changes = {name: value for name, value in arm.items() if name != "preset"}
    start = {} if arm["preset"] == "digits" else {"init_from": str(source)}
    own = {"data": {"source": str(new)}, "train": {**QUIET, **loop}, "validation": FEW}
    return settings_of(arm["preset"], own, start, changes)


def rates(arms: dict[str, dict[str, Any]], new: Path, source: Path, scratch: Path) -> dict[str, float]:
    """Images per thread-second of each arm: the median step of three short runs by turns, whatever else runs here."""
    steps: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(3):
        for name, arm in arms.items():
            at: list[float] = []

            def note(event: object, at: list[float] = at) -> None:
                if isinstance(event, Stepped):
                    at.append(time.process_time())

            settings = arm_settings(arm, new, source, n_images=STEPS * batch_of(arm))
            train(settings, scratch / f"rate-{name}-{round_}", "cpu", note)
            steps[name] += [after - before for before, after in pairwise(at[:-1])][1:]
    return {name: batch_of(arms[name]) / statistics.median(each) for name, each in steps.items()}


def batch_of(arm: dict[str, Any]) -> int:
    return settings_of(arm["preset"], {k: v for k, v in arm.items() if k != "preset"}).train.batch_size


def measured(run: Path, new: Path, judge: Path, n: int) -> dict[str, float]:
    denoiser, classifier, pixels = load(run), load(judge), encoder("pixels")
    store = open_store(Run.open(run).settings().data)
    held_out = np.concatenate([store.indices("validation"), store.indices("test")])
    labels = [i % len(store.classes) for i in range(n)]
    images = torch.as_tensor(sample(denoiser, n, labels, micro_batch=250))
    answers = torch.as_tensor(probabilities(classifier, images))
    asked = torch.tensor([classifier.class_names.index(store.classes[label]) for label in labels])
    right = answers.argmax(1) == asked
    real = store.batch(held_out)
    return {
        "frechet": frechet_distance(Gaussian.of(embed(pixels, images)), Gaussian.of(embed(pixels, real))),
        "accepted_and_right": float((right & (answers.amax(1) >= CONFIDENCE)).float().mean()),
        "right": float(right.float().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/finetune-benchmark"))
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", type=json.loads, default=ARMS, help="{name: {preset, changes to its settings}}")
    parser.add_argument("--n", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work, arms = arguments.work, arguments.arms
    old, new = work / "digits-0-4", work / "digits-5-9"
    for folder, classes in ((old, range(5)), (new, range(5, 10))):
        if not folder.exists():
            write_digits(folder, classes)
    source = once(work / "source", settings_of("digits", {"data": {"source": str(old)}}))
    judge = once(work / "judge", settings_of("digits-classifier"))
    made = work / f"runs-{len(list(work.glob('runs-*')))}"
    speed = rates(arms, new, source, made)
    report("finetune-rates", images_per_thread_second={name: round(rate) for name, rate in speed.items()})
    rows: dict[tuple[str, float], list[dict[str, float]]] = {}
    for seconds in arguments.seconds:
        for seed in arguments.seeds:
            for name, arm in arms.items():
                batch = batch_of(arm)
                count = int(seconds * speed[name]) // batch * batch
                settings = arm_settings(arm, new, source, n_images=count, seed=seed)
                run = made / f"{name}-{seconds:g}-{seed}"
                result = train(settings, run, "cpu")
                found = measured(run, new, judge, arguments.n)
                rows.setdefault((name, seconds), []).append(found)
                sizes = {key: result[key] for key in ("n_images", "parameters_trained")}
                report(
                    "finetune", arm=name, thread_seconds=seconds, seed=seed, took=result["seconds"], **sizes, **found
                )
    for (name, seconds), each in rows.items():
        means = {key: round(statistics.mean(row[key] for row in each), 4) for key in each[0]}
        print(f"{name:12} {seconds:5.0f} s  " + "  ".join(f"{key} {value:.3f}" for key, value in means.items()))


if __name__ == "__main__":
    main()
