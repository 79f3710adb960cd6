"""Anomaly scores and maps of exact denoisers: closed forms, real digits, and every way of splitting the work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from twofold.codec import PixelCodec
from twofold.data import open_store
from twofold.errors import UserError
from twofold.oracle import MixtureDenoiser
from twofold.recognize.anomaly import AnomalyDetector, _Moments, _smoothed, auroc
from twofold.settings.data import DataSettings

SHAPE = (1, 8, 8)


def mixture(k: int = 2, std: float = 0.1) -> MixtureDenoiser:
    means = 0.5 * torch.randn((k, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MixtureDenoiser(means, [std] * k, [1.0] * k)


def good(oracle: MixtureDenoiser, n: int, seed: int = 0) -> Tensor:
    return oracle.codec.decode(oracle.sample(n, torch.Generator().manual_seed(seed)))


def scratched(images: Tensor) -> Tensor:
    """Rows 2-3, columns 5-6 inverted."""
    bad = images.clone()
    bad[:, :, 2:4, 5:7] = 255 - bad[:, :, 2:4, 5:7] // 2
    return bad


@pytest.fixture(scope="module")
def detector() -> AnomalyDetector:
    oracle = mixture()
    return AnomalyDetector(oracle, draws=2).fit(good(oracle, 100))


@pytest.mark.parametrize("score", ["mean", "peak"])
def test_what_is_far_from_the_mixture_scores_higher(score: str) -> None:
    oracle = mixture()
    detector = AnomalyDetector(oracle, draws=2, score=score).fit(good(oracle, 100))
    fine, bad = good(oracle, 40, seed=1), scratched(good(oracle, 40, seed=2))
    scores = detector.scores(torch.cat([fine, bad]))
    assert scores.dtype == np.float32 and scores.shape == (80,)
    assert auroc(scores, [0] * 40 + [1] * 40) > 0.99
    if score == "mean":  # in standard deviations of good parts
        assert abs(scores[:40].mean()) < 0.5 and scores[:40].std() < 1.5
    noise = torch.randint(0, 256, (10, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    assert detector.scores(noise).min() > scores[:40].max()


def test_the_map_points_at_what_was_changed(detector: AnomalyDetector) -> None:
    fine = good(mixture(), 30, seed=1)
    maps = detector.maps(scratched(fine))
    assert maps.shape == (30, 8, 8) and maps.dtype == np.float32
    places = maps.reshape(30, -1).argmax(1)
    inside = [(2 <= row <= 3 and 5 <= column <= 6) for row, column in zip(places // 8, places % 8, strict=True)]
    assert np.mean(inside) > 0.95
    changed = maps[:, 2:4, 5:7].mean()
    assert changed > 5 * np.abs(detector.maps(fine)).mean()
    assert abs(detector.maps(fine).mean()) < 0.3  # where nothing was changed it says nothing


def test_one_gaussian_has_the_error_that_was_computed_by_hand() -> None:
    """x0_hat - x0 = s^2/(s^2+d^2) (m - x0) + d^2/(s^2+d^2) s n, so with noise 0 the error is the distance's square."""
    mean = torch.zeros((1, *SHAPE), dtype=torch.float64)
    oracle = MixtureDenoiser(mean, [0.2], [1.0])
    detector = AnomalyDetector(
        oracle, [0.5], 1, smooth=0, noise=lambda images, draw: torch.zeros((len(images), *SHAPE))
    )
    images = good(oracle, 20)
    detector.fit(images)
    x0 = PixelCodec().encode(images).double()
    error = (0.25 / (0.25 + 0.04)) ** 2 * x0.square()[:, 0]
    known = detector.tensors()
    torch.testing.assert_close(known["pixel_mean"][0], error.mean(0), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(known["image_std"][0], error.mean((1, 2)).std(), rtol=1e-6, atol=1e-9)
    spread = torch.maximum(error.std(0), 0.1 * error.std(0).mean())
    expected = ((error - error.mean(0)) / spread).float()
    torch.testing.assert_close(torch.from_numpy(detector.maps(images)), expected, rtol=1e-4, atol=1e-4)
    whole = error.mean((1, 2))
    expected = ((whole - whole.mean()) / whole.std()).float()
    torch.testing.assert_close(torch.from_numpy(detector.scores(images)), expected, rtol=1e-4, atol=1e-4)


def test_order_batches_and_neighbours_do_not_matter(detector: AnomalyDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    images = scratched(good(mixture(), 12, seed=4))
    scores, maps = detector.scores(images), detector.maps(images)
    both = detector.compare(images)
    np.testing.assert_array_equal(both[0], scores)
    np.testing.assert_array_equal(both[1], maps)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(detector.scores(images[order]), scores[order.numpy()])
    np.testing.assert_array_equal(detector.maps(images[order]), maps[order.numpy()])
    np.testing.assert_array_equal(detector.scores(images[5:6]), scores[5:6])
    other = AnomalyDetector.from_tensors(mixture(), detector.tensors(), micro_batch=7)
    monkeypatch.setattr("twofold.recognize.anomaly.IMAGES", 5)
    seen: list[tuple[int, int]] = []
    np.testing.assert_allclose(other.scores(images, lambda *at: seen.append(at)), scores, rtol=1e-5, atol=1e-5)
    assert seen == [(5, 12), (10, 12), (12, 12)]
    monkeypatch.setattr("twofold.recognize.anomaly.ELEMENTS", 3 * 5 * 2 * 64)
    seen.clear()
    np.testing.assert_allclose(other.scores(images, lambda *at: seen.append(at)), scores, rtol=1e-5, atol=1e-5)
    assert seen == [(3, 12), (6, 12), (9, 12), (12, 12)]


def test_fitting_in_parts_is_fitting_at_once(detector: AnomalyDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twofold.recognize.anomaly.IMAGES", 7)
    again = AnomalyDetector(mixture(), draws=2).fit(good(mixture(), 100))
    for name, value in detector.tensors().items():
        torch.testing.assert_close(again.tensors()[name], value, rtol=1e-9, atol=1e-12)
    values, moments = torch.randn(50, 3, dtype=torch.float64) + 1e6, _Moments()
    for part in values.split(8):
        moments.add(part)
    torch.testing.assert_close(moments.std(), values.std(0), rtol=1e-9, atol=0)


def test_what_was_learnt_is_saved_and_read(detector: AnomalyDetector, tmp_path: object) -> None:
    file = f"{tmp_path}/detector.safetensors"
    save_file(detector.tensors(), file)
    again = AnomalyDetector.from_tensors(mixture(), load_file(file))
    images = good(mixture(), 5, seed=7)
    np.testing.assert_array_equal(again.scores(images), detector.scores(images))
    np.testing.assert_array_equal(again.maps(images), detector.maps(images))
    assert (again.sigmas, again.draws, again.smooth, again.score) == (detector.sigmas, 2, 1.0, "mean")


def test_zeros_against_other_digits() -> None:
    """The exact denoiser of 100 real zeros; 40 others say how zeros differ; the rest of the digits is new to it."""
    store = open_store(DataSettings(source="digits"))
    labels = np.asarray(store.labels)
    zeros, others = np.flatnonzero(labels == 0), np.flatnonzero(labels != 0)[::12]
    means = PixelCodec().encode(store.batch(zeros[:100])).double()
    oracle = MixtureDenoiser(means, [0.2] * 100, [1.0] * 100, labels=False)
    detector = AnomalyDetector(oracle, draws=1, micro_batch=256).fit(store.batch(zeros[100:140]))
    tested = np.concatenate([zeros[140:], others])
    scores = detector.scores(store.batch(tested))
    assert len(others) > 120 and auroc(scores, labels[tested] != 0) > 0.95


class Enlarging(PixelCodec):
    """Pixels twice as high and three times as wide as x0."""

    def encode(self, images: Tensor) -> Tensor:
        return super().encode(images[:, :, ::2, ::3])

    def decode(self, x0: Tensor) -> Tensor:
        return super().decode(x0.repeat_interleave(2, 2).repeat_interleave(3, 3))


def test_maps_of_latents_have_the_size_of_the_pixels() -> None:
    oracle = mixture()
    oracle.codec = Enlarging()
    fine = oracle.codec.decode(oracle.sample(20, torch.Generator().manual_seed(0)))
    bad = fine[:6].clone()
    bad[:, :, 4:8, 15:21] = 255
    maps = AnomalyDetector(oracle, draws=1).fit(fine).maps(bad)
    assert maps.shape == (6, 16, 24)
    places = maps.reshape(6, -1).argmax(1)
    assert np.mean([4 <= p // 24 < 8 and 15 <= p % 24 < 21 for p in places]) > 0.8


def test_smoothing_keeps_the_mean_level_and_spreads_a_point() -> None:
    flat = torch.full((1, 2, 6, 9), 3.0, dtype=torch.float64)
    torch.testing.assert_close(_smoothed(flat, 1.5), flat)
    point = torch.zeros((1, 1, 21, 21), dtype=torch.float64)
    point[0, 0, 10, 10] = 1
    found = _smoothed(point, 1.5)[0, 0]
    assert float(found.sum()) == pytest.approx(1)
    x = torch.arange(-10, 11, dtype=torch.float64)
    assert float((found.sum(0) * x**2).sum().sqrt()) == pytest.approx(1.5, rel=0.02)
    torch.testing.assert_close(found, found.T)
    assert torch.equal(_smoothed(point, 0), point)


def test_default_levels_are_those_the_model_knows() -> None:
    oracle = mixture()
    assert AnomalyDetector(oracle).sigmas == (0.1, 0.2, 0.4, 0.8, 1.6)
    oracle.sigma_range = (0.3, 1.0)
    assert AnomalyDetector(oracle).sigmas == (0.4, 0.8)
    oracle.sigma_range = (4.0, 9.0)
    assert AnomalyDetector(oracle).sigmas == (6.0,)


def test_mistakes(detector: AnomalyDetector) -> None:
    oracle = mixture()
    images = good(oracle, 4)
    for how, what in (
        ({"draws": 0}, "draws=0: no draw of noise"),
        ({"smooth": -1.0}, "smooth=-1: not a width"),
        ({"score": "pek"}, "score=pek: no such score; did you mean 'peak'"),
        ({"sigmas": []}, "sigmas: not noise levels"),
        ({"sigmas": [0.0]}, "sigmas: not noise levels"),
        ({"sigmas": [100.0]}, r"sigma=100: outside \[0.002, 80\]"),
        ({"micro_batch": 0}, "micro_batch=0"),
    ):
        with pytest.raises(UserError, match=what):
            AnomalyDetector(oracle, **how)  # type: ignore[arg-type]
    fresh = AnomalyDetector(oracle)
    for call in (fresh.scores, fresh.maps, fresh.compare):
        with pytest.raises(UserError, match=r"anomaly: it has not seen good parts yet; call fit\(images\) first"):
            call(images)
    with pytest.raises(UserError, match="it has not seen good parts"):
        fresh.tensors()
    with pytest.raises(UserError, match="images: 1 good parts; at least 2"):
        fresh.fit(images[:1])
    with pytest.raises(UserError, match="images: none"):
        detector.scores(images[:0])
    with pytest.raises(UserError, match="become 1 x 4 x 8, the model knows 1 x 8 x 8"):
        detector.scores(images[:, :, ::2])
    with pytest.raises(UserError, match="tensors: without image_std, how"):
        AnomalyDetector.from_tensors(
            oracle, {k: v for k, v in detector.tensors().items() if k not in ("image_std", "how")}
        )
    small = MixtureDenoiser(torch.zeros(1, 1, 4, 4), [0.1], [1.0])
    with pytest.raises(UserError, match=r"tensors: made for maps of \(5, 8, 8\), this model has \(5, 4, 4\)"):
        AnomalyDetector.from_tensors(small, detector.tensors())
