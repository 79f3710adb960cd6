"""What a person waits for: --help of every verb, the first images of a trained run, and silences.

    python benchmarks/latency.py --run runs/demo/digits

--help: wall time of a fresh process, best and median of five. First image: `twofold sample RUN n=1` from the shell.
Silence: the longest pause in the output of `twofold train digits` under a terminal, from its start for --seconds.
"""

from __future__ import annotations

import argparse
import os
import pty
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from common import report

from twofold.cli.main import VERBS

TWOFOLD = [sys.executable, "-m", "twofold"]


def seconds(command: list[str], times: int = 5) -> dict[str, float]:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return {"best": round(min(taken), 3), "median": round(statistics.median(taken), 3)}


def longest_silence(command: list[str], limit: float) -> float:
    """Runs a command on a pseudo-terminal for `limit` seconds; the longest time without any output."""
    parent, child = pty.openpty()
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, start_new_session=True)
    os.close(child)
    start = last = time.perf_counter()
    longest = 0.0
    while time.perf_counter() - start < limit and process.poll() is None:
        ready, _, _ = select.select([parent], [], [], 0.05)
        now = time.perf_counter()
        longest = max(longest, now - last)
        if ready:
            try:
                os.read(parent, 65536)
            except OSError:  # the other side closed
                break
            last = now
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.close(parent)
    return round(longest, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/demo/digits")
    parser.add_argument("--seconds", type=float, default=40)
    arguments = parser.parse_args()
    helps = {verb: seconds([*TWOFOLD, verb, "--help"]) for verb in VERBS}
    helps[""] = seconds([*TWOFOLD, "--help"])
    with tempfile.TemporaryDirectory() as folder:
        first = seconds([*TWOFOLD, "sample", arguments.run, "n=1", f"--out={folder}/s1"], 1)
        again = seconds([*TWOFOLD, "sample", arguments.run, "n=1", "seed=1", f"--out={folder}/s2"], 1)
        silence = {
            "train": longest_silence([*TWOFOLD, "train", "digits", f"--out={folder}/run"], arguments.seconds),
            "sample": longest_silence([*TWOFOLD, "sample", arguments.run, "n=500", f"--out={folder}/s3"], 60),
            "evaluate": longest_silence([*TWOFOLD, "evaluate", arguments.run, "n=500", f"--out={folder}/e"], 60),
        }
    report("latency", help_seconds=helps, first_image_seconds=[first["best"], again["best"]], longest_silence=silence)


if __name__ == "__main__":
    main()
