"""How fast is the U-Net, against diffusers' UNet2DModel with the same weights, at equal precision and memory format?

    OMP_NUM_THREADS=2 python benchmarks/network_step.py --batch 16 --rounds 15 --threads 2

The network is DDPM's for CIFAR-10 (35.7 M parameters at --channels 128). Both run in one process, turn by turn, so that
whatever else the machine does falls on both; before anything is timed their outputs must agree to 1e-5.
forward: evaluation mode, no gradients. step: training mode, forward and backward of a mean squared error.
ratio: diffusers' time / ours, the median over rounds (above 1: we are faster).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SETTINGS = {  # name: (memory format, autocast to bfloat16)
    "fp32 channels_last": (torch.channels_last, False),
    "fp32 contiguous": (torch.contiguous_format, False),
    "bf16 autocast channels_last": (torch.channels_last, True),
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def pair(channels: int) -> tuple[nn.Module, nn.Module]:
    """(ours, diffusers'): the same network with the same random weights."""
    from twofold.adapters.diffusers_unet import to_diffusers
    from twofold.denoiser import NetworkDenoiser
    from twofold.networks.unet import UNet
    from twofold.noise import family
    from twofold.settings.network import UNetSettings
    from twofold.settings.noise import VPNoise

    torch.manual_seed(0)
    shape = (3, 32, 32)
    network = UNet(UNetSettings(channels=channels, norm_eps=1e-6), shape)
    return network, to_diffusers(NetworkDenoiser(network, family(VPNoise()), shape))


def check(ours: nn.Module, theirs: nn.Module, x: Tensor, t: Tensor) -> float:
    """Largest difference of the outputs relative to the largest output."""
    with torch.no_grad():
        a, b = ours.eval()(x, t), theirs.eval()(x, t, return_dict=False)[0]
    difference = float((a - b).abs().max() / b.abs().max())
    if difference > 1e-5:
        raise SystemExit(f"the two networks differ by {difference:.1e}: nothing to compare")
    return difference


def compare(
    ours: nn.Module, theirs: nn.Module, x: Tensor, t: Tensor, bf16: bool, rounds: int, clock: Callable[[], float]
) -> list[str]:
    """One row a measure: median milliseconds of both, the median ratio, and the ratio of the fastest."""
    precision = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext()
    target = torch.randn_like(x)
    call = {"ours": lambda: ours(x, t), "theirs": lambda: theirs(x, t, return_dict=False)[0]}
    modules = {"ours": ours, "theirs": theirs}

    def forward(who: str) -> None:
        modules[who].eval()
        with torch.no_grad(), precision:
            call[who]()

    def step(who: str) -> None:
        modules[who].train().zero_grad(set_to_none=True)
        with precision:
            output = call[who]()
        F.mse_loss(output.float(), target).backward()

    rows = []
    for measure in (forward, step):
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for index in range(-1, rounds):  # the first one warms up
            for who in ("ours", "theirs") if index % 2 else ("theirs", "ours"):
                start = clock()
                measure(who)
                if index >= 0:
                    times[who].append(clock() - start)
        ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
        a, b = (1000 * statistics.median(times[who]) for who in ("ours", "theirs"))
        least = min(times["theirs"]) / min(times["ours"])
        rows.append(f"{measure.__name__:8} {b:10.1f} {a:10.1f} {statistics.median(ratios):8.3f} {least:14.3f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a busy machine; 1 thread"
    )
    parser.add_argument("--only", default="", help="settings whose name contains this")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    ours, theirs = pair(arguments.channels)
    x, t = torch.randn(arguments.batch, 3, 32, 32), torch.arange(arguments.batch) * 900.0 / arguments.batch
    print(
        f"torch {torch.__version__}, {arguments.threads} threads, batch {arguments.batch}, "
        f"{sum(p.numel() for p in ours.parameters()):,} parameters, outputs {check(ours, theirs, x, t):.1e} apart"
    )
    print(f"{'setting':28} {'measure':8} {'diffusers ms':>10} {'ours ms':>8} {'ratio':>8} {'ratio of minima':>14}")
    for name, (memory_format, bf16) in SETTINGS.items():
        if arguments.only not in name:
            continue
        for module in (ours, theirs):
            module.to(memory_format=memory_format)  # type: ignore[call-overload]
        formatted = x.contiguous(memory_format=memory_format)
        for row in compare(ours, theirs, formatted, t, bf16, arguments.rounds, CLOCKS[arguments.clock]):
            print(f"{name:28} {row}", flush=True)


if __name__ == "__main__":
    main()
