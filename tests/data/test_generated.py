"""Generated images beside a source: with their labels, for training only, and nothing else of the data changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.cli.main import main
from twofold.data import SPLITS, Store, describe, fingerprint, labels_csv, open_source, open_store
from twofold.data.order import SharedOrder
from twofold.errors import UserError
from twofold.learn.batches import Batches, training_batches
from twofold.settings.data import DataSettings
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .conftest import pixels

Put = Callable[..., Path]


def settings(**values: Any) -> DataSettings:
    return DataSettings(**{"source": "x", "generated": "g", **values})


def error(**values: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_store(settings(**values))
    return str(caught.value)


@pytest.fixture
def two(put: Put) -> None:
    """x: 40 images of ant and bee. g: 12 others, of bee and ant."""
    for i in range(20):
        put(f"x/ant/{i:02}.png", pixels(i, 4, 6)), put(f"x/bee/{i:02}.png", pixels(100 + i, 4, 6))
    for i in range(6):
        put(f"g/ant/{i}.png", pixels(200 + i, 4, 6)), put(f"g/bee/{i}.png", pixels(300 + i, 4, 6))


@pytest.mark.usefixtures("two")
def test_they_join_the_training_part_with_their_labels() -> None:
    store, alone = open_store(settings()), open_store(DataSettings(source="x"))
    assert (len(store), store.n_own, store.n_generated, alone.n_generated) == (52, 40, 12, 0)
    np.testing.assert_array_equal(store.images[:40], alone.images)
    np.testing.assert_array_equal(store.codes[:40], alone.codes)
    assert (store.codes[40:] == SPLITS.index("train")).all()
    assert store.labels[40:].tolist() == [0] * 6 + [1] * 6
    assert [store.id(i) for i in (40, 51)] == ["generated:ant/0.png", "generated:bee/5.png"]
    assert store.content_hash != alone.content_hash and store.classes == ["ant", "bee"]
    assert store.meta["generated"] == {"source": "g", "images": 12} and "generated" not in alone.meta
    assert describe(store)["joined"] is None


@pytest.mark.usefixtures("two")
def test_few_labels_are_those_of_real_images_and_generated_ones_keep_theirs(put: Put) -> None:
    few, alone = settings(labels_per_class=3), DataSettings(source="x", labels_per_class=3)
    store, without = open_store(few), open_store(alone)
    np.testing.assert_array_equal(store.labels[:40], without.labels)
    assert store.labels[40:].tolist() == [0] * 6 + [1] * 6
    rows = without.indices("train")[[0, -1]]
    put("few.csv", labels_csv(without, rows).encode())
    listed = open_store(settings(labels="few.csv"))
    train = listed.indices("train")
    assert np.flatnonzero(listed.labels[train] >= 0).size == 2 + 12
    assert listed.confidences is not None and listed.confidences[40:].tolist() == [1.0] * 12


@pytest.mark.usefixtures("two")
def test_beside_unlabelled_images(put: Put) -> None:
    for i in range(5):
        put(f"u/{i}.png", pixels(400 + i, 4, 6))
    store = open_store(settings(unlabelled="u", labels_per_class=2))
    assert (len(store), store.n_own, store.n_generated) == (57, 40, 12)
    assert (store.labels[40:45] == -1).all() and store.labels[45:].tolist() == [0] * 6 + [1] * 6
    assert store.id(40).startswith("unlabelled:") and store.id(45).startswith("generated:")
    assert describe(store)["joined"] == {"source": "u", "images": 5, "held_out": 0}
    ids = [item.id for item in open_source(settings(unlabelled="u")).items()]
    for start, stop in [(0, 40), (38, 46), (44, 47), (45, None), (57, None), (50, 52)]:
        assert [item.id for item in open_source(settings(unlabelled="u")).items(start, stop)] == ids[start:stop]
    assert main(["data", "describe", "x", "unlabelled=u", "generated=g"]) == 0


@pytest.mark.usefixtures("two")
def test_alone_nothing_has_changed_and_either_source_changes_the_store(put: Put) -> None:
    prints = {fingerprint(DataSettings(source="x")), fingerprint(settings()), fingerprint(settings(unlabelled="g"))}
    put("g/bee/9.png", pixels(999, 4, 6))
    assert len({*prints, fingerprint(settings())}) == 4
    assert fingerprint(settings()) != fingerprint(DataSettings(source="x", unlabelled="g"))


@pytest.mark.usefixtures("two")
def test_one_that_is_held_out_is_neither_trained_on_nor_tested_with(put: Put) -> None:
    alone = open_store(DataSettings(source="x"))
    put("g/bee/same.png", alone.images[int(alone.indices("test")[0]), 0])
    store = open_store(settings(labels_per_class=3))
    assert store.id(52) == "generated:bee/same.png"
    assert store.codes[52] == SPLITS.index("test") and store.labels[52] == -1
    np.testing.assert_array_equal(store.labels[alone.indices("test")], alone.labels[alone.indices("test")])


@pytest.mark.usefixtures("two")
def test_classes_by_number_where_names_are_others(put: Put) -> None:
    os.rename("g/ant", "g/1"), os.rename("g/bee", "g/0")
    assert open_store(settings()).labels[40:].tolist() == [1] * 0 + [0] * 6 + [1] * 6
    images = np.stack([pixels(i, 4, 6) for i in range(500, 504)])
    np.savez("g.npz", images=images, labels=np.array([1, 0, 1, -1]))
    store = open_store(settings(generated="g.npz"))
    assert store.labels[40:].tolist() == [1, 0, 1, -1]
    np.testing.assert_array_equal(store.images[40:, 0], images)
    os.rename("g/0", "g/2")
    assert error().startswith("data.generated=g: data=x has no class '1'")


@pytest.mark.usefixtures("two")
def test_classes_may_be_those_of_a_label_file(put: Put) -> None:
    for i in range(20):
        put(f"bare/{i:02}.png", pixels(i, 4, 6))
    Path("mine.csv").write_text("id,class\n00.png,cat\n01.png,bee\n02.png,ant\n")
    store = open_store(settings(source="bare", labels="mine.csv"))
    assert store.classes == ["ant", "bee", "cat"] and store.n_generated == 12
    assert store.labels[:3].tolist() == [2, 1, 0] and store.labels[20:].tolist() == [0] * 6 + [1] * 6
    Path("mine.csv").write_text("id,class\n00.png,wasp\n01.png,bee\n02.png,ant\n03.png,aardvark\n")
    store = open_store(settings(source="bare", labels="mine.csv"))  # the same store, whose classes are others now
    assert store.labels[20:].tolist() == [1] * 6 + [2] * 6
    os.rename("g/ant", "g/antt")
    with pytest.raises(UserError, match=r"data.generated=g: data.labels=mine.csv has no class 'antt'; did you .*'ant'"):
        _ = open_store(settings(source="bare", labels="mine.csv")).labels
    with pytest.raises(UserError, match=r"data.generated=g: data=bare has no classes; .*data.labels=FILE"):
        _ = open_store(settings(source="bare")).labels


@pytest.mark.usefixtures("two")
def test_what_does_not_go_together_is_told(put: Put) -> None:
    os.rename("g/ant", "g/antt")
    assert error() == "data.generated=g: data=x has no class 'antt'; did you mean 'ant'?"
    for i in range(3):
        put(f"bare/{i}.png", pixels(i, 4, 6)), put(f"big/ant/{i}.png", pixels(i, 8, 8))
    assert error(generated="bare").startswith("data.generated=bare: its images have no labels")
    assert error(source="bare", generated="big").startswith("data.generated=big: data=bare has no classes")
    assert "8x8" in error(generated="big") and "data.size" in error(generated="big")
    assert error(generated="nowhere").startswith("data.generated=nowhere: there is no such file or folder")


@pytest.mark.usefixtures("two")
def test_what_sample_writes_is_taken_as_it_is(put: Put) -> None:
    """Beside the images there are a manifest and a grid; the .npz file holds the same, if there is one."""
    os.mkdir("made"), os.rename("g", "made/images")
    put("made/grid.png", pixels(1, 50, 50)), put("made/manifest.json", b'{"complete": true}')
    assert open_store(settings(generated="made")).labels[40:].tolist() == [0] * 6 + [1] * 6
    names = {"classes": np.array(["bee", "ant"])}
    np.savez("made/images.npz", arr_0=np.stack([pixels(7, 4, 6), pixels(8, 4, 6)]), arr_1=np.array([0, 1]), **names)
    assert open_store(settings(generated="made")).labels[40:].tolist() == [1, 0]
    put("made/manifest.json", b'{"complete": false}')
    assert error(generated="made").startswith("data.generated=made: these images are not all there yet")


# -- training -------------------------------------------------------------------------------------------------------


def batches(kind: str, **objective: Any) -> tuple[Store, Batches]:
    network = {"kind": "wrn", "depth": 10, "width": 1}
    own = {"data": settings(labels_per_class=2).model_dump(), "network": network, "train": {"batch_size": 8}}
    own["objective"] = {"kind": kind, **objective}
    made = resolve(TrainSettings, [("test", own)])[0]
    store = open_store(made.data)
    return store, training_batches(made, store, 30, False, 0)


@pytest.mark.usefixtures("two")
def test_freematch_draws_real_images_and_labels_of_both() -> None:
    store, made = batches("freematch", labelled_batch=4)
    assert made.rows.max() < 40 and len(made.rows) == len(store.indices("train")) - 12
    rows, label = made._further(0, 2 * 16 * 10)
    named = rows[(label >= 0).numpy()]
    assert np.bincount(named, minlength=52)[store.labels >= 0].max() <= 11
    assert sorted(set(named.tolist())) == [i for i in store.indices("train").tolist() if store.labels[i] >= 0]
    assert len(set(named.tolist())) == 4 + 12
    assert batches("supervised")[1].rows.max() == 51


@pytest.mark.usefixtures("two")
def test_freematch_can_draw_a_share_of_real_labels() -> None:
    _, made = batches("freematch", labelled_batch=4, real_share=0.75)
    rows, label = made._further(0, 2 * 400)
    named = rows[(label >= 0).numpy()]
    assert (named < 40).sum() == 300
    counts = np.bincount(named, minlength=52)
    assert set(counts[counts > 0].tolist()) <= {75, 8, 9}


@given(
    st.integers(1, 20),
    st.integers(1, 30),
    st.floats(0.01, 1.0),
    st.integers(0, 500),
    st.integers(1, 60),
)
def test_a_shared_order_goes_round_both_kinds(first: int, others: int, share: float, start: int, length: int) -> None:
    order = SharedOrder(first + others, first, 3, share)
    every = order(np.arange(start + length))
    np.testing.assert_array_equal(order(np.arange(start, start + length)), every[start:])
    real = every[every < first]
    assert abs(len(real) - share * len(every)) <= 1
    for rows, low, n in ((real, 0, first), (every[every >= first], first, others)):
        for epoch in range(len(rows) // n):
            assert sorted(rows[epoch * n : (epoch + 1) * n]) == list(range(low, low + n))


@pytest.mark.parametrize(("n", "first", "share"), [(4, 0, 0.5), (4, 4, 0.5), (4, 2, 0.0), (4, 2, 1.5)])
def test_a_shared_order_needs_both(n: int, first: int, share: float) -> None:
    with pytest.raises(ValueError, match="a share of"):
        SharedOrder(n, first, 0, share)
