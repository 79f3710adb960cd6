"""Stored statistics: hit, miss, damage, and what belongs to the key."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from twofold.data import open_store
from twofold.errors import UserError
from twofold.measure import Gaussian, PixelEncoder, embed, encoder, statistics
from twofold.measure.statistics import features_of, reference
from twofold.settings.data import DataSettings


class Images:
    """The part of a store that is needed, and a count of the images that were read."""

    def __init__(self, content_hash: str = "a" * 64, seed: int = 0) -> None:
        self.content_hash, self.read = content_hash, 0
        self.pixels = np.random.default_rng(seed).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8)
        self.splits = {"train": np.arange(30), "test": np.arange(30, 40), "all": np.arange(40)}

    def indices(self, split: str) -> np.ndarray:
        return self.splits[split]

    def batch(self, indices: np.ndarray) -> Tensor:
        self.read += len(indices)
        return torch.from_numpy(self.pixels[indices])


class Versioned(PixelEncoder):
    def __init__(self, version: str) -> None:
        super().__init__()
        self.version = version  # type: ignore[misc]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path))
    return tmp_path / "statistics"


def files(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.exists() else []


def test_computed_once_and_right(cache: Path) -> None:
    store, seen = Images(), []
    first = reference(store, "train", PixelEncoder(), batch=7, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(7, 30), (14, 30), (21, 30), (28, 30), (30, 30)]
    again = reference(store, "train", PixelEncoder())
    assert store.read == 30 and len(files(cache)) == 1
    expected = store.pixels[:30].reshape(30, 16) / 127.5 - 1
    for found in (first, again):
        assert found.features is not None
        np.testing.assert_allclose(found.features, expected, atol=1e-6)
        np.testing.assert_allclose(found.gaussian.covariance, np.cov(expected.T), atol=1e-7)
    assert (first.gaussian.scatter == again.gaussian.scatter).all()


def test_everything_that_matters_is_in_the_key(cache: Path) -> None:
    reference(Images(), "train", PixelEncoder())
    reference(Images(), "test", PixelEncoder())
    reference(Images("b" * 64, seed=1), "train", PixelEncoder())
    reference(Images(), "train", PixelEncoder(2))
    reference(Images(), "train", Versioned("2"))
    assert len(files(cache)) == 5
    other = Images()
    other.splits["train"] = np.arange(1, 31)
    found = reference(other, "train", PixelEncoder())
    assert len(files(cache)) == 6
    assert found.features is not None
    np.testing.assert_allclose(found.features, other.pixels[1:31].reshape(30, 16) / 127.5 - 1, atol=1e-6)


def test_large_features_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "KEEP_BYTES", 30 * 16 * 4 - 1)
    store = Images()
    for _ in range(2):
        found = reference(store, "train", PixelEncoder(), batch=8)
        assert found.features is None and found.gaussian.n == 30
    assert store.read == 30


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(bytes(raw))


def _other(path: Path) -> None:
    np.savez(path, **Gaussian.of(np.eye(5)).to_arrays())  # type: ignore[arg-type]


def _nan(path: Path) -> None:
    arrays = Gaussian.of(np.eye(30)).to_arrays()
    np.savez(path, **arrays | {"mean": np.full(30, np.nan)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "damage", [_cut, _flip, _other, _nan, lambda p: p.write_bytes(b""), lambda p: p.write_text("not a file of arrays")]
)
def test_a_damaged_file_is_computed_again(cache: Path, damage: object) -> None:
    store = Images()
    first = reference(store, "train", PixelEncoder())
    (path,) = files(cache)
    whole = path.read_bytes()
    damage(path)  # type: ignore[operator]
    again = reference(store, "train", PixelEncoder())
    assert store.read == 60
    assert (again.gaussian.scatter == first.gaussian.scatter).all()
    assert np.array_equal(again.features, first.features)  # type: ignore[arg-type]
    assert len(path.read_bytes()) == len(whole)
    reference(store, "train", PixelEncoder())
    assert store.read == 60


def test_killed_while_writing_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    store = Images()
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        reference(store, "train", PixelEncoder())
    assert files(cache) == []


def test_features_that_are_not_finite_are_not_stored(cache: Path) -> None:
    class Broken(PixelEncoder):
        def embed(self, images: Tensor) -> Tensor:
            return super().embed(images) / 0

    with pytest.raises(UserError, match="NaN or infinity"):
        reference(Images(), "train", Broken())
    assert files(cache) == []


def test_features_alone_are_kept_too(cache: Path) -> None:
    store, rows = Images(), np.array([3, 1, 8])
    found = features_of(store, rows, PixelEncoder(), batch=2)
    np.testing.assert_allclose(found, store.pixels[rows].reshape(3, 16) / 127.5 - 1, atol=1e-6)
    assert np.array_equal(features_of(store, rows, PixelEncoder()), found) and store.read == 3
    features_of(store, rows[::-1], PixelEncoder())
    assert store.read == 6
    for file in files(cache):
        file.write_bytes(file.read_bytes()[:-5])
    assert np.array_equal(features_of(store, rows, PixelEncoder()), found) and store.read == 9

    class Broken(PixelEncoder):
        name = "broken"

        def embed(self, images: Tensor) -> Tensor:
            return super().embed(images) * torch.nan

    with pytest.raises(UserError, match="NaN or infinity"):
        features_of(store, np.arange(5), Broken())


def test_an_encoder_has_its_own_batch(cache: Path) -> None:
    sizes: list[int] = []

    class Narrow(PixelEncoder):
        batch = 4

        def embed(self, images: Tensor) -> Tensor:
            sizes.append(len(images))
            return super().embed(images)

    reference(Images(), "test", Narrow())
    assert sizes == [4, 4, 2]
    whole = embed(Narrow(), torch.zeros(6, 1, 4, 4, dtype=torch.uint8))
    assert sizes[3:] == [4, 2] and whole.shape == (6, 16)


def test_a_real_store_will_do(cache: Path) -> None:
    pytest.importorskip("sklearn")
    store = open_store(DataSettings(source="digits"))
    found = reference(store, "test", encoder("pixels4"))
    assert found.gaussian.n == len(store.indices("test")) and found.gaussian.dims == 16 * store.shape[0]
    assert len(files(cache)) == 1
    with pytest.raises(UserError, match="split"):
        reference(store, "tset", PixelEncoder())
