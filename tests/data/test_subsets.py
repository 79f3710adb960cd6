"""Few labels: chosen, saved, read again; the published format and our own; one line for every mistake."""

from __future__ import annotations

import hashlib
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from twofold.data import Store, labels_csv, open_store, write_labels
from twofold.data.subsets import labelling_from
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from .conftest import pixels

Put = Callable[..., Path]
ONE = "train/n01/n01_1.JPEG"


@pytest.fixture
def wnids(put: Put) -> DataSettings:
    """Two classes named as in ImageNet, 10 training images each, 2 validation images."""
    for name in ("n01", "n02"):
        for i in range(10):
            put(f"x/train/{name}/{name}_{i}.JPEG", pixels(i, 4, 4))
        put(f"x/val/{name}/{name}_v.JPEG", pixels(99, 4, 4))
    return DataSettings(source="x", test_share=0)


class Many:
    """Of a store of n training images, what a label file needs."""

    classes = own_classes = ["one"]

    def __init__(self, n: int) -> None:
        self.n_own, self.codes, self.all_labels = n, np.zeros(n, np.int8), np.full(n, -1)

    def id(self, i: int) -> str:
        return f"photos/number-{i:08}.png"


class Odd(Many):
    def id(self, i: int) -> str:
        return os.fsdecode(b"b\xff.png")


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
        (
            "hello",
            "f.txt line 1: 'hello' names no class before an underscore; a CSV file begins with the line id,class",
        ),
        ("", "f.txt: this label file names no image; list some"),
        ("id,class\n", "f.txt: this label file names no image; list some"),
        ("id,clas\nx,y", "f.txt: its columns are id, clas; give it the columns id, and class or label"),
        ("id,class\ntrain/n01/n01_1.JPEG,n03", r"f.txt line 2: there is no class 'n03'; did you mean 'n0"),
        ("id,label\ntrain/n01/n01_1.JPEG,2", "f.txt line 2: there is no label 2; labels are 0 to 1"),
        ("id,label\ntrain/n01/n01_1.JPEG,--1", "f.txt line 2: there is no class '--1'"),
        ("id,class\nn01_1.JPEG,n01", "f.txt line 2: the data has no image n01_1.JPEG; its images are called"),
        ("id,class\ntrain/n01/n01_1.JPEG,", "f.txt: none of its images has a class; name the classes of some"),
        ("id,label\ntrain/n01/n01_1.JPEG,-1", "f.txt: none of its images has a class; name the classes of some"),
        (f"id,class\n{ONE},n01\n{ONE},n01", f"f.txt line 3: {ONE} is there already, in line 2; remove one"),
        (
            f"id,class\n{ONE},n01\n{ONE},n02",
            f"f.txt line 3: {ONE} is there already, in line 2, as n01; keep the right one",
        ),
        (f"id,class\n{ONE},\n{ONE},n02", f"f.txt line 3: {ONE} is there already, in line 2; remove one"),
        (
            f"id,class,confidence\n{ONE},n01,often",
            "f.txt line 2: 'often' is no confidence; give a number from 0 to 1, or nothing for certain",
        ),
        (f"id,class,confidence\n{ONE},n01,1.5", "f.txt line 2: '1.5' is no confidence; give a number from 0 to 1"),
        (f"id,class,confidence\n{ONE},n01,nan", "f.txt line 2: 'nan' is no confidence; give a number from 0 to 1"),
        (
            f"id,class\n{ONE},n01,0.3",
            "f.txt line 2: has 3 cells, but the header names 2 columns; put a name that contains a comma in quotes",
        ),
        (
            'id,class\n"' + 140_000 * "a",
            "f.txt line 2: is no CSV (field larger than field limit (131072)); write",
        ),
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


# -- confidences -----------------------------------------------------------------------------------------------------


def test_confidences_are_read_and_count_as_what_is_learned(wnids: DataSettings, put: Put) -> None:
    lines = [f"{ONE},n02,0.25", "train/n01/n01_2.JPEG,n01,", "train/n02/n02_3.JPEG,n02,0", "train/n02/n02_4.JPEG,,0.5"]
    put("sure.csv", "\n".join(["id,class,confidence", *lines]).encode())
    store = store_with(wnids, labels="sure.csv")
    found = store.confidences
    assert found is not None and found.dtype == np.float32
    told = {store.id(row): (store.labels[row], found[row]) for row in store.indices("train") if store.labels[row] >= 0}
    assert told == {ONE: (1, 0.25), "train/n01/n01_2.JPEG": (0, 1), "train/n02/n02_3.JPEG": (1, 0)}
    assert (found[store.indices("validation")] == 1).all()  # their labels are the data's own
    assert (found[store.labels < 0] == 0).all()
    assert store_with(wnids).confidences is None
    assert store_with(wnids, labels_per_class=1).confidences is None

    hashes = {store.training_hash}
    for text in ("0.5", "1"):
        put("sure.csv", "\n".join(["id,class,confidence", *lines]).replace("0.25", text).encode())
        hashes.add(store_with(wnids, labels="sure.csv").training_hash)
    assert len(hashes) == 3


def test_a_label_file_without_confidences_is_what_it_was(wnids: DataSettings, put: Put) -> None:
    """Runs on such files go on: what they were trained on has kept its name."""
    put("few.csv", f"id,class\n{ONE},n02\n".encode())
    store = store_with(wnids, labels="few.csv")
    assert store.confidences is not None and set(store.confidences[store.labels >= 0]) == {1}
    old = hashlib.sha256(store.content_hash.encode() + store.labels.tobytes()).hexdigest()
    assert store.training_hash == old


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 14))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_is_read_again(wnids: DataSettings, here: Path, seed: int, n: int) -> None:
    random, store = np.random.default_rng(seed), store_with(wnids)
    rows = random.permutation(store.indices("train"))[:n]
    labels, confidences = random.integers(0, 2, n), random.random(n, np.float32)
    confidences[0] = np.float32(seed % 2)
    write_labels(here / "new.csv", store, rows, labels, confidences)
    again = store_with(wnids, labels="new.csv")
    assert again.confidences is not None
    np.testing.assert_array_equal(again.labels[rows], labels)
    np.testing.assert_array_equal(again.confidences[rows], confidences)
    assert (again.labels[again.indices("train")] >= 0).sum() == n
    write_labels(here / "new.csv", store, rows, labels)
    assert (here / "new.csv").read_text().startswith("id,class\n")
    with pytest.raises(ValueError, match="of the same images"):
        write_labels(here / "new.csv", store, rows, labels[1:])


def test_spreadsheets_lines_are_read(wnids: DataSettings, put: Put) -> None:
    """Empty ones, cells that are missing or empty at the end, any line ending, quotes."""
    text = f'id , class,confidence\n{ONE},n02\n\n,,\n,,\n"train/n01/n01_2.JPEG", n01 , 0.5,,\n'
    for ending in ("\n", "\r\n", "\r"):
        put("few.csv", text.replace("\n", ending).encode())
        store = store_with(wnids, labels="few.csv")
        assert labelled(store) == [ONE, "train/n01/n01_2.JPEG"] and store.confidences is not None
        assert store.confidences[store.indices("train")].sum() == 1.5
        put("dpt.txt", f"n01_1.JPEG{ending}{ending}n02_2.JPEG{ending}".encode())
        assert labelled(store_with(wnids, labels="dpt.txt")) == [ONE, "train/n02/n02_2.JPEG"]


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this image's name is not UTF-8; rename its file"):
        write_labels(tmp_path / "new.csv", Odd(2), np.arange(2), np.zeros(2, np.int64))
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_label_file(tmp_path: Path) -> None:
    """What is written is never in memory."""
    n = 30_000
    store = Many(n)
    rows, labels, sure = np.arange(n), np.zeros(n, np.int64), np.full(n, 0.5, np.float32)
    tracemalloc.start()
    write_labels(tmp_path / "all.csv", store, rows, labels, sure)
    writing = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "all.csv").stat().st_size > 900_000 and writing < 300_000
    found = labelling_from(tmp_path / "all.csv", store)
    assert (found.labels == 0).all() and (found.confidences == 0.5).all()


# -- a folder of images and a file -------------------------------------------------------------------------------------


def test_a_label_file_gives_classes_to_images_that_have_none(put: Put) -> None:
    for i in range(20):
        put(f"x/{i:02}.png", pixels(i, 4, 4))
    flat = DataSettings(source="x")
    assert store_with(flat).classes == []
    put("few.csv", b"id,class,confidence\n00.png,dog,0.5\n01.png,cat,\n02.png,,\n03.png,ant,1\n")
    store = store_with(flat, labels="few.csv")
    assert store.classes == ["ant", "cat", "dog"] and store.own_classes == []
    assert store.labels[:5].tolist() == [2, 1, -1, 0, -1]  # of every part: nothing else says what they show
    assert store.confidences is not None and store.confidences[:5].tolist() == [0.5, 1, 0, 1, 0]
    assert store.content_hash == store_with(flat).content_hash
    put("other.csv", b"id,class,confidence\n00.png,wolf,0.5\n01.png,cat,\n03.png,ant,1\n")
    assert store_with(flat, labels="other.csv").training_hash != store.training_hash  # the same numbers

    put("numbers.csv", b"id,label\n00.png,11\n01.png,2\n")
    assert store_with(flat, labels="numbers.csv").classes == [str(i) for i in range(12)]
    put("names.csv", b"id,class\n00.png,11\n01.png,2\n02.png,10\n")  # as pseudo labels are written
    assert store_with(flat, labels="names.csv").classes == ["2", "10", "11"]
    put("dpt.txt", b"01.png\n")
    with pytest.raises(UserError, match="'01.png' names no class before an underscore"):
        _ = store_with(flat, labels="dpt.txt").classes
    put("few.csv", b"id,class\n00.png,dog\n77.png,cat\n")
    with pytest.raises(UserError, match="^few.csv line 3: the data has no image 77.png; its images are called like 00"):
        _ = store_with(flat, labels="few.csv").classes
    assert pickle.loads(pickle.dumps(store)).own_classes == []


def test_published_names_give_classes_too(put: Put) -> None:
    put("x/n02_1.png", pixels(1, 4, 4)), put("x/n01_7.png", pixels(2, 4, 4)), put("x/n02_9.png", pixels(3, 4, 4))
    put("dpt.txt", b"n02_1.png\nn01_7.png\n")
    store = open_store(DataSettings(source="x", labels="dpt.txt"))
    assert store.classes == ["n01", "n02"] and store.labels.tolist() == [0, 1, -1]
