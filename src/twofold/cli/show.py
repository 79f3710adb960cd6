"""How work is shown: a live bar on a terminal, not silent for two seconds; elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HEARTBEAT = 30.0  # seconds between plain lines when nobody watches live


def say(text: str, quiet: bool = False) -> None:
    """One line to standard error, at once. Results go to standard output instead."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


class Progress:
    """A bar for anything counted: call it with (done, total, text); total None where it is not known yet.

    It appears at its first call or line, so work that turns out to be done already shows nothing.
    """

    def __init__(self, title: str, quiet: bool = False) -> None:
        self.title, self.quiet = title, quiet
        self._bar: Any = None
        self._last = time.monotonic()
        self._shown = False
        self._started = 0.0

    def __enter__(self) -> Progress:
        return self

    def _show(self) -> None:
        if self._shown:
            return
        self._shown = True
        self._started = time.monotonic()
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = [
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(compact=True),
            ]
            self._bar = Bar(*columns, console=Console(stderr=True), expand=True)
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=None, text="")
        else:
            say(f"{self.title} ...", self.quiet)

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar off the screen, as the end of the block does."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, done: int, total: int | None = None, text: str = "") -> None:
        self._show()
        if self._bar is not None:
            changes: dict[str, Any] = {"completed": done, "total": total}
            self._bar.update(self._task, **changes, **({"text": text} if text else {}))
        elif time.monotonic() - self._last >= HEARTBEAT:
            left = (time.monotonic() - self._started) * (total - done) / done if total and done else 0.0
            parts = [f"{self.title}: {done:,}" + (f" of {total:,}" if total else ""), text]
            parts += [f"about {left / 60:.0f} min left"] if left > 90 else []
            self.line(", ".join(part for part in parts if part))

    def line(self, text: str) -> None:
        """A line that stays, above the bar."""
        self._show()
        self._last = time.monotonic()
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            say(text, self.quiet)


@contextmanager
def training(title: str, quiet: bool = False, held_out: bool = True) -> Iterator[Any]:
    """A `show` function for `learn.train`: bar, validation lines and notes. held_out: whether validation images are."""
    from ..learn.events import Event, Logged, Note, Stepped

    with Progress(title, quiet) as progress:
        text = ""

        def show(event: Event) -> None:
            nonlocal text
            match event:
                case Stepped(n, total):
                    progress(n, total, text)
                case Logged(row) if row["kind"] == "train":
                    text = f"loss {row['loss']:.4f}  {row['images_per_second']:,.0f} img/s"
                case Logged(row):
                    line = metrics_line(row) if held_out else metrics_line(row).replace("held-out", "training")
                    progress.line(f"{row['n_images']:>12,} images: " + line)
                case Note(note):
                    progress.line(note)

        yield show


def metrics_line(row: dict[str, Any]) -> str:
    """`held-out loss 0.1234, frechet 0.56` from a validation row; what to say where it has none."""
    names = {"loss": "held-out loss", "frechet": "Frechet distance", "accuracy": "held-out accuracy"}
    names |= {"miou": "held-out mIoU", "nme": "held-out NME"}
    names |= {"psnr": "PSNR (dB)", "kl": "divergence of latents (nats)"}
    names["accuracy_always"] = "always the commoner answer"
    found = ", ".join(f"{names[k]} {v:.4f}" for k, v in row.items() if k in names)
    return found or "nothing measured: no held-out image has a label"


def duration(seconds: float | None) -> str:
    """A time as people say it: days, hours, minutes or seconds."""
    if seconds is None:
        return "unknown"
    for size, unit in ((86400 * 2, "days"), (3600 * 2, "hours"), (120, "minutes")):
        if seconds >= size:
            return f"{seconds / {'days': 86400, 'hours': 3600, 'minutes': 60}[unit]:.1f} {unit}"
    return f"{seconds:.0f} seconds"
