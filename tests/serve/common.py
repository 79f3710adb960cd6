"""A server on tiny random models: three runs, and a server in a thread of this process or in a process of its own."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from tests.cli.common import random_run
from twofold.serve.app import create_app
from twofold.serve.keys import Keys
from twofold.serve.limits import LOOPBACK
from twofold.serve.models import find, load_all
from twofold.serve.server import Server, address, listen
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.serve import ServeSettings
from twofold.settings.train import TrainSettings

NAMES = [str(k) for k in range(10)]
DATA = {"source": "digits"}
SMALL = {"channels": 8, "blocks": 1}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("digits", {"network": {**SMALL, "classes": 10}, "data": DATA}),
    "joint": ("joint-digits-mini", {"network": SMALL, "data": DATA}),
    "judge": ("digits-classifier", {"data": DATA}),
}
WAIT = 120.0  # seconds that nothing here takes, on however slow a machine


def runs(folder: Path, *names: str) -> list[str]:
    """Folders of runs with random weights, called like this: digits (conditional), joint, judge (a classifier)."""
    found = []
    for seed, name in enumerate(names or RUNS):
        preset, changes = RUNS[name]
        settings, _ = resolve(TrainSettings, [*open_preset(preset).layers, ("test", changes)])
        found.append(str(random_run(folder / name, settings, NAMES, seed)))
    return found


class Live:
    """A server at work. base: its address. app, service: what it serves with."""

    def __init__(self, server: Server, app: Any, sock: Any) -> None:
        self.server, self.app, self.service, self.base = server, app, app.state.service, address(sock)
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def host(self) -> tuple[str, int]:
        host, port = self.base.removeprefix("http://").rsplit(":", 1)
        return host, int(port)

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.base, timeout=WAIT, trust_env=False, **more)

    def metric(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def stop(self) -> None:
        """As SIGTERM does."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.server.handle_exit, signal.SIGTERM, None)


@contextmanager
def live(
    places: Sequence[dict[str, Any]], keys: Keys | None = None, hosts: Sequence[str] | None = LOOPBACK, **words: Any
) -> Iterator[Live]:
    """A server in a thread. places: models of each device. words: settings."""
    settings = ServeSettings(**words)
    app = create_app(places, settings, keys, hosts)
    sock = listen("127.0.0.1", 0)
    one = Live(Server(app, settings.drain), app, sock)
    failed: queue.Queue[BaseException] = queue.Queue()

    async def serve() -> None:
        one.loop = asyncio.get_running_loop()
        await one.server.serve(sockets=[sock])

    def work() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    until(lambda: one.server.started or not failed.empty())
    try:
        yield one
    finally:
        one.stop()
        thread.join(WAIT)
        assert not thread.is_alive()
        if not failed.empty():
            raise failed.get()


def loaded(folders: Sequence[str], **words: Any) -> dict[str, Any]:
    """{name: model} on the CPU."""
    torch.set_num_threads(1)
    return load_all(find(folders), ServeSettings(**words), torch.device("cpu"))


def until(true: Callable[[], Any], seconds: float = WAIT) -> None:
    """Returns when it is; fails where that takes for ever."""
    done = threading.Event()
    for _ in range(int(seconds / 0.005)):
        if true():
            return
        done.wait(0.005)
    raise AssertionError("still waiting")


@contextmanager
def process(*words: str, env: dict[str, str] | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`twofold serve` in a process of its own, and its address; killed in the end if it is still there."""
    command = [sys.executable, "-m", "twofold", "serve", "--device", "cpu", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    one = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert one.stdout is not None and one.stderr is not None
        for line in one.stdout:
            if found := re.search(r"http://\S+", line):
                yield one, found[0]
                break
        else:
            raise AssertionError(one.stderr.read())
    finally:
        if one.poll() is None:
            one.kill()
        one.communicate()


def picture(seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "L", format: str = "PNG") -> bytes:
    """A file of random pixels, size (width, height)."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def pixels(png: str | bytes) -> np.ndarray:
    """uint8 (C, H, W) of a PNG, in base64 where it is text."""
    content = base64.b64decode(png) if isinstance(png, str) else png
    found = np.asarray(Image.open(io.BytesIO(content)))
    return found[None] if found.ndim == 2 else found.transpose(2, 0, 1)


def text(content: bytes) -> str:
    """Base64."""
    return base64.b64encode(content).decode()


def events(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """(name, data) of server-sent events."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, line.removeprefix("data: ")
