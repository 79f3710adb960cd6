"""What do features cost? FLOPs of reading each layer of the published networks, as a share of the whole forward pass.

    OMP_NUM_THREADS=2 python benchmarks/early_exit.py --preset ddae-cifar10-ddpm --layers out_4 out_6 out_7 out_10

Counted by torch's own counter during `Denoiser.features` on one image, with the plain convolutions (as on a GPU) and
with those that a CPU uses, which need fewer products in the upsampling that an early exit leaves out. The features are
also compared, bit for bit, with those of a pass that runs to the end.
"""

from __future__ import annotations

import argparse
from unittest.mock import patch

import torch
from common import report
from torch.utils.flop_counter import FlopCounterMode

from twofold.denoiser import NetworkDenoiser
from twofold.run import build
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings


def flops(denoiser: NetworkDenoiser, x: torch.Tensor, layer: str | None, plain: bool) -> int:
    """FLOPs of reading a layer, or of denoising. plain: without the rearranged convolutions of a CPU."""
    with FlopCounterMode(display=False) as counter, patch("torch.compiler.is_compiling", return_value=plain):
        if layer is None:
            denoiser.denoise(x, 0.05)
        else:
            denoiser.features(x, 0.05, [layer])
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ddae-cifar10-ddpm")
    parser.add_argument("--layers", nargs="+", default=["out_4", "out_5", "out_6", "out_7", "out_10"])
    arguments = parser.parse_args()
    settings, _ = resolve(TrainSettings, open_preset(arguments.preset).layers)
    assert settings.data.size is not None
    torch.manual_seed(0)
    denoiser = build(settings, (settings.data.channels or 3, *settings.data.size), [])
    assert isinstance(denoiser, NetworkDenoiser)
    denoiser.eval().requires_grad_(False)
    x = torch.randn(1, *denoiser.shape)
    everything = denoiser.features(x, 0.05, list(denoiser.layers))  # runs to the last layer
    for layer in arguments.layers:
        name = denoiser.aliases.get(layer, layer)
        equal = torch.equal(denoiser.features(x, 0.05, [layer])[layer], everything[name])
        row = {}
        for side, plain in (("plain", True), ("cpu", False)):
            whole = flops(denoiser, x, None, plain)
            row[side] = round(flops(denoiser, x, layer, plain) / whole, 4)
            row[f"{side}_gflop"] = round(whole / 1e9, 2)
        report("early_exit", layer=layer, block=name, **row, bit_equal=equal)


if __name__ == "__main__":
    main()
