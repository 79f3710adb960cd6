"""Copies of training images: the search against brute force, the rule against the rate it states, planted copies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from sklearn.datasets import load_digits
from torch import Tensor

from twofold.measure.copies import (
    Near,
    apart,
    closest,
    judged,
    least_rate,
    limit_of,
    nearest_in,
    p_values,
    share_nearer,
)
from twofold.measure.neighbours import nearest


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_blocks_change_nothing(size: int) -> None:
    queries, references = normal(20, 6), normal(50, 6, seed=1)
    found = nearest_in(queries, references.split(size), 4)
    whole = nearest(queries, references, 4)
    assert torch.equal(found[0], whole[0]) and torch.equal(found[1], whole[1])
    assert nearest_in(queries, references[:2].split(1), 4)[0].shape == (20, 2)


def test_the_nearer_view_counts_once() -> None:
    plain = torch.tensor([[1.0, 3.0]]).double(), torch.tensor([[7, 8]])
    mirrored = torch.tensor([[0.5, 2.0]]).double(), torch.tensor([[8, 9]])
    distances, rows = closest([plain, mirrored])
    assert distances.tolist() == [[0.5, 1.0, 2.0, math.inf]] and rows.tolist() == [[8, 7, 9, 8]]


def test_near_duplicates_are_one_picture() -> None:
    """A copy of a picture that is there twice has the same ratio as one of a picture that is there once."""
    train = torch.tensor([[0.0, 0.0], [0.01, 0.0], [5.0, 0.0]]).double()
    query = torch.tensor([[0.1, 0.0]]).double()
    found = nearest_in(query, [train], 3)
    near = apart(*found, lambda rows: train[rows], same=0.05)
    assert near.d1.item() == pytest.approx(0.09) and near.d2.item() == pytest.approx(4.9) and int(near.row[0]) == 1
    assert apart(*found, lambda rows: train[rows], same=0.0).d2.item() == pytest.approx(0.1)
    every = apart(*found, lambda rows: train[rows], same=9.0)  # nothing shows another picture: the farthest stands in
    assert every.d2.item() == pytest.approx(4.9) and 0 < every.ratio.item() < 1


def test_an_exact_copy_has_ratio_zero() -> None:
    near = Near(torch.tensor([0.0, 1.0]).double(), torch.tensor([0.0, 2.0]).double(), torch.tensor([0, 0]))
    assert near.ratio.tolist() == [0.0, 0.5]
    flagged = judged(near, Near(torch.ones(5).double(), torch.ones(5).double(), torch.zeros(5).long()), 0.001).flagged
    assert flagged.tolist() == [True, True]


@pytest.mark.parametrize(("held_out", "rate"), [(99, 0.05), (400, 0.01), (400, 0.001)])
def test_new_real_images_are_flagged_at_most_at_the_rate(held_out: int, rate: float) -> None:
    """Over many draws the share of flagged new values is the stated rate, or what so few images can vouch for."""
    random = np.random.default_rng(0)
    stated = max(rate, least_rate(held_out))
    shares = []
    for _ in range(400):
        real, new = torch.from_numpy(random.random(held_out)), torch.from_numpy(random.random(200))
        shares.append((new < limit_of(real, stated)).double().mean().item())
    error = 4 * np.std(shares) / math.sqrt(len(shares))
    expected = math.floor(stated * (held_out + 1) + 1e-9) / (held_out + 1)
    assert np.mean(shares) == pytest.approx(expected, abs=error) and expected <= stated


def test_p_values_say_the_same_as_the_limit() -> None:
    real, new = normal(200).flatten()[:200], normal(500, seed=3).flatten()
    p = p_values(new, real)
    assert p.min() >= 1 / 201 and p.max() <= 1
    for rate in (0.01, 0.05, 0.2):
        assert torch.equal(p <= rate, new < limit_of(real, rate))


def test_share_nearer_is_mann_whitney() -> None:
    ours, real = normal(40).flatten().round(decimals=1), normal(30, seed=2).flatten().round(decimals=1)
    u = mannwhitneyu(-ours.numpy(), -real.numpy()).statistic  # how often ours is the smaller one, ties half
    assert share_nearer(ours, real) == pytest.approx(u / (len(ours) * len(real)))


def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Training, held-out and further images of digits as vectors (N, 64), in grey levels 0..255."""
    pixels = torch.from_numpy(load_digits().images).flatten(1) * (255 / 16)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return pixels[order[:1000]], pixels[order[1000:1400]], pixels[order[1400:]]


def near_to(train: Tensor, images: Tensor, same: float, mirrored: bool = False) -> Near:
    views = [images, images.unflatten(1, (8, 8)).flip(2).flatten(1)] if mirrored else [images]
    found = closest([nearest_in(view, train.split(300), 16) for view in views])
    return apart(*found, lambda rows: train[rows], same)


@pytest.mark.parametrize("rule", ["ratio", "distance"])
def test_planted_copies_are_found_and_new_images_are_not(rule: str) -> None:
    train, held_out, new = digits()
    same = limit_of(nearest_in(held_out, [train], 1)[0][:, 0], 0.01)
    real = near_to(train, held_out, same)
    for noise in (0.0, 4.0, 8.0):
        copies = (train[:200] + noise * normal(200, 64)).clamp(0, 255)
        assert judged(near_to(train, copies, same), real, 0.01, rule).flagged.double().mean() > 0.97
    fresh = judged(near_to(train, new, same), real, 0.01, rule)
    low, high = 0.0, 0.01 + 3 * math.sqrt(0.01 * 0.99 * (1 / len(new) + 1 / 400))
    assert low <= fresh.flagged.double().mean() <= high
    assert fresh.nearer_interval[0] < 0.5 < fresh.nearer_interval[1]


def test_mirrored_copies_are_found_by_flips_alone() -> None:
    train, held_out, _ = digits()
    copies = train[:200].unflatten(1, (8, 8)).flip(2).flatten(1)
    shares = []
    for mirrored in (True, False):
        same = limit_of(nearest_in(held_out, [train], 1)[0][:, 0], 0.01)
        real = near_to(train, held_out, same, mirrored)
        shares.append(judged(near_to(train, copies, same, mirrored), real, 0.01).flagged.double().mean().item())
    assert shares[0] == 1 and shares[1] < 0.2
