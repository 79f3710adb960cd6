"""The parts of the loop against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from twofold import noise as theory
from twofold.data.augment import shifted
from twofold.denoiser import NetworkDenoiser
from twofold.learn.batches import Batch
from twofold.learn.ema import Average, decay
from twofold.learn.objectives.denoising import DenoisingObjective
from twofold.learn.objectives.supervised import SupervisedObjective
from twofold.learn.optimise import (
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
)
from twofold.recognize.classifier import NetworkClassifier
from twofold.settings.noise import EDMNoise, FlowNoise, VPNoise
from twofold.settings.train import Denoising, LoopSettings, Supervised


@given(st.integers(1, 4096), st.integers(1, 10**6))
def test_ema_halves_over_its_half_life_whatever_the_batch(batch: int, halflife: int) -> None:
    steps = 1000
    remaining = decay(batch, 0, halflife, None) ** steps
    assert math.isclose(remaining, 0.5 ** (steps * batch / halflife), rel_tol=1e-9)


def test_ema_rampup_shortens_the_half_life_early() -> None:
    assert decay(100, 1000, 10**6, 0.05) == 0.5 ** (100 / 50)
    assert decay(100, 10**9, 10**6, 0.05) == 0.5 ** (100 / 10**6)
    assert decay(100, 1000, 0, 0.05) == 0.0  # no averaging: the average is the weights


def test_average_follows_its_recursion() -> None:
    network = nn.Linear(3, 2)
    average = Average(network)
    expected = network.weight.detach().clone()
    for _ in range(3):
        with torch.no_grad():
            network.weight.add_(1.0)
        average.update(0.9)
        expected = 0.9 * expected + 0.1 * network.weight.detach()
    assert torch.allclose(average.tensors["weight"], expected)


def test_learning_rates_of_published_recipes() -> None:
    """In steps (RepFusion), and as mmsegmentation's poly: power 0.9, at least 1e-4."""
    stepped = LoopSettings(n_images=1000, batch_size=10, lr=0.1, schedule="step", step_images=(500, 750))
    found = [learning_rate(stepped, n) for n in (0, 490, 500, 749, 750, 999)]
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    poly = LoopSettings(n_images=1000, batch_size=10, lr=0.005, schedule="poly")
    for n in (0, 250, 1000):
        assert learning_rate(poly, n) == pytest.approx((0.005 - 1e-4) * (1 - n / 1000) ** 0.9 + 1e-4)
    for wrong in ({"schedule": "step"}, {"step_images": (5,)}, {"schedule": "step", "step_images": (7, 5)}):
        with pytest.raises(ValueError):
            LoopSettings(**wrong)


def test_learning_rate() -> None:
    flat = LoopSettings(lr=1.0, warmup_images=100, batch_size=10, n_images=1000)
    rates = [learning_rate(flat, n) for n in range(0, 1000, 10)]
    assert rates[0] == pytest.approx(10 / 110) and rates[10:] == [1.0] * 90
    assert all(b > a for a, b in pairwise(rates[:11]))
    cosine = LoopSettings(lr=1.0, schedule="cosine", batch_size=10, n_images=1000)
    assert learning_rate(cosine, 500) == pytest.approx(0.5) and learning_rate(cosine, 1000) == pytest.approx(0.0)


def test_optimizer_state_round_trip_keeps_memory_format() -> None:
    def made():  # type: ignore[no-untyped-def]
        torch.manual_seed(0)
        network = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        return network, make_optimizer(network, LoopSettings())

    def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        network(torch.ones(2, 4, 5, 5)).square().mean().backward()
        optimizer.step()

    one, first = made()
    step(one, first)
    other, second = made()
    other.load_state_dict(one.state_dict())
    saved = {name: value.contiguous() for name, value in optimizer_tensors(first, one).items()}
    load_optimizer_tensors(second, other, saved)
    assert second.state[other.weight]["exp_avg"].stride() == other.weight.stride()
    step(one, first)
    step(other, second)
    assert torch.equal(one.weight, other.weight)


class Exact(nn.Module):
    """A network that returns exactly what the objective wants, told the clean image beforehand."""

    layers: ClassVar[dict] = {}

    def __init__(self) -> None:
        super().__init__()
        self.wanted = torch.zeros(())

    def forward(self, x, c_noise, cond=None):  # type: ignore[no-untyped-def]
        self.cond = cond
        return self.wanted


TABLES = [VPNoise(table=table) for table in ("joint", "cosine", "scaled_linear", "continuous")]
FAMILIES = [*TABLES, VPNoise(), VPNoise(predicts="v"), VPNoise(predicts="x0"), EDMNoise(), FlowNoise()]


def batch_of(n: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    uniforms = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    return Batch(images, torch.arange(n) % 3, uniforms, torch.randn(n, 1, 4, 4, generator=generator))


@pytest.mark.parametrize(
    "settings",
    FAMILIES,
    ids=str,
)
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_denoising_loss(settings, gamma) -> None:  # type: ignore[no-untyped-def]
    """0 for a network that is right; its weighted squared error, by hand, for one that says 0."""
    family, network, batch = theory.family(settings), Exact(), batch_of(6)
    objective = DenoisingObjective(NetworkDenoiser(network, family, (1, 4, 4)), Denoising(min_snr_gamma=gamma))
    x0 = batch.images.float() / 127.5 - 1
    sigma = family.training_sigma(batch.uniforms[:, 0])
    network.wanted = family.target(x0, batch.noise, sigma)
    assert objective(batch).abs().max() == 0
    # a network that says 0 has x0_hat = c_skip x; in x0 space the error is weighted by weight / c_out^2
    network.wanted = torch.zeros_like(x0)
    c = family.coefficients(sigma)
    x0_hat = theory.expand(c.c_skip, x0) * theory.add(x0, batch.noise, sigma)
    in_x0 = (x0_hat - x0).square().flatten(1).mean(1).double()
    weight = 1 / c.c_out**2 if gamma is None else (1 / sigma**2).clamp(max=gamma)
    assert torch.allclose(objective(batch).double(), weight * in_x0, rtol=2e-3)


@pytest.mark.parametrize("settings", FAMILIES, ids=str)
def test_every_family_can_be_made_beside_a_network_on_the_meta_device(settings) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        assert theory.family(settings).sigma_range[0] > 0


def test_flops_tell_small_networks_from_large_ones() -> None:
    """Against torch's own counter, on a network without attention outside its layers."""
    from torch.utils.flop_counter import FlopCounterMode

    from twofold.learn.fastest import step_flops
    from twofold.networks import build
    from twofold.settings.network import ConvNetSettings

    model = NetworkClassifier(build(ConvNetSettings(channels=8), (1, 8, 8), 3), ["a", "b", "c"], (1, 8, 8))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.network(torch.zeros(1, 1, 8, 8))
    assert step_flops(model, (1, 8, 8)) == 3 * counter.get_total_flops()


def test_label_dropout_follows_the_image() -> None:
    network, batch = Exact(), batch_of(6)
    denoiser = NetworkDenoiser(network, theory.family(EDMNoise()), (1, 4, 4), classes=3)
    DenoisingObjective(denoiser, Denoising(label_dropout=0.5))(batch)
    dropped = batch.uniforms[:, 1] < 0.5
    assert torch.equal(network.cond["label"], torch.where(dropped, -1, batch.label)) and dropped.any()


def test_supervised_loss_masks_what_has_no_label() -> None:
    classifier = NetworkClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), ["a", "b", "c"], (1, 4, 4))
    objective = SupervisedObjective(classifier, Supervised())
    batch = batch_of(6)
    batch.uniforms = torch.rand(6, 5, dtype=torch.float64)
    batch.label[2:] = -1
    losses = objective(batch)
    assert (losses[2:] == 0).all() and (losses[:2] > 0).all() and objective.counted(batch.label) == 2
    logits = classifier.logits(batch.images.float() / 127.5 - 1)
    assert torch.allclose(losses[:2], nn.functional.cross_entropy(logits[:2], batch.label[:2], reduction="none"))
    with pytest.raises(ValueError, match="clean"):
        classifier.logits(torch.zeros(1, 1, 4, 4), 0.1)


def test_shifted_moves_whole_pixels() -> None:
    x0 = torch.arange(32.0).reshape(2, 1, 4, 4)
    centre = torch.full((2, 2), 0.5, dtype=torch.float64)
    assert torch.equal(shifted(x0, centre, 1), x0)
    least = torch.zeros(2, 2, dtype=torch.float64)  # reads from one row up and one column left
    moved = shifted(x0, least, 1)
    assert torch.equal(moved[:, :, 1:, 1:], x0[:, :, :-1, :-1]) and torch.equal(moved[:, :, 0, 1:], x0[:, :, 0, :-1])
