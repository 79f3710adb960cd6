"""Linear heads against scikit-learn, and against what must hold at a minimum."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofold.errors import UserError
from twofold.recognize import linear, softmax
from twofold.recognize.heads import NEVER
from twofold.recognize.linear import LinearHead, fit_logistic, fit_ridge, temperature


def made(
    problems: int = 2, n: int = 90, dims: int = 7, classes: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Overlapping classes whose features differ in place and size."""
    g = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.arange(classes), torch.randint(classes, (n - classes,), generator=g)])
    centres = torch.randn(problems, classes, dims, generator=g, dtype=torch.float64)
    x = centres[:, y] + torch.randn(problems, n, dims, generator=g, dtype=torch.float64)
    sizes, places = torch.rand(2, problems, 1, dims, generator=g, dtype=torch.float64).unbind()
    return ((x + 4 * places) * (0.2 + 3 * sizes)).to(dtype), y


def standardised(x: Tensor, weight: Tensor | None = None) -> Tensor:
    weight = torch.ones(x.shape[-2], dtype=x.dtype) if weight is None else weight
    mean = (weight[:, None] * x).sum(-2, keepdim=True) / weight.sum()
    return (x - mean) / ((weight[:, None] * (x - mean) ** 2).sum(-2, keepdim=True) / weight.sum()).sqrt()


def sklearn_logistic(x: Tensor, y: Tensor, c: float, intercept: bool, weight: Tensor | None = None):  # type: ignore[no-untyped-def]
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, tol=1e-12, max_iter=10000, solver="newton-cg", fit_intercept=intercept)
    with warnings.catch_warnings():  # its line search complains where nothing is left to gain
        warnings.simplefilter("ignore")
        return model.fit(x.numpy(), y.numpy(), sample_weight=None if weight is None else weight.numpy())


def loss(head: LinearHead, x: Tensor, y: Tensor, l2: float, weight: Tensor | None = None) -> Tensor:
    losses = F.cross_entropy(head.logits(x), y, reduction="none")
    return (losses if weight is None else losses * weight).mean() + l2 / 2 * head.weight.square().sum()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("standardise", [False, True])
def test_logistic_is_scikit_learns(standardise: bool, intercept: bool, weighted: bool) -> None:
    x, y = made()
    l2 = [0.3, 1e-2, 1e-3]
    weight = torch.rand(len(y), generator=torch.Generator().manual_seed(1), dtype=torch.float64) if weighted else None
    heads = fit_logistic(x, y, 4, l2, weight, standardise, intercept, tolerance=1e-10)
    assert heads.gradient is not None and heads.gradient.max() <= 1e-10
    for p in range(2):
        features = standardised(x[p], weight) if standardise else x[p]
        for s, strength in enumerate(l2):
            model = sklearn_logistic(features, y, 1 / (strength * len(y)), intercept, weight)
            assert np.allclose(heads.weight[p, s].T, model.coef_, atol=2e-6)
            bias = heads.bias[p, s] - heads.bias[p, s].mean()  # a softmax does not see what all classes share
            assert np.allclose(bias, model.intercept_ - model.intercept_.mean(), atol=1e-5)
            scores = model.decision_function(features.numpy())
            theirs = LinearHead(*(torch.as_tensor(a).double() for a in (model.coef_.T, model.intercept_, [0.0], [1.0])))
            ours = loss(heads.head(p, s), x[p], y, strength, weight)
            assert ours <= loss(theirs, features, y, strength, weight) + 1e-12
            assert np.allclose(torch.softmax(heads.head(p, s).logits(x[p]), 1), _softmax(scores), atol=1e-6)


def _softmax(scores: np.ndarray) -> np.ndarray:
    return torch.softmax(torch.from_numpy(scores), 1).numpy()


def test_two_classes_are_scikit_learns_at_twice_its_c() -> None:
    x, y = made(1, classes=2)
    heads = fit_logistic(x, y, 2, [0.02], tolerance=1e-10)
    model = sklearn_logistic(standardised(x[0]), y, 2 / (0.02 * len(y)), True)
    assert np.allclose(heads.weight[0, 0, :, 1] - heads.weight[0, 0, :, 0], model.coef_[0], atol=1e-6)


def test_the_strength_of_dual_pseudo_training() -> None:
    x, y = made(1, n=200)
    head = fit_logistic(x, y, 4, [0.0025 / 200], standardise=False, intercept=False, tolerance=1e-10).head(0)
    model = sklearn_logistic(x[0], y, 400.0, False)
    assert np.allclose(head.weight.T, model.coef_, atol=2e-4 * np.abs(model.coef_).max())
    assert not head.bias.any()


def test_few_images_with_wide_features() -> None:
    x, y = made(2, n=20, dims=64)
    heads = fit_logistic(x, y, 4, [0.1, 1e-3], tolerance=1e-10)
    for p, s in ((0, 0), (1, 1)):
        model = sklearn_logistic(standardised(x[p]), y, 1 / ([0.1, 1e-3][s] * 20), True)
        assert np.allclose(heads.weight[p, s].T, model.coef_, atol=1e-6)


def test_many_images_start_in_float32_and_end_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = made(3, n=400, dims=12, dtype=torch.float32)
    monkeypatch.setattr(linear, "SMALL", 10**12)
    exact = fit_logistic(x, y, 4, [0.1, 1e-4], tolerance=1e-9)
    formats = []
    monkeypatch.setattr(linear, "SMALL", 0)
    monkeypatch.setattr(
        linear, "minimise", lambda task, start: formats.append(start.dtype) or softmax.minimise(task, start)
    )
    heads = fit_logistic(x, y, 4, [0.1, 1e-4], tolerance=1e-9)
    assert formats == [torch.float32, torch.float64]
    assert torch.allclose(heads.weight, exact.weight, atol=1e-5)
    assert torch.allclose(heads.weight[:, 0], exact.weight[:, 0], atol=1e-7)


def test_together_is_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = made(5)
    l2 = [1.0, 0.1, 1e-3]
    together = fit_logistic(x, y, 4, l2, tolerance=1e-10)
    monkeypatch.setattr(softmax, "CACHE", 4 * len(y) * 4)  # four fits at once: they leave and follow each other
    monkeypatch.setattr(linear, "GROUP", 3 * 8 * len(y))  # and three problems
    queued = fit_logistic(x, y, 4, l2, tolerance=1e-10)
    ridges = fit_ridge(x, y, 4, l2)
    for p in range(5):
        for s, strength in enumerate(l2):
            alone = fit_logistic(x[p], y, 4, [strength], tolerance=1e-10).head(0)
            for heads in (together, queued):
                assert torch.allclose(heads.weight[p, s], alone.weight, atol=1e-6)
                assert torch.allclose(heads.bias[p, s], alone.bias, atol=1e-6)
            ridge = fit_ridge(x[p], y, 4, [strength]).head(0)
            assert torch.allclose(ridges.weight[p, s], ridge.weight, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 40), st.integers(1, 30), st.integers(2, 5), st.floats(1e-4, 10), st.booleans(), st.integers(0, 10**6)
)
def test_the_gradient_vanishes(n: int, dims: int, classes: int, l2: float, intercept: bool, seed: int) -> None:
    x, y = made(1, max(n, classes), dims, classes, seed)
    heads = fit_logistic(x, y, classes, [l2], standardise=False, intercept=intercept, tolerance=1e-8)
    weight, bias = heads.weight[0, 0].clone().requires_grad_(), heads.bias[0, 0].clone().requires_grad_()
    loss(LinearHead(weight, bias, heads.mean[0], heads.scale[0]), x[0], y, l2).backward()
    assert weight.grad is not None and weight.grad.abs().max() < 1e-8 * (1 + x.mean(1).abs().max()) * 1.01
    if intercept:
        assert bias.grad is not None and bias.grad.abs().max() < 1.01e-8


@pytest.mark.parametrize("fit", [fit_logistic, fit_ridge])
def test_unlabelled_and_weightless_images_do_not_count(fit) -> None:  # type: ignore[no-untyped-def]
    x, y = made(2)
    some = torch.arange(len(y)) % 3 > 0
    hidden = torch.where(some, y, -1)
    x[:, ~some] = torch.nan  # nobody looks at them
    expected = fit(x[:, some], y[some], 4, [0.1])
    assert torch.allclose(fit(x, hidden, 4, [0.1]).weight, expected.weight, atol=1e-12)

    x, y = made(2)
    share = int(some.sum()) / len(y)  # w_i / n: images of weight 0 are among the n
    heads = fit(x, y, 4, [0.1 * share], weight=some.double())
    assert torch.allclose(heads.weight, fit(x[:, some], y[some], 4, [0.1]).weight, atol=1e-4)


def test_weights_are_repetitions() -> None:
    x, y = made(1)
    count = torch.arange(len(y)) % 3 + 1
    repeated = fit_logistic(x.repeat_interleave(count, 1), y.repeat_interleave(count), 4, [0.1], tolerance=1e-10)
    weighted = fit_logistic(x, y, 4, [0.1 * float(count.sum()) / len(y)], count, tolerance=1e-10)
    assert torch.allclose(repeated.weight, weighted.weight, atol=1e-7)


@pytest.mark.parametrize("fit", [fit_logistic, fit_ridge])
def test_constant_features_are_nothing(fit) -> None:  # type: ignore[no-untyped-def]
    x, y = made(1, dtype=torch.float32)
    constant = torch.cat([x, torch.full((1, len(y), 1), 0.1), torch.zeros(1, len(y), 1)], 2)
    heads, expected = fit(constant, y, 4, [0.1]), fit(x, y, 4, [0.1])
    assert torch.allclose(heads.weight[:, :, :-2], expected.weight, atol=1e-4)
    assert heads.weight[:, :, -2:].abs().max() < 1e-12 and torch.isfinite(heads.logits(constant)).all()


@pytest.mark.parametrize("fit", [fit_logistic, fit_ridge])
def test_a_class_without_labels_is_never_answered(fit) -> None:  # type: ignore[no-untyped-def]
    x, y = made(1)
    heads, expected = fit(x, 2 * y, 9, [0.1]), fit(x, y, 4, [0.1])
    assert torch.equal(heads.weight[..., [0, 2, 4, 6]], expected.weight)
    assert (heads.bias[..., [1, 3, 5, 7, 8]] == NEVER).all() and not heads.weight[..., [1, 3, 5, 7, 8]].any()
    assert heads.accuracy(x, 2 * y) == expected.accuracy(x, y)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("n", [90, 12])
def test_ridge_is_scikit_learns(n: int, intercept: bool, weighted: bool) -> None:
    from sklearn.linear_model import Ridge, RidgeClassifier

    x, y = made(2, n, dims=20)
    weight = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if weighted else None
    heads = fit_ridge(x, y, 4, [1.0, 0.01], weight, standardise=False, intercept=intercept)
    for s, strength in enumerate((1.0, 0.01)):
        options = {"alpha": strength * n, "fit_intercept": intercept, "solver": "svd"}
        model = Ridge(**options).fit(x[1].numpy(), F.one_hot(y, 4).numpy(), sample_weight=weight)
        assert np.allclose(heads.weight[1, s].T, model.coef_, atol=1e-9)
        assert np.allclose(heads.bias[1, s], model.intercept_, atol=1e-9)
        classifier = RidgeClassifier(**options).fit(x[1].numpy(), y.numpy(), sample_weight=weight)
        assert np.array_equal(heads.head(1, s).logits(x[1]).argmax(1), classifier.predict(x[1].numpy()))


def test_heads_agree_with_themselves(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    x, y = made(3, dtype=torch.float32)
    heads = fit_logistic(x, y, 4, [0.1, 0.01])
    logits = heads.logits(x)
    assert logits.shape == (3, 2, len(y), 4) and logits.dtype == torch.float32
    assert torch.equal(logits[2, 1], heads.head(2, 1).logits(x[2]))
    hidden = torch.where(torch.arange(len(y)) % 2 == 0, y, -1)
    assert torch.allclose(heads.accuracy(x, hidden), (logits.argmax(3) == y)[:, :, ::2].double().mean(2))
    save_file(heads.head(1, 0).tensors(), tmp_path / "head.safetensors")
    again = LinearHead.from_tensors(load_file(tmp_path / "head.safetensors"))
    assert torch.equal(again.logits(x[1]), logits[1, 0])


def test_features_may_be_memory_mapped_and_parts_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = made(3, dtype=torch.float32)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    heads, expected = fit_logistic(mapped, y.numpy(), 4, [0.1]), fit_logistic(x, y, 4, [0.1])
    assert torch.equal(heads.weight, expected.weight)
    accuracy, logits = heads.accuracy(x, y), heads.logits(x)
    monkeypatch.setattr("twofold.recognize.heads.BUDGET", 1000)
    assert torch.equal(heads.accuracy(mapped, y), accuracy)
    assert torch.allclose(heads.logits(mapped), logits, atol=1e-6)


def test_temperature_undoes_a_scale() -> None:
    from scipy.optimize import minimize_scalar

    g = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=g, dtype=torch.float64) * 2
    y = torch.multinomial(torch.softmax(logits, 1), 1, generator=g)[:, 0]
    found = temperature(3 * logits, y)
    assert found == pytest.approx(3, rel=0.1)
    assert temperature(30 * logits, torch.where(torch.arange(4000) < 10**4, y, -1)) == pytest.approx(10 * found)
    best = minimize_scalar(lambda t: F.cross_entropy(3 * logits / t, y).item(), bounds=(0.1, 20), method="bounded")
    assert found == pytest.approx(best.x, rel=1e-4)


def test_temperature_stays_in_its_range() -> None:
    logits = torch.tensor([[1.0, -1.0], [-2.0, 2.0]])
    assert temperature(logits, torch.tensor([0, 1])) == pytest.approx(0.01)
    assert temperature(logits, torch.tensor([1, 0])) == pytest.approx(100)


def test_a_fit_that_does_not_arrive_says_so() -> None:
    x, y = made(1)
    with pytest.warns(UserWarning, match="1 of 1 logistic regressions stopped above the tolerance 1e-05"):
        heads = fit_logistic(x, y, 4, [1e-4], max_steps=2)
    assert heads.gradient is not None and heads.gradient.max() > 1e-5


@pytest.mark.parametrize("fit", [fit_logistic, fit_ridge])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.full((2, 8, 3), torch.nan)}, "features of problem 0: NaN or infinity for 8 of 8 labelled images"),
        ({"x": torch.zeros(2, 0, 3)}, "features: of shape (2, 0, 3); expected"),
        ({"y": torch.zeros(8, dtype=torch.int64)}, "labels: all images are of one class; a classifier needs"),
        ({"y": torch.full((8,), -1)}, "labels: no image is labelled"),
        ({"y": torch.arange(8)}, "labels: label 2 of 2 classes"),
        ({"y": torch.zeros(8)}, "labels: torch.float32 of shape (8,); expected 8 integers"),
        ({"y": torch.zeros(7, dtype=torch.int64)}, "labels: torch.int64 of shape (7,); expected 8 integers"),
        ({"l2": []}, "l2: []; one or more numbers above 0"),
        ({"l2": [0.1, 0.0]}, "l2: [0.1, 0.0]; one or more"),
        ({"weight": -torch.ones(8)}, "weight: not a number >= 0 for every image; expected 8"),
        ({"weight": torch.ones(3)}, "weight: not a number"),
    ],
)
def test_mistakes_are_told(fit, change: dict[str, object], message: str) -> None:  # type: ignore[no-untyped-def]
    given = {"x": torch.randn(2, 8, 3), "y": torch.arange(8) % 2, "classes": 2, "l2": [0.1], "weight": None} | change
    with pytest.raises(UserError) as error:
        fit(**given)
    assert str(error.value).startswith(message)


def test_heads_refuse_other_features() -> None:
    x, y = made(2)
    heads = fit_ridge(x, y, 4, [0.1])
    for wrong in (x[:1], x[..., :3], x[0]):
        with pytest.raises(UserError, match="these heads expect"):
            heads.accuracy(wrong, y)
    with pytest.raises(UserError, match=r"expected \(N, 7\)"):
        heads.head(0).logits(x[0, :, :3])
