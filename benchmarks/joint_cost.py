"""What does it cost to learn to classify beside denoising?

    python benchmarks/joint_cost.py --preset joint-digits-mini joint-cifar10 --channels 64 --batch 32 --rounds 20

A step of a joint model against a step of the same network without its head, in one process, step by step by turns:
"clean" (every image labelled, seen a second time without noise), "noised" (the head reads what is denoised anyway) and
"both". The ratio is time of the joint step by that of the denoising step. FLOPs say what a device without overheads
would take.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from common import alternate, ratio, report
from torch.utils.flop_counter import FlopCounterMode

from twofold.data import open_store
from twofold.learn.events import Stepped
from twofold.learn.loop import Trainer
from twofold.run import Run
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

READS = ("clean", "noised", "both")


def settings_of(arguments: argparse.Namespace, preset: str, objective: dict[str, Any]) -> TrainSettings:
    """A preset on digits of its size, endless, without looking at anything on the way."""
    layers = open_preset(preset).layers
    plain, _ = resolve(TrainSettings, layers)
    size, channels = plain.data.size or (8, 8), plain.data.channels or 1
    narrow = {"channels": arguments.channels} if arguments.channels and not preset.endswith("mini") else {}
    quiet = {f"{what}_images": 10**9 for what in ("save", "validate", "preview", "log")}
    change = {
        "data": {"source": "digits", "size": size, "channels": channels},
        "network": narrow | ({"head": None} if objective["kind"] == "denoising" else {}),
        "train": {"n_images": 10**9, "batch_size": arguments.batch, "precision": "fp32", **quiet},
        "validation": {"samples": 0, "max_images": 8},
    }
    kept = resolve(TrainSettings, [*layers, ("benchmark", change)])[0] if objective["kind"] == "joint" else None
    if kept is not None:
        return resolve(TrainSettings, [*layers, ("benchmark", change), ("objective", {"objective": objective})])[0]
    whole = plain.model_dump(mode="json") | {"objective": objective}
    return resolve(TrainSettings, [("plain", whole | {"network": whole["network"] | {"head": None}}), ("b", change)])[0]


def steps(settings: TrainSettings, folder: Path) -> Callable[[], object]:
    trainer = Trainer(Run.start(folder, settings), settings, open_store(settings.data), Accelerator(cpu=True))
    events = trainer.events()

    def step() -> None:
        for event in events:
            if isinstance(event, Stepped):
                return

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", default=["joint-digits-mini"])
    parser.add_argument("--channels", type=int, default=0, help="of presets that are not minis; 0: the preset's")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for preset in arguments.preset:
        with tempfile.TemporaryDirectory() as folder:
            chosen = {name: {"kind": "joint", "reads": name} for name in READS} | {"denoising": {"kind": "denoising"}}
            contenders, flops = {}, {}
            for name, objective in chosen.items():
                contenders[name] = steps(settings_of(arguments, preset, objective), Path(folder) / name)
                with FlopCounterMode(display=False) as counter:
                    contenders[name]()
                flops[name] = counter.get_total_flops()
            seconds = alternate(contenders, arguments.rounds)
            found = {name: ratio(seconds, "denoising", name) for name in READS}
            by_flops = {name: round(flops[name] / flops["denoising"], 3) for name in READS}
            report("joint_cost", preset=preset, batch=arguments.batch, times=found, flops=by_flops)


if __name__ == "__main__":
    main()
