"""The order of training: a new permutation every epoch, found without storing one."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from twofold.data import ImageOrder, image_order, spread
from twofold.data.order import BalancedOrder, keyed, mix


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**64), epoch=st.integers(0, 10**9))
def test_every_epoch_shows_every_row_once(n: int, seed: int, epoch: int) -> None:
    rows = ImageOrder(n, seed)(np.arange(epoch * n, (epoch + 1) * n))
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(np.sort(rows), np.arange(n))


@given(
    n=st.integers(1, 10**12),
    seed=st.integers(0, 2**32),
    positions=st.lists(st.integers(0, 2**62), min_size=1, max_size=20),
)
def test_any_position_can_be_asked_for_on_its_own(n: int, seed: int, positions: list[int]) -> None:
    order = ImageOrder(n, seed)
    together = order(np.array(positions))
    alone = [int(order(np.array(position))) for position in positions]
    assert together.tolist() == alone
    assert together.min() >= 0 and together.max() < n


def test_shape_is_kept_and_nothing_is_asked_of_nothing() -> None:
    order = ImageOrder(10, 0)
    positions = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(order(positions).ravel(), order(positions.ravel()))
    assert order(np.empty(0, np.int64)).shape == (0,)


def test_epochs_and_seeds_differ() -> None:
    order, n = ImageOrder(1000, 3), 1000
    epochs = order(np.arange(5 * n)).reshape(5, n)
    orders = [*epochs, ImageOrder(n, 4)(np.arange(n)), ImageOrder(n, 3 + 2**32)(np.arange(n)), np.arange(n)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 10  # fixed points of a random permutation: Poisson(1)


def test_it_never_changes() -> None:
    """Resumed runs depend on it."""
    assert ImageOrder(10, 7)(np.arange(20)).tolist() == [9, 5, 3, 7, 1, 8, 2, 0, 6, 4, 2, 5, 4, 6, 7, 3, 0, 9, 1, 8]


@pytest.mark.parametrize("n", [2, 3, 5, 10, 16, 97])
def test_first_and_last_row_are_uniform(n: int) -> None:
    epochs = np.arange(20_000)
    order = ImageOrder(n, 1)
    for position in (0, n - 1):
        seen = np.bincount(order(epochs * n + position), minlength=n)
        assert stats.chisquare(seen).pvalue > 1e-4


def test_all_permutations_of_four_are_equally_likely() -> None:
    rows = ImageOrder(4, 5)(np.arange(4 * 24_000)).reshape(-1, 4)
    seen = np.unique(rows @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(seen) == 24 and stats.chisquare(seen).pvalue > 1e-4


def test_neighbours_are_scattered() -> None:
    n = 10_007
    rows = ImageOrder(n, 2)(np.arange(n)).astype(float)
    for lag in (1, 2, 3, 101):  # 101 is the side of the Feistel network's square
        assert abs(np.corrcoef(rows[:-lag], rows[lag:])[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(rows, np.arange(n))[0, 1]) < 4 / np.sqrt(n)


def test_memory_does_not_depend_on_n() -> None:
    positions = np.arange(100) + 10**13
    ImageOrder(10, 0)(positions)
    tracemalloc.start()
    rows = ImageOrder(10**12, 0)(positions)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000 and len(set(rows.tolist())) == 100


def test_mistakes_of_the_caller() -> None:
    with pytest.raises(ValueError, match="an order of 0 images"):
        ImageOrder(0, 0)
    with pytest.raises(ValueError, match="positions are counted from 0"):
        ImageOrder(3, 0)(np.array([-1]))


def test_mix_is_splitmix64() -> None:
    """The published generator started at 0: mix(k * golden)."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    first = mix(np.array([1, 2, 3], np.uint64) * golden)
    assert [int(value) for value in first] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(seed=st.integers(-(2**70), 2**70), value=st.integers(0, 2**63 - 1))
def test_keyed_takes_any_seed(seed: int, value: int) -> None:
    assert keyed(seed, np.array([value])) == keyed(seed + 2**64, np.array([value]))
    assert keyed(seed, np.array([value])) != keyed(seed + 1, np.array([value]))


# -- against imbalance ------------------------------------------------------------------------------------------------


def imbalanced(counts: list[int], seed: int = 0) -> np.ndarray:
    """Shuffled labels -1, 0, 1, ... that occur so often."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) - 1, counts))


def test_without_balance_it_is_the_plain_order() -> None:
    labels = imbalanced([5, 50, 500])
    positions = np.arange(3000)
    np.testing.assert_array_equal(image_order(labels, 3)(positions), ImageOrder(555, 3)(positions))
    plain = ImageOrder(1000, 7)(np.arange(5))
    assert plain.tolist() == [510, 815, 870, 693, 966]  # trained runs depend on it


@pytest.mark.parametrize("balance", [0.3, 0.5, 1.0])
def test_every_epoch_deals_each_class_its_share(balance: float) -> None:
    counts = np.array([3, 10, 100, 887])
    labels = imbalanced(counts.tolist())
    order = BalancedOrder(labels, 1, balance)
    share = counts ** (1 - balance) / (counts ** (1 - balance)).sum()
    for epoch in range(3):
        rows = order(np.arange(epoch * 1000, (epoch + 1) * 1000))
        seen = np.bincount(labels[rows] + 1, minlength=4)
        assert np.abs(seen - 1000 * share).max() < 1
    if balance == 1:
        assert list(order.quotas.values()) == [250] * 4


def test_classes_are_mixed_evenly_and_images_of_a_class_take_turns() -> None:
    counts = [4, 40, 956]
    labels = imbalanced(counts)
    order = BalancedOrder(labels, 5, 1.0)
    rows = order(np.arange(12_000))
    blocks = (labels[rows].reshape(-1, 120) + 1)[:, :, None] == np.arange(3)
    found = blocks.sum(axis=1)  # 100 blocks of 120 positions: about 40 of each class
    chi_square = ((found - 40) ** 2 / 40).sum() / 200  # per degree of freedom: 1 if drawn at random
    assert 0.6 < chi_square < 1.4
    for label, count in enumerate(counts, -1):
        seen = np.bincount(rows[labels[rows] == label], minlength=1000)[labels == label]
        assert seen.max() - seen.min() <= 2 and seen.sum() == pytest.approx(4000, abs=12), count


def test_any_positions_can_be_asked_for_alone() -> None:
    order = BalancedOrder(imbalanced([7, 70, 300]), 2, 0.7)
    whole = order(np.arange(2000))
    np.testing.assert_array_equal(np.concatenate([order(np.arange(a, a + 250)) for a in range(0, 2000, 250)]), whole)
    np.testing.assert_array_equal(order(np.array([[1999, 3], [700, 3]])), whole[[[1999, 3], [700, 3]]])
    np.testing.assert_array_equal(BalancedOrder(imbalanced([7, 70, 300]), 2, 0.7)(np.arange(2000)), whole)
    assert not np.array_equal(BalancedOrder(imbalanced([7, 70, 300]), 3, 0.7)(np.arange(2000)), whole)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.floats(0.01, 1), st.integers(0, 2**40))
def test_quotas_fill_an_epoch_and_forget_no_class(counts: list[int], balance: float, seed: int) -> None:
    labels = imbalanced(counts)
    order = BalancedOrder(labels, seed, balance)
    assert sum(order.quotas.values()) == len(labels) and min(order.quotas.values()) >= 1
    rows = order(np.arange(len(labels)))
    assert set(labels[rows]) == set(labels) and rows.min() >= 0 and rows.max() < len(labels)


@pytest.mark.parametrize(("labels", "balance"), [([], 0.5), ([1], 0.0), ([1], 1.1)])
def test_orders_that_cannot_be(labels: list[int], balance: float) -> None:
    with pytest.raises(ValueError, match="an order of"):
        BalancedOrder(np.array(labels), 0, balance)


def test_spreading_meets_every_class_where_they_come_in_turn() -> None:
    """Every second of images whose classes come in turn would be of every second class."""
    for n in (5001, 10_000, 50_000, 99_999):
        rows = spread(n, 5000)
        assert len(rows) == 5000 and (np.diff(rows) > 0).all() and 0 <= rows[0] <= rows[-1] < n
        assert (abs(np.bincount(rows % 10, minlength=10) - 500) < 120).all(), n
        assert np.array_equal(rows, spread(n, 5000))
    assert np.array_equal(spread(4999, 5000), np.arange(4999)) and np.array_equal(spread(7, None), np.arange(7))
