"""Who works on a few-label experiment: one process, or several that share its stages."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from .events import Event


class Watch:
    """How the work is shown; this one shows nothing. The command line has one with bars."""

    def say(self, text: str) -> None:
        """One line."""

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int | None], None]]:
        """Gives a function that is called with (done, total)."""
        yield lambda done, total: None

    @contextmanager
    def training(self, title: str, n_images: int) -> Iterator[Callable[[Event], None]]:
        """Gives a function that is called with every event of a training run."""
        yield lambda event: None


class Crew:
    """The processes of this experiment, as one of them sees them.

    rank, world: this process, and how many there are. first: whether it is the one that writes and speaks.
    """

    def __init__(self, accelerator: Accelerator, watch: Watch | None = None) -> None:
        self.accelerator = accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.first = self.rank == 0
        self.device: torch.device = accelerator.device
        self.watch = watch if watch is not None and self.first else Watch()

    def wait(self) -> None:
        """Until everybody is here."""
        self.accelerator.wait_for_everyone()

    def told(self, value: Any) -> Any:
        """What the first process has, for all of them. Plain data."""
        if self.world == 1:
            return value
        return broadcast_object_list([value])[0]

    def everyones(self, value: Any) -> list[Any]:
        """What every process has, in order of their ranks."""
        return [value] if self.world == 1 else list(gather_object([value]))

    def by_first(self, work: Callable[[], Any]) -> Any:
        """The result of work that the first process does while the others wait; plain data. What it raises, all do."""
        result: Any = None
        error: BaseException | None = None
        if self.first:
            try:
                result = work()
            except Exception as raised:  # told to the others, who would wait for ever
                error = raised
        failed, result = self.told((None if error is None else str(error), result))
        if error is not None:
            raise error
        if failed is not None:
            raise SystemExit(1)  # the first process says why
        return result

    @property
    def machine(self) -> str:
        """The name of the machine this process runs on."""
        with contextlib.suppress(OSError):
            return platform.node() or "this machine"
        return "this machine"
