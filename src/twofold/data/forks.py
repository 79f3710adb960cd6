"""Processes that are forked from this one and work beside it.

Python runs one thread of a process at a time, and packing small images is mostly Python. A fork is there within
milliseconds, with all that was imported and opened. It holds nothing of its parent's: it ignores Ctrl-C, which its
parent hears, closes and prints nothing when it ends, and ends with its parent, however that one ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

from ..errors import UserError


def possible() -> bool:
    """Whether this process can be forked: on Linux, unless it may not have children."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


class Forks:
    """`count` processes, each of which calls `work` once; fewer if the system allows no more.

    What the context is left with ends them. A `UserError` of theirs is raised by `check` and `wait`. Who fails in
    another way ends in silence: what he was at is not done, and his parent will meet the failure when it does it.
    """

    def __init__(self, count: int, work: Callable[[], None]) -> None:
        self._processes: list[Any] = []
        self._telling: list[connection.Connection] = []  # of those that are at work
        context = multiprocessing.get_context("fork") if count else None
        with warnings.catch_warnings(), contextlib.suppress(OSError):
            # newer Pythons warn of forking where there are threads; no lock of theirs is used in a fork
            warnings.simplefilter("ignore", DeprecationWarning)
            for _ in range(count):
                assert context is not None
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_run, args=(work, theirs), daemon=True)
                try:
                    process.start()
                finally:
                    theirs.close()
                self._processes.append(process)
                self._telling.append(ours)

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()

    def __len__(self) -> int:
        return len(self._processes)

    def check(self) -> None:
        """Raises the `UserError` that one of them has met."""
        self.wait(0)

    def wait(self, seconds: float) -> None:
        """Waits until one of them ends, but not longer than that."""
        if not self._telling:
            time.sleep(seconds)
            return
        for told in connection.wait(self._telling, seconds):
            assert isinstance(told, connection.Connection)
            self._telling.remove(told)
            with told, contextlib.suppress(EOFError):  # ended, and had nothing to tell
                raise UserError(*json.loads(told.recv_bytes()))


def end_without(parent: int) -> None:
    """Ends a fork whose parent has ended."""
    if os.getppid() != parent:
        os._exit(1)


def _run(work: Callable[[], None], telling: connection.Connection) -> None:
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        gc.freeze()  # what is the parent's is not freed here: it may be on another device
        work()
    except UserError as error:
        telling.send_bytes(json.dumps([error.where, error.what, error.hint]).encode())
    finally:
        os._exit(0)
