"""Processes of their own without the time that starting one takes.

A new Python imports torch and twofold for longer than most tests last. Here processes are forked from a server which
has imported both once and has computed nothing, so that they may do whatever a new one may. That `python -m twofold`
and torchrun themselves start rightly is tested in cli/test_verbs.py and cli/test_processes.py.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from twofold.cli.main import VERBS

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch._dynamo", "sklearn.linear_model", "twofold.learn", *(f"twofold.cli.{VERBS[verb][0]}" for verb in VERBS)]
)


class Started:
    """The process that `python WORDS` would be, of one thread.

    words: -m and a module, -c and a program, or a file, and what it is told. cwd: its folder; default: this one.
    environment: what differs from this process's.
    """

    def __init__(self, *words: object, cwd: Path | None = None, **environment: object) -> None:
        around = {"OMP_NUM_THREADS": 1} | environment
        own = {**os.environ, **{name: str(value) for name, value in around.items()}}
        self._said = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._said.name) / name for name in ("out", "err"))
        for file in (self._out, self._err):
            file.touch()
        given = ([str(word) for word in words], str(cwd or Path.cwd()), own, str(self._out), str(self._err))
        self._process = SERVER.Process(target=_become, args=given)
        self._process.start()
        atexit.register(self.kill)  # of a test that has failed: whoever leaves waits for all that still run

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._process.exitcode

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended since it was asked
            if self.returncode is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL; it is gone when this returns."""
        self.send_signal(signal.SIGKILL)
        self._process.join()

    def lines(self, timeout: float = 120) -> Iterator[str]:
        """What it prints, line by line, until it ends; a test fails that waits for longer (seconds, of all lines)."""
        until = time.monotonic() + timeout
        with self._out.open() as file:
            part = ""
            while True:
                ended = self.returncode is not None  # before it is read, so that nothing is missed
                part += file.readline()
                if part.endswith("\n"):
                    yield part
                    part = ""
                elif ended:
                    return
                elif time.monotonic() > until:
                    self._too_long(timeout)
                else:
                    time.sleep(0.002)

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What it has said on both streams when it has ended; a test fails that waits for longer (seconds)."""
        self._process.join(timeout)
        if self.returncode is None:
            self._too_long(timeout)
        return self._out.read_text(), self._err.read_text()

    def _too_long(self, timeout: float) -> NoReturn:
        self.kill()
        pytest.fail(f"still running after {timeout} seconds: {self._err.read_text()[-1000:]}")


def torchrun(*words: object, count: int = 2, cwd: Path | None = None, **environment: object) -> str:
    """What these processes print that share a training or a sampling, as torchrun starts them; they are to end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    around = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    around |= environment
    ranks = [Started(*words, cwd=cwd, RANK=rank, LOCAL_RANK=rank, **around) for rank in range(count)]
    until = time.monotonic() + 240
    while any(rank.returncode is None for rank in ranks):
        if any(rank.returncode for rank in ranks) or time.monotonic() > until:  # the others would wait for it
            for rank in ranks:
                rank.kill()
        time.sleep(0.02)
    said = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * count, "\n".join(errors[-2000:] for _, errors in said)
    return "".join(out for out, _ in said)


def _become(words: list[str], cwd: str, environment: dict[str, str], out: str, err: str) -> None:
    for name, number in ((out, 1), (err, 2)):
        os.dup2(os.open(name, os.O_WRONLY), number)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = words if words[0].endswith(".py") else words[1:]
    try:
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv[0] = "-c"
            exec(compile(words[1], "program", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which a fork leaves out
