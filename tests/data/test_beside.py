"""What stands beside a folder of images: masks, pairs, points, and a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twofold.data import Item, fingerprint, open_source, open_store
from twofold.data.describe import unused_columns
from twofold.errors import UserError
from twofold.settings.data import DataSettings

Put = Callable[..., Path]


def read(source: str = "x", **values: Any) -> list[Item]:
    return list(open_source(DataSettings(source=source, **values)).items())


def error(source: str = "x", **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(source, **values)
    return str(caught.value)


def labels(source: str = "x", **values: Any) -> tuple[list[str], list[int]]:
    opened = open_source(DataSettings(source=source, **values))
    return opened.classes(), [item.label for item in opened.items()]


@pytest.mark.parametrize("layout", ["", "cat/", "train/cat/"])
def test_folders_beside_the_images(put: Put, layout: str) -> None:
    for i in range(3):
        put(f"x/images/{layout}{i}.jpg"), put(f"x/masks/{layout}{i}.png"), put(f"x/pairs/{layout}{i}.webp")
        put(
            f"x/points/{layout}{i}.{'csv' if i else 'json'}",
            b"1,2\n,\n" if i else b'{"points": [[1, 2], [null, null]]}',
        )
    source = open_source(DataSettings(source="x"))
    items = list(source.items())
    assert source.facts() == {"points": 2} and source.count() == 3 and source.name == "x"
    assert source.classes() == (["cat"] if layout else [])
    for i, item in enumerate(items):
        assert item.id == f"{layout}{i}.jpg" and item.encoded == Path(f"x/images/{layout}{i}.jpg")
        assert item.mask == Path(f"x/masks/{layout}{i}.png") and item.pair == Path(f"x/pairs/{layout}{i}.webp")
        np.testing.assert_array_equal(item.points, np.array([[1, 2], [np.nan, np.nan]], np.float32))
        assert item.split == ("train" if layout.startswith("train") else None)


def test_a_class_called_images_stays_one(put: Put) -> None:
    put("x/images/1.png"), put("x/other/1.png")
    assert labels() == (["images", "other"], [0, 1])


def test_a_table_beside_the_images(put: Put) -> None:
    put("x/a.png"), put("x/b.png"), put("x/c.png")
    table = b'file_name,label,who,smiling,marks\nb.png,dog,007,1,"[1, 2]"\nc.png,,8,,"[3, 4]"\na.png,cat,007,0,\n'
    put("x/metadata.csv", table)
    assert labels() == (["cat", "dog"], [0, 1, -1])
    settings = DataSettings(source="x", group="who", attribute_columns="smiling", points_column="marks")
    source = open_source(settings)
    items = list(source.items())
    assert source.facts() == {"attributes": ["smiling"], "points": 1}
    assert [(item.group, item.attributes) for item in items] == [("007", (0,)), ("007", (1,)), ("8", (-1,))]
    np.testing.assert_array_equal([item.points for item in items], np.float32([[[np.nan, np.nan]], [[1, 2]], [[3, 4]]]))
    assert next(source.items(1, 2)).group == "007"


def test_columns_that_nothing_is_read_from_are_told(put: Put) -> None:
    put("x/cat/a.png"), put("x/metadata.csv", b"file_name,label,who,smiling\ncat/a.png,cat,7,1\n")
    put("y/b.png"), put("y/metadata.jsonl", b'{"file_name": "b.png", "label": 1}\n')

    def unused(source: str, **values: Any) -> str:
        return unused_columns(open_store(DataSettings(source=source, **values)))

    hint = "(unused; data.label_column=..., data.group=..., data.attribute_columns=[...], ...)"
    assert unused("x") == f"metadata.csv has also: label, who, smiling {hint}"
    assert unused("x", group="who", attribute_columns="smiling") == f"metadata.csv has also: label {hint}"
    assert unused("x", group="who", attribute_columns="smiling", label_column="label") == ""
    assert unused("y") == unused("digits") == ""


def test_a_table_of_json_lines_with_masks(put: Put) -> None:
    put("x/images/a.png"), put("x/seg/a.png"), put("x/second.png")
    put(
        "x/metadata.jsonl",
        b'{"file_name": "images/a.png", "seg": "seg/a.png", "second": "second.png", "p": [1, 2, 3, 4], "label": 4}\n',
    )
    (item,) = read(mask_column="seg", pair_column="second", points_column="p")
    assert item.mask == Path("x/seg/a.png") and item.pair == Path("x/second.png") and item.label == 0
    assert item.points is not None and item.points.tolist() == [[1, 2], [3, 4]]
    assert open_source(DataSettings(source="x")).classes() == ["4"]


def test_a_table_in_the_folder_of_each_split(put: Put) -> None:
    for split in ("train", "test"):
        put(f"x/{split}/a.png"), put(f"x/{split}/metadata.csv", f"file_name,label\na.png,{split}er\n".encode())
    assert labels() == (["tester", "trainer"], [0, 1])


def test_folders_say_the_class_unless_the_settings_name_a_column(put: Put) -> None:
    put("x/cat/a.png"), put("x/dog/b.png")
    put("x/metadata.csv", b"file_name,label,kind\ncat/a.png,p,q\ndog/b.png,p,r\n")
    assert labels() == (["cat", "dog"], [0, 1])
    assert labels(label_column="label") == (["p"], [0, 0])
    assert labels(label_column="kind") == (["q", "r"], [0, 1])
    put("x/metadata.csv", b"whatever")  # and is not read where nothing of it is wanted
    assert labels() == (["cat", "dog"], [0, 1])


def test_groups_by_folder_and_by_expression(put: Put) -> None:
    for name in ("cat/p1_a.png", "cat/p2_a.png", "dog/p1_b.png"):
        put(f"x/{name}")
    assert [item.group for item in read(group="folder")] == ["cat", "cat", "dog"]
    assert [item.group for item in read(group=r"re:(p\d)_")] == ["p1", "p2", "p1"]
    assert error(group=r"re:^(p\d)_").startswith("data.group=re:^(p\\d)_: does not match 'cat/p1_a.png'")
    assert error(group="who") == (
        "data.group=who: data=x has no columns; write folder, or re:REGEX on the image's name"
    )


def test_the_fingerprint_follows_what_is_beside(put: Put) -> None:
    put("x/images/a.png"), put("x/masks/a.png"), put("x/points/a.json", b"[[1, 2]]")

    def of() -> str:
        return fingerprint(DataSettings(source="x"))

    seen = [of()]
    put("x/points/a.json", b"[[1, 22]]")
    seen.append(of())
    put("x/metadata.csv", b"file_name\na.png\n")
    seen.append(of())
    put("x/masks/a.png", b"another")
    seen.append(of())
    assert len(set(seen)) == 4


def test_a_slice_and_the_first_of_each_split(put: Put) -> None:
    for name in ("test/cat/1", "test/dog/2", "train/cat/1", "train/cat/2", "train/cat/x/3", "train/dog/1"):
        put(f"x/{name}.png")
    source = open_source(DataSettings(source="x"))
    every = list(source.items())
    for start in range(7):
        for stop in (None, *range(7)):
            assert list(source.items(start, stop)) == every[start:stop]
    assert [item.id for item in read(most=1)] == ["test/cat/1.png", "train/cat/1.png"]
    assert open_source(DataSettings(source="x", most=3)).count() == 5


# -- what is said ----------------------------------------------------------------------------------------------------


OTHERS = "; those without go to a folder of their own, data.unlabelled=FOLDER"


def test_images_without_their_mask_or_points(put: Put) -> None:
    put("x/images/a.png"), put("x/images/b.png"), put("x/masks/a.png")
    assert error() == "x/masks/b.png: there is none for the image b.png; every image needs one in masks/" + OTHERS
    (
        put("y/images/a.png"),
        put("y/images/b.png"),
        put("y/points/a.json", b"[[1, 2]]"),
        put("y/points/b.csv", b"1,2\n3,4"),
    )
    assert error("y") == "y/points/b.csv: holds 2 points, but the first image has 1; all need the same ones"
    put("y/points/b.csv", b"left,right")
    assert error("y").startswith("y/points/b.csv: holds no key points (could not convert string to float: 'left')")


def test_tables_that_do_not_fit(put: Put) -> None:
    put("x/a.png"), put("x/metadata.csv", b"file_name,label\nb.png,cat\n")
    assert error() == "x/metadata.csv: a.png: has no row; give every image one, with this file_name"
    put("x/metadata.csv", b"file_name,label\na.png,cat\na.png,dog\n")
    assert error() == "x/metadata.csv: a.png: has two rows; give every image one"
    put("x/metadata.csv", b"name,label\na.png,cat\n")
    assert error() == "x/metadata.csv: has no column file_name (columns: name, label); add it"
    put("x/metadata.csv", b"file_name,label\na.png,cat,dog\n")
    assert error().startswith("x/metadata.csv line 2: has 3 cells of 2: cell 3 is in no column; remove it, or name its")
    put("x/metadata.csv", b"file_name,yes\na.png,3\n")
    assert error(attribute_columns="yes") == (
        "x/metadata.csv row 0: yes: is 3, which is no attribute; attributes are 0, 1, or -1 for unknown"
    )
    assert error(label_column="lable").startswith("data.label_column=lable: x/metadata.csv has no such column; valid:")
    put("x/metadata.csv", b"file_name,label\na.png,NA\n")  # a class like any other
    assert open_source(DataSettings(source="x")).classes() == ["NA"]
    put("x/metadata.jsonl", b"{}")
    assert error() == "x: holds both metadata.csv and metadata.jsonl; keep one of them"


def test_a_mask_column_that_holds_no_paths(put: Put) -> None:
    put("x/a.png"), put("x/metadata.jsonl", b'{"file_name": "a.png", "m": {"path": "b.png"}}')
    assert error(mask_column="m").startswith("x/metadata.jsonl: m: holds struct<path: string>, which is no path")


def test_columns_need_a_table(put: Put) -> None:
    put("x/a.png")
    for name in ("label_column", "mask_column", "points_column", "pair_column"):
        assert error(**{name: "z"}) == (
            f"data.{name}=z: data=x has no columns; only Parquet and hub data have, or a folder with a metadata.csv"
        )
    assert error(attribute_columns=["a", "b"]).startswith("data.attribute_columns=a,b: data=x has no columns")


def test_only_hub_data_can_be_streamed(put: Put) -> None:
    put("x/a.png")
    assert error(streaming=True) == "data.streaming=true: data=x is on this machine; only hub data can be streamed"


# -- what is said of images that are not there -------------------------------------------------------------------------


def test_rows_and_files_without_an_image(put: Put) -> None:
    put("x/images/a.png"), put("x/images/c.png")
    put("x/metadata.csv", b"file_name,who\na.png,1\nb.png,2\nc.png,1\n")
    assert len(read("x")) == 2  # nothing is read from the table, so nothing of it is wrong
    said = "x/metadata.csv row 1: b.png: there is no image x/images/b.png; "
    with pytest.raises(UserError) as caught:
        open_store(DataSettings(source="x", group="who"))
    assert str(caught.value) == said + "add it, remove what is said of it, or set data.on_bad_image=skip"
    store = open_store(DataSettings(source="x", group="who", on_bad_image="skip"))
    assert [store.id(i) for i in range(len(store))] == ["a.png", "c.png"]
    (bad,) = store.meta["bad_images"]
    assert bad == {"id": "x/metadata.csv row 1: b.png", "reason": "there is no file x/images/b.png"}
    for start in range(4):
        sliced = open_source(DataSettings(source="x", group="who", on_bad_image="skip")).items(start, start + 2)
        ids = ["a.png", "c.png", "x/metadata.csv row 1: b.png"]
        assert [item.id for item in sliced] == ids[start : start + 2]


@pytest.mark.parametrize(("kind", "file"), [("masks", "7.png"), ("pairs", "7.jpg"), ("points", "7.json")])
def test_masks_pairs_and_points_of_no_image(put: Put, kind: str, file: str) -> None:
    put("x/images/1.png"), put(f"x/{kind}/1.{file[2:]}", b"[[1, 2]]"), put(f"x/{kind}/{file}", b"[[1, 2]]")
    with pytest.raises(UserError, match=f"^x/{kind}/{file}: there is no image x/images/7; add it, remove what is said"):
        open_store(DataSettings(source="x"))
    assert open_source(DataSettings(source="x", on_bad_image="skip")).count() == 2


def test_a_path_in_a_table_that_leads_nowhere(put: Put) -> None:
    put("y/images/a.png"), put("y/images/b.png"), put("y/m/a.png", np.zeros((4, 6), np.uint8))
    put("y/metadata.csv", b"file_name,mask\na.png,m/a.png\nb.png,m/gone.png\n")
    with pytest.raises(UserError, match="^data=y: b.png: cannot be read: its mask: there is no file y/m/gone.png; "):
        open_store(DataSettings(source="y", mask_column="mask"))
    store = open_store(DataSettings(source="y", mask_column="mask", on_bad_image="skip"))
    assert store.meta["bad_images"] == [{"id": "b.png", "reason": "its mask: there is no file y/m/gone.png"}]
