"""Guidance and clipping against closed forms, and how often they evaluate."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofold.errors import UserError
from twofold.generate.guidance import clipped, guided
from twofold.noise import karras_grid
from twofold.oracle import MixtureDenoiser

STD, SHAPE = 0.5, (1, 2, 2)


class Counting(MixtureDenoiser):
    """Two Gaussians at +mean and -mean, of one spread; remembers the batches it was given."""

    def __init__(self) -> None:
        mean = torch.tensor([[0.8, -0.3], [0.1, 0.5]], dtype=torch.float64).view(1, *SHAPE)
        super().__init__(torch.cat([mean, -mean]), [STD, STD], [1.0, 1.0])
        self.batches: list[int] = []

    def denoise(self, x: Tensor, sigma: Tensor | float, cond: object = None) -> Tensor:
        self.batches.append(len(x))
        return super().denoise(x, sigma, cond)  # type: ignore[arg-type]


def points(n: int = 4) -> Tensor:
    return 2 * torch.randn((n, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


LABEL = torch.tensor([0, 1, 0, -1])


@given(g=st.floats(0, 8), sigma=st.floats(0.05, 20))
@settings(max_examples=30, deadline=None)
def test_two_gaussians_are_shifted_as_computed_by_hand(g: float, sigma: float) -> None:
    """With means +-m: guided = conditional + (g - 1) s^2/(s^2+std^2) m (1 - tanh(<m, x>/(s^2+std^2)))."""
    oracle, x = Counting(), points(3)
    mean, total = oracle.means[0], sigma**2 + STD**2
    conditional = mean + STD**2 / total * (x - mean)
    pull = 1 - torch.tanh((mean * x).sum((1, 2, 3), keepdim=True) / total)
    expected = conditional + (g - 1) * sigma**2 / total * mean * pull
    found = guided(oracle, torch.zeros(3, dtype=torch.int64), g)(x, torch.tensor(sigma, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma", [torch.tensor(0.7), torch.tensor([0.1, 0.7, 3.0, 20.0])])
def test_one_batch_is_the_same_as_two_passes(sigma: Tensor) -> None:
    oracle, x = Counting(), points()
    cond = oracle.denoise(x, sigma, {"label": LABEL})
    uncond = oracle.denoise(x, sigma)
    oracle.batches.clear()
    found = guided(oracle, LABEL, 2.5)(x, sigma)
    torch.testing.assert_close(found, uncond + 2.5 * (cond - uncond), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[3], uncond[3])  # without a label there is nothing to guide to
    assert oracle.batches == [8]


def test_evaluations() -> None:
    x, sigma = points(), torch.tensor(0.7)
    for g, batches in ((1.0, [4]), (0.0, [4]), (2.0, [8]), (0.5, [8])):
        oracle = Counting()
        guided(oracle, LABEL, g)(x, sigma)
        assert oracle.batches == batches
    oracle = Counting()
    conditional, unconditional = guided(oracle, LABEL, 1.0)(x, sigma), guided(oracle, LABEL, 0.0)(x, sigma)
    assert torch.equal(conditional, oracle.denoise(x, sigma, {"label": LABEL}))
    assert torch.equal(unconditional, oracle.denoise(x, sigma))
    assert torch.equal(guided(oracle, None, 1.0)(x, sigma), unconditional)


@pytest.mark.parametrize("g", [3.0, 0.0])
def test_interval_guides_inside_and_is_plain_conditional_outside(g: float) -> None:
    oracle, x, sigmas = Counting(), points(), karras_grid(9, 0.01, 20.0)[:-1]
    low, high = float(sigmas[6]), float(sigmas[2])
    inside = guided(oracle, LABEL, g)
    within = guided(oracle, LABEL, g, (low, high))
    for i, sigma in enumerate(sigmas):
        oracle.batches.clear()
        found = within(x, sigma)
        assert oracle.batches == [8 if 2 <= i < 6 and g else 4]  # low < sigma <= high
        expected = inside(x, sigma) if 2 <= i < 6 else oracle.denoise(x, sigma, {"label": LABEL})
        assert torch.equal(found, expected)


def test_interval_with_one_sigma_per_image() -> None:
    oracle, x, sigma = Counting(), points(), torch.tensor([0.1, 1.0, 2.0, 3.0], dtype=torch.float64)
    found = guided(oracle, torch.zeros(4, dtype=torch.int64), 3.0, (1.0, 2.0))(x, sigma)
    for i in range(4):
        g = 3.0 if i == 2 else 1.0
        alone = guided(oracle, torch.zeros(1, dtype=torch.int64), g)(x[i : i + 1], sigma[i])
        torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("interval", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_empty_intervals_are_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="not an interval of sigma; 0 <= low < high"):
        guided(Counting(), LABEL, 2.0, interval)


def test_clipping_bounds_x0_hat_and_costs_nothing() -> None:
    oracle, x = Counting(), 5 * points()
    plain = oracle.denoise(x, 0.3)
    oracle.batches.clear()
    sigma = torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(clipped(oracle.denoise)(x, sigma), plain.clamp(-1, 1))
    assert torch.equal(clipped(oracle.denoise, -0.5, 2.0)(x, sigma), plain.clamp(-0.5, 2))
    assert oracle.batches == [4, 4]
    assert plain.abs().max() > 1
