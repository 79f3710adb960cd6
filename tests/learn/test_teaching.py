"""A whole distillation: its parts, what they are made of, what is made again, and one student for several tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twofold.cli.distill import resolved
from twofold.data import open_store
from twofold.errors import UserError
from twofold.learn import teaching
from twofold.learn.crew import Crew
from twofold.learn.teaching import backbone_of, prepare, recipes, run
from twofold.learn.training import make_accelerator
from twofold.run import load
from twofold.settings.data import DataSettings

from ..cli.common import random_run
from .common import tiny

SMALL = [
    *("backbone.blocks=[1,1]", "backbone.channels=8", "pretrain.objective.teacher_layers=[mid]"),
    *("pretrain.train.n_images=64", "pretrain.train.batch_size=32", "pretrain.train.validate_images=64"),
    *("finetune.train.n_images=64", "finetune.train.batch_size=32", "finetune.train.validate_images=64"),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_run(tmp_path_factory.mktemp("teacher") / "run", tiny(), [], 0))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 digits with a split of their own."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images[:240] * 255 / 16).astype(np.uint8)
    splits = np.array(["train"] * 150 + ["validation"] * 30 + ["test"] * 60)
    file = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(file, images=images, labels=found.target[:240], splits=splits)
    return file


def settings_of(teacher: str | None, digits: Path, *words: str) -> Any:
    data = [f"data.source={digits}", "data.labels_per_class=3"]
    return resolved([*([teacher] if teacher else []), "classify-mini"], [*SMALL, *data, *words])[0]


@pytest.fixture(scope="module")
def done(teacher: str, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Any]:
    """A finished experiment: its folder, result and pictures."""
    out = tmp_path_factory.mktemp("distill") / "out"
    return out, *run(settings_of(teacher, digits, "finetune.lrs=[0.001,0.003]"), out, "cpu")


def test_every_student_is_measured_on_the_same_images(done: tuple[Path, dict[str, Any], Any]) -> None:
    out, result, pictures = done
    assert list(result["arms"]) == ["taught", "scratch", "equal compute"]
    for arm in result["arms"].values():
        found = arm["metrics"]["accuracy"]
        assert found["n"] == 60 and found["interval"][0] <= found["value"] <= found["interval"][1]
        assert np.sum(arm["details"]["confusion"]) == 60
        assert np.trace(arm["details"]["confusion"]) / 60 == pytest.approx(found["value"])
    assert set(result["arms"]["taught"]["tried"]) == set(result["arms"]["scratch"]["tried"]) == {"0.001", "0.003"}
    assert pictures["kind"] == "labels" and set(pictures["answers"]) == set(result["arms"])
    assert json.loads((out / "result.json").read_text())["arms"] == result["arms"]


def test_equal_compute_is_equal(done: tuple[Path, dict[str, Any], Any]) -> None:
    """Up to the images of one step."""
    _, result, _ = done
    taught, equal = result["arms"]["taught"], result["arms"]["equal compute"]
    step = equal["flops"] / equal["n_images"] * 32
    assert abs(equal["flops"] - taught["flops"]) <= step and equal["n_images"] > taught["n_images"]
    assert taught["flops"] == pytest.approx(result["arms"]["scratch"]["flops"] + result["pretraining"]["flops"])


def test_the_same_call_makes_nothing_again(
    done: tuple[Path, dict[str, Any], Any], teacher: str, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, result, _ = done
    monkeypatch.setattr(teaching, "train", lambda *args: pytest.fail("trained again"))
    again, _ = run(settings_of(teacher, digits, "finetune.lrs=[0.001,0.003]"), out, "cpu")
    assert again["arms"] == result["arms"] and {part["made"] for part in again["parts"]} == {"found"}


def test_other_labels_leave_the_pretraining_alone(
    done: tuple[Path, dict[str, Any], Any], teacher: str, digits: Path, tmp_path: Path
) -> None:
    """The student is taught without labels, so it is the same for every choice of them."""
    out, _, _ = done
    words = ["finetune.lrs=[0.001]", "data.labels_seed=1", "stage=finetune"]
    result, _ = run(settings_of(teacher, digits, *words), tmp_path / "b", "cpu", parts=out / "parts")
    assert {part["name"]: part["made"] for part in result["parts"]} == {"backbone": "found", "taught-run": "made"}
    assert list(result["arms"]) == ["taught"]


def test_a_taught_student_begins_with_what_it_was_taught(done: tuple[Path, dict[str, Any], Any]) -> None:
    _, result, _ = done
    settings = json.loads((Path(result["arms"]["taught"]["run"]) / "result.json").read_text())
    assert settings["init_from"]["source"] == result["pretraining"]["run"] and settings["init_from"]["taken"] > 10
    scratch = json.loads((Path(result["arms"]["scratch"]["run"]) / "result.json").read_text())
    assert scratch["init_from"] is None


def test_hidden_labels_change_nothing(teacher: str, digits: Path, tmp_path: Path) -> None:
    """Labels of training images outside of the choice, shuffled: every weight stays the same, bit for bit."""
    with np.load(digits) as file:
        arrays = dict(file)
    store = open_store(DataSettings(source=str(digits), labels_per_class=3))
    rows = store.indices("train")
    hidden = rows[store.labels[rows] < 0]
    known = {"file": [store.id(int(r)) for r in rows if store.labels[r] >= 0]}
    lines = ["id,class"] + [
        f"{store.id(int(r))},{store.classes[store.labels[r]]}" for r in rows if store.labels[r] >= 0
    ]
    assert len(lines) == 31 == len(known["file"]) + 1
    found = []
    for name, order in (("a", hidden), ("b", np.random.default_rng(0).permutation(hidden))):
        folder = tmp_path / name
        folder.mkdir()
        labels = arrays["labels"].copy()
        labels[hidden] = labels[order]
        np.savez(folder / "digits.npz", **{**arrays, "labels": labels})
        text = "\n".join(lines) + "\n"
        (folder / "labels.csv").write_text(text)
        words = [f"data.labels={folder / 'labels.csv'}", "stage=finetune"]
        words += ["pretrain.objective.sigma={kind: policy, bins: 3}", "pretrain.objective.cache=none"]
        settings = resolved([teacher, "classify-mini"], [*SMALL, f"data.source={folder / 'digits.npz'}", *words])[0]
        result, _ = run(settings, folder / "out", "cpu")
        model: Any = load(result["arms"]["taught"]["run"])
        found.append({name: value.clone() for name, value in model.network.state_dict().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# -- other tasks ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of two kinds on grey images, with masks and with the centres of both, as Parquet."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("shapes")

    def png(array: np.ndarray) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    for split, count in (("train", 24), ("validation", 8), ("test", 8)):
        images, masks, points = [], [], []
        for _ in range(count):
            image, mask, centres = rng.integers(90, 110, (16, 16), np.uint8), np.zeros((16, 16), np.uint8), []
            for kind, level in ((1, 30), (2, 220)):
                y, x = int(rng.integers(1, 11)), int(rng.integers(0, 3) + (kind - 1) * 8)
                image[y : y + 5, x : x + 5], mask[y : y + 5, x : x + 5] = level, kind
                centres += [x + 2.0, y + 2.0]
            images.append(png(image))
            masks.append(png(mask))
            points.append(centres)
        pq.write_table(pa.table({"image": images, "mask": masks, "points": points}), folder / f"{split}-0.parquet")
    return folder


@pytest.mark.parametrize("task", ["segment", "landmarks"])
def test_one_student_for_several_tasks(
    task: str, shapes: Path, done: tuple[Path, dict[str, Any], Any], tmp_path: Path
) -> None:
    """A backbone taught for one task and data set goes to another: `student=` an experiment."""
    out, before, _ = done
    words = {
        "segment": ["data.mask_column=mask", "data.mask_classes=[ground,dark,light]", "finetune.head.channels=8"],
        "landmarks": ["data.points_column=points", "data.flip_pairs=[]", "finetune.objective.normaliser=10.0"],
    }[task]
    small = [word for word in SMALL if not word.startswith(("pretrain", "backbone"))]
    given = [f"student={out}", f"task={task}", f"data.source={shapes}", "data.size=16", "data.channels=1", *words]
    given += ["annotated=6", "data.flip=true", "finetune.train.lr=0.01"]
    settings = resolved([f"{task}-mini"], [*small, *given])[0]
    result, pictures = run(settings, tmp_path / "out", "cpu")
    measure = {"segment": "miou", "landmarks": "nme"}[task]
    assert result["measure"] == measure and result["data"]["known_images"] == 6
    assert list(result["arms"]) == ["taught", "scratch"]  # nothing was taught here whose cost could be equalled
    for arm in result["arms"].values():
        found = arm["metrics"][measure]
        assert found["n"] == 8 and np.isfinite(found["value"])
    assert result["pretraining"] == {"student": str(out)} and backbone_of(str(tmp_path / "out")) == backbone_of(
        str(out)
    )
    assert pictures["kind"] == {"segment": "masks", "landmarks": "points"}[task]
    started = json.loads((Path(result["arms"]["taught"]["run"]) / "result.json").read_text())["init_from"]
    assert started["source"] == before["pretraining"]["run"]


# -- what cannot be -------------------------------------------------------------------------------------------------


def checked(settings: Any, tmp_path: Path) -> None:
    prepare(settings, tmp_path / "x", Crew(make_accelerator("cpu"))).check()


def test_nobody_teaches(digits: Path) -> None:
    with pytest.raises(UserError, match="nobody teaches|teacher"):
        settings_of(None, digits)
    assert settings_of(None, digits, "stage=scratch").pretrain is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=segment"], "task=segment needs finetune.objective.kind=segmentation, not supervised"),
        (["finetune.head.kind=fcn"], "needs finetune.head.kind=pool, not fcn"),
        (["pretrain.objective.cache=maps", "pretrain.objective.sigma.bins=null"], "give sigma.bins a number"),
        (["pretrain=null"], "pretrain=null: leaves .* nothing to teach; leave one of them out"),
        (["pretrain.objective.cache=none", "pretrain.objective.warp.crop=4"], "use warp.scale and warp.shift, or crop"),
        (["finetune.objective.multi_label=true"], "is not for task=classify, which is about one class"),
        (["finetune.objective.kind=kd"], "is no classifier of images; .*distill, or here with objective.sigma=0.1"),
        (["pretrain_data.source=digits", "pretrain_data.channels=3"], "has images of 3 channels, data of 1"),
        (["backbone.blocks=[1,1,1,1,1]"], "images of 8x8 are too small for its total stride of 16"),
        (["data.labels_per_class=2", "pretrain.objective.teacher_layers=[nope]"], "'nope': no such layer"),
        (["student=runs/a"], "student=runs/a was taught before; leave the teacher out"),
    ],
)
def test_what_does_not_go_together(teacher: str, digits: Path, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked(resolved([teacher, "classify-mini"], [f"data.source={digits}", *words])[0], tmp_path)


def test_what_a_task_lacks_is_said_before_the_student_is_taught(teacher: str, shapes: Path, tmp_path: Path) -> None:
    """A head that asks for more maps, a mirror without pairs: without a look ahead they end a run after its hours."""
    common = [f"data.source={shapes}", "data.channels=1", "data.size=16", "pretrain.objective.teacher_layers=[mid]"]
    points = [*common, "data.points_column=points", "data.flip=true"]
    with pytest.raises(UserError, match="data.flip=true: the points that a mirror exchanges"):
        checked(resolved([teacher, "landmarks-mini"], points)[0], tmp_path)
    masks = ["data.mask_column=mask", "data.mask_classes=[ground,dark,light]", "backbone.blocks=[1,1]"]
    with pytest.raises(UserError, match="reads three maps, the backbone has 2"):
        checked(resolved([teacher, "segment-mini"], [*common, *masks, "finetune.head={kind: bisenet}"])[0], tmp_path)


def test_a_student_of_other_channels(done: tuple[Path, dict[str, Any], Any], digits: Path, tmp_path: Path) -> None:
    words = [word for word in SMALL if not word.startswith("pretrain")]
    settings = resolved(["classify-mini"], [*words, f"student={done[0]}", f"data.source={digits}", "data.channels=3"])[
        0
    ]
    with pytest.raises(UserError, match="sees 1 channels, the data has 3; set data.channels=1"):
        checked(settings, tmp_path)


def test_the_teacher_is_opened_once_to_plan(teacher: str, digits: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from twofold.learn.distilling import teacher as module

    calls: list[int] = []
    opened = module.load
    monkeypatch.setattr(module, "load", lambda *args: calls.append(1) or opened(*args))
    planned = prepare(settings_of(teacher, digits), tmp_path / "x", Crew(make_accelerator("cpu")))
    planned.check()
    works = {name: flops for name, _, flops, _ in planned.works()}
    assert len(calls) == 1 and planned.pretraining_flops == works["pretrain"] > 0
    assert works["equal compute"] == pytest.approx(works["taught"] + works["pretrain"], rel=0.05)


# -- a linear probe --------------------------------------------------------------------------------------------------


def test_a_linear_probe_leaves_the_backbone_alone(
    done: tuple[Path, dict[str, Any], Any], teacher: str, digits: Path, tmp_path: Path
) -> None:
    """Weights and running statistics of the backbone; and only the head costs a backward pass."""
    out, before, _ = done
    settings = settings_of(teacher, digits, "finetune.freeze=true", "stage=finetune")
    result, _ = run(settings, tmp_path / "out", "cpu", parts=out / "parts")
    taught: Any = load(result["arms"]["taught"]["run"])
    backbone: Any = load(before["pretraining"]["run"])
    ours, theirs = taught.network.backbone.state_dict(), backbone.network.backbone.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    trained = json.loads((Path(result["arms"]["taught"]["run"]) / "result.json").read_text())
    assert trained["parameters_trained"] == sum(p.numel() for p in taught.network.head.parameters())
    assert result["arms"]["taught"]["flops"] < before["arms"]["taught"]["flops"]
    assert not taught.network.train().backbone.training and taught.network.head.training


def test_a_task_whose_answers_are_not_there(teacher: str, digits: Path, tmp_path: Path) -> None:
    words = ["task=segment", f"data.source={digits}", "data.size=8", "annotated=0.5"]
    with pytest.raises(UserError, match="mask"):
        checked(resolved([teacher, "segment-mini"], [*SMALL, *words])[0], tmp_path)


def test_an_experiment_without_a_student(tmp_path: Path) -> None:
    (tmp_path / "parts.json").write_text("{}")
    with pytest.raises(UserError, match="without a taught student; run it with stage=pretrain"):
        backbone_of(str(tmp_path))


def test_a_longer_run_has_the_same_schedule(teacher: str, digits: Path) -> None:
    """With equal compute the learning rate falls at the same shares of the run."""
    words = ["finetune.train.schedule=step", "finetune.train.step_images=[32]", "finetune.train.warmup_images=16"]
    settings = settings_of(teacher, digits, *words)
    longer = recipes.task(settings, settings.backbone, None, n_images=4 * 64).train
    assert (longer.n_images, longer.step_images, longer.warmup_images) == (256, (128,), 64)


def test_a_student_is_taught_without_any_label(teacher: str, digits: Path, tmp_path: Path) -> None:
    with np.load(digits) as file:
        np.savez(tmp_path / "plain.npz", images=file["images"], splits=file["splits"])
    words = [*SMALL, f"data.source={tmp_path / 'plain.npz'}", "data.labels_per_class=null", "stage=pretrain"]
    settings = resolved([teacher, "classify-mini"], words)[0]
    result, _ = run(settings, tmp_path / "out", "cpu")
    assert result["arms"] == {} and backbone_of(str(tmp_path / "out")) == result["pretraining"]["run"]
    with pytest.raises(UserError, match="classes"):
        checked(resolved([teacher, "classify-mini"], words[:-1])[0], tmp_path)


def test_a_teacher_from_elsewhere_is_looked_at(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its attention is read in the right order; one of our own is what it is."""
    from diffusers import DDPMPipeline, DDPMScheduler

    from twofold.learn import foreign

    from ..adapters import peers

    def refuse(where: str, denoiser: Any, x0: torch.Tensor, each: bool) -> None:
        assert x0.shape == (foreign.CHECKED, 3, 8, 8) and float(x0.abs().max()) <= 1
        raise UserError(where, "denoises better with its heads in another order")

    monkeypatch.setattr(foreign, "refuse_suspicious", refuse)
    DDPMPipeline(peers.unet(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    words = [*SMALL, "data.source=digits", "data.channels=3", "pretrain.objective.sigma.bins=2"]
    settings = resolved([str(tmp_path / "ddpm"), "classify-mini"], words)[0]
    with pytest.raises(UserError, match="ddpm: denoises better with its heads in another order"):
        checked(settings, tmp_path)
    checked(resolved([teacher, "classify-mini"], [*SMALL, "data.source=digits"])[0], tmp_path)
