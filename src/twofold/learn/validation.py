"""What is measured during training: held-out loss, Frechet distance, accuracy. Always on the averaged weights.

Processes share the work: rank r takes every world-th image, and sums are added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..data import Store, spread
from ..data.latents import Latents
from ..denoiser import NetworkDenoiser
from ..draws import ImageDraws
from ..generate import sample
from ..generate.upscale import upscale
from ..lowres import shrink
from ..measure import Gaussian, embed, encoder, fits, frechet_distance
from ..measure.fidelity import psnr, ssim
from ..settings.train import TrainSettings
from .batches import TASKS, U_SIGMA, Batch, belongings_of, labels_of
from .classes import asks_attributes, class_names
from .ema import Average
from .objectives import Objective
from .objectives.supervised import attributes, commoner_answers

# what weights are kept for; 1: less is better
BETTER = (("loss", 1), ("frechet", 1), ("accuracy", -1), ("miou", -1), ("nme", 1), ("psnr", -1))
PICTURES = 64  # of a preview that shows held-out images and what became of them


@contextmanager
def averaged(network: nn.Module, average: Average) -> Iterator[None]:
    """Within the block the network carries its averaged weights, in eval mode."""
    live = {name: value.detach().clone() for name, value in network.state_dict().items()}
    training = network.training
    network.load_state_dict(average.tensors)
    network.eval()
    try:
        yield
    finally:
        network.load_state_dict(live)
        network.train(training)


def labels_for(seeds: range, classes: int) -> list[int] | None:
    """Classes in turn, or None for an unconditional model."""
    return [seed % classes for seed in seeds] if classes else None


class Validation:
    """Measures one model against the validation part of its data. Everything random is keyed by the image."""

    latents: Latents | None = None  # the moments of `rows`, of a latent model that keeps them

    def __init__(
        self,
        settings: TrainSettings,
        store: Store,
        rank: int,
        world: int,
        device: torch.device,
        noise_shape: tuple[int, int, int] | None = None,
    ) -> None:
        self.settings, self.store, self.device = settings, store, device
        self.rank, self.world = rank, world
        rows = store.indices(settings.validation.split)
        if settings.validation.split == "train" and settings.objective.kind in TASKS:
            rows = store.annotated_rows("train")  # what is hidden from training must not choose its best weights
        rows = rows[spread(len(rows), settings.validation.max_images)]
        self.rows, self.mine = rows, rows[rank::world]
        # Noise levels are spread evenly over the held-out images, the same ones every time: little variance. Dealt
        # out in random order, because rows are often sorted by class.
        dealt = np.random.default_rng(0).permutation(len(rows))
        self._place = {row: (place + 0.5) / len(rows) for row, place in zip(rows, dealt, strict=True)}
        self.noise_shape = noise_shape or store.shape
        self.encoder = encoder(fits(settings.validation.encoder, store.shape))
        # a covariance needs two images on either side
        self.samples_wanted = settings.validation.samples if min(settings.validation.samples, len(rows)) > 1 else 0
        self._reference: Gaussian | None = None

    def measured(self, objective: Objective, count: int, images: Tensor | None = None) -> dict[str, float]:
        """{"loss", "accuracy", "frechet"} over all processes: the second where any label is known, the third of images.
        And what else the objective measures and tallies. No loss where no image counts in it.

        With yes-or-no questions "accuracy_always" is what always giving the commoner answer would reach.

        count: images at a time. images: this rank's share of samples, of which `samples_wanted` in all are looked at
        (a preview may have drawn more); None: there are none on any rank.
        """
        total = self.loss(objective, count)
        if self.world > 1:
            total = sum(gather_object([total]), torch.zeros_like(total))
        averages, tallies = total.tensor_split([len(total) - objective.tallies])
        loss, counted, right, asked, *more = averages.tolist()
        sums = {"loss": loss, **dict(zip(objective.measures, more, strict=True))}
        found = {name: value / counted for name, value in sums.items()} if counted else {}
        if asked:
            found["accuracy"] = right / asked
            if getattr(self.settings.objective, "multi_label", False):
                found["accuracy_always"] = self.always() / asked
        if objective.tallies:
            found |= objective.scores(tallies)
        if images is not None and self.samples_wanted:
            mine = self.statistics(images[: len(range(self.samples_wanted)[self.rank :: self.world])])
            everyone = gather_object([mine]) if self.world > 1 else [mine]
            for other in everyone[1:]:
                everyone[0].merge(other)
            found["frechet"] = self.frechet(everyone[0])
            if objective.denoiser is not None and objective.denoiser.low_factor:
                found |= self.fidelity(images)
        return found

    def everyones(self, images: Tensor, labels: list[int]) -> tuple[Tensor, list[int]]:
        """The samples of all processes and their labels, of these shares, in the order of their seeds."""
        if self.world == 1:
            return images, labels
        every = gather_object(list(zip(range(self.rank, 10**9, self.world), images, labels, strict=False)))
        every.sort(key=lambda item: item[0])
        return torch.stack([image for _, image, _ in every]), [label for _, _, label in every]

    def loss(self, objective: Objective, count: int) -> Tensor:
        """This rank's sums, float64: losses, images counted, right answers, images asked about, what the objective
        measures and what it tallies. count: at a time.
        """
        draws = ImageDraws("evaluate")
        measured = 4 + len(objective.measures)
        total = torch.zeros(measured + objective.tallies, dtype=torch.float64)
        for start in range(0, len(self.mine), count):
            rows = self.mine[start : start + count]
            batch = self._batch(objective, rows, draws).to(self.device)
            losses = objective(batch)
            total[0] += losses.cpu().double().sum()
            total[1] += objective.counted(batch.label)
            if objective.classifies:
                total[2] += objective.correct(batch)
                total[3] += objective.asked(batch.label)
            if objective.measures:
                total[4:measured] += objective.measure(batch).cpu().double().sum(0)
            if objective.tallies:
                total[measured:] += objective.tally(batch)
        return total

    def always(self) -> float:
        """The sum that `loss` has of right answers, over the rows of all ranks, for always the commoner answer."""
        labels = labels_of(self.store, self.rows, asks_attributes(self.settings, self.store))
        return commoner_answers(attributes(labels, len(class_names(self.settings, self.store))))

    def _batch(self, objective: Objective, rows: np.ndarray, draws: ImageDraws) -> Batch:
        uniforms = np.ones((len(rows), objective.uniforms))  # 1 = no label dropout, no flip, inactive augmentation
        uniforms[:, U_SIGMA] = [self._place[row] for row in rows]
        noise = np.empty((len(rows), *self.noise_shape), np.float32)
        codec = self.settings.codec
        posterior = np.empty_like(noise) if codec is not None and codec.sample else None
        for i, row in enumerate(rows):
            generator = draws(0, int(row))
            generator.standard_normal(out=noise[i], dtype=np.float32)
            if posterior is not None:
                generator.standard_normal(out=posterior[i], dtype=np.float32)
        labels = labels_of(self.store, rows, asks_attributes(self.settings, self.store))
        more: dict[str, Any] = belongings_of(self.store, rows, objective.belongings)
        return Batch(
            self.store.batch(rows),
            labels,
            torch.from_numpy(uniforms),
            torch.from_numpy(noise),
            moments=None if self.latents is None else self.latents(rows),
            posterior=None if posterior is None else torch.from_numpy(posterior),
            **more,
        )

    def pictures(self, objective: Objective) -> tuple[Tensor, list[int]]:
        """What a preview shows of an objective without a denoiser: the same on every rank, and no labels."""
        rows = self.rows[spread(len(self.rows), PICTURES // 2)]
        images = objective.pictures(self._batch(objective, rows, ImageDraws("evaluate")).to(self.device))
        return images, [-1] * len(images)

    def samples(self, objective: Objective, count: int, most: int) -> tuple[Tensor, list[int]]:
        """This rank's share of images of seeds 0..count-1, uint8, at most so many at a time, with their labels."""
        denoiser = objective.denoiser
        assert denoiser is not None
        if denoiser.low_factor:
            return self.upscaled(denoiser, count, most)
        seeds = range(count)[self.rank :: self.world]
        labels = labels_for(range(count), denoiser.classes)
        mine = None if labels is None else labels[self.rank :: self.world]
        chosen = self.settings.validation
        if not seeds:  # more processes than images
            return torch.empty((0, *self.store.shape), dtype=torch.uint8), []
        batch = min(64, len(seeds), most)
        images = sample(denoiser, seeds, label=mine, sampler=chosen.sampler, steps=chosen.steps, micro_batch=batch)
        return images.cpu(), mine or [-1] * len(seeds)

    def upscaled(self, denoiser: NetworkDenoiser, count: int, most: int) -> tuple[Tensor, list[int]]:
        """The same of a super-resolution model: this rank's share of so many held-out images, shrunk and enlarged."""
        rows, seeds = self._looked_at(count), range(count)[self.rank :: self.world]
        if not len(rows):
            return torch.empty((0, *self.store.shape), dtype=torch.uint8), []
        low, chosen = shrink(self.store.batch(rows), denoiser.low_factor), self.settings.validation
        batch = min(64, len(rows), most)
        how: dict[str, Any] = {"sampler": chosen.sampler, "steps": chosen.steps, "tile": 0}
        return upscale(denoiser, low, seeds[: len(rows)], micro_batch=batch, **how), [-1] * len(rows)

    def _looked_at(self, count: int) -> np.ndarray:
        """This rank's share of the rows of so many held-out images, the same ones every time."""
        dealt = np.random.default_rng(1).permutation(self.rows)  # any number of them is spread over all
        return dealt[:count][self.rank :: self.world]

    def fidelity(self, images: Tensor) -> dict[str, float]:
        """{"psnr", "ssim"}: how near upscaled images, of this rank, come to the true ones; means over all ranks."""
        mine = images[: len(self._looked_at(self.samples_wanted))]
        truth = self.store.batch(self._looked_at(len(self.rows))[: len(mine)])
        sums = torch.stack([psnr(mine, truth).sum(), ssim(mine, truth).sum(), torch.tensor(float(len(mine)))])
        if self.world > 1:
            sums = sum(gather_object([sums]), torch.zeros_like(sums))
        return {name: float(total / sums[2]) for name, total in zip(("psnr", "ssim"), sums, strict=False)}

    def reference(self) -> Gaussian:
        """Statistics of the validation images under the encoder; computed once."""
        if self._reference is None:
            self._reference = Gaussian.of(embed(self.encoder, self.store.batch(self.rows)))
        return self._reference

    def statistics(self, images: Tensor) -> Gaussian:
        """Statistics of these images under the encoder."""
        return Gaussian.of(embed(self.encoder, images)) if len(images) else Gaussian()

    def frechet(self, statistics: Gaussian) -> float:
        """Frechet distance to the validation images."""
        return frechet_distance(statistics, self.reference())
