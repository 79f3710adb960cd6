"""The exact denoiser against independent closed forms, autograd and Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofold.denoiser import Classifier
from twofold.errors import UserError
from twofold.noise import EDM, add, as_sigma, family
from twofold.oracle import MixtureDenoiser
from twofold.settings.noise import EDMNoise, VPNoise

SHAPE = (2, 3, 4)


def mixture(k: int = 3, **options: object) -> MixtureDenoiser:
    g = torch.Generator().manual_seed(k)
    means = torch.randn((k, *SHAPE), generator=g, dtype=torch.float64)
    return MixtureDenoiser(means, [0.3 + 0.2 * i for i in range(k)], [1.0 + i for i in range(k)], **options)  # type: ignore[arg-type]


def noisy(oracle: MixtureDenoiser, sigma: float, n: int = 5) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return oracle.sample(n, g) + sigma * torch.randn((n, *SHAPE), generator=g, dtype=torch.float64)


def naive(oracle: MixtureDenoiser, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """E[x0|x] and ln p(x) from `torch.distributions`, one component after the other."""
    logs, means = [], []
    for mean, std, weight in zip(oracle.means, oracle.stds, oracle.log_weights, strict=True):
        total = torch.sqrt(std**2 + sigma**2)
        logs.append(weight + torch.distributions.Normal(mean, total).log_prob(x).sum((1, 2, 3)))
        means.append((sigma**2 * mean + std**2 * x) / total**2)
    log_p = torch.logsumexp(torch.stack(logs), 0)
    posterior = (torch.stack(logs) - log_p).exp()
    return (posterior[:, :, None, None, None] * torch.stack(means)).sum(0), log_p


@pytest.mark.parametrize("sigma", [1e-3, 0.1, 1.0, 30.0])
def test_denoise_and_log_prob_agree_with_a_naive_computation(sigma: float) -> None:
    oracle = mixture()
    x = noisy(oracle, sigma)
    expected, log_p = naive(oracle, x, sigma)
    torch.testing.assert_close(oracle.denoise(x, sigma), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(oracle.log_prob(x, sigma), log_p, rtol=1e-12, atol=1e-10)


@given(sigma=st.floats(1e-3, 80), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_score_is_the_gradient_of_log_prob_and_obeys_tweedie(sigma: float, seed: int) -> None:
    oracle = mixture()
    x = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * (1 + sigma)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.log_prob(x, sigma).sum(), x)
    score = oracle.score(x, sigma)
    torch.testing.assert_close(score, gradient, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((oracle.denoise(x, sigma) - x) / sigma**2, score, rtol=1e-6, atol=1e-8 / sigma)


def test_score_at_sigma_zero_is_that_of_the_data() -> None:
    oracle = mixture(1)
    x = noisy(oracle, 0.0)
    torch.testing.assert_close(oracle.score(x, 0.0), (oracle.means - x) / oracle.stds**2)
    torch.testing.assert_close(oracle.denoise(x, 0.0), x)


def test_denoise_stays_finite_where_every_likelihood_underflows() -> None:
    oracle = mixture()
    far = torch.full((1, *SHAPE), 1e4, dtype=torch.float64)
    for x in (far, far.float()):
        x0_hat = oracle.denoise(x, 0.002)
        assert x0_hat.dtype == x.dtype
        assert x0_hat.isfinite().all()


def test_float32_is_near_float64() -> None:
    oracle = mixture()
    for sigma in (0.01, 1.0, 50.0):
        x = noisy(oracle, sigma)
        torch.testing.assert_close(
            oracle.denoise(x.float(), sigma).double(), oracle.denoise(x, sigma), rtol=1e-4, atol=1e-4
        )


def test_sigma_per_image_is_the_same_as_one_by_one() -> None:
    oracle, sigma = mixture(), torch.tensor([0.0, 0.1, 0.5, 3.0, 70.0], dtype=torch.float64)
    x, label = noisy(oracle, 1.0), torch.tensor([-1, 0, 1, 2, -1])
    together = oracle.denoise(x, sigma, {"label": label})
    for i in range(5):
        alone = oracle.denoise(x[i : i + 1], sigma[i], {"label": label[i : i + 1]})
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-13, atol=1e-13)


def test_label_selects_a_component_and_minus_one_the_mixture() -> None:
    oracle, x = mixture(), noisy(mixture(), 0.7)
    for k in range(3):
        chosen = oracle.denoise(x, 0.7, {"label": torch.full((5,), k)})
        alone = MixtureDenoiser(oracle.means[k : k + 1], oracle.stds[k : k + 1], [1.0]).denoise(x, 0.7)
        torch.testing.assert_close(chosen, alone, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(oracle.denoise(x, 0.7, {"label": torch.full((5,), -1)}), oracle.denoise(x, 0.7))
    assert mixture(labels=False).classes == 0
    unconditional = mixture(labels=False).denoise(x, 0.7, {"label": torch.zeros(5, dtype=torch.int64)})
    torch.testing.assert_close(unconditional, oracle.denoise(x, 0.7))
    with pytest.raises(UserError, match=r"label=3: no such component; 0\.\.2"):
        oracle.denoise(x, 0.7, {"label": torch.full((5,), 3)})


def test_logits_are_the_posterior_and_the_best_classifier() -> None:
    oracle, g = mixture(), torch.Generator().manual_seed(0)
    label = oracle.draw_labels(4000, g)
    x = add(oracle.sample(4000, g, label), torch.randn((4000, *SHAPE), generator=g, dtype=torch.float64), 1.5)
    posterior = oracle.logits(x, 1.5).softmax(1)
    # a posterior is calibrated: its mean confidence is its accuracy, within 4 standard errors
    confidence, answer = posterior.max(1)
    accuracy = (answer == label).double().mean()
    assert abs(float(accuracy - confidence.mean())) < 4 * 0.5 / math.sqrt(4000)
    assert 0.5 < accuracy < 0.99
    classifier = oracle.as_classifier()
    assert isinstance(classifier, Classifier)
    assert classifier.class_names == ["0", "1", "2"]
    assert torch.equal(classifier.logits(x, 1.5), oracle.logits(x, 1.5))


def test_features_are_those_of_the_full_pass_and_later_layers_do_not_run() -> None:
    oracle, x = mixture(), noisy(mixture(), 0.5)
    assert list(oracle.layers) == ["enc.0", "mid", "dec.0", "dec.1"]
    everything = oracle.features(x, 0.5, oracle.layers)
    assert list(everything) == list(oracle.layers)
    for name, layer in oracle.layers.items():
        assert everything[name].shape[1] == layer.channels
        assert everything[name].shape[2] * layer.stride == SHAPE[1]
        ran: list[str] = []
        handles = [
            other.module.register_forward_hook(lambda *_, n=n, ran=ran: ran.append(n))
            for n, other in oracle.layers.items()
        ]
        found = oracle.features(x, 0.5, [name])
        for handle in handles:
            handle.remove()
        assert torch.equal(found[name], everything[name])
        assert ran == list(oracle.layers)[: list(oracle.layers).index(name) + 1]
    assert torch.equal(everything["dec.1"], oracle.denoise(x, 0.5))
    torch.testing.assert_close(everything["mid"].exp().sum(1), torch.ones(5, 1, 1, dtype=torch.float64))
    with pytest.raises(UserError, match="no such layer; did you mean"):
        oracle.features(x, 0.5, ["dec.11"])


def test_encode_decode_is_denoise_and_an_edited_state_moves_it() -> None:
    oracle, x = mixture(), noisy(mixture(), 2.0)
    state = oracle.encode(x, 2.0)
    assert torch.equal(oracle.decode(state), oracle.denoise(x, 2.0))
    state.taps["mid"] = torch.tensor([0.0, 1000.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1).expand(5, 3, 1, 1)
    torch.testing.assert_close(oracle.decode(state), oracle.denoise(x, 2.0, {"label": torch.ones(5, dtype=torch.long)}))


def test_sample_has_the_moments_of_the_mixture() -> None:
    oracle, g = mixture(), torch.Generator().manual_seed(3)
    n = 20_000
    x0 = oracle.sample(n, g)
    weights = oracle.log_weights.exp()[:, None, None, None]
    mean = (weights * oracle.means).sum(0)
    variance = (weights * (oracle.stds[:, None, None, None] ** 2 + oracle.means**2)).sum(0) - mean**2
    assert ((x0.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    torch.testing.assert_close(x0.var(0), variance, rtol=0.06, atol=0)
    label = torch.tensor([2] * n)
    torch.testing.assert_close(oracle.sample(n, g, label).std(), _std_of(oracle, 2), rtol=0.01, atol=0)


def _std_of(oracle: MixtureDenoiser, k: int) -> Tensor:
    """Standard deviation over all values of one component's samples."""
    return (oracle.stds[k] ** 2 + oracle.means[k].var(correction=0)).sqrt()


@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
def test_the_loss_of_a_gaussian_is_the_theoretical_minimum(sigma: float) -> None:
    oracle, g = mixture(1), torch.Generator().manual_seed(0)
    n = 20_000
    x0 = oracle.sample(n, g)
    x = add(x0, torch.randn(x0.shape, generator=g, dtype=torch.float64), sigma)
    squares = (oracle.denoise(x, sigma) - x0).square()
    minimum = float(oracle.minimum_loss(sigma))
    assert minimum == pytest.approx(1 / (1 / 0.3**2 + 1 / sigma**2), rel=1e-12)
    error = float(squares.std()) / math.sqrt(squares.numel())
    assert abs(float(squares.mean()) - minimum) < 4 * error
    # and it is a minimum: a denoiser that shrinks a little more or less does worse
    for factor in (0.9, 1.1):
        other = oracle.means + factor * (oracle.denoise(x, sigma) - oracle.means)
        assert (other - x0).square().mean() > squares.mean()


@given(st.floats(0.0, 80), st.floats(0.0, 80))
@settings(max_examples=25, deadline=None)
def test_exact_solution_solves_the_ode_and_can_be_undone(a: float, b: float) -> None:
    oracle = mixture(1)
    x = noisy(oracle, a)
    there = oracle.exact(x, a, b)
    torch.testing.assert_close(oracle.exact(there, b, a), x, rtol=1e-9, atol=1e-9)
    sigma = torch.tensor(max(b, 0.01), dtype=torch.float64, requires_grad=True)
    scale = torch.sqrt((sigma**2 + 0.09) / (a**2 + 0.09))
    (slope,) = torch.autograd.grad(scale, sigma)  # of x(sigma) = mean + (x - mean) scale
    level = float(sigma.detach())
    here = oracle.exact(x, a, level)
    right = (here - oracle.denoise(here, level)) / level
    torch.testing.assert_close((x - oracle.means) * slope, right, rtol=1e-6, atol=1e-7)


def test_mixtures_have_no_closed_solution_but_their_components_do() -> None:
    oracle = mixture()
    x = noisy(oracle, 1.0)
    for call in (lambda: oracle.exact(x, 1.0, 0.5), lambda: oracle.minimum_loss(1.0)):
        with pytest.raises(UserError, match="a mixture of 3 has no closed form; give the label"):
            call()
    moved = oracle.exact(x, 1.0, 0.0, label=2)
    torch.testing.assert_close(moved - oracle.means[2], (x - oracle.means[2]) * math.sqrt(0.49 / 1.49))


def test_range_is_the_familys_where_there_is_one() -> None:
    x = torch.zeros((1, *SHAPE), dtype=torch.float64)
    vp = family(VPNoise())
    strict = mixture(family=vp)
    assert strict.sigma_range == vp.sigma_range
    assert strict.start_scale(3.0) == vp.start_scale(3.0)
    with pytest.raises(UserError, match="sigma=1000: outside"):
        strict.denoise(x, 1000.0)
    strict.features(x, 0.0, ["mid"])
    free = mixture()
    assert isinstance(free.family, EDM)
    assert free.sigma_range == family(EDMNoise()).sigma_range
    assert free.denoise(x, 1000.0).isfinite().all()
    with pytest.raises(UserError, match="sigma=-1: not a noise level"):
        free.denoise(x, -1.0)


def test_wrong_mixtures_are_refused() -> None:
    means = torch.zeros(2, 1, 2, 2)
    for arguments, what in (
        ((means[0], [1.0, 1.0], [1.0, 1.0]), r"means: shape \(1, 2, 2\); a mixture needs \(K, C, H, W\)"),
        ((means, [1.0], [1.0, 1.0]), r"stds: shape \(1,\); 2 positive numbers"),
        ((means, [1.0, 0.0], [1.0, 1.0]), "stds: .*2 positive numbers"),
        ((means, [1.0, 1.0], [1.0, -1.0]), "weights: .*2 positive numbers"),
    ):
        with pytest.raises(UserError, match=what):
            MixtureDenoiser(*arguments)  # type: ignore[arg-type]


def test_it_is_a_module_that_can_be_saved_and_has_no_parameters() -> None:
    oracle = mixture()
    assert not list(oracle.parameters())
    other = MixtureDenoiser(torch.zeros(3, *SHAPE), [1.0] * 3, [1.0] * 3)
    other.load_state_dict(oracle.state_dict())
    x = noisy(oracle, 1.0)
    assert torch.equal(other.denoise(x, as_sigma(1.0)), oracle.denoise(x, 1.0))
