"""Peak anonymous memory of training does not depend on the number of images.

    python benchmarks/memory.py --images 2000 1000000

For each number a Parquet file of random 32x32 JPEG images is made, and a child process packs it and trains a small
network on it for some steps; a second one finds it packed. Anonymous memory is what the process owns; the memory-mapped
store is the page cache's.
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
import sys, json, threading, time
from twofold.learn import train
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings
change = {"data": {"source": sys.argv[1], "size": 32, "channels": 3},
          "network": {"kind": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [16]},
          "noise": {"kind": "edm"},
          "train": {"n_images": 12800, "batch_size": 64, "precision": "fp32", "save_images": 6400,
                    "validate_images": 6400, "preview_images": 12800},
          "validation": {"samples": 32, "steps": 2, "max_images": 256}}
settings, _ = resolve(TrainSettings, [("benchmark", change)])
peak, done = 0, False
def watch():
    global peak
    while not done:
        rows = (line.split() for line in open("/proc/self/smaps_rollup"))
        peak = max(peak, sum(int(row[1]) for row in rows if row[0] == "Anonymous:"))
        time.sleep(0.05)
thread = threading.Thread(target=watch); thread.start()
train(settings, sys.argv[2], "cpu")
done = True; thread.join()
print(json.dumps({"peak_anonymous_mib": round(peak / 1024, 1)}))
"""


def parquet(folder: Path, count: int) -> Path:
    """`count` random images as PNG bytes would take minutes to make; raw grey squares of few bytes compress well."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    random = np.random.default_rng(0)
    encoded = []
    for _ in range(256):  # that many different images, repeated
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=60)
        encoded.append(buffer.getvalue())
    path = folder / f"train-{count}.parquet"
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 10_000):
            size = min(10_000, count - start)
            images = [{"bytes": encoded[(start + i) % 256], "path": None} for i in range(size)]
            labels = [i % 10 for i in range(size)]
            writer.write_table(pa.Table.from_arrays([pa.array(images, kind), pa.array(labels)], schema=schema))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[2_000, 1_000_000])
    arguments = parser.parse_args()
    found = {}
    for count in arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "TWOFOLD_CACHE": folder}
            source = parquet(Path(folder), count)
            for attempt in ("packing and training", "training"):  # the second run finds the store packed
                command = [sys.executable, "-c", CHILD, str(source), f"{folder}/{attempt}"]
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                found[f"{count} images, {attempt}"] = json.loads(done.stdout.splitlines()[-1])["peak_anonymous_mib"]
    report("memory", peak_anonymous_mib=found)


if __name__ == "__main__":
    main()
