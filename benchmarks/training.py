"""Is training faster than diffusers' unconditional example, on the same network, batch and data?

Ours: `twofold.learn.loop.Trainer`. Theirs: `UNet2DModel`, `DDPMScheduler`, `EMAModel` and AdamW in the loop that
diffusers' unconditional example documents, written out here. Both train the same 35.7 M network (narrower with
--channels) on the same images, alternating step by step in one process.

    python benchmarks/training.py --setting fp32-channels_last --rounds 8
    python benchmarks/training.py --setting defaults           (theirs fp32; ours what `precision: auto` chooses)
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from common import alternate, ratio, report
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from twofold.data import open_store
from twofold.learn import fastest
from twofold.learn.events import Stepped
from twofold.learn.loop import Trainer
from twofold.run import Run
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

SETTINGS = {  # (precision, channels_last) of ours and of theirs
    "fp32": (("fp32", False), ("fp32", False)),
    "fp32-channels_last": (("fp32", True), ("fp32", True)),
    "bf16-channels_last": (("bf16", True), ("bf16", True)),
    "defaults": (("auto", True), ("fp32", False)),
}


def our_steps(
    arguments: argparse.Namespace, folder: Path, how: tuple[str, bool]
) -> tuple[Callable[[], object], Trainer]:
    change = {
        "data": {"source": arguments.data, "size": 32, "channels": 3, "flip": False},
        "network": {"channels": arguments.channels, "dropout": 0.0},
        "train": {
            "batch_size": arguments.batch,
            "n_images": 10**9,
            "precision": how[0],
            "channels_last": how[1],
            "optimizer": "adamw",
            "lr": 1e-4,
            "betas": [0.95, 0.999],
            "weight_decay": 1e-6,
            "warmup_images": 0,
            **{f"{what}_images": 10**9 for what in ("save", "validate", "preview", "log")},
        },
        "validation": {"samples": 0, "max_images": 8},
    }
    settings, _ = resolve(TrainSettings, [*open_preset("ddpm-cifar10").layers, ("benchmark", change)])
    trainer = Trainer(Run.start(folder / "run", settings), settings, open_store(settings.data), Accelerator(cpu=True))
    events = trainer.events()

    def step() -> None:
        for event in events:
            if isinstance(event, Stepped):
                return

    return step, trainer


def batches(images: np.ndarray, size: int) -> Iterator[torch.Tensor]:
    order = np.random.default_rng(0)
    while True:
        rows = order.permutation(len(images))
        for start in range(0, len(rows) - size + 1, size):
            yield torch.from_numpy(images[rows[start : start + size]]).float() / 127.5 - 1


def their_steps(arguments: argparse.Namespace, how: tuple[str, bool], losses: list[float]) -> Callable[[], object]:
    torch.manual_seed(0)
    c = arguments.channels
    model = UNet2DModel(
        sample_size=32,
        block_out_channels=(c, 2 * c, 2 * c, 2 * c),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    ).train()
    if how[1]:
        model.to(memory_format=torch.channels_last)
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    accelerator = Accelerator(cpu=True)  # one per process has one precision; autocast below is what it would do
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    store = open_store(_data(arguments))
    stream = batches(np.asarray(store.images), arguments.batch)

    def step() -> None:
        clean = next(stream)
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (len(clean),))
        with accelerator.accumulate(model):
            with torch.autocast("cpu", torch.bfloat16, enabled=how[0] == "bf16"):
                output = model(scheduler.add_noise(clean, noise, t), t).sample
            loss = torch.nn.functional.mse_loss(output.float(), noise.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        average.step(model.parameters())
        losses.append(loss.detach().item())

    return step


def _data(arguments: argparse.Namespace):  # type: ignore[no-untyped-def]
    from twofold.settings.data import DataSettings

    return DataSettings(source=arguments.data, size=32, channels=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, default="fp32-channels_last")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--data", default="digits", help="a source; digits are resized to 32x32x3 without CIFAR-10 here"
    )
    arguments = parser.parse_args()
    ours, theirs = SETTINGS[arguments.setting]
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        step, trainer = our_steps(arguments, Path(folder), ours)
        contenders = {"twofold": step, "diffusers": their_steps(arguments, theirs, losses)}
        seconds = alternate(contenders, arguments.rounds)
        mean = float(trainer._loss_sum) / trainer.totals["loss_count"]
        found = ratio(seconds, "twofold", "diffusers")
        best = {name: round(arguments.batch / min(times), 2) for name, times in seconds.items()}
        report(
            "training",
            setting=arguments.setting,
            our_precision=trainer.environment.precision,
            bf16_instructions=fastest.has_bf16(),
            **found,
            images_per_second=best,
            mean_loss={"twofold": round(mean, 4), "diffusers": round(float(np.mean(losses)), 4)},
            images=trainer.n_images,
        )


if __name__ == "__main__":
    main()
