"""Attributes out of a file: what it says is learned, and every mistake in it is told with its line and column."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from twofold.cli.main import main
from twofold.data import Store, describe, open_store
from twofold.errors import UserError
from twofold.learn.batches import labels_of
from twofold.settings.data import DataSettings

from .conftest import image_cells, pixels

Put = Callable[..., Path]
PutTable = Callable[..., Path]
N = 12
OWN = {"smiling": [1, 0] * 6, "glasses": [0, 1, -1] * 4}


@pytest.fixture
def faces(put_table: PutTable) -> DataSettings:
    """8 training and 4 test images with two attributes."""
    cells = [pixels(i, 4, 4) for i in range(N)]
    for split, part in {"train": slice(0, 8), "test": slice(8, N)}.items():
        columns = {name: values[part] for name, values in OWN.items()}
        put_table(f"x/{split}.parquet", image=image_cells(*cells[part]), **columns)
    return DataSettings(source="x", attribute_columns=["smiling", "glasses"], validation_share=0, labels="f.csv")


@pytest.fixture
def plain(put: Put) -> DataSettings:
    """10 images that have nothing."""
    for i in range(10):
        put(f"p/{i}.png", pixels(i, 4, 4))
    return DataSettings(source="p", validation_share=0, test_share=0.2, labels="f.csv")


def row_of(store: Store, id: str) -> int:
    return next(i for i in range(len(store)) if store.id(i) == id)


def test_it_says_which_training_images_keep_theirs(faces: DataSettings, put: Put) -> None:
    put("f.csv", b"name, glasses, smiling\ntrain.parquet:0,0,1\n\ntrain.parquet:3,,0\ntrain.parquet:5,-1,1\n")
    store = open_store(faces)
    train, test = store.indices("train"), store.indices("test")
    assert store.attribute_names == ["smiling", "glasses"] and store.attributes is not None
    names = [store.id(i) for i in train]
    expected = {"train.parquet:0": [1, 0], "train.parquet:3": [0, -1], "train.parquet:5": [1, -1]}
    assert store.attributes[train].tolist() == [expected.get(name, [-1, -1]) for name in names]
    own = np.array(list(OWN.values())).T
    np.testing.assert_array_equal(store.attributes[test], own[8:])  # validation and test keep theirs
    assert store.all_attributes is not None
    np.testing.assert_array_equal(store.all_attributes[train], own[:8])
    assert labels_of(store, train, several=True).tolist() == store.attributes[train].tolist()
    assert describe(store)["attributes"]["glasses"]["unknown"] == 7 + 2


def test_it_gives_attributes_to_data_without(plain: DataSettings, put: Put) -> None:
    bare = open_store(plain.model_copy(update={"labels": None}))
    assert bare.attributes is None and bare.attribute_names == []
    put("f.csv", b'\xef\xbb\xbf"name",a,b,c\n' + b"".join(f"{i}.png,{i % 2},,1\n".encode() for i in range(0, 10, 3)))
    store = open_store(plain)
    assert store.folder == bare.folder and store.attribute_names == ["a", "b", "c"]
    assert store.attributes is not None and store.attributes.dtype == np.int8
    expected = [[i % 2, -1, 1] if i % 3 == 0 else [-1] * 3 for i in range(10)]
    assert store.attributes.tolist() == [expected[int(store.id(i)[0])] for i in range(10)]
    assert np.array_equal(store.labels, store.all_labels)


def test_classes_stay_as_they_are(put: Put) -> None:
    for i in range(6):
        put(f"k/ant/{i}.png", pixels(i, 4, 4)), put(f"k/bee/{i}.png", pixels(50 + i, 4, 4))
    put("f.csv", b"name,wings\nbee/0.png,1\n")
    store = open_store(DataSettings(source="k", labels="f.csv"))
    np.testing.assert_array_equal(store.labels, store.all_labels)
    assert store.attributes is not None and store.attributes[row_of(store, "bee/0.png")].tolist() == [1]


def test_another_file_is_another_training(plain: DataSettings, put: Put) -> None:
    hashes = set()
    for text in (b"name,a\n1.png,1\n", b"name,a\n1.png,0\n", b"name,b\n1.png,0\n", b"name,a\n2.png,1\n"):
        put("f.csv", text)
        hashes.add(open_store(plain).training_hash)
    put("f.csv", b"name,a\n\n1.png,  1\n")
    assert len(hashes) == 4 and open_store(plain).training_hash in hashes
    assert open_store(plain.model_copy(update={"labels": None})).training_hash not in hashes


def test_it_is_not_about_images_of_the_second_source(plain: DataSettings, put: Put) -> None:
    put("q/0.png", pixels(99, 4, 4))
    put("f.csv", b"name,a\n0.png,1\n")
    store = open_store(plain.model_copy(update={"unlabelled": "q"}))
    assert store.attributes is not None and store.attributes[:, 0].tolist().count(1) == 1
    assert store.attributes[10].tolist() == [-1]
    put("f.csv", b"name,a\nunlabelled:0.png,1\n")
    with pytest.raises(
        UserError, match=r"^f.csv line 2: unlabelled:0.png is of data.unlabelled; list images of data.s"
    ):
        _ = open_store(plain.model_copy(update={"unlabelled": "q"})).attributes


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.dictionaries(
        st.integers(0, 9), st.tuples(*[st.sampled_from(["1", "0", "-1", "", " 1 "])] * 3), min_size=1
    ),
    names=st.permutations(["a", "b b", 'c,"d"']),
)
def test_whatever_is_written_is_read(
    plain: DataSettings, put: Put, values: dict[int, tuple[str, ...]], names: list[str]
) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["name", *names], *([f"{i}.png", *cells] for i, cells in values.items())])
    put("f.csv", text.getvalue().encode())
    store = open_store(plain)
    assert store.attribute_names == names and store.attributes is not None
    for row in range(10):
        cells = values.get(int(store.id(row)[0]), ("",) * 3)
        assert store.attributes[row].tolist() == [int(cell) if cell.strip() else -1 for cell in cells]


MISTAKES = [
    ("name\ntrain.parquet:0", "f.csv line 1: names no attribute; write name,smiling,glasses"),
    ("name,smiling\ntrain.parquet:0,1", "f.csv line 1: has no column 'glasses', an attribute of the data; add it"),
    (
        "name,smiling,glases\ntrain.parquet:0,1,1",
        "f.csv line 1 column 3: the data have no attribute 'glases'; did you mean 'glasses'?",
    ),
    (
        "name,smiling,glasses,hat\ntrain.parquet:0,1,1,1",
        "f.csv line 1 column 4: the data have no attribute 'hat'; valid: smiling, glasses",
    ),
    ("name,smiling,glasses,smiling\n", "f.csv line 1 column 4: 'smiling' is there already, in column 2; remove one"),
    ("name,smiling,\n", "f.csv line 1 column 3: has no name; name the attribute, or remove the column"),
    (
        "name,smiling,glasses\ntrain.parquet:0,1,1\ntrain.parquet:1,1",
        "f.csv line 3: has 2 cells of 3: none is left for column 'glasses'; an unknown attribute is an empty cell",
    ),
    (
        "name,smiling,glasses\ntrain.parquet:0,1,1\n\ntrain.parquet:1,1,0,1",
        "f.csv line 4 column 4: '1' is one cell too many for the header's 3 columns; remove it, or name its",
    ),
    (
        "name,smiling,glasses\ntrain.parquet:0,yes,1",
        "f.csv line 2 column 'smiling': 'yes' is no attribute's value; write 1 for yes, 0 for no, -1 or nothing",
    ),
    ("name,smiling,glasses\ntrain.parquet:0,1,2", "f.csv line 2 column 'glasses': '2' is no attribute's value"),
    ("name,smiling,glasses\ntrain.parquet:0,1,0.0", "f.csv line 2 column 'glasses': '0.0' is no attribute's value"),
    ("name,smiling,glasses\n", "f.csv: this label file names no image; list some"),
    (
        "name,smiling,glasses\ntrain.parquet:0,1,1\ntrain.parquet:99,1,1",
        "f.csv line 3: the data have no image train.parquet:99; their images are called like t",
    ),
    (
        "name,smiling,glasses\ntrain.parquet:0,1,1\n\ntrain.parquet:0,1,1",
        "f.csv line 4: train.parquet:0 is there already, in line 2; remove one",
    ),
    (
        "name,smiling,glasses\ntest.parquet:0,1,1",
        "f.csv line 2: test.parquet:0 is a test image; list training images only",
    ),
    ("name,smiling,glasses\n" + "x" * 200_000 + ",1,1", "f.csv line 2: is no CSV (field larger than field limit"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes(faces: DataSettings, put: Put, text: str, message: str) -> None:
    put("f.csv", text.encode())
    with pytest.raises(UserError) as caught:
        _ = open_store(faces).attributes
    assert str(caught.value).startswith(message), str(caught.value)


def test_data_without_attributes_take_any_and_every_part(plain: DataSettings, put: Put) -> None:
    bare = open_store(plain.model_copy(update={"labels": None}))
    held_out = bare.id(int(bare.indices("test")[0]))
    put("f.csv", f"name,hat\n{held_out},0\n".encode())
    store = open_store(plain)
    assert store.attributes is not None and store.attributes[store.indices("test")[0]].tolist() == [0]
    with pytest.raises(UserError, match=r"^data.labels=gone.csv: cannot be read"):
        _ = open_store(plain.model_copy(update={"labels": "gone.csv"})).attributes


def test_the_command_line_shows_it(faces: DataSettings, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    put("f.csv", b"name,smiling,glasses\ntrain.parquet:0,1,0\n")
    words = ["x", "attribute_columns=[smiling,glasses]", "validation_share=0", "labels=f.csv"]
    assert main(["data", "describe", *words]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["smiling", "3", "2", "7", "60.0%"] in shown
    put("f.csv", b"name,smiling,glasses\ntrain.parquet:0,1\n")
    assert main(["data", "describe", *words]) == 2
    assert "f.csv line 2: has 2 cells of 3: none is left for column 'glasses'" in capsys.readouterr().err


# -- the same care where attributes stand in a table -----------------------------------------------------------------


METADATA = [
    ("0.png,1,0\n1.png,1\n", "x/metadata.csv line 3: has 2 cells of 3: none is left for column 'b'; an unknown"),
    ("0.png,1,0\n1.png,1,0,1\n", "x/metadata.csv line 3: has 4 cells of 3: cell 4 is in no column; remove it"),
    ("0.png,1,0\n1.png,1,yes\n", "x/metadata.csv row 1: b: is 'yes', which is no attribute; attributes are 0, 1, or"),
    ("0.png,1,0\n1.png,1,2\n", "x/metadata.csv row 1: b: is 2, which is no attribute"),
]


@pytest.mark.parametrize(("rows", "message"), METADATA)
def test_mistakes_in_a_folders_table(put: Put, rows: str, message: str) -> None:
    put("x/0.png", pixels(0, 4, 4)), put("x/1.png", pixels(1, 4, 4))
    put("x/metadata.csv", f"file_name,a,b\n{rows}".encode())
    with pytest.raises(UserError) as caught:
        open_store(DataSettings(source="x", attribute_columns=["a", "b"]))
    assert str(caught.value).startswith(message), str(caught.value)
    put("x/metadata.csv", b"file_name,a,b,b\n0.png,1,0,1\n1.png,1,0,1\n")
    with pytest.raises(UserError, match=r"=b: x/metadata.csv has 2 columns of this name; rename or remove one$"):
        open_store(DataSettings(source="x", attribute_columns=["a", "b"]))


def test_mistakes_in_other_tables(put_table: PutTable) -> None:
    def told(*columns: str, **values: Any) -> str:
        put_table("t.parquet", image=image_cells(*[pixels(i, 4, 4) for i in range(3)]), **values)
        with pytest.raises(UserError) as caught:
            open_store(DataSettings(source="t.parquet", attribute_columns=list(columns)))
        return str(caught.value)

    assert told("a", a=[1, 0, 3]).startswith("t.parquet row 2: a: is 3, which is no attribute")
    assert told("a", a=["1", "no", "0"]).startswith("t.parquet row 1: a: is 'no', which is no attribute")
    assert told("a", a=["1", "0", ""]).startswith("t.parquet: a: holds string; data.attribute_columns takes columns")
    assert told("a", "bb", a=[1, 0, 1], b=[1, 0, 1]).startswith("data.attribute_columns=bb: data=t.parquet has no such")


CELEBA = [
    ("2\nMale Young\n0.jpg 1 -1\n1.jpg 1\n", "line 4: has 1 values for 2 columns: none is left for Young; download"),
    ("2\nMale Young\n0.jpg 1 -1\n1.jpg 1 1 1\n", "line 4: has 3 values for 2 columns: value 3 is in no column; downl"),
    ("2\nMale Young\n0.jpg 1\n1.jpg 1\n", "line 3: has 1 values for 2 columns: none is left for Young; download"),
    ("image_id,Male,Young\n0.jpg,1,-1,1\n", "line 2: has 3 values for 2 columns: value 3 is in no column; download"),
    ("2\nMale Young\n0.jpg 1 -1\n1.jpg 1 0\n", ": 1.jpg: Young: is 0, which is neither 1 nor -1; 1 is yes, -1 is no"),
]


@pytest.mark.parametrize(("text", "message"), CELEBA)
def test_mistakes_in_celebas_list(put: Put, text: str, message: str) -> None:
    for i in range(2):
        put(f"c/img_align_celeba/{i}.jpg", pixels(i, 4, 4))
    put("c/list_attr_celeba.txt", text.encode())
    put("c/list_eval_partition.txt", b"0.jpg 0\n1.jpg 0\n")
    with pytest.raises(UserError) as caught:
        open_store(DataSettings(source="celeba:c"))
    assert str(caught.value).replace(".txt ", ".txt").startswith(f"c/list_attr_celeba.txt{message}"), str(caught.value)
