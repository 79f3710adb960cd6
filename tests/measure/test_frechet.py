"""Frechet distance: closed forms, SciPy's sqrtm, torchmetrics' FID, and the statistics beneath it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from twofold.errors import UserError
from twofold.measure import Gaussian, check_fits, encoder, fits, frechet_distance, result_name
from twofold.measure.frechet import MOST_DIMS


def correlated(n: int, dims: int, seed: int, shift: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((n, dims)) @ random.standard_normal((dims, dims)) / dims**0.5 + shift


def exactly(mean: np.ndarray, covariance: np.ndarray, n: int = 100) -> Gaussian:
    """A Gaussian with these very moments."""
    return Gaussian.from_arrays({"n": np.array(n), "mean": mean, "scatter": covariance * (n - 1)})


def by_sqrtm(a: Gaussian, b: Gaussian) -> float:
    linalg = pytest.importorskip("scipy.linalg")
    root = linalg.sqrtm(a.covariance @ b.covariance)
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root.real))


# -- statistics ---------------------------------------------------------------------------------------------------


def test_statistics_equal_numpys() -> None:
    rows = correlated(50, 7, seed=0, shift=3)
    gaussian = Gaussian.of(rows)
    assert gaussian.n == 50
    np.testing.assert_allclose(gaussian.mean, rows.mean(0), rtol=1e-13)
    np.testing.assert_allclose(gaussian.covariance, np.cov(rows.T), rtol=1e-12, atol=1e-13)


@settings(max_examples=50, deadline=None)
@given(
    rows=arrays(np.float64, (23, 3), elements=st.floats(-1e3, 1e3)),
    cuts=st.lists(st.integers(0, 23), max_size=6),
)
def test_batches_in_any_cut_and_merges_in_any_order_are_one_pass(rows: np.ndarray, cuts: list[int]) -> None:
    whole = Gaussian.of(rows)
    parts = [Gaussian.of(part) for part in np.split(rows, sorted(cuts))]
    streamed, merged = Gaussian(), Gaussian(3)
    for part in np.split(rows, sorted(cuts)):
        streamed.update(torch.from_numpy(part))
    for other in reversed(parts):
        merged.merge(other)
    for other in (streamed, merged):
        assert other.n == 23
        np.testing.assert_allclose(other.mean, whole.mean, rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(other.scatter, whole.scatter, rtol=1e-10, atol=1e-6)


def test_a_large_mean_does_not_cancel() -> None:
    rows = correlated(1000, 4, seed=1)
    gaussian = Gaussian()
    for part in np.split(rows + 1e8, 10):
        gaussian.update(part)
    np.testing.assert_allclose(gaussian.covariance, np.cov(rows.T), rtol=1e-6, atol=1e-7)


def test_arrays_survive_a_file_bit_for_bit(tmp_path: object) -> None:
    gaussian = Gaussian.of(correlated(20, 5, seed=2))
    np.savez(f"{tmp_path}/g.npz", **gaussian.to_arrays())  # type: ignore[arg-type]
    with np.load(f"{tmp_path}/g.npz") as file:
        again = Gaussian.from_arrays(file)
    assert again.n == gaussian.n
    assert (again.mean == gaussian.mean).all() and (again.scatter == gaussian.scatter).all()


@pytest.mark.parametrize(
    "broken",
    [
        {"mean": np.zeros(3)},
        {"n": np.array(-1)},
        {"scatter": np.full((2, 2), np.nan)},
        {"scatter": np.zeros((2, 3))},
        {"mean": np.zeros((2, 1))},
    ],
)
def test_arrays_that_are_no_statistics_are_refused(broken: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError):
        Gaussian.from_arrays(Gaussian.of(correlated(9, 2, seed=0)).to_arrays() | broken)


# -- the distance -------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    variances=arrays(np.float64, (2, 5), elements=st.floats(1e-6, 1e4)),
    means=arrays(np.float64, (2, 5), elements=st.floats(-100, 100)),
)
def test_diagonal_case_is_analytic(variances: np.ndarray, means: np.ndarray) -> None:
    a, b = (exactly(m, np.diag(v)) for m, v in zip(means, variances, strict=True))
    expected = ((means[0] - means[1]) ** 2).sum() + ((variances[0] ** 0.5 - variances[1] ** 0.5) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7, abs=1e-12 * variances.sum())


def test_one_dimension() -> None:
    assert frechet_distance(exactly(np.zeros(1), np.eye(1)), exactly(np.ones(1), 4 * np.eye(1))) == pytest.approx(2.0)


@pytest.mark.parametrize("dims", [1, 2, 17, 64, 200])
def test_equals_scipys_sqrtm(dims: int) -> None:
    a = Gaussian.of(correlated(4 * dims + 4, dims, seed=1))
    b = Gaussian.of(correlated(5 * dims + 4, dims, seed=2, shift=0.1))
    assert frechet_distance(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-9)


def test_equals_torchmetrics_fid_with_the_same_features() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.double().flatten(1)

    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 200, (60, 3, 2, 2), generator=generator, dtype=torch.uint8)
    fake = torch.randint(50, 255, (70, 3, 2, 2), generator=generator, dtype=torch.uint8)
    metric = fid.FrechetInceptionDistance(feature=Flat())
    metric.set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    ours = frechet_distance(Gaussian.of(real.double().flatten(1)), Gaussian.of(fake.double().flatten(1)))
    assert ours == pytest.approx(metric.compute().item(), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 20), st.integers(0, 99))
def test_symmetric_not_negative_and_zero_for_equals(n: int, m: int, dims: int, seed: int) -> None:
    a, b = Gaussian.of(correlated(n, dims, seed)), Gaussian.of(correlated(m, dims, seed + 1))
    size = np.trace(a.covariance + b.covariance)
    assert frechet_distance(a, b) >= 0
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=2e-7, abs=1e-12 * size)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12 * size)


def test_invariant_under_rotation_and_quadratic_in_scale() -> None:
    x, y = correlated(80, 6, 1), correlated(90, 6, 2, shift=1)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    d = frechet_distance(Gaussian.of(x), Gaussian.of(y))
    assert frechet_distance(Gaussian.of(x @ rotation), Gaussian.of(y @ rotation)) == pytest.approx(d, rel=1e-10)
    assert frechet_distance(Gaussian.of(3 * x), Gaussian.of(3 * y)) == pytest.approx(9 * d, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(5, 9), (9, 5), (5, 200), (200, 5), (2, 2)])
def test_fewer_vectors_than_dimensions(n: int, m: int) -> None:
    """The nuclear norm |X^T Y| of centred, scaled data is tr((C_a C_b)^(1/2)), without any matrix square root."""
    x, y = correlated(n, 30, 3), correlated(m, 30, 4, shift=0.5)
    a, b = Gaussian.of(x), Gaussian.of(y)
    cx, cy = (x - x.mean(0)) / (n - 1) ** 0.5, (y - y.mean(0)) / (m - 1) ** 0.5
    cross = np.linalg.svd(cx @ cy.T, compute_uv=False).sum()
    expected = ((a.mean - b.mean) ** 2).sum() + (cx**2).sum() + (cy**2).sum() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    streamed = [Gaussian.from_arrays(side.to_arrays()) for side in (a, b)]  # knows the covariance only
    assert frechet_distance(*streamed) == pytest.approx(expected, rel=1e-7)
    streamed[0].merge(Gaussian.of(y))
    a.merge(Gaussian.of(y))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(streamed[0], b), rel=1e-7)


def test_dead_and_repeated_pixels_do_not_leak_rounding() -> None:
    """Enough images, singular covariance: the Cholesky factor fails or has pivots of rounding."""
    x, y = correlated(400, 8, 5), correlated(400, 8, 6, shift=0.2)
    widen = np.concatenate([np.eye(8), np.eye(8)[:, :5] + np.eye(8)[:, 3:], np.zeros((8, 20))], axis=1)
    cross_free = frechet_distance(Gaussian.of(x @ widen), Gaussian.of(y @ widen))
    basis = np.linalg.qr(widen.T)[0]  # an isometry of the space all vectors lie in
    compact = frechet_distance(Gaussian.of(x @ widen @ basis), Gaussian.of(y @ widen @ basis))
    assert cross_free == pytest.approx(compact, rel=1e-9)


@pytest.mark.parametrize("decay", [0.5, 1, 2, 3, 6])
def test_decaying_spectra_of_nearly_equal_sets(decay: float) -> None:
    """As of natural images: eigenvalues over many decades, and a distance that is a small part of the variance."""
    random = np.random.default_rng(0)
    rotation = np.linalg.qr(random.standard_normal((60, 60)))[0] / np.arange(1, 61)[:, None] ** decay
    x, y = (random.standard_normal((300, 60)) @ rotation + shift for shift in (0, 1e-3))
    cx, cy = (x - x.mean(0)) / 299**0.5, (y - y.mean(0)) / 299**0.5
    cross = np.linalg.svd(cx @ cy.T, compute_uv=False).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (cx**2).sum() + (cy**2).sum() - 2 * cross
    assert frechet_distance(Gaussian.of(x), Gaussian.of(y)) == pytest.approx(expected, rel=1e-7)


def test_images_that_are_all_the_same() -> None:
    constant, x = Gaussian.of(np.ones((9, 4))), Gaussian.of(correlated(50, 4, 0))
    assert frechet_distance(constant, constant) == 0
    expected = ((x.mean - 1) ** 2).sum() + np.trace(x.covariance)
    assert frechet_distance(constant, x) == frechet_distance(x, constant) == pytest.approx(expected)


def test_features_of_very_different_scale() -> None:
    scale = 10.0 ** np.arange(-6, 6)
    x, y = correlated(100, 12, 7), correlated(100, 12, 8)
    a, b = Gaussian.of(x * scale), Gaussian.of(y * scale)
    cx, cy = (x - x.mean(0)) * scale / 99**0.5, (y - y.mean(0)) * scale / 99**0.5
    cross = np.linalg.svd(cx @ cy.T, compute_uv=False).sum()
    expected = ((a.mean - b.mean) ** 2).sum() + (cx**2).sum() + (cy**2).sum() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)


# -- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(bad: float) -> None:
    rows = correlated(4, 3, 0)
    rows[2, 1] = bad
    gaussian = Gaussian()
    with pytest.raises(UserError, match="NaN or infinity in 1 of 4 rows"):
        gaussian.update(rows)
    assert gaussian.n == 0


def test_other_mistakes() -> None:
    a, b = Gaussian.of(correlated(9, 3, 0)), Gaussian.of(correlated(9, 4, 0))
    with pytest.raises(UserError, match="3 dimensions on one side, 4 on the other"):
        frechet_distance(a, b)
    with pytest.raises(UserError, match="dimensions"):
        a.update(np.zeros((2, 4)))
    with pytest.raises(UserError, match="dimensions"):
        a.merge(b)
    with pytest.raises(UserError, match="one row per image"):
        a.update(np.zeros(3))
    with pytest.raises(UserError, match="covariance of 1 vectors"):
        frechet_distance(a, Gaussian.of(np.zeros((1, 3))))


def test_only_inception_may_be_called_fid() -> None:
    assert result_name("pixels") == "frechet/pixels"


def test_too_many_dimensions_are_refused_before_a_covariance_is_formed() -> None:
    import tracemalloc

    rows = np.zeros((3, 12_288))
    tracemalloc.start()
    for make in (Gaussian.of, Gaussian().update):
        with pytest.raises(UserError, match=r"12,288 dimensions, .* 1\.1 GiB; at most 4,096: .*encoder=pixels32"):
            make(rows)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("pixels", (3, 32, 32), "pixels"),
        ("auto", (3, 32, 32), "pixels"),
        ("pixels", (1, 64, 64), "pixels"),  # 4096 exactly
        ("pixels", (1, 64, 65), "pixels64"),
        ("pixels", (3, 64, 64), "pixels36"),
        ("auto", (3, 128, 128), "pixels36"),
        ("pixels", (3, 8, 1000), "pixels8"),  # no larger than the image
        ("pixels16", (3, 128, 128), "pixels16"),
        ("pixels64", (3, 128, 128), "pixels36"),
        ("pixels64", (3, 32, 32), "pixels32"),
        ("convnet", (3, 128, 128), "convnet"),
    ],
)
def test_the_encoder_that_fits(name: str, shape: tuple[int, int, int], expected: str) -> None:
    found = fits(name, shape)
    assert found == expected
    if found != "convnet":
        features = encoder(found).embed(torch.zeros((2, *shape), dtype=torch.uint8))
        assert features.shape[1] <= MOST_DIMS
        Gaussian.of(features)
    if name in ("auto", expected):
        assert check_fits(name, shape) == expected
    else:
        with pytest.raises(UserError, match=f"encoder={name}: .*use encoder={expected}"):
            check_fits(name, shape)


def test_no_pixel_encoder_fits_thousands_of_channels() -> None:
    with pytest.raises(UserError, match="images of 5000 channels"):
        fits("pixels", (5000, 2, 2))
    with pytest.raises(UserError, match="no such encoder"):
        fits("pixel", (3, 8, 8))
