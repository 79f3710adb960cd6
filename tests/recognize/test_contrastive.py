"""Alignment and uniformity against their formulas, closed cases, and every way of splitting the work."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofold.errors import UserError
from twofold.recognize.contrastive import alignment, contrast, uniformity


def points(n: int, d: int = 7, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn((n, d), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def naive_uniformity(f: Tensor, t: float) -> float:
    unit = (f / f.norm(dim=1, keepdim=True)).double()
    values = [math.exp(-t * float((a - b).square().sum())) for i, a in enumerate(unit) for b in unit[i + 1 :]]
    return math.log(sum(values) / len(values))


def test_equal_views_have_alignment_zero_whatever_their_length() -> None:
    f = points(50, dtype=torch.float32)
    assert alignment(f, f) == 0
    assert alignment(f, 4 * f) == 0  # a power of two: no rounding
    assert alignment(f, 3 * f) == pytest.approx(0, abs=1e-12)
    assert alignment(f, -f) == pytest.approx(4, rel=1e-6)


def test_alignment_is_its_formula() -> None:
    f, g = points(40), points(40, seed=1)
    expected = np.mean([(a / a.norm() - b / b.norm()).square().sum() for a, b in zip(f, g, strict=True)])
    assert alignment(f, g) == pytest.approx(expected, rel=1e-12)
    assert alignment(f.float().numpy(), g.float().numpy()) == pytest.approx(expected, rel=1e-6)


@given(n=st.integers(2, 30), chunk=st.integers(1, 40), t=st.floats(0.1, 20), seed=st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_uniformity_is_its_formula_for_every_chunk_size(n: int, chunk: int, t: float, seed: int) -> None:
    f = points(n, seed=seed)
    assert uniformity(f, t, chunk) == pytest.approx(naive_uniformity(f, t), rel=1e-9, abs=1e-9)


@given(chunk=st.integers(1, 500), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_chunks_do_not_matter_in_single_precision(chunk: int, seed: int) -> None:
    f = points(max(chunk // 4, 60), 16, seed, torch.float32)
    assert uniformity(f, chunk=chunk) == pytest.approx(uniformity(f), abs=1e-6)


def test_the_order_of_images_does_not_matter() -> None:
    f = points(300, dtype=torch.float32)
    assert uniformity(f[torch.randperm(300)], chunk=64) == pytest.approx(uniformity(f, chunk=64), abs=1e-6)


@pytest.mark.parametrize("t", [0.5, 2.0, 200.0])
def test_closed_cases(t: float) -> None:
    one = torch.tensor([1.0, 0.0, 0.0])
    assert uniformity(torch.stack([one, -one]), t) == pytest.approx(-4 * t)  # antipodal, also where exp underflows
    assert uniformity(one.expand(9, 3), t, chunk=4) == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.eye(5), t, chunk=2) == pytest.approx(-2 * t)  # every pair at a right angle
    twice = torch.cat([one.expand(2, 3), -one.expand(2, 3)])  # 2 of 6 pairs at distance 0, 4 antipodal
    assert uniformity(twice, t) == pytest.approx(math.log((2 + 4 * math.exp(-4 * t)) / 6), abs=1e-6)


def test_batches_would_have_said_something_else() -> None:
    """The mean of the batches' logarithms is biased; the global mean is not."""
    f = points(512, 3)
    whole = uniformity(f)
    batches = np.mean([uniformity(part) for part in f.split(8)])
    assert batches < whole - 0.01
    assert uniformity(f, chunk=8) == pytest.approx(whole, abs=1e-9)


def test_lengths_do_not_matter_even_extreme_ones() -> None:
    f = points(40, dtype=torch.float32)
    scale = torch.logspace(-30, 30, 40)[:, None]
    assert uniformity(f * scale) == pytest.approx(uniformity(f), abs=1e-6)


def test_layers_together() -> None:
    first = {"a": points(20), "b": points(20, 3, seed=1)}
    second = {"a": points(20, seed=2), "b": points(20, 3, seed=3)}
    found = contrast(first, second)
    assert list(found) == ["a", "b"]
    assert found["b"]["alignment"] == alignment(first["b"], second["b"])
    assert found["b"]["uniformity"] == pytest.approx((uniformity(first["b"]) + uniformity(second["b"])) / 2)
    with pytest.raises(UserError, match=r"layers: \['a', 'b'\] in one view, \['a'\] in the other; the same in both"):
        contrast(first, {"a": second["a"]})


def test_mistakes() -> None:
    f = points(4)
    hole = f.clone()
    hole[2] = 0
    with pytest.raises(UserError, match="f: zero for 1 of 4 images; a zero vector has no direction"):
        uniformity(hole)
    with pytest.raises(UserError, match="g: zero for 1 of 4 images"):
        alignment(f, hole)
    hole[1, 0] = torch.nan
    with pytest.raises(UserError, match="f: not finite for 1 of 4 images"):
        uniformity(hole)
    with pytest.raises(UserError, match="f: one image; uniformity is about pairs: give at least two"):
        uniformity(f[:1])
    with pytest.raises(UserError, match=r"g: of shape \(3, 7\); f is \(4, 7\)"):
        alignment(f, f[:3])
    for bad in (f[0], f[:0], f[None]):
        with pytest.raises(UserError, match=r"expected \(images, channels\), not empty"):
            uniformity(bad)
    with pytest.raises(UserError, match="t=0: not a width"):
        uniformity(f, 0.0)
    with pytest.raises(UserError, match="chunk=0: no rows"):
        uniformity(f, chunk=0)
