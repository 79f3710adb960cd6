"""Peak anonymous memory of stage 1 of `twofold fewlabel` does not depend on the number of images.

    python benchmarks/fewlabel_memory.py --images 20000 80000

For each number an .npz file of random 8x8 images with ten classes is made. A child process packs it; another one reads
the features of a small denoiser with random weights, learns the published logistic regression from two labels of each
class and answers about all images. It counts how many images the denoiser's codec is given while features are read.
Anonymous memory is what the process owns; the memory-mapped store is the page cache's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import report

CHILD = """
import json, sys, threading, time
from pathlib import Path
import torch
from twofold.codec import PixelCodec
from twofold.learn.fewlabel import Crew, prepare, stages
from twofold.learn.training import make_accelerator
from twofold.run import Run, build, save_model
from twofold.settings.fewlabel import FewLabelSettings
from twofold.settings.fewlabel_layers import layers_of
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

source, out = sys.argv[1], Path(sys.argv[2])
network = {"kind": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": []}
model, _ = resolve(TrainSettings, [("benchmark", {"data": "digits", "network": network, "noise": {"kind": "edm"}})])
run = Run(out / "model")
if not run.settings_file.is_file():
    Run.start(run.path, model)
    torch.manual_seed(0)
    denoiser = build(model, (1, 8, 8), [])
    save_model(run.model_file, denoiser.network.state_dict(), denoiser, model, 0)
given = {"data": {"source": source, "test_share": 0.0}, "labels_per_class": 2, "learner": {"kind": "logistic"},
         "features": {"model": str(run.path), "draws": 1, "sigmas": [0.1]}, "pseudo": {"folds": 0}}
settings = resolve(FewLabelSettings, layers_of("mini", given)[0])[0]
place = out / Path(source).stem
place.mkdir(exist_ok=True)
experiment = prepare(settings, place, Crew(make_accelerator("cpu")))
if sys.argv[3] == "pack":
    sys.exit()

seen, encode = [0], PixelCodec.encode
def counted(self, images, *rest):
    seen[0] += len(images)
    return encode(self, images, *rest)
PixelCodec.encode = counted

peak, done = 0, False
def watch():
    global peak
    while not done:
        rows = (line.split() for line in open("/proc/self/smaps_rollup"))
        peak = max(peak, sum(int(row[1]) for row in rows if row[0] == "Anonymous:"))
        time.sleep(0.05)
thread = threading.Thread(target=watch)
thread.start()
known = stages.reading(experiment.shop)
answers = stages.first_classifier(experiment.shop, known, settings.learner)
done = True
thread.join()
numbers = known.features.files()[0].stat().st_size // 4 // min(4096, len(known.features))
print(json.dumps({"peak_mib": round(peak / 1024), "read": seen[0], "numbers_an_image": numbers}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 80_000])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TWOFOLD_CACHE": str(Path(folder) / "cache"), "OMP_NUM_THREADS": "1"}
        for n in arguments.images:
            random, source = np.random.default_rng(n), Path(folder) / f"{n}.npz"
            images = random.integers(0, 256, (n, 8, 8), np.uint8)
            np.savez(source, images=images, labels=np.arange(n) % 10)
            words = [sys.executable, "-c", CHILD, str(source), folder]
            subprocess.run([*words, "pack"], env=environment, check=True)
            done = subprocess.run([*words, "learn"], env=environment, stdout=subprocess.PIPE, text=True, check=True)
            report("fewlabel_memory", images=n, **json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
