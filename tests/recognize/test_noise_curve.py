"""Accuracy against noise, of the best classifier there can be and of those that know no noise."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from twofold.errors import UserError
from twofold.measure import accuracy, share_interval
from twofold.oracle import MixtureDenoiser
from twofold.recognize.classifier import NetworkClassifier
from twofold.recognize.denoising_error import noise_of_images
from twofold.recognize.noise_curve import LEVELS, accuracy_against_noise, levels_of

SHAPE = (1, 2, 2)


class Knowing:
    """The exact classifier of two Gaussians at +-m, with the range of noise it knows."""

    sigma_range = (0.01, 50.0)

    def __init__(self) -> None:
        mean = torch.tensor([[0.5, -0.4], [0.3, 0.45]], dtype=torch.float64).view(1, *SHAPE)
        self.oracle = MixtureDenoiser(torch.cat([mean, -mean]), [0.05, 0.05], [1.0, 1.0])
        self.class_names = ["plus", "minus"]
        self.calls: list[tuple[int, float]] = []

    def logits(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.calls.append((len(x), float(sigma)))
        return self.oracle.logits(x, sigma)


def pictures(n: int) -> tuple[Tensor, Tensor]:
    oracle, generator = Knowing().oracle, torch.Generator().manual_seed(0)
    label = oracle.draw_labels(n, generator)
    return oracle.codec.decode(oracle.sample(n, generator, label)), label


def test_the_best_classifier_has_the_accuracy_that_was_computed_by_hand() -> None:
    """Two Gaussians at +-m of variance d^2 + s^2: accuracy Phi(|m| / sqrt(d^2 + s^2))."""
    classifier = Knowing()
    images, label = pictures(4000)
    rows = accuracy_against_noise(classifier, images, label, [0.2, 0.5, 1.0, 3.0, 40.0])
    m = float(classifier.oracle.means[0].norm())
    for row in rows:
        expected = NormalDist().cdf(m / math.hypot(0.05, row["sigma"]))
        assert row["accuracy"] == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 4000))
        assert (row["low"], row["high"]) == share_interval(row["accuracy"], 4000)
        assert (row["images"], row["draws"]) == (4000, 1)
    assert [row["sigma"] for row in rows] == [0.2, 0.5, 1.0, 3.0, 40.0]


def test_the_noise_belongs_to_the_image_and_the_draw() -> None:
    images, label = pictures(300)
    alone = accuracy_against_noise(Knowing(), images, label, [1.0])[0]
    order = torch.randperm(300)
    for other in (
        accuracy_against_noise(Knowing(), images[order], label[order], [0.1, 1.0, 2.0])[1],
        accuracy_against_noise(Knowing(), images, label, [1.0], micro_batch=7)[0],
    ):
        assert other == alone
    noise, x0 = noise_of_images(SHAPE), Knowing().oracle.codec.encode(images)
    shares = [accuracy(Knowing().logits(x0 + 1.0 * noise(images, draw), 1.0), label) for draw in range(4)]
    assert len(set(shares)) > 1 and shares[0] == alone["accuracy"]
    found = accuracy_against_noise(Knowing(), images, label, [1.0], draws=4)[0]
    assert found["accuracy"] == pytest.approx(np.mean(shares), abs=1e-12) and found["draws"] == 4


def test_unlabelled_images_are_left_out_and_clean_ones_are_seen_once() -> None:
    images, label = pictures(60)
    label[::3] = -1
    classifier, seen = Knowing(), []
    rows = accuracy_against_noise(
        classifier, images, label, [0.0, 0.5], 2, micro_batch=32, progress=lambda *at: seen.append(at)
    )
    assert classifier.calls == [(32, 0.0), (8, 0.0), *[(32, 0.5), (8, 0.5)] * 2]
    assert [row["images"] for row in rows] == [40, 40] and seen == [(1, 2), (2, 2)]
    assert [row["draws"] for row in rows] == [1, 2] and rows[0]["accuracy"] == 1.0


class Parity(nn.Module):
    """A network that gives away whether it is in training."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        return torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)


def test_clean_classifiers_say_so() -> None:
    images, label = pictures(10)
    clean = NetworkClassifier(Parity(), ["a", "b"], SHAPE).train()
    assert levels_of(clean) == () and accuracy_against_noise(clean, images, label) == []
    with pytest.raises(UserError, match="noise_levels=0.5: this classifier has seen clean images only"):
        accuracy_against_noise(clean, images, label, [0.0, 0.5])
    (row,) = accuracy_against_noise(clean, images, label, [0.0])
    assert row["images"] == 10 and clean.training


def test_default_levels_are_the_same_for_all_as_far_as_they_know_them() -> None:
    classifier: Any = Knowing()
    assert levels_of(classifier) == LEVELS
    classifier.sigma_range = (0.1, 1.0)
    assert levels_of(classifier) == (0.1, 0.2, 0.5, 1.0)
    assert levels_of(classifier, [0.3, 0]) == (0.3, 0.0)


def test_mistakes_are_told_before_anything_is_computed() -> None:
    images, label = pictures(6)
    classifier = Knowing()
    for arguments, what in (
        ((images, label, [0.1, 60.0]), r"noise_levels=60: outside \[0.01, 50\], which this classifier knows"),
        ((images, label, [-0.1]), "noise_levels=-0.1: outside"),
        ((images, label, [0.1], 0), "noise_draws=0: no draw"),
        ((images, label[:3], [0.1]), r"with labels \(3,\); expected"),
        ((images.float(), label, [0.1]), "images: torch.float32"),
        ((images, torch.full((6,), -1), [0.1]), "labels: no image is labelled"),
    ):
        with pytest.raises(UserError, match=what):
            accuracy_against_noise(classifier, *arguments)  # type: ignore[arg-type]
    assert classifier.calls == []
