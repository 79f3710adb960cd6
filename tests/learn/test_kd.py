"""Distillation from a trained classifier: each loss against its formula, the memory of CRD, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.batches import Batch
from twofold.learn.distilling.afd import AFD
from twofold.learn.distilling.classifiers import ClassifierTeacher, layers_of, soft_targets
from twofold.learn.distilling.crd import CRD, contrast
from twofold.learn.distilling.watch import watched
from twofold.learn.objectives.kd import KDObjective
from twofold.recognize.classifier import NetworkClassifier
from twofold.run import Run, build, load, save_model
from twofold.settings.kd import KD, AFDLoss, CRDLoss
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from ..cli.common import random_run
from .common import same, tiny, weights

SHAPE, NAMES, N = (1, 8, 8), ["a", "b", "c"], 6
DIGITS: dict[str, Any] = {
    "data": {"source": "digits"},
    "network": {"kind": "convnet", "channels": 8, "stages": 2, "dropout": 0.0},
    "objective": {"kind": "supervised"},
    "train": {
        "n_images": 128,
        "batch_size": 32,
        "save_images": 64,
        "validate_images": 128,
        "log_images": 64,
        "precision": "fp32",
        "lr": 3e-3,
        "ema_halflife_images": 0,
    },
    "validation": {"max_images": 200},
}


def given(*changes: dict[str, Any]) -> TrainSettings:
    return resolve(TrainSettings, [("digits", DIGITS), *(("change", change) for change in changes)])[0]


def saved(path: Path, names: list[str] = NAMES, shape: tuple[int, int, int] = SHAPE, **change: Any) -> str:
    """A classifier with random weights in a file."""
    settings = given({"network": {"channels": 4}}, change)
    torch.manual_seed(7)
    model = build(settings, shape, names)
    save_model(path, dict(model.network.state_dict()), model, settings, 0)
    return str(path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


def student(names: list[str] = NAMES) -> NetworkClassifier:
    torch.manual_seed(0)
    model = build(given(), SHAPE, names)
    assert isinstance(model, NetworkClassifier)
    return model


def objective(teacher: str, *losses: dict[str, Any], **settings: Any) -> KDObjective:
    made, _ = resolve(KD, [("test", {"teacher": teacher, "losses": list(losses) or [{"kind": "soft"}], **settings})])
    return KDObjective(student(), made)


def batch_of(made: KDObjective, n: int = N, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8)
    u = torch.rand(n, made.uniforms, generator=generator, dtype=torch.float64)
    label = torch.arange(n) % 3
    label[1] = -1
    return Batch(pixels, label, u, None, rows=torch.arange(n) + 100 * seed)


def begun(made: KDObjective, batch: Batch) -> torch.Tensor:
    made.train().begin(0, batch.label)
    losses: torch.Tensor = made(batch)
    return losses


# -- the losses ------------------------------------------------------------------------------------------------------


def test_soft_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(N, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = 9 * functional.kl_div((s / 3).log_softmax(1), (t / 3).softmax(1), reduction="batchmean")
    assert float(soft_targets(s, t, 3.0).mean()) == pytest.approx(float(expected))
    assert torch.allclose(soft_targets(t + 5, t, 3.0), torch.zeros(N, dtype=torch.float64), atol=1e-12)
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: soft_targets(s, t, 3.0), (s,))


def test_labels_and_the_teacher_add_up(teacher: str) -> None:
    """Of an image without a label the teacher's part alone; the mean is over labelled images, and over all."""
    losses = ({"kind": "soft", "weight": 0.3, "temperature": 2.0}, {"kind": "logits", "weight": 0.7})
    made = objective(teacher, *losses, label_weight=0.5, label_smoothing=0.1)
    batch = batch_of(made)
    found = begun(made, batch)
    x0 = batch.images.float() / 127.5 - 1
    mine, theirs = made.classifier(x0), load(teacher)(x0)  # type: ignore[operator]
    known = batch.label >= 0
    ce = functional.cross_entropy(mine[known], batch.label[known], label_smoothing=0.1)
    kl = 4 * functional.kl_div((mine / 2).log_softmax(1), (theirs / 2).softmax(1), reduction="batchmean")
    expected = 0.5 * ce + 0.3 * kl + 0.7 * functional.mse_loss(mine, theirs)
    assert float(found.mean().detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert made.counted(batch.label) == N and made.asked(batch.label) == N - 1
    made.eval()
    plain = functional.cross_entropy(mine, batch.label, ignore_index=-1, reduction="none")
    assert torch.allclose(made(batch), plain, atol=1e-5) and made.counted(batch.label) == N - 1
    assert made.correct(batch) == float((mine.argmax(1) == batch.label).sum())


KINDS = ["soft", "logits", "hint", "dense", "attention", "rkd", "contrastive", "crd", "afd"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_trains_the_student_and_its_own_parts(kind: str, teacher: str) -> None:
    """Regressors map the student to the teacher and are trained; the teacher is not, nor is it saved."""
    made = objective(teacher, {"kind": kind}, label_weight=0.0)
    begun(made, batch_of(made)).mean().backward()
    own = dict(made.helpers.named_parameters())  # type: ignore[union-attr]
    assert bool(own) == (kind in ("hint", "dense", "contrastive", "crd", "afd"))
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in own.values() if "key.0" not in own)
    if kind == "hint":
        assert own["terms.parts.0.adapters.0.weight"].shape[:2] == (8, 16)  # of the teacher, of the student
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in made.network.parameters())
    theirs = {id(p) for p in made.teacher.model.parameters()}
    assert theirs and not theirs & {id(p) for p in made.parameters()}
    assert not any(p.requires_grad for p in made.teacher.model.parameters())
    assert not made.teacher.model.training  # though the objective trains
    assert not any(value.shape == (4, 1, 3, 3) for value in made.state_dict().values())  # the teacher's stem


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn(teacher: str) -> None:
    kinds = [{"kind": kind} for kind in ("soft", "logits", "attention", "rkd")]
    made, _ = resolve(KD, [("test", {"teacher": teacher, "losses": kinds, "label_weight": 0})])
    same_network = load(teacher)
    assert isinstance(same_network, NetworkClassifier)
    twin = KDObjective(same_network.requires_grad_(), made)
    assert float(begun(twin, batch_of(twin)).detach().abs().max()) < 1e-5


def test_layers(teacher: str) -> None:
    made, mine = load(teacher), student()
    theirs = made.layers  # type: ignore[union-attr]

    def chosen(kind: str, **settings: Any) -> Any:
        found = resolve(KD, [("test", {"teacher": "x", "losses": [{"kind": kind}], **settings})])[0]
        return layers_of(found.losses[0], found, theirs, mine.layers)

    assert chosen("hint") == (["stage.1"], ["stage.1"])
    assert chosen("attention") == (["stage.0", "stage.1"],) * 2
    assert chosen("afd") == (["stage.0", "stage.1"],) * 2
    assert chosen("soft") == ([], [])
    named = {"teacher_layers": ["stage.1", "stage.1"], "student_layers": ["stage.1", "stage.0"]}
    assert chosen("hint", **named) == (["stage.1", "stage.1"], ["stage.1", "stage.0"])
    assert chosen("crd", **named) == (["stage.1"], ["stage.0"])
    with pytest.raises(UserError, match="stage.9"):
        chosen("hint", teacher_layers=["stage.9"], student_layers=["stage.0"])


def test_mixup_mixes_images_and_labels(teacher: str) -> None:
    plain = objective(teacher, {"kind": "soft"})
    never = objective(teacher, {"kind": "soft"}, mixup=0.5, mixup_probability=0)
    always = objective(teacher, {"kind": "soft"}, mixup=0.5, mixup_probability=1)
    batch = batch_of(plain)
    losses = [begun(made, batch).detach() for made in (plain, never, always)]
    assert torch.allclose(losses[0], losses[1]) and not torch.allclose(losses[0], losses[2])
    assert torch.equal(losses[2], begun(always, batch).detach())


def test_classes_in_another_order_are_named_alike(teacher: str) -> None:
    x0 = torch.randn(4, *SHAPE)
    straight = ClassifierTeacher(teacher, NAMES, SHAPE)(x0, ["stage.1"])
    turned = ClassifierTeacher(teacher, ["c", "a", "b"], SHAPE)(x0, ["stage.1"])
    assert torch.equal(turned.logits, straight.logits[:, [2, 0, 1]])
    assert torch.equal(turned.maps["stage.1"], straight.maps["stage.1"]) and turned.maps["stage.1"].shape[:2] == (4, 8)


# -- AFD -------------------------------------------------------------------------------------------------------------


def test_afd() -> None:
    torch.manual_seed(0)
    made = AFD([4, 2], [3, 5, 2], 6).double()
    student = [torch.randn(N, c, side, side, dtype=torch.float64) for c, side in ((3, 8), (5, 4), (2, 4))]
    teacher = [torch.randn(N, c, side, side, dtype=torch.float64) for c, side in ((4, 4), (2, 2))]
    shares = made.shares(student, teacher)
    assert shares.shape == (N, 2, 3) and torch.allclose(shares.sum(2), torch.ones(N, 2).double())
    q = made.query[1](teacher[1].mean((2, 3))).relu()
    logits = [
        (q @ made.between[1] * made.key[s](student[s].mean((2, 3))).relu()).sum(1) + made.teacher[1] @ made.student[s]
        for s in range(3)
    ]
    assert torch.allclose(shares[:, 1], (torch.stack(logits, 1) / 6**0.5).softmax(1))
    expected = torch.zeros(N, dtype=torch.float64)
    for t, theirs in enumerate(teacher):
        b = (theirs**2).mean(1).flatten(1)
        for s, mine in enumerate(student):
            side, to = mine.shape[2], theirs.shape[2]
            a = (mine**2).mean(1).unflatten(1, (to, side // to)).unflatten(3, (to, side // to)).mean((2, 4)).flatten(1)
            off = a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)
            expected += shares[:, t, s] * (off**2).mean(1)
    assert torch.allclose(made(student, teacher), expected)
    student = [f[:2].requires_grad_() for f in student]
    assert torch.autograd.gradcheck(lambda *s: made(s, [f[:2] for f in teacher]), student)


# -- CRD -------------------------------------------------------------------------------------------------------------


def crd(**settings: Any) -> CRD:
    torch.manual_seed(0)
    return CRD(4, 3, CRDLoss(channels=5, **settings)).double()


def features(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(made: CRD, rows: list[int], label: list[int], seed: int = 0) -> torch.Tensor:
    n = len(rows)
    u = torch.full((n,), 0.37, dtype=torch.float64)
    found: torch.Tensor = made(
        features(n, 3, seed), features(n, 4, seed + 50), torch.tensor(rows), torch.tensor(label), u
    )
    return found


def test_the_contrast_is_noise_contrastive_estimation() -> None:
    """-log h(positive) - sum log(1 - h(negatives)), h = e^a / (e^a + N c), written out."""
    positive, negative = features(3, 1)[:, 0], features(3, 6, seed=1)
    allowed = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    found = contrast(positive, negative, allowed, torch.tensor(0.4, dtype=torch.float64))
    for i in range(3):
        others = np.exp(negative[i][allowed[i]].numpy())
        level = len(others) * np.exp(0.4)
        h = np.exp(float(positive[i])) / (np.exp(float(positive[i])) + level)
        expected = -np.log(h) - np.log(1 - others / (others + level)).sum() if len(others) else 0.0
        assert float(found[i]) == pytest.approx(expected)
    inputs = positive.requires_grad_(), negative.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: contrast(a, b, allowed, torch.tensor(0.4)), inputs)


def test_crd_holds_an_image_against_the_memory() -> None:
    made = crd()
    seen(made, [5, 9, 7], [0, 1, 2])
    made.observe(3)
    assert torch.equal(made.bank.rows, torch.tensor([5, 9, 7]))
    assert torch.allclose(made.bank.teacher.norm(dim=1), torch.ones(3).double())  # on the unit sphere
    level = made.log_mean.clone()
    losses = seen(made, [9, 1, 2], [1, 0, -1], seed=3)
    s = functional.normalize(made.student(features(3, 3, 3)), dim=1)
    t = functional.normalize(made.teacher(features(3, 4, 53)), dim=1)
    # row 9 not with itself, the second not with row 5 of its class; nothing is known of the third's class
    allowed = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)
    positive = (s * t).sum(1) / 0.07
    expected = contrast(positive, s @ made.bank.teacher.T / 0.07, allowed, level[0])
    expected = expected + contrast(positive, t @ made.bank.student.T / 0.07, allowed, level[1])
    assert torch.allclose(losses, expected)
    losses.sum().backward()
    assert all(bool((p.grad != 0).any()) for p in made.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in made.parameters())


def test_the_memory_follows_by_momentum_and_only_steps_that_were_taken() -> None:
    made, spoilt = crd(momentum=0.5), crd(momentum=0.5)
    for each in (made, spoilt):
        seen(each, [5, 9], [0, 1])
        each.observe(2)
    old = made.bank.student.clone()
    seen(spoilt, [9, 1], [1, 0], seed=8)  # memory ran out after it
    for each in (made, spoilt):
        seen(each, [9], [1], seed=3)
        seen(each, [6], [2], seed=4)
        each.observe(2)
    assert made.bank.rows.tolist() == [5, 9, 6] and made.bank.label.tolist() == [0, 1, 2]
    now = functional.normalize(made.student(features(1, 3, 3)), dim=1)[0].detach()
    assert torch.allclose(made.bank.student[1], functional.normalize(old[1] + now, dim=0))
    assert torch.equal(made.bank.student[0], old[0])
    assert torch.allclose(
        made.bank.student[2], functional.normalize(made.student(features(1, 3, 4)), dim=1)[0].detach()
    )
    resumed = crd(momentum=0.5)
    resumed.remember(made.memory())
    for other in (spoilt, resumed):
        assert all(torch.equal(value, made.memory()[name]) for name, value in other.memory().items())
    for each in (made, resumed):
        seen(each, [6], [2], seed=5)
        each.observe(1)
    assert same(made.memory(), resumed.memory())


def test_a_large_memory_is_drawn_from() -> None:
    made, every = crd(negatives=4), crd()
    for each in (made, every):
        seen(each, list(range(30)), [-1] * 30)
        each.observe(30)
    few, all_of_them = (seen(each, [40, 41], [-1, -1], seed=2) for each in (made, every))
    assert torch.equal(few, seen(made, [40, 41], [-1, -1], seed=2)) and not torch.allclose(few, all_of_them)


# -- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of digits that is mostly right."""
    path = tmp_path_factory.mktemp("digits") / "teacher"
    train(given({"train": {"n_images": 2560, "lr": 0.02, "validate_images": 10**6}}), path, "cpu")
    return path


def kd(teacher: Path, *changes: dict[str, Any]) -> TrainSettings:
    return given({"objective": {"kind": "kd", "teacher": str(teacher)}}, *changes)


def test_a_student_learns_from_its_teacher_without_any_label(digits: Path, tmp_path: Path) -> None:
    more = {"objective": {"label_weight": 0}, "train": {"n_images": 2560, "lr": 0.02, "validate_images": 10**6}}
    result = train(kd(digits, more), tmp_path / "a", "cpu")
    right = json.loads((digits / "result.json").read_text())["metrics"]["accuracy"]
    assert right > 0.8 and result["metrics"]["accuracy"] > 0.5
    model = load(tmp_path / "a")
    assert isinstance(model, NetworkClassifier) and model.class_names == [str(i) for i in range(10)]
    names = weights(tmp_path / "a").keys()
    assert names == student([str(i) for i in range(10)]).network.state_dict().keys()  # no teacher, no regressors


def test_a_denoiser_teaches_in_the_task(tmp_path: Path) -> None:
    """RepFusion's variant of one stage: the cross-entropy of labels, and the maps of clean images at one level."""
    source = random_run(tmp_path / "teacher", tiny(), [], 0)
    told = {"teacher": str(source), "sigma": 0.1, "label_weight": 0.5}
    settings, _ = resolve(KD, [("test", {**told, "losses": [{"kind": "hint", "weight": 2.0}]})])
    model = student()
    made = KDObjective(model, settings).train()
    batch = Batch(
        torch.randint(0, 255, (N, *SHAPE), dtype=torch.uint8),
        torch.tensor([0, 1, 2, -1, 0, 1]),
        torch.rand(N, 9, dtype=torch.float64),
        None,
    )
    made.begin(0, batch.label)
    denoiser: Any = load(source)
    x0 = model.codec.encode(batch.images)
    sigma = torch.full((N,), 0.1, dtype=torch.float64)
    theirs = denoiser.features(denoiser.family.clean(x0, sigma), sigma, ["mid"])["mid"].mean((2, 3))
    assert made.helpers is not None
    terms: Any = made.helpers["terms"]
    last = terms.student_layers[0]
    _, maps = watched(lambda: model(x0), model.layers, [last])
    mine = terms.parts[0].adapters[0](maps[last].mean((2, 3), keepdim=True)).flatten(1)
    named = functional.cross_entropy(model(x0), batch.label, ignore_index=-1, reduction="none")
    expected = 2 * (mine - theirs).square().mean(1) + 0.5 * 6 / 5 * named
    assert torch.allclose(made(batch), expected, atol=1e-5)
    with pytest.raises(UserError, match="of a denoiser, which has no logits; give losses of maps"):
        resolve(KD, [("test", told)])
    with pytest.raises(UserError, match="objective.sigma=900: outside"):
        KDObjective(student(), settings.model_copy(update={"sigma": 900.0}))


EVERY = [{"kind": kind} for kind in KINDS]


def test_a_run_continues_where_it_was_stopped(digits: Path, tmp_path: Path) -> None:
    """With all losses, their parts and CRD's memory, bit for bit."""
    more = {"objective": {"losses": EVERY, "shift": 1, "mixup": 0.2}, "data": {"labels_per_class": 5}}
    train(kd(digits, more), tmp_path / "whole", "cpu")
    train(kd(digits, more), tmp_path / "stopped", "cpu")
    run = Run(tmp_path / "stopped")
    (run.path / "result.json").unlink()
    states = sorted((run.path / "state").glob("[0-9]*"))
    assert len(states) == 2
    for file in states[1].iterdir():
        file.unlink()
    states[1].rmdir()
    (run.path / "model.safetensors").unlink()
    told: list[str] = []
    train(kd(digits, more), tmp_path / "stopped", "cpu", show=lambda event: told.append(str(event)))
    assert "resumed at 64 images" in " ".join(told)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


# -- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["a", "b", "x"]}, "does not know c; teacher and data must have the same classes"),
        ({"names": ["a", "b", "c", "d"]}, "names d, which the data has not"),
        ({"shape": (3, 8, 8)}, r"sees images of 3x8x8, the data has 1x8x8; set data.channels=3 and data.size=\[8,8\]"),
        ({"shape": (1, 16, 8)}, "sees images of 1x16x8"),
        ({"objective": {"multi_label": True}}, "a yes-or-no question for each class"),
        (
            {"network": {"kind": "unet"}, "objective": {"kind": "denoising"}},
            "is no classifier of images; .*kind=distill",
        ),
    ],
)
def test_teachers_that_do_not_fit(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    if "network" in change:
        change = {**change, "network": {"kind": "unet", "channels": 4, "multipliers": [1], "attention": []}}
        settings = resolve(TrainSettings, [("t", {"data": {"source": "digits"}, **change})])[0]
        model = build(settings, SHAPE, NAMES)
        save_model(tmp_path / "t.safetensors", dict(model.network.state_dict()), model, settings, 0)
    else:
        saved(tmp_path / "t.safetensors", **change)
    with pytest.raises(UserError, match=message):
        ClassifierTeacher(str(tmp_path / "t.safetensors"), NAMES, SHAPE)


def test_a_teacher_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run, file or folder"):
        ClassifierTeacher(str(tmp_path / "nothing"), NAMES, SHAPE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {"teacher_layers": ["a"]}}, "0 student_layers for 1 teacher_layers; give one for each"),
        (
            {"objective": {"losses": [{"kind": "hint"}], "teacher_layers": ["a"], "student_layers": ["a", "b"]}},
            "2 student_layers for 1 teacher_layers",
        ),
        ({"objective": {"losses": [{"kind": "crd"}, {"kind": "crd"}]}}, "one memory is enough"),
        ({"objective": {"losses": [{"kind": "soft", "temperature": 0}]}}, "temperature"),
        ({"objective": {"losses": [{"kind": "cosine"}]}}, "cosine"),
        ({"network": {"kind": "unet"}}, "does not classify"),
        ({"train": {"compile": True}}, "train.compile=true"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kd(Path("runs/teacher"), change)
    KD(teacher="x", losses=(AFDLoss(),), teacher_layers=("a",), student_layers=("a", "b"))  # any number of each
