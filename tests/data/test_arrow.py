"""Arrow files as sources: both kinds of file, folders, and what the `datasets` library saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twofold.data import Item, decode, fingerprint, open_source
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from .conftest import encoded, image_cells, pixels

IMAGES = [pixels(i, 4, 4, 3) for i in range(10)]


def table(n: int = 10) -> Any:
    import pyarrow as pa

    return pa.table({"image": image_cells(*IMAGES[:n]), "label": ["b", "a"] * (n // 2), "who": list("abcdefghij")[:n]})


def write(path: Path, n: int = 10, kind: str = "stream", rows: int = 3) -> None:
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    opened = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with opened(path, table(n).schema) as file:
        file.write_table(table(n), max_chunksize=rows)


def dataset(n: int = 6) -> Any:
    """As `datasets` has it, with named classes."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    rows = {"image": [{"bytes": encoded(image), "path": None} for image in IMAGES[:n]], "label": [0, 1] * (n // 2)}
    return datasets.Dataset.from_dict(rows, features)


def read(source: str, **values: Any) -> list[Item]:
    return list(open_source(DataSettings(source=source, **values)).items())


def error(source: str, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_source(DataSettings(source=source, **values)).count()
    return str(caught.value)


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_both_kinds_of_file(here: Path, kind: str) -> None:
    write(here / "x.arrow", kind=kind)
    source = open_source(DataSettings(source="x.arrow", group="who"))
    items = list(source.items())
    assert source.classes() == ["a", "b"] and source.count() == 10 and source.name == "x"
    assert [(item.id, item.label, item.group) for item in items[:2]] == [("x.arrow:0", 1, "a"), ("x.arrow:1", 0, "b")]
    for item, image in zip(items, IMAGES, strict=True):
        np.testing.assert_array_equal(decode(item.encoded, DataSettings(source="x")), image)


def test_a_folder_and_a_pattern(here: Path) -> None:
    for name in ("train-00000", "train-00001", "test-00000"):
        write(here / f"x/{name}.arrow", 4)
    assert [item.split for item in read("x")] == ["test"] * 4 + ["train"] * 8
    assert [item.id for item in read("x/train-*.arrow")][::4] == ["train-00000.arrow:0", "train-00001.arrow:0"]


def test_what_the_library_saves(here: Path) -> None:
    data = dataset()
    data.save_to_disk("plain", num_shards=2)
    write(here / "plain/cache-123.arrow")  # an intermediate result, which is no part of it
    source = open_source(DataSettings(source="plain"))
    items = list(source.items())
    assert source.classes() == ["ant", "bee"] and source.count() == len(items) == 6
    assert [item.label for item in items] == [0, 1] * 3 and {item.split for item in items} == {None}
    assert items[3].id == "data-00001-of-00002.arrow:0"
    np.testing.assert_array_equal(decode(items[3].encoded, DataSettings(source="x")), IMAGES[3])


def test_several_saved_splits(here: Path) -> None:
    import datasets

    parts = {"train": dataset(6), "validation": dataset(2), "extra": dataset(4)}
    datasets.DatasetDict(parts).save_to_disk("saved")
    source = open_source(DataSettings(source="saved"))
    assert [item.split for item in source.items()] == ["train"] * 6 + ["validation"] * 2
    assert list(source.left_out()) == ["extra"] and source.classes() == ["ant", "bee"]
    assert [item.id for item in source.items(6, 7)] == ["validation/data-00000-of-00001.arrow:0"]
    datasets.DatasetDict({"a": dataset(2), "b": dataset(2)}).save_to_disk("other")
    assert error("other") == (
        "data=other: none of its splits (a, b) is called train, validation or test; "
        "give the folder of the one you want: data=other/a"
    )
    assert len(read("other/a")) == 2


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_slices(here: Path, kind: str) -> None:
    write(here / "x/train-0.arrow", 7 - 1, kind), write(here / "x/test-0.arrow", 4, kind)
    source = open_source(DataSettings(source="x"))
    every = list(source.items())
    for start in range(12):
        for stop in (None, *range(12)):
            assert list(source.items(start, stop)) == every[start:stop]


def test_the_first_of_each_split(here: Path) -> None:
    write(here / "x/train-0.arrow", 4), write(here / "x/train-1.arrow", 4), write(here / "x/test-0.arrow", 2)
    source = open_source(DataSettings(source="x", most=5))
    assert [item.id for item in source.items()] == [
        *(f"test-0.arrow:{i}" for i in range(2)),
        *(f"train-0.arrow:{i}" for i in range(4)),
        "train-1.arrow:0",
    ]
    assert source.count() == 7


def test_the_fingerprint_follows_the_files(here: Path) -> None:
    write(here / "x/a.arrow")
    first = fingerprint(DataSettings(source="x"))
    write(here / "x/a.arrow", 4)
    assert fingerprint(DataSettings(source="x")) != first


def test_what_is_damaged(here: Path, put: Callable[..., Path]) -> None:
    put("x.arrow", b"no arrow at all")
    assert error("x.arrow").startswith("x.arrow: cannot be read as Arrow (")
    write(here / "y.arrow")
    content = (here / "y.arrow").read_bytes()
    put("y.arrow", content[: len(content) // 2])
    assert error("y.arrow").startswith("y.arrow: cannot be read as Arrow (")
    dataset().save_to_disk("saved")
    (here / "saved/data-00000-of-00001.arrow").unlink()
    assert error("saved") == (
        "data=saved/data-00000-of-00001.arrow: is not there, but state.json names it; save the data set again"
    )
    put("saved/dataset_dict.json", b'{"splits": [1, 2]}')
    assert error("saved").startswith("data=saved: none of its splits (1, 2) is called train")
    (here / "saved/dataset_dict.json").unlink()
    put("saved/state.json", b"[]")
    assert error("saved") == "data=saved/state.json: does not list '_data_files'; save the data set again"


def test_files_of_several_kinds(here: Path, put: Callable[..., Path], put_table: Callable[..., Path]) -> None:
    write(here / "x/a.arrow"), put_table("x/b.parquet", image=image_cells(IMAGES[0]))
    assert error("x") == "data=x: holds files of several kinds (b.parquet and a.arrow); keep one kind in it"
    write(here / "y/a.arrow"), put("y/1.png")
    assert error("y") == "data=y: holds both images (1) and Arrow files (a.arrow); keep one kind in it"
