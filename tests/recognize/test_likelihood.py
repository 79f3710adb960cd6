"""Bits per dimension against closed forms: Gaussians, whose density, entropy and reverse steps are known exactly."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy.stats import multivariate_normal, norm
from torch import Tensor, nn

from twofold import networks, reverse
from twofold.denoiser import Cond, Denoiser, NetworkDenoiser
from twofold.errors import UserError
from twofold.noise import family
from twofold.oracle import MixtureDenoiser
from twofold.recognize.likelihood import Likelihood, bits_per_dimension
from twofold.recognize.likelihood_bound import PixelNoise, bound_terms, draw_levels, make_chain, prior_bits
from twofold.recognize.likelihood_ode import exact_trace, hutchinson_trace, log_density
from twofold.settings.network import UNetSettings
from twofold.settings.noise import EDMNoise, FlowNoise, NoiseSettings, VPNoise

EVERY = [EDMNoise(), FlowNoise(), VPNoise(steps=40), VPNoise(table="continuous"), VPNoise(predicts="v", steps=40)]
STD = 0.2  # of data: wide against a level, narrow against [-1, 1]


def gaussian(noise: NoiseSettings | None = None, std: float = STD, mean: float = 0.1, side: int = 2) -> MixtureDenoiser:
    noise = noise or EDMNoise()
    return MixtureDenoiser(torch.full((1, 1, side, side), mean), [std], [1.0], family(noise))


def images_of(oracle: MixtureDenoiser, n: int, seed: int = 0, label: Tensor | None = None) -> Tensor:
    return oracle.codec.decode(oracle.sample(n, torch.Generator().manual_seed(seed), label))


def levels_of(images: Tensor) -> Tensor:
    return images.double() / 127.5 - 1


def network(noise: NoiseSettings, classes: int = 0, learned: bool = False) -> NetworkDenoiser:
    torch.manual_seed(0)
    small = UNetSettings(
        channels=8, multipliers=(1,), blocks=1, attention=(), classes=classes, learned_variance=learned
    )
    unet = networks.build(small, (1, 4, 4))
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return NetworkDenoiser(unet, family(noise), (1, 4, 4), classes=classes).eval().requires_grad_(False)


def some_images(n: int = 5, side: int = 4) -> Tensor:
    return torch.randint(0, 256, (n, 1, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


class Correlated(Denoiser):
    """The exact denoiser of N(mean, covariance) with the eigenvectors of the covariance: a Wiener filter."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        side = math.isqrt(len(mean))
        self.family = family(EDMNoise())
        self.shape, self.sigma_range, self.clip = (1, side, side), self.family.sigma_range, False
        self.codec = gaussian().codec
        self.register_buffer("mean", mean)
        values, vectors = torch.linalg.eigh(covariance)
        self.register_buffer("values", values)
        self.register_buffer("vectors", vectors)

    def denoise(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> Tensor:
        level = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1)
        inner = (x.flatten(1).double() - self.mean) @ self.vectors * (self.values / (self.values + level**2))
        return (self.mean + inner @ self.vectors.T).to(x.dtype).view_as(x)

    def start_scale(self, sigma: float) -> float:
        return sigma


# --- the ODE ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["heun", "rk4"])
@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_the_density_of_one_gaussian(solver: str, mean: float) -> None:
    """At sigma_min: N(mean, std^2 + sigma_min^2), for the start of a sampler forgets mean and std far enough out."""
    oracle = gaussian(EDMNoise(sigma_max=1e4), mean=mean)
    x = oracle.sample(6, torch.Generator().manual_seed(0))
    found = log_density(oracle, x, 160, solver)
    expected = oracle.log_prob(x, oracle.sigma_range[0])
    assert torch.allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("noise", EVERY, ids=lambda noise: noise.kind)
def test_the_density_in_every_family(noise: NoiseSettings) -> None:
    oracle = gaussian(noise)
    x = oracle.sample(4, torch.Generator().manual_seed(0))
    found, sigma_max = log_density(oracle, x, 100), oracle.sigma_range[1]
    # where the start is wider than the last x, its density there is that of the start
    end = oracle.exact(x, oracle.sigma_range[0], sigma_max)
    start = norm.logpdf(end.numpy(), 0, oracle.start_scale(sigma_max)).sum((1, 2, 3))
    stretched = 0.5 * math.log((STD**2 + sigma_max**2) / (STD**2 + oracle.sigma_range[0] ** 2))
    assert np.allclose(found.numpy(), start + end[0].numel() * stretched, atol=1e-4)


def test_data_of_the_assumed_spread_leave_nothing_to_the_solver() -> None:
    oracle = gaussian(EDMNoise(sigma_data=0.5), std=0.5, mean=0.0)
    x = oracle.sample(4, torch.Generator().manual_seed(0))
    assert torch.allclose(log_density(oracle, x, 1, "heun"), log_density(oracle, x, 50), rtol=1e-12)


def test_the_density_of_correlated_data() -> None:
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64) * 0.2
    covariance = root @ root.T + 0.01 * torch.eye(4, dtype=torch.float64)
    denoiser = Correlated(torch.tensor([0.1, -0.2, 0.0, 0.3], dtype=torch.float64), covariance)
    x = (denoiser.mean + torch.randn(5, 4, generator=generator, dtype=torch.float64) @ root.T).view(5, 1, 2, 2)
    blurred = covariance + denoiser.sigma_range[0] ** 2 * torch.eye(4)
    expected = multivariate_normal.logpdf(x.flatten(1), denoiser.mean, blurred)
    assert np.allclose(log_density(denoiser, x, 100).numpy(), expected, atol=5e-3)


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("rk4", 4)])
def test_order_of_the_solvers(solver: str, order: int) -> None:
    """A mixture, whose ODE has no closed form: halving the step divides the error by 2^order."""
    means = torch.tensor([-0.6, 0.5]).view(2, 1, 1, 1)
    oracle = MixtureDenoiser(means, [0.3, 0.2], [0.4, 0.6], family(EDMNoise(sigma_min=0.05, sigma_max=5)))
    x = torch.tensor([[-0.9], [-0.2], [0.1], [0.6]], dtype=torch.float64).view(4, 1, 1, 1)
    exact = log_density(oracle, x, 300)
    errors = [float((log_density(oracle, x, n, solver) - exact).abs().max()) for n in (20, 40, 80)]
    fitted = np.polyfit(np.log([20, 40, 80]), np.log(errors), 1)[0]
    assert -fitted == pytest.approx(order, abs=0.35)


def test_the_density_of_a_mixture_is_a_density() -> None:
    """Of one pixel: it integrates to 1, and is the mixture's own."""
    means = torch.tensor([-0.6, 0.5]).view(2, 1, 1, 1)
    oracle = MixtureDenoiser(means, [0.3, 0.2], [0.4, 0.6], family(EDMNoise()))
    at = torch.linspace(-2, 2, 201, dtype=torch.float64).view(-1, 1, 1, 1)
    found = log_density(oracle, at, 150)
    assert integrate.simpson(found.exp().numpy(), x=at.flatten().numpy()) == pytest.approx(1, abs=1e-3)
    assert torch.allclose(found, oracle.log_prob(at, 0.002), atol=1e-2)  # its mean shows at sigma_max = 80
    labelled = log_density(oracle, at, 150, cond={"label": torch.ones(201, dtype=torch.int64)})
    one = norm.logpdf(at.flatten().numpy(), 0.5, math.hypot(0.2, 0.002))
    assert np.allclose(labelled.numpy(), one, rtol=5e-3, atol=1e-2)


def test_traces() -> None:
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = (x.flatten(1) @ matrix.T + x.flatten(1) ** 3).view_as(x)
    expected = matrix.trace() + 3 * x.flatten(1).square().sum(1)
    assert torch.allclose(exact_trace(y, x), expected)
    every = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4).view(16, 1, 1, 2, 2)
    estimates = []
    for signs in every:  # all sixteen: their mean is the trace itself
        y = (x.flatten(1) @ matrix.T + x.flatten(1) ** 3).view_as(x)
        estimates.append(hutchinson_trace(y, x, signs.expand_as(x)))
    assert torch.allclose(torch.stack(estimates).mean(0), expected)


def test_the_density_of_a_network_is_that_of_an_adaptive_solver() -> None:
    """SciPy's, in sigma itself, with the trace of the whole Jacobian."""
    model = network(EDMNoise(sigma_min=0.05, sigma_max=5.0)).double()
    x = model.codec.encode(some_images(1)).double()

    def slope(sigma: float, state: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(state[:-1]).repeat(16, 1).requires_grad_()  # row i for what moves dimension i
        drift = (rows - model.denoise(rows.view(16, 1, 4, 4), min(sigma, 5.0)).flatten(1)) / sigma
        (jacobian,) = torch.autograd.grad(drift.trace(), rows)
        return np.append(drift[0].detach().numpy(), float(jacobian.trace()))

    start = np.append(x.flatten().numpy(), 0.0)
    solved = integrate.solve_ivp(slope, (0.05, 5.0), start, rtol=1e-5, atol=1e-7)
    expected = norm.logpdf(solved.y[:-1, -1], 0, 5.0).sum() + solved.y[-1, -1]
    assert float(log_density(model, x, 10)) == pytest.approx(expected, abs=1e-3)
    assert abs(float(log_density(model, x, 2, "heun")) - expected) > 0.05  # and too few steps would be seen


def test_bits_along_the_ode() -> None:
    """Uniform noise of one level: the density of wide data is even over a level, and bits are those of the level."""
    oracle = gaussian()
    images = images_of(oracle, 40)
    found = bits_per_dimension(oracle, images, "ode", divergence="exact", draws=3, micro_batch=40)
    x0 = levels_of(images).numpy()
    wide = math.hypot(STD, oracle.sigma_range[0])
    levels = norm.cdf(x0 + 1 / 255, 0.1, wide) - norm.cdf(x0 - 1 / 255, 0.1, wide)
    expected = -np.log2(levels).mean((1, 2, 3))
    assert np.allclose(found.bits.numpy(), expected, atol=0.1)  # three draws: where in its level a pixel fell
    assert found.mean == pytest.approx(expected.mean(), abs=0.01)
    assert found.facts["evaluations"] == 240 and found.facts["draws"] == 3 and not found.parts


def test_noise_below_one_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the solver is given: the image anywhere within its levels, other noise and other signs in each draw."""
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(denoiser: Denoiser, x: Tensor, steps: int, solver: str, signs: Tensor, cond: Cond | None) -> Tensor:
        seen.append((x, signs))
        return torch.zeros(len(x), dtype=torch.float64)

    monkeypatch.setattr("twofold.recognize.likelihood.log_density", spy)
    images, told = some_images(6, 20), []
    oracle = gaussian(side=20)
    found = bits_per_dimension(
        oracle, images, "ode", draws=2, micro_batch=4, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(4, 6), (6, 6)] and [len(x) for x, _ in seen] == [4] * 4
    off = torch.cat([seen[0][0], seen[2][0][:2]]) - levels_of(images)
    assert float(off.abs().max()) <= reverse.LEVEL / 2 + 1e-7 and float(off.abs().max()) > 0.49 * reverse.LEVEL
    assert abs(float(off.mean())) < 0.02 * reverse.LEVEL
    assert float(off.std()) == pytest.approx(reverse.LEVEL / math.sqrt(12), rel=0.03)
    assert not torch.equal(seen[0][0], seen[1][0]) and not torch.equal(seen[0][1], seen[1][1])
    assert set(seen[0][1].unique().tolist()) == {-1.0, 1.0} and abs(float(seen[0][1].mean())) < 0.1
    assert torch.equal(found.bits, torch.full((6,), -math.log2(reverse.LEVEL), dtype=torch.float64))


def test_hutchinson_agrees_with_the_exact_trace() -> None:
    """Of data without correlations v^T J v is the trace for any v; of a network it is so on average."""
    oracle = gaussian()
    images = images_of(oracle, 6)
    exact, estimate = (bits_per_dimension(oracle, images, "ode", divergence=d).bits for d in ("exact", "hutchinson"))
    assert torch.allclose(exact, estimate, rtol=1e-10)
    model = network(EDMNoise()).double()
    images = some_images(1)
    exact, estimate = (
        bits_per_dimension(model, images, "ode", steps=2, solver="heun", draws=12, divergence=divergence, micro_batch=1)
        for divergence in ("exact", "hutchinson")
    )
    assert not torch.allclose(exact.bits, estimate.bits, rtol=1e-6)
    assert torch.allclose(exact.bits, estimate.bits, atol=0.2)


# --- the bound --------------------------------------------------------------------------------------------------------


def discretised(images: Tensor, std: float, mean: float = 0.1) -> np.ndarray:
    """-log2 P of 8-bit images under a Gaussian cut into levels, per dimension."""
    x0, half = levels_of(images).numpy(), reverse.LEVEL / 2
    return -np.log2(norm.cdf(x0 + half, mean, std) - norm.cdf(x0 - half, mean, std)).mean((1, 2, 3))


@pytest.mark.parametrize("noise", [EDMNoise(sigma_min=0.03), FlowNoise(t_min=0.03), VPNoise(table="continuous")])
def test_the_bound_of_gaussian_data_converges_to_their_entropy(noise: NoiseSettings) -> None:
    """From above, and the nearer the more steps there are; here the last step is exact but for 2 % of its width."""
    oracle = gaussian(noise)
    images = images_of(oracle, 200)
    truth = discretised(images, STD).mean()
    entropy = math.log2(STD * math.sqrt(2 * math.pi * math.e)) - math.log2(reverse.LEVEL)
    assert truth == pytest.approx(entropy, abs=0.1)
    gaps = [bits_per_dimension(oracle, images, steps=n, micro_batch=400).mean - truth for n in (6, 12, 24, 48, 96)]
    assert all(gap > -0.01 for gap in gaps)
    assert gaps[0] > 0.3 and all(later < earlier for earlier, later in pairwise(gaps))
    assert gaps[-1] < 0.1 * gaps[0]


def test_a_long_chain_pays_the_entropy() -> None:
    """The expectation of every term over the noise, in closed form: minimum_loss is E |x0_hat - x0|^2."""
    oracle = gaussian(EDMNoise(sigma_min=0.03))
    chain = make_chain(oracle, 2000)
    s, t = chain.sigmas[:-1], chain.below[:-1]
    steps = 0.5 * ((1 / t**2 - 1 / s**2) * oracle.minimum_loss(s)).sum() / math.log(2)
    images = images_of(oracle, 4000)
    prior = prior_bits(oracle, levels_of(images), 80.0).mean()
    x0_hat_std = math.sqrt(float(oracle.minimum_loss(0.03)))
    rng = np.random.default_rng(0)
    off = rng.normal(0, x0_hat_std, 100_000)
    last = -np.log2(norm.cdf((off + 1 / 255) / 0.03) - norm.cdf((off - 1 / 255) / 0.03)).mean()
    total = float(steps + prior) + last
    assert total == pytest.approx(discretised(images, STD).mean(), abs=0.02)
    found = bits_per_dimension(oracle, images[:300], steps=2000, evaluations=24, micro_batch=512)
    assert abs(found.mean - discretised(images[:300], STD).mean()) < 4 * found.standard_error


def test_terms_are_divergences_of_two_gaussians() -> None:
    """Each term against torch's own, with the same noise."""
    oracle = gaussian(FlowNoise())
    images = images_of(oracle, 3)
    pixels, x0 = PixelNoise(images), levels_of(images)
    chain = make_chain(oracle, 30)
    levels = np.array([[0, 13, 28]] * 3)
    found = bound_terms(oracle, chain, x0, pixels, levels)
    for i in range(3):
        for k, level in enumerate(levels[i]):
            s, t = float(chain.sigmas[level]), float(chain.below[level])
            x = x0[i] + s * pixels.normal([i], [level], (1, 2, 2))[0].double()
            x0_hat = oracle.denoise(x[None], s)[0]
            std = t * math.sqrt(1 - (t / s) ** 2)
            true, model = (torch.distributions.Normal(m + (t / s) ** 2 * (x - m), std) for m in (x0[i], x0_hat))
            expected = torch.distributions.kl_divergence(true, model).mean() / math.log(2)
            assert float(found[i, k]) == pytest.approx(float(expected), rel=1e-6)


def test_the_last_step_against_direct_integration() -> None:
    oracle = gaussian(EDMNoise(sigma_min=0.01))
    images = torch.tensor([0, 1, 128, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    chain, pixels, x0 = make_chain(oracle, 10), PixelNoise(images), levels_of(images)
    found = bound_terms(oracle, chain, x0, pixels, np.array([[9]]))
    x0_hat = oracle.denoise(x0 + 0.01 * pixels.normal([0], [9], (1, 2, 2)).double(), 0.01).flatten().tolist()
    spent = 0.0
    for level, mean in zip(x0.flatten().tolist(), x0_hat, strict=True):
        low = -math.inf if level == -1 else level - reverse.LEVEL / 2
        high = math.inf if level == 1 else level + reverse.LEVEL / 2
        # SciPy would step over a peak this narrow in a half line
        low, high = max(low, level - 1), min(high, level + 1)
        mass, _ = integrate.quad(norm(mean, 0.01).pdf, low, high, points=[mean], limit=200)
        spent -= math.log2(mass) / 4
    # 0 and 255 lie ten standard deviations and more from a mean that this denoiser draws to its own
    assert float(found) == pytest.approx(spent, rel=1e-6)


def test_the_prior_is_a_divergence_of_two_gaussians() -> None:
    for noise in EVERY:
        oracle, x0 = gaussian(noise), levels_of(some_images(3, 2))
        sigma = oracle.sigma_range[1]
        start = torch.distributions.Normal(torch.zeros_like(x0), oracle.start_scale(sigma))
        expected = torch.distributions.kl_divergence(torch.distributions.Normal(x0, sigma), start)
        found = prior_bits(oracle, x0, sigma)
        assert torch.allclose(found, expected.flatten(1).mean(1) / math.log(2), rtol=1e-6, atol=1e-12)


def test_the_chain_of_a_table_is_the_table() -> None:
    model = network(VPNoise(steps=30))
    chain = make_chain(model)
    step = reverse.table_step(model.family, chain.sigmas)
    for ours, theirs in zip((chain.sigmas, chain.below, chain.low, chain.high), vars(step).values(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9)
    few = make_chain(model, 4)  # of its entries, first and last among them
    assert set(few.sigmas.tolist()) <= set(chain.sigmas.tolist()) and len(few) == 4
    assert few.sigmas[0] == chain.sigmas[0] and few.sigmas[-1] == chain.sigmas[-1]


@pytest.mark.parametrize("learned", [False, True])
def test_a_table_has_the_terms_of_its_training_loss(learned: bool) -> None:
    """Every entry once, by `reverse.bits`: what `objective.loss=vlb` estimates."""
    model = network(VPNoise(steps=12), learned=learned)
    model.clip = False
    images = some_images(3)
    found = bits_per_dimension(model, images)
    assert found.facts["variance"] == ("learned" if learned else "small") and found.facts["steps"] == 12
    pixels, x0 = PixelNoise(images), model.codec.encode(images)
    for level, row in enumerate(found.levels):
        sigma = model.family.sigma(torch.tensor([11 - level])).expand(3)
        x = x0 + sigma.view(-1, 1, 1, 1).float() * pixels.normal([0, 1, 2], [level] * 3, (1, 4, 4))
        x0_hat, v = model.denoise(x, sigma), torch.zeros_like(x0)
        if learned:
            x0_hat, v = model.denoise_and_variance(x, sigma)
        error = (x0_hat - x0).double()
        expected = reverse.bits(model.family, x0.double(), error, v.double(), sigma).mean()
        assert row["bits"] == pytest.approx(float(expected), rel=2e-2, abs=2e-3)  # x0_hat - x0 cancels in float32
    large = bits_per_dimension(model, images, variance="large")
    assert large.facts["variance"] == "large" and not torch.allclose(large.bits, found.bits)


def test_clamping_x0_hat_helps_a_bad_model() -> None:
    model, images = network(EDMNoise()), some_images(4)
    clamped, free = (bits_per_dimension(model, images, steps=20, clip=clip).bits for clip in (None, False))
    assert bool((clamped < free).all())


class Clamped(MixtureDenoiser):
    def denoise(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> Tensor:
        return super().denoise(x, sigma, cond).clamp(-1, 1)


def test_clamping_is_that_of_x0_hat() -> None:
    how = (torch.full((1, 1, 2, 2), 0.9), [0.4], [1.0], family(EDMNoise()))
    images = torch.tensor([0, 130, 250, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    outside, inside = MixtureDenoiser(*how), Clamped(*how)
    clamped, free = (bits_per_dimension(outside, images, steps=200, clip=clip).bits for clip in (True, False))
    assert torch.allclose(clamped, bits_per_dimension(inside, images, steps=200, clip=False).bits, rtol=1e-5)
    assert not torch.allclose(clamped, free, rtol=1e-3)


def test_a_last_step_that_is_far_off_costs_what_it_costs() -> None:
    oracle = gaussian(EDMNoise(sigma_min=0.03), std=1e-3, mean=0.9)
    found = bits_per_dimension(oracle, torch.zeros(1, 1, 2, 2, dtype=torch.uint8), steps=2)
    edge = (1.9 - reverse.LEVEL / 2) / 0.03  # 63 standard deviations; a probability that was rounded up: 40 bits
    assert float(found.parts["last"]) == pytest.approx(-norm.logsf(edge) / math.log(2), rel=0.01)


@pytest.mark.parametrize("noise", EVERY, ids=lambda noise: noise.kind)
def test_the_levels_sum_to_the_bound(noise: NoiseSettings) -> None:
    found = bits_per_dimension(network(noise), some_images(), steps=15)
    total = found.parts["prior"].mean() + sum(row["bits"] for row in found.levels)
    assert found.mean == pytest.approx(float(total), rel=1e-12)
    assert torch.allclose(sum(found.parts.values()), found.bits)  # type: ignore[arg-type]
    assert [row["images"] for row in found.levels] == [5] * 15 and found.levels[-1]["below"] == 0
    assert float(found.parts["last"].mean()) == pytest.approx(found.levels[-1]["bits"], rel=1e-12)


def test_few_evaluations_estimate_the_whole_sum() -> None:
    """Without bias: of terms that are known, the mean over many draws of levels is the whole sum."""
    oracle = gaussian(EDMNoise(sigma_min=0.02))
    images = images_of(oracle, 4)
    chain, pixels, x0 = make_chain(oracle, 40), PixelNoise(images), levels_of(images)
    terms = bound_terms(oracle, chain, x0, pixels, draw_levels(40, None, pixels).levels).numpy()
    estimates = []
    for seed in range(2000):
        drawn = draw_levels(40, 6, PixelNoise(images, seed))
        estimates.append((np.take_along_axis(terms, drawn.levels, 1) * drawn.weight).sum(1))
    error = np.std(estimates, 0) / math.sqrt(2000)
    assert (np.abs(np.mean(estimates, 0) - terms.sum(1)) < 4 * error).all() and (error < 0.02 * terms.sum(1)).all()
    few, whole = (bits_per_dimension(oracle, images, steps=40, evaluations=n) for n in (6, 40))
    drawn = draw_levels(40, 6, pixels)
    expected = (np.take_along_axis(terms, drawn.levels, 1) * drawn.weight)[:, :-1].sum(1)
    assert np.allclose(few.parts["steps"].numpy(), expected, rtol=1e-6)  # the noise of a level is the same
    assert torch.allclose(few.parts["last"], whole.parts["last"], rtol=1e-6)
    assert few.facts["evaluations"] == 6 and sum(row["images"] for row in few.levels) == 24


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(2, 300), evaluations=st.integers(2, 320))
def test_drawn_levels(steps: int, evaluations: int) -> None:
    drawn = draw_levels(steps, evaluations, PixelNoise(some_images(4)))
    assert drawn.weight.sum() == pytest.approx(steps) and drawn.levels.shape == (4, min(steps, evaluations))
    assert (np.diff(drawn.levels, axis=1) > 0).all() and (drawn.levels[:, -1] == steps - 1).all()
    edges = np.concatenate([[0], np.cumsum(drawn.weight)])
    assert (drawn.levels >= edges[:-1]).all() and (drawn.levels < edges[1:]).all()


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bound", "ode"])
def test_an_image_has_its_bits_in_any_order_and_batch(method: str) -> None:
    model, images = network(EDMNoise(), classes=3), some_images(7)
    label = torch.tensor([0, 1, 2, -1, 0, 1, 2])

    def bits(rows: list[int], micro_batch: int) -> Tensor:
        how = {"steps": 5, "labels": label[rows], "micro_batch": micro_batch}
        return bits_per_dimension(model, images[rows], method, **how).bits  # type: ignore[arg-type]

    order = [4, 2, 6, 0, 1, 5, 3]
    together = bits(list(range(7)), 4)
    assert torch.equal(bits(order, 4), together[order])
    assert torch.equal(bits([3], 4), together[3:4])
    assert torch.allclose(bits(list(range(7)), 7), together, rtol=1e-4)
    unlabelled = bits_per_dimension(model, images, method, steps=5, micro_batch=4).bits
    assert torch.equal(unlabelled[3], together[3]) and not torch.isclose(unlabelled, together)[label >= 0].any()
    other = bits_per_dimension(model, images, method, steps=5, micro_batch=4, seed=1).bits
    assert not torch.isclose(other, unlabelled).any()


@pytest.mark.parametrize("method", ["bound", "ode"])
def test_a_model_of_the_data_beats_others(method: str) -> None:
    oracle = gaussian(side=4)
    images = images_of(oracle, 20)
    how = {"method": method, "steps": 300 if method == "bound" else 30, "micro_batch": 200 if method == "bound" else 20}
    right, wide, off = (
        bits_per_dimension(model, images, **how).mean
        for model in (oracle, gaussian(std=0.35, side=4), gaussian(mean=0.5, side=4))
    )
    assert right < wide and right < off


def test_labels_tell_which_component() -> None:
    means = torch.tensor([-0.5, 0.5]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    oracle = MixtureDenoiser(means, [0.1, 0.1], [0.5, 0.5], family(EDMNoise()))
    images = images_of(oracle, 30, label=torch.zeros(30, dtype=torch.int64))
    for how in ({"steps": 1000, "micro_batch": 500}, {"method": "ode", "divergence": "exact", "micro_batch": 30}):
        none, own = (bits_per_dimension(oracle, images, labels=label, **how) for label in (None, 0))
        assert own.facts["labels"] and not none.facts["labels"]
        assert none.mean - own.mean == pytest.approx(1 / 4, abs=0.02)  # one bit for four pixels: which component it is


def test_the_interval_is_that_of_the_mean() -> None:
    bits = torch.tensor([3.0, 4.0, 5.0, 4.0], dtype=torch.float64)
    found = Likelihood(bits, {})
    assert found.mean == 4 and found.standard_error == pytest.approx(math.sqrt(2 / 3) / 2)
    low, high = found.interval()
    assert (low + high) / 2 == pytest.approx(4) and high - 4 == pytest.approx(1.96 * found.standard_error, rel=1e-3)


class Bad(nn.Module):
    def encode(self, images: Tensor) -> Tensor:
        raise AssertionError("must not be asked")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"method": "exact"}, "method=exact: no such likelihood"),
        ({"steps": 1}, "steps=1: no chain"),
        ({"evaluations": 1}, "evaluations=1: too few"),
        ({"variance": "large"}, "variance=large: this model has no table"),
        ({"variance": "learned"}, "variance=learned: this model learned no variance"),
        ({"variance": "larg"}, "did you mean 'large'"),
        ({"method": "ode", "solver": "euler"}, "solver=euler: no such solver"),
        ({"method": "ode", "divergence": "no"}, "divergence=no"),
        ({"method": "ode", "draws": 0}, "draws=0"),
        ({"method": "ode", "steps": 0}, "steps=0"),
        ({"labels": 3}, "this model is unconditional"),
        ({"micro_batch": 0}, "micro_batch=0"),
    ],
)
def test_what_cannot_be_is_said(words: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        bits_per_dimension(network(EDMNoise()), some_images(), **words)  # type: ignore[arg-type]


def test_tables_have_no_more_steps_than_entries() -> None:
    with pytest.raises(UserError, match="the table has 40 entries"):
        make_chain(network(VPNoise(steps=40)), 41)
    assert len(make_chain(network(VPNoise(steps=40)), 7)) == 7


def test_latents_and_other_sizes_are_refused() -> None:
    model = network(EDMNoise())
    with pytest.raises(UserError, match="8 x 8"):
        bits_per_dimension(model, some_images(2, 8))
    model.codec = Bad()  # type: ignore[assignment]
    with pytest.raises(UserError, match="latents"):
        bits_per_dimension(model, some_images())
