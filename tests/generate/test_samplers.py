"""Every sampler of the dictionary against exact solutions: order, moments, bookkeeping."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofold.errors import UserError
from twofold.generate.samplers import SAMPLERS, Denoise, Step, fast_orders, final, resolve
from twofold.noise import grid, karras_grid, log_grid
from twofold.oracle import MixtureDenoiser

SHAPE = (1, 3, 3)
DETERMINISTIC = [name for name, sampler in SAMPLERS.items() if sampler.deterministic]
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def gaussian(std: float = 0.4) -> MixtureDenoiser:
    mean = torch.linspace(-1, 1, 9, dtype=torch.float64).view(1, *SHAPE)
    return MixtureDenoiser(mean, [std], [1.0])


def mixture() -> MixtureDenoiser:
    means = torch.randn((4, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MixtureDenoiser(means, [0.2, 0.3, 0.4, 0.5], [1.0, 2.0, 1.0, 3.0])


def normal(n: int, seed: int = 0) -> Tensor:
    return torch.randn((n, *SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise_source(n: int, seed: int = 1) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn((n, *SHAPE), generator=generator, dtype=torch.float64)


def fitted_order(steps: tuple[int, ...], errors: list[float]) -> float:
    """Slope of log error over log step, by least squares."""
    y = torch.tensor(errors, dtype=torch.float64).log()
    x = torch.tensor(steps, dtype=torch.float64).log()
    return float(-((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


# -- convergence -------------------------------------------------------------------------------------------------

# Steps of order 3 span three intervals and the rest is a step of a lower order, so that what is left of a division by
# three matters: with 2 the last step is of order 2, whose error of one step is of order 3.
THIRDS = ("dpm3", "dpm_fast", "dpmpp3s", "dpmpp_fast")
FROM_HISTORY = ("dpmpp2m", "dpmpp3m", "unipc", "plms", "lms")
CLOSE_TO_EXACT = {1: 0.02, 2: 3e-4, 3: 3e-6, 4: 1e-6}  # at the most steps


def resolutions(name: str) -> tuple[int, ...]:
    return (263, 527) if name in THIRDS else (32, 64, 128, 256)


def started(sigmas: Tensor) -> Tensor:
    """With two more levels h^2 apart in ln sigma at its start, h being its own first step.

    The first steps of a multistep method have no history and are of lower order; so short, they take nothing away.
    """
    top, h = sigmas[0].log(), (sigmas[0] / sigmas[1]).log()
    return torch.cat([sigmas[:1], torch.stack([top - h**2, top - 2 * h**2]).exp(), sigmas[1:]])


def errors_of(
    name: str, denoise: Denoise, x: Tensor, exact: Tensor, grids: list[Tensor], **options: Any
) -> list[float]:
    ends = [final(SAMPLERS[name].function(denoise, x, sigmas, **options)) for sigmas in grids]
    return [float((end - exact).square().mean().sqrt()) for end in ends]


def grids_of(name: str, spacing: Callable[..., Tensor], high: float) -> list[Tensor]:
    """Down to a level above 0, so that no step is truncated."""
    grids = [spacing(steps + 1, 0.05, high)[:-1] for steps in resolutions(name)]
    return [started(sigmas) for sigmas in grids] if name in FROM_HISTORY else grids


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence_on_a_gaussian(name: str) -> None:
    """Whose exact solution is known; on steps of uneven length. On even ones: the mixture below."""
    oracle, order = gaussian(), SAMPLERS[name].order
    x = 20 * normal(4)
    errors = errors_of(name, oracle.denoise, x, oracle.exact(x, 20.0, 0.05), grids_of(name, karras_grid, 20.0))
    assert fitted_order(resolutions(name), errors) == pytest.approx(order, abs=0.12 if order < 3 else 0.25)
    assert errors[-1] < CLOSE_TO_EXACT[order]


@pytest.fixture(scope="module")
def solution() -> tuple[Tensor, Tensor]:
    """A start at sigma 10 and where 1,500 steps of fourth order take it at 0.05; Heun's method agrees with it."""
    x, sigmas = 10 * normal(4), log_grid(1_501, 0.05, 10.0)[:-1]
    exact = final(SAMPLERS["unipc"].function(mixture().denoise, x, started(sigmas), order=3))
    heun = final(SAMPLERS["heun"].function(mixture().denoise, x, sigmas[::2]))
    torch.testing.assert_close(exact, heun, rtol=0, atol=2e-5)
    return x, exact


CASES = {**{name: {} for name in DETERMINISTIC}, "unipc bh1": {"variant": "bh1"}, "lms 2": {"order": 2}}
ORDERS = {"lms 2": 2}


@pytest.mark.parametrize("case", CASES)
def test_order_of_convergence_on_a_mixture(case: str, solution: tuple[Tensor, Tensor]) -> None:
    name, (x, exact) = case.split()[0], solution
    order = ORDERS.get(case, SAMPLERS[name].order)
    errors = errors_of(name, mixture().denoise, x, exact, grids_of(name, log_grid, 10.0), **CASES[case])
    assert fitted_order(resolutions(name), errors) == pytest.approx(order, abs=0.2)
    assert errors[-1] < CLOSE_TO_EXACT[order]


@pytest.mark.parametrize(("name", "options", "short", "long"), [("lms", {}, 4, 2.5), ("unipc", {"order": 3}, 4, 3.65)])
def test_a_long_first_step_lowers_the_order(
    name: str, options: dict[str, Any], short: float, long: float, solution: tuple[Tensor, Tensor]
) -> None:
    """Towards 2 after a step of Euler's, towards 3 after a corrected one."""
    x, exact = solution
    for shorten, order in ((started, short), (lambda sigmas: sigmas, long)):
        grids = [shorten(log_grid(n + 1, 0.05, 10.0)[:-1]) for n in (32, 64, 128, 256)]
        errors = errors_of(name, mixture().denoise, x, exact, grids, **options)
        assert fitted_order((32, 64, 128, 256), errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", ["dpm_fast", "dpmpp_fast"])
@pytest.mark.parametrize(("steps", "order"), [((264, 528), 2), ((265, 529), 2), ((263, 527), 3)])
def test_fast_is_as_good_as_its_last_step(
    name: str, steps: tuple[int, ...], order: int, solution: tuple[Tensor, Tensor]
) -> None:
    """Of first order where three divides or leaves one: second order overall, however many steps are of the third."""
    x, exact = solution
    errors = errors_of(name, mixture().denoise, x, exact, [log_grid(n + 1, 0.05, 10.0)[:-1] for n in steps])
    assert fitted_order(steps, errors) == pytest.approx(order, abs=0.15)


def test_orders_of_fast() -> None:
    """The published counts (Lu et al. 2022a)."""
    assert fast_orders(50) == [3] * 16 + [2]
    assert fast_orders(20) == [3] * 6 + [2]
    assert fast_orders(25) == [3] * 8 + [1]
    assert fast_orders(21) == [3] * 6 + [2, 1]
    assert [fast_orders(n) for n in (1, 2, 3, 4)] == [[1], [2], [2, 1], [3, 1]]
    for n in range(1, 100):
        assert sum(fast_orders(n)) == n
        assert len(fast_orders(n)) == n // 3 + 1


@pytest.mark.parametrize("steps", [*range(1, 8), 30, 31, 32])
def test_order_3_into_zero_is_fast(steps: int) -> None:
    oracle, x, sigmas = mixture(), 30 * normal(3), karras_grid(steps, 0.01, 30.0)
    for one, other in (("dpm3", "dpm_fast"), ("dpmpp3s", "dpmpp_fast")):
        a, b = (final(SAMPLERS[name].function(oracle.denoise, x, sigmas)) for name in (one, other))
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_last_step_into_zero_costs_no_more_than_it_must(name: str) -> None:
    """From sigma_min one Euler step leaves an error of the curvature: about |x - mean| sigma_min^2 / (2 std^2)."""
    oracle, sampler = gaussian(), SAMPLERS[name]
    for sigma_min in (0.04, 0.01):
        x = oracle.exact(20 * normal(4), 20.0, 3 * sigma_min)
        steps = 200  # so fine that what is left is the last step
        sigmas = log_grid(steps, sigma_min, 3 * sigma_min)
        end = final(sampler.function(oracle.denoise, x, sigmas))
        exact = oracle.exact(x, 3 * sigma_min, 0.0)
        bound = float((exact - oracle.means).abs().max()) * sigma_min**2 / (2 * 0.4**2)
        error = float((end - exact).abs().max())
        # linear multistep methods go into 0 with what they know of the slope, and do better
        assert error < bound if name in ("plms", "lms") else error == pytest.approx(bound, rel=0.1)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_default_steps_reach_the_exact_solution(name: str) -> None:
    """Of a Gaussian, over EDM's whole range of sigma: within 2 % of its spread for the default sampler, 6 % for all."""
    oracle, sampler = gaussian(), SAMPLERS[name]
    x = 80 * normal(64)
    end = final(sampler.function(oracle.denoise, x, grid(oracle.family, sampler.steps, sampler.grid)))
    error = float((end - oracle.exact(x, 80.0, 0.0)).square().mean().sqrt())
    assert error < (0.02 if name == "dpmpp2m" else 0.06) * 0.4


# -- stochastic samplers -----------------------------------------------------------------------------------------

STOCHASTIC = {  # those that are none of the others; single steps are compared with closed forms below
    "ddpm small": ("ddpm", {"variance": "small"}),
    "ddpm large": ("ddpm", {"variance": "large"}),
    "ddim eta 0.5": ("ddim", {"eta": 0.5}),
    "dpmpp2m_sde": ("dpmpp2m_sde", {}),
    "heun churn": ("heun", {"s_churn": 60.0, "s_min": 0.05, "s_max": 50.0}),
}


@pytest.mark.parametrize("case", STOCHASTIC)
def test_moments_of_stochastic_samples(case: str) -> None:
    name, options = STOCHASTIC[case]
    oracle, n, steps = gaussian(), 3_000, 300
    sigmas = log_grid(steps, 0.005, 80.0)
    x = final(SAMPLERS[name].function(oracle.denoise, 80 * normal(n), sigmas, noise_source(n), **options))
    centred = x - oracle.means
    count = centred.numel()
    assert ((x.mean(0) - oracle.means[0]).abs() < 5 * 0.4 / math.sqrt(n)).all()
    # standard error of a standard deviation, and 1.5 % for the discretisation of first-order methods
    tolerance = 5 * 0.4 / math.sqrt(2 * count) + (0.006 if SAMPLERS[name].order == 1 else 0)
    assert abs(float(centred.std()) - 0.4) < tolerance
    assert float((centred**4).mean() / centred.var() ** 2) == pytest.approx(3, abs=5 * math.sqrt(96 / count))


def with_share(oracle: MixtureDenoiser, share: float) -> Denoise:
    """As a network with a learned variance answers: x0_hat, and beside it the share of the large variance."""
    return lambda x, sigma: torch.cat([oracle.denoise(x, sigma), torch.full_like(x, share)], 1)


def gains(oracle: MixtureDenoiser, s: float, t: float, variance: str) -> tuple[float, float]:
    """One ancestral step on a centred Gaussian, from the densities themselves: x' = a x + sqrt(b) z."""
    shrink = float(oracle.stds[0]) ** 2 / (float(oracle.stds[0]) ** 2 + s**2)
    # q(x' | x, x0) is the product of N(x'; x0, t^2) and N(x; x', s^2 - t^2)
    precision = 1 / t**2 + 1 / (s**2 - t**2)
    mean = (shrink / t**2 + 1 / (s**2 - t**2)) / precision
    alpha = (1 + t**2) / (1 + s**2)
    small, large = 1 / precision, (1 - alpha) * (1 + t**2)
    return mean, {"small": small, "large": large, "learned": large**0.3 * small**0.7}[variance]


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_few_ancestral_steps_have_exactly_the_variance_of_the_chain(variance: str) -> None:
    """Five coarse steps, whose variance differs much between small and large, against its closed recursion."""
    oracle, n = gaussian(), 40_000
    sigmas = torch.tensor([5.0, 2.0, 1.0, 0.5, 0.2, 0.0], dtype=torch.float64)
    x = 5 * normal(n) + oracle.means
    denoise = with_share(oracle, 0.3) if variance == "learned" else oracle.denoise
    end = final(SAMPLERS["ddpm"].function(denoise, x, sigmas, noise_source(n), variance=variance))
    spread = 25.0
    for s, t in pairwise(sigmas[:-1].tolist()):
        a, b = gains(oracle, s, t, variance)
        spread = a**2 * spread + b
    spread *= (0.16 / (0.16 + 0.04)) ** 2  # the last step is the mean alone
    count = n * 9
    assert float((end - oracle.means).square().mean()) == pytest.approx(spread, rel=5 * math.sqrt(2 / count))


def test_ddpm_with_the_small_variance_is_ddim_with_eta_1() -> None:
    oracle, x, sigmas = mixture(), 30 * normal(5), karras_grid(12, 0.01, 30.0)
    one = final(SAMPLERS["ddpm"].function(oracle.denoise, x, sigmas, noise_source(5)))
    other = final(SAMPLERS["ddim"].function(oracle.denoise, x, sigmas, noise_source(5), eta=1.0))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_learned_variances_are_between_the_two_pixel_by_pixel() -> None:
    oracle, x, sigmas = mixture(), 30 * normal(5), karras_grid(12, 0.01, 30.0)

    def run(variance: str, denoise: Denoise) -> Tensor:
        return final(SAMPLERS["ddpm"].function(denoise, x, sigmas, noise_source(5), variance=variance))

    for share, variance in ((0.0, "small"), (1.0, "large")):
        expected = run(variance, oracle.denoise)
        torch.testing.assert_close(run("learned", with_share(oracle, share)), expected, rtol=1e-12, atol=1e-12)
    # on two levels nothing is fed back: a pixel's spread is its own
    share = torch.linspace(-0.1, 1.1, 9, dtype=torch.float64).view(1, *SHAPE)
    steps = SAMPLERS["ddpm"].function(
        lambda x, sigma: torch.cat([x * 0, share.expand_as(x)], 1),
        torch.zeros((1, *SHAPE), dtype=torch.float64),
        torch.tensor([3.0, 1.0], dtype=torch.float64),
        lambda: torch.ones((1, *SHAPE), dtype=torch.float64),
        variance="learned",
    )
    small, large = 1 * 8 / 9, 8 * 2 / 10
    found = list(steps)
    torch.testing.assert_close(found[-1].x, (large**share * small ** (1 - share)).sqrt())
    assert all(step.x0_hat.shape == step.x.shape for step in found)


def test_a_learned_variance_needs_a_network_that_has_one() -> None:
    with pytest.raises(ValueError, match="needs 2 channels from denoise, x0_hat and v, not 1"):
        final(SAMPLERS["ddpm"].function(lambda x, s: x, normal(1), karras_grid(3, 0.1, 1.0), None, variance="learned"))


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_euler_ancestral_is_ddpm_with_the_small_variance(eta: float) -> None:
    """With eta 1. And by k-diffusion's own rule, with any: down to sqrt(s'^2 - up^2), then up by noise."""
    oracle, x, sigmas = mixture(), 30 * normal(5), karras_grid(12, 0.01, 30.0)
    one = final(SAMPLERS["euler_ancestral"].function(oracle.denoise, x, sigmas, noise_source(5), eta=eta))
    if eta == 1:
        other = final(SAMPLERS["ddpm"].function(oracle.denoise, x, sigmas, noise_source(5)))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    draw, y = noise_source(5), x
    for s, t in pairwise(sigmas.tolist()):
        up = min(t, eta * (t**2 * (s**2 - t**2) / s**2) ** 0.5)
        slope = (y - oracle.denoise(y, torch.tensor(s, dtype=torch.float64))) / s
        y = y + slope * ((t**2 - up**2) ** 0.5 - s)
        y = y + draw() * up if t > 0 else y
    torch.testing.assert_close(one, y, rtol=1e-12, atol=1e-12)


def variance_after(steps: int, eta: float) -> float:
    """Of `dpmpp2m_sde` on centred Gaussian data of std 0.4 from 20 to 0.05, by the covariance of (x, last x0_hat)."""
    levels, covariance, last = log_grid(steps + 1, 0.05, 20.0)[:-1].tolist(), torch.zeros(2, 2), None
    covariance = covariance.double()
    covariance[0, 0] = 20.0**2 + 0.4**2
    for s, t in pairwise(levels):
        shrink, h = 0.16 / (0.16 + s**2), math.log(s / t)
        keep, r = math.exp(-(1 + eta) * h), 0.0 if last is None else 0.5 * h / last
        step = torch.tensor([[keep + (1 - keep) * (1 + r) * shrink, -(1 - keep) * r], [shrink, 0.0]]).double()
        covariance = step @ covariance @ step.T
        covariance[0, 0] += t**2 * (1 - math.exp(-2 * eta * h))
        last = h
    return float(covariance[0, 0])


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_weak_order_of_sde_dpmpp2m(eta: float) -> None:
    """The closed recursion of the variance converges with order 2, and is what the sampler does."""
    exact, steps = 0.4**2 + 0.05**2, (32, 64, 128, 256)
    errors = [abs(variance_after(n, eta) - exact) for n in steps]
    assert fitted_order(steps, errors) == pytest.approx(SAMPLERS["dpmpp2m_sde"].order, abs=0.05)
    oracle, n = gaussian(), 20_000
    x = math.sqrt(20.0**2 + 0.4**2) * normal(n) + oracle.means
    sigmas = log_grid(5, 0.05, 20.0)[:-1]  # four coarse steps
    end = final(SAMPLERS["dpmpp2m_sde"].function(oracle.denoise, x, sigmas, noise_source(n), eta=eta))
    tolerance = 5 * math.sqrt(2 / (9 * n))
    assert float((end - oracle.means).square().mean()) == pytest.approx(variance_after(4, eta), rel=tolerance)
    assert abs(variance_after(4, eta) / exact - 1) > 2 * tolerance  # so coarse that the recursion is what is tested


def test_sde_dpmpp2m_without_noise_is_dpmpp2m() -> None:
    oracle, x, sigmas = mixture(), 30 * normal(5), karras_grid(12, 0.01, 30.0)
    one = final(SAMPLERS["dpmpp2m_sde"].function(oracle.denoise, x, sigmas, eta=0.0))
    other = final(SAMPLERS["dpmpp2m"].function(oracle.denoise, x, sigmas))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_dpm_solver_1_is_ddim() -> None:
    oracle, x, sigmas = mixture(), 30 * normal(5), karras_grid(12, 0.01, 30.0)
    one, other = (final(SAMPLERS[name].function(oracle.denoise, x, sigmas)) for name in ("dpm1", "ddim"))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "data"), [("dpm_fast", False), ("dpmpp_fast", True)])
def test_steps_of_order_2_and_3_are_the_algorithms_of_the_papers(name: str, data: bool) -> None:
    """One step of each, in the papers' own variables: alpha = 1, h = lambda' - lambda, r1 and r2 of uneven nodes."""
    oracle, x = mixture(), 6.0 * normal(3)
    m = (lambda y, s: oracle.denoise(y, s)) if data else (lambda y, s: (y - oracle.denoise(y, s)) / s)

    def phi(h: float) -> tuple[float, float]:
        return (math.expm1(-h), math.expm1(-h) / h + 1) if data else (math.expm1(h), math.expm1(h) / h - 1)

    def go(y: Tensor, s: float, t: float, first: Tensor, change: Tensor | float = 0.0) -> Tensor:
        p1, p2 = phi(math.log(s / t))
        return t / s * y - p1 * first + p2 * change if data else y - t * p1 * first - t * p2 * change

    s, a, b, t = 6.0, 4.0, 2.5, 2.0
    r1, r2 = (math.log(s / node) / math.log(s / t) for node in (a, b))
    m0 = m(x, s)
    at_a = m(go(x, s, a, m0), a)
    at_b = m(go(x, s, b, m0, r2 / r1 * (at_a - m0)), b)
    third = go(x, s, t, m0, (at_b - m0) / r2)
    mid = m(go(x, s, a, m0), a)
    p1 = phi(math.log(s / t))[0]
    second = go(x, s, t, m0) - (1 if data else t) * p1 / (2 * r1) * (mid - m0)
    run = SAMPLERS[name].function
    found = list(run(oracle.denoise, x, torch.tensor([s, a, b, t, 1.0], dtype=torch.float64)))  # orders 3, 1
    torch.testing.assert_close(found[3].x, third, rtol=1e-12, atol=1e-12)
    found = list(run(oracle.denoise, x, torch.tensor([s, a, t], dtype=torch.float64)))
    torch.testing.assert_close(found[2].x, second, rtol=1e-12, atol=1e-12)


def test_linear_multistep_integrates_polynomials_in_sigma() -> None:
    """With a slope that is a cubic of sigma alone, order 4 is exact once it has its history; order 3 is not."""

    def slope(s: float) -> float:
        return 0.3 - 0.2 * s + 0.5 * s**2 - 0.1 * s**3

    def area(s: float) -> float:
        return 0.3 * s - 0.1 * s**2 + 0.5 / 3 * s**3 - 0.025 * s**4

    sigmas = torch.tensor([5.0, 4.2, 3.9, 3.0, 1.7, 1.5, 0.4, 0.0], dtype=torch.float64)
    for order, exact in ((4, True), (3, False)):
        found = list(
            SAMPLERS["lms"].function(lambda x, s: x - s * slope(float(s)), torch.zeros(1, *SHAPE), sigmas, order=order)
        )
        moved = [float(found[k + 1].x.mean() - found[k].x.mean()) for k in range(3, 7)]
        expected = [area(t) - area(s) for s, t in pairwise(sigmas[3:].tolist())]
        assert (moved == pytest.approx(expected, abs=1e-5)) is exact


@pytest.mark.parametrize("options", [{}, {"variant": "bh1"}, {"order": 3}, {"order": 3, "variant": "bh1"}])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_unipc_is_finite_into_zero(options: dict[str, Any], steps: int) -> None:
    end = final(SAMPLERS["unipc"].function(mixture().denoise, 30 * normal(5), log_grid(steps, 0.01, 30.0), **options))
    assert torch.isfinite(end).all()


def test_euler_is_ddim_with_eta_0() -> None:
    oracle, x, sigmas = mixture(), 30 * normal(5), karras_grid(12, 0.01, 30.0)
    one = final(SAMPLERS["euler"].function(oracle.denoise, x, sigmas))
    torch.testing.assert_close(one, final(SAMPLERS["ddim"].function(oracle.denoise, x, sigmas)), rtol=1e-12, atol=1e-12)


def test_churn_follows_algorithm_2_and_stays_below_the_first_level() -> None:
    """gamma = min(S_churn / N, sqrt 2 - 1) where S_min <= sigma <= S_max (Karras et al. 2022)."""
    oracle, levels = gaussian(), []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        levels.append(float(sigma))
        return oracle.denoise(x, sigma)

    sigmas = torch.tensor([10.0, 6.0, 4.0, 1.0, 0.1, 0.0], dtype=torch.float64)
    options = {"s_churn": 1.0, "s_min": 1.0, "s_max": 4.0, "s_noise": 1.003}
    final(SAMPLERS["heun"].function(denoise, 10 * normal(2), sigmas, noise_source(2), **options))
    assert levels == pytest.approx([10, 6, 6, 4, 4.8, 1, 1.2, 0.1, 0.1])  # both ends included
    levels.clear()
    final(SAMPLERS["heun"].function(denoise, 10 * normal(2), sigmas, noise_source(2), s_churn=100.0))
    root = 2**0.5
    assert levels == pytest.approx([10, 6, 6 * root, 4, 4 * root, 1, root, 0.1, 0.1 * root])


def test_noise_is_drawn_only_where_it_is_used() -> None:
    """One tensor for every stochastic step, none on the step into sigma 0, so that draw k belongs to step k."""
    sigmas = torch.tensor([10.0, 4.0, 1.0, 0.1, 0.0], dtype=torch.float64)
    for name, options, count in (
        ("ddpm", {}, 3),
        ("ddpm", {"variance": "large"}, 3),
        ("ddim", {"eta": 0.3}, 3),
        ("ddim", {}, 0),
        ("heun", {}, 0),
        ("heun", {"s_churn": 1.0, "s_max": 1.0}, 2),
        ("dpmpp2m", {}, 0),
        ("euler", {}, 0),
        ("ddpm", {"variance": "learned"}, 3),
        ("euler_ancestral", {}, 3),
        ("euler_ancestral", {"eta": 0.0}, 0),
        ("dpmpp2m_sde", {}, 3),
        ("dpmpp2m_sde", {"eta": 0.0}, 0),
        *((name, {}, 0) for name in DETERMINISTIC),
    ):
        drawn = []

        def noise(drawn: list[int] = drawn) -> Tensor:
            drawn.append(1)
            return normal(2)

        denoise = with_share(gaussian(), 0.5) if options.get("variance") == "learned" else gaussian().denoise
        final(SAMPLERS[name].function(denoise, 10 * normal(2), sigmas, noise, **options))
        assert len(drawn) == count


def test_churned_noise_has_the_promised_size() -> None:
    oracle, n = gaussian(), 20_000
    x = torch.zeros((n, *SHAPE), dtype=torch.float64)
    seen = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x)
        return oracle.denoise(x, sigma)

    sigmas = torch.tensor([9.0, 3.0, 0.0], dtype=torch.float64)
    steps = SAMPLERS["heun"].function(denoise, x, sigmas, noise_source(n), s_churn=0.5, s_noise=1.1, s_max=5.0)
    before = list(steps)[1].x
    added = seen[2] - before  # evaluations: at 9, at 3 (correction), at the raised 3.75
    expected = 1.1 * math.sqrt(3.75**2 - 3.0**2)
    assert float(added.std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * added.numel()))


# -- bookkeeping, over the whole dictionary ----------------------------------------------------------------------


@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_steps_evaluations_and_dtype(name: str, steps: int) -> None:
    oracle, sampler, calls = mixture(), SAMPLERS[name], []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.dtype == torch.float64
        assert sigma.ndim == 0
        calls.append(float(sigma))
        return oracle.denoise(x.float(), sigma)  # a network of float32 under a state of float64

    sigmas = karras_grid(steps, 0.01, 30.0)
    x = 30 * normal(3)
    start = x.clone()
    found = list(sampler.function(denoise, x, sigmas, noise_source(3)))
    assert len(calls) == sampler.evaluations(steps)
    assert [step.index for step in found] == list(range(steps + 1))
    assert [step.sigma for step in found] == sigmas.tolist()
    assert all(step.x.dtype == step.x0_hat.dtype == torch.float64 for step in found)
    assert torch.equal(x, start)  # nobody's tensors are written to
    assert found[0].x is x
    assert found[-1].x is found[-1].x0_hat
    if name not in ("plms", "lms") or steps == 1:
        torch.testing.assert_close(
            found[-1].x, found[-2].x0_hat, rtol=1e-12, atol=1e-12
        )  # a step into 0 ends in x0_hat


@every_sampler
def test_a_last_level_above_zero_ends_there(name: str) -> None:
    oracle, n = gaussian(), 1_500
    sigmas = log_grid(120, 0.5, 30.0)[:-1]
    found = list(SAMPLERS[name].function(oracle.denoise, 30 * normal(n), sigmas, noise_source(n)))
    last = found[-1]
    assert last.sigma == 0.5
    assert last.x is not last.x0_hat
    spread = float((last.x - oracle.means).std())
    assert spread == pytest.approx(math.sqrt(0.4**2 + 0.5**2), rel=0.03)


@every_sampler
def test_state_keeps_float32(name: str) -> None:
    oracle = mixture()
    x = (30 * normal(3)).float()
    low = final(SAMPLERS[name].function(oracle.denoise, x, karras_grid(8, 0.01, 30.0), noise_source(3)))
    high = final(SAMPLERS[name].function(oracle.denoise, x.double(), karras_grid(8, 0.01, 30.0), noise_source(3)))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), high, rtol=1e-3, atol=1e-3)


@every_sampler
@given(seed=st.integers(0, 1000), steps=st.integers(1, 6))
@settings(max_examples=10, deadline=None)
def test_rows_do_not_see_each_other(name: str, seed: int, steps: int) -> None:
    oracle, x, sigmas = mixture(), 30 * normal(4, seed), log_grid(steps, 0.01, 30.0)
    drawn = [normal(4, seed + 1 + k) for k in range(steps)]
    whole = iter(drawn)
    together = final(SAMPLERS[name].function(oracle.denoise, x, sigmas, lambda: next(whole)))
    rows = iter(drawn)
    alone = final(SAMPLERS[name].function(oracle.denoise, x[2:3], sigmas, lambda: next(rows)[2:3]))
    torch.testing.assert_close(together[2:3], alone, rtol=1e-12, atol=1e-12)


@every_sampler
def test_nothing_is_computed_before_it_is_asked_for(name: str) -> None:
    calls = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(1)
        return x

    steps = SAMPLERS[name].function(denoise, normal(1), karras_grid(5, 0.1, 1.0), noise_source(1))
    assert not calls
    first = next(iter(steps))
    assert isinstance(first, Step)
    assert len(calls) == 1


@every_sampler
def test_grids_that_do_not_descend_are_refused(name: str) -> None:
    for bad in ([1.0], [1.0, 1.0], [1.0, 2.0, 0.0], [1.0, -0.1], [1.0, 0.0, 0.0], [math.nan, 0.0]):
        with pytest.raises(ValueError, match="sigmas must descend"):
            final(SAMPLERS[name].function(lambda x, s: x, normal(1), torch.tensor(bad), noise_source(1)))


def test_stochastic_samplers_say_when_noise_is_missing() -> None:
    for name, options in (("ddpm", {}), ("ddim", {"eta": 0.5}), ("heun", {"s_churn": 5.0}), ("dpmpp2m_sde", {})):
        with pytest.raises(ValueError, match="give it noise"):
            final(SAMPLERS[name].function(lambda x, s: x, normal(1), torch.tensor([2.0, 1.0, 0.5]), **options))


@every_sampler
def test_the_table_of_options_is_the_functions_own(name: str) -> None:
    import inspect

    parameters = inspect.signature(SAMPLERS[name].function).parameters
    own = {key: p.default for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert own == {key: option.default for key, option in SAMPLERS[name].options.items()}
    assert all(option.accepts(option.default) for option in SAMPLERS[name].options.values())
    sampler, options = resolve(name, {})
    assert sampler is SAMPLERS[name]
    assert options == own


def test_unknown_samplers_and_options_are_named_with_the_nearest() -> None:
    for name, options, what in (
        ("dpmpp2", {}, "sampler=dpmpp2: no such sampler; did you mean 'dpmpp2"),
        ("xyz", {}, "sampler=xyz: no such sampler; valid: ddpm, ddim, euler, euler_ancestral, heun, dpm1"),
        ("ddim", {"etha": 0.5}, "etha=0.5: sampler ddim has no such option; did you mean 'eta'"),
        ("dpmpp2m", {"eta": 0.5}, "eta=0.5: sampler dpmpp2m has no such option; it has no options"),
        ("ddim", {"eta": 1.5}, "eta=1.5: out of range; valid: 0"),
        ("ddim", {"eta": math.nan}, "eta=nan: out of range"),
        ("ddim", {"eta": "much"}, "eta=much: out of range"),
        ("ddpm", {"variance": "medium"}, "variance=medium: out of range; valid: small, large or learned"),
        ("unipc", {"order": 4}, "order=4: out of range; valid: 2 or 3"),
        ("unipc", {"variant": "bh3"}, "variant=bh3: out of range; valid: bh1 or bh2"),
        ("lms", {"order": True}, "order=True: out of range; valid: 1, 2, 3 or 4"),
        ("lms", {"order": 2.5}, "order=2.5: out of range"),
        ("heun", {"s_churn": -1}, "s_churn=-1: out of range"),
    ):
        with pytest.raises(UserError, match=what):
            resolve(name, options)
