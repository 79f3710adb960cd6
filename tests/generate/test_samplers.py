"""Every sampler of the dictionary against exact solutions: order, moments, bookkeeping."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofold.errors import UserError
from twofold.generate.samplers import SAMPLERS, Step, final, resolve
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


def fitted_order(errors: list[float]) -> float:
    """Slope of log error over log step, by least squares over successive halvings."""
    y = torch.tensor(errors, dtype=torch.float64).log2()
    x = torch.arange(len(y), dtype=torch.float64)
    return float(-((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


# -- convergence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("spacing", [karras_grid, log_grid])
def test_order_of_convergence_on_a_gaussian(name: str, spacing: Callable[..., Tensor]) -> None:
    """Down to a level above 0, where the exact solution is known and no step is truncated."""
    oracle, sampler = gaussian(), SAMPLERS[name]
    x = 20 * normal(4)
    errors = []
    for steps in (32, 64, 128, 256):
        sigmas = spacing(steps + 1, 0.05, 20.0)[:-1]
        end = final(sampler.function(oracle.denoise, x, sigmas))
        errors.append(float((end - oracle.exact(x, 20.0, 0.05)).abs().max()))
    assert fitted_order(errors) == pytest.approx(sampler.order, abs=0.12)
    assert errors[-1] < (0.02 if sampler.order == 1 else 3e-4)


@pytest.fixture(scope="module")
def solution() -> tuple[Tensor, Tensor]:
    """A start at sigma 10 and where 3,000 Heun steps take it at 0.05; at most 1e-6 off by its order."""
    x = 10 * normal(4)
    return x, final(SAMPLERS["heun"].function(mixture().denoise, x, log_grid(3_001, 0.05, 10.0)[:-1]))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence_on_a_mixture(name: str, solution: tuple[Tensor, Tensor]) -> None:
    oracle, sampler = mixture(), SAMPLERS[name]
    x, exact = solution
    errors = []
    for steps in (64, 128, 256, 512):
        end = final(sampler.function(oracle.denoise, x, log_grid(steps + 1, 0.05, 10.0)[:-1]))
        errors.append(float((end - exact).square().mean().sqrt()))
    assert fitted_order(errors) == pytest.approx(sampler.order, abs=0.2)
    assert errors[-1] < (0.02 if sampler.order == 1 else 1e-4)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_last_step_into_zero_costs_no_more_than_it_must(name: str) -> None:
    """From sigma_min one Euler step leaves an error of the curvature: about |x - mean| sigma_min^2 / (2 std^2)."""
    oracle, sampler = gaussian(), SAMPLERS[name]
    for sigma_min in (0.04, 0.02, 0.01):
        x = oracle.exact(20 * normal(4), 20.0, 3 * sigma_min)
        steps = 400  # so fine that what is left is the last step
        sigmas = log_grid(steps, sigma_min, 3 * sigma_min)
        end = final(sampler.function(oracle.denoise, x, sigmas))
        exact = oracle.exact(x, 3 * sigma_min, 0.0)
        bound = float((exact - oracle.means).abs().max()) * sigma_min**2 / (2 * 0.4**2)
        assert float((end - exact).abs().max()) == pytest.approx(bound, rel=0.1)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_default_steps_reach_the_exact_solution(name: str) -> None:
    """Of a Gaussian, over EDM's whole range of sigma: within 2 % of its spread for the default sampler, 6 % for all."""
    oracle, sampler = gaussian(), SAMPLERS[name]
    x = 80 * normal(64)
    end = final(sampler.function(oracle.denoise, x, grid(oracle.family, sampler.steps, sampler.grid)))
    error = float((end - oracle.exact(x, 80.0, 0.0)).square().mean().sqrt())
    assert error < (0.02 if name == "dpmpp2m" else 0.06) * 0.4


# -- stochastic samplers -----------------------------------------------------------------------------------------

STOCHASTIC = {
    "ddpm small": ("ddpm", {"variance": "small"}),
    "ddpm large": ("ddpm", {"variance": "large"}),
    "ddim eta 1": ("ddim", {"eta": 1.0}),
    "ddim eta 0.5": ("ddim", {"eta": 0.5}),
    "heun churn": ("heun", {"s_churn": 60.0, "s_min": 0.05, "s_max": 50.0}),
}


@pytest.mark.parametrize("case", STOCHASTIC)
def test_moments_of_stochastic_samples(case: str) -> None:
    name, options = STOCHASTIC[case]
    oracle, n, steps = gaussian(), 6_000, 300
    sigmas = log_grid(steps, 0.005, 80.0)
    x = final(SAMPLERS[name].function(oracle.denoise, 80 * normal(n), sigmas, noise_source(n), **options))
    centred = x - oracle.means
    count = centred.numel()
    assert ((x.mean(0) - oracle.means[0]).abs() < 5 * 0.4 / math.sqrt(n)).all()
    # standard error of a standard deviation, and 1.5 % for the discretisation of first-order methods
    tolerance = 5 * 0.4 / math.sqrt(2 * count) + (0.006 if name != "heun" else 0)
    assert abs(float(centred.std()) - 0.4) < tolerance
    assert float((centred**4).mean() / centred.var() ** 2) == pytest.approx(3, abs=5 * math.sqrt(96 / count))


def gains(oracle: MixtureDenoiser, s: float, t: float, variance: str) -> tuple[float, float]:
    """One ancestral step on a centred Gaussian, from the densities themselves: x' = a x + sqrt(b) z."""
    shrink = float(oracle.stds[0]) ** 2 / (float(oracle.stds[0]) ** 2 + s**2)
    # q(x' | x, x0) is the product of N(x'; x0, t^2) and N(x; x', s^2 - t^2)
    precision = 1 / t**2 + 1 / (s**2 - t**2)
    mean = (shrink / t**2 + 1 / (s**2 - t**2)) / precision
    alpha = (1 + t**2) / (1 + s**2)
    return mean, 1 / precision if variance == "small" else (1 - alpha) * (1 + t**2)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_few_ancestral_steps_have_exactly_the_variance_of_the_chain(variance: str) -> None:
    """Five coarse steps, whose variance differs much between small and large, against its closed recursion."""
    oracle, n = gaussian(), 40_000
    sigmas = torch.tensor([5.0, 2.0, 1.0, 0.5, 0.2, 0.0], dtype=torch.float64)
    x = 5 * normal(n)
    end = final(SAMPLERS["ddpm"].function(oracle.denoise, x + oracle.means, sigmas, noise_source(n), variance=variance))
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
    ):
        drawn = []

        def noise(drawn: list[int] = drawn) -> Tensor:
            drawn.append(1)
            return normal(2)

        final(SAMPLERS[name].function(gaussian().denoise, 10 * normal(2), sigmas, noise, **options))
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
    torch.testing.assert_close(found[-1].x, found[-2].x0_hat, rtol=1e-12, atol=1e-12)  # a step into 0 ends in x0_hat


@every_sampler
def test_a_last_level_above_zero_ends_there(name: str) -> None:
    oracle, n = gaussian(), 4_000
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
    for name, options in (("ddpm", {}), ("ddim", {"eta": 0.5}), ("heun", {"s_churn": 5.0})):
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
        ("dpmpp2", {}, "sampler=dpmpp2: no such sampler; did you mean 'dpmpp2m'"),
        ("xyz", {}, "sampler=xyz: no such sampler; valid: ddpm, ddim, euler, heun, dpmpp2m"),
        ("ddim", {"etha": 0.5}, "etha=0.5: sampler ddim has no such option; did you mean 'eta'"),
        ("dpmpp2m", {"eta": 0.5}, "eta=0.5: sampler dpmpp2m has no such option; it has no options"),
        ("ddim", {"eta": 1.5}, "eta=1.5: out of range; valid: 0"),
        ("ddim", {"eta": math.nan}, "eta=nan: out of range"),
        ("ddim", {"eta": "much"}, "eta=much: out of range"),
        ("ddpm", {"variance": "medium"}, "variance=medium: out of range; valid: small or large"),
        ("heun", {"s_churn": -1}, "s_churn=-1: out of range"),
    ):
        with pytest.raises(UserError, match=what):
            resolve(name, options)
