"""What does the teacher cost while a student imitates it, and what of that is saved?

    python benchmarks/teacher_cost.py --teacher runs/fashion --data FOLDER --words data.size=14 data.channels=1

Steps (forward and backward pass) of the objective `distill` on the same batches, in turn, of

    full     the whole denoiser runs in every step, as with a hook on it (RepFusion's published code)
    early    it stops after the deepest layer that is read
    cached   it was asked about every image once (`objective.cache`)

with the images that the student sees left as they are, so that all three have the same loss: of full and early bit for
bit; cached answers are float16, and of other noise unless --clean. Prints seconds per step, ratios, and the losses.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from common import machine

from twofold.data import open_store
from twofold.learn.batches import training_batches
from twofold.learn.objectives.distill import DistillObjective
from twofold.run import build
from twofold.settings.resolve import parse_assignments, resolve
from twofold.settings.train import TrainSettings

BASE: dict[str, Any] = {
    "network": {"kind": "student", "backbone": {"kind": "resnet", "blocks": [1, 1, 1], "channels": 24}},
    "objective": {"kind": "distill", "sigma": {"kind": "uniform", "low": 0.05, "high": 0.5, "bins": 4}},
}


def made(arguments: argparse.Namespace, cache: str) -> tuple[DistillObjective, Any]:
    objective = {"teacher": arguments.teacher, "input": "clean" if arguments.clean else "noised", "cache": cache}
    words = parse_assignments([f"data.source={arguments.data}", *arguments.words])
    layers = [("base", BASE), ("here", {"objective": objective}), ("words", words)]
    settings, _ = resolve(TrainSettings, layers)
    store = open_store(settings.data)
    torch.manual_seed(0)
    model: Any = build(settings, store.shape, [])
    found = DistillObjective(model, settings.objective).train()  # type: ignore[arg-type]
    for line in found.prepare(store, False, torch.device("cpu"), 0, 1):
        print(line, end="\r")
    batches = training_batches(settings, store, found.uniforms, not arguments.clean, 0)
    return found, [batches.make(i * arguments.batch, (i + 1) * arguments.batch) for i in range(arguments.steps)]


def whole(objective: DistillObjective) -> None:
    """The teacher runs to its end: its last layer is read too, and dropped."""
    teacher = objective.teacher
    read, last = teacher.denoiser.features, list(teacher.denoiser.layers)[-1]
    teacher.denoiser.features = lambda x, sigma, names: read(x, sigma, [*names, last])  # type: ignore[assignment]


def step(objective: DistillObjective, batch: Any) -> tuple[float, float]:
    start = time.perf_counter()
    loss = objective(batch).mean()
    loss.backward()
    seconds = time.perf_counter() - start
    objective.zero_grad(set_to_none=True)
    return seconds, float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--cache", choices=("pooled", "maps"), default="pooled")
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--words", nargs="*", default=[], help="settings of the training, key=value")
    arguments = parser.parse_args()
    ways = {"full": "none", "early": "none", "cached": arguments.cache}
    objectives = {name: made(arguments, cache) for name, cache in ways.items()}
    whole(objectives["full"][0])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(arguments.steps):
        for name, (objective, batches) in objectives.items():
            taken, loss = step(objective, batches[i])
            seconds[name].append(taken)
            losses[name].append(loss)
    layers = objectives["full"][0].teacher.names
    print(f"{machine()}; {arguments.batch} images, {arguments.steps} steps, layers {layers}")
    base = statistics.median(seconds["full"][1:])
    for name in ways:
        middle = statistics.median(seconds[name][1:])
        print(f"{name:<8} {middle:.4f} s per step, {base / middle:.2f}x; mean loss {statistics.mean(losses[name]):.6f}")


if __name__ == "__main__":
    main()
