"""Class-balanced assignment against plain Sinkhorn iterations, and at its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.errors import UserError
from twofold.recognize.assign import balanced, potentials


@given(
    st.integers(0, 2**31), st.integers(5, 80), st.integers(2, 8), st.floats(0.05, 5), st.floats(0.1, 30), st.booleans()
)
@settings(max_examples=25, deadline=None)
def test_rows_and_columns_have_their_sums(
    seed: int, n: int, k: int, temperature: float, size: float, even: bool
) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = size * torch.randn(n, k, generator=g)
    prior = None if even else 0.05 + torch.rand(k, generator=g)
    p = balanced(logits, prior, temperature)
    share = torch.full((k,), 1 / k).double() if prior is None else prior.double() / prior.sum()
    torch.testing.assert_close(p.sum(1), torch.ones(n).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(p.sum(0), n * share, atol=0, rtol=1e-6)


def test_differences_of_thousands_of_temperatures() -> None:
    """Where Newton's steps are lost in rounding."""
    logits = 20 * torch.randn(28, 3, generator=torch.Generator().manual_seed(291611756))
    torch.testing.assert_close(
        balanced(logits, None, 0.05).sum(0), torch.full((3,), 28 / 3).double(), atol=0, rtol=1e-6
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_what_sinkhorn_converges_to(temperature: float) -> None:
    random = np.random.default_rng(0)
    logits, prior = random.normal(size=(40, 5)), np.array([0.1, 0.3, 0.2, 0.25, 0.15])
    p = np.exp(logits / temperature)
    for _ in range(5000):
        p *= 40 * prior / p.sum(0)
        p /= p.sum(1, keepdims=True)
    ours = balanced(torch.from_numpy(logits), torch.from_numpy(prior), temperature)
    np.testing.assert_allclose(ours, p, atol=1e-7)


def test_what_is_balanced_already_stays() -> None:
    base = torch.randn(1, 4).softmax(1)
    cycle = torch.cat([base.roll(shift, 1) for shift in range(4)]).log()
    torch.testing.assert_close(balanced(cycle), cycle.double().softmax(1), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(potentials(cycle), torch.zeros(4).double(), atol=1e-6, rtol=0)


def test_a_low_temperature_is_the_linear_program() -> None:
    from scipy.optimize import linear_sum_assignment

    random = np.random.default_rng(1)
    scores, sizes = random.normal(size=(60, 4)), np.array([10, 25, 5, 20])
    _, place = linear_sum_assignment(np.repeat(scores, sizes, axis=1), maximize=True)
    best = np.repeat(np.arange(4), sizes)[place]
    ours = balanced(torch.from_numpy(scores), torch.from_numpy(sizes / 60), 1e-3)
    assert np.array_equal(ours.argmax(1).numpy(), best)
    assert abs(float((ours * torch.from_numpy(scores)).sum()) - scores[np.arange(60), best].sum()) < 0.01


def test_a_class_without_a_share_gets_nothing() -> None:
    p = balanced(torch.randn(30, 3), torch.tensor([1.0, 0.0, 2.0]))
    assert torch.equal(p[:, 1], torch.zeros(30).double())
    torch.testing.assert_close(p.sum(0), torch.tensor([10.0, 0.0, 20.0]).double(), atol=1e-5, rtol=0)


def test_constants_change_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 6, generator=g).double()
    moved = logits + torch.randn(50, 1, generator=g) + torch.randn(1, 6, generator=g)
    torch.testing.assert_close(balanced(moved), balanced(logits), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(balanced(logits * 7, temperature=7.0), balanced(logits), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3),), "logits"),
        ((torch.full((3, 2), torch.nan),), "not finite"),
        ((torch.ones(3, 2), torch.ones(3)), "prior"),
        ((torch.ones(3, 2), torch.tensor([1.0, -1.0])), "at least 0"),
        ((torch.ones(3, 2), None, 0.0), "temperature=0.0: not above 0"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[torch.Tensor, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        balanced(*arguments)  # type: ignore[arg-type]
