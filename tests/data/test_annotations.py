"""What belongs to an image, read from columns: attributes, masks, points, pairs, groups; and what is no such thing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.cli.yardstick import part_of
from twofold.data import Item, Store, fingerprint, notes, open_source, open_store
from twofold.data.annotations import group_of, key_points, yes_or_no
from twofold.data.items import limited, spans
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from .conftest import encoded, image_cells, pixels

PutTable = Callable[..., Path]
IMAGES = [pixels(i, 4, 4, 3) for i in range(4)]
CELLS = image_cells(*IMAGES)
MASKS = [pixels(10 + i, 4, 4) for i in range(4)]


def read(**values: Any) -> tuple[dict[str, Any], list[Item]]:
    source = open_source(DataSettings(source="x.parquet", **values))
    return source.facts(), list(source.items())


def error(**values: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(**values)
    return str(caught.value)


def test_nothing_is_read_unless_it_is_asked_for(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, mask=image_cells(*MASKS), smiling=[0, 1, 0, 1], who=list("abab"))
    facts, items = read()
    assert facts == {}
    assert all(item[4:] == (None, None, None, None, None) for item in items)


def test_attributes_of_several_columns(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, smiling=[0, 1, -1, None], male=[True, False, None, True])
    facts, items = read(attribute_columns=["male", "smiling"])
    assert facts == {"attributes": ["male", "smiling"]}
    assert [item.attributes for item in items] == [(1, 0), (0, 1), (-1, -1), (1, -1)]


def test_attributes_of_one_list_column(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, tags=[[1, 0, None], None, [-1, 1, 1], [0, 0, 0]])
    facts, items = read(attribute_columns="tags")
    assert facts == {"attributes": ["tags[0]", "tags[1]", "tags[2]"]}
    assert [item.attributes for item in items] == [(1, 0, -1), (-1, -1, -1), (-1, 1, 1), (0, 0, 0)]


def test_masks_and_pairs(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, seg=image_cells(*MASKS), other=[encoded(image) for image in IMAGES])
    values = {"mask_classes": ["sky", "road"], "mask_void": 11}
    facts, items = read(mask_column="seg", pair_column="other", image_column="image", **values)
    assert facts == values
    assert [item.mask for item in items] == [encoded(mask) for mask in MASKS]
    assert [item.pair for item in items] == [encoded(image) for image in IMAGES]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("has_gaps", [False, True])
def test_points(put_table: PutTable, nested: bool, has_gaps: bool) -> None:
    expected = np.random.default_rng(0).uniform(0, 4, (4, 3, 2)).astype(np.float32)
    cells: list[Any] = [points.tolist() if nested else points.ravel().tolist() for points in expected]
    if has_gaps:
        cells[2], expected[2] = None, np.nan
    put_table("x.parquet", image=CELLS, marks=cells)
    facts, items = read(points_column="marks", flip_pairs=[(0, 2)])
    assert facts == {"points": 3, "flip_pairs": [[0, 2]]}
    for item, points in zip(items, expected, strict=True):
        assert item.points is not None and item.points.dtype == np.float32
        np.testing.assert_array_equal(item.points, points)


def test_single_coordinates_may_be_absent() -> None:
    found = key_points("[[1, 2], [null, null]]", 2, "x")
    np.testing.assert_array_equal(found, np.array([[1, 2], [np.nan, np.nan]], np.float32))


def test_settings_of_what_is_not_there(put_table: PutTable, monkeypatch: pytest.MonkeyPatch) -> None:
    put_table("x.parquet", image=CELLS, seg=image_cells(*MASKS), marks=[[1, 2, 3, 3, 0, 1]] * 4)

    def refused(message: str, **values: Any) -> None:
        with pytest.raises(UserError, match=message):
            open_store(DataSettings(source="x.parquet", **values))

    masks = "the images of x.parquet have no masks; leave it out, or say where they are: data.mask_column=COLUMN"
    refused(f"^data.mask_classes: {masks}", mask_classes=["a"])
    refused(f"^data.mask_void: {masks}", mask_void=3, points_column="marks")
    refused("^data.flip_pairs: the images of x.parquet have no key points", flip_pairs=[], mask_column="seg")
    store = open_store(DataSettings(source="x.parquet", mask_column="seg", mask_void=3, points_column="marks"))
    assert store.masks is not None and store.points is not None
    store.meta["facts"]["flip_pairs"] = [[0, 3]]  # by a source itself
    (store.folder / "meta.json").write_text(json.dumps(store.meta))
    with pytest.raises(UserError, match="^data.flip_pairs: point 3 is not one of 3, or in two pairs"):
        Store(store.folder, store.settings)
    monkeypatch.setattr("twofold.data.store.pack", lambda *_: pytest.fail("packed before it was checked"))
    refused("^data.flip_pairs: point 3 is not one of 3, or in two pairs", points_column="marks", flip_pairs=[(0, 3)])


def test_groups_that_hold_nothing_out(put_table: PutTable) -> None:
    import pyarrow as pa

    put_table("x.parquet", image=CELLS, none=pa.array([None] * 4, pa.string()), one=["a"] * 4, all=list("abcd"))
    empty = open_store(DataSettings(source="x.parquet", group="none"))
    assert notes(empty) == ["data.group=none is empty for every image: none are kept together"]
    assert len(empty.indices("all")) == 4
    with pytest.raises(UserError, match="^data.group=none: no image of x.parquet has a group there; name another"):
        empty.indices("train")
    with pytest.raises(UserError, match="^data.group=none: "):  # and not that nothing is held out
        part_of(empty, "test")
    single = open_store(DataSettings(source="x.parquet", group="one"))
    assert len(single.indices("train")) == 4
    assert notes(single) == ["1 group is too few, since each stays whole: no image is left for validation and test"]
    with pytest.raises(UserError, match="its test split holds no image; all images belong to one group"):
        single.indices("test")
    every = DataSettings(source="x.parquet", group="all", test_share=0.25, validation_share=0.25)
    assert notes(open_store(every)) == [] and notes(open_store(DataSettings(source="digits"))) == []


def test_groups(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, who=["ann", "bob", None, "ann"], number=[7, 7, 8, None])
    assert [item.group for item in read(group="who")[1]] == ["ann", "bob", None, "ann"]
    assert [item.group for item in read(group="number")[1]] == ["7", "7", "8", None]


def test_one_column_may_say_two_things(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, label=[0, 1, 1, 0])
    items = read(group="label", attribute_columns="label")[1]
    assert [(item.label, item.group, item.attributes) for item in items][:2] == [(0, "0", (0,)), (1, "1", (1,))]


def test_all_of_it_survives_slicing(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, who=list("abcd"), t=[[1.0, i] for i in range(4)], yes=[0, 1, 0, 1])
    settings = DataSettings(source="x.parquet", group="who", points_column="t", attribute_columns=["yes"])
    (item,) = open_source(settings).items(2, 3)
    assert (item.id, item.group, item.attributes) == ("x.parquet:2", "c", (0,))
    assert item.points is not None and item.points.tolist() == [[1.0, 2.0]]


def test_the_fingerprint_follows_them_and_not_what_is_only_read_otherwise(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, a=[0, 1, 0, 1], b=list("abab"))

    def of(**values: Any) -> str:
        return fingerprint(DataSettings(source="x.parquet", **values))

    changed = [
        of(attribute_columns=["a"]),
        of(group="b"),
        of(most=2),
        of(mask_column="a"),
        of(points_column="a"),
        of(pair_column="a"),
        of(mask_void=3),
        of(mask_classes=["a"]),
        of(flip_pairs=[(0, 1)]),
    ]
    assert len({of(), *changed}) == len(changed) + 1


def test_stores_that_were_packed_before_keep_their_name(put_table: PutTable) -> None:
    """The name of a store of the released version, for the settings that there were."""
    from twofold.data import sources
    from twofold.data.decode import RESAMPLING

    put_table("x.parquet", image=CELLS)
    settings = DataSettings(source="x.parquet", size=4)
    pixels = {name: getattr(settings, name) for name in sources.PIXEL_SETTINGS}
    text = json.dumps([sources.FORMAT, RESAMPLING, open_source(settings).identity(), pixels], sort_keys=True)
    import hashlib

    assert fingerprint(settings) == hashlib.sha256(text.encode()).hexdigest()
    assert set(pixels) == {
        *("size", "fit", "channels", "background", "image_column", "label_column", "on_bad_image"),
    }


# -- what is said ----------------------------------------------------------------------------------------------------


def test_columns_that_are_not_there(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, smiling=[0, 1, 0, 1])
    assert error(attribute_columns=["smilng"]) == (
        "data.attribute_columns=smilng: data=x.parquet has no such column; did you mean 'smiling'?"
    )
    for name in ("mask_column", "points_column", "pair_column", "group"):
        assert error(**{name: "zzz"}) == (f"data.{name}=zzz: data=x.parquet has no such column; valid: image, smiling")


def test_columns_of_the_wrong_type(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, label=[0, 1, 0, 1], share=[0.5] * 4, tags=[[0, 1]] * 4)
    start = "x.parquet: "
    image = "takes a column of encoded images: binary, or struct of bytes and path"
    for name in ("image_column", "mask_column", "pair_column"):
        assert error(**{name: "label"}) == f"{start}label: holds int64, which is no image; data.{name} {image}"
    assert error(attribute_columns=["share"]) == (
        f"{start}share: holds double; data.attribute_columns takes columns of 0, 1 and -1 or of true and false, or one "
        "column of lists of these"
    )
    assert error(attribute_columns=["label", "tags"]).startswith(f"{start}tags: holds list<")  # a list stands alone
    assert error(points_column="label") == (
        f"{start}label: holds int64; data.points_column takes a column of lists of numbers"
    )
    assert error(group="share") == f"{start}share: holds double; data.group takes a column of whole numbers or texts"


def test_attributes_that_are_none(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, a=[0, 1, 1, 0], b=[0, 1, 2, 0], c=[[0], [1], [1, 0], [0]])
    assert error(attribute_columns=["a", "b"]) == (
        "x.parquet row 2: b: is 2, which is no attribute; attributes are 0, 1, or -1 for unknown"
    )
    assert error(attribute_columns=["c"]) == (
        "x.parquet row 2: c: holds 2 attributes, but the first image has 1; all need the same"
    )
    with pytest.raises(UserError, match=r"x\[1\]: is 'yes', which is no attribute"):
        yes_or_no([1, "yes"], 2, "x")


def test_points_that_are_none(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, p=[[1.0, 2.0], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0], [1.0]], none=[[None]] * 4)
    assert error(points_column="p") == (
        "x.parquet row 1: p: holds 2 points, but the first image has 1; all need the same ones"
    )
    with pytest.raises(UserError, match="x: holds a point that has not two coordinates"):
        key_points([1, 2, 3], None, "x")
    with pytest.raises(UserError, match="x: holds a point that has not two coordinates"):
        key_points([[1, 2], [1, 2, 3], [4]], None, "x")
    for value in ("left eye", "{}", "3"):
        with pytest.raises(UserError, match="x: is no list of numbers"):
            key_points(value, None, "x")
    with pytest.raises(UserError, match="x: holds no point"):
        key_points([], None, "x")
    put_table("y.parquet", image=CELLS, p=[[1.0, 2.0]] * 3 + [[1.0, float("inf")]])
    with pytest.raises(UserError, match="^y.parquet row 3: p: holds an infinite coordinate"):
        list(open_source(DataSettings(source="y.parquet", points_column="p")).items())


def test_empty_cells_of_masks(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS, mask=image_cells(MASKS[0], None, MASKS[2], MASKS[3]))
    assert error(mask_column="mask") == "x.parquet row 1: mask: is empty; every image needs one"


def test_a_path_says_no_group_where_there_are_columns(put_table: PutTable) -> None:
    put_table("x.parquet", image=CELLS)
    assert error(group="folder") == "data.group=folder: data=x.parquet has columns; data.group=COLUMN"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("re:(", "is no regular expression"),
        ("re:p\\d+", "has 0 groups; put one pair of brackets round what names the group"),
        ("re:(a)(b)", "has 2 groups"),
    ],
)
def test_expressions_that_name_no_group(value: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.split(";")[0]):
        DataSettings(source="x", group=value)


def test_group_of_a_name() -> None:
    assert group_of("a/b/p12_3.png", "folder") == "a/b"
    assert group_of("a/b/p12_3.png", r"re:(p\d+)_") == "p12"
    with pytest.raises(UserError, match=r"data.group=re:\^\(q\): does not match 'a.png'"):
        group_of("a.png", "re:^(q)")


# -- pieces ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), max_size=6), st.integers(0, 20), st.none() | st.integers(0, 20))
def test_spans_are_the_slice(rows: list[int], start: int, stop: int | None) -> None:
    every = [(i, row) for i, n in enumerate(rows) for row in range(n)]
    found = [(i, row) for i, first, last in spans(rows, start, stop) for row in range(first, last)]
    assert found == every[start:stop]


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["train", "test", None])), max_size=6), st.integers(1, 9))
def test_limited_keeps_the_first_of_each_split(pieces: list[tuple[int, str | None]], most: int) -> None:
    rows, splits = [n for n, _ in pieces], [split for _, split in pieces]
    kept = limited(rows, splits, DataSettings(source="x", most=most))
    for split in set(splits):
        every = [(i, row) for i, n in enumerate(rows) if splits[i] == split for row in range(n)]
        found = [(i, row) for i, n in enumerate(kept) if splits[i] == split for row in range(n)]
        assert found == every[:most]
    assert limited(rows, splits, DataSettings(source="x")) == rows
    bare = limited(rows, splits, DataSettings(source="x", unlabelled="y", most=most).of_unlabelled())
    assert bare == [0 if split == "test" else n for n, split in zip(kept, splits, strict=True)]


# -- real ------------------------------------------------------------------------------------------------------------


def test_real_faces(shared_data: Callable[[str], Path]) -> None:
    settings = DataSettings(source=str(shared_data("faces68")), points_column="keypoints", group="identity", most=50)
    source = open_source(settings)
    items = list(source.items())
    assert source.facts() == {"points": 68} and len(items) == source.count() == 100
    points = np.stack([item.points for item in items if item.points is not None])
    assert points.shape == (100, 68, 2) and points.min() >= 0 and points.max() <= 127
    people = {split: {item.group for item in items if item.split == split} for split in ("train", "test")}
    assert people["train"] and not people["train"] & people["test"]


def test_real_masks(shared_data: Callable[[str], Path]) -> None:
    from PIL import Image

    source = open_source(DataSettings(source=str(shared_data("camvid")), mask_column="mask", mask_void=11))
    item = next(source.items(400, 401))
    assert isinstance(item.mask, bytes) and item.split == "train" and source.facts() == {"mask_void": 11}
    import io

    mask = np.asarray(Image.open(io.BytesIO(item.mask)))
    assert mask.shape == (180, 240) and mask.max() <= 11
