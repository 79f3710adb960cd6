"""What the trainer costs over the bare forward, backward and optimiser step of the same network.

    python benchmarks/overhead.py --preset digits --rounds 5

Bare: fixed batch, fixed noise, `Adam(fused=True)`, no data, no average, no clipping, no log. The claim is <= 5 %.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from common import alternate, ratio, report

from twofold.data import open_store
from twofold.learn.events import Stepped
from twofold.learn.loop import Trainer
from twofold.learn.optimise import make_optimizer
from twofold.learn.training import complete
from twofold.run import Run, build
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings


def trained(settings: TrainSettings, folder: Path, steps: int) -> Callable[[], object]:
    store = open_store(settings.data)
    events = Trainer(Run.start(folder / "run", settings), settings, store, Accelerator(cpu=True)).events()

    def run() -> None:
        done = 0
        for event in events:
            done += isinstance(event, Stepped)
            if done == steps:
                return

    return run


def bare(settings: TrainSettings, steps: int) -> Callable[[], object]:
    store = open_store(settings.data)
    model = build(settings, store.shape, store.classes)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = model.network.train()
    optimizer = make_optimizer(network, settings.train)
    size = settings.train.batch_size
    x, c_noise, target = torch.randn(size, *store.shape), torch.randn(size), torch.randn(size, *store.shape)
    cond = {"label": torch.arange(size) % max(1, len(store.classes))} if settings.network.classes else {}

    def run() -> None:
        for _ in range(steps):
            (network(x, c_noise, cond) - target).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--steps", type=int, default=40, help="optimiser steps per round")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    never = {f"{what}_images": 10**9 for what in ("save", "validate", "preview")}
    settings, _ = resolve(
        TrainSettings, [*open_preset(arguments.preset).layers, ("benchmark", {"train": {**never, "n_images": 10**9}})]
    )
    settings = complete(settings, open_store(settings.data))
    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            "trainer": trained(settings, Path(folder), arguments.steps),
            "bare": bare(settings, arguments.steps),
        }
        seconds = alternate(contenders, arguments.rounds)
    found = ratio(seconds, "bare", "trainer")  # above 1: how much longer the trainer takes
    milliseconds = {name: round(1000 * min(times) / arguments.steps, 2) for name, times in seconds.items()}
    report("overhead", preset=arguments.preset, trainer_over_bare=found, best_ms_per_step=milliseconds)


if __name__ == "__main__":
    main()
