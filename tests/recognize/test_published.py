"""The published classifier against scikit-learn, SciPy's L-BFGS and what must hold at a minimum."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from twofold.errors import UserError
from twofold.recognize.published import LAMBDA, Logistic, fit_published
from twofold.recognize.saved_heads import restore
from twofold.recognize.spaces import SPACES, InSpace, Space, space_of, standardised


def made(n: int = 60, dims: int = 12, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features far from the origin, of unlike lengths."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.randn(classes, dims, generator=g, dtype=torch.float64)[y]
    x = x + 0.8 * torch.randn(n, dims, generator=g, dtype=torch.float64)
    return (x + 3) * (0.5 + 5 * torch.rand(n, 1, generator=g, dtype=torch.float64)), y


def objective(weight: Tensor, u: Tensor, y: Tensor, lam: float, share: Tensor | None = None) -> Tensor:
    losses = F.cross_entropy(u @ weight, y, reduction="none")
    return (losses if share is None else losses * share).mean() + lam / len(y) / 2 * weight.square().sum()


@given(st.integers(1, 40), st.integers(2, 30), st.integers(0, 2**31), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_standardised_rows(n: int, dims: int, seed: int, place: float, size: float) -> None:
    x = torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u = standardised(x)
    torch.testing.assert_close(u.sum(1), torch.zeros(n, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(u.norm(dim=1), torch.ones(n, dtype=torch.float64))
    torch.testing.assert_close(standardised(x * size + place), u, atol=1e-6, rtol=1e-6)


def test_a_row_of_equal_numbers_has_no_direction() -> None:
    assert torch.equal(standardised(torch.full((2, 7), 0.1)), torch.zeros(2, 7))
    assert torch.equal(standardised(torch.zeros(1, 3)), torch.zeros(1, 3))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [2, 5])
def test_it_is_scikit_learns_with_c_400(classes: int, weighted: bool) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = made(classes=classes)
    weight = torch.rand(len(y), generator=torch.Generator().manual_seed(1)).double() + 0.1 if weighted else None
    c = (2 if classes == 2 else 1) / LAMBDA
    model = LogisticRegression(C=c, fit_intercept=False, tol=1e-14, max_iter=100_000, solver="newton-cg")
    u = standardised(x).numpy()
    with warnings.catch_warnings():  # its line search complains where nothing is left to gain
        warnings.simplefilter("ignore")
        model.fit(u, y.numpy(), sample_weight=None if weight is None else weight.numpy())
    ours = fit_published(x, y, classes, weight=weight).logits(x).softmax(1)
    assert np.abs(ours.numpy() - model.predict_proba(u)).max() < 1e-6


@pytest.mark.parametrize("dims", [12, 200])
def test_the_objective_is_that_of_scipys_l_bfgs(dims: int) -> None:
    from scipy.optimize import minimize

    x, y = made(dims=dims)
    u, share = standardised(x), torch.rand(len(y), generator=torch.Generator().manual_seed(3)).double()

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = torch.tensor(flat).view(dims, 5).requires_grad_()
        found = objective(weight, u, y, LAMBDA, share)
        found.backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        return found.item(), weight.grad.flatten().numpy()

    options = {"maxiter": 20_000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-10}
    best = minimize(value, np.zeros(dims * 5), jac=True, method="L-BFGS-B", options=options).fun
    head = fit_published(x, y, 5, weight=share)
    assert abs(float(objective(head.head.weight.double(), u, y, LAMBDA, share)) - best) < 1e-6  # type: ignore[union-attr]


def test_the_answer_does_not_depend_on_the_rows_places_and_sizes() -> None:
    x, y = made()
    new, _ = made(200, seed=5)
    head = fit_published(x, y, 5)
    assert isinstance(head, InSpace)
    weight = head.head.weight.double()  # type: ignore[union-attr]
    torch.testing.assert_close(weight.sum(0), torch.zeros(5).double(), atol=1e-3, rtol=0)
    answers = head.logits(new).argmax(1)
    assert torch.equal((new @ weight).argmax(1), answers)  # the published code forgets to standardise here
    assert float((new @ weight).softmax(1).amax(1).mean()) > float(head.logits(new).softmax(1).amax(1).mean())
    g = torch.Generator().manual_seed(0)
    moved = new * (0.1 + 9 * torch.rand(200, 1, generator=g)) + torch.randn(200, 1, generator=g)
    torch.testing.assert_close(head.logits(moved), head.logits(new), atol=1e-5, rtol=1e-5)


def test_unlabelled_images_and_absent_classes() -> None:
    x, y = made()
    some = torch.where((torch.arange(60) < 30) & (y != 2), y, -1)
    head = fit_published(x, some, 5)
    alone = fit_published(x[some >= 0], some[some >= 0], 5)
    torch.testing.assert_close(head.logits(x), alone.logits(x))
    assert not (head.logits(x).argmax(1) == 2).any()
    with pytest.raises(UserError, match="no image is labelled"):
        fit_published(x, torch.full((60,), -1), 5)


@pytest.mark.parametrize("name", SPACES)
def test_a_saved_head_is_the_same_head(tmp_path: Path, name: str) -> None:
    x, y = made()
    learned = Logistic(space=name, dims=4)(x.float(), y, 5)  # type: ignore[arg-type]
    save_file(learned.tensors(), tmp_path / "head.safetensors")
    again = restore(learned.kind, load_file(tmp_path / "head.safetensors"))
    assert torch.equal(again.logits(x.float()), learned.head.logits(x.float()))
    torch.testing.assert_close(learned.logits(x.float()).double(), learned.scores, atol=1e-4, rtol=1e-4)
    assert float((learned.probabilities.argmax(1) == y).double().mean()) > 0.6


def test_spaces_are_what_they_are_called() -> None:
    x, _ = made(300, 8)
    u = space_of("columns", x)(x)
    torch.testing.assert_close(u.mean(0), torch.zeros(8).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(u.std(0, correction=0), torch.ones(8).double())
    white = space_of("whitened", x, 3)(x)
    torch.testing.assert_close(white.T @ white / 300, torch.eye(3).double(), atol=1e-8, rtol=0)
    leading = torch.linalg.svd(x - x.mean(0), full_matrices=False).U[:, :3] * 300**0.5
    torch.testing.assert_close(white.abs(), leading.abs(), atol=1e-8, rtol=1e-8)
    assert torch.equal(space_of("raw", x)(x), x)
    assert torch.equal(space_of("rows", x)(x), standardised(x))
    constant = torch.cat([x, torch.ones(300, 1)], 1)
    assert torch.equal(space_of("columns", constant)(constant)[:, 8], torch.zeros(300).double())
    assert space_of("whitened", constant)(constant).shape == (300, 8)


def test_spaces_say_what_is_wrong() -> None:
    x, y = made()
    with pytest.raises(UserError, match=r"space=column: no such space; did you mean 'columns'"):
        space_of("column", x)
    with pytest.raises(UserError, match="not a number of components"):
        space_of("whitened", x, 0)
    with pytest.raises(UserError, match="NaN or infinity"):
        space_of("rows", torch.full((3, 2), torch.nan))
    with pytest.raises(UserError, match=r"expected \(N, 12\)"):
        fit_published(x, y, 5).logits(x[:, :5])
    assert isinstance(space_of("rows", x), Space)
