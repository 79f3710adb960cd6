"""Splits: complete, disjoint, stratified within one image, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from twofold.data.duplicates import across, components
from twofold.data.items import SPLITS
from twofold.data.split import NONE, TEST, TRAIN, VALIDATION, assign, split_key, stratify, stratify_groups
from twofold.settings.data import DataSettings

SHARES = st.floats(0, 0.49).map(lambda share: round(share, 3))
CLASS_SIZES = st.lists(st.integers(0, 40), max_size=12)


def settings(**values: object) -> DataSettings:
    return DataSettings(source="x", **values)


def labels_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Shuffled labels -1, 0, 1, ... that occur so often."""
    labels = np.repeat(np.arange(len(sizes)) - 1, sizes)
    return np.random.default_rng(seed).permutation(labels).astype(np.int64)


@given(sizes=CLASS_SIZES, validation=SHARES, test=SHARES, seed=st.integers(0, 2**62))
def test_every_class_is_split_by_the_shares(sizes: list[int], validation: float, test: float, seed: int) -> None:
    labels = labels_of(sizes)
    parts = stratify(labels, (1 - validation - test, validation, test), seed)
    assert parts.shape == labels.shape and set(parts) <= {0, 1, 2}  # complete and disjoint
    for label, size in zip(range(-1, len(sizes) - 1), sizes, strict=True):
        counts = np.bincount(parts[labels == label], minlength=3)
        assert np.abs(counts - size * np.array([1 - validation - test, validation, test])).max() < 1 + 1e-6
        assert counts[0] > 0 or size == 0


@given(sizes=CLASS_SIZES, seed=st.integers(0, 1000))
def test_it_is_the_same_every_time(sizes: list[int], seed: int) -> None:
    labels, shares = labels_of(sizes), (0.7, 0.1, 0.2)
    np.testing.assert_array_equal(stratify(labels, shares, seed), stratify(labels.copy(), shares, seed))


def test_it_never_changes() -> None:
    """Stored results depend on it: a change of the rule needs a new VERSION."""
    parts = stratify(np.arange(20) % 3, (0.6, 0.2, 0.2), 7)
    assert "".join(map(str, parts)) == "12010221100000002000"


@pytest.mark.parametrize(("size", "classes"), [(1, 1000), (2, 500), (3, 400), (7, 100)])
def test_many_tiny_classes_still_give_every_part_its_share(size: int, classes: int) -> None:
    counts = np.bincount(stratify(labels_of([size] * classes), (0.7, 0.1, 0.2), 0), minlength=3)
    if size == 1:
        assert counts.tolist() == [classes, 0, 0]  # the only image of a class is trained on
    else:
        expected = size * classes * np.array([0.7, 0.1, 0.2])
        assert np.abs(counts - expected).max() <= 3


def test_seeds_and_members_are_random() -> None:
    labels = labels_of([0] + [100] * 20)
    shares = (0.7, 0.1, 0.2)
    drawn = np.array([stratify(labels, shares, seed) == 2 for seed in range(200)])
    often = drawn.sum(axis=0)  # how often each of 2000 images is in the last part: Binomial(200, 0.2), about
    assert abs(often.mean() - 40) < 1e-9
    assert np.sqrt(((often - 40) ** 2).mean()) == pytest.approx(np.sqrt(200 * 0.2 * 0.8), rel=0.1)
    assert often.min() > 12 and often.max() < 70


# -- with what the source names itself --------------------------------------------------------------------------------


def test_without_own_splits_all_images_are_split() -> None:
    codes = assign(np.full(100, NONE, np.int8), np.zeros(100, np.int64), settings())
    assert codes.dtype == np.int8 and np.bincount(codes).tolist() == [70, 10, 20]


def test_train_and_test_get_their_validation_out_of_train() -> None:
    own = np.repeat(np.array([TRAIN, TEST], np.int8), [100, 50])
    labels = np.tile(np.arange(10), 15)
    codes = assign(own, labels, settings(validation_share=0.2))
    np.testing.assert_array_equal(codes[100:], TEST)
    assert np.bincount(codes[:100], minlength=3).tolist() == [80, 20, 0]
    assert np.bincount(labels[codes == VALIDATION]).tolist() == [2] * 10


def test_only_train_gives_up_both() -> None:
    codes = assign(np.zeros(100, np.int8), np.full(100, -1), settings())
    assert np.bincount(codes).tolist() == [70, 10, 20]


def test_own_splits_are_kept() -> None:
    own = np.array([TRAIN, VALIDATION, TEST] * 20, np.int8)
    np.testing.assert_array_equal(assign(own, np.zeros(60, np.int64), settings()), own)
    only_test = np.full(5, TEST, np.int8)
    np.testing.assert_array_equal(assign(only_test, np.zeros(5, np.int64), settings()), only_test)


def test_a_share_of_zero_holds_nothing_out() -> None:
    codes = assign(np.full(50, NONE, np.int8), np.zeros(50, np.int64), settings(validation_share=0, test_share=0))
    assert (codes == TRAIN).all()


def test_key_follows_the_split_settings_only() -> None:
    keys = {
        split_key(settings(**values)) for values in ({}, {"split_seed": 1}, {"test_share": 0.25}, {"test_share": 0})
    }
    assert len(keys) == 4
    assert split_key(settings(size=8, flip=True)) == split_key(settings())
    assert SPLITS == ("train", "validation", "test")


# -- the settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (32, (32, 32)),
        ("32", (32, 32)),
        ("32x48", (32, 48)),
        (" 32 X 48 ", (32, 48)),
        ([32, 48], (32, 48)),
        (None, None),
    ],
)
def test_size_as_people_write_it(value: object, size: tuple[int, int] | None) -> None:
    assert settings(size=value).size == size
    assert settings(**settings(size=value).model_dump(exclude={"source"})).size == size


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("32px", "'32px' is not a size; write 32, or height x width such as 32x48"),
        ([1, 2, 3], r"\[1, 2, 3\] is not a size"),
        (True, "True is not a size"),
        (0, "0x0 is out of range; each side is 1 to 4096 pixels"),
        ("64x9999", "64x9999 is out of range"),
    ],
)
def test_sizes_that_are_none(value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(size=value)


def test_shares_must_leave_something_to_train_on() -> None:
    with pytest.raises(ValidationError, match=r"validation_share 0\.5 and test_share 0\.5 leave nothing to train on"):
        settings(validation_share=0.5, test_share=0.5)


def test_a_bare_string_is_the_source() -> None:
    assert DataSettings.model_validate("photos/").source == "photos/"


# -- what belongs together --------------------------------------------------------------------------------------------


def component_of(groups: list[int]) -> np.ndarray:
    """The first row with each row's number."""
    return np.array([groups.index(group) for group in groups], np.int64)


def test_duplicates_follow_the_first_and_leave_all_others_where_they_are() -> None:
    labels = labels_of([0, 100, 100])
    own = np.full(200, NONE, np.int8)
    plain = assign(own, labels, settings())
    alone = np.arange(200)
    np.testing.assert_array_equal(assign(own, labels, settings(), alone), plain)
    component = alone.copy()
    component[[50, 120, 199]] = 7
    found = assign(own, labels, settings(), component)
    assert len(set(found[[7, 50, 120, 199]])) == 1 and found[7] == plain[7]
    others = np.setdiff1d(alone, [50, 120, 199])
    np.testing.assert_array_equal(found[others], plain[others])


def test_duplicates_of_a_source_with_own_splits_stay_where_it_put_them() -> None:
    own = np.repeat(np.array([TRAIN, TEST], np.int8), [100, 50])
    component = np.arange(150)
    component[[5, 120]] = 3  # rows 3 and 5 train, 120 test
    codes = assign(own, np.zeros(150, np.int64), settings(), component)
    assert codes[120] == TEST and codes[3] == codes[5] != TEST


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=40), classes=st.integers(1, 5), validation=SHARES,
    test=SHARES, seed=st.integers(0, 2**62),
)  # fmt: skip
def test_groups_stay_whole_and_the_shares_are_met_nearly(
    sizes: list[int], classes: int, validation: float, test: float, seed: int
) -> None:
    rng = np.random.default_rng(seed % 2**32)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).tolist()
    labels = rng.integers(-1, classes, len(groups))
    shares = np.array([1 - validation - test, validation, test])
    together = component_of(groups)
    parts = stratify_groups(labels, together, tuple(shares), seed)
    assert set(parts) <= {0, 1, 2}
    for first in set(together):
        assert len(set(parts[together == first])) == 1
    assert (np.bincount(parts, minlength=3)[shares == 0] == 0).all()
    np.testing.assert_array_equal(parts, stratify_groups(labels, together, tuple(shares), seed))


@pytest.mark.parametrize("seed", range(5))
def test_many_groups_meet_the_shares_of_every_class(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 20, 200)
    groups = np.repeat(np.arange(200), sizes)
    labels = np.repeat(rng.integers(0, 4, 200), sizes)  # a person's images are of one class
    shares = (0.7, 0.1, 0.2)
    parts = stratify_groups(labels, component_of(groups.tolist()), shares, seed)
    for label in range(4):
        counts = np.bincount(parts[labels == label], minlength=3)
        assert np.abs(counts - counts.sum() * np.array(shares)).max() <= 10  # half of the largest group
    other = stratify_groups(labels, component_of(groups.tolist()), shares, seed + 1)
    assert (parts != other).mean() > 0.1


def test_single_rows_make_up_for_what_a_large_group_has_spoilt() -> None:
    groups = [0] * 40 + list(range(1, 61))
    parts = stratify_groups(np.zeros(100, np.int64), component_of(groups), (0.5, 0.2, 0.3), 0)
    assert len(set(parts[:40])) == 1 and np.bincount(parts).tolist() == [50, 20, 30]


def test_a_group_of_everything_is_trained_on() -> None:
    assert stratify_groups(np.arange(9) % 3, np.zeros(9, np.int64), (0.7, 0.1, 0.2), 0).tolist() == [0] * 9


def test_components_join_groups_by_duplicates() -> None:
    hashes = np.array([[1, 0], [2, 0], [3, 0], [1, 0], [4, 0], [5, 0], [1, 1]], np.uint64)
    np.testing.assert_array_equal(components(hashes, None), [0, 1, 2, 0, 4, 5, 6])
    groups = np.array([7, 8, 8, 9, 9, -1, -1])
    np.testing.assert_array_equal(components(hashes, groups), [0, 1, 1, 0, 0, 5, 6])
    codes = np.array([0, 0, 1, 0, 2, 0, 0])
    np.testing.assert_array_equal(across(components(hashes, groups), codes), [0, 1])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(-1, 6)), min_size=1, max_size=30))
def test_components_are_what_a_walk_finds(rows: list[tuple[int, int]]) -> None:
    hashes = np.array([[image, 0] for image, _ in rows], np.uint64)
    found = components(hashes, np.array([group for _, group in rows]))
    for start in range(len(rows)):
        reached, grown = {start}, True
        while grown:
            more = {
                j for j, (image, group) in enumerate(rows) for i in reached
                if image == rows[i][0] or (group >= 0 and group == rows[i][1])
            }  # fmt: skip
            grown, reached = not more <= reached, reached | more
        assert found[start] == min(reached)
