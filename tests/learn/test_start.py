"""Denoisers and classifiers that start from another model: what is taken over, by name, and what is new."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twofold.data import open_store
from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.events import Note
from twofold.learn.inherit import place_of, resolutions
from twofold.learn.start import start_from
from twofold.learn.training import complete
from twofold.networks import build
from twofold.run import Run, load
from twofold.run import build as build_model
from twofold.settings.network import UNetSettings
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import TINY, same, tiny, weights
from .test_resume import Interrupted, die_at


def pictures(folder: Path, names: str, size: int = 8, each: int = 12) -> Path:
    """A folder of noise with a sub-folder per letter."""
    random = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(random.integers(0, 256, (size, size), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data of classes a, b, c and of b, c, d, e; a denoiser of the first."""
    folder = tmp_path_factory.mktemp("start")
    found = {"old": pictures(folder / "old", "abc"), "new": pictures(folder / "new", "bcde"), "run": folder / "run"}
    found["large"] = pictures(folder / "large", "abc", 16)
    own = {"data": {"source": str(found["old"])}, "train": {"snapshot_images": [32], "n_images": 64}}
    train(resolve(TrainSettings, [("tiny", TINY), ("test", own)])[0], found["run"], "cpu")
    return found


def started(places: dict[str, Path], *changes: dict[str, Any], data: str = "new") -> TrainSettings:
    """A short run that starts from the denoiser; its network and noise are left out."""
    own = {name: value for name, value in TINY.items() if name not in ("network", "noise")}
    test = {"data": {"source": str(places[data])}, "init_from": str(places["run"])}
    layers = [("tiny", own), ("test", test), ("short", {"train": {"n_images": 64}}), *(("x", c) for c in changes)]
    return resolve(TrainSettings, layers)[0]


def still(settings: TrainSettings) -> TrainSettings:
    """The same with a rate that leaves float32 weights where they are."""
    train_ = settings.train.model_copy(update={"lr": 1e-30, "ema_halflife_images": 0, "n_images": 32})
    return settings.model_copy(update={"train": train_})


def test_network_noise_and_weights_are_taken_over(places: dict[str, Path], tmp_path: Path) -> None:
    notes: list[str] = []
    show = lambda event: notes.append(event.text) if isinstance(event, Note) else None  # noqa: E731
    result = train(still(started(places)), tmp_path / "run", "cpu", show)
    mine, theirs = Run.open(tmp_path / "run").settings(), Run.open(places["run"]).settings()
    assert mine.noise == theirs.noise
    assert mine.network == theirs.network.model_copy(update={"classes": 4})
    before, after = weights(places["run"]), weights(tmp_path / "run")
    label = "embedding.label.weight"
    assert same(*({k: v for k, v in w.items() if k != label} for w in (before, after)))
    assert torch.equal(after[label][:2], before[label][1:])  # b and c are known there
    assert torch.equal(after[label][2:], before[label][[0, 0]])  # d and e begin as a, which nobody else is
    facts = result["init_from"]
    assert facts["kept_classes"] == ["b", "c"] and facts["taken"] == len(before) - 1
    assert not facts["new"] and not facts["left_out"]
    assert any("classes taken over: b, c" in note for note in notes)


@pytest.mark.parametrize("position", ["after", "before"])
def test_it_begins_as_its_source_did(places: dict[str, Path], tmp_path: Path, position: str) -> None:
    """Classes it knows keep their meaning, also where the network is given a one-hot scaled by their number."""
    own = {"data": {"source": str(places["old"])}, "network": {"label_position": position}, "train": {"n_images": 32}}
    train(resolve(TrainSettings, [("tiny", TINY), ("test", own)])[0], tmp_path / "source", "cpu")
    settings = started(places, {"init_from": str(tmp_path / "source")})
    store = open_store(settings.data)
    settings = complete(settings, store, Run(tmp_path / "run"))
    model = build_model(settings, store.shape, store.classes).eval()
    start_from(model, settings)
    source, x = load(tmp_path / "source"), torch.randn(4, 1, 8, 8)
    said = lambda m, *labels: m.denoise(x, 0.5, {"label": torch.tensor(labels)})  # noqa: E731
    assert torch.allclose(said(model, 0, 1, 2, -1), said(source, 1, 2, 0, -1), atol=1e-6)
    assert not torch.allclose(said(source, 1, 2, 0, -1), said(source, -1, -1, -1, -1), atol=1e-6)


def denoiser_of(classes: list[str], kind: str, learned: bool, position: str = "after") -> Any:
    """A small denoiser none of whose weights is 0."""
    network: dict[str, Any] = {"kind": "dit", "patch": 2, "width": 8, "depth": 1, "heads": 2, "embedding_channels": 8}
    if kind == "unet":
        network = {**TINY["network"], "label_position": position, "dropout": 0.0}
    network |= {"learned_variance": learned, "classes": len(classes)}
    own = {"network": network, "noise": {"kind": "vp"}, "objective": {"loss": "hybrid" if learned else "mse"}}
    model = build_model(resolve(TrainSettings, [("tiny", TINY), ("test", own)])[0], (2, 8, 8), classes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize(("kind", "position"), [("dit", "after"), ("unet", "after"), ("unet", "before")])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("old", "new"), [("abc", "bcd"), ("abc", ""), ("", "bc"), ("", "")])
def test_without_a_label_it_begins_as_its_source(
    kind: str, position: str, learned: bool, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a variance is added or dropped, and classes are."""
    from twofold.learn import start

    source, model = (
        denoiser_of(list(names), kind, says, position) for names, says in ((old, learned), (new, not learned))
    )
    monkeypatch.setattr(start, "source_model", lambda *_: source)
    start_from(model, tiny().model_copy(update={"init_from": "source"}))
    x = torch.randn(2, 2, 8, 8)
    with torch.no_grad():
        assert torch.allclose(model.denoise(x, 0.5), source.denoise(x, 0.5), atol=1e-6)
        if set(old) & set(new):
            b = (m.denoise(x, 0.5, {"label": torch.full((2,), i)}) for m, i in ((model, 0), (source, 1)))
            assert torch.allclose(*b, atol=1e-6)
        if model.learns_variance:
            assert torch.equal(model.denoise_and_variance(x, 0.5)[1], torch.full_like(x, 0.5))


def test_a_learned_variance_is_inherited(tmp_path: Path) -> None:
    """With the network left out nothing can be said of its outputs before the source is read."""
    network = {"kind": "dit", "patch": 2, "width": 8, "depth": 1, "heads": 2, "learned_variance": True}
    own: dict[str, Any] = {
        "network": network,
        "noise": {"kind": "vp"},
        "objective": {"loss": "hybrid"},
        "train": {"n_images": 32},
    }
    train(resolve(TrainSettings, [("tiny", TINY), ("test", own)])[0], tmp_path / "source", "cpu")
    plain = {name: value for name, value in TINY.items() if name not in ("network", "noise")}

    def begun(**changes: Any) -> TrainSettings:
        more = {"init_from": str(tmp_path / "source"), "train": {"n_images": 32}, **changes}
        return resolve(TrainSettings, [("tiny", plain), ("test", more)])[0]

    train(begun(objective={"loss": "hybrid"}, lora={"rank": 2}), tmp_path / "run", "cpu")
    assert load(tmp_path / "run").learns_variance
    with pytest.raises(UserError, match=r"learned_variance=true is not trained by objective\.loss=mse; use hybrid"):
        train(begun(), tmp_path / "other", "cpu")
    with pytest.raises(UserError, match=r"leave network to it, or say network\.kind=dit"):
        train(begun(network={"learned_variance": False}), tmp_path / "other", "cpu")
    with pytest.raises(UserError, match=r"augment_probability > 0 needs network\.augment_dim=9"):
        train(begun(objective={"loss": "hybrid", "augment_probability": 0.1}), tmp_path / "other", "cpu")
    train(begun(network={"kind": "dit", "learned_variance": False}), tmp_path / "other", "cpu")
    assert not load(tmp_path / "other").learns_variance


def test_a_snapshot_can_be_named(places: dict[str, Path], tmp_path: Path) -> None:
    train(still(started(places, {"init_from": f"{places['run']}@32"})), tmp_path / "run", "cpu")
    found = weights(tmp_path / "run")["enc.0.weight"]
    assert torch.equal(found, weights(places["run"] / "snapshots", "000000000032.safetensors")["enc.0.weight"])
    assert not torch.equal(found, weights(places["run"])["enc.0.weight"])
    with pytest.raises(UserError, match="there are: last, 32"):
        train(started(places, {"init_from": f"{places['run']}@33"}), tmp_path / "other", "cpu")
    with pytest.raises(UserError, match=r"at=32: .*model\.safetensors is not a run: it has no snapshots"):
        train(started(places, {"init_from": f"{places['run']}/model.safetensors@32"}), tmp_path / "other", "cpu")
    assert place_of("runs/a@best-frechet") == ("runs/a", "best-frechet") and place_of("org/name") == (
        "org/name",
        "last",
    )


def test_a_file_is_a_source_too(places: dict[str, Path], tmp_path: Path) -> None:
    file = shutil.copy(places["run"] / "model.safetensors", tmp_path / "m.safetensors")
    train(still(started(places, {"init_from": str(file)})), tmp_path / "run", "cpu")
    assert torch.equal(
        weights(tmp_path / "run")["mid.first.conv1.weight"], weights(places["run"])["mid.first.conv1.weight"]
    )


def test_interrupted_and_continued_without_its_source(places: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(places["run"], tmp_path / "source")
    settings = started(places, {"init_from": str(tmp_path / "source"), "train": {"n_images": 128}})
    whole = train(settings, tmp_path / "whole", "cpu")
    with pytest.raises(Interrupted):
        train(settings, tmp_path / "run", "cpu", die_at(96))
    shutil.rmtree(tmp_path / "source")
    again = train(settings, tmp_path / "run", "cpu")
    last = "state/000000000128/tensors.safetensors"
    assert same(weights(tmp_path / "whole", last), weights(tmp_path / "run", last))
    assert again["init_from"] == whole["init_from"]  # what was taken over is not forgotten


def test_a_larger_size_keeps_the_levels_that_attend(places: dict[str, Path], tmp_path: Path) -> None:
    train(started(places, {"train": {"n_images": 32}}, data="large"), tmp_path / "run", "cpu")
    found = Run.open(tmp_path / "run").settings().network
    assert found.attention == (8,)  # type: ignore[union-attr]
    assert load(tmp_path / "run").shape == (1, 16, 16)
    train(Run.open(tmp_path / "run").settings(), tmp_path / "again", "cpu")  # its own settings are complete
    with pytest.raises(UserError, match=r"network\.attention: is not what .*trained with \(\[4\], there \[8\]\)"):
        train(started(places, {"network": {"kind": "unet", "attention": [4]}}, data="large"), tmp_path / "x", "cpu")


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 12, 20), (3, 33, 40)])
def test_resolutions_are_those_of_the_network(shape: tuple[int, int, int]) -> None:
    for level, resolution in enumerate(resolutions(3, shape)):
        network = build(UNetSettings(channels=8, multipliers=(1, 1, 1), blocks=1, attention=(resolution,)), shape)
        found = [network.enc[2 * i + 1].attention is not None for i in range(3)]  # type: ignore[index,union-attr]
        assert found == [i == level for i in range(3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"kind": "unet", "channels": 16}}, r"network\.channels: is not what .* \(16, there 8\)"),
        ({"noise": {"kind": "vp"}}, r"noise\.kind: is not what"),
        ({"data": {"channels": 3}}, r"was trained on 1x8x8 images, the data has 3x8x8; set data\.channels=1$"),
        ({"data": {"size": 1}}, r"1x1x1 images are too small for its 2 levels"),
        ({"init_from": "runs/nowhere"}, "no such run"),
        ({"network": {"kind": "unet", "classes": 2}}, r"network\.classes=2: the data has 4 classes"),
    ],
)
def test_what_does_not_fit(places: dict[str, Path], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(started(places, change), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_labels_can_be_left_out_and_augmentation_added(places: dict[str, Path], tmp_path: Path) -> None:
    change = {"network": {"kind": "unet", "classes": 0, "augment_dim": 9}, "objective": {"augment_probability": 0.1}}
    result = train(still(started(places, change)), tmp_path / "run", "cpu")
    assert result["init_from"]["new"] == ["embedding.augment.weight"]
    assert result["init_from"]["left_out"] == ["embedding.label.weight"]
    assert weights(tmp_path / "run")["embedding.augment.weight"].abs().max() < 1e-20  # as without
    assert load(tmp_path / "run").classes == 0


def test_a_classifier_of_other_classes_has_another_head(places: dict[str, Path], tmp_path: Path) -> None:
    def settings(data: str, **more: Any) -> TrainSettings:
        own = {
            "data": {"source": str(places[data])},
            "network": {"kind": "convnet", "channels": 8},
            "objective": {"kind": "supervised"},
            "train": {**TINY["train"], "n_images": 32},
        }
        return resolve(TrainSettings, [("test", {**own, **more})])[0]

    train(settings("old"), tmp_path / "a", "cpu")
    result = train(still(settings("new", init_from=str(tmp_path / "a"))), tmp_path / "b", "cpu")
    before, after = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert torch.equal(before["stages.1.conv2.weight"], after["stages.1.conv2.weight"])
    assert after["linear.weight"].shape == (4, 16)
    assert torch.equal(after["linear.weight"][:2], before["linear.weight"][1:])  # b and c by their names
    assert result["init_from"]["kept_classes"] == ["b", "c"]
    with pytest.raises(UserError, match="is a classifier; give the run of a denoiser"):
        train(started(places, {"init_from": str(tmp_path / "a")}), tmp_path / "c", "cpu")


def test_diffusers_folders_are_sources(places: dict[str, Path], tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    options = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 8}
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    unet = diffusers.UNet2DModel(**options, **blocks, block_out_channels=[32, 64])
    unet.save_pretrained(tmp_path / "theirs/unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "theirs/scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    import json

    (tmp_path / "theirs/model_index.json").write_text(json.dumps(index))
    result = train(still(started(places, {"init_from": str(tmp_path / "theirs")})), tmp_path / "run", "cpu")
    source, mine = load(tmp_path / "theirs"), load(tmp_path / "run")
    assert result["init_from"]["new"] == [] and mine.classes == 4
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(source.denoise(x, 0.5), mine.denoise(x, 0.5), atol=1e-5)


def test_nothing_in_common_is_refused(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from twofold.learn import start

    settings = tiny().model_copy(update={"init_from": "other"})
    model, other = (build_model(settings, (1, 8, 8), ["a"]) for _ in range(2))
    for name in list(other.network._modules):
        other.network._modules[f"other_{name}"] = other.network._modules.pop(name)
    monkeypatch.setattr(start, "source_model", lambda *_: other)
    with pytest.raises(UserError, match="has no weight that fits"):
        start_from(model, settings)
