"""The joint objective: its loss by hand, what unlabelled images do (nothing), schedule, companions, and whole runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from twofold.data import open_store
from twofold.denoiser import Classifier, Denoiser, JointDenoiser
from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.batches import Batch, Batches, labelled_rows
from twofold.learn.events import Note, Saved
from twofold.learn.objectives import objective
from twofold.learn.objectives.joint import JointObjective, balanced, soft_labels, sure_labels, weight_at
from twofold.learn.validation import Validation
from twofold.noise import add
from twofold.recognize.classifier import JointClassifier
from twofold.run import Run, build, load
from twofold.settings.data import DataSettings
from twofold.settings.resolve import resolve
from twofold.settings.train import Joint, TrainSettings

from .common import TINY, same, weights


def settings(**objective: Any) -> TrainSettings:
    change = {"network": {"classes": 0, "dropout": 0.0, "head": {"dropout": 0.0}}, "objective": {"kind": "joint"}}
    return resolve(TrainSettings, [("tiny", TINY), ("joint", change), ("test", {"objective": objective})])[0]


def made(**chosen: Any) -> JointObjective:
    """The objective of a tiny joint model with weights that are not their first ones."""
    augment = chosen.pop("augment_probability", 0.0)
    network = {"classes": chosen.pop("classes", 0), "augment_dim": 9 if augment else 0}
    change = {"network": network, "objective": {"augment_probability": augment}}
    wanted = resolve(TrainSettings, [("a", settings(**chosen).model_dump(mode="json")), ("b", change)])[0]
    torch.manual_seed(0)
    model = build(wanted, (1, 8, 8), ["a", "b", "c"])
    assert isinstance(model, JointDenoiser)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    found = objective(model, wanted.objective)
    assert isinstance(found, JointObjective)
    return found.train()


def batch_of(found: JointObjective, label: list[int] | list[list[int]], seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    n = len(label)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=random, dtype=torch.uint8)
    uniforms = torch.rand(n, found.uniforms, generator=random, dtype=torch.float64)
    return Batch(images, torch.tensor(label), uniforms, torch.randn(n, 1, 8, 8, generator=random))


@pytest.mark.parametrize("reads", ["clean", "noised", "both"])
@pytest.mark.parametrize("classes", [0, 3])
def test_loss_by_hand(reads: str, classes: int) -> None:
    """Mean over the batch = denoising loss + weight * mean over labelled images of the cross-entropies."""
    found = made(reads=reads, weight=0.7, classes=classes)
    batch = batch_of(found, [0, -1, 2, 1, -1])
    found.begin(0, batch.label)
    torch.manual_seed(0)
    loss = found(batch)
    model, noised = found.joint, found.noised(batch)
    expected = found.loss(model(noised.x, noised.sigma, noised.cond), noised).mean()
    known = batch.label >= 0
    x0, entropies = model.codec.encode(batch.images), []
    if reads != "noised":
        entropies.append(functional.cross_entropy(model.logits(x0[known], 0.0), batch.label[known]))
    if reads != "clean":
        sigma = noised.sigma[known]
        x = add(x0[known], batch.noise[known], sigma)  # type: ignore[index]
        entropies.append(functional.cross_entropy(model.logits(x, sigma), batch.label[known]))
    torch.testing.assert_close(loss.mean(), expected + 0.7 * torch.stack(entropies).mean(), rtol=1e-5, atol=1e-6)


def test_a_condition_does_not_tell_the_answer() -> None:
    """The head of a class-conditional network reads images that the label was not said of."""
    found = made(reads="noised", classes=3)
    asked: list[torch.Tensor] = []
    embedding = found.joint.network.embedding
    embedding.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[1]["label"].clone()))
    batch = batch_of(found, [0, 1, 2, -1])
    found.begin(0, batch.label)
    found(batch)
    assert len(asked) == 1 and len(asked[0]) == 7 and bool((asked[0][4:] == -1).all())


@pytest.mark.parametrize("reads", ["clean", "noised", "both"])
@pytest.mark.parametrize("kind", ["taps", "published"])
def test_unlabelled_images_do_nothing_to_the_head(reads: str, kind: str) -> None:
    found = made(reads=reads)
    if kind == "published":
        change = {"network": {"head": {"kind": "published", "dropout": 0}}}
        wanted = resolve(TrainSettings, [("a", settings(reads=reads).model_dump(mode="json")), ("b", change)])[0]
        found = objective(build(wanted, (1, 8, 8), ["a", "b", "c"]), wanted.objective).train()  # type: ignore[assignment]
    head = found.joint.network.head
    batch = batch_of(found, [-1, -1, -1])
    found.begin(0, batch.label)
    before = {name: value.clone() for name, value in head.named_buffers()}
    loss = found(batch)
    loss.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())  # used, so that DDP is content
    assert all(torch.equal(value, before[name]) for name, value in head.named_buffers())
    noised = found.noised(batch)
    torch.testing.assert_close(loss, found.loss(found.joint(noised.x, noised.sigma, noised.cond), noised))


def test_one_pass_of_the_encoder() -> None:
    found, passes = made(reads="both"), []
    found.joint.network.enc[0].register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    batch = batch_of(found, [0, -1, 2])
    found.begin(0, batch.label)
    found(batch)
    assert passes == [5]  # three noised, two clean


def test_further_labelled_images_are_for_the_head_alone() -> None:
    found = made(reads="clean", weight=0.5)
    batch = batch_of(found, [-1, -1, -1, -1])
    batch.labelled = batch_of(found, [2, -1, 0, -1], seed=1)
    found.begin(0, batch.labelled.label)
    loss = found(batch)
    noised = found.noised(batch)
    denoising = found.loss(found.joint(noised.x, noised.sigma, noised.cond), noised)
    x0 = found.joint.codec.encode(batch.labelled.images[[0, 2]])
    each = functional.cross_entropy(found.joint.logits(x0, 0.0), torch.tensor([2, 0]), reduction="none")
    torch.testing.assert_close(loss - denoising, torch.stack([each[0], 0 * each[0], each[1], 0 * each[0]]))
    halves = torch.cat([found(part) for part in batch.split(2)])
    torch.testing.assert_close(halves, loss)


def test_mixed_images_have_mixed_labels() -> None:
    """With a share of one half of each, the loss is the mean of both labels' cross-entropies on the mean image."""
    found = made(reads="clean", mix=1.0, weight=1.0)
    batch = batch_of(found, [0, 2])
    from twofold.data.vary import VARY_DRAWS

    batch.uniforms[:, found._own + VARY_DRAWS :] = torch.tensor([0.0, 0.5, 0.25])  # Beta(1, 1) at its median
    found.begin(0, batch.label)
    noised = found.noised(batch)
    extra = found(batch) - found.loss(found.joint(noised.x, noised.sigma, noised.cond), noised)
    x0 = found.joint.codec.encode(batch.images).mean(0, keepdim=True)
    expected = -functional.log_softmax(found.joint.logits(x0, 0.0), 1)[0, [0, 2]].mean()
    torch.testing.assert_close(extra, expected.expand(2), rtol=1e-4, atol=1e-4)


def test_multi_label_by_hand() -> None:
    found = made(reads="clean", multi_label=True, weight=1.0, label_smoothing=0.2)
    batch = batch_of(found, [[1, 0, -1], [-1, -1, -1], [0, 0, 1]])
    found.begin(0, batch.label)
    noised = found.noised(batch)
    extra = found(batch) - found.loss(found.joint(noised.x, noised.sigma, noised.cond), noised)
    logits = found.joint.logits(found.joint.codec.encode(batch.images), 0.0)
    bce = functional.binary_cross_entropy_with_logits
    first = bce(logits[0, :2], torch.tensor([0.9, 0.1]))
    third = bce(logits[2], torch.tensor([0.1, 0.1, 0.9]))
    torch.testing.assert_close(extra, torch.stack([first, first * 0, third]) * 3 / 2, rtol=1e-4, atol=1e-5)
    assert (found.counted(batch.label), found.asked(batch.label)) == (3, 2)


def test_without_denoising_the_decoder_rests() -> None:
    found = made(denoise=False, reads="both", weight=1.0)
    batch = batch_of(found, [1, -1, 2])
    found.begin(0, batch.label)
    assert found.counted(batch.label) == 2 and found.denoiser is None
    found(batch).sum().backward()
    trained = {name.split(".")[0] for name, p in found.network.named_parameters() if p.requires_grad}
    assert trained == {"embedding", "enc", "mid", "head"}
    assert all(p.grad is not None for p in found.network.parameters() if p.requires_grad)
    empty = batch_of(found, [-1, -1])
    found.begin(0, empty.label)
    assert found(empty).tolist() == [0, 0]


def extra(found: JointObjective, batch: Batch) -> torch.Tensor:
    """The classification part of each image's loss."""
    found.begin(0, batch.label)
    noised = found.noised(batch)
    return found(batch) - found.loss(found.joint(noised.x, noised.sigma, noised.cond), noised)


def test_sure_answers_are_labels() -> None:
    """Of clean images, above the threshold and nowhere else; the labels themselves are not looked at."""
    found = made(reads="noised", pseudo_labels="sure", pseudo_threshold=0.46, pseudo_weight=0.5, weight=2.0)
    batch = batch_of(found, [-1] * 12)
    x0, noised = found.joint.codec.encode(batch.images), found.noised(batch)
    sure, label = found.joint.logits(x0).softmax(1).max(1)
    assert 0 < int((sure >= 0.46).sum()) < 12  # both kinds are there
    entropy = functional.cross_entropy(found.joint.logits(noised.x, noised.sigma), label, reduction="none")
    expected = torch.where(sure >= 0.46, 2.0 * 0.5 * entropy, 0.0)
    torch.testing.assert_close(extra(found, batch), expected, rtol=1e-4, atol=1e-5)


def test_soft_answers_are_sharpened_and_balanced() -> None:
    found = made(reads="noised", pseudo_labels="soft", pseudo_balanced=True, weight=1.0)
    batch = batch_of(found, [-1] * 6)
    x0, noised = found.joint.codec.encode(batch.images), found.noised(batch)
    p = found.joint.logits(x0).softmax(1).double()
    p = p / p.mean(0)
    target = (p / p.sum(1, keepdim=True)) ** 2
    target = (target / target.sum(1, keepdim=True)).float()
    log_p = functional.log_softmax(found.joint.logits(noised.x, noised.sigma), 1)
    torch.testing.assert_close(extra(found, batch), -(target * log_p).sum(1), rtol=1e-4, atol=1e-5)


def test_answers_to_several_questions() -> None:
    chances = torch.tensor([[0.9, 0.5, 0.02]])
    target, known = sure_labels(chances, True, 0.9)
    assert target.tolist() == [[1, 0, 0]] and known.tolist() == [[1, 0, 1]]
    expected = [[0.81 / 0.82, 0.5, 0.0004 / (0.0004 + 0.98**2)]]
    torch.testing.assert_close(soft_labels(chances, True), torch.tensor(expected))
    with pytest.raises(UserError, match="pseudo_balanced=true is for one label per image"):
        settings(pseudo_labels="soft", pseudo_balanced=True, multi_label=True)


@given(st.integers(0, 100), st.integers(2, 6), st.integers(1, 40))
def test_balanced_answers(seed: int, classes: int, images: int) -> None:
    """Still probabilities; and where all images get the same answer, nothing is known of any."""
    chances = torch.rand(images, classes, generator=torch.Generator().manual_seed(seed)).double().softmax(1)
    found = balanced(chances)
    torch.testing.assert_close(found.sum(1), torch.ones(images, dtype=torch.float64))
    same = chances[:1].expand(images, classes)
    torch.testing.assert_close(balanced(same), torch.full_like(same, 1 / classes))


def test_schedule_of_the_weight() -> None:
    chosen = Joint(weight=2.0, weight_from_images=100, weight_rampup_images=50, weight_until_images=1000)
    assert [weight_at(chosen, n) for n in (0, 99, 100, 125, 150, 999, 1000)] == [0, 0, 0, 1, 2, 2, 0]
    with pytest.raises(ValueError, match="weight_until_images=5 is not after"):
        Joint(weight_from_images=5, weight_until_images=5)
    found = made(weight_from_images=64)
    batch = batch_of(found, [0, 1])
    found.begin(0, batch.label)
    noised = found.noised(batch)
    torch.testing.assert_close(found(batch), found.loss(found.joint(noised.x, noised.sigma, noised.cond), noised))


def test_companions_are_found_by_position() -> None:
    source = {"source": "digits", "labels_per_class": 2}
    store = open_store(resolve(TrainSettings, [("t", TINY), ("d", {"data": source})])[0].data)
    rows = store.indices("train")
    batches = Batches(store, rows, seed=3, uniforms=4, noise=True, flip=False, labelled_every=4)
    whole = batches.make(0, 160)
    assert whole.labelled is not None
    label = whole.labelled.label
    assert torch.equal(label, batches.labels_at(0, 160)) and bool((label[torch.arange(160) % 4 != 0] == -1).all())
    seen = np.bincount(label[::4].numpy(), minlength=10)
    assert (seen == 4).all()  # 40 of them: each of the 20 labelled images twice
    parts = [batches.make(32, 64), batches.make(64, 96)]
    for k, part in enumerate(parts, 1):
        assert part.labelled is not None
        assert torch.equal(part.labelled.images, whole.labelled.images[32 * k : 32 * k + 32])
        assert torch.equal(part.labelled.noise, whole.labelled.noise[32 * k : 32 * k + 32])  # type: ignore[index, arg-type]
    alone = Batches(store, rows, seed=3, uniforms=4, noise=True, flip=False).make(0, 160)
    assert torch.equal(alone.images, whole.images) and torch.equal(alone.noise, whole.noise)  # type: ignore[arg-type]


def test_a_joint_run_sees_what_a_plain_one_sees() -> None:
    """Of one seed: the same images, noise levels and noise, so that both can be compared in pairs."""
    store = open_store(settings().data)
    found, seen = made(), []
    plain = objective(found.joint, resolve(TrainSettings, [("t", TINY)])[0].objective)
    for each in (found, plain):
        batches = Batches(store, store.indices("train"), 5, each.uniforms, True, True, further=each.further)
        seen.append(batches.make(32, 64))
    assert torch.equal(seen[0].images, seen[1].images) and torch.equal(seen[0].noise, seen[1].noise)  # type: ignore[arg-type]
    count = plain.uniforms
    assert torch.equal(seen[0].uniforms[:, :count], seen[1].uniforms) and seen[0].uniforms.shape[1] > count


def test_nobody_labelled() -> None:
    store = open_store(settings().data)
    with pytest.raises(UserError, match="no training image is labelled"):
        labelled_rows(store, store.indices("train")[:0])


SHORT = {"train": {"n_images": 128}}


def run_of(tmp_path: Path, name: str, *changes: dict[str, Any], **objective: Any) -> dict[str, Any]:
    layers = [("a", settings(**objective).model_dump(mode="json", exclude_unset=True)), *(("b", c) for c in changes)]
    return train(resolve(TrainSettings, layers)[0], tmp_path / name, "cpu")


@pytest.fixture(scope="module")
def joint_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a joint model, to be read only."""
    run_of(folder := tmp_path_factory.mktemp("runs"), "joint", SHORT, weight=0.1)
    return folder / "joint"


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of a denoiser of the same network."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    train(resolve(TrainSettings, [("t", TINY), ("c", {"network": {"classes": 0}}), ("s", SHORT)])[0], folder, "cpu")
    return folder


def test_a_run_gives_both(joint_run: Path) -> None:
    result = Run.open(joint_run).result()
    assert result is not None and {"loss", "accuracy", "frechet", "best_accuracy"} <= result["metrics"].keys()
    model = load(joint_run)
    assert isinstance(model, JointDenoiser) and isinstance(model, Denoiser) and isinstance(model, Classifier)
    assert model.class_names == [str(k) for k in range(10)] and model.classes == 0
    x = torch.randn(2, 1, 8, 8)
    state = model.encode(x, 0.5)
    torch.testing.assert_close(model.decode(state), model.denoise(x, 0.5))
    torch.testing.assert_close(model.read(state), model.logits(x, 0.5))
    assert model.logits(x).shape == (2, 10)
    with pytest.raises(UserError, match="sigma"):
        model.logits(x, 1e4)


def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    few = {"data": {"labels_per_class": 3}, "objective": {"labelled_batch": 16, "vary": 1, "mix": 0.5}}
    run_of(tmp_path, "whole", few)

    def die(event: object) -> None:
        if isinstance(event, Saved) and event.n_images == 128:
            raise InterruptedError

    layers = [("a", settings().model_dump(mode="json", exclude_unset=True)), ("b", few)]
    wanted = resolve(TrainSettings, layers)[0]
    with pytest.raises(InterruptedError):
        train(wanted, tmp_path / "killed", "cpu", die)
    train(wanted, tmp_path / "killed", "cpu")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_the_first_line_says_how_many_images_are_labelled(tmp_path: Path) -> None:
    notes: list[str] = []
    wanted = settings(weight=0.1)
    short = wanted.train.model_copy(update={"n_images": 32})
    for data in ({"labels_per_class": 2}, {}):
        changed = wanted.model_copy(update={"train": short, "data": wanted.data.model_copy(update=data)})
        show = lambda event: notes.append(event.text) if isinstance(event, Note) else None  # noqa: E731
        train(changed, tmp_path / str(len(data)), "cpu", show)
    few, every = (note for note in notes if note.startswith("digits: "))
    assert re.match(r"digits: [\d,]+ training \(20 labelled\) and \d+ validation images, 10 classes", few)
    assert re.match(r"digits: [\d,]+ training and \d+ validation images, 10 classes", every)


def test_a_run_without_denoising_is_a_classifier_that_denoising_can_be_added_to(tmp_path: Path) -> None:
    short = {"train": {"n_images": 32}}
    run_of(tmp_path, "first", short, weight=1.0, denoise=False)
    alone = load(tmp_path / "first")
    assert isinstance(alone, JointClassifier) and not isinstance(alone, Denoiser)
    further = {"init_from": str(tmp_path / "first"), **short}
    layers = [("a", {k: v for k, v in TINY.items() if k not in ("network", "noise")}), ("b", further)]
    layers += [("c", {"objective": {"kind": "joint"}})]
    train(resolve(TrainSettings, layers)[0], tmp_path / "second", "cpu")
    assert isinstance(load(tmp_path / "second"), JointDenoiser)


def test_few_labels_bring_companions_and_many_do_not(tmp_path: Path) -> None:
    run_of(tmp_path, "many", {"train": {"n_images": 32}})
    run_of(tmp_path, "few", {"train": {"n_images": 32}, "data": {"labels_per_class": 2}})
    found = {
        name: load(tmp_path / name) and (tmp_path / name / "settings.yaml").read_text() for name in ("many", "few")
    }
    assert "labelled_batch: 0" in found["many"] and "labelled_batch: 8" in found["few"]


def test_hidden_labels_do_not_matter(tmp_path: Path) -> None:
    """Two sources that differ only in labels which are not to be seen train the same weights, bit for bit."""
    datasets = pytest.importorskip("datasets")
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(p) for p in random.integers(0, 256, (60, 8, 8)).astype(np.uint8)]
    truth = random.integers(0, 2, 60)
    shuffled = np.concatenate([truth[:10], random.permutation(truth[10:])])
    for name, labels in (("one", truth), ("two", shuffled)):
        (tmp_path / name).mkdir()
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
        for split in ("train", "test"):
            table = datasets.Dataset.from_dict({"image": pictures, "label": labels.tolist()})
            table.cast(datasets.Features(kinds)).to_parquet(str(tmp_path / name / f"{split}.parquet"))
    own = {"validation_share": 0.0, "test_share": 0.0}
    store = open_store(DataSettings(source=str(tmp_path / "one"), **own))
    ids = [store.id(int(row)) for row in store.indices("train")[:10]]
    (tmp_path / "labels.csv").write_text(
        "id,label\n" + "".join(f"{name},{'ab'[truth[k]]}\n" for k, name in enumerate(ids))
    )
    for name in ("one", "two"):
        data = {"source": str(tmp_path / name), "labels": str(tmp_path / "labels.csv"), **own}
        validation = {"split": "train", "samples": 0}
        run_of(tmp_path, f"run-{name}", {"data": data, "train": {"n_images": 64}, "validation": validation})
    assert not np.array_equal(truth, shuffled)
    assert same(weights(tmp_path / "run-one"), weights(tmp_path / "run-two"))


@pytest.mark.parametrize("back", [False, True])
def test_starts_from_a_denoiser_and_gives_one(tmp_path: Path, joint_run: Path, plain_run: Path, back: bool) -> None:
    """A denoiser gets a head, or a joint model loses its own; everything else is taken over."""
    first, kind = (joint_run, "denoising") if back else (plain_run, "joint")
    change = {"init_from": str(first), "objective": {"kind": kind}, "data": {"source": "digits"}}
    wanted = resolve(TrainSettings, [("x", change), ("t", {"train": {**TINY["train"], "n_images": 32, "lr": 1e-9}})])[0]
    result = train(wanted, tmp_path / "second", "cpu")
    ours, theirs = load(tmp_path / "second"), load(first)
    assert isinstance(ours, JointDenoiser) is not back and isinstance(theirs, JointDenoiser) is back
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(ours.denoise(x, 0.5), theirs.denoise(x, 0.5), atol=1e-3, rtol=1e-3)  # type: ignore[union-attr]
    heads = result["init_from"]["left_out" if back else "new"]
    assert any(name.startswith("head.") for name in heads)


def test_a_joint_model_from_a_joint_model_keeps_its_classes(tmp_path: Path, joint_run: Path) -> None:
    change = {"init_from": str(joint_run), "objective": {"kind": "joint"}, "data": {"source": "digits"}}
    wanted = resolve(TrainSettings, [("x", change), ("t", {"train": {**TINY["train"], "n_images": 32, "lr": 1e-9}})])[0]
    result = train(wanted, tmp_path / "second", "cpu")
    assert result["init_from"]["kept_classes"] == [str(k) for k in range(10)] and not result["init_from"]["new"]
    x = torch.randn(2, 1, 8, 8)
    ours, theirs = load(tmp_path / "second"), load(joint_run)
    torch.testing.assert_close(ours.logits(x), theirs.logits(x), atol=1e-3, rtol=1e-3)  # type: ignore[union-attr]


def test_low_rank_updates_train_the_whole_head(tmp_path: Path, plain_run: Path) -> None:
    change = {"init_from": str(plain_run), "objective": {"kind": "joint"}, "lora": {"rank": 2}}
    layers = [("x", {**change, "data": {"source": "digits"}}), ("t", {"train": {**TINY["train"], "n_images": 64}})]
    result = train(resolve(TrainSettings, layers)[0], tmp_path / "second", "cpu")
    model = load(tmp_path / "second")
    assert isinstance(model, JointDenoiser) and result["parameters_trained"] < result["parameters"]
    assert sum(p.numel() for p in model.network.head.parameters()) < result["parameters_trained"]


@pytest.mark.parametrize("back", [False, True])
def test_a_branch_is_of_the_same_kind(tmp_path: Path, joint_run: Path, plain_run: Path, back: bool) -> None:
    source, kind = (joint_run, "denoising") if back else (plain_run, "joint")
    change = {"resume_from": str(source), "objective": {"kind": kind}, "data": {"source": "digits"}}
    with pytest.raises(UserError, match=r"objective\.kind: is not what .* was trained with"):
        train(resolve(TrainSettings, [("x", change)])[0], tmp_path / "second", "cpu")
    assert not (tmp_path / "second").exists()


def test_leak_free_augmentation_goes_with_it() -> None:
    """A denoiser of this seed gets the same augmentation; the head's clean images get none, and their label is zero."""
    found = made(weight=1.0, augment_probability=0.5)
    batch = batch_of(found, [0, 1, 2, -1])
    plain = resolve(TrainSettings, [("t", TINY), ("a", {"network": {"augment_dim": 9}})])[0].objective
    alone = objective(found.joint, plain.model_copy(update={"augment_probability": 0.5}))
    same_batch = Batch(batch.images, batch.label, batch.uniforms[:, : alone.uniforms], batch.noise)
    assert torch.equal(found.noised(batch).x, alone.noised(same_batch).x)
    assert bool(found.noised(batch).cond["augment"].any())
    seen: list[torch.Tensor] = []
    found.network.embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]["augment"]))
    found.begin(0, batch.label)
    assert bool(found(batch).isfinite().all())
    assert seen[0].shape == (7, 9) and bool(seen[0][:4].any()) and not bool(seen[0][4:].any())


@pytest.mark.parametrize("kind", ["joint", "supervised"])
def test_attributes_that_nobody_asks_for(tmp_path: Path, kind: str) -> None:
    store = open_store(settings().data)
    row = store.id(int(store.indices("train")[0]))
    (tmp_path / "labels.csv").write_text(f"name,even,big\n{row},1,0\n")
    change: dict[str, Any] = {"data": {"source": "digits", "labels": str(tmp_path / "labels.csv")}}
    change |= {"objective": {"kind": kind}, "network": {"kind": "convnet" if kind == "supervised" else "unet"}}
    with pytest.raises(UserError, match=r"lists attributes.*set objective\.multi_label=true"):
        train(resolve(TrainSettings, [("test", change)])[0], tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_few_labels_of_attributes_are_named_in_a_file(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(p) for p in random.integers(0, 256, (40, 8, 8)).astype(np.uint8)]
    table = {"image": pictures, "a": [0, 1] * 20, "b": [1, 1, 0, 0] * 10}
    datasets.Dataset.from_dict(table).cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "x.parquet"))
    data = {"source": str(tmp_path / "x.parquet"), "attribute_columns": ["a", "b"], "labels_per_class": 2}
    with pytest.raises(UserError, match=r"data\.labels_per_class=2: is about classes.*data\.labels=FILE"):
        run_of(tmp_path, "run", {"data": data}, multi_label=True)


def test_a_head_of_other_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"network\.head\.classes=5: the data has 10 classes"):
        run_of(tmp_path, "run", {"network": {"head": {"classes": 5}}})


def test_no_accuracy_where_no_label_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = settings()
    validation = Validation(wanted, open_store(wanted.data), 0, 1, torch.device("cpu"))
    for sums, expected in (([2, 4, 0, 0], {"loss": 0.5}), ([2, 4, 3, 4], {"loss": 0.5, "accuracy": 0.75})):
        monkeypatch.setattr(validation, "loss", lambda *_, sums=sums: torch.tensor(sums, dtype=torch.float64))
        assert validation.measured(made(), 8) == expected


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"network": {"kind": "dit", "width": 16, "heads": 2, "depth": 1}},
            "objective.kind=joint is for network.kind=unet",
        ),
        ({"objective": {"multi_label": True}, "network": {"classes": 10}}, "needs network.classes=0"),
        ({"objective": {"labelled_batch": 5}}, r"objective\.labelled_batch=5 must divide train\.batch_size=32"),
        ({"objective": {"levels": "importance"}}, "goes by the denoising loss alone"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, Any], says: str) -> None:
    base = {**TINY, "network": {}} if "kind" in change.get("network", {}) else TINY
    with pytest.raises(UserError, match=says):
        resolve(TrainSettings, [("tiny", base), ("joint", {"objective": {"kind": "joint"}}), ("test", change)])


def test_a_head_needs_its_objective() -> None:
    with pytest.raises(UserError, match=r"network\.head is trained by objective\.kind=joint"):
        resolve(TrainSettings, [("tiny", TINY), ("test", {"network": {"head": {"kind": "taps"}}})])


def test_a_joint_model_needs_classes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for k in range(8):
        Image.fromarray(np.full((8, 8), k, np.uint8)).save(tmp_path / "images" / f"{k}.png")
    with pytest.raises(UserError, match="has 0 classes, a classifier needs at least 2"):
        run_of(tmp_path, "run", {"data": {"source": str(tmp_path / "images")}})
    assert not (tmp_path / "run").exists()
