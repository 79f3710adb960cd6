"""How much faster is the symmetric form of the Frechet distance than SciPy's matrix square root?

    python benchmarks/frechet.py [--dims 2048] [--rounds 5] [--threads 2]

Both get the same two covariances of 4 x dims random vectors with a decaying spectrum, and are measured alternately,
so that a busy machine disturbs both. Prints seconds per round, medians, their ratio, and how far the results differ.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable


def by_sqrtm(a: object, b: object) -> float:
    """d^2 as FID implementations compute it: tr of scipy.linalg.sqrtm(C_a C_b)."""
    import numpy as np
    import scipy.linalg

    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)  # type: ignore[attr-defined]
    delta = a.mean - b.mean  # type: ignore[attr-defined]
    return float(delta @ delta + np.trace(a.covariance + b.covariance - 2 * root.real))  # type: ignore[attr-defined]


def timed(compute: Callable[[], float]) -> tuple[float, float, float]:
    """Seconds on the clock, seconds of processor time over all threads, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = compute()
    return time.perf_counter() - wall, time.process_time() - cpu, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="OMP_NUM_THREADS; default: as it is")
    args = parser.parse_args()
    if args.threads:  # read when NumPy loads
        os.environ.update({name: str(args.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")})

    import numpy as np
    import scipy

    from twofold.measure.frechet import Gaussian, frechet_distance

    random = np.random.default_rng(0)
    spectrum = 1 / np.arange(1, args.dims + 1) ** 0.5
    rows = [random.standard_normal((4 * args.dims, args.dims)) * spectrum + shift for shift in (0.0, 0.01)]
    a, b = (Gaussian.of(part) for part in rows)

    print(f"{platform.machine()}, {os.cpu_count()} CPUs, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}")
    print(f"{args.dims} dimensions, {a.n} vectors a side; load of the machine {load()}")
    print("\nround   symmetric (processor)    sqrtm (processor)")
    ours, theirs = [], []
    for number in range(args.rounds):
        ours.append(timed(lambda: frechet_distance(a, b)))
        theirs.append(timed(lambda: by_sqrtm(a, b)))
        seconds = [f"{row[0]:7.2f} s ({row[1]:7.2f} s)" for row in (ours[-1], theirs[-1])]
        print(f"{number + 1:5d}   " + " ".join(seconds))
    for kind, at in (("clock", 0), ("processor", 1)):
        fast, slow = (statistics.median(row[at] for row in rows) for rows in (ours, theirs))
        print(f"median {kind}: {fast:.2f} s and {slow:.2f} s, {slow / fast:.1f} times faster")
    d, expected = ours[0][2], theirs[0][2]
    print(f"d^2 {d:.9g}, sqrtm {expected:.9g}, relative difference {abs(d - expected) / expected:.1e}; load {load()}")


def load() -> str:
    """Running processes over the last minute: above the number of CPUs, seconds on the clock mean little."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


if __name__ == "__main__":
    main()
