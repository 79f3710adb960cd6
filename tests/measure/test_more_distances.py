"""KID, Inception score, density and coverage, against torchmetrics, prdc and cases done by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from twofold.errors import UserError
from twofold.measure import density_coverage, inception_score, kernel, kernel_distance, kernel_distance_of_subsets
from twofold.measure.neighbours import manifold_radii


class Flat(nn.Module):
    """Images as vectors, for peers that insist on a network."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double() / 255


def vectors(n: int, dims: int = 12, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dims)) + shift


def test_kernel_distance_by_hand() -> None:
    a, b = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    # k(a1, a2) = (0 + 1)^3, k(b1, b2) = 1, k(a., b1) = (1/2 + 1)^3, k(a., b2) = 1
    expected = 1 + 1 - 2 * (2 * 1.5**3 + 2) / 4
    assert kernel_distance(a, b) == pytest.approx(expected, abs=1e-12)


def test_kernel_distance_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = vectors(23), vectors(31, seed=1, shift=0.5)
    whole = kernel_distance(a, b)
    monkeypatch.setattr(kernel, "BLOCK", 7)
    assert kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)


def test_kernel_distance_equals_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.image.kid")
    random = np.random.default_rng(0)
    real, fake = (torch.from_numpy(random.integers(0, top, (40, 3, 2, 2), dtype=np.uint8)) for top in (256, 180))
    peer = image.KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=40)
    peer.update(real, real=True)
    peer.update(fake, real=False)
    a, b = Flat()(real), Flat()(fake)
    assert kernel_distance(a, b) == pytest.approx(peer.compute()[0].item(), rel=1e-5)
    mean, deviation = kernel_distance_of_subsets(a, b, subsets=3, size=100)
    assert mean == pytest.approx(kernel_distance(a, b)) and deviation == pytest.approx(0, abs=1e-12)  # all of them


def test_kernel_distance_is_unbiased_and_seeded() -> None:
    """Two halves of one distribution: as often below 0 as above; the biased form is above 0 always."""
    same = [kernel_distance(vectors(60, seed=2 * i), vectors(60, seed=2 * i + 1)) for i in range(40)]
    assert 8 <= sum(value < 0 for value in same) <= 32
    assert abs(np.mean(same)) < 3 * np.std(same) / 40**0.5
    a, b = vectors(300), vectors(250, seed=1, shift=0.3)
    whole = kernel_distance(a, b)
    mean, deviation = kernel_distance_of_subsets(a, b, subsets=40, size=80)
    assert abs(mean - whole) < deviation and deviation > 0
    assert kernel_distance_of_subsets(a, b, 5, 80) == kernel_distance_of_subsets(a, b, 5, 80)
    assert kernel_distance_of_subsets(a, b, 5, 80) != kernel_distance_of_subsets(a, b, 5, 80, seed=1)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 1500), m=st.integers(2, 40), seed=st.integers(0, 1000))
def test_kernel_distance_is_symmetric_whatever_the_blocks(n: int, m: int, seed: int) -> None:
    a, b = vectors(n, 3, seed), vectors(m, 3, seed + 1)
    assert kernel_distance(a, b) == pytest.approx(kernel_distance(b, a), rel=1e-9, abs=1e-12)


def test_kernel_distance_refuses() -> None:
    with pytest.raises(UserError, match="12 dimensions and 11"):
        kernel_distance(vectors(4), vectors(4, 11))
    with pytest.raises(UserError, match="at least 2"):
        kernel_distance(vectors(4), vectors(1))
    with pytest.raises(UserError, match="NaN"):
        kernel_distance(vectors(4), vectors(4) * np.nan)


def test_inception_score_at_its_ends() -> None:
    assert inception_score(np.full((20, 5), 0.2)) == pytest.approx((1, 0))
    assert inception_score(np.tile(np.eye(5), (4, 1)), splits=1) == pytest.approx((5, 0))  # sure, and all classes
    assert inception_score(np.repeat(np.eye(5), 4, axis=0), splits=5) == pytest.approx((1, 0))  # one class a part


def test_inception_score_equals_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.image.inception")
    logits = torch.from_numpy(vectors(50) * 2)

    class Logits(nn.Module):
        num_features = 12

        def forward(self, images: Tensor) -> Tensor:
            return logits

    peer = image.InceptionScore(feature=Logits(), splits=1)
    peer.update(torch.zeros(50, 3, 2, 2, dtype=torch.uint8))
    found = inception_score(logits.softmax(1), splits=1)
    assert found[0] == pytest.approx(peer.compute()[0].item(), rel=1e-6) and found[1] == 0


def test_inception_score_of_unequal_parts() -> None:
    """23 images in 10 parts: those from 23 k / 10 to 23 (k + 1) / 10, as published; standard deviation of all ten."""
    rows = torch.from_numpy(vectors(23)).softmax(1).numpy()
    scores = []
    for k in range(10):
        part = rows[23 * k // 10 : 23 * (k + 1) // 10]
        scores.append(
            np.exp(np.mean([sum(p * np.log(p / q) for p, q in zip(r, part.mean(0), strict=True)) for r in part]))
        )
    assert inception_score(rows) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.full((9, 2), 0.5), "in 10 parts"),
        (np.full((10, 2), 0.6), "no probabilities"),
        (np.full((10, 2), np.nan), "no probabilities"),
        (np.full(10, 1.0), "in 10 parts"),
    ],
)
def test_inception_score_refuses(rows: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        inception_score(rows)


def test_density_and_coverage_by_hand() -> None:
    """On a line, k = 1: balls of radius 1 around 0 and 1, of radius 9 around 10."""
    real, fake = np.array([[0.0], [1.0], [10.0]]), np.array([[0.5], [3.0], [30.0]])
    # 0.5 lies in two balls, and 9.5 from the third, too far; 3 in the third only; 30 in none
    assert density_coverage(real, fake, k=1) == pytest.approx(((2 + 1 + 0) / 3, 1.0))
    assert density_coverage(real, fake[2:], k=1) == (0, 0)
    assert density_coverage(real, fake[1:2], k=1) == pytest.approx((1, 1 / 3))


@pytest.mark.parametrize(("n", "m", "dims", "shift"), [(60, 50, 6, 0.0), (120, 30, 20, 0.5), (40, 200, 2, 1.0)])
def test_density_and_coverage_equal_prdc(n: int, m: int, dims: int, shift: float) -> None:
    prdc = pytest.importorskip("prdc")
    real, fake = vectors(n, dims), vectors(m, dims, 1, shift)
    expected = prdc.compute_prdc(real, fake, nearest_k=5)
    found = density_coverage(real, fake)
    assert found == pytest.approx((expected["density"], expected["coverage"]), abs=1e-12)
    assert density_coverage(real, fake, 5, manifold_radii(real, 5)) == found
    assert density_coverage(real.astype(np.float32), fake.astype(np.float32)) == pytest.approx(found, abs=1e-12)


def test_density_and_coverage_of_copies() -> None:
    """Copies of all real images: everything is covered, and each lies in about k balls; in float32 far from 0 too."""
    real = vectors(80, 5) + 1000
    density, coverage = density_coverage(real.astype(np.float32), real.astype(np.float32))
    assert coverage == 1 and 0.8 < density < 1.6


def test_density_refuses() -> None:
    with pytest.raises(UserError, match="5 real images"):
        density_coverage(vectors(5), vectors(9))
