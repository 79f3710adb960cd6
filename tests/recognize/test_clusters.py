"""Clusters of all images, their match with labels, and a mixture that begins again at them."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from twofold.recognize import clusters
from twofold.recognize.clusters import matched, ward
from twofold.recognize.learners import Mixture
from twofold.recognize.mixture import members
from twofold.recognize.spaces import standardised


def test_clusters_are_those_of_scikit_learn() -> None:
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import adjusted_rand_score

    x = torch.randn(150, 6, generator=torch.Generator().manual_seed(0))
    found = ward(x, 5)
    assert torch.equal(found.sum(1), torch.ones(150, dtype=torch.float64))
    theirs = AgglomerativeClustering(5).fit_predict(standardised(x).double().numpy())
    assert adjusted_rand_score(theirs, found.argmax(1).numpy()) == 1


def test_of_many_images_some_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "MOST", 40)
    found = ward(torch.randn(100, 3, generator=torch.Generator().manual_seed(0)), 4)
    assert int(found.sum()) == 40 and bool((found.sum(0) > 0).all())


@pytest.mark.parametrize("images", [1, 3])
def test_fewer_images_than_clusters(images: int) -> None:
    assert int(ward(torch.randn(images, 3), 7).sum()) == images


def test_the_match_is_the_best_of_all() -> None:
    g = torch.Generator().manual_seed(0)
    log = torch.randn(30, 4, generator=g).double().mul(3).log_softmax(1)
    given = members(torch.where(torch.arange(30) < 8, torch.arange(30) % 4, -1), 4)
    best = max(permutations(range(4)), key=lambda order: float((log[:, list(order)] * given).sum()))
    torch.testing.assert_close(matched(log, given), log.exp()[:, list(best)])


def misleading(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Eight clouds; of three classes the one labelled image is nearer to another class."""
    g = torch.Generator().manual_seed(seed)
    means, y = 2.5 * torch.randn(8, 8, generator=g), torch.arange(8).repeat(60)
    x = means[y] + torch.randn(480, 8, generator=g)
    given = torch.full((480,), -1)
    given[:8] = torch.arange(8)
    for a, b in ((0, 1), (2, 3), (4, 5)):
        x[a] = 0.45 * means[a] + 0.55 * means[b]
    return x, y, given


def test_clusters_free_a_mixture_from_labels_that_mislead() -> None:
    """One in eight classes would share a cluster with another, and one would be cut in two."""
    x, y, given = misleading(11)
    right = {}
    for start in ("propagation", "best"):
        found = Mixture(start=start, space="columns")(x, given, 8).balanced().argmax(1)
        right[start] = float((found == y).double().mean())
    assert right["propagation"] < 0.8 and right["best"] > 0.98


def test_where_both_beginnings_end_alike_nothing_changes() -> None:
    x, _, given = misleading(2)
    best, plain = (Mixture(start=start, space="columns")(x, given, 8) for start in ("best", "propagation"))
    assert torch.equal(best.scores, plain.scores)
