"""Label propagation against scikit-learn, a dense solution, and graphs whose answer is known."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from twofold.errors import UserError
from twofold.recognize.learners import Propagation
from twofold.recognize.propagate import Graph, nearest_others, propagate, spread
from twofold.recognize.saved_heads import restore
from twofold.recognize.soft_votes import SoftVotes


def rings(n: int = 150, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three long arcs on a sphere, which no linear rule tells apart: (3 n, 3) features and their arcs."""
    g = torch.Generator().manual_seed(seed)
    angle = 2 * torch.pi * torch.rand(3, n, generator=g)
    height = torch.tensor([-0.6, 0.0, 0.6])[:, None] + 0.02 * torch.randn(3, n, generator=g)
    ring = (1 - height.square()).sqrt()
    x = torch.stack([ring * angle.cos(), ring * angle.sin(), height], 2).flatten(0, 1)
    return x.double(), torch.arange(3).repeat_interleave(n)


def few(y: Tensor, k: int = 1) -> Tensor:
    found = torch.full_like(y, -1)
    for c in y.unique():
        found[(y == c).nonzero()[:k, 0]] = c
    return found


@pytest.mark.parametrize("affinity", ["local", "cosine"])
def test_the_graph_is_symmetric_and_normalised(affinity: str) -> None:
    x, _ = rings(40)
    dense = Graph.of(x, 6, affinity).matrix.to_dense()
    assert torch.equal(dense.diagonal(), torch.zeros(len(x)).double())
    torch.testing.assert_close(dense, dense.T)
    assert float(torch.linalg.eigvalsh(dense)[-1]) == pytest.approx(1, abs=1e-9)
    unit = torch.nn.functional.normalize(x, dim=1)
    distance = torch.cdist(unit, unit)
    near = torch.zeros_like(dense, dtype=torch.bool)
    near.scatter_(1, distance.argsort(1)[:, 1:7], True)
    near |= near.T.clone()
    assert torch.equal(dense > 0, near)
    reach = distance.sort(1).values[:, 6]  # the sixth of six
    weight = (-distance.square() / (reach[:, None] * reach)).exp() if affinity == "local" else (unit @ unit.T) ** 3
    weight = weight * near
    torch.testing.assert_close(dense, weight / (weight.sum(1)[:, None] * weight.sum(1)).sqrt(), atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(Graph.of(x * torch.rand(len(x), 1), 6, affinity).matrix.to_dense(), dense)


@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.99])
def test_it_is_scikit_learns_label_spreading(alpha: float) -> None:
    from scipy.sparse.csgraph import connected_components
    from sklearn.semi_supervised import LabelSpreading

    x, y = rings(60)
    graph = Graph.of(x, 8)
    given = few(y, 2)
    affinity = graph.matrix.to_dense().numpy()
    assert connected_components(affinity)[0] <= 3

    class Spreading(LabelSpreading):  # type: ignore[misc]
        def _build_graph(self) -> np.ndarray:
            return affinity

    model = Spreading(alpha=alpha, max_iter=20_000, tol=1e-13)
    with warnings.catch_warnings():  # divides by 0 where nothing arrives
        warnings.simplefilter("ignore")
        model.fit(x.numpy(), given.numpy())
    ours = propagate(graph.matrix, given, 3, alpha)
    reached = ours.amax(1) > ours.amin(1)
    np.testing.assert_allclose(ours[reached], model.label_distributions_[reached.numpy()], atol=1e-6)
    assert float(reached.double().mean()) > 0.9


def test_conjugate_gradients_solve_it() -> None:
    x, y = rings(50)
    graph = Graph.of(x, 10).matrix
    seeds = torch.nn.functional.one_hot(y, 3).double() * (torch.rand(150, 1) < 0.1)
    seeds[:, 2] = 0  # a class without labels
    expected = torch.linalg.solve(torch.eye(150).double() - 0.99 * graph.to_dense(), 0.01 * seeds)
    torch.testing.assert_close(spread(graph, seeds, 0.99), expected, atol=1e-10, rtol=1e-7)


def test_one_label_names_a_whole_arc() -> None:
    x, y = rings()
    learned = Propagation(space="raw")(x, few(y), 3)
    assert float((learned.probabilities.argmax(1) == y).double().mean()) == 1.0
    torch.testing.assert_close(learned.probabilities.sum(1), torch.ones(len(y)).double())
    new, truth = rings(40, seed=9)
    assert float((learned.logits(new).argmax(1) == truth).double().mean()) == 1.0


def test_weights_and_mass(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(90, 4, generator=g), torch.full((90,), -1)
    y[:2], y[2] = 0, 1  # two labels of one class, one of another, in one cloud
    graph = Graph.of(x, 12).matrix
    plain = propagate(graph, y, 2)
    even = propagate(graph, y, 2, prior=torch.tensor([0.5, 0.5]))
    assert abs(float(even.mean(0)[0]) - 0.5) < abs(float(plain.mean(0)[0]) - 0.5)
    heavy = propagate(graph, y, 2, weight=torch.where(y == 1, 5.0, 1.0))
    assert (heavy[:, 1] > plain[:, 1]).all()
    torch.testing.assert_close(propagate(graph, y, 2, weight=torch.full((90,), 7.0)), plain)
    monkeypatch.setattr("twofold.recognize.propagate.STATE", 1)  # one class at a time
    torch.testing.assert_close(propagate(graph, y, 2), plain)


def test_copies_and_images_that_no_label_reaches() -> None:
    g = torch.Generator().manual_seed(0)
    near = torch.nn.functional.normalize(torch.tensor([1.0, 0, 0]) + 0.05 * torch.randn(12, 3, generator=g), dim=1)
    far = torch.tensor([0.0, -1.0, 0.2]).repeat(12, 1)  # twelve copies of one image
    x, y = torch.cat([near, far]), torch.full((24,), -1)
    y[0], y[1] = 1, 0
    _, index = nearest_others(x, 3)
    assert not (index == torch.arange(24)[:, None]).any()
    x[1] = torch.tensor([0.9, -0.3, 0.0])  # the labelled one that is nearest to them
    learned = Propagation(space="raw", k=3)(x, y, 3)
    lost = learned.probabilities[12:]
    assert (lost.argmax(1) == 0).all() and float(lost.max()) < 0.35
    torch.testing.assert_close(lost.sum(1), torch.ones(12).double())


def test_a_saved_head_is_the_same_head(tmp_path: Path) -> None:
    x, y = rings()
    learned = Propagation(affinity="cosine", k=5)(x.float(), few(y, 3), 3)
    assert isinstance(learned.head.head, SoftVotes)
    save_file(learned.tensors(), tmp_path / "head.safetensors")
    again = restore("few_labels", load_file(tmp_path / "head.safetensors"))
    assert torch.equal(again.logits(x.float()), learned.head.logits(x.float()))


def test_what_is_wrong_is_said() -> None:
    x, y = rings(10)
    with pytest.raises(UserError, match="there are 30 images; 1 to 29"):
        Graph.of(x, 30)
    with pytest.raises(UserError, match="affinity=cosin: no such affinity; did you mean 'cosine'"):
        Graph.of(x, 3, "cosin")
    with pytest.raises(UserError, match="alpha=1: not between 0 and 1"):
        propagate(Graph.of(x, 3).matrix, y, 3, alpha=1.0)
    with pytest.raises(UserError, match="no image is labelled"):
        Propagation(k=3)(x, torch.full((30,), -1), 3)
    assert Propagation(k=1000)(x, few(y), 3).probabilities.shape == (30, 3)
