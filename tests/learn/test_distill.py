"""The distillation objective: what the teacher is asked, what is kept of its answers, and what the student learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from twofold.codec import PixelCodec
from twofold.data import open_store
from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.batches import Batch, training_batches
from twofold.learn.distilling.answers import Answers, Asking, ask
from twofold.learn.distilling.scale import Scale
from twofold.learn.distilling.teacher import Teacher
from twofold.learn.objectives import objective
from twofold.learn.objectives.distill import DistillObjective
from twofold.networks.students import Student
from twofold.noise import add
from twofold.recognize.backbone import Backbone
from twofold.recognize.views import image_noise
from twofold.run import Run, build, load
from twofold.settings.data import DataSettings
from twofold.settings.resolve import resolve, to_yaml
from twofold.settings.student import StudentSettings
from twofold.settings.train import TrainSettings

from ..cli.common import random_run
from .common import same, tiny, torchrun, weights

BACKBONE = {"kind": "resnet", "blocks": [1, 1], "channels": 8}
STUDENT: dict[str, Any] = {
    "data": {"source": "digits"},
    "network": {"kind": "student", "backbone": BACKBONE},
    "objective": {"kind": "distill", "teacher_layers": ["mid"], "sigma": {"kind": "uniform", "bins": 3}},
    "train": {
        "n_images": 128,
        "batch_size": 32,
        "save_images": 64,
        "validate_images": 64,
        "log_images": 32,
        "precision": "fp32",
    },
    "validation": {"max_images": 32, "samples": 0},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser of digits with random weights."""
    return random_run(tmp_path_factory.mktemp("teacher") / "run", tiny(), [], 0)


def settings_of(teacher: Path, *layers: dict[str, Any]) -> TrainSettings:
    named = {"objective": {"teacher": str(teacher)}}
    return resolve(TrainSettings, [("student", STUDENT), ("teacher", named), *(("test", one) for one in layers)])[0]


def made(settings: TrainSettings) -> DistillObjective:
    torch.manual_seed(0)
    model: Any = build(settings, (1, 8, 8), [str(i) for i in range(10)])
    found = objective(model, settings.objective)
    assert isinstance(found, DistillObjective)
    return found.train()


def batch_for(settings: TrainSettings, needs: DistillObjective, count: int = 8) -> Batch:
    store = open_store(settings.data)
    return training_batches(settings, store, needs.uniforms, needs.needs_noise, 0).make(0, count)


# -- the teacher ----------------------------------------------------------------------------------------------------


def test_the_teacher_is_the_denoiser_at_each_images_own_level(teacher: Path) -> None:
    """Noised: the denoiser's features of x0 + sigma noise. Clean: those of x0 / c_in, which the network sees as x0."""
    denoiser: Any = load(teacher)
    x0, noise = torch.rand(3, 1, 8, 8) * 2 - 1, torch.randn(3, 1, 8, 8)
    sigma = torch.tensor([0.01, 0.5, 20.0], dtype=torch.float64)
    noised = Teacher(str(teacher), ["mid", "dec.0"], "noised", (1, 8, 8)).maps(x0, sigma, noise)
    clean = Teacher(str(teacher), ["mid", "dec.0"], "clean", (1, 8, 8)).maps(x0, sigma, None)
    seen: list[torch.Tensor] = []
    denoiser.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for i in range(3):
        one = slice(i, i + 1)
        expected = denoiser.features(add(x0[one], noise[one], sigma[one]), sigma[one], ["mid", "dec.0"])
        for found, name in zip(noised, ("mid", "dec.0"), strict=True):
            assert torch.allclose(found[one], expected[name], atol=1e-5)
        expected = denoiser.features(denoiser.family.clean(x0[one], sigma[one]), sigma[one], ["mid"])
        assert torch.allclose(clean[0][one], expected["mid"], atol=1e-5)
        assert torch.allclose(seen[-1], x0[one], atol=1e-5)


def test_nothing_runs_behind_the_deepest_layer(teacher: Path) -> None:
    found = Teacher(str(teacher), ["mid"], "noised", (1, 8, 8))
    ran: list[str] = []
    for name, layer in found.denoiser.layers.items():
        layer.module.register_forward_hook(lambda *args, name=name: ran.append(name))
    found.maps(torch.zeros(1, 1, 8, 8), torch.ones(1, dtype=torch.float64), torch.zeros(1, 1, 8, 8))
    names = list(found.denoiser.layers)
    assert ran[-1] == "mid" and names[-1] != "mid" and len(ran) <= names.index("mid") + 1


def test_the_teacher_stays_as_it_is_and_out_of_the_student(teacher: Path, tmp_path: Path) -> None:
    settings = settings_of(teacher)
    held = made(settings)
    before = {name: value.clone() for name, value in held.teacher.denoiser.state_dict().items()}
    assert not any(p.requires_grad for p in held.teacher.denoiser.parameters())
    held(batch_for(settings, held)).mean().backward()
    assert same(before, dict(held.teacher.denoiser.state_dict())) and not held.teacher.denoiser.training
    ours = {id(p) for p in held.parameters()}
    assert not ours & {id(p) for p in held.teacher.denoiser.parameters()}


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        ({}, (3, 8, 8), "sees 1 channels, the data has 3; set data.channels=1"),
        ({"teacher_layers": ["dec.99"]}, (1, 8, 8), "dec.99"),
        (
            {"student_layers": ["stage.9"], "teacher_layers": ["mid"]},
            (1, 8, 8),
            "stage.9: the student has no such layer; it has stage.0, stage.1",
        ),
    ],
)
def test_what_does_not_fit_is_said(teacher: Path, change: Any, shape: tuple[int, int, int], message: str) -> None:
    settings = settings_of(teacher, {"objective": change})
    model: Any = build(settings, shape, [])
    with pytest.raises(UserError, match=message):
        objective(model, settings.objective)


def test_a_classifier_is_no_teacher(tmp_path: Path) -> None:
    network = {"kind": "convnet", "channels": 8}
    classifier, _ = resolve(
        TrainSettings, [("c", {"data": "digits", "network": network, "objective": {"kind": "supervised"}})]
    )
    run = random_run(tmp_path / "c", classifier, [str(i) for i in range(10)], 0)
    with pytest.raises(UserError, match="is no denoiser; .*objective.kind=kd"):
        made(settings_of(run))


def test_what_is_trained_beside_is_where_the_student_is(teacher: Path) -> None:
    settings = settings_of(teacher, POLICY)
    model: Any = build(settings, (1, 8, 8), [str(i) for i in range(10)]).to("meta")
    held = objective(model, settings.objective)
    assert {p.device.type for p in held.parameters()} == {b.device.type for b in held.buffers()} == {"meta"}


BACKBONES: dict[str, dict[str, Any]] = {
    "resnet": {"kind": "resnet", "blocks": [1, 1], "channels": 8},
    "hrnet": {"kind": "hrnet", "width": 4, "modules": [1, 1, 1], "blocks": 1, "stem_channels": 4, "stem": "cifar"},
    "transformers": {
        "kind": "transformers",
        "model": "convnextv2",
        "config": {"hidden_sizes": [4, 8, 8, 8], "depths": [1, 1, 1, 1], "patch_size": 1},
    },
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_weight_has_a_gradient(kind: str, teacher: Path) -> None:
    """Of maps that no loss and no head reads one of zeros: processes that train together wait for it."""
    settings = settings_of(teacher, {"network": {"backbone": BACKBONES[kind]}, "objective": {"input": "clean"}})
    held = made(settings)
    held(batch_for(settings, held)).sum().backward()
    assert [name for name, p in held.named_parameters() if p.requires_grad and p.grad is None] == []
    for head in ("pool", "deconv"):
        settings = StudentSettings(
            backbone=BACKBONES[kind], head={"kind": head, **({"layers": 0} if head != "pool" else {})}
        )
        student = Student(settings, (1, 8, 8), 3).train()
        student(torch.zeros(2, 1, 8, 8)).sum().backward()
        assert [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("kind", ["fixed", "uniform", "annealed", "multi", "policy", "expectation"])
def test_answers_can_be_kept_for_every_selection(kind: str, teacher: Path) -> None:
    """And are what the teacher says when it is asked in every step, of the levels that were chosen."""
    more = {
        "multi": {"bounds": [0.02, 0.2, 2.0]},
        "annealed": {"until_images": 64, "to_sigma": 0.2},
        "policy": {"entropy": 0.0},
    }
    sigma = {"kind": kind, **({} if kind == "fixed" else {"bins": 4}), **more.get(kind, {})}
    common = {"teacher_layers": ["mid", "dec.0"], "input": "clean", "sigma": sigma, "standardise": True}
    settings = [settings_of(teacher, {"objective": {**common, "cache": cache}}) for cache in ("maps", "none")]
    store, found = open_store(settings[0].data), []
    for each in settings:
        held = made(each)
        list(held.prepare(store, False, torch.device("cpu"), 0, 1))
        batch = batch_for(each, held)
        held.begin(32, batch.label)
        found.append(held(batch))
    assert torch.allclose(*found, rtol=2e-2, atol=2e-3)


def test_held_out_images_see_all_levels_of_each_band(teacher: Path) -> None:
    sigma = {"kind": "multi", "bounds": [0.02, 0.2, 2.0], "bins": 8}
    held = made(settings_of(teacher, {"objective": {"teacher_layers": ["mid", "dec.0"], "sigma": sigma}}))
    choice = held.selection.pick(torch.zeros(80, 1, 8, 8), held._spread((torch.arange(80) + 0.5) / 80), 0.0)
    assert torch.bincount(choice.bin).tolist() == [10] * 8


# -- answers that are kept ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["pooled", "maps"])
def test_kept_answers_are_the_teachers(teacher: Path, how: Any) -> None:
    store = open_store(DataSettings(source="digits"))
    found = Teacher(str(teacher), ["mid", "dec.0"], "noised", (1, 8, 8))
    sigmas = torch.tensor([0.1, 1.0], dtype=torch.float64)
    asking = Asking(found, sigmas, how, torch.device("cpu"))
    rows = store.indices("train")[:20]
    *_, kept = ask(asking, store, rows, True, 0, 1)
    assert isinstance(kept, Answers)
    images = store.batch(rows[[3, 7]]).flip(-1)
    expected = found.maps(
        PixelCodec().encode(images), torch.tensor([1.0, 0.1], dtype=torch.float64), image_noise(images, (1, 8, 8))
    )
    numbers = kept(torch.from_numpy(rows[[3, 7]]), np.array([True, True]))
    assert numbers.shape[:2] == (2, 2)
    for got, maps in zip(kept.maps(numbers, torch.tensor([1, 0])), expected, strict=True):
        maps = maps.mean((2, 3), keepdim=True) if how == "pooled" else maps
        assert got.shape == maps.shape and torch.allclose(got, maps, atol=2e-3, rtol=2e-3)
    pooled = torch.cat([one.mean((2, 3)) for one in expected], 1)
    every = kept.pooled(numbers)
    assert torch.allclose(torch.stack([every[1, 0], every[0, 1]]), pooled, atol=2e-3, rtol=2e-3)


def test_what_is_kept_is_not_asked_again(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a run that keeps answers learns what one learns that asks in every step, but for its noise."""
    cached = settings_of(teacher, {"objective": {"cache": "maps", "input": "clean"}})
    asked = settings_of(teacher, {"objective": {"input": "clean"}})
    store = open_store(cached.data)
    one, other = made(cached), made(asked)
    for each in (one, other):
        list(each.prepare(store, False, torch.device("cpu"), 0, 1))
    calls: list[int] = []
    monkeypatch.setattr(one.teacher, "maps", lambda *args: calls.append(1))
    found = one(batch_for(cached, one))
    assert not calls
    assert torch.allclose(found, other(batch_for(asked, other)), rtol=2e-2, atol=1e-3)


def test_the_scale_of_channels_is_theirs() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = 5 + 3 * torch.randn(64, 4, 3, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 0.0])[:, None, None]
    scale = Scale([4])
    scale.add([maps[:32]])
    scale.add([maps[32:]])
    scale.finish()
    (found,) = scale([maps])
    assert torch.allclose(found.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(found[:, :3].std((0, 2, 3)), torch.ones(3), atol=1e-2)
    assert bool(found.isfinite().all())  # a channel that says nothing


# -- training -------------------------------------------------------------------------------------------------------


def test_a_student_comes_nearer_to_its_teacher(teacher: Path, tmp_path: Path) -> None:
    more = {"train": {"n_images": 1280, "validate_images": 320, "lr": 3e-3, "save_images": 2000}}
    settings = settings_of(
        teacher, {"objective": {"standardise": True, "sigma": {"kind": "fixed", "sigma": 0.05}}}, more
    )
    result = train(settings, tmp_path / "a", "cpu")
    losses = [row["loss"] for row in Run(tmp_path / "a").log() if row["kind"] == "validation"]
    assert losses[-1] < 0.7 * losses[0]
    assert result["learned"]["teacher"]["layers"] == ["mid"]
    assert result["learned"]["selection"]["probability"] == [1.0]
    student: Any = load(tmp_path / "a")
    assert isinstance(student, Backbone) and student.embed(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 16)
    assert all(name.startswith("backbone.") for name in load_file(tmp_path / "a" / "model.safetensors"))


POLICY = {"objective": {"sigma": {"kind": "policy", "bins": 4}, "standardise": True}}


def test_resuming_is_exact_with_a_policy_and_adapters(teacher: Path, tmp_path: Path) -> None:
    """Optimisers of helpers, their weights, running rewards: all of it is in the training state."""
    settings = settings_of(teacher, POLICY)
    train(settings, tmp_path / "whole", "cpu")

    def stop(event: Any) -> None:
        if type(event).__name__ == "Saved" and event.n_images == 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "parts", "cpu", stop)
    train(settings, tmp_path / "parts", "cpu")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    last = f"{128:012d}"
    one, other = (load_file(tmp_path / name / "state" / last / "tensors.safetensors") for name in ("whole", "parts"))
    assert same(one, other)
    assert any(name.startswith("helpers/weights/selection.policy") for name in one)
    assert any(name.startswith("helpers/optimizer/selection/") for name in one)


def test_a_policy_without_labels_is_refused(teacher: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8)
    np.savez(tmp_path / "plain.npz", images=images)
    settings = settings_of(teacher, POLICY, {"data": {"source": str(tmp_path / "plain.npz"), "channels": 1}})
    with pytest.raises(UserError, match="use reward=infonce, or label some images"):
        train(settings, tmp_path / "run", "cpu")


def test_two_processes_learn_what_one_does(teacher: Path, tmp_path: Path) -> None:
    """Of losses that are each image's own; batch norms see half a batch, so it is near and not the same."""
    settings = settings_of(teacher, {"train": {"n_images": 64}, "objective": {"cache": "pooled"}})
    (tmp_path / "s.yaml").write_text(to_yaml(settings))
    cache = str(tmp_path / "cache")
    torchrun(
        "-m", "twofold", "train", tmp_path / "s.yaml", "--out", tmp_path / "two", "--device", "cpu", TWOFOLD_CACHE=cache
    )
    train(settings, tmp_path / "one", "cpu")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        if value.is_floating_point():
            assert torch.allclose(value, two[name], atol=0.02), name


# -- what it takes ---------------------------------------------------------------------------------------------------


def test_an_estimate_counts_the_teacher(teacher: Path) -> None:
    """In every step, at every level of an expectation, or once about each image and its mirror image."""
    from twofold.learn.estimate import estimate

    def flops(images: int | None = 1000, flip: bool = False, **objective: Any) -> float:
        settings = settings_of(teacher, {"objective": objective, "data": {"flip": flip}})
        found = [estimate(settings, (1, 8, 8), [""] * 10, images=images, teacher=told) for told in (True, False)]
        assert found[0].memory > found[1].memory
        return found[0].flops - found[1].flops

    each = flops() / 128
    assert each > 0
    assert flops(sigma={"kind": "expectation", "bins": 5}) == pytest.approx(128 * 5 * each)
    assert flops(cache="pooled", flip=True) == pytest.approx(1000 * 2 * 3 * each)


def test_a_dry_run_of_a_distillation(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from twofold.cli.main import main

    (tmp_path / "s.yaml").write_text(to_yaml(settings_of(teacher)))
    assert main(["train", str(tmp_path / "s.yaml"), "--dry-run", "--device", "cpu"]) == 0
    assert "compute" in capsys.readouterr().out


def test_labels_are_told_where_they_are_learned(teacher: Path) -> None:
    from twofold.learn.batches import labelled_note

    data = {"data": {"labels_per_class": 2}}
    for change, expected in ((POLICY, " (20 labelled)"), ({}, "")):
        settings = settings_of(teacher, data, change)
        store = open_store(settings.data)
        assert labelled_note(settings, store, store.indices("train")) == expected
