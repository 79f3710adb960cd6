"""Nearest neighbours against brute force in float64; precision and recall against prdc and the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.errors import UserError
from twofold.measure import nearest, neighbour_report, neighbours, precision_recall
from twofold.measure.neighbours import manifold_radii


def brute(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """All distances (Q, R), one difference after another, in float64."""
    return np.stack([((q - references.astype(np.float64)) ** 2).sum(1) ** 0.5 for q in queries.astype(np.float64)])


def clouds(q: int, r: int, dims: int, seed: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.standard_normal((q, dims)).astype(dtype), random.standard_normal((r, dims)).astype(dtype)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 30), st.integers(1, 60), st.integers(1, 12), st.integers(1, 5), st.integers(0, 999), st.booleans()
)
def test_equals_brute_force(q: int, r: int, dims: int, k: int, seed: int, double: bool) -> None:
    k = min(k, r)
    queries, references = clouds(q, r, dims, seed, np.float64 if double else np.float32)
    distances, indices = nearest(queries, torch.from_numpy(references), k)
    everything = brute(queries, references)
    assert distances.dtype == torch.float64 and indices.dtype == torch.int64
    np.testing.assert_allclose(distances, np.sort(everything, 1)[:, :k], rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(indices, np.argsort(everything, 1, kind="stable")[:, :k])


@pytest.mark.parametrize("far", [0.0, 100.0, 1e4])
def test_near_copies_far_from_the_origin_do_not_cancel(far: float) -> None:
    """In float32 the matrix product alone would lose these distances altogether."""
    random = np.random.default_rng(0)
    references = (far + random.standard_normal((400, 64))).astype(np.float32)
    queries = references[:50] + np.float32(2e-3) * random.standard_normal((50, 64)).astype(np.float32)
    distances, indices = nearest(queries, references, 2)
    expected = np.sort(brute(queries, references), 1)[:, :2]
    np.testing.assert_array_equal(indices[:, 0], np.arange(50))
    np.testing.assert_allclose(distances, expected, rtol=1e-9)


def test_more_near_ties_than_spare_candidates() -> None:
    """Distances that differ by less than float32 can tell: only the certificate and the second search find them."""
    random = np.random.default_rng(1)
    direction = random.standard_normal((200, 32))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = 1 + 1e-9 * random.permutation(200)[:, None]
    references = np.concatenate([direction * radius, -500 + random.standard_normal((2, 32))])
    query = np.zeros((1, 32))
    _, indices = nearest(query, references, 3)
    everything = brute(query, references)
    np.testing.assert_array_equal(indices[0], np.argsort(everything[0])[:3])
    single = nearest(query.astype(np.float32), references.astype(np.float32), 3)
    everything = brute(query.astype(np.float32), references.astype(np.float32))
    np.testing.assert_array_equal(np.sort(single[1][0]), np.sort(np.argsort(everything[0], kind="stable")[:3]))
    np.testing.assert_allclose(single[0][0], np.sort(everything[0])[:3], rtol=1e-14)


def test_identical_images_have_distance_zero() -> None:
    references = np.repeat(clouds(1, 3, 5, 2)[1], 40, axis=0)
    distances, indices = nearest(references[::40], references, 4)
    assert (distances == 0).all()
    assert (indices // 40 == torch.arange(3)[:, None]).all()
    assert all(len(set(row.tolist())) == 4 for row in indices)


def test_small_memory_gives_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, references = clouds(37, 53, 6, 3)
    before = nearest(queries, references, 3)
    shares = precision_recall(references, queries)
    monkeypatch.setattr(neighbours, "BUDGET", 1000)
    for was, now in zip(before, nearest(queries, references, 3), strict=True):
        assert torch.equal(was, now)
    assert precision_recall(references, queries) == shares


@settings(max_examples=30, deadline=None)
@given(st.integers(7, 60), st.integers(7, 60), st.integers(1, 8), st.integers(1, 5), st.integers(0, 999))
def test_precision_recall_equals_prdc_and_the_definition(n: int, m: int, dims: int, k: int, seed: int) -> None:
    real, fake = clouds(n, m, dims, seed)
    fake = fake * np.float32(0.7) + np.float32(0.3)
    precision, recall = precision_recall(real, fake, k)
    for ours, queries, references in ((precision, fake, real), (recall, real, fake)):
        radii = np.sort(brute(references, references), 1)[:, k]
        assert ours == pytest.approx((brute(queries, references) <= radii).any(1).mean(), abs=1e-12)
    theirs = pytest.importorskip("prdc").compute_prdc(real.astype(np.float64), fake.astype(np.float64), nearest_k=k)
    assert precision_recall(real, fake, k, manifold_radii(real, k)) == (precision, recall)
    assert precision == pytest.approx(theirs["precision"], abs=1e-12)
    assert recall == pytest.approx(theirs["recall"], abs=1e-12)


def test_precision_and_recall_mean_what_they_say() -> None:
    random = np.random.default_rng(0)
    real = np.concatenate([random.standard_normal((200, 4)), 50 + random.standard_normal((200, 4))])
    one_mode, noise = random.standard_normal((200, 4)), random.uniform(-500, 500, (200, 4))
    precision, recall = precision_recall(real, one_mode)
    assert precision > 0.8 and recall == pytest.approx(0.5, abs=0.1)
    assert precision_recall(real, noise)[0] == 0
    assert precision_recall(real, real) == (1, 1)


def test_on_the_edge_of_a_ball_is_inside() -> None:
    real = np.array([[0.0], [1.0], [2.0], [100.0]])
    edge = np.array([[3.0], [-1.0], [-1.0001], [198.0]])
    assert precision_recall(real, edge, k=1)[0] == 0.75  # 100 reaches from 2 to 198; -1.0001 is outside
    assert precision_recall(real[:3], edge, k=1)[0] == 0.5


def test_copies_are_told_from_new_images() -> None:
    random = np.random.default_rng(3)
    train, held_out, new = (random.standard_normal((500, 10)) for _ in range(3))
    honest = neighbour_report(new, train, held_out)
    copied = neighbour_report(train[:100] + 1e-3, train, held_out)
    assert honest["nearest_median"]["samples"] == pytest.approx(honest["nearest_median"]["real"], rel=0.1)
    assert honest["nearer_than_real"]["samples"] < 0.12
    assert copied["nearer_than_real"]["samples"] == 1 and copied["farther_than_real"]["samples"] == 0
    noise = neighbour_report(random.uniform(-9, 9, (100, 10)), train, held_out)
    assert noise["nearer_than_real"]["samples"] == 0 and noise["farther_than_real"]["samples"] == 1
    beyond = (np.sort(brute(new, train), 1)[:, 0] > np.quantile(np.sort(brute(held_out, train), 1)[:, 0], 0.99)).mean()
    assert honest["farther_than_real"] == {"samples": pytest.approx(beyond), "real": 0.01} and 0 < beyond < 0.05
    assert copied["nearest_median"]["samples"] == pytest.approx(1e-3 * 10**0.5, rel=1e-6)
    everything = np.sort(brute(held_out, train), 1)[:, 0]
    assert honest["nearest_5_percent"]["real"] == pytest.approx(np.quantile(everything, 0.05), rel=1e-12)
    assert honest["nearest_median"]["real"] == pytest.approx(np.median(everything), rel=1e-12)


@pytest.mark.parametrize(
    ("queries", "references", "k", "message"),
    [
        (np.zeros((2, 3)), np.zeros((4, 2)), 1, "3 dimensions and 2 dimensions"),
        (np.zeros((2, 3)), np.zeros((4, 3)), 5, "there are 4 references"),
        (np.zeros((2, 3)), np.zeros((4, 3)), 0, "k=0"),
        (np.full((2, 3), np.nan), np.zeros((4, 3)), 1, "NaN or infinity"),
        (np.zeros((2, 3)), np.full((4, 3), np.inf), 1, "NaN or infinity"),
        (np.zeros((0, 3)), np.zeros((4, 3)), 1, "not empty"),
        (np.zeros(3), np.zeros((4, 3)), 1, "expected \\(images, dimensions\\)"),
    ],
)
def test_mistakes(queries: np.ndarray, references: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        nearest(queries, references, k)


@pytest.mark.parametrize(("n", "m"), [(3, 9), (9, 3)])
def test_too_few_images_for_a_manifold(n: int, m: int) -> None:
    with pytest.raises(UserError, match=r"k=3: 3 (real|fake) images"):
        precision_recall(np.zeros((n, 2)), np.zeros((m, 2)))
    with pytest.raises(UserError, match="k=3: 3 images"):
        manifold_radii(np.zeros((3, 2)))
