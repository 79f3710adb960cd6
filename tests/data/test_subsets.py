"""Few labels: chosen, saved, read again; the published format and our own; one line for every mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from twofold.data import Store, labels_csv, open_store
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from .conftest import pixels

Put = Callable[..., Path]


@pytest.fixture
def wnids(put: Put) -> DataSettings:
    """Two classes named as in ImageNet, 10 training images each, 2 validation images."""
    for name in ("n01", "n02"):
        for i in range(10):
            put(f"x/train/{name}/{name}_{i}.JPEG", pixels(i, 4, 4))
        put(f"x/val/{name}/{name}_v.JPEG", pixels(99, 4, 4))
    return DataSettings(source="x", test_share=0)


def store_with(settings: DataSettings, **values: object) -> Store:
    return open_store(settings.model_copy(update=values))


def labelled(store: Store) -> list[str]:
    return [store.id(row) for row in store.indices("train") if store.labels[row] >= 0]


def test_k_of_each_class_keep_their_label_and_no_validation_label_is_lost(wnids: DataSettings) -> None:
    found = {k: store_with(wnids, labels_per_class=k) for k in (1, 2, 5)}
    for k, store in found.items():
        train, validation = store.indices("train"), store.indices("validation")
        assert np.bincount(store.labels[train] + 1).tolist() == [20 - 2 * k, k, k]
        np.testing.assert_array_equal(store.labels[validation], store.all_labels[validation])
        known = store.labels >= 0
        np.testing.assert_array_equal(store.labels[known], store.all_labels[known])
    assert set(labelled(found[1])) < set(labelled(found[2])) < set(labelled(found[5]))  # nested
    assert labelled(store_with(wnids, labels_per_class=2)) == labelled(found[2])
    assert labelled(store_with(wnids, labels_per_class=2, labels_seed=1)) != labelled(found[2])
    assert found[1].folder == found[2].folder and found[1].content_hash == found[2].content_hash
    with pytest.raises(UserError, match="=11: the smallest class has 10 training images; ask for at most 10$"):
        _ = store_with(wnids, labels_per_class=11).labels


def test_the_published_format_and_our_own_say_the_same(wnids: DataSettings, put: Put) -> None:
    store = store_with(wnids)
    chosen = [row for row in store.indices("train") if store.id(row).endswith(("_3.JPEG", "_7.JPEG"))]
    put("dpt.txt", "\n".join(store.id(row).rpartition("/")[2] for row in chosen[::-1]).encode() + b"\n\n")
    put("own.csv", labels_csv(store, np.array(chosen)).encode())
    put("sheet.csv", b"\xef\xbb\xbf" + labels_csv(store, np.array(chosen)).encode())  # as spreadsheets write it
    put("numbers.csv", b"id, label\n" + b"".join(f"{store.id(r)},{store.labels[r]}\n".encode() for r in chosen))
    expected = store.labels.copy()
    expected[np.setdiff1d(store.indices("train"), chosen)] = -1
    for file in ("dpt.txt", "own.csv", "sheet.csv", "numbers.csv"):
        np.testing.assert_array_equal(store_with(wnids, labels=file).labels, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01_1.JPEG\nn01_77.JPEG", "f.txt line 2: the data has no image n01_77.JPEG; its images are called like n01_"),
        ("n01_1.JPEG\n\nn01_1.JPEG", "f.txt line 3: n01_1.JPEG is there already, in line 1; remove one"),
        ("n01_v.JPEG", "f.txt line 1: n01_v.JPEG is a validation image; list training images only"),
        ("hello", "f.txt line 1: 'hello' names no class before an underscore; write n04235860_14959.JPEG"),
        ("", "f.txt: this label file names no image; list some"),
        ("id,class\n", "f.txt: this label file names no image; list some"),
        ("id,clas\nx,y", "f.txt: its columns are id, clas; give it the columns id, and class or label"),
        ("id,class\ntrain/n01/n01_1.JPEG,n03", r"f.txt line 2: there is no class 'n03'; did you mean 'n0"),
        ("id,label\ntrain/n01/n01_1.JPEG,2", "f.txt line 2: there is no label 2; labels are 0 to 1"),
        ("id,label\ntrain/n01/n01_1.JPEG,--1", "f.txt line 2: there is no class '--1'"),
        ("id,class\nn01_1.JPEG,n01", "f.txt line 2: the data has no image n01_1.JPEG; its images are called"),
    ],
)
def test_mistakes_in_label_files(wnids: DataSettings, put: Put, text: str, message: str) -> None:
    put("f.txt", text.encode() or b"\n")
    with pytest.raises(UserError) as caught:
        _ = store_with(wnids, labels="f.txt").labels
    assert str(caught.value).startswith(message), str(caught.value)


def test_names_that_are_not_unique_or_not_there(wnids: DataSettings, put: Put) -> None:
    put("x/train/n02/deep/n01_1.JPEG", pixels(5, 4, 4)), put("f.txt", b"n01_1.JPEG")
    with pytest.raises(UserError, match=r"line 1: n01_1.JPEG may be train/n01/n01_1.JPEG and train/n02/deep/n01_1"):
        _ = store_with(wnids, labels="f.txt").labels
    put("x/val/n01/n01_2.JPEG", pixels(6, 4, 4)), put("f.txt", b"n01_2.JPEG")  # the same name, and not for training
    assert labelled(store_with(wnids, labels="f.txt")) == ["train/n01/n01_2.JPEG"]
    with pytest.raises(UserError, match="^data.labels=gone.txt: cannot be read"):
        _ = store_with(wnids, labels="gone.txt").labels
    put("g.txt", b"\xff\xfe\x00")
    with pytest.raises(UserError, match="^data.labels=g.txt: is not a text file"):
        _ = store_with(wnids, labels="g.txt").labels
    with pytest.raises(ValidationError, match="keep one of them"):
        DataSettings(source="x", labels="f.txt", labels_per_class=3)
