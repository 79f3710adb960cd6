"""Which copies of training images does `twofold copies` find, and how many new real images does it flag?

    .venv/bin/python benchmarks/copies.py [--data digits|RUN|SOURCE] [--rate 0.01] [--figure docs/figures/copies.png]

Of 200 training images copies are planted: as they are, with noise, brighter, moved by a pixel, mirrored, as JPEG.
Beside them stand up to as many real images of the validation part, which nobody has copied; the rule is calibrated on
the test part. Each row is the share that is flagged: in pixels and, if --data is the run of a denoiser, in its features
and by either.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import machine
from PIL import Image
from torch import Tensor

from twofold.cli.copied import Real, real_images, run_and_data, spaces_of
from twofold.cli.copies import Compared, compare
from twofold.data import open_store
from twofold.report.grids import neighbour_grid
from twofold.settings.copies import CopiesSettings

N = 200


def noisy(images: Tensor, std: float) -> Tensor:
    noise = std * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def jpeg(images: Tensor, quality: int) -> Tensor:
    made = []
    for image in images.numpy():
        file = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
        pixels = np.asarray(Image.open(file))
        made.append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
    return torch.from_numpy(np.stack(made))


VARIANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda images: images,
    "noise of 5 grey levels": lambda images: noisy(images, 5),
    "noise of 15 grey levels": lambda images: noisy(images, 15),
    "noise of 30 grey levels": lambda images: noisy(images, 30),
    "20 grey levels brighter": lambda images: (images.int() + 20).clamp(0, 255).to(torch.uint8),
    "JPEG, quality 50": lambda images: jpeg(images, 50),
    "moved by one pixel": lambda images: images.roll(1, 3),
    "mirrored": lambda images: images.flip(3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--flips", action="store_true")
    parser.add_argument("--rule", default="ratio")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    settings = CopiesSettings.model_validate(
        {"data": args.data, "rate": args.rate, "flips": args.flips, "rule": args.rule}
    )
    is_run = (Path(args.data) / "settings.yaml").is_file()
    run, data = run_and_data(Path(), settings, ()) if is_run else (None, settings.data)
    assert data is not None
    real = real_images(data, settings, open_store(data).shape, True)
    spaces = spaces_of(run, settings, torch.device("cpu"), True)
    source = real.store.batch(real.train[np.linspace(0, len(real.train) - 1, N).astype(int)])
    new = real.store.batch(real.store.indices("validation")[:N])
    sets = {**{name: make(source) for name, make in VARIANTS.items()}, "new real images": new}
    images, flagged = torch.cat(list(sets.values())), {}
    for space in spaces:
        found = compare(space, real, images, settings, settings.rate / len(spaces), True)
        flagged[space.name] = found.verdict.flagged
        print(f"{space.name}: limit {found.verdict.limit:.3f}, at most {found.verdict.rate:.4f} of new real images")
        if space.pixels and args.figure:
            draw(args.figure, sets, real, found)
    print(f"{args.data}: {len(real.train):,} training images, {len(real.held_out):,} held out; {machine()['cpu']}")
    for k, (name, part) in enumerate(sets.items()):
        rows = slice(k * N, k * N + len(part))
        shares = [float(one[rows].double().mean()) for one in flagged.values()]
        either = float(torch.stack([one[rows] for one in flagged.values()]).any(0).double().mean())
        print(f"{name:26} " + "  ".join(f"{share:6.1%}" for share in [*shares, either]))


def draw(path: Path, sets: dict[str, Tensor], real: Real, found: Compared) -> None:
    """One of each kind above its nearest training image, with the ratio between."""
    places = [k * N + 3 for k in range(len(sets))]
    images = torch.cat(list(sets.values()))[places].numpy()
    nearest = real.store.batch(real.train[found.ours.row[places].numpy()]).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(neighbour_grid(images, nearest, found.ours.ratio[places].tolist(), len(places)))


if __name__ == "__main__":
    main()
