"""Does the denoising error tell odd images? One-class splits of digits: trained on one class, asked about all.

    OMP_NUM_THREADS=1 python benchmarks/anomaly.py --classes 0 1 8

For each class a small denoiser is trained on its training images alone (the demo's network, unconditional); the test
part of all classes is scored, and the AUROC of "is of another class" is printed, beside that of a plain baseline: the
distance in pixels to the nearest training image. Seeds: --seeds training runs per class.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from common import report
from PIL import Image

import twofold
from twofold.learn.probed import mean_interval
from twofold.measure.answers import auroc
from twofold.measure.neighbours import nearest
from twofold.recognize.anomaly import AnomalyDetector
from twofold.settings.data import DataSettings
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings


def trained(folder: Path, out: Path, n_images: int, seed: int) -> twofold.NetworkDenoiser:
    """A denoiser of the images in a folder."""
    change = {
        "data": {"source": str(folder), "validation_share": 0.1, "test_share": 0.0},
        "network": {"classes": 0},
        "train": {"n_images": n_images, "seed": seed, "warmup_images": 5000},
        "validation": {"samples": 0},
    }
    settings, _ = resolve(TrainSettings, [*open_preset("digits").layers, ("benchmark", change)])
    twofold.train(settings, out, "cpu")
    model = twofold.load(out)
    assert isinstance(model, twofold.NetworkDenoiser)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[0, 1, 8])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--n-images", type=int, default=60_000)
    arguments = parser.parse_args()
    store = twofold.open_store(DataSettings(source="digits"))
    labels = np.asarray(store.labels)
    test = store.indices("test")
    every: dict[str, list[float]] = {"denoising error": [], "nearest in pixels": []}
    for k in arguments.classes:
        rows = store.indices("train")
        good = store.batch(rows[labels[rows] == k])
        odd = labels[test] != k
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "good"
            folder.mkdir()
            for i, image in enumerate(good):
                Image.fromarray(image[0].numpy()).save(folder / f"{i:04d}.png")
            for seed in range(arguments.seeds):
                model = trained(folder, Path(place) / f"run{seed}", arguments.n_images, seed)
                scores = AnomalyDetector(model).fit(good).scores(store.batch(test))
                every["denoising error"].append(auroc(scores, odd))
        flat = lambda images: images.flatten(1).float()  # noqa: E731
        distances, _ = nearest(flat(store.batch(test)), flat(good), 1)
        every["nearest in pixels"].append(auroc(distances[:, 0].numpy(), odd))
        report("anomaly", digit=k, good=len(good), auroc={n: round(v[-1], 4) for n, v in every.items()})
    for name, values in every.items():
        low, high = mean_interval(values) if len(values) > 1 else (values[0], values[0])
        print(f"{name:20} AUROC {np.mean(values):.3f}   95 % {low:.3f} to {high:.3f} over {len(values)} runs")


if __name__ == "__main__":
    main()
