"""Minutes of mixed load on a server: do valid requests ever fail, does memory grow, is any image lost or mixed up?

    python benchmarks/serving_load.py runs/joint runs/digits --minutes 10

Clients in this process, the server in one of its own. Most ask for what is valid: images (JSON, PNG, streams of
previews), classes, features, variations, edits; at most as many at a time as the queue has places. Others leave while
they wait, send more than is taken, or what is no request at all. Every image that comes back is compared with
`twofold.sample` for its seed. Prints counts by kind and status, answers that should not have been, the largest
difference in grey levels, and the server's memory (VmRSS, from /proc) every minute.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import io
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import report
from PIL import Image
from serving import server

VALID = ("image", "images", "png", "stream", "classify", "embed", "vary", "edit", "status")
HOSTILE = ("leave", "leave stream", "too large", "no json", "no picture", "no http", "half a body")
STEPS = 10
WANTED = {"too large": (413,), "no json": (400, 422), "no picture": (415, 422), "no http": (400,)}


def request(path: str, body: bytes, kind: str = "application/json", accept: str = "*/*", method: str = "POST") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\nConnection: close\r\n"
    return f"{head}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def parsed(raw: bytes) -> tuple[int, bytes]:
    """(status, body) of a whole answer; 0 where there was none."""
    head, _, body = raw.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 "):
        return 0, b""
    if b"transfer-encoding: chunked" in head.lower():
        whole = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]
        body = whole
    return int(head.split(maxsplit=2)[1]), body


class Load:
    """What is asked, and what came of it. models: {name: (the model, its classes, whether it is a joint one)}."""

    def __init__(self, port: int, models: dict[str, Any], seed: int) -> None:
        self.port, self.models, self.dice = port, models, random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.checks: list[tuple[str, int, int, int | None, bytes]] = []  # images whose seeds are looked at in the end
        self.seconds: list[float] = []

    async def send(self, content: bytes, leave: float | None = None) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(content)
            if leave is not None:
                await asyncio.sleep(leave)
                return -1, b""
            return parsed(await reader.read())
        except ConnectionError:
            return 0, b""
        finally:
            writer.close()

    async def one(self, kinds: tuple[str, ...]) -> None:
        """One request of some kind."""
        kind = self.dice.choice(kinds)
        name = self.dice.choice([n for n, (_, _, joint) in self.models.items() if joint or kind != "edit"])
        content, leave, seeds, label = self.made(kind, name)
        start = time.perf_counter()
        status, body = await self.send(content, leave)
        self.counts[f"{kind}: {'left' if status == -1 else status or 'closed'}"] += 1
        if kind in VALID:
            self.seconds.append(time.perf_counter() - start)
            if status != 200 or (kind == "stream" and b"event: done" not in body):
                self.wrong.append(f"{kind}: {status} {body[:200]!r}")
            elif seeds:
                self.keep(kind, name, seeds, label, body)
        elif status not in WANTED.get(kind, (status,)):
            self.wrong.append(f"{kind}: {status} {body[:200]!r}")

    def made(self, kind: str, name: str) -> tuple[bytes, float | None, list[int], int | None]:
        """(the request, after how many seconds its caller leaves, seeds of its images, their label)."""
        dice, (_, classes, _) = self.dice, self.models[name]
        path = f"/v1/models/{name}"
        seed, n = dice.randrange(10**9), 1
        label = dice.randrange(classes) if classes else None
        sampler = "dpmpp2m" if seed % 2 else "heun"
        asked: dict[str, Any] = {"seed": seed, "label": label, "steps": STEPS, "sampler": sampler}
        if kind in ("images", "leave", "leave stream"):
            n = dice.randrange(2, 5)
        asked["n"] = n
        accept = {"png": "image/png", "stream": "text/event-stream", "leave stream": "text/event-stream"}.get(
            kind, "*/*"
        )
        if kind in ("image", "images", "png", "stream", "leave", "leave stream"):
            if kind.startswith("leave"):
                asked["steps"] = 300
            leave = dice.uniform(0, 0.4) if kind.startswith("leave") else None
            return (
                request(f"{path}/generate", json.dumps(asked).encode(), accept=accept),
                leave,
                [seed + i for i in range(n)],
                label,
            )
        if kind == "status":
            return request(dice.choice(("/metrics", "/v1/models", "/ready", "/")), b"", method="GET"), None, [], None
        if kind == "too large":
            return request(f"{path}/classify", bytes(17_000_000), "image/png"), None, [], None
        if kind == "no json":
            return request(f"{path}/generate", dice.choice((b"{", b"[1]", b"\xff", b'{"n": 1e9}'))), None, [], None
        if kind == "no picture":
            return request(f"{path}/classify", dice.randbytes(3000), "image/png"), None, [], None
        if kind == "no http":
            return dice.randbytes(200) + b"\r\n\r\n", None, [], None
        whole = self.about_a_picture(kind, path, asked)
        return (
            (whole[: len(whole) // 2], dice.uniform(0, 0.4), [], None)
            if kind == "half a body"
            else (whole, None, [], None)
        )

    def about_a_picture(self, kind: str, path: str, asked: dict[str, Any]) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.frombuffer(self.dice.randbytes(32 * 32 * 3), np.uint8).reshape(32, 32, 3)).save(
            buffer, "PNG"
        )
        if kind in ("classify", "embed", "half a body"):
            return request(f"{path}/{'embed' if kind == 'embed' else 'classify'}", buffer.getvalue(), "image/png")
        image = base64.b64encode(buffer.getvalue()).decode()
        if kind == "vary":
            return request(f"{path}/vary", json.dumps(asked | {"image": image}).encode())
        return request(f"{path}/edit", json.dumps({"image": image, "to": "3", "strength": 0.5}).encode())

    def keep(self, kind: str, name: str, seeds: list[int], label: int | None, body: bytes) -> None:
        if kind == "png":
            self.checks.append((name, seeds[0] % 2, seeds[0], label, body))
            return
        text = body.decode().rpartition("event: done\ndata: ")[2] if kind == "stream" else body
        images = json.loads(text)["images"]
        if [one["seed"] for one in images] != seeds:
            self.wrong.append(f"{kind}: seeds {[one['seed'] for one in images]} for {seeds}")
        self.checks += [(name, seeds[0] % 2, one["seed"], label, base64.b64decode(one["png"])) for one in images]

    async def client(self, kinds: tuple[str, ...], until: float) -> None:
        while time.perf_counter() < until:
            await self.one(kinds)
            if kinds is HOSTILE:
                await asyncio.sleep(self.dice.uniform(0, 0.3))

    def apart(self) -> tuple[int, int]:
        """(images that were compared, the largest difference in grey levels)."""
        import twofold

        most = 0
        groups = collections.defaultdict(list)
        for name, odd, seed, label, png in self.checks:
            groups[name, odd].append((seed, label, png))
        for (name, odd), rows in groups.items():
            model, classes, _ = self.models[name]
            labels = [label for _, label, _ in rows] if classes else None
            how = {"sampler": "dpmpp2m" if odd else "heun", "steps": STEPS}
            ours = twofold.sample(model, [seed for seed, *_ in rows], labels, **how).numpy()
            for image, (_, _, png) in zip(ours, rows, strict=True):
                theirs = np.asarray(Image.open(io.BytesIO(png)))
                theirs = theirs[None] if theirs.ndim == 2 else theirs.transpose(2, 0, 1)
                most = max(most, int(np.abs(image.astype(int) - theirs.astype(int)).max()))
        return len(self.checks), most


def memory(port: int) -> float:
    """MiB that the process that listens there holds."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            words = (status.parent / "cmdline").read_text().split("\0")
            if "serve" in words and f"{port}" in words:
                return int(status.read_text().partition("VmRSS:")[2].split()[0]) / 1024
        except OSError:
            continue
    return float("nan")


async def run(port: int, models: dict[str, Any], arguments: argparse.Namespace) -> tuple[Load, list[float]]:
    load = Load(port, models, arguments.seed)
    until = time.perf_counter() + 60 * arguments.minutes
    tasks = [load.client(VALID, until) for _ in range(arguments.clients)]
    tasks += [load.client(HOSTILE, until) for _ in range(arguments.hostile)]
    rss: list[float] = []

    async def watch() -> None:
        while time.perf_counter() < until:
            rss.append(round(memory(port), 1))
            await asyncio.sleep(min(30.0, max(0.5, until - time.perf_counter())))
        rss.append(round(memory(port), 1))

    await asyncio.gather(watch(), *tasks)
    return load, rss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=12, help="that ask for what is valid; below the queue's 64")
    parser.add_argument("--hostile", type=int, default=4, help="that leave, or send what is not")
    parser.add_argument("--port", type=int, default=18765)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import twofold
    from twofold.denoiser import JointDenoiser

    models: dict[str, Any] = {}
    for run_ in arguments.runs:
        model: Any = twofold.load(run_)
        models[Path(run_).resolve().name] = (model, model.classes, isinstance(model, JointDenoiser))
    command = [
        sys.executable,
        "-m",
        "twofold",
        "serve",
        *arguments.runs,
        "--device",
        "cpu",
        "--port",
        str(arguments.port),
    ]
    with server([*command, "deadline=120"]) as port:
        load, rss = asyncio.run(run(port, models, arguments))
    images, apart = load.apart()
    times = sorted(load.seconds)
    report(
        "serving_load",
        minutes=arguments.minutes,
        requests=sum(load.counts.values()),
        counts=dict(sorted(load.counts.items())),
        wrong=len(load.wrong),
        first_wrong=load.wrong[:5],
        images_compared=images,
        levels_apart=apart,
        p50=round(statistics.median(times), 3),
        p95=round(times[int(0.95 * (len(times) - 1))], 3),
        server_mib=rss,
    )


if __name__ == "__main__":
    main()
