"""Clients that each ask for one image at a time: the server with and without batches, and LitServe with the same model.

    python benchmarks/serving.py runs/digits
    python benchmarks/serving.py runs/digits --heavy runs/cifar --litserve PYTHON

16 clients in a process of their own, each with one connection, ask for one image of a class after another
(the model's usual sampler and steps, JSON with a PNG in base64). Servers stand side by side and are asked in turn, A B,
so that other work on the machine hits all of them: `batch=32`, `batch=1`, and with --litserve an interpreter that has
litserve and twofold, where LitServe collects batches of 32 for the same function. --heavy: another run, whose
computation outweighs everything else. Prints images/s and latencies of each, the medians over rounds and all rounds'
ratios, and whether every server gave the same images for the same seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import report

HERE = Path(__file__).resolve()
SERVED = re.compile(r"http://[\d.]+:(\d+)")


# -- clients, in their own process -------------------------------------------------------------------------------------


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> Any:
    """One request on a kept connection: (status, the answer's JSON)."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    writer.write(head.encode() + b"\r\n\r\n" + content)
    headers = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(headers.split(maxsplit=2)[1])
    length = int(headers.partition(b"content-length:")[2].split(maxsplit=1)[0])
    return status, await reader.readexactly(length)


async def client(port: int, path: str, number: int, until: float, classes: int, found: list[Any]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seed = number * 1_000_000
    while time.perf_counter() < until:
        start = time.perf_counter()
        status, _ = await ask(reader, writer, path, {"seed": seed, "label": seed % classes if classes else None})
        found.append((time.perf_counter() - start, status))
        seed += 1
    writer.close()


async def clients(port: int, path: str, count: int, seconds: float, classes: int) -> list[Any]:
    found: list[Any] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(client(port, path, i, until, classes, found) for i in range(count)))
    return found


async def one(port: int, path: str, seed: int, classes: int) -> list[int]:
    """Pixels of the image of a seed."""
    from PIL import Image

    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    _, answer = await ask(reader, writer, path, {"seed": seed, "label": seed % classes if classes else None})
    writer.close()
    return list(Image.open(io.BytesIO(base64.b64decode(json.loads(answer)["images"][0]["png"]))).tobytes())


# -- servers -----------------------------------------------------------------------------------------------------------


def processor_seconds(pid: int) -> float:
    """Of a process and all below it."""
    stats = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = file.read_text().rpartition(")")[2].split()
            stats[int(file.parent.name)] = int(words[1]), int(words[11]) + int(words[12])
    mine = {pid}
    while more := {one for one, (parent, _) in stats.items() if parent in mine} - mine:
        mine |= more
    return sum(stats[one][1] for one in mine if one in stats) / os.sysconf("SC_CLK_TCK")


PIDS: dict[int, int] = {}  # of the servers, by their ports


@contextlib.contextmanager
def server(command: list[str]) -> Iterator[int]:
    """A server in a process of its own; its port."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := SERVED.search(line):
                PIDS[int(found[1])] = process.pid
                yield int(found[1])
                break
        else:
            raise SystemExit(f"{' '.join(command)} did not start")
    finally:
        process.terminate()
        process.wait()


def ours(run: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "twofold", "serve", run, "--port", "0", "--device", "cpu", *words]


def measured(port: int, path: str, count: int, seconds: float, classes: int) -> dict[str, float]:
    """Of one round: images/s, latencies in milliseconds, and processor time of the server for an image."""
    before = processor_seconds(PIDS[port])
    words = [str(value) for value in (port, path, count, seconds, classes)]
    done = subprocess.run([sys.executable, str(HERE), "--clients-only", *words], stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    times = sorted(second for second, _ in found)
    refused = sum(status != 200 for _, status in found)
    assert not refused, f"{refused} of {len(found)} were refused"
    at = lambda share: round(1000 * times[int(share * (len(times) - 1))], 1)  # noqa: E731
    spent = round(1000 * (processor_seconds(PIDS[port]) - before) / len(times), 2)
    rate = round(len(times) / seconds, 2)
    return {"images_per_second": rate, "p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "processor_ms": spent}


def compare(run: str, arguments: argparse.Namespace, litserve: str | None) -> dict[str, Any]:
    """All servers of one run, in turn."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(run).resolve().name)
    own = f"/v1/models/{name}/generate"
    sides = {"batch=32": (ours(run, "batch=32", *arguments.words), own), "batch=1": (ours(run, "batch=1"), own)}
    if litserve is not None:
        script = str(HERE.with_name("serving_litserve.py"))
        sides["litserve"] = ([litserve, script, run, "32"], "/predict")
        sides["litserve, no batches"] = ([litserve, script, run, "1"], "/predict")
    classes = classes_of(run)
    with contextlib.ExitStack() as stack:
        ports = {side: stack.enter_context(server(command)) for side, (command, _) in sides.items()}
        rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for round_ in range(arguments.rounds + 1):
            for side, (_, path) in sides.items():
                got = measured(ports[side], path, arguments.clients, arguments.seconds, classes)
                if round_:  # the first is to warm up
                    rounds[side].append(got)
        seeds = range(100, 108)
        images = {side: [asyncio.run(one(ports[side], p, s, classes)) for s in seeds] for side, (_, p) in sides.items()}
    first = images["batch=32"]
    apart = {
        side: max(abs(a - b) for x, y in zip(first, them, strict=True) for a, b in zip(x, y, strict=True))
        for side, them in images.items()
    }
    medians = {
        side: {key: round(statistics.median(one[key] for one in each), 2) for key in each[0]}
        for side, each in rounds.items()
    }
    ratios = {side: _ratios(rounds["batch=32"], each) for side, each in rounds.items() if side != "batch=32"}
    return {"servers": medians, "batch=32 over": ratios, "levels_apart": apart}


def _ratios(a: list[dict[str, float]], b: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """How many times better a is, by the clock and by processor time, which other work hardly touches."""
    found = {}
    for what, key, up in (("clock", "images_per_second", True), ("processor", "processor_ms", False)):
        each = [x[key] / y[key] if up else y[key] / x[key] for x, y in zip(a, b, strict=True)]
        found[what] = {
            "ratio": round(statistics.median(each), 2),
            "least": round(min(each), 2),
            "most": round(max(each), 2),
        }
    return found


def classes_of(run: str) -> int:
    import twofold

    return int(twofold.load(run).classes)  # type: ignore[union-attr]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="runs/digits")
    parser.add_argument("--heavy", metavar="RUN", help="a model that computes for long, compared in the same way")
    parser.add_argument("--litserve", metavar="PYTHON", help="an interpreter that has litserve and twofold")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=6, help="of a round of one server")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--words", nargs="*", default=[], help="more settings of `batch=32`, such as wait=0.01")
    parser.add_argument("--clients-only", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clients_only:
        port, path, count, seconds, classes = arguments.clients_only
        json.dump(asyncio.run(clients(int(port), path, int(count), float(seconds), int(classes))), sys.stdout)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    litserve = arguments.litserve
    if litserve and subprocess.run([litserve, "-c", "import litserve, twofold"], capture_output=True).returncode:
        print(f"{litserve} lacks litserve or twofold: without it", file=sys.stderr)
        litserve = None
    for what, run in {"small": arguments.run, "heavy": arguments.heavy}.items():
        if run:
            report("serving", which=what, clients=arguments.clients, **compare(run, arguments, litserve))


if __name__ == "__main__":
    main()
