"""Few labels: parts with names made of their inputs, pseudo labels, and the three stages end to end."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import twofold
from twofold.data import open_store
from twofold.errors import UserError
from twofold.learn import features, train
from twofold.learn.fewlabel import Crew, Watch, foresee, prepare, run
from twofold.learn.fewlabel.pseudo import pseudo_labels
from twofold.learn.fewlabel.subject import Subject, complete, fitted
from twofold.learn.parts import different
from twofold.learn.training import make_accelerator
from twofold.report.fewlabel import write_page
from twofold.settings.data import DataSettings
from twofold.settings.fewlabel import FewLabelSettings, PseudoSettings
from twofold.settings.fewlabel_layers import layers_of
from twofold.settings.presets import open_preset
from twofold.settings.resolve import parse_assignments, resolve
from twofold.settings.train import TrainSettings

TINY = [
    "learner.kind=propagation",
    "diffusion.network.channels=8",
    "diffusion.network.attention=[]",
    "diffusion.train.batch_size=32",
    "diffusion.train.n_images=128",
    "diffusion.train.save_images=64",
    "generator.n_images=64",
    "images.per_class=3",
    "images.steps=2",
    "images.micro_batch=10",
    "features.draws=1",
    "features.sigmas=[0.1]",
    "final.learner.kind=logistic",
    "final.pseudo=0",
    "pseudo.surest=1",
    "pseudo.folds=0",
]


def settings_of(*words: str) -> FewLabelSettings:
    given = {word.partition("=")[0] for word in words}
    tiny = [word for word in TINY if word.partition("=")[0] not in given]
    layers, _ = layers_of("mini", parse_assignments([*tiny, *words]))
    return resolve(FewLabelSettings, layers)[0]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 digits with a split and a label file of their own: two labels of each class are known."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    found = load_digits()
    images = (found.images[:240] * 255 / 16).astype(np.uint8)
    splits = np.array(["train"] * 180 + ["test"] * 60)
    np.savez(folder / "digits.npz", images=images, labels=found.target[:240], splits=splits)
    store = open_store(DataSettings(source=str(folder / "digits.npz")))
    rows = [int(row) for c in range(10) for row in np.flatnonzero(found.target[:180] == c)[:2]]
    lines = ["id,class", *(f"{store.id(row)},{store.classes[store.all_labels[row]]}" for row in rows)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


class Heard(Watch):
    """Keeps what is said, and which runs were trained."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def done(
    digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """A finished experiment: its folder, result and pictures."""
    out = tmp_path_factory.mktemp("fewlabel") / "out"
    settings = settings_of(f"data={digits / 'digits.npz'}", f"labels={digits / 'labels.csv'}")
    yield out, *run(settings, out, "cpu")


# -- parts and pseudo labels ----------------------------------------------------------------------------------------


def test_what_is_different_is_named() -> None:
    before = {"learner": {"k": 8, "kind": "x"}, "labels": "a" * 64}
    now = {"learner": {"k": 5, "kind": "x"}, "labels": "b" * 64}
    assert different(before, now) == ["learner.k: 8 -> 5", "labels: aaaaaaaa -> bbbbbbbb"]
    assert different(now, now) == []


def test_pseudo_labels_keep_what_is_known() -> None:
    logits = np.array([[5.0, 0.0], [0.0, 5.0], [1.0, 0.0], [0.0, 0.1]], np.float32)
    own = np.array([1, -1, -1, -1])
    found = pseudo_labels(logits, own, PseudoSettings(balanced=False))
    assert found.labels.tolist() == [1, 1, 0, 1]
    assert found.confidence[0] == 1
    assert found.confidence[1] == pytest.approx(1 / (1 + np.exp(-5)), rel=1e-5)


def test_unsure_images_stay_unlabelled() -> None:
    logits = np.array([[5.0, 0.0], [1.0, 0.0], [0.1, 0.0], [0.0, 3.0], [0.0, 0.2]], np.float32)
    none = np.full(5, -1)
    least = pseudo_labels(logits, none, PseudoSettings(balanced=False, least=0.7))
    assert least.labels.tolist() == [0, 0, -1, 1, -1]
    surest = pseudo_labels(logits, none, PseudoSettings(balanced=False, surest=0.5))
    assert surest.labels.tolist() == [0, 0, -1, 1, -1]  # the better two of three, the better one of two


def test_balanced_pseudo_labels_share_the_images_out() -> None:
    """All images look a little more like the first class; half of them, the least so, are given to the second."""
    logits = np.stack([np.linspace(0.1, 2, 20), np.zeros(20)], 1).astype(np.float32)
    found = pseudo_labels(logits, np.full(20, -1), PseudoSettings())
    assert np.bincount(found.labels).tolist() == [10, 10]
    assert pseudo_labels(logits, np.full(20, -1), PseudoSettings(balanced=False)).labels.max() == 0


def test_features_are_read_once_and_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CHUNK", 4)
    seen: list[int] = []

    def images(rows: np.ndarray) -> torch.Tensor:
        seen.extend(rows.tolist())
        return torch.from_numpy(rows).view(-1, 1, 1, 1).to(torch.uint8)

    def embed(batch: torch.Tensor) -> torch.Tensor:
        return batch.flatten(1).float() * torch.tensor([[1.0, 2.0]])

    rows = np.arange(10)[::-1].copy()
    found = features.extract(tmp_path, images, rows, embed, lambda done, total: None)
    assert sorted(seen) == list(range(10))
    assert torch.equal(found.all()[:, 1], 2 * torch.from_numpy(rows).float())
    assert torch.equal(found.take(np.array([7, 0, 3])), found.all()[[7, 0, 3]])
    found.files()[1].unlink()
    seen.clear()
    features.extract(tmp_path, images, rows, embed, lambda done, total: None)
    assert sorted(seen) == [2, 3, 4, 5]


def test_processes_share_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CHUNK", 3)

    def images(rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows).view(-1, 1, 1, 1).to(torch.uint8)

    def embed(batch: torch.Tensor) -> torch.Tensor:
        return batch.flatten(1).float()

    for rank in (0, 1):
        part = features.extract(tmp_path, images, np.arange(8), embed, lambda done, total: None, rank, 2)
    assert part.all().flatten().tolist() == list(range(8))


# -- the stages -----------------------------------------------------------------------------------------------------


def test_all_stages(done: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    out, result, pictures = done
    assert {"stage 1", "self-training", "generated alone", "stage 3"} == set(result["accuracy"])
    assert all(found["n"] == 60 for found in result["accuracy"].values())
    assert result["data"]["labelled"] == dict.fromkeys(map(str, range(10)), 2)
    assert result["accuracy"]["stage 1"]["value"] > 0.5  # of ten classes, from features of a hardly trained model
    assert result["pseudo"]["told"] == 160
    assert np.sum(result["pseudo"]["confusion"]) == 160
    assert pictures["samples"].shape == (10, 3, 1, 8, 8)
    assert json.loads((out / "result.json").read_text()) == result
    kinds = [row["name"] for row in result["parts"]]
    assert kinds[:6] == ["denoiser", "features", "classifier", "pseudo", "generator", "images"]


def test_what_comes_out_can_be_used(done: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    _, result, _ = done
    classifier: Any = twofold.load(result["classifier"])
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    assert classifier.image_logits(images).shape == (3, 10)
    generator: Any = twofold.load(result["generator"])
    assert generator.classes == 10
    assert list(generator.class_names) == [str(k) for k in range(10)]


def test_every_pseudo_image_has_a_seed_of_its_own(done: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    out, result, _ = done
    folder = next(out / row["folder"] for row in result["parts"] if row["name"] == "images")
    made = np.load(folder / "images.npz")
    assert np.bincount(made["arr_1"]).tolist() == [3] * 10
    assert len(np.unique(made["arr_0"].reshape(30, -1), axis=0)) == 30


def test_nothing_is_made_twice(done: tuple[Path, dict[str, Any], dict[str, Any]], digits: Path) -> None:
    out, result, _ = done
    settings = settings_of(f"data={digits / 'digits.npz'}", f"labels={digits / 'labels.csv'}")
    again, _ = run(settings, out, "cpu")
    assert {row["made"] for row in again["parts"]} == {"found"}
    assert again["accuracy"] == result["accuracy"]


def test_what_depends_on_a_change_is_redone_and_says_why(
    done: tuple[Path, dict[str, Any], dict[str, Any]], digits: Path
) -> None:
    out, _, _ = done
    words = f"data={digits / 'digits.npz'}", f"labels={digits / 'labels.csv'}", "learner.k=3", "stage=1"
    heard = Heard()
    found, _ = run(settings_of(*words), out, "cpu", heard)
    made = {row["name"]: (row["made"], row["because"]) for row in found["parts"]}
    assert made["denoiser"] == ("found", "")
    assert made["features"] == ("found", "")
    assert made["classifier"][0] == "redone" and re.fullmatch(r"learner\.k: \d -> 3", made["classifier"][1])
    assert any("learner.k" in line for line in heard.lines)


def test_shuffling_hidden_labels_changes_nothing_but_the_reported_accuracy(
    done: tuple[Path, dict[str, Any], dict[str, Any]], digits: Path, tmp_path: Path
) -> None:
    """Other labels of the training images that are not listed, and of the test images: the same parts, to the bit."""
    _, result, _ = done
    data = dict(np.load(digits / "digits.npz"))
    listed = {int(line.split(",")[0].rpartition(":")[2]) for line in (digits / "labels.csv").read_text().split()[1:]}
    hidden = np.array([row for row in range(240) if row not in listed])
    rng = np.random.default_rng(0)
    data["labels"][hidden] = rng.permutation(data["labels"][hidden])
    np.savez(tmp_path / "digits.npz", **data)
    settings = settings_of(f"data={tmp_path / 'digits.npz'}", f"labels={digits / 'labels.csv'}")
    other, _ = run(settings, tmp_path / "out", "cpu")
    assert other["data"]["hash"] != result["data"]["hash"]
    assert [row["hash"] for row in other["parts"]] == [row["hash"] for row in result["parts"]]
    assert other["pseudo"]["accuracy"] != result["pseudo"]["accuracy"]
    assert other["accuracy"]["stage 3"] != result["accuracy"]["stage 3"]


def test_a_killed_experiment_continues(
    done: tuple[Path, dict[str, Any], dict[str, Any]], digits: Path, tmp_path: Path
) -> None:
    """The generator is trained half, then nothing is left of the memory of it but its folder."""
    out, result, _ = done
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    parts = {row["name"]: copy / row["folder"] for row in result["parts"]}
    for name in ("generator", "images", "imagefeatures", "final"):
        (parts[name] / "part.json").unlink()
    (parts["images"] / "images.npz").unlink()
    settings = settings_of(f"data={digits / 'digits.npz'}", f"labels={digits / 'labels.csv'}")
    again, _ = run(settings, copy, "cpu")
    made = {row["name"]: row["made"] for row in again["parts"]}
    assert made["denoiser"] == "found"
    assert made["images"] == "made"
    assert [row["hash"] for row in again["parts"]] == [row["hash"] for row in result["parts"]]


# -- what can be wrong ----------------------------------------------------------------------------------------------


def test_a_class_without_a_label_is_named_before_anything_is_trained(digits: Path, tmp_path: Path) -> None:
    lines = (digits / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join(line for line in lines if not line.endswith((",3", ",7"))) + "\n")
    settings = settings_of(f"data={digits / 'digits.npz'}", f"labels={tmp_path / 'labels.csv'}")
    with pytest.raises(UserError, match="no training image of classes 3, 7 is labelled; label at least one"):
        run(settings, tmp_path / "out", "cpu")
    assert not (tmp_path / "out" / "parts").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["images.sampler=foo"], "sampler=foo: no such sampler"),
        (["images.sampler=heun", "images.guidance=0.5"], None),
        (["features.layers=[dec.nope]"], "layers: 'dec.nope': no such layer"),
        (["features.pool=foo"], "pool=foo: no such pooling"),
        (["features.sigmas=[0.1,500]"], "sigma=500: the model knows 0.002 to 80"),
        (["features.model=nowhere"], "nowhere: no such run"),
        (["diffusion.codec=nowhere"], "nowhere"),
        (["final.learner.kind=network", "final.learner.preset=digits"], "is no preset of a classifier"),
        (["data.size=7", "generator.level_mean=null", "diffusion.preset=dit-digits-mini"], "7"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(
    words: list[str], message: str | None, digits: Path, tmp_path: Path
) -> None:
    """Also what only stage 3 needs."""
    given = {word.partition("=")[0] for word in words}
    base = [word for word in TINY if word.partition("=")[0] not in given]
    if any(word.startswith("diffusion.preset") for word in words):
        base = [word for word in base if not word.startswith("diffusion.network")]
    words = [*base, *words, f"data.source={digits / 'digits.npz'}", f"labels={digits / 'labels.csv'}"]
    settings = resolve(FewLabelSettings, layers_of("mini", parse_assignments(words))[0])[0]
    experiment = prepare(settings, tmp_path / "out", Crew(make_accelerator("cpu")))
    if message is None:
        foresee.check(experiment.shop)
        assert [work.what for work in foresee.works(experiment.shop)][:2] == ["denoiser", "features"]
        return
    with pytest.raises(UserError, match=message):
        run(settings, tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["vit", "pixels16"])
def test_an_encoder_is_tried_before_it_is_used(kind: str, digits: Path, tmp_path: Path) -> None:
    """One that takes no images of this size."""
    words = [word for word in TINY if not word.startswith("features")]
    source = kind
    if kind == "vit":
        write_vit(tmp_path / "vit", side=8)
        source = f"cls:{tmp_path / 'vit'}"
    words += ["features.kind=encoder", f"features.encoder={source}", f"data={digits / 'digits.npz'}"]
    words += [f"labels={digits / 'labels.csv'}"]
    settings = resolve(FewLabelSettings, layers_of("mini", parse_assignments(words))[0])[0]
    with pytest.raises(UserError, match=r"does not take images of 8 x 8|size=16: larger than the images"):
        run(settings, tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()


def write_vit(path: Path, side: int = 16) -> None:
    """A tiny vision transformer with random weights, and how images are prepared for it: at `side` pixels."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=16)
    torch.manual_seed(0)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(path)
    prepared = {"do_resize": True, "size": {"height": side, "width": side}, "do_normalize": False}
    (path / "preprocessor_config.json").write_text(json.dumps(prepared))


def test_what_a_dry_run_foresees_is_what_is_made(
    done: tuple[Path, dict[str, Any], dict[str, Any]], digits: Path
) -> None:
    out, result, _ = done
    settings = settings_of(f"data={digits / 'digits.npz'}", f"labels={digits / 'labels.csv'}")
    works = foresee.works(prepare(settings, out, Crew(make_accelerator("cpu"))).shop)
    assert [work.what for work in works] == ["denoiser", "features", "generator", "images", "imagefeatures"]
    assert [work.images for work in works] == [128, 240, 64, 30, 30]
    assert set(work.what for work in works) <= {row["name"] for row in result["parts"]}
    for work in works:
        if work.parameters:
            folder = next(out / row["folder"] for row in result["parts"] if row["name"] == work.what)
            assert json.loads((folder / "result.json").read_text())["parameters"] == work.parameters
        assert work.flops > 0


def test_what_stands_beside_stage_3_is_foreseen_once(digits: Path, tmp_path: Path) -> None:
    words = [f"data={digits / 'digits.npz'}", f"labels={digits / 'labels.csv'}", "final.compare=true", "pseudo.folds=2"]
    settings = resolve(FewLabelSettings, layers_of("mini", parse_assignments(words))[0])[0]
    shop = prepare(settings, tmp_path / "out", Crew(make_accelerator("cpu"))).shop
    last = [training.what for training in foresee.trainings(shop) if training.stage == 3]
    assert last == ["fold", "final", "self-training", "generated alone", "self-training, corrected"]


def test_latents_and_transformers_go_all_the_way(digits: Path, tmp_path: Path) -> None:
    """U-ViT on latents of an autoencoder, and a classifier of a frozen encoder beside it: each can be used."""
    autoencoder = tmp_path / "autoencoder"
    words = [f"data={digits / 'digits.npz'}", "network.channels=4", "network.multipliers=[1,2]"]
    words += ["network.norm_groups=4", "train.n_images=64", "train.batch_size=32", "train.warmup_images=0"]
    opened = open_preset("autoencoder-mini").layers
    train(resolve(TrainSettings, [*opened, ("test", parse_assignments(words))])[0], autoencoder, "cpu")
    write_vit(tmp_path / "vit")
    base = [word for word in TINY if not word.startswith(("diffusion.network", "features"))]
    base += [f"data={digits / 'digits.npz'}", f"labels={digits / 'labels.csv'}", "diffusion.train.warmup_images=0"]
    base += ["diffusion.preset=uvit-digits-mini", "diffusion.network.width=16", "diffusion.network.depth=2"]
    own = ["features.draws=1", "features.sigmas=[0.1]", f"diffusion.codec={autoencoder}", "generator.level_mean=null"]
    vit = ["features.kind=encoder", f"features.encoder=cls:{tmp_path / 'vit'}", "generator.level_mean=null"]
    for name, words in {"latent": own, "encoder": vit}.items():
        settings = resolve(FewLabelSettings, layers_of("mini", parse_assignments([*base, *words]))[0])[0]
        result, _ = run(settings, tmp_path / name, "cpu")
        assert result["accuracy"]["stage 3"]["n"] == 60
        generator: Any = twofold.load(result["generator"])
        assert (generator.shape, generator.classes) == ((4, 4, 4) if name == "latent" else (1, 8, 8), 10)
        classifier: Any = twofold.load(result["classifier"])
        images = torch.from_numpy(np.load(digits / "digits.npz")["images"][180:, None])
        logits = np.load(Path(result["answers"]) / "test.npy")
        torch.testing.assert_close(classifier.image_logits(images), torch.from_numpy(logits), rtol=1e-3, atol=1e-3)


def test_a_model_that_is_given_is_an_input_by_its_content(
    done: tuple[Path, dict[str, Any], dict[str, Any]], digits: Path, tmp_path: Path
) -> None:
    """The same model elsewhere makes the same generator; a class more than it knows is no matter."""
    out, result, _ = done
    denoiser = next(out / row["folder"] for row in result["parts"] if row["name"] == "denoiser")
    shutil.copytree(denoiser, tmp_path / "moved")
    words = f"data={digits / 'digits.npz'}", f"labels={digits / 'labels.csv'}", "stage=2"
    found = []
    for model in (denoiser, tmp_path / "moved"):
        settings = settings_of(*words, f"features.model={model}")
        found.append(run(settings, tmp_path / "out", "cpu", parts=tmp_path / "parts")[0])
    assert {row["made"] for row in found[0]["parts"]} == {"made"}
    assert {row["made"] for row in found[1]["parts"]} == {"found"}


def test_classes_of_any_name_without_test_images_in_two_rounds(digits: Path, tmp_path: Path) -> None:
    """Names that are also words of the sampler, of markup, of CSV; the page shows them as they are."""
    from PIL import Image

    names = ["all", "none", "-1", 'x, "y" <b>', "a/b", "ß"]
    found = np.load(digits / "digits.npz")
    rows = np.flatnonzero(found["labels"] < len(names))[:60]
    (tmp_path / "images").mkdir()
    for i in rows:
        Image.fromarray(found["images"][i]).save(tmp_path / "images" / f"{i:03d}.png")
    with (tmp_path / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        lines = [[f"{i:03d}.png", names[found["labels"][i]]] for i in rows[:20]]
        csv.writer(file).writerows([["id", "class"], *lines])
    settings = settings_of(f"data={tmp_path / 'images'}", f"labels={tmp_path / 'labels.csv'}", "rounds=2")
    result, pictures = run(settings, tmp_path / "out", "cpu")
    assert sorted(result["classes"]) == sorted(names) and result["data"]["labelled"].keys() == set(names)
    assert result["accuracy"]["stage 3"]["value"] is None and result["pseudo"]["accuracy"] is None
    assert [row["name"] for row in result["parts"]].count("generator-round2") == 1 and len(result["rounds"]) == 2
    assert pictures["samples"].shape[:2] == (6, 3)
    page = write_page(tmp_path / "out", result, pictures).read_text("utf-8")
    assert "no accuracy is known" in page and "<b>" not in page
    generator: Any = twofold.load(result["generator"])
    assert sorted(generator.class_names) == sorted(names)


def test_more_labels_than_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="labels_per_class=500"):
        run(settings_of("data=digits", "labels_per_class=500"), tmp_path / "out", "cpu")


def test_few_labels_are_not_held_out(digits: Path, tmp_path: Path) -> None:
    """A flat folder and a label file: nothing is taken away for a test that nobody asked for."""
    from PIL import Image

    found = np.load(digits / "digits.npz")
    for i in range(30):
        Image.fromarray(found["images"][i]).save(tmp_path / f"{i:02d}.png")
    lines = ["id,class", *(f"{i:02d}.png,{found['labels'][i]}" for i in range(10))]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    settings = complete(settings_of(f"data={tmp_path}", f"labels={tmp_path / 'labels.csv'}"))
    subject = Subject(open_store(settings.data))
    assert (len(subject.train), len(subject.test)) == (30, 0)
    assert subject.classes == [str(k) for k in range(10)]
    assert (subject.hidden == -1).sum() == 30


def test_another_folder_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(UserError, match="not empty and is not a few-label experiment"):
        run(settings_of("data=digits", "labels_per_class=1"), tmp_path, "cpu")
    assert [p.name for p in tmp_path.iterdir() if p.name != "lock"] == ["thesis.txt"]


def test_only_agreeing_pseudo_images_are_learned(
    done: tuple[Path, dict[str, Any], dict[str, Any]], digits: Path, tmp_path: Path
) -> None:
    """Those that the first classifier names as asked are another part, and the final classifier is made of it."""
    out, _, _ = done
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    words = f"data={digits / 'digits.npz'}", f"labels={digits / 'labels.csv'}", "images.per_class=20"
    words += ("images.agreeing=true", "final.compare=false")
    found, pictures = run(settings_of(*words), copy, "cpu")
    folders = {row["name"]: copy / row["folder"] for row in found["parts"]}
    made, kept = (np.load(folders[name] / "images.npz") for name in ("images", "images-agreeing"))
    judge: Any = twofold.load(folders["classifier"])
    images = torch.from_numpy(made["arr_0"].transpose(0, 3, 1, 2).copy())
    right = judge.image_logits(images).argmax(1).numpy() == made["arr_1"]
    assert 0 < right.sum() < 200
    assert np.array_equal(kept["arr_0"], made["arr_0"][right])
    assert np.array_equal(kept["arr_1"], made["arr_1"][right])
    fewest = min(10, np.bincount(kept["arr_1"], minlength=10).min())
    assert (0 if pictures["samples"] is None else pictures["samples"].shape[1]) == fewest


def test_a_recipe_for_another_size_attends_where_these_images_have_a_level() -> None:
    settings = resolve(FewLabelSettings, layers_of("mini", parse_assignments(["data=digits"]))[0])[0]
    assert fitted(settings, (1, 8, 8)) == (settings, "")
    for shape, attention in (((1, 28, 28), (14,)), ((3, 64, 64), ())):
        found, told = fitted(settings, shape)
        assert found.diffusion.network.attention == attention
        assert "diffusion.network.attention=[4]" in told


def test_a_label_file_ends_what_a_preset_says_of_labels_per_class() -> None:
    def data(*words: str) -> DataSettings:
        return resolve(FewLabelSettings, layers_of("dpt-cifar10", parse_assignments(words))[0])[0].data

    assert (data("labels=a.csv").labels, data("labels=a.csv").labels_per_class) == ("a.csv", None)
    assert data().labels_per_class == 4
    assert data("data.labels_per_class=2").labels_per_class == 2
    with pytest.raises(UserError, match=r"data.labels_per_class=0 .*: must be a whole number >= 1"):
        data("labels_per_class=0")


def test_an_experiment_is_no_model_and_says_where_its_models_are(
    done: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    out, result, _ = done
    (tmp_path / "parts.json").write_bytes((out / "parts.json").read_bytes())
    with pytest.raises(UserError, match="is an experiment, not a model; run it to its end"):
        twofold.load(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps(result))  # that of `out` may be of a later, partial run
    with pytest.raises(UserError, match=r"an experiment, not a model; its classifier is .*final"):
        twofold.load(tmp_path)
    assert result["generator"]
