"""How long does a server look for the training images that an uploaded picture is nearest to, by its pixels?

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/serving_neighbours.py [--images 20000] [--side 32] [--rounds 5]

`held`: `serve/search.py`, which keeps what fits (256 MiB). `read`: `measure.neighbours.nearest` over images that are
read for every request. Random RGB images in a memory-mapped file that the system has in its cache; one picture a
request, its eight nearest. Both find the same ones at the same distances, or it says so.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternate, ratio, report

from twofold.measure.neighbours import nearest
from twofold.serve.search import Search


def walked(steps: Generator[None, None, Any]) -> Any:
    """What a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    width = 3 * args.side**2
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images"
        draw.integers(0, 256, (args.images, width), dtype=np.uint8).tofile(path)
        pixels = np.asarray(np.memmap(path, np.uint8, "r", shape=(args.images, width)))
        query = torch.from_numpy(draw.integers(0, 256, (1, width), dtype=np.uint8)).float()

        def vectors(rows: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(pixels[rows.numpy()]).float()

        search = Search(vectors, args.images, torch.full((width,), 127.5))
        walked(search.read())
        everything = torch.arange(args.images)
        contenders = {
            "held": lambda: walked(search.nearest(query, 8)),
            "read": lambda: nearest(query, vectors(everything), 8),
        }
        same = [bool((a == b).all()) for a, b in zip(*(run() for run in contenders.values()), strict=True)]
        seconds = alternate(contenders, args.rounds)
    medians = {f"{name}_seconds": round(statistics.median(each), 4) for name, each in seconds.items()}
    kept = f"{search.keep} of {len(search.blocks)} blocks"
    report("serving_neighbours", images=args.images, side=args.side, **medians, **ratio(seconds, "held", "read"),
           kept=kept, same_distances=same[0], same_images=same[1])  # fmt: skip


if __name__ == "__main__":
    main()
