"""Statistics files: written for others, read from others, and refused with one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg

from twofold.errors import UserError
from twofold.measure import Gaussian, PixelEncoder, frechet_distance
from twofold.measure.statfile import check_statistics, describe, read_statistics, write_statistics

ABOUT = {"data": "digits", "data_hash": "a" * 64, "split": "all", **describe(PixelEncoder())}


def features(n: int = 40, dims: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dims)) * np.arange(1, dims + 1)


def by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    """As pytorch-fid computes it, from rows."""
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    delta = a.mean(0) - b.mean(0)
    return float(delta @ delta + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root))


def test_written_and_read_again(tmp_path: Path) -> None:
    rows, spatial = features(), features(30, 4, 1)
    write_statistics(tmp_path / "s.npz", Gaussian.of(rows), Gaussian.of(spatial), ABOUT)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:  # as others read it
        np.testing.assert_allclose(file["mu"], rows.mean(0), atol=1e-12)
        np.testing.assert_allclose(file["sigma"], np.cov(rows.T), atol=1e-12)
        np.testing.assert_allclose(file["sigma_s"], np.cov(spatial.T), atol=1e-12)
    found = read_statistics(tmp_path / "s.npz")
    assert found.about == ABOUT | {"images": 40} and found.images is None
    assert found.gaussian is not None and found.gaussian.n == 40 and found.spatial is not None
    np.testing.assert_allclose(found.gaussian.covariance, np.cov(rows.T), rtol=1e-12)
    assert found.identity["sha256"] == found.hash and found.identity["data"] == "digits"
    check_statistics(found, PixelEncoder(), 6, "a" * 64)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("n", [4, 50])
def test_a_foreign_file_gives_the_distance_of_its_moments(tmp_path: Path, n: int) -> None:
    """Its number of images is unknown, and does not matter; few samples give no NaN."""
    rows, ours = features(200), features(n, seed=2) + 0.5
    np.savez(tmp_path / "theirs.npz", mu=rows.mean(0), sigma=np.cov(rows.T))
    found = read_statistics(tmp_path / "theirs.npz")
    assert found.about == {} and found.gaussian is not None
    distance = frechet_distance(Gaussian.of(ours), found.gaussian)
    assert distance == pytest.approx(frechet_distance(Gaussian.of(ours), Gaussian.of(rows)), rel=1e-9)
    assert distance == pytest.approx(by_sqrtm(ours, rows), rel=1e-6)
    check_statistics(found, PixelEncoder(), 6, "b" * 64)  # it tells nothing that could be wrong


def test_images_alone_or_beside(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images)
    found = read_statistics(tmp_path / "images.npz")
    assert found.gaussian is None and found.images is not None and found.images.shape == (5, 3, 4, 6)
    assert (found.images[1, :, 2, 3].numpy() == images[1, 2, 3]).all()
    assert found.identity["images"] == 5
    rows = features()
    np.savez(tmp_path / "both.npz", arr_0=images, mu=rows.mean(0), sigma=np.cov(rows.T))
    assert read_statistics(tmp_path / "both.npz").gaussian is not None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": np.zeros(3)}, "holds mean"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "is no statistics file"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2.0], [0.0, 1.0]])}, "not symmetric"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "negative on its diagonal"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "NaN"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.inf)}, "is no statistics file"),
        ({"mu": np.zeros(5000), "sigma": np.eye(1)}, "is no statistics file"),
        ({"mu": np.array([{}], object), "sigma": np.eye(1)}, "is no statistics file"),
        ({"arr_0": np.zeros((3, 4, 4, 3))}, "arr_0 float64"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "about": np.array("[1]")}, "`about` is no description"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "about": np.array('{"data_hash": 3}')}, "`about` is no description"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "about": np.array('{"images": "9"}')}, "`about` says '9' images"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "about": np.array("{")}, "is no statistics file"),
    ],
)
def test_files_that_are_none(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match=message) as caught:
        read_statistics(tmp_path / "s.npz")
    assert "s.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_damaged_and_misnamed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_statistics(tmp_path / "s.npz")
    (tmp_path / "s.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(UserError, match="is no statistics file"):
        read_statistics(tmp_path / "s.npz")
    with pytest.raises(UserError, match="kept as .npz"):
        write_statistics(tmp_path / "s.pkl", Gaussian.of(features()), None, ABOUT)
    write_statistics(tmp_path / "t.npz", Gaussian.of(features()), None, ABOUT)
    before = (tmp_path / "t.npz").read_bytes()
    with pytest.raises(UserError, match="at least 2 images"):
        write_statistics(tmp_path / "t.npz", Gaussian.of(features(1)), None, ABOUT)
    assert (tmp_path / "t.npz").read_bytes() == before


class Other(PixelEncoder):
    version = "2"


@pytest.mark.parametrize(
    ("encoder", "dims", "data", "message"),
    [
        (PixelEncoder(), 7, None, "holds 6 dimensions, encoder pixels gives 7"),
        (PixelEncoder(8), 6, None, "made with encoder pixels, this is pixels8"),
        (Other(), 6, None, "made with encoder version 1, this is 2"),
        (PixelEncoder(), 6, "b" * 64, r"is of other data than asked for \(digits, aaaaaaaa; asked for bbbbbbbb\)"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, encoder: Any, dims: int, data: str | None, message: str) -> None:
    write_statistics(tmp_path / "s.npz", Gaussian.of(features()), None, ABOUT)
    with pytest.raises(UserError, match=message) as caught:
        check_statistics(read_statistics(tmp_path / "s.npz"), encoder, dims, data)
    assert "\n" not in str(caught.value)
