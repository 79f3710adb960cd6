"""Every learner of few labels: what all of them owe, and what each is for. Figures are of scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from twofold.errors import UserError
from twofold.recognize.calibrate import _hidden, calibrated, smoothed_temperature, temperature_of
from twofold.recognize.heads import temperature
from twofold.recognize.learned import Learned
from twofold.recognize.learners import LEARNERS, Logistic, Mixture, Propagation, Prototypes, SelfTraining
from twofold.recognize.mixture import members
from twofold.recognize.saved_heads import restore
from twofold.recognize.self_training import surest

SMALL: dict[str, dict[str, Any]] = {"propagation": {"k": 5}, "mixture": {"dims": 3, "steps": 10}}


def clouds(n: int = 40, classes: int = 3, apart: float = 6.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Round clouds in six dimensions around the ends of the first axes."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n * classes) % classes
    return apart * torch.eye(6)[y] + torch.randn(n * classes, 6, generator=g), y


def few(y: Tensor, k: int = 1, seed: int = 0) -> Tensor:
    found, g = torch.full_like(y, -1), torch.Generator().manual_seed(seed)
    for c in y.unique():
        rows = (y == c).nonzero()[:, 0]
        found[rows[torch.randperm(len(rows), generator=g)[:k]]] = c
    return found


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x).float()[:600], torch.from_numpy(y).long()[:600]


@pytest.mark.parametrize("name", LEARNERS)
def test_what_every_learner_owes(name: str, tmp_path: Path) -> None:
    x, y = clouds()
    learner = LEARNERS[name](**SMALL.get(name, {}))
    given = few(y, 2)
    learned = learner(x, given, 3)
    assert isinstance(learned, Learned) and learned.probabilities.shape == (120, 3)
    torch.testing.assert_close(learned.probabilities.sum(1), torch.ones(120).double())
    assert float((learned.probabilities.argmax(1) == y).double().mean()) > 0.9
    new, truth = clouds(seed=7)
    assert float((learned.logits(new).argmax(1) == truth).double().mean()) > 0.9
    torch.testing.assert_close(learned.balanced().sum(0), torch.full((3,), 40.0).double(), atol=0, rtol=1e-6)
    save_file(learned.tensors(), tmp_path / "head.safetensors")
    again = restore(learned.kind, load_file(tmp_path / "head.safetensors"))
    assert torch.equal(again.logits(new), learned.head.logits(new))
    repeated = learner(x, given, 3)
    assert torch.equal(repeated.scores, learned.scores)


@pytest.mark.parametrize("name", LEARNERS)
def test_weights_classes_without_labels_and_mistakes(name: str) -> None:
    x, y = clouds()
    learner, given = LEARNERS[name](**SMALL.get(name, {})), few(y, 3)
    alone = learner(x, torch.where(given == 1, -1, given), 3)
    assert not (alone.probabilities.argmax(1) == 1).any() and torch.isfinite(alone.scores).all()
    plain, even = learner(x, given, 3), learner(x, given, 3, torch.ones(120))
    torch.testing.assert_close(even.scores, plain.scores, atol=1e-6, rtol=1e-6)
    wrong = given.clone()
    place = (given == 0).nonzero()[0, 0]
    wrong[place] = 2  # a wrong label that weighs nothing is no label
    ignored = learner(x, wrong, 3, torch.where(torch.arange(120) == place, 1e-9, 1.0))
    assert float((ignored.probabilities.argmax(1) == y).double().mean()) > 0.9
    with pytest.raises(UserError, match="no image is labelled"):
        learner(x, torch.full((120,), -1), 3)
    with pytest.raises(UserError, match="label 5 of 3 classes"):
        learner(x, torch.full((120,), 5), 3)
    with pytest.raises(UserError, match="NaN or infinity"):
        learner(torch.where(torch.arange(120)[:, None] == 4, torch.nan, x), given, 3)


def test_unlabelled_images_help(digits: tuple[Tensor, Tensor]) -> None:
    """With two labels of each class: 0.76 without them; 0.9 with them."""
    x, y = digits
    scores = {}
    for name, learner in {"alone": Logistic(), "graph": Propagation(), "mixture": Mixture(steps=20)}.items():
        fit = learner.on(x, 10)
        found = [fit(given, None).balanced().argmax(1) == y for given in (few(y, 2, seed) for seed in range(3))]
        scores[name] = float(torch.cat(found).double().mean())
    assert scores["graph"] > scores["alone"] + 0.08
    assert scores["mixture"] > scores["alone"] + 0.08


def test_the_nearest_mean_is_the_nearest_mean() -> None:
    x, y = clouds(apart=2.0)
    given = few(y, 5)
    learned = Prototypes(space="raw", sharpness=4.0)(x, given, 3)
    means = torch.stack([x[given == c].double().mean(0) for c in range(3)])
    distance = torch.cdist(x.double(), means).square()
    scale = float(x.double().square().sum(1).mean())
    torch.testing.assert_close(learned.probabilities, (-2 * distance / scale).softmax(1), atol=1e-6, rtol=1e-5)


def test_a_mixture_finds_the_discriminant_of_all_images() -> None:
    """With all labels given it is linear discriminant analysis."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, y = clouds(apart=2.0)
    mixture = Mixture(start="labels", space="raw", shrinkage=0.0, even=False, steps=3)
    ours = mixture(x, y, 3).probabilities
    model = LinearDiscriminantAnalysis(solver="lsqr").fit(x.double().numpy(), y.numpy())
    torch.testing.assert_close(ours, torch.from_numpy(model.predict_proba(x.double().numpy())), atol=1e-6, rtol=1e-6)


def test_the_surest_become_labels() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6]])
    given = torch.tensor([-1, -1, 1, -1, -1, -1])
    assert surest(probabilities, given, 0.5).tolist() == [0, 0, 1, -1, 1, -1]
    assert surest(probabilities, given, 1.0).tolist() == [0, 0, 1, 0, 1, 1]
    assert surest(probabilities, given, 0.0).tolist() == given.tolist()


def test_self_training_keeps_what_is_given() -> None:
    x, y = clouds()
    given = few(y, 2)
    learned = SelfTraining(first="logistic", space="rows", rounds=3)(x, given, 3)
    assert torch.equal(learned.probabilities.argmax(1)[given >= 0], given[given >= 0])


def test_members() -> None:
    found = members(torch.tensor([1, -1, 0]), 2, torch.tensor([0.5, 9.0, 2.0]))
    assert found.tolist() == [[0.0, 0.5], [0.0, 0.0], [2.0, 0.0]]


def test_the_smoothed_temperature() -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(4000, 4, generator=g).double()
    truth = torch.distributions.Categorical(logits=scores).sample()
    assert smoothed_temperature(scores, truth) == pytest.approx(1, abs=0.1)
    assert smoothed_temperature(5 * scores, truth) == pytest.approx(5 * smoothed_temperature(scores, truth), rel=1e-6)
    assert smoothed_temperature(scores, truth) == pytest.approx(temperature(scores, truth), rel=0.01)
    right = 3 * torch.eye(4).double()
    found = (right / smoothed_temperature(right, torch.arange(4))).softmax(1)
    assert float(found[0, 0]) == pytest.approx(1 - 0.2 + 0.2 / 4, abs=1e-6)  # Platt's target, not 1


def test_hidden_labels_are_hidden_and_asked_once() -> None:
    y = torch.full((40,), -1)
    y[:11] = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    asked: list[int] = []

    def fit(seen: Tensor, weight: object) -> Learned:
        assert all(int((seen == c).sum()) >= 2 for c in range(3))
        hidden = ((y >= 0) & (seen < 0)).nonzero()[:, 0].tolist()
        asked.extend(hidden)
        scores = torch.zeros(40, 3)
        scores[hidden, 0] = torch.tensor(hidden, dtype=torch.float32)  # who was asked, in the scores
        return Learned(scores.double(), None)  # type: ignore[arg-type]

    rows, truth = (y >= 0).nonzero()[:, 0], y[y >= 0]
    scores, answers = _hidden(fit, y, rows, truth, None, torch.Generator().manual_seed(0))
    assert sorted(asked) == list(range(11))
    assert torch.equal(y[scores[:, 0].long()], answers)


@pytest.mark.parametrize("k", [1, 2, 6])
def test_calibration_needs_no_hidden_label(digits: tuple[Tensor, Tensor], k: int) -> None:
    """Log-loss on the images whose labels nobody saw: near what the best temperature would give, below T = 1."""
    x, y = digits
    loss = torch.nn.functional.cross_entropy
    ours, plain, best = [], [], []
    for seed in range(2):
        given = few(y, k, seed)
        learned, hidden = calibrated(Propagation(), x, given, 10), given < 0
        scores = learned.scores[hidden]
        ours.append(loss(scores / learned.temperature, y[hidden]))
        plain.append(loss(scores, y[hidden]))
        best.append(loss(scores / temperature(scores, y[hidden]), y[hidden]))
        torch.testing.assert_close(learned.logits(x), learned.head.logits(x) / learned.temperature)
    assert sum(ours) < 1.3 * sum(best)
    assert sum(ours) < sum(plain)


def test_calibration_without_unlabelled_images() -> None:
    x, y = clouds()
    rows = torch.tensor([0, 1, 2])
    with pytest.warns(UserWarning, match="answers are not calibrated"):
        assert calibrated(Prototypes(space="raw"), x[rows], y[rows], 3).temperature == 1
    assert calibrated(Prototypes(space="raw"), x[:6], y[:6], 3).temperature != 1
    fit = Logistic().on(x, 3)
    assert temperature_of(fit, fit(few(y), None), few(y), 3) == temperature_of(fit, fit(few(y), None), few(y), 3)
