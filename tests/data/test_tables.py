"""Parquet files as sources: columns, labels, splits, and what is said when they do not fit together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from twofold.data import Item, decode, fingerprint, open_source
from twofold.data.tables import split_of
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from .conftest import encoded, image_cells, pixels

PutTable = Callable[..., Path]
IMAGES = [pixels(i, 4, 4, 3) for i in range(4)]
CELLS = image_cells(*IMAGES)
NAMED = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["ant", "bee"]}}


def read(source: str, **values: object) -> tuple[list[str], list[Item]]:
    found = open_source(DataSettings(source=source, **values))
    return found.classes(), list(found.items())


def labels(source: str, **values: object) -> tuple[list[str], list[int]]:
    classes, items = read(source, **values)
    return classes, [item.label for item in items]


def error(source: str, **values: object) -> str:
    with pytest.raises(UserError) as caught:
        read(source, **values)
    return str(caught.value)


def test_images_named_classes_and_ids(put_table: PutTable) -> None:
    put_table("x/train.parquet", NAMED, image=CELLS, label=[0, 1, None, -1])
    classes, items = read("x")
    assert classes == ["ant", "bee"]
    assert [(item.id, item.label, item.split) for item in items] == [
        ("train.parquet:0", 0, "train"),
        ("train.parquet:1", 1, "train"),
        ("train.parquet:2", -1, "train"),
        ("train.parquet:3", -1, "train"),
    ]
    for item, image in zip(items, IMAGES, strict=True):
        np.testing.assert_array_equal(decode(item.encoded, DataSettings(source="x")), image)


def test_many_rows_keep_their_order(put_table: PutTable) -> None:
    n = 1000
    put_table("x.parquet", image=[f"{i}".encode() for i in range(n)], label=list(range(n)))
    classes, items = read("x.parquet")
    assert [item.encoded for item in items] == [f"{i}".encode() for i in range(n)]
    assert [item.id for item in items] == [f"x.parquet:{i}" for i in range(n)]
    assert [int(classes[item.label]) for item in items] == list(range(n))


def test_labels_without_names(put_table: PutTable) -> None:
    import pyarrow as pa

    cases = {
        "text": (["dog", "cat", None, "dog"], ["cat", "dog"], [1, 0, -1, 1]),
        "number": ([10, 9, -1, None], ["9", "10"], [1, 0, -1, -1]),
        "truth": ([True, False, None, True], ["false", "true"], [1, 0, -1, 1]),
        "nothing": ([None] * 4, [], [-1] * 4),
        "unlabelled": ([-1] * 4, [], [-1] * 4),
        "category": (pa.array(["b", "a", "b", None]).dictionary_encode(), ["a", "b"], [1, 0, 1, -1]),
    }
    for name, (column, classes, expected) in cases.items():
        put_table(f"{name}.parquet", image=CELLS, label=column)
        assert labels(f"{name}.parquet") == (classes, expected), name


def test_classes_are_the_same_in_all_files(put_table: PutTable) -> None:
    put_table("x/train.parquet", image=CELLS, label=["b", "c", "b", "c"])
    put_table("x/test.parquet", image=CELLS, label=["a", "c", "c", "c"])
    assert labels("x") == (["a", "b", "c"], [0, 2, 2, 2, 1, 2, 1, 2])


def test_classes_are_those_of_the_images_taken(put_table: PutTable) -> None:
    put_table("x/train.parquet", image=CELLS, label=["b", "c", "a", "c"])
    put_table("x/test.parquet", image=CELLS, label=["d", "b", "c", "c"])
    assert labels("x", most=2) == (["b", "c", "d"], [2, 0, 0, 1])


def test_slices_skip_row_groups(here: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (here / "x").mkdir()
    cells = pa.array([f"{i}".encode() for i in range(11)])
    for name, rows in {"train": 11, "test": 7}.items():
        pq.write_table(pa.table({"image": cells[:rows]}), here / f"x/{name}.parquet", row_group_size=3)
    source = open_source(DataSettings(source="x"))
    every = list(source.items())
    for start in range(20):
        for stop in (None, *range(20)):
            assert list(source.items(start, stop)) == every[start:stop]


def test_label_columns_that_are_found(put_table: PutTable) -> None:
    put_table("plural.parquet", image=CELLS, labels=["a", "b", "a", "b"])
    put_table("kind.parquet", {"kind": {"_type": "ClassLabel", "names": ["q"]}}, image=CELLS, kind=[0] * 4, n=[1] * 4)
    put_table("none.parquet", image=CELLS, kind=["a", "b", "a", "b"])
    assert labels("plural.parquet")[0] == ["a", "b"]
    assert labels("kind.parquet")[0] == ["q"]
    assert labels("none.parquet") == ([], [-1] * 4)
    assert labels("none.parquet", label_column="kind")[0] == ["a", "b"]


def test_image_columns_that_are_found(put_table: PutTable) -> None:
    put_table("mask.parquet", mask=CELLS, image=CELLS)
    put_table("other.parquet", picture=CELLS, thumb=[b"x"] * 4)
    put_table("bytes.parquet", raw=[encoded(image) for image in IMAGES])
    for name in ("mask", "other", "bytes"):
        assert read(f"{name}.parquet")[1][0].encoded == encoded(IMAGES[0]), name
    assert read("other.parquet", image_column="thumb")[1][0].encoded == b"x"


def test_paths_instead_of_bytes_are_relative_to_the_file(put_table: PutTable, here: Path) -> None:
    put_table("x/t.parquet", image=[{"bytes": None, "path": "a.png"}, {"bytes": None, "path": None}, None])
    assert [item.encoded for item in read("x/t.parquet")[1]] == [Path("x/a.png"), None, None]


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train-00000-of-00003.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "validation"),
        ("default/test/0000.parquet", "test"),
        ("cifar10_train_v2.parquet", "train"),
        ("dev.parquet", "validation"),
        ("testimony/0.parquet", None),
        ("0000.parquet", None),
        ("train/eval.parquet", "test"),
    ],
)
def test_split_of_a_file(file: str, split: str | None) -> None:
    assert split_of(file) == split


def test_hub_layouts(put_table: PutTable) -> None:
    for name in ("a/data/train-00000-of-00002", "a/data/train-00001-of-00002", "a/data/test-00000-of-00001"):
        put_table(f"{name}.parquet", image=CELLS)
    items = read("a")[1]
    assert [item.split for item in items] == ["test"] * 4 + ["train"] * 8
    assert items[4].id == "data/train-00000-of-00002.parquet:0"
    put_table("b/0.parquet", image=CELLS), put_table("b/1.parquet", image=CELLS)
    assert {item.split for item in read("b")[1]} == {None}


def test_patterns(put_table: PutTable) -> None:
    for name in ("train-0", "train-1", "test-0"):
        put_table(f"x/{name}.parquet", image=CELLS)
    assert [item.id for item in read("x/train-*.parquet")[1]][::4] == ["train-0.parquet:0", "train-1.parquet:0"]
    assert error("x/val*.parquet").startswith(
        "data=x/val*.parquet: no Parquet, Arrow or tar file matches this pattern; valid: digits"
    )
    put_table("y/train-0.parquet", image=CELLS)
    assert error("?/train-0.parquet") == (
        "data=?/train-0.parquet: this pattern matches files in several folders; give their folder"
    )


def test_fingerprint_follows_the_columns(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, kind=["a", "b", "a", "b"])
    keys = {fingerprint(DataSettings(source="x.parquet", label_column=column)) for column in (None, "kind", None)}
    assert len(keys) == 2


# -- what is said ---------------------------------------------------------------------------------------------------


def test_unknown_columns_name_the_nearest(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, label=[0] * 4)
    assert error("x.parquet", label_column="lable") == (
        "data.label_column=lable: data=x.parquet has no such column; did you mean 'label'?"
    )
    assert error("x.parquet", image_column="photo") == (
        "data.image_column=photo: data=x.parquet has no such column; valid: image, label"
    )


def test_ambiguous_or_absent_image_columns(put_table: PutTable) -> None:
    put_table("x.parquet", left=CELLS, right=CELLS)
    put_table("y.parquet", a=[1], b=["t"])
    assert error("x.parquet") == "data=x.parquet: several columns hold images: left, right; set data.image_column=left"
    assert error("y.parquet") == "data=y.parquet: no column holds images (columns: a, b); set data.image_column=..."


def test_ambiguous_label_columns(put_table: PutTable) -> None:
    names = {"_type": "ClassLabel", "names": ["q"]}
    put_table("x.parquet", {"fine": names, "coarse": names}, image=CELLS, fine=[0] * 4, coarse=[0] * 4)
    assert error("x.parquet") == (
        "data=x.parquet: several columns hold labels: fine, coarse; set data.label_column=fine"
    )


def test_labels_that_are_no_classes(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, label=[0.5] * 4)
    assert error("x.parquet") == (
        "x.parquet: label: holds double, which is no class; data.label_column takes a column of whole numbers or texts"
    )


def test_labels_beyond_their_names(put_table: PutTable) -> None:
    put_table("x.parquet", NAMED, image=CELLS, label=[0, 1, 2, 0])
    assert error("x.parquet") == (
        "x.parquet row 2: label is 2, but there are 2 classes; labels are 0 to classes - 1, or -1 for none"
    )


def test_files_that_do_not_belong_together(put_table: PutTable) -> None:
    other = {**NAMED, "label": {"_type": "ClassLabel", "names": ["bee", "ant"]}}
    put_table("names/test.parquet", NAMED, image=CELLS, label=[0] * 4)
    put_table("names/train.parquet", other, image=CELLS, label=[0] * 4)
    assert error("names") == (
        "train.parquet: label: its classes differ from those of test.parquet; give the files of one data set"
    )
    put_table("types/test.parquet", image=CELLS, label=["0"] * 4)
    put_table("types/train.parquet", image=CELLS, label=[0] * 4)
    assert "its classes differ" in error("types")
    put_table("columns/test.parquet", image=CELLS)
    put_table("columns/train.parquet", images=CELLS)
    assert error("columns") == "train.parquet: image: this file has no such column; did you mean 'images'?"
    put_table("labels/test.parquet", image=CELLS, label=[0] * 4)
    put_table("labels/train.parquet", image=CELLS)
    assert error("labels") == "train.parquet: label: this file has no such column; valid: image"
    put_table("splits/train.parquet", image=CELLS), put_table("splits/more.parquet", image=CELLS)
    assert error("splits").startswith(
        "data=splits: more.parquet: its name says no split, while those of other files do;"
    )


def test_a_file_that_is_not_parquet(here: Path) -> None:
    (here / "x.parquet").write_bytes(b"PAR1 and then nothing")
    message = error("x.parquet")
    assert message.startswith("x.parquet: cannot be read as Parquet (")
    assert message.endswith("; download or write it again")


def test_a_damaged_page(put_table: PutTable) -> None:
    path = put_table("x.parquet", image=[encoded(image) for image in IMAGES * 50])
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    assert error("x.parquet").startswith("x.parquet: cannot be read as Parquet (")


def test_real_files(shared_data: Callable[[str], Path]) -> None:
    source = open_source(DataSettings(source=str(shared_data("cifar10"))))
    assert source.classes()[:3] == ["airplane", "automobile", "bird"]
    assert source.count() == 60_000
    item = next(source.items())
    assert item.split == "test" and decode(item.encoded, DataSettings(source="x")).shape == (32, 32, 3)
