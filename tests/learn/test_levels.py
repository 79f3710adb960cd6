"""At which noise levels a denoiser is trained, and the losses with a learned variance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from twofold import networks, reverse
from twofold.denoiser import NetworkDenoiser
from twofold.draws import ImageDraws
from twofold.errors import UserError
from twofold.learn.batches import Batch
from twofold.learn.objectives import objective
from twofold.learn.objectives.levels import EVENLY, REMEMBERED, Importance, levels
from twofold.noise import family
from twofold.settings.network import UNetSettings
from twofold.settings.noise import EDMNoise, FlowNoise, VPNoise
from twofold.settings.train import Denoising, TrainSettings

from .common import TINY

U = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


@pytest.mark.parametrize("noise", [VPNoise(), EDMNoise(), FlowNoise()], ids=lambda noise: noise.kind)
def test_the_family_s_own_levels_are_the_default(noise: Any) -> None:
    known = family(noise)
    sigma, weight = levels(known, Denoising())(U)
    assert torch.equal(sigma, known.training_sigma(U)) and bool((weight == 1).all())


def test_uniform_levels() -> None:
    sigma, _ = levels(family(EDMNoise()), Denoising(levels="uniform"))(U)
    low, high = np.log(0.002), np.log(80)
    assert stats.kstest(np.log(sigma.numpy()), stats.uniform(low, high - low).cdf).statistic < 1e-3
    sigma, _ = levels(family(FlowNoise()), Denoising(levels="uniform"))(U)
    t = sigma / (1 + sigma)
    assert stats.kstest(t.numpy(), stats.uniform(1e-3, 0.998).cdf).statistic < 1e-3


@pytest.mark.parametrize("noise", [VPNoise(), EDMNoise(), FlowNoise()], ids=lambda noise: noise.kind)
def test_log_normal_levels_of_any_family(noise: Any) -> None:
    known = family(noise)
    sigma, weight = levels(known, Denoising(levels="log_normal", level_mean=-0.5, level_std=0.8))(U)
    assert stats.kstest(np.log(sigma.numpy()), stats.norm(-0.5, 0.8).cdf).statistic < 2e-3
    assert bool((weight == 1).all())
    known.check(sigma)
    extreme, _ = levels(known, Denoising(levels="log_normal", level_std=50))(U)
    known.check(extreme)  # clamped to what the family knows


@pytest.mark.parametrize("noise", [VPNoise(steps=40), EDMNoise()], ids=lambda noise: noise.kind)
def test_importance_draws_by_the_root_of_the_second_moment(noise: Any) -> None:
    known = family(noise)
    sampler = levels(known, Denoising(levels="importance"))
    assert isinstance(sampler, Importance)
    plain, _ = sampler(U)
    assert torch.allclose(plain, known.training_sigma(U))  # nothing was seen yet
    size = torch.linspace(0.1, 3, sampler.bins, dtype=torch.float64)
    for k in range(REMEMBERED + 3):  # the first three are forgotten again
        middle = sampler.begin + sampler.share / 2
        sampler.observe(middle, size * (100 if k < 3 else 1) * sampler(middle)[1])
        if k < REMEMBERED - 1:
            assert torch.equal(sampler.share, torch.full_like(size, 1 / sampler.bins))
    expected = (1 - EVENLY) * size / size.sum() + EVENLY / sampler.bins
    assert torch.allclose(sampler.share, expected, rtol=1e-9)


def test_importance_does_not_change_the_expected_loss() -> None:
    known = family(EDMNoise())
    sampler = Importance(known)
    sampler.losses += torch.linspace(0.1, 3, sampler.bins, dtype=torch.float64)[:, None]
    sampler.seen += REMEMBERED
    sampler._shares()
    sigma, weight = sampler(U)
    assert abs(float(weight.mean()) - 1) < 1e-3
    assert abs(float((weight * sigma.log()).mean() - known.training_sigma(U).log().mean())) < 5e-3
    assert float(sigma.log().mean()) > float(known.training_sigma(U).log().mean()) + 0.3  # and yet it draws others


def test_importance_remembers() -> None:
    first, second = Importance(family(EDMNoise())), Importance(family(EDMNoise()))
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        u = torch.rand(100, generator=generator, dtype=torch.float64)
        first.observe(u, 1 + u)
    second.remember(first.memory())
    assert torch.equal(first(U)[0], second(U)[0]) and torch.equal(first.share, second.share)
    assert not torch.equal(first.share, torch.full_like(first.share, 1 / first.bins))


def _objective(loss: str, steps: int = 50, seed: int = 0, **settings: Any) -> tuple[Any, Batch]:
    torch.manual_seed(1)
    network = UNetSettings(
        channels=8, multipliers=(1, 2), blocks=1, attention=(), classes=0, learned_variance=loss != "mse"
    )
    shape = (1, 8, 8)
    denoiser = NetworkDenoiser(networks.build(network, shape), family(VPNoise(steps=steps)), shape)
    made = objective(denoiser, Denoising(loss=loss, **settings), seed).train()
    draws, n = ImageDraws("train"), 6
    uniforms = torch.tensor([[draws(seed, i).random(), 0.5, 0.5] for i in range(n)], dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    noise = torch.randn((n, *shape), generator=generator)
    return made, Batch(images, torch.full((n,), -1), uniforms, noise)


def test_hybrid_is_both_and_its_bound_trains_the_variance_alone() -> None:
    hybrid, batch = _objective("hybrid")
    network = hybrid.network
    loss = hybrid(batch)
    loss.sum().backward()
    gradient = network.out.weight.grad.clone()
    network.zero_grad()
    hybrid.settings = hybrid.settings.model_copy(update={"loss": "mse"})
    plain = hybrid(batch)
    plain.sum().backward()
    assert torch.allclose(gradient[:1], network.out.weight.grad[:1], rtol=1e-4, atol=1e-6)
    assert float(gradient[1:].abs().max()) > 0 and float(network.out.weight.grad[1:].abs().max()) == 0
    hybrid.settings = hybrid.settings.model_copy(update={"loss": "vlb"})
    bound = hybrid(batch)
    assert torch.allclose(loss, plain + 1e-3 * bound, rtol=1e-5)
    network.zero_grad()
    bound.sum().backward()
    assert float(network.out.weight.grad[:1].abs().max()) > 0


def test_one_forward_gives_both_losses() -> None:
    hybrid, batch = _objective("hybrid")
    calls = []
    hybrid.network.register_forward_hook(lambda *_: calls.append(1))
    hybrid(batch)
    assert len(calls) == 1


def test_the_bound_is_what_the_reverse_step_says() -> None:
    made, batch = _objective("vlb")
    loss = made(batch)
    denoiser = made.denoiser
    x0 = denoiser.codec.encode(batch.images)
    sigma = denoiser.family.training_sigma(batch.uniforms[:, 0])
    x0_hat, v = denoiser.denoise_and_variance(x0 + sigma.float().view(-1, 1, 1, 1) * batch.noise, sigma)
    bits = reverse.bits(denoiser.family, x0, x0_hat - x0, v, sigma)
    assert torch.allclose(loss, 50 * bits, rtol=2e-3)


def test_observing_undoes_the_weights() -> None:
    made, batch = _objective("mse", levels="importance")
    assert made.learns_levels
    made.levels.losses += torch.linspace(0.1, 3, 50, dtype=torch.float64)[:, None]
    made.levels.seen += REMEMBERED
    made.levels._shares()
    sigma, weight = made.levels(batch.uniforms[:, 0])
    losses = made(batch).detach().double()
    bins = made.denoiser.family.t(sigma).long()
    made.observe(0, losses)
    for i in range(len(losses)):
        if int((bins == bins[i]).sum()) == 1:
            assert float(made.levels.losses[bins[i], 0]) == pytest.approx(float(losses[i] / weight[i]))
    assert made.memory().keys() == {"levels.losses", "levels.seen"}
    made.eval()
    held_out, _ = made._levels(batch.uniforms[:, 0])
    assert torch.equal(held_out, made.denoiser.family.training_sigma(batch.uniforms[:, 0]))


@pytest.mark.parametrize(
    ("network", "noise", "loss", "levels", "words"),
    [
        ({"learned_variance": True}, {"kind": "vp"}, "mse", "family", "use hybrid or vlb"),
        ({}, {"kind": "vp"}, "hybrid", "family", "network.learned_variance=true"),
        ({"learned_variance": True}, {"kind": "edm"}, "hybrid", "family", "noise.kind=vp"),
        ({"learned_variance": True}, {"kind": "vp", "table": "continuous"}, "vlb", "family", "discrete table"),
        ({"learned_variance": True}, {"kind": "vp"}, "vlb", "log_normal", "between them"),
    ],
)
def test_settings_that_do_not_fit(network: Any, noise: Any, loss: str, levels: str, words: str) -> None:
    given = {
        **TINY,
        "network": {**TINY["network"], **network},
        "noise": noise,
        "objective": {"kind": "denoising", "loss": loss, "levels": levels},
    }
    with pytest.raises(ValidationError, match=words):
        TrainSettings.model_validate(given)


def test_a_network_without_a_variance_is_refused() -> None:
    made, _ = _objective("mse")
    with pytest.raises(UserError, match="learned_variance=true"):
        objective(made.denoiser, Denoising(loss="hybrid"))
