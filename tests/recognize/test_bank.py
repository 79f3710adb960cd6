"""The feature bank: right numbers, computed once, resumed, shared between processes, never mixed up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from twofold.codec import PixelCodec
from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.hashing import model_hash
from twofold.networks.unet import UNet
from twofold.noise import family
from twofold.recognize import bank as module
from twofold.recognize.bank import Bank, Grid, extract
from twofold.recognize.pooling import pooled
from twofold.recognize.reader import Reader
from twofold.recognize.views import Views
from twofold.settings.network import UNetSettings
from twofold.settings.noise import EDMNoise, VPNoise

SHAPE = (1, 8, 8)
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, *SHAPE), dtype=np.uint8))
LAYERS, SIGMAS = ("enc.1", "mid", "dec.1"), (0.0, 0.1, 0.5)


def denoiser(heads: int = 1, noise: EDMNoise | VPNoise | None = None) -> NetworkDenoiser:
    torch.manual_seed(0)
    settings = UNetSettings(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), heads=heads, classes=0)
    network = UNet(settings, SHAPE)
    made = NetworkDenoiser(network, family(noise or EDMNoise()), SHAPE)
    return made.eval().requires_grad_(False)


def batch(rows: np.ndarray) -> Tensor:
    return IMAGES[rows]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)  # ten images: three files per noise level


def make(cache: Path, grid: Grid | None = None, model: NetworkDenoiser | None = None, **how: int) -> Bank:
    grid = grid or Grid(LAYERS, SIGMAS, views=Views(2))
    with torch.no_grad():
        return extract(model or denoiser(), batch, np.arange(10), "data", grid, cache, **how)


def by_hand(model: NetworkDenoiser, layer: str, sigma: float, view: int) -> Tensor:
    noise = Views(2).make(IMAGES, view, SHAPE)[1]
    x = PixelCodec().encode(IMAGES) + sigma * noise
    with torch.no_grad():
        return model.features(x, sigma, [layer])[layer].mean((2, 3))


def test_numbers_are_the_denoisers(tmp_path: Path) -> None:
    found, model = make(tmp_path), denoiser()
    for layer in LAYERS:
        for sigma in SIGMAS:
            values = found.features(layer, sigma)
            assert values.shape[:2] == (2, 10) and values.dtype == np.float32
            for view in range(2):
                torch.testing.assert_close(torch.from_numpy(values[view]), by_hand(model, layer, sigma, view))
    clean = found.features("mid", 0.0)
    np.testing.assert_allclose(clean[0], clean[1])  # sigma 0: nothing to draw
    assert not np.allclose(*found.features("mid", 0.5))


def test_one_pass_per_view_level_and_micro_batch_for_all_layers(tmp_path: Path) -> None:
    model, calls = denoiser(), []
    plain = model.features
    model.features = lambda x, sigma, layers, cond=None: (  # type: ignore[method-assign]
        calls.append((len(x), sigma, tuple(layers))),
        plain(x, sigma, layers),
    )[1]
    make(tmp_path, model=model)
    assert len(calls) == 2 * len(SIGMAS) * 3  # views x levels x chunks
    assert all(layers == LAYERS for _, _, layers in calls)
    calls.clear()
    make(tmp_path, model=model)
    assert not calls  # everything is there
    make(tmp_path, Grid(LAYERS, (*SIGMAS, 0.2), views=Views(2)), model)
    assert {sigma for _, sigma, _ in calls} == {0.2}  # another level adds to what is there


def test_killed_extraction_continues(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Killed

    with pytest.raises(Killed), torch.no_grad():
        extract(denoiser(), batch, np.arange(10), "data", Grid(LAYERS, SIGMAS), tmp_path, stop)
    files = sorted((tmp_path / "features").rglob("*.safetensors"))
    assert len(files) == len(SIGMAS)
    before = {file: file.stat().st_mtime_ns for file in files}
    asked: list[list[int]] = []

    def counted(rows: np.ndarray) -> Tensor:
        asked.append(rows.tolist())
        return batch(rows)

    with torch.no_grad():
        found = extract(denoiser(), counted, np.arange(10), "data", Grid(LAYERS, SIGMAS), tmp_path)
    assert asked == [[4, 5, 6, 7], [8, 9]]
    assert {file: file.stat().st_mtime_ns for file in files} == before
    np.testing.assert_array_equal(
        found.features("mid", 0.1), make(tmp_path / "other", Grid(LAYERS, SIGMAS)).features("mid", 0.1)
    )


def test_a_file_cut_short_is_made_again(tmp_path: Path) -> None:
    found = make(tmp_path)
    whole = found.features("mid", 0.1)
    file = found.file(0.1, 1)
    file.write_bytes(file.read_bytes()[:-10])
    np.testing.assert_array_equal(make(tmp_path).features("mid", 0.1), whole)


def test_processes_share_the_work_and_give_the_same_files(tmp_path: Path) -> None:
    one = make(tmp_path / "one")
    asked: list[int] = []
    for rank in range(3):
        with torch.no_grad():
            many = extract(
                denoiser(),
                lambda rows: (asked.extend(rows.tolist()), batch(rows))[1],
                np.arange(10),
                "data",
                one.grid,
                tmp_path / "many",
                rank=rank,
                world=3,
            )
    assert sorted(asked) == list(range(10))  # nobody's work was done twice
    for file in one.folder.iterdir():
        assert file.read_bytes() == (many.folder / file.name).read_bytes()


def test_everything_that_matters_is_in_the_key(tmp_path: Path) -> None:
    grid = Grid(LAYERS, SIGMAS, views=Views(2))
    changed = {
        "layers": Grid(LAYERS[:2], SIGMAS, views=Views(2)),
        "pool": Grid(LAYERS, SIGMAS, "max", Views(2)),
        "views": Grid(LAYERS, SIGMAS, views=Views(3)),
        "flip": Grid(LAYERS, SIGMAS, views=Views(2, flip=True)),
        "shift": Grid(LAYERS, SIGMAS, views=Views(2, shift=1)),
        "seed": Grid(LAYERS, SIGMAS, views=Views(2, seed=1)),
        "clean": Grid(LAYERS, SIGMAS, views=Views(2), clean=True),
        "micro_batch": Grid(LAYERS, SIGMAS, views=Views(2), micro_batch=2),
    }
    folders = {make(tmp_path, grid).folder, *(make(tmp_path, one).folder for one in changed.values())}
    folders |= {make(tmp_path, grid, model).folder for model in (denoiser(2), denoiser(noise=VPNoise()))}
    autocast = denoiser()
    autocast.autocast = torch.bfloat16
    folders.add(make(tmp_path, grid, autocast).folder)
    with torch.no_grad():
        folders.add(extract(denoiser(), batch, np.arange(10), "other data", grid, tmp_path).folder)
        folders.add(extract(denoiser(), batch, np.arange(9), "data", grid, tmp_path).folder)
    assert len(folders) == 1 + len(changed) + 5


def test_a_shelf_under_a_wrong_name_is_refused(tmp_path: Path) -> None:
    right, other = make(tmp_path), make(tmp_path, Grid(LAYERS, SIGMAS, "max", Views(2)))
    shutil.rmtree(right.folder)
    other.folder.rename(right.folder)
    with pytest.raises(UserError, match="another model, data or setting"):
        make(tmp_path)
    assert json.loads((right.folder / "meta.json").read_text())["pool"] == "max"


def test_latents_are_encoded_once_and_kept(tmp_path: Path) -> None:
    calls = []

    def encode(images: Tensor) -> Tensor:
        calls.append(len(images))
        return PixelCodec().encode(images)

    model = denoiser()
    model.codec = SimpleNamespace(encode=encode, key="vae", decode=None)  # type: ignore[assignment]
    first = make(tmp_path, model=model)
    assert sum(calls) == 10  # not once per noise level, nor per draw of noise
    more = make(tmp_path, Grid(LAYERS, (*SIGMAS, 1.0), views=Views(3)), model)
    assert sum(calls) == 10  # nor for other levels and draws, later
    np.testing.assert_array_equal(first.features("mid", 0.1), more.features("mid", 0.1)[:2])
    assert len(list((tmp_path / "latents").rglob("*.safetensors"))) == 3
    calls.clear()
    make(tmp_path, Grid(LAYERS, SIGMAS, views=Views(2, flip=True)), model)
    assert sum(calls) == 20  # ten images, two augmented copies


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (Grid(("dec.9",), (0.1,)), "no such layer"),
        (Grid(("mid",), (1e9,)), "the model knows"),
        (Grid(("mid",), (0.1,), "median"), "no such pooling"),
    ],
)
def test_what_the_model_lacks_is_said(tmp_path: Path, grid: Grid, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(tmp_path, grid)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(UserError, match="features need"):
        make(tmp_path)


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = denoiser()
    next(model.network.mid.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="layer mid"):
        make(tmp_path, model=model)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_aliases_name_the_same_features(tmp_path: Path) -> None:
    by_alias = make(tmp_path, Grid(("out_2",), (0.1,)))
    assert by_alias.layers == ("dec.1",)
    assert make(tmp_path, Grid(("dec.1",), (0.1,))).folder == by_alias.folder


@pytest.mark.parametrize("pool", ["mean", "max", "grid2", "map"])
def test_reader_reads_what_the_bank_holds(tmp_path: Path, pool: str) -> None:
    found = make(tmp_path, Grid(LAYERS, SIGMAS, pool, Views(2)))
    places: list[tuple[str, float]] = [("dec.1", 0.5), ("mid", 0.1), ("mid", 0.5)]
    reader = Reader(denoiser(), places, pool, draws=2, micro_batch=3)
    expected = np.concatenate([found.features(*place).mean(0) for place in places], axis=1)
    np.testing.assert_allclose(reader.read(IMAGES).numpy(), expected, atol=1e-5)
    assert sum(reader.widths) == expected.shape[1]


def test_reading_does_not_depend_on_order_or_company() -> None:
    reader = Reader(denoiser(), [("mid", 0.3)])
    together = reader.read(IMAGES)
    torch.testing.assert_close(reader.read(IMAGES.flip(0)).flip(0), together)
    torch.testing.assert_close(reader.read(IMAGES[3:4])[0], together[3])


def test_pooling_by_hand() -> None:
    maps = torch.arange(32.0).view(1, 2, 4, 4)
    assert pooled(maps, "mean").tolist() == [[7.5, 23.5]]
    assert pooled(maps, "max").tolist() == [[15.0, 31.0]]
    assert pooled(maps, "grid2")[0, :4].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pooled(maps, "map").shape == (1, 32)
    assert pooled(maps.bfloat16(), "grid9").dtype == torch.float32 and pooled(maps, "grid9").shape == (1, 32)


def test_views_move_and_mirror_as_they_say() -> None:
    images = torch.zeros((200, 1, 5, 5), dtype=torch.uint8)
    images[:, 0, 2, 1] = 255  # one bright pixel
    images[:, 0, 0, 0] = torch.arange(200, dtype=torch.uint8)  # so that no two are alike
    seen, noise = Views(1, flip=True, shift=1).make(images, 0, (1, 5, 5))
    places = {divmod(int(one[0].flatten().argmax()), 5) for one in seen}
    assert places == {(row, column) for row in (1, 2, 3) for column in (0, 1, 2, 2, 3, 4)}
    plain, same = Views(1).make(images, 0, (1, 5, 5))
    assert torch.equal(plain, images) and torch.equal(noise, same)  # augmentation leaves the noise as it is
    assert not torch.equal(same, Views(2).make(images, 1, (1, 5, 5))[1])
    assert not torch.equal(same, Views(1, seed=1).make(images, 0, (1, 5, 5))[1])
    assert abs(float(same.std()) - 1) < 0.05


def test_model_hash_knows_weights_options_and_noise() -> None:
    models: list[Callable[[], NetworkDenoiser]] = [
        denoiser,
        lambda: denoiser(2),
        lambda: denoiser(noise=VPNoise()),
        lambda: denoiser(noise=VPNoise(time_offset=1)),
    ]
    hashes = [model_hash(make_one()) for make_one in models]
    assert len(set(hashes)) == 4 and model_hash(denoiser()) == hashes[0]
