"""Nearest labelled images against scikit-learn and against the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twofold.errors import UserError
from twofold.recognize.knn import KNN


def made(n: int = 300, m: int = 60, dims: int = 9, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, dims, generator=g)
    return centres[y] + torch.randn(n, dims, generator=g), y, centres[torch.arange(m) % classes] + 1.0


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 7, 300])
def test_plain_votes_are_scikit_learns(metric: str, k: int) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    x, y, queries = made()
    model = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(x.double().numpy(), y.numpy())
    ours = KNN(x, y, 4, k, None, metric).scores(queries)  # type: ignore[arg-type]
    assert np.allclose(ours, model.predict_proba(queries.double().numpy()), atol=1e-12)


def test_votes_fade_with_distance() -> None:
    x, y, queries = made()
    unit, others = (torch.nn.functional.normalize(part.double(), dim=1) for part in (queries, x))
    similarity, index = (unit @ others.T).topk(20)
    weights = (similarity / 0.07).exp()
    expected = torch.stack([(weights * (y[index] == c)).sum(1) for c in range(4)], 1) / weights.sum(1, keepdim=True)
    scores = KNN(x, y, 4).scores(queries)
    assert torch.allclose(scores, expected, atol=1e-5)
    assert torch.allclose(KNN(5 * x, y, 4).scores(0.1 * queries), scores, atol=1e-5)  # directions only
    assert torch.allclose(KNN(x, y, 4, temperature=1e6).scores(queries), KNN(x, y, 4, temperature=None).scores(queries))


def test_far_queries_keep_their_votes() -> None:
    x, y, queries = made()
    scores = KNN(x, y, 4, temperature=1e-3, metric="euclidean").scores(queries + 1e4)  # exp(-distance) underflows
    assert torch.allclose(scores.sum(1), torch.ones(60, dtype=torch.float64))


def test_unlabelled_images_have_no_vote() -> None:
    x, y, queries = made()
    known = torch.arange(len(y)) % 5 == 0
    half = KNN(x, torch.where(known, y, -1), 4, k=10)
    assert torch.equal(half.scores(queries), KNN(x[known], y[known], 4, k=10).scores(queries))


def test_memory_mapped_features_and_small_parts(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    x, y, queries = made()
    expected = KNN(x, y, 4).scores(queries)
    np.save(tmp_path / "x.npy", x.numpy())
    monkeypatch.setattr("twofold.measure.neighbours.BUDGET", 5000)
    knn = KNN(np.load(tmp_path / "x.npy", mmap_mode="r"), y.numpy(), 4)
    assert torch.allclose(knn.scores(queries.numpy()), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 9}, "k=9: 8 images are labelled; 1 to 8"),
        ({"k": 0}, "k=0: 8 images are labelled"),
        ({"temperature": 0.0}, "temperature=0.0: not above 0; 0.07 is usual"),
        ({"metric": "cosin"}, "metric=cosin: no such metric; did you mean 'cosine'?"),
        ({"labels": torch.full((8,), -1)}, "labels: no image is labelled"),
        ({"labels": torch.full((8,), 5)}, "labels: label 5 of 2 classes"),
        ({"features": torch.zeros(8)}, "features: of shape (8,)"),
    ],
)
def test_mistakes_are_told(change: dict[str, object], message: str) -> None:
    given = {"features": torch.randn(8, 3), "labels": torch.arange(8) % 2, "classes": 2, "k": 3} | change
    with pytest.raises(UserError) as error:
        KNN(**given)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_queries_are_checked() -> None:
    knn = KNN(torch.randn(8, 3), torch.arange(8) % 2, 2, k=3)
    with pytest.raises(UserError, match="4 dimensions and 3 dimensions"):
        knn.scores(torch.randn(2, 4))
    with pytest.raises(UserError, match="NaN or infinity"):
        knn.scores(torch.full((2, 3), torch.nan))
