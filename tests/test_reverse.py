"""Reverse steps: bounds of the variance, and the bits they cost, against closed forms, SciPy and diffusers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from twofold import reverse
from twofold.errors import UserError
from twofold.noise import alpha_bar, family
from twofold.settings.noise import EDMNoise, VPNoise

TABLES = ("linear", "cosine", "joint", "scaled_linear")


@pytest.mark.parametrize("table", TABLES)
def test_bounds_are_the_published_ones(table: str) -> None:
    """beta and beta~ of Ho et al., in units of x_{t-1} divided by sqrt(abar_{t-1})."""
    settings = VPNoise(table=table)
    vp, abar = family(settings), alpha_bar(settings)
    before = np.append(1.0, abar[:-1])
    beta = 1 - abar / before
    posterior = beta * (1 - before) / (1 - abar)
    posterior[0] = posterior[1]  # clipped, as guided-diffusion does
    step = reverse.table_step(vp, vp.sigma(torch.arange(1000)))
    assert np.allclose(step.high.numpy() * before, beta, rtol=1e-9)
    assert np.allclose(step.low.numpy() * before, posterior, rtol=1e-9)
    assert float(step.below[0]) == 0
    assert torch.allclose(step.below[1:], vp.sigma(torch.arange(999)), rtol=1e-12)


def test_the_bounds_meet_the_ones_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(variance_type="learned_range")
    vp = family(VPNoise())
    for t in (1, 10, 500, 999):
        v = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)
        theirs = float(torch.exp(scheduler._get_variance(t, predicted_variance=2 * v - 1)).squeeze())
        step = reverse.table_step(vp, vp.sigma(torch.tensor([t])))
        ours = float(reverse.between(v, step.low, step.high)) * alpha_bar(VPNoise())[t - 1]
        assert math.isclose(ours, theirs, rel_tol=1e-3)  # theirs is a difference of float32 numbers


@given(s=st.floats(1e-3, 100), share=st.floats(1e-3, 0.999))
def test_the_lower_bound_is_the_lower_one(s: float, share: float) -> None:
    high, low = torch.tensor([s], dtype=torch.float64), torch.tensor([s * share], dtype=torch.float64)
    assert 0 < float(reverse.small(high, low)) <= float(reverse.large(high, low)) * (1 + 1e-12)
    v = torch.tensor([[[[0.0, 1.0]]]], dtype=torch.float64)
    ends = reverse.between(v, reverse.small(high, low), reverse.large(high, low))
    assert torch.allclose(ends[0, 0, 0], torch.cat([reverse.small(high, low), reverse.large(high, low)]), rtol=1e-12)


def test_a_step_that_is_right_costs_nothing() -> None:
    vp = family(VPNoise())
    sigma = vp.sigma(torch.tensor([1, 400, 999]))
    x0 = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    assert float(reverse.bits(vp, x0, torch.zeros_like(x0), torch.zeros_like(x0), sigma).abs().max()) < 1e-12


def test_bits_of_a_step_are_the_divergence_of_two_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    vp = family(VPNoise())
    sigma = vp.sigma(torch.tensor([1, 7, 400, 999]))
    x0 = torch.rand((4, 1, 2, 2), generator=generator, dtype=torch.float64) * 2 - 1
    error = torch.randn(x0.shape, generator=generator, dtype=torch.float64) * 0.1
    v = torch.rand(x0.shape, generator=generator, dtype=torch.float64)
    x = x0 + sigma.view(-1, 1, 1, 1) * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    step = reverse.table_step(vp, sigma)
    ratio = ((step.below / sigma) ** 2).view(-1, 1, 1, 1)
    true = torch.distributions.Normal(x0 + ratio * (x - x0), step.low.sqrt().view(-1, 1, 1, 1))
    guess = x0 + error
    model = torch.distributions.Normal(guess + ratio * (x - guess), reverse.between(v, step.low, step.high).sqrt())
    expected = torch.distributions.kl_divergence(true, model).flatten(1).mean(1) / math.log(2)
    assert torch.allclose(reverse.bits(vp, x0, error, v, sigma), expected, rtol=1e-9)


def test_the_last_step_counts_the_level_of_the_pixel() -> None:
    """Against SciPy, tails included."""
    levels = torch.arange(256, dtype=torch.float64) * reverse.LEVEL - 1
    for mean, std in ((0.3, 0.2), (-1.0, 0.01), (0.9, 2.0)):
        ours = reverse.log_level_probability(levels, torch.tensor(mean), torch.tensor(std)).exp().numpy()
        edges = np.concatenate([[-np.inf], levels.numpy()[:-1] + reverse.LEVEL / 2, [np.inf]])
        theirs = np.where(
            edges[:-1] > mean,
            norm.sf(edges[:-1], mean, std) - norm.sf(edges[1:], mean, std),
            norm.cdf(edges[1:], mean, std) - norm.cdf(edges[:-1], mean, std),
        )
        assert np.allclose(ours, theirs.clip(reverse.SURE), rtol=1e-7)
        assert abs(theirs.sum() - 1) < 1e-12


def test_bits_of_the_last_step() -> None:
    vp = family(VPNoise())
    sigma = vp.sigma(torch.tensor([0]))
    x0 = torch.full((1, 1, 1, 1), -1 + 100 * reverse.LEVEL, dtype=torch.float64)
    step = reverse.table_step(vp, sigma)
    std = math.sqrt(math.exp(0.25 * math.log(float(step.high)) + 0.75 * math.log(float(step.low))))
    found = reverse.bits(vp, x0, torch.full_like(x0, 0.01), torch.full_like(x0, 0.25), sigma)
    at = float(x0)
    chance = norm.cdf(at + reverse.LEVEL / 2, at + 0.01, std) - norm.cdf(at - reverse.LEVEL / 2, at + 0.01, std)
    assert math.isclose(float(found), -math.log2(chance), rel_tol=1e-9)


def test_families_without_a_table_are_refused() -> None:
    for settings in (EDMNoise(), VPNoise(table="continuous")):
        with pytest.raises(UserError, match="table"):
            reverse.table_family(family(settings))


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.2), (-1.0, 0.01), (0.9, 2.0), (0.0, 0.004)])
def test_levels_far_out_cost_what_they_cost(mean: float, std: float) -> None:
    """Against SciPy in log space, where a probability itself would be 0."""
    levels = torch.arange(256, dtype=torch.float64) * reverse.LEVEL - 1
    guess = torch.tensor([mean, std], dtype=torch.float64)
    ours = reverse.log_level_probability(levels, *guess, least=0).numpy()
    low, high = (levels.numpy() - reverse.LEVEL / 2 - mean) / std, (levels.numpy() + reverse.LEVEL / 2 - mean) / std
    low[0], high[-1] = -np.inf, np.inf
    far, near = np.where(low > 0, -low, high), np.where(low > 0, -high, low)
    expected = norm.logcdf(far) + np.log1p(-np.exp(norm.logcdf(near) - norm.logcdf(far)))
    assert np.allclose(ours, expected, rtol=1e-9)
    assert abs(np.exp(ours).sum() - 1) < 1e-9
    with_floor = reverse.log_level_probability(levels, *guess).numpy()
    assert np.allclose(with_floor, np.maximum(ours, math.log(reverse.SURE)), rtol=1e-7)


def test_a_bound_rounds_nothing_up() -> None:
    vp = family(VPNoise())
    x0 = torch.zeros(1, 1, 1, 1, dtype=torch.float64) - 1 + 100 * reverse.LEVEL
    step, far = reverse.table_step(vp, vp.sigma(torch.tensor([0]))), torch.full_like(x0, 0.5)
    v = torch.zeros_like(x0)
    in_a_loss, in_a_bound = (reverse.step_bits(step, x0, far, v, least) for least in (reverse.SURE, 0.0))
    assert float(in_a_loss) == pytest.approx(-math.log2(reverse.SURE))
    edge = (0.5 - reverse.LEVEL / 2) / float(step.low.sqrt())
    assert float(in_a_bound) == pytest.approx(-norm.logsf(edge) / math.log(2), rel=1e-6)
