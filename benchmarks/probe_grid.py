"""How fast is a grid search over all layers and noise levels, against the published procedure, at what accuracy?

    OMP_NUM_THREADS=1 python benchmarks/probe_grid.py --run runs/ddae-cifar10-edm-mini-xxxxxxxx

The published procedure (Xiang et al. 2023), written here from its description: for each of 15 epochs and each batch,
one whole forward pass per noise level with fresh noise; a linear layer for every (layer, noise level), each with an
Adam optimiser and a cosine schedule of its own. It then picks the best on the test part; here the validation part
picks for both sides, so that their test accuracies can be compared. Ours: `Probing.search` with nothing cached before,
and the test of what it chose. Both run by turns in one process on the same network, images and noise levels.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

import numpy as np
import torch
from common import ratio, report
from torch import Tensor, nn

import twofold
from twofold.denoiser import NetworkDenoiser
from twofold.learn.probed import Probing, Workplace
from twofold.recognize.choose import best
from twofold.settings.probe import ProbeSettings


class Published:
    """The published procedure on one process."""

    def __init__(self, denoiser: NetworkDenoiser, probing: Probing, arguments: argparse.Namespace) -> None:
        self.denoiser, self.probing, self.how = denoiser, probing, arguments
        self.sigmas = probing.settings.sigmas
        self.x0 = {name: denoiser.codec.encode(probing.store.batch(part.rows)) for name, part in probing.parts.items()}

    def features(self, x0: Tensor, sigma: float) -> dict[str, Tensor]:
        """Every layer by a pass that runs to its end, as hooks on the whole network read it."""
        found: dict[str, Tensor] = {}
        hooks = [
            layer.module.register_forward_hook(lambda m, a, out, name=name: found.update({name: out.mean((2, 3))}))
            for name, layer in self.denoiser.layers.items()
        ]
        with torch.no_grad():
            self.denoiser.denoise(x0 + sigma * torch.randn_like(x0), sigma)
        for hook in hooks:
            hook.remove()
        return found

    def run(self) -> float:
        """Test accuracy of the probe that is best on the validation part."""
        torch.manual_seed(0)
        classes, y = len(self.probing.store.classes), self.probing.parts["train"].labels
        heads = {
            (layer, sigma): nn.Linear(part.channels, classes)
            for layer, part in self.denoiser.layers.items()
            for sigma in self.sigmas
        }
        adams = {place: torch.optim.Adam(head.parameters(), lr=self.how.lr) for place, head in heads.items()}
        cosines = {
            place: torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.how.epochs) for place, adam in adams.items()
        }
        for _ in range(self.how.epochs):
            for rows in torch.randperm(len(y)).split(self.how.batch_size):
                for sigma in self.sigmas:
                    for layer, z in self.features(self.x0["train"][rows], sigma).items():
                        place = layer, sigma
                        loss = nn.functional.cross_entropy(heads[place](z), y[rows])
                        adams[place].zero_grad()
                        loss.backward()
                        adams[place].step()
            for cosine in cosines.values():
                cosine.step()
        accuracy = {split: self.accuracies(heads, split) for split in ("validation", "test")}
        chosen = max(heads, key=lambda place: accuracy["validation"][place])
        return accuracy["test"][chosen]

    def accuracies(self, heads: dict[tuple[str, float], nn.Linear], split: str) -> dict[tuple[str, float], float]:
        right = dict.fromkeys(heads, 0)
        labels = self.probing.parts[split].labels
        for x0, y in zip(self.x0[split].split(256), labels.split(256), strict=True):
            for sigma in self.sigmas:
                for layer, z in self.features(x0, sigma).items():
                    right[layer, sigma] += int((heads[layer, sigma](z).argmax(1) == y).sum())
        return {place: count / len(labels) for place, count in right.items()}


def ours(probing: Probing) -> float:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TWOFOLD_CACHE"] = cache
        probing.search()
        return probing.tested(best(probing.finalists))["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--screen", type=int, default=400)
    parser.add_argument("--max-train", type=int, default=None)
    arguments = parser.parse_args()
    denoiser = twofold.load(arguments.run)
    assert isinstance(denoiser, NetworkDenoiser)
    store = twofold.open_store(twofold.Run.open(arguments.run).settings().data)
    settings = ProbeSettings(
        copies=1, draws=1, screen=arguments.screen, max_train=arguments.max_train, max_test=arguments.max_train
    )
    seconds: dict[str, list[float]] = {"published": [], "ours": []}
    accuracy: dict[str, list[float]] = {"published": [], "ours": []}
    for _ in range(arguments.rounds):
        for name in seconds:
            probing = Probing(denoiser, store, settings, Workplace())
            start = time.perf_counter()
            found = Published(denoiser, probing, arguments).run() if name == "published" else ours(probing)
            seconds[name].append(time.perf_counter() - start)
            accuracy[name].append(found)
            print(f"{name:10} {seconds[name][-1]:8.1f} s   test accuracy {100 * found:.1f} %", flush=True)
    report(
        "probe_grid",
        data=store.name,
        images={name: len(part.rows) for name, part in probing.parts.items()},
        places=len(denoiser.layers) * len(settings.sigmas),
        accuracy={name: round(float(np.mean(values)), 4) for name, values in accuracy.items()},
        seconds={name: round(float(np.median(values)), 1) for name, values in seconds.items()},
        **ratio(seconds, "ours", "published"),
    )


if __name__ == "__main__":
    main()
