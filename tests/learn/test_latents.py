"""Autoencoders and models of their latents: trained, saved, loaded, resumed, refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from twofold.adapters.latent_codec import LatentCodec, NoCodec, write_autoencoder
from twofold.data import open_store
from twofold.errors import UserError
from twofold.generate import sample
from twofold.learn import train
from twofold.learn.batches import U_FLIP, Batches
from twofold.learn.estimate import estimate
from twofold.learn.latents import latent_scale
from twofold.learn.loop import Trainer
from twofold.learn.objectives.autoencoder import divergence
from twofold.measure.fidelity import psnr
from twofold.run import Run, build, load, load_to_use, open_codec
from twofold.settings.codec import CodecSettings
from twofold.settings.resolve import resolve, to_yaml
from twofold.settings.train import TrainSettings

from .common import TINY, same, torchrun, weights

AUTOENCODER: dict[str, Any] = {
    **TINY,
    "network": {
        "kind": "autoencoder",
        "channels": 8,
        "multipliers": [1, 2],
        "blocks": 1,
        "norm_groups": 4,
        "latent_channels": 3,
        "attention": False,
    },
    "objective": {"kind": "autoencoder"},
}


def settings_of(base: dict[str, Any], *changes: dict[str, Any]) -> TrainSettings:
    return resolve(TrainSettings, [("tiny", base), *(("test", change) for change in changes)])[0]


def latent(autoencoder: Path | str, *changes: dict[str, Any]) -> TrainSettings:
    own = {"codec": str(autoencoder), "network": {"attention": [2]}, "data": {"flip": True}}
    return settings_of(TINY, own, *changes)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        path = tmp_path_factory.mktemp("runs") / "autoencoder"
        train(settings_of(AUTOENCODER), path, "cpu")
    return path


@pytest.fixture(scope="module")
def run(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        path = tmp_path_factory.mktemp("runs") / "latent"
        train(latent(autoencoder), path, "cpu")
    return path


def test_an_autoencoder_is_trained_and_loaded_as_a_codec(autoencoder: Path) -> None:
    rows = [row for row in Run.open(autoencoder).log() if row["kind"] == "validation"]
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["psnr"] > 8 and rows[-1]["kl"] > 0
    codec = load(autoencoder)
    assert isinstance(codec, LatentCodec) and codec.shape_of((1, 8, 8)) == (3, 4, 4)
    store = open_store(settings_of(AUTOENCODER).data)
    images = store.batch(store.indices("validation"))
    back, grey = codec.decode(codec.encode(images)), torch.full_like(images, round(float(images.float().mean())))
    assert psnr(back, images).mean() > psnr(grey, images).mean()
    with pytest.raises(UserError, match=r"holds an autoencoder, .*codec="):
        load_to_use(autoencoder)


def test_latents_have_unit_variance_over_training_images(autoencoder: Path) -> None:
    codec = load(autoencoder)
    assert isinstance(codec, LatentCodec)
    store = open_store(settings_of(AUTOENCODER).data)
    rows = store.indices("train")
    noise = torch.randn((len(rows), 3, 4, 4), generator=torch.Generator().manual_seed(0))
    assert float(codec.encode(store.batch(rows), noise).std()) == pytest.approx(1, abs=0.02)
    model: Any = build(settings_of(AUTOENCODER), (1, 8, 8), [])
    for parameter in model.parameters():
        parameter.data.zero_()
    assert latent_scale(model, store) == pytest.approx(1)  # mean 0, logvar 0


def test_an_autoencoders_preview_shows_images_beside_what_comes_back(autoencoder: Path) -> None:
    shown = np.load(sorted((autoencoder / "previews").glob("*.npy"))[-1])
    store = open_store(settings_of(AUTOENCODER).data)
    real = {image.tobytes() for image in store.batch(store.indices("validation")).numpy()}
    assert len(shown) == 64 and all(image.tobytes() in real for image in shown[::2])


def test_the_objective_is_the_closed_form() -> None:
    mean, logvar = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    normal = torch.distributions.Normal(mean, (logvar / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(divergence(mean, logvar), expected)


def test_a_latent_model_is_trained_sampled_and_self_contained(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    model: Any = load(moved)
    assert model.shape == (3, 4, 4) and not model.clip and isinstance(model.codec, LatentCodec)
    images = sample(model, 3, label=[0, 1, 2], steps=2)
    assert images.shape == (3, 1, 8, 8) and images.dtype == torch.uint8
    assert torch.equal(images, sample(load(run), 3, label=[0, 1, 2], steps=2))
    rows = [row for row in Run.open(run).log() if row["kind"] == "validation"]
    assert {"loss", "frechet"} <= rows[-1].keys()
    snapshot: Any = load(moved, "best-loss")
    assert snapshot.codec.key == model.codec.key
    alone = tmp_path / "model.safetensors"
    shutil.copy(moved / "model.safetensors", alone)
    bare: Any = load(alone)
    assert isinstance(bare.codec, NoCodec)
    with pytest.raises(UserError, match="put the codec folder of its run beside it"):
        sample(bare, 1, steps=2)
    beside = tmp_path / "runs" / "a"
    shutil.copytree(run, beside)
    shutil.move(beside / "codec", tmp_path / "runs/codec")  # a folder of that name that is not the run's
    assert isinstance(load(beside).codec, NoCodec)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="put the codec folder of its run beside it"):
        sample(load(beside, "best-loss"), 1, steps=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("micro_batch", "at_once"), [(3, 1 << 20), (8, 2 * 64)])
def test_images_are_decoded_a_few_at_a_time(
    run: Path, micro_batch: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as are denoised together, and of those no more than have so many pixels; the images are the same."""
    model: Any = load(run)
    expected = sample(model, 7, label=1, steps=2, micro_batch=7)
    monkeypatch.setattr("twofold.adapters.latent_codec.PIXELS_AT_ONCE", at_once)
    decoded, decode = list[int](), model.codec.vae.decode
    monkeypatch.setattr(model.codec.vae, "decode", lambda z, *a, **k: decoded.append(len(z)) or decode(z, *a, **k))
    found = sample(model, 7, label=1, steps=2, micro_batch=micro_batch)
    assert max(decoded) == min(micro_batch, at_once // 64) and sum(decoded) >= 7
    assert (found.int() - expected.int()).abs().max() <= 1  # sums in another order


def test_another_autoencoder_in_its_place_is_told(run: Path, autoencoder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    other: Any = open_codec(CodecSettings(source=str(autoencoder), scale=3.0), (1, 8, 8))
    shutil.rmtree(moved / "codec")
    write_autoencoder(other, moved / "codec")
    with pytest.raises(UserError, match="is not the autoencoder that"):
        load(moved)


class Killed(Exception):
    pass


def train_until(settings: TrainSettings, out: Path, n_images: int) -> None:
    def show(event: Any) -> None:
        if getattr(event, "n_images", 0) >= n_images and type(event).__name__ == "Saved":
            raise Killed

    with pytest.raises(Killed):
        train(settings, out, "cpu", show)


@pytest.mark.parametrize("store", [True, False])
def test_a_killed_run_continues_bit_for_bit_without_its_source(store: bool, autoencoder: Path, tmp_path: Path) -> None:
    source = tmp_path / "autoencoder"
    shutil.copytree(autoencoder, source)
    settings = latent(source, {"codec": {"store": store}, "train": {"n_images": 128}})
    train(settings, tmp_path / "whole", "cpu")
    train_until(settings, tmp_path / "parts", 64)
    shutil.rmtree(source)
    train(settings, tmp_path / "parts", "cpu")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.slow
def test_two_processes_make_moments_and_weights_as_one_does(autoencoder: Path, tmp_path: Path) -> None:
    """Over torchrun, in micro-batches: the same moments, and weights that differ by the order of sums alone."""
    calm = latent(autoencoder, {"network": {"dropout": 0.0}, "train": {"n_images": 128}})
    (tmp_path / "settings.yaml").write_text(to_yaml(calm))
    results = []
    for count, parts in ((1, 32), (2, 8)):
        cache, out = tmp_path / f"cache{count}", tmp_path / f"run{count}"
        words = ["-m", "twofold", "train", tmp_path / "settings.yaml", f"train.micro_batch={parts}", "--out", out]
        torchrun(*words, "--device", "cpu", "--quiet", count=count, TWOFOLD_CACHE=cache)
        kept = sorted((cache / "moments").glob("*/moments-*.npy"))
        assert len(kept) == 2 and not list((cache / "moments").glob("*/.*.part"))
        results.append((weights(out), [(file.parent.name, file.read_bytes()) for file in kept]))
    (one, kept_by_one), (two, kept_by_two) = results
    assert kept_by_one == kept_by_two
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_another_autoencoder_under_a_begun_run_is_refused(autoencoder: Path, tmp_path: Path) -> None:
    source = tmp_path / "autoencoder"
    shutil.copytree(autoencoder, source)
    settings = latent(source, {"train": {"n_images": 128}})
    train_until(settings, tmp_path / "run", 64)
    shutil.rmtree(source)
    train(settings_of(AUTOENCODER, {"train": {"seed": 1, "n_images": 64}}), source, "cpu")
    with pytest.raises(UserError, match=r"codec=.* is not the autoencoder that .* was begun with"):
        train(settings, tmp_path / "run", "cpu")
    shutil.move(tmp_path / "run/codec", tmp_path / "right")
    with pytest.raises(UserError, match=r"codec=.* was begun with; put that one back"):
        train(settings, tmp_path / "run", "cpu")
    other: Any = open_codec(CodecSettings(source=str(source)), (1, 8, 8))
    write_autoencoder(other, tmp_path / "run/codec")
    shutil.rmtree(source)
    with pytest.raises(UserError, match=r"run/codec: is not the autoencoder that .* was begun with"):
        train(settings, tmp_path / "run", "cpu")
    shutil.rmtree(tmp_path / "run/codec")
    shutil.copytree(tmp_path / "right", source)
    train(settings, tmp_path / "run", "cpu")
    assert isinstance(load(tmp_path / "run").codec, LatentCodec)  # type: ignore[union-attr]


def test_batches_of_moments_mirror_by_the_same_number(autoencoder: Path, tmp_path: Path) -> None:
    """What a stored batch holds is what encoding the images of the same positions gives, and noise does not change."""
    settings = latent(autoencoder)
    store = open_store(settings.data)
    run = Run.start(tmp_path / "run", settings)
    trainer = Trainer(run, settings, store, Accelerator(cpu=True))
    list(trainer._prepare())
    stored, codec = trainer.batches.make(96, 160), trainer.codec
    assert codec is not None
    plain = Batches(store, store.indices("train"), 0, trainer.objective.uniforms, True, True, x0_shape=(3, 4, 4))
    batch = plain.make(96, 160)
    assert stored.images.shape == (64, 0) and batch.posterior is None
    assert stored.noise is not None and batch.noise is not None and torch.equal(stored.noise, batch.noise)
    assert torch.equal(stored.uniforms, batch.uniforms) and torch.equal(stored.label, batch.label)
    assert 0 < int((stored.uniforms[:, U_FLIP] < 0.5).sum()) < 64
    assert stored.moments is not None
    torch.testing.assert_close(stored.moments.float(), codec.moments(batch.images), rtol=2e-3, atol=2e-3)
    x0 = trainer.objective._x0(stored)  # type: ignore[operator]
    torch.testing.assert_close(x0, codec.encode(batch.images, stored.posterior), rtol=5e-3, atol=5e-3)
    assert not torch.equal(stored.posterior[0], stored.noise[0])  # type: ignore[index]


def test_init_from_wants_the_same_latents(run: Path, autoencoder: Path, tmp_path: Path) -> None:
    few = {"train": {"n_images": 32}, "init_from": str(run)}
    base = {name: value for name, value in TINY.items() if name != "network"}
    found = train(settings_of(base, few | {"codec": str(run)}), tmp_path / "a", "cpu")
    assert found["init_from"]["new"] == []
    refused = {
        "knows the latents of another autoencoder": {"codec": {"source": str(autoencoder), "scale": 7.0}},
        "is a model of latents, this run is one of pixels": {},
    }
    for message, change in refused.items():
        with pytest.raises(UserError, match=message):
            train(settings_of(base, few | change), tmp_path / "b", "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {"augment_probability": 0.1}, "network": {"augment_dim": 9}}, "augment_probability > 0 changes"),
        ({"objective": {"kind": "joint"}}, "objective.kind=joint works on pixels"),
        ({"codec": {"mirror": False}}, "leave codec.mirror out"),
        ({"network": {"kind": "autoencoder"}}, "belong together"),
    ],
)
def test_what_does_not_go_with_latents_is_said_at_once(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        latent("runs/a", change)


def test_what_is_no_autoencoder_is_named(run: Path, autoencoder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("no")
    for source, message in (("empty", "holds no autoencoder"), ("a.txt", "not a file of weights")):
        with pytest.raises(UserError, match=message):
            open_codec(CodecSettings(source=str(tmp_path / source)), (1, 8, 8))
    with pytest.raises(UserError, match="is no autoencoder"):
        open_codec(CodecSettings(source=str(run / "model.safetensors")), (1, 8, 8))
    with pytest.raises(UserError, match="set data.channels=1"):
        open_codec(CodecSettings(source=str(autoencoder)), (3, 8, 8))
    with pytest.raises(UserError, match="needs multiples of 2"):
        open_codec(CodecSettings(source=str(autoencoder)), (1, 9, 8))
    with pytest.raises(UserError, match="set data.size=10x8"):
        build(settings_of(AUTOENCODER), (1, 9, 8), [])
    assert (
        open_codec(CodecSettings(source=str(run)), (1, 8, 8)).key
        == open_codec(CodecSettings(source=str(autoencoder)), (1, 8, 8)).key
    )


def test_what_it_will_need_is_estimated(autoencoder: Path) -> None:
    settings = latent(autoencoder)
    codec = open_codec(CodecSettings(source=str(autoencoder)), (1, 8, 8))
    settings = settings.model_copy(update={"network": settings.network.model_copy(update={"classes": 10})})
    found = estimate(settings, (3, 4, 4), ["a"] * 10, codec=codec)
    assert found.kept == 2 * 2 * 6 * 4 * 4  # views, bytes, moments
    assert found.memory > estimate(settings, (3, 4, 4), ["a"] * 10).memory
    each_step = latent(autoencoder, {"codec": {"store": False}, "network": {"classes": 10}})
    assert estimate(each_step, (3, 4, 4), ["a"] * 10, codec=codec).kept == 0
