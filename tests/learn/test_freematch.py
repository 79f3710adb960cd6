"""FreeMatch: its loss against the formulas, its running means over any parts, and that unlabelled images teach."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from twofold.data import open_store
from twofold.data.strong import strong, weak
from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.batches import Batch, training_batches
from twofold.learn.buffers import kept, untouched
from twofold.learn.fastest import step_flops, step_seconds
from twofold.learn.objectives.freematch import U_AFTER, U_STRONG, U_WEAK, FreeMatchObjective, fairness
from twofold.learn.optimise import learning_rate, make_optimizer
from twofold.recognize.classifier import NetworkClassifier
from twofold.run import Run, load
from twofold.settings.data import DataSettings
from twofold.settings.freematch import FreeMatch
from twofold.settings.resolve import resolve
from twofold.settings.train import LoopSettings, TrainSettings

from .common import same, torchrun, weights

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (1, 6, 6)
DRAWS = U_AFTER + 3


class Linear(nn.Module):
    """A linear classifier of 3 classes that remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.given = x
        return self.linear(x.flatten(1)) * 3


def batch_of(n: int, labelled: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def one(label: torch.Tensor) -> Batch:
        images = torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8)
        return Batch(images, label, torch.rand(n, DRAWS, generator=generator, dtype=torch.float64), None)

    named = torch.arange(n) % 3
    named[torch.arange(n) % (n // labelled) != 0] = -1
    batch = one(torch.full((n,), -1))
    batch.labelled = one(named)
    return batch


def objective(**settings: Any) -> FreeMatchObjective:
    torch.manual_seed(0)
    return FreeMatchObjective(NetworkClassifier(Linear(), ["a", "b", "c"], SHAPE), FreeMatch(shift=2, **settings))


def begun(made: FreeMatchObjective, batch: Batch, start: int = 0) -> torch.Tensor:
    assert batch.labelled is not None
    made.begin(start, batch.labelled.label)
    losses: torch.Tensor = made(batch)
    return losses


def views(made: FreeMatchObjective, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Logits of labelled, weak and strong views, by hand."""
    named, flip = batch.labelled, made.settings.flip
    assert named is not None
    told = weak(named.images, named.uniforms[:, U_WEAK:U_STRONG], 2, flip)[named.label >= 0]
    plain = weak(batch.images, batch.uniforms[:, U_WEAK:U_STRONG], 2, flip)
    changed = strong(batch.images, batch.uniforms[:, U_STRONG:U_AFTER], made.settings.fill)
    changed = weak(changed, batch.uniforms[:, U_AFTER:], 2, flip)
    return tuple(made.classifier(view.float() / 127.5 - 1) for view in (told, plain, changed))


@pytest.mark.parametrize("flip", [True, False])
def test_the_loss_is_the_formula(flip: bool) -> None:
    made, batch = objective(unlabelled_weight=0.7, flip=flip, fill=[9]), batch_of(12, 4)
    made.tau[:], made.shares[:] = 0.8, torch.tensor([0.5, 0.3, 0.2])
    losses = begun(made, batch)
    assert len(made.network.given) == 28  # one pass for all three  # type: ignore[union-attr, arg-type]
    told, plain, changed = views(made, batch)
    q = plain.softmax(1)
    limit = torch.tensor([0.8, 0.48, 0.32])
    counts = q.max(1).values >= limit[q.argmax(1)]
    assert 2 < counts.sum() < 12
    unlabelled = (counts * functional.cross_entropy(changed, q.argmax(1), reduction="none")).mean()
    assert batch.labelled is not None
    label = batch.labelled.label[batch.labelled.label >= 0]
    expected = functional.cross_entropy(told, label) + 0.7 * unlabelled
    assert float(losses.detach().mean()) == pytest.approx(float(expected.detach()), rel=1e-5)
    losses.mean().backward()
    grad = made.network.linear.weight.grad.clone()  # type: ignore[union-attr]
    made.network.zero_grad()
    target = q.argmax(1)
    plainly = (
        functional.cross_entropy(told, label)
        + 0.7 * (counts * functional.cross_entropy(changed, target, reduction="none")).mean()
    )
    plainly.backward()  # weak answers take no gradient
    assert torch.allclose(grad, made.network.linear.weight.grad, atol=1e-6)  # type: ignore[union-attr, arg-type]


def test_running_means_follow_their_recursion() -> None:
    made, batch = objective(threshold_decay=0.9), batch_of(12, 4)
    assert torch.allclose(made.thresholds(), torch.full((3,), 1 / 3, dtype=torch.float64))
    losses = begun(made, batch).detach()
    q = views(made, batch)[1].detach().softmax(1).double()
    made.observe(0, losses.double())
    tau = 0.9 / 3 + 0.1 * q.max(1).values.mean()
    p = 0.9 / 3 + 0.1 * q.mean(0)
    assert torch.allclose(made.thresholds(), tau * p / p.max())
    h = 0.9 / 3 + 0.1 * torch.bincount(q.argmax(1), minlength=3).double() / 12
    assert torch.allclose(made.answered, h)
    other = objective()
    other.remember({name: value.clone() for name, value in made.memory().items()})
    assert torch.equal(other.thresholds(), made.thresholds())


@pytest.mark.parametrize("size", [1, 4, 12])
def test_parts_and_parts_tried_before_change_nothing(size: int) -> None:
    made, batch = objective(), batch_of(12, 4)
    whole = begun(made, batch).detach()
    made.observe(0, whole)
    again = objective()
    assert batch.labelled is not None
    again.begin(0, batch.labelled.label)
    again(next(batch.split(6)))  # memory ran out after it
    parts = torch.cat([again(part).detach() for part in batch.split(size)])
    again.observe(0, parts)
    assert torch.allclose(parts, whole, atol=1e-6)
    assert all(torch.allclose(a, b) for a, b in zip(again.memory().values(), made.memory().values(), strict=True))


def test_thresholds_can_be_fixed_or_clamped() -> None:
    made = objective(threshold="fixed")
    made.shares[:] = torch.tensor([0.9, 0.05, 0.05])
    assert made.thresholds().tolist() == [0.95] * 3
    made = objective(threshold_range=(0.9, 0.95))
    made.tau[:], made.shares[:] = 0.94, torch.tensor([0.5, 0.49, 0.01])
    assert made.thresholds().tolist() == pytest.approx([0.94, 0.94 * 0.98, 0.9])


def test_unlabelled_images_may_begin_late_or_never() -> None:
    late, never, batch = objective(weight_from_images=100), objective(unlabelled_weight=0), batch_of(12, 4)
    early = begun(late, batch, 99)
    assert torch.equal(early, begun(never, batch)) and int((early > 0).sum()) == 4
    assert float(begun(late, batch, 100).detach().mean()) > float(early.detach().mean())


def test_held_out_images_have_a_loss_where_they_have_a_label() -> None:
    made, batch = objective().eval(), batch_of(6, 3)
    batch.label = torch.tensor([0, 1, 2, -1, -1, 0])
    losses = made(batch)
    logits = made.classifier(batch.images.float() / 127.5 - 1)
    assert torch.allclose(losses[:3], functional.cross_entropy(logits[:3], batch.label[:3], reduction="none"))
    assert (losses[3:5] == 0).all() and made.counted(batch.label) == made.asked(batch.label) == 4
    assert made.correct(batch) == float((logits.argmax(1) == batch.label).sum())
    assert made.train().counted(batch.label) == 6


def test_fairness() -> None:
    chances = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    shares, answered = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.6, 0.4, 0.0])
    a = np.array([0.5 / 0.6, 0.3 / 0.4, 0])
    b = np.array([(1.4 / 3) / (2 / 3), (1.3 / 3) / (1 / 3), 0])
    a, b = a / a.sum(), b / b.sum()
    expected = (a[:2] * np.log(b[:2])).sum()
    assert float(fairness(chances, shares, answered)) == pytest.approx(expected, rel=1e-5)
    made, plain, batch = objective(fairness=0.5), objective(), batch_of(12, 4)
    difference = (begun(made, batch) - begun(plain, batch)).detach()
    assert torch.allclose(difference, difference[0].expand(12), atol=1e-6) and float(difference[0]) != 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {"labelled_batch": 3}}, "objective.labelled_batch=3 must divide train.batch_size=32"),
        ({"objective": {"threshold_range": [0.9, 0.5]}}, "no range"),
        ({"objective": {"fill": [300]}}, "not 0..255"),
        ({"network": {"kind": "unet"}}, "does not classify"),
        ({"network": {"kind": "wrn", "depth": 11}}, "11 is not 6 k"),
        ({"objective": {"kind": "supervised", "sigma": 0.1}}, "network.kind=wrn is not told the noise level"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(TrainSettings, [("test", TINY), ("change", change)])


@pytest.mark.parametrize(("own", "message"), [({"fill": [1, 2]}, "fill=.*1 channels"), ({"shift": 8}, "shift=8.*8x8")])
def test_objectives_that_do_not_fit_the_images(own: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(freematch(objective=own), tmp_path / "run", "cpu")
    assert not (tmp_path / "run/model.safetensors").exists()


# -- runs -----------------------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "data": {"source": "digits", "labels_per_class": 2},
    "network": {"kind": "wrn", "depth": 10, "width": 1, "norm_momentum": 0.1},
    "objective": {"kind": "freematch", "labelled_batch": 8, "flip": False, "shift": 1},
    "train": {
        "n_images": 128,
        "batch_size": 32,
        "save_images": 32,
        "validate_images": 64,
        "log_images": 32,
        "precision": "fp32",
        "optimizer": "sgd",
        "nesterov": True,
        "decay_all": False,
        "weight_decay": 5e-4,
        "lr": 0.03,
        "schedule": "cosine_7_16",
        "ema_halflife_images": 64,
    },
    "validation": {"max_images": 64},
}


def freematch(**changes: Any) -> TrainSettings:
    return resolve(TrainSettings, [("tiny", TINY), ("test", changes)])[0]


def test_resumed_is_uninterrupted_and_equal_runs_are_equal_files(tmp_path: Path, monkeypatch: Any) -> None:
    """Batch norms' statistics, thresholds, the average of both: bit for bit, whatever was measured before."""
    whole = train(freematch(), tmp_path / "whole", "cpu")
    steps = iter(range(10**6))

    def stop(event: object) -> None:
        if type(event).__name__ == "Stepped" and next(steps) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(freematch(), tmp_path / "again", "cpu", show=stop)
    train(freematch(), tmp_path / "again", "cpu")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "again"))
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()
    assert int(weights(tmp_path / "whole")["norm.num_batches_tracked"]) == 4
    assert whole["metrics"]["accuracy"] >= 0 and "best_accuracy" in whole["metrics"]
    assert isinstance(load(tmp_path / "whole"), NetworkClassifier)


def test_without_keep_best_nothing_is_chosen(tmp_path: Path) -> None:
    result = train(freematch(validation={"keep_best": False}), tmp_path / "run", "cpu")
    assert not any("best" in name for name in result["metrics"]) and not Run(tmp_path / "run").snapshots.exists()


def test_without_a_held_out_label_nothing_is_measured(tmp_path: Path) -> None:
    """A loss of 0 would be the best there can be."""
    from twofold.cli.show import metrics_line

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "bare.npz", images=rng.integers(0, 256, (60, 8, 8), np.uint8))
    source = str(tmp_path / "bare.npz")
    store = open_store(DataSettings(source=source))
    ids = [store.id(int(row)) for row in store.indices("train")[:4]]
    (tmp_path / "mine.csv").write_text("id,class\n" + "".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(ids)))
    data = {"source": source, "labels": str(tmp_path / "mine.csv"), "labels_per_class": None}
    result = train(freematch(data=data, objective={"labelled_batch": 4}), tmp_path / "run", "cpu")
    assert not {"loss", "accuracy", "best_loss"} & result["metrics"].keys()
    assert not Run(tmp_path / "run").snapshots.exists() and "nothing measured" in metrics_line(result["metrics"])


def test_no_hidden_label_is_seen(tmp_path: Path, monkeypatch: Any) -> None:
    """The labels that labels_per_class hides may be anything: the weights are the same."""
    from twofold.data.store import Store

    train(freematch(validation={"split": "train"}), tmp_path / "one", "cpu")
    told = Store.labels.func  # type: ignore[attr-defined]

    def hidden(store: Store) -> np.ndarray:
        found: np.ndarray = told(store)
        keep, train_rows = found >= 0, store.indices("train")
        store.all_labels = np.where(keep, store.all_labels, 9 - np.asarray(store.all_labels))
        assert (found[train_rows] >= 0).sum() == 20
        return found

    from functools import cached_property

    patched = cached_property(hidden)
    patched.__set_name__(Store, "labels")
    monkeypatch.setattr(Store, "labels", patched)
    train(freematch(validation={"split": "train"}), tmp_path / "two", "cpu")
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))


@pytest.mark.parametrize("kind", ["convnet", "wideresnet"])
def test_any_classifier_can_be_trained(kind: str, tmp_path: Path) -> None:
    network = {"kind": kind, "depth": 10, "width": 1} if kind == "wideresnet" else {"kind": kind, "channels": 8}
    settings = {**TINY, "network": network, "train": {**TINY["train"], "n_images": 64}}
    result = train(resolve(TrainSettings, [("test", settings)])[0], tmp_path / "run", "cpu")
    assert result["nonfinite_steps"] == 0
    assert load(tmp_path / "run").image_logits(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 10)


# -- batches --------------------------------------------------------------------------------------------------------


def test_batches_are_of_all_images_and_a_seventh_as_many_labelled() -> None:
    settings = freematch(objective={"labelled_batch": 4}, train={"batch_size": 28})
    store = open_store(settings.data)
    batches = training_batches(settings, store, DRAWS, False, 0)
    batch = batches.make(0, 56)
    assert batch.labelled is not None and int((batch.labelled.label >= 0).sum()) == 8
    assert len(batches.rows) == len(store.indices("train"))
    every = batches.labels_at(0, 7 * 20)
    assert torch.bincount(every[every >= 0], minlength=10).tolist() == [2] * 10


# -- what a pass leaves behind ----------------------------------------------------------------------------------------


def test_measuring_leaves_buffers_alone() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    model = nn.Module()
    model.network = Takes(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step_flops(model, (1, 8, 8))
    step_seconds(model, (1, 8, 8), torch.device("cpu"), 2, None, times=2)
    assert same(before, network.state_dict())
    put_back = kept(network)
    network(torch.randn(3, 1, 8, 8))
    assert not same(before, network.state_dict())
    put_back()
    assert same(before, network.state_dict())
    with pytest.raises(ZeroDivisionError), untouched(network):
        network(torch.randn(3, 1, 8, 8))
        _ = 1 / 0
    assert same(before, network.state_dict())


class Takes(nn.Module):
    """A network that is told a noise level."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_a_step_that_is_not_taken_leaves_no_trace(tmp_path: Path, monkeypatch: Any) -> None:
    """The second step's gradient is not finite: statistics and thresholds are those of the three others."""
    from twofold.learn.step import Stepper

    seen: list[float] = []
    real = Stepper._gradients

    def broken(self: Stepper, batch: Batch, start: int, counted: int) -> Any:
        found = real(self, batch, start, counted)
        if start == 32:
            next(self.network.parameters()).grad.fill_(math.inf)  # type: ignore[union-attr]
        return found

    monkeypatch.setattr(Stepper, "_gradients", broken)
    result = train(freematch(), tmp_path / "run", "cpu", show=lambda event: seen.append(0.0))
    assert result["nonfinite_steps"] == 1
    assert int(weights(tmp_path / "run")["norm.num_batches_tracked"]) == 3


# -- the optimiser ----------------------------------------------------------------------------------------------------


def test_weight_decay_leaves_biases_and_gains_alone() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    for wrong in ({"momentum": 0.0}, {"optimizer": "adam"}):
        with pytest.raises(ValueError, match="nesterov=true is a kind of momentum"):
            LoopSettings(**{"optimizer": "sgd", "nesterov": True, **wrong})
    settings = LoopSettings(optimizer="sgd", nesterov=True, weight_decay=0.1, decay_all=False, lr=1.0)
    optimizer = make_optimizer(network, settings)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        assert group["nesterov"] and group["scale"] == 1.0
    optimizer.step()
    for name, value in network.named_parameters():
        factor = 1 - 0.1 * 1.9 if value.ndim > 1 else 1.0  # Nesterov's first step is 1 + momentum times as long
        assert torch.allclose(value, factor * before[name], atol=1e-6), name
    assert len(make_optimizer(network, LoopSettings(weight_decay=0.1)).param_groups) == 1


def test_the_cosine_of_fixmatch() -> None:
    settings = LoopSettings(lr=0.03, schedule="cosine_7_16", n_images=1000, batch_size=10)
    for n in (0, 250, 1000):
        assert learning_rate(settings, n) == pytest.approx(0.03 * math.cos(7 * math.pi * n / (16 * 1000)))


@pytest.mark.slow
def test_processes_hold_the_same_statistics_and_thresholds(tmp_path: Path) -> None:
    """Over torchrun: weights, buffers, their averages and the running means are equal on both ranks."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "import torch, torch.distributed as dist\n"
        "import twofold.learn.loop as loop\n"
        "from tests.learn.test_freematch import freematch\n"
        "from twofold.learn import train\n"
        "from twofold.learn.training import leave_process_group\n"
        "made, first = [], loop.Trainer.__init__\n"
        "def keep(self, *a): first(self, *a); made.append(self)\n"
        "loop.Trainer.__init__ = keep\n"
        "train(freematch(), sys.argv[1], 'cpu')\n"
        "objective = made[0].objective\n"
        "held = [*objective.network.state_dict().values(), *made[0].average.tensors.values()]\n"
        "mine = torch.cat([v.detach().flatten().double() for v in [*held, *objective.memory().values()]])\n"
        "both = [torch.empty_like(mine) for _ in range(2)]\n"
        "dist.all_gather(both, mine)\n"
        "assert torch.equal(*both)\n"
        "print('EQUAL', flush=True)\n"
        "leave_process_group()\n"
    )
    told = torchrun(program, tmp_path / "two", ROOT)
    assert told.count("EQUAL") == 2
