"""How much faster is FID of images in memory than by way of PNG files?

    python benchmarks/fid.py [--images 100] [--rounds 3] [--threads 1] [--samples 10000]
    python benchmarks/fid.py --network convnet --images 10000

Ours: uint8 images in memory, the rearranged network, our Frechet distance. Theirs: the way of pytorch-fid, through the
same architecture and weights as published: a PNG a sample is written, read by Pillow, made a float tensor, passed in
batches of 50 through the unfolded network (all of its layers up to pool_3), and SciPy's `sqrtm` ends it. Both are
measured alternately in one process, on --images images a round, and their time for --samples of them is extrapolated:
the passes are proportional to the number of images, the distance at 2,048 dimensions is measured once. The parts are
printed as well, because on a CPU the network is nearly all of it. Weights are random: time does not depend on them.
Processor time is given beside the clock, for machines that do other work meanwhile.

With --network convnet the same is done with a small classifier's features (64 numbers, the same network on both sides):
there the images' way weighs as it does where the network runs on a fast device. That is no FID.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

    Through = Callable[[torch.Tensor], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100, help="images of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=10_000, help="what the whole is extrapolated to")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", choices=("inception", "convnet"), default="inception")
    args = parser.parse_args()
    os.environ.update({name: str(args.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")})

    import numpy as np
    import torch
    from common import alternate, ratio, report
    from PIL import Image

    from twofold.measure import embed

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (args.images, 3, 32, 32), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        sides = inception_sides(Path(folder), args.device) if args.network == "inception" else convnet_sides()
        encoder, through = sides
        files = [Path(folder) / f"{i:05d}.png" for i in range(args.images)]
        parts: dict[str, list[float]] = {"write": [], "read": [], "network": []}

        def by_files() -> np.ndarray:
            start = time.perf_counter()
            for file, image in zip(files, images.permute(0, 2, 3, 1).numpy(), strict=True):
                Image.fromarray(image).save(file)
            parts["write"].append(time.perf_counter() - start)
            found, read, passed = [], 0.0, 0.0
            for first in range(0, len(files), 50):
                start = time.perf_counter()
                rows = [
                    np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in files[first : first + 50]
                ]
                batch = torch.from_numpy(np.stack(rows).transpose(0, 3, 1, 2).copy())  # channels first, as theirs
                read, start = read + time.perf_counter() - start, time.perf_counter()
                found.append(through(batch))
                passed += time.perf_counter() - start
            parts["read"].append(read)
            parts["network"].append(passed)
            return np.concatenate(found)

        theirs = by_files()
        apart, largest = np.abs(embed(encoder, images).numpy() - theirs), float(theirs.max())
        processor: dict[str, list[float]] = {"ours": [], "files": []}

        def timed(name: str, work: Callable[[], object]) -> Callable[[], None]:
            def run() -> None:
                start = time.process_time()
                work()
                processor[name].append(time.process_time() - start)

            return run

        contenders = {"ours": timed("ours", lambda: embed(encoder, images)), "files": timed("files", by_files)}
        seconds = alternate(contenders, args.rounds)
        processor = {name: values[1:] for name, values in processor.items()}  # without the warm-up
    ends = distances(args.samples, theirs.shape[1])
    times = {name: float(np.median(values)) / args.images * args.samples for name, values in seconds.items()}
    totals = {name: round(times[name] + ends[name], 1) for name in times}
    report(
        "fid",
        network=args.network,
        images=args.images,
        features=ratio(seconds, "ours", "files"),
        features_processor=ratio(processor, "ours", "files"),
        processor_seconds={name: [round(value, 2) for value in values] for name, values in processor.items()},
        seconds={name: [round(value, 2) for value in values] for name, values in seconds.items()},
        parts_of_files={name: round(float(np.median(values)), 3) for name, values in parts.items()},
        largest_difference=float(apart.max()),
        largest_feature=largest,
        distance_seconds=ends,
        samples=args.samples,
        extrapolated_seconds=totals,
        extrapolated_ratio=round(totals["files"] / totals["ours"], 2),
    )


def inception_sides(folder: Path, device: str) -> tuple[Any, Through]:
    """Our encoder, and the plain network as pytorch-fid runs it, with the same random weights."""
    import torch
    from torch.nn import functional

    from twofold.measure.inception import InceptionEncoder, exact
    from twofold.networks.inception import Inception

    plain = Inception().eval().requires_grad_(False)
    for part in plain.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_var.fill_(0.1)  # keeps the features near 1, where random weights would let them vanish
    plain.to(device)
    torch.save(plain.state_dict(), folder / "w.pth")

    def through(batch: torch.Tensor) -> np.ndarray:
        with torch.no_grad(), exact():
            x = functional.interpolate(batch.to(device), (299, 299), mode="bilinear", align_corners=False)
            return plain(2 * x - 1).pool.cpu().numpy()

    return InceptionEncoder(folder / "w.pth", device), through


def convnet_sides() -> tuple[Any, Through]:
    """A small classifier's encoder, and the same network fed with float images from files."""
    import torch

    from twofold.measure import encoder
    from twofold.networks import build
    from twofold.recognize.classifier import NetworkClassifier
    from twofold.settings.network import ConvNetSettings

    shape = (3, 32, 32)
    network = build(ConvNetSettings(channels=8), shape, 10)
    ours = encoder("convnet", NetworkClassifier(network, [str(k) for k in range(10)], shape).eval())

    def through(batch: torch.Tensor) -> np.ndarray:
        return ours.embed((batch * 255).round().to(torch.uint8)).numpy()

    return ours, through


def distances(n: int, dims: int) -> dict[str, float]:
    """Seconds from n features to their distance: covariances, and ours or SciPy's root."""
    import numpy as np
    import scipy.linalg

    from twofold.measure import Gaussian, frechet_distance

    random = np.random.default_rng(0)
    rows = random.standard_normal((n, dims), dtype=np.float32)
    other = Gaussian.of(random.standard_normal((n, dims), dtype=np.float32))
    start = time.perf_counter()
    ours = frechet_distance(Gaussian.of(rows), other)
    seconds = {"ours": round(time.perf_counter() - start, 2)}
    start = time.perf_counter()
    mean, covariance = rows.mean(0, dtype=np.float64), np.cov(rows.T.astype(np.float64))
    root = scipy.linalg.sqrtm(covariance @ other.covariance).real
    delta = mean - other.mean
    theirs = float(delta @ delta + np.trace(covariance + other.covariance - 2 * root))
    assert abs(ours - theirs) < 1e-6 * theirs
    return seconds | {"files": round(time.perf_counter() - start, 2)}


if __name__ == "__main__":
    main()
