"""What an experiment shows of itself on a terminal: a line for each part, a bar for what takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .show import Progress, say, training

if TYPE_CHECKING:
    from ..learn.crew import Watch
    from ..learn.events import Event


def watching(quiet: bool, held_out: bool) -> Watch:
    """held_out: whether what its trainings measure on the way is of images held out."""
    from ..learn.crew import Watch

    class Shown(Watch):
        def say(self, text: str) -> None:
            say(f"{text} ...", quiet)

        @contextmanager
        def progress(self, title: str) -> Iterator[Callable[[int, int | None], None]]:
            with Progress(title, quiet) as bar:
                yield bar

        @contextmanager
        def training(self, title: str, n_images: int) -> Iterator[Callable[[Event], None]]:
            with training(title, quiet, held_out) as show:
                yield show

    return Shown()
