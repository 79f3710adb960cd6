"""Memory of images of 128 and 256 pixels: on latents, on pixels, and with the matrix of attention at full resolution.

    python benchmarks/latent_memory.py --sizes 128 256

For each network and size two child processes measure their peak resident memory on this CPU (fp32, random weights):
one takes two training steps of one image, one samples one image in two evaluations and, on latents, decodes it. What
is there before, imports and libraries, is taken off. Beside each stands what `learn.needs` counts for it, and the bytes
of the matrices that attention without a fused kernel makes for one image in a network that attends at every resolution
up to the full one (IDDM's of 2023: 4 heads): arithmetic, nothing is run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from typing import Any

import torch
from common import report

from twofold.adapters.latent_codec import LatentCodec
from twofold.learn.needs import Needs
from twofold.learn.room import sampling_bytes
from twofold.networks.autoencoder import kl_options
from twofold.run import build
from twofold.settings.network import AutoencoderSettings
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

HEADS = 4  # of IDDM's attention


def settings_of(kind: str, size: int) -> TrainSettings:
    """latent: the preset for this size. pixel: `images-64` at it; the levels that attend keep their places."""
    name = f"latent-{size}" if kind == "latent" else "images-64"
    change: dict[str, Any] = {"data": {"source": "digits", "size": size, "channels": 3}}
    change["train"] = {"batch_size": 1, "micro_batch": 1, "precision": "fp32"}
    if kind == "pixel":
        change["network"] = {"attention": [size // 4, size // 8]}
    return resolve(TrainSettings, [*open_preset(name).layers, ("benchmark", change)])[0]


def opened(kind: str, size: int, device: str) -> tuple[TrainSettings, Any, LatentCodec | None, tuple[int, int, int]]:
    """Settings, model, autoencoder (KL-f8 with random weights) and shape of x0."""
    settings, codec = settings_of(kind, size), None
    with torch.device(device):
        if settings.codec is not None:
            from diffusers import AutoencoderKL

            vae = AutoencoderKL(**kl_options(AutoencoderSettings(), 3))
            codec = LatentCodec(vae, (size, size), 1.0, 0.0, 3)
        shape = (3, size, size) if codec is None else codec.shape_of((3, size, size))
        return settings, build(settings, shape, ["a"] * 10), codec, shape


def child(kind: str, size: int, what: str) -> None:
    """Prints the peak resident bytes beyond those before."""
    from diffusers import AutoencoderKL  # noqa: F401 (libraries are not counted)

    torch.nn.Conv2d(8, 8, 3)(torch.zeros(1, 8, 8, 8)).sum().backward()
    before = peak()
    _, model, codec, shape = opened(kind, size, "cpu")
    if what == "training":
        optimizer = torch.optim.Adam(model.network.parameters(), fused=True)
        average = [p.detach().clone() for p in model.network.parameters()]
        for _ in range(2):
            loss = model.network(torch.randn(1, *shape), torch.zeros(1)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        del average
    else:
        model.eval()
        with torch.inference_mode():
            x = torch.randn(1, *shape)
            for _ in range(2):
                x = model.network(x, torch.zeros(1))
            if codec is not None:
                codec.decode(x)
    print(json.dumps(peak() - before))


def peak() -> int:
    """Bytes that this process had resident at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(kind: str, size: int, what: str) -> int:
    words = [sys.executable, __file__, "--child", kind, str(size), what]
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    return int(json.loads(done.stdout.splitlines()[-1]))


def counted(kind: str, size: int) -> tuple[int, int]:
    """(training, sampling) of one image; the latter with the weights."""
    settings, model, codec, shape = opened(kind, size, "meta")
    needs = Needs(settings, shape, ["a"] * 10, codec=codec)
    fixed, needs.codec = needs.fixed(), None  # a step on stored latents does not run the autoencoder
    step = fixed - needs.fixed() + needs.memory(1)
    weights = 4 * sum(p.numel() for m in (model, codec) if m is not None for p in m.parameters())
    return step, weights + sampling_bytes(model.network, shape, 1, half=False, cpu=True, codec=codec)


def matrix_bytes(size: int) -> dict[str, int]:
    """Matrices of attention of one image, heads x tokens^2 x 4 bytes: the largest; all of them, which training keeps.

    At a half, a quarter and an eighth of the side, and going up again at a quarter, a half and all of it.
    """
    each = [HEADS * (size // part) ** 4 * 4 for part in (2, 4, 8, 4, 2, 1)]
    return {"sampling_mib": max(each) // 2**20, "training_mib": sum(each) // 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, size, what = arguments.child
        child(kind, int(size), what)
        return
    mib = 2**20
    found: dict[str, Any] = {}
    for size in arguments.sizes:
        for kind in ("latent", "pixel"):
            train, sample = counted(kind, size)
            row = {
                "training_mib": round(measured(kind, size, "training") / mib),
                "training_counted_mib": round(train / mib),
                "sampling_mib": round(measured(kind, size, "sampling") / mib),
                "sampling_counted_mib": round(sample / mib),
            }
            found[f"{kind} {size}"] = row
            print(f"{kind} {size}: {row}", file=sys.stderr, flush=True)
        found[f"matrices of attention {size}"] = matrix_bytes(size)
    report("latent_memory", memory=found)


if __name__ == "__main__":
    main()
