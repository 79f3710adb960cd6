"""The zero-shot classifier against the exact posterior of a mixture, and what pruning saves and keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofold.codec import PixelCodec
from twofold.denoiser import Classifier, NetworkDenoiser
from twofold.errors import UserError
from twofold.measure import probabilities
from twofold.networks.unet import UNet
from twofold.noise import family
from twofold.oracle import MixtureDenoiser
from twofold.recognize.denoising_error import DenoisingError, Rows
from twofold.recognize.zero_shot import ZeroShotClassifier, below, ranks, trial_sigmas
from twofold.settings.network import UNetSettings
from twofold.settings.noise import EDMNoise, FlowNoise, VPNoise

SHAPE = (1, 4, 4)


class Counting(MixtureDenoiser):
    """A mixture that remembers how many rows it denoised, and in what batches."""

    def __init__(self, k: int = 6, spread: float = 0.5, std: float = 0.2, **more: Any) -> None:
        generator = torch.Generator().manual_seed(1)
        means = spread * torch.randn((k, *SHAPE), generator=generator, dtype=torch.float64)
        super().__init__(means, [std] * k, [1.0] * k, **more)
        self.batches: list[int] = []

    def denoise(self, x: Tensor, sigma: Tensor | float, cond: Any = None) -> Tensor:
        self.batches.append(len(x))
        return super().denoise(x, sigma, cond)


def pictures(oracle: MixtureDenoiser, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = oracle.draw_labels(n, generator)
    return oracle.codec.decode(oracle.sample(n, generator, label)), label


def posterior(oracle: MixtureDenoiser, images: Tensor) -> Tensor:
    return oracle.as_classifier().logits(oracle.codec.encode(images).double(), 0.0).softmax(1)


def test_well_separated_classes_are_told_as_bayes_tells_them() -> None:
    oracle = Counting()
    images, label = pictures(oracle, 60)
    classifier = ZeroShotClassifier(oracle, rounds=((12, 3), (48, 1)))
    assert isinstance(classifier, Classifier)
    assert classifier.class_names == [str(k) for k in range(6)]
    answer = classifier.scores(images).argmax(1)
    assert torch.equal(answer, posterior(oracle, images).argmax(1))
    assert (answer == label).double().mean() > 0.95


def test_overlapping_classes_get_the_exact_posterior() -> None:
    """One number a picture, so that the mean over trials is near the integral: softmax of logits = Bayes."""
    means = torch.tensor([-0.3, 0.0, 0.4], dtype=torch.float64).view(3, 1, 1, 1)
    oracle = MixtureDenoiser(means, [0.3, 0.2, 0.25], [1.0, 1.0, 1.0])
    images = torch.arange(10, 250, 24, dtype=torch.uint8).view(-1, 1, 1, 1)
    classifier = ZeroShotClassifier(
        oracle, rounds=((4000, 3),), sigma_range=(0.002, 80.0), micro_batch=4096, noise=antithetic
    )
    exact = posterior(oracle, images)
    found = classifier.logits(oracle.codec.encode(images).double(), 0.0).softmax(1)
    assert float(exact.max(1).values.min()) < 0.6  # they do overlap
    assert (found - exact).abs().max() < 0.03
    torch.testing.assert_close(classifier.probabilities(images), found.double(), rtol=1e-4, atol=1e-6)


def antithetic(images: Tensor, draw: int) -> Tensor:
    """Gaussian quantiles in turn, the same for all images: less spread than chance has."""
    u = torch.tensor((0.5 + draw * 0.7548776662466927) % 1, dtype=torch.float64)
    return torch.special.ndtri(u).expand(len(images), 1, 1, 1).float()


def test_pruning_answers_the_same_with_far_fewer_evaluations() -> None:
    oracle = Counting(k=12, spread=0.35)
    images, _ = pictures(oracle, 20)
    exhaustive = ZeroShotClassifier(oracle, rounds=((60, 12),)).scores(images)
    every = sum(oracle.batches)
    assert 20 * 12 * 60 <= every < 20 * 12 * 60 + 64
    oracle.batches.clear()
    pruned = ZeroShotClassifier(oracle, rounds=((6, 3), (60, 1))).scores(images)
    few = sum(oracle.batches)
    assert 20 * (12 * 6 + 3 * 54) <= few < 20 * (12 * 6 + 3 * 54) + 2 * 64
    assert few < every / 2.9
    assert torch.equal(pruned.argmax(1), exhaustive.argmax(1))
    # who survived was measured as fully as before, who did not ranks below
    survivors = pruned.topk(3).indices
    torch.testing.assert_close(pruned.gather(1, survivors), exhaustive.gather(1, survivors), rtol=1e-9, atol=0)


def test_one_class_left_ends_it() -> None:
    oracle = Counting()
    images, _ = pictures(oracle, 5)
    early = ZeroShotClassifier(oracle, rounds=((4, 1), (1000, 1))).scores(images)
    assert sum(oracle.batches) == 128  # 5 x 6 x 4 rows, padded to whole batches, and no second round
    assert torch.equal(early, ZeroShotClassifier(oracle, rounds=((4, 1),)).scores(images))


def test_scores_are_the_mean_errors_of_the_same_noise_for_every_class() -> None:
    oracle = Counting(k=3)
    images, _ = pictures(oracle, 4)
    drawn: list[tuple[int, int]] = []

    def noise(images: Tensor, draw: int) -> Tensor:
        drawn.append((draw, len(images)))
        return torch.full((len(images), *SHAPE), 0.1 * (draw + 1))

    found = ZeroShotClassifier(oracle, rounds=((5, 3),), noise=noise, micro_batch=12).scores(images)
    assert drawn == [(draw, 4) for draw in range(5)]  # once for all classes
    x0, expected = oracle.codec.encode(images).double(), torch.zeros(4, 3, dtype=torch.float64)
    for draw, sigma in enumerate(trial_sigmas(oracle, 5, "log", (0.02, 20.0))):
        for k in range(3):
            x = x0 + float(sigma) * 0.1 * (draw + 1)
            error = oracle.denoise(x, sigma, {"label": torch.full((4,), k)}) - x0
            expected[:, k] -= (error / float(sigma)).square().flatten(1).mean(1) / 5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 7, 500])
def test_the_size_of_batches_does_not_matter(micro_batch: int) -> None:
    oracle = Counting()
    images, _ = pictures(oracle, 6)
    rounds = ((4, 3), (9, 2), (12, 1))
    whole = ZeroShotClassifier(oracle, rounds).scores(images)
    oracle.batches.clear()
    parts = ZeroShotClassifier(oracle, rounds, micro_batch=micro_batch).scores(images)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)
    assert set(oracle.batches) == {micro_batch}


def tiny_unet(noise: Any, classes: int = 4) -> NetworkDenoiser:
    torch.manual_seed(0)
    network = UNet(
        UNetSettings(channels=8, multipliers=(1, 2), blocks=1, attention=(), norm_groups=4, classes=classes), (1, 8, 8)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return NetworkDenoiser(network, family(noise), (1, 8, 8), classes).eval().requires_grad_(False)


def test_an_image_has_its_scores_wherever_it_stands() -> None:
    """Bit for bit: any order, any neighbours, one at a time, split into blocks."""
    model = tiny_unet(EDMNoise())
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    classifier = ZeroShotClassifier(model, rounds=((3, 2), (6, 1)), micro_batch=16)
    whole = classifier.scores(images)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(classifier.scores(images[order]), whole[order])
    assert torch.equal(torch.cat([classifier.scores(image[None]) for image in images]), whole)
    assert torch.equal(classifier.scores(images), whole)


def test_blocks_of_images_and_trials_are_only_about_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Counting()
    images, _ = pictures(oracle, 7)
    seen: list[tuple[int, int]] = []
    classifier = ZeroShotClassifier(oracle, rounds=((4, 2), (9, 1)))
    whole = classifier.scores(images)
    monkeypatch.setattr("twofold.recognize.zero_shot.ROWS", 50)
    assert torch.equal(classifier.scores(images, lambda done, total: seen.append((done, total))), whole)
    assert seen == [(2, 7), (4, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize("noise", [EDMNoise(), VPNoise(), VPNoise(predicts="v"), FlowNoise()])
@pytest.mark.parametrize("weight", ["x0", "eps", "edm"])
def test_networks_errors_are_those_of_x0_hat_without_cancellation(noise: Any, weight: str) -> None:
    model = tiny_unet(noise)
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    low, high = model.sigma_range
    sigmas = [low, 0.3, min(high, 20.0)]
    measure = DenoisingError(model, sigmas, weight, micro_batch=3)
    x0, rows = measure.encode(images), Rows(np.arange(3), np.arange(3), np.array([0, 3, -1]))
    (_, found), *more = measure(x0, images, rows)
    assert not more and found.dtype == torch.float32
    model.double()
    for i, sigma in enumerate(sigmas):
        clean = x0[i : i + 1].double()
        eps = measure.noise(images[i : i + 1], i).double()
        x0_hat = model.denoise(clean + sigma * eps, sigma, {"label": torch.from_numpy(rows.label[i : i + 1])})
        factor = {"x0": 1.0, "eps": sigma**-2, "edm": (sigma**2 + 0.25) / (sigma * 0.5) ** 2}[weight]
        torch.testing.assert_close(found[i : i + 1].double(), factor * (x0_hat - clean) ** 2, rtol=2e-3, atol=1e-6)


@given(
    scores=st.lists(st.lists(st.floats(-5, 0), min_size=5, max_size=5), min_size=1, max_size=4),
    rounds=st.lists(st.integers(0, 3), min_size=5, max_size=5),
)
@settings(max_examples=80, deadline=None)
def test_what_is_dropped_first_ranks_last(scores: list[list[float]], rounds: list[int]) -> None:
    values, dropped_in = np.array(scores), np.tile([*rounds[:4], 3], (len(scores), 1))
    found = below(values, dropped_in)
    assert (found <= values).all() and (found[:, 4] == values[:, 4]).all()
    for i in range(5):
        for j in range(5):
            if dropped_in[0, i] < dropped_in[0, j]:
                assert (found[:, i] < found[:, j]).all()
            if dropped_in[0, i] == dropped_in[0, j]:
                assert np.allclose(found[:, i] - found[:, j], values[:, i] - values[:, j], atol=1e-9)


def test_ranks() -> None:
    assert ranks(np.array([[3.0, 1.0, 3.0, -np.inf]])).tolist() == [[0, 2, 1, 3]]


@pytest.mark.parametrize("levels", ["log", "training"])
def test_every_beginning_of_the_trials_covers_the_range(levels: str) -> None:
    oracle = Counting()
    whole = trial_sigmas(oracle, 100, levels, None)
    assert torch.equal(trial_sigmas(oracle, 7, levels, None), whole[:7])
    u = torch.from_numpy((0.5 + (5**0.5 - 1) / 2 * np.arange(100)) % 1)
    for n in (5, 25, 100):
        gaps = torch.cat([torch.zeros(1), u[:n].sort().values, torch.ones(1)]).diff()
        assert float(gaps.max()) < 2.7 / n
    if levels == "log":
        assert torch.allclose(whole.log(), u * np.log(80 / 0.002) + np.log(0.002))


def test_logits_of_what_the_codec_made_are_the_scores_of_the_images() -> None:
    """Also through the measures that know nothing but the contract."""
    model = tiny_unet(EDMNoise())
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    classifier = ZeroShotClassifier(model, rounds=((3, 4),), micro_batch=16)
    logits, scores = classifier.logits(PixelCodec().encode(images)), classifier.scores(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), scores * 64 * np.log(20 / 0.02), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        probabilities(classifier, images), classifier.probabilities(images), rtol=1e-4, atol=1e-6
    )


def test_a_model_of_one_class_and_one_of_many() -> None:
    images, _ = pictures(Counting(), 3)
    assert ZeroShotClassifier(Counting(k=1), rounds=((4, 1), (8, 1))).scores(images).shape == (3, 1)
    named = Counting(k=3)
    named.class_names = ["cat", "dog", "eel"]
    assert ZeroShotClassifier(named).class_names == ["cat", "dog", "eel"]


def test_mistakes() -> None:
    oracle = Counting()
    images, _ = pictures(oracle, 2)
    with pytest.raises(UserError, match="zero-shot: this model is unconditional"):
        ZeroShotClassifier(Counting(labels=False))
    for rounds in ((), ((0, 1),), ((5, 0),), ((5, 2), (5, 1)), ((5, 2), (9, 3))):
        with pytest.raises(UserError, match="rounds=.*: do not narrow down"):
            ZeroShotClassifier(oracle, rounds)
    for how, what in (
        ({"levels": "logg"}, "levels=logg: no such levels; did you mean 'log'"),
        ({"weight": "epsilon"}, "weight=epsilon: no such weight"),
        ({"micro_batch": 0}, "micro_batch=0"),
        ({"sigma_range": (0.1, 90.0)}, r"sigma=\S+: outside \[0.002, 80\]"),
        ({"sigma_range": (1.0, 0.1)}, "sigma_range=1, 0.1: not a range"),
        ({"levels": "training", "sigma_range": (0.1, 1.0)}, "sigma_range: levels=training has its own"),
    ):
        with pytest.raises(UserError, match=what):
            ZeroShotClassifier(oracle, **how)  # type: ignore[arg-type]
    classifier = ZeroShotClassifier(oracle, rounds=((2, 1),))
    with pytest.raises(UserError, match="sigma: this classifier makes its own noise"):
        classifier.logits(PixelCodec().encode(images), 0.5)
    with pytest.raises(UserError, match=r"x0: of shape \(2, 1, 4, 2\); the model knows \(1, 4, 4\)"):
        classifier.logits(PixelCodec().encode(images)[..., :2], 0.0)
    with pytest.raises(UserError, match="images: none"):
        classifier.scores(images[:0])
    with pytest.raises(UserError, match=r"images: torch.float32 of shape .*; expected uint8"):
        classifier.scores(images.float())
    with pytest.raises(UserError, match="images: become 1 x 4 x 2, the model knows 1 x 4 x 4"):
        classifier.scores(images[..., :2])
