"""What belongs to an image comes with it, in a batch, mirrored when the image is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.data import ImageOrder, Item, Store, open_store
from twofold.data.augment import flip, flip_points, mirror_partners
from twofold.data.pack import pack
from twofold.errors import UserError
from twofold.learn.batches import BELONGINGS, U_FLIP, Batches, belongings_of, labels_of
from twofold.settings.data import DataSettings

from ..data.test_packing import Given

ALL = tuple(BELONGINGS)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Images with one bright pixel, which the mask, the pair and the first point mark too."""
    items = []
    for i in range(12):
        y, x = i % 4, (5 * i) % 6
        image = np.zeros((4, 6), np.uint8)
        image[y, x] = 200
        points = np.array([[x, y], [0, 0], [np.nan, np.nan]])
        mask, attributes = (image > 0).astype(np.uint8), (i % 2, -1)
        items.append(Item(str(i), image, i % 2, None, None, attributes, mask, points, image))
    settings = DataSettings(source="given", validation_share=0, test_share=0)
    facts = {"points": ["spot", "corner", "never"], "flip_pairs": [[1, 2]], "attributes": ["odd", "unknown"]}
    pack(Given(items, **facts), settings, tmp_path / "x", lambda: True, None)
    return Store(tmp_path / "x", settings)


def batches(store: Store, flip: bool, **more: object) -> Batches:
    return Batches(store, store.indices("train"), 0, 4, False, flip, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("mirrored", [False, True])
def test_everything_is_mirrored_together(store: Store, mirrored: bool) -> None:
    batch = batches(store, mirrored, belongings=ALL).make(0, 48)
    assert batch.mask is not None and batch.points is not None and batch.pair is not None
    assert batch.mask.dtype == torch.uint8 and batch.points.dtype == torch.float32
    turned = (batch.uniforms[:, U_FLIP] < 0.5) & mirrored
    assert not mirrored or 10 < turned.sum() < 38
    for i in range(48):
        x, y = batch.points[i, 0].int().tolist()
        spot = torch.zeros(4, 6, dtype=torch.bool)
        spot[y, x] = True
        assert torch.equal(batch.images[i, 0] == 200, spot)
        assert torch.equal(batch.mask[i] == 1, spot) and torch.equal(batch.pair[i, 0] == 200, spot)
        corner = batch.points[i, 2 if turned[i] else 1]  # the corner of a mirrored image is its partner
        assert corner.tolist() == [5.0 if turned[i] else 0.0, 0.0]
        assert batch.points[i, 1 if turned[i] else 2].isnan().all()
        assert batch.attributes[i].tolist() == [int(batch.label[i]), -1]


def test_nothing_comes_that_nobody_asked_for(store: Store) -> None:
    batch = batches(store, True).make(0, 4)
    assert batch.attributes is batch.mask is batch.points is batch.pair is None
    parts = list(batches(store, True, belongings=ALL).make(0, 10).split(4))
    whole = batches(store, True, belongings=ALL).make(0, 10)
    assert [len(part.images) for part in parts] == [4, 4, 2]
    for name in ("images", "label", "uniforms", *ALL):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined.nan_to_num(-9), getattr(whole, name).nan_to_num(-9)), name
    assert all(part.noise is None for part in parts) and whole.to(torch.device("cpu")) is whole


def test_several_labels_are_the_attributes(store: Store) -> None:
    batch = batches(store, False, several=True).make(0, 12)
    assert batch.label.dtype == torch.int64 and batch.label.shape == (12, 2)
    rows = batches(store, False).rows_at(0, 12)
    np.testing.assert_array_equal(batch.label.numpy(), store.attributes[rows])
    digits = open_store(DataSettings(source="digits"))
    assert labels_of(digits, np.arange(3), several=True).tolist() == [0, 1, 2]  # one label: as it is


def test_what_a_store_does_not_have(store: Store) -> None:
    digits = open_store(DataSettings(source="digits"))
    with pytest.raises(UserError, match="^data=digits: its images have no mask; give data that have it$"):
        belongings_of(digits, np.arange(2), ["mask"])
    with pytest.raises(UserError, match="its images have no pair"):
        batches(digits, False, belongings=("pair",))
    store.flip_pairs = None
    batches(store, False, belongings=ALL)
    with pytest.raises(UserError, match=r"^data.flip=true: the points that a mirror exchanges .* are not known"):
        batches(store, True, belongings=ALL)


@given(st.integers(1, 12), st.randoms(use_true_random=False))
def test_a_mirror_twice_is_nothing(count: int, random: object) -> None:
    places = list(range(count))
    random.shuffle(places)  # type: ignore[attr-defined]
    pairs = [places[i : i + 2] for i in range(0, random.randint(0, count // 2) * 2, 2)]  # type: ignore[attr-defined]
    partner = mirror_partners(count, pairs)
    points = torch.randint(-20, 20, (3, count, 2)).float()
    once, always = flip_points(points, torch.zeros(3), 9, partner), torch.zeros(3)
    assert torch.equal(flip_points(once, always, 9, partner), points)
    assert torch.equal(flip_points(points, torch.ones(3), 9, partner), points)
    mask = torch.randint(0, 5, (3, 4, 9))
    assert torch.equal(flip(flip(mask, always), always), mask)


@pytest.mark.parametrize("pairs", [[[0, 3]], [[0, 1], [1, 2]], [[1, 1]], [[0, 1, 2]], [[-1, 0]]])
def test_pairs_that_are_no_mirror(pairs: list[list[int]]) -> None:
    with pytest.raises(UserError, match="^data.flip_pairs: "):
        mirror_partners(3, pairs)


def test_balance_changes_the_order_and_nothing_else() -> None:
    store = open_store(DataSettings(source="digits", balance=1.0))
    rows = store.indices("train")
    rows = np.concatenate([rows[store.labels[rows] != 3], rows[store.labels[rows] == 3][:5]])
    balanced = Batches(store, rows, 7, 4, True, False)
    found = np.bincount(store.labels[balanced.rows_at(0, len(rows))], minlength=10)
    assert found.max() - found.min() <= 1
    plain = Batches(open_store(DataSettings(source="digits")), rows, 7, 4, True, False)
    np.testing.assert_array_equal(plain.rows_at(3, 400), rows[ImageOrder(len(rows), 7)(np.arange(3, 400))])
    one, other = balanced.make(40, 44), plain.make(40, 44)
    assert torch.equal(one.uniforms, other.uniforms) and torch.equal(one.noise, other.noise)


def test_balance_needs_classes(tmp_path: Path) -> None:
    settings = DataSettings(source="given", balance=0.5)
    source = Given([Item(str(i), np.full((2, 2), i, np.uint8), -1, None) for i in range(9)])
    source.classes = list  # type: ignore[method-assign]
    pack(source, settings, tmp_path / "x", lambda: True, None)
    with pytest.raises(UserError, match=r"^data.balance=0.5: the data has no classes; leave it at 0$"):
        batches(Store(tmp_path / "x", settings), False)
