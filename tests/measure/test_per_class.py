"""Tables of classes and attributes: scikit-learn, torchmetrics, hand cases, and what is not known."""

from __future__ import annotations

import pytest
import torch

from twofold.errors import UserError
from twofold.measure import accuracy, share_interval
from twofold.measure.per_class import (
    as_questions,
    attribute_table,
    class_table,
    mean_interval,
    over_attributes,
    share_right,
)

NAMES = ["a", "b", "c", "d"]


def attributes(n: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and answers, of which a tenth is unknown."""
    generator = torch.Generator().manual_seed(seed)
    truth = (torch.rand(n, 4, generator=generator) < torch.tensor([0.5, 0.1, 0.9, 0.3])).long()
    logits = 2 * truth - 1 + 2 * torch.randn(n, 4, generator=generator)
    truth[torch.rand(n, 4, generator=generator) < 0.1] = -1
    return logits, truth


def test_attributes_equal_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    logits, truth = attributes()
    p = logits.double().sigmoid()
    rows = attribute_table(p, truth, NAMES)
    how = {"num_labels": 4, "average": "none", "ignore_index": -1}
    theirs = {
        "accuracy": functional.multilabel_accuracy(p, truth, **how),
        "f1": functional.multilabel_f1_score(p, truth, **how),
        "average_precision": functional.multilabel_average_precision(p, truth, **how),
    }
    for key, values in theirs.items():
        assert [row[key] for row in rows.values()] == pytest.approx(values.tolist(), abs=1e-6), key
    assert over_attributes(rows)["macro_f1"] == pytest.approx(float(theirs["f1"].mean()), abs=1e-6)
    for k, row in enumerate(rows.values()):
        assert row["images"] == int((truth[:, k] >= 0).sum())
        assert row["low"] <= row["accuracy"] <= row["high"] and row["always"] >= 0.5
        assert row["share"] == pytest.approx(float((truth[:, k] == 1).sum() / (truth[:, k] >= 0).sum()))


def test_attributes_that_nobody_has_or_knows() -> None:
    logits, truth = attributes()
    truth[:, 1], truth[:, 2] = 0, -1
    rows = attribute_table(logits.sigmoid(), truth, NAMES)
    assert list(rows) == ["a", "b", "d"]
    assert rows["b"]["f1"] is None and rows["b"]["average_precision"] is None and rows["b"]["always"] == 1
    alone = over_attributes({"a": rows["a"], "d": rows["d"]})
    assert over_attributes(rows)["macro_f1"] == alone["macro_f1"]
    assert set(over_attributes({"b": rows["b"]})) == {"accuracy", "always"}


def test_classes_equal_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(200, 4, generator=generator), torch.randint(0, 3, (200,), generator=generator)
    logits[:, 3] -= 100  # a class that neither occurs nor is said
    unknown = torch.cat([labels, torch.full((200,), -1)])
    rows = class_table(torch.cat([logits, -logits]), unknown, NAMES)
    precision, recall, _, count = metrics.precision_recall_fscore_support(labels, logits.argmax(1))
    assert list(rows) == ["a", "b", "c"]
    assert [row["accuracy"] for row in rows.values()] == pytest.approx(list(recall))
    assert [row["precision"] for row in rows.values()] == pytest.approx(list(precision))
    assert [row["images"] for row in rows.values()] == list(count)
    never = class_table(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), ["x", "y"])["y"]
    assert never["precision"] is None and never["accuracy"] == 0


def test_shares_of_right_answers() -> None:
    logits, truth = attributes()
    truth[0] = -1
    shares = share_right(logits, truth)
    assert shares[0].isnan() and ((shares[1:] >= 0) & (shares[1:] <= 1)).all()
    by_hand = [(bool(z > 0) == bool(y)) for z, y in zip(logits[1].tolist(), truth[1].tolist(), strict=True) if y >= 0]
    assert float(shares[1]) == pytest.approx(sum(by_hand) / len(by_hand))
    labels = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(2))
    assert float(share_right(logits, labels).mean()) == pytest.approx(accuracy(logits, labels))


def test_the_interval_of_a_mean_over_attributes_counts_images() -> None:
    logits, truth = attributes()
    mean = over_attributes(attribute_table(logits.sigmoid(), truth, NAMES))["accuracy"]
    low, high = mean_interval(logits, truth)
    assert low < mean < high
    generator = torch.Generator().manual_seed(1)
    means = []
    for _ in range(300):  # the spread over other images is what the interval says
        rows = torch.randint(len(truth), (len(truth),), generator=generator)
        table = attribute_table(logits[rows].sigmoid(), truth[rows], NAMES)
        means.append(over_attributes(table)["accuracy"])
    assert (high - low) / 2 == pytest.approx(1.96 * torch.tensor(means).std().item(), rel=0.15)
    # the same question four times tells no more than once
    once, told = logits[truth[:, 0] >= 0, :1], truth[truth[:, 0] >= 0, :1]
    right = float(((once > 0) == (told == 1)).double().mean())
    same = mean_interval(once.expand(-1, 4), told.expand(-1, 4))
    assert same == pytest.approx(share_interval(right, len(told)), abs=1e-9)
    sure = torch.where(truth == 1, 1.0, -1.0)
    assert mean_interval(sure, truth) == share_interval(1.0, int((truth >= 0).any(1).sum()))  # never [1, 1]


def test_attributes_are_questions_of_two_classes_at_any_temperature() -> None:
    logits, truth = attributes()
    asked, answer = as_questions(logits, truth)
    known = truth >= 0
    assert len(asked) == int(known.sum()) and torch.equal(answer, truth[known])
    for temperature in (0.5, 1.0, 3.0):
        expected = (logits[known].double() / temperature).sigmoid()
        assert torch.allclose((asked / temperature).softmax(1)[:, 1], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, y: attribute_table(p[:, :3], y, NAMES), r"\(400, 4\) for probabilities \(400, 3\)"),
        (lambda p, y: attribute_table(p, y, NAMES[:2]), "of 2 attributes"),
        (lambda p, y: attribute_table(p * float("nan"), y, NAMES), "NaN for 400 of 400"),
        (lambda p, y: attribute_table(p, -torch.ones_like(y), NAMES), "no attribute is known"),
        (lambda p, y: as_questions(p, -torch.ones_like(y)), "no attribute is known"),
        (lambda p, y: as_questions(p, y[:, 0]), "one answer per image and attribute"),
    ],
)
def test_mistakes(call: object, message: str) -> None:
    logits, truth = attributes()
    with pytest.raises(UserError, match=message):
        call(logits.sigmoid(), truth)  # type: ignore[operator]
