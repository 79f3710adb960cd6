"""Short names: the hub's data sets with the right columns, and the published files in a folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twofold.data import fingerprint, open_source
from twofold.data.columns import image_column, label_column
from twofold.data.hub import NAME
from twofold.data.named import ATTRIBUTES, NAMED, WithLicence
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from .conftest import image_cells, pixels

PutTable = Callable[..., Path]
CELLS = image_cells(*(pixels(i, 4, 4, 3) for i in range(4)))
NAMES = {"_type": "ClassLabel", "names": ["a", "b", "c", "d"]}


def error(source: str, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_source(DataSettings(source=source, **values)).count()
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name, named in NAMED.items() if named.hub])
def test_every_name_opens_its_hub_data_set(here: Path, name: str) -> None:
    named = NAMED[name]
    assert NAME.fullmatch(named.hub)
    source = open_source(DataSettings(source=name))
    assert isinstance(source, WithLicence) and source.where == f"data={named.hub}"
    assert source.identity().startswith(f"hub\0{named.hub.partition(':')[0]}\0")


def test_what_a_name_sets_are_settings() -> None:
    for named in NAMED.values():
        DataSettings(source="x", **named.columns)
        assert named.hub or named.columns or named.layout


def test_what_the_name_sets_belongs_to_its_store(here: Path) -> None:
    def of(source: str, **values: Any) -> str:
        return fingerprint(DataSettings(source=source, **values))

    assert of("cifar10") == of("uoft-cs/cifar10")  # nothing needs to be set
    assert len({of("cifar100"), of("uoft-cs/cifar100"), of("cifar100", label_column="coarse_label")}) == 3


def test_columns_of_the_hub_in_a_folder(put_table: PutTable) -> None:
    features = {"img": {"_type": "Image"}, "fine_label": NAMES, "coarse_label": {**NAMES, "names": ["x", "y"]}}
    values = {"img": CELLS, "fine_label": [0, 1, 2, 3], "coarse_label": [0, 0, 1, 1]}
    put_table("c/train.parquet", features, **values)
    source = open_source(DataSettings(source="cifar100:c"))
    assert source.classes() == ["a", "b", "c", "d"] and source.facts() == {"licence": NAMED["cifar100"].licence}
    assert [item.label for item in source.items(1)] == [1, 2, 3]
    assert open_source(DataSettings(source="cifar100:c", label_column="coarse_label")).classes() == ["x", "y"]
    with pytest.raises(UserError, match="several columns hold labels"):
        open_source(DataSettings(source="c")).classes()


def test_celeba_has_forty_attributes(put_table: PutTable) -> None:
    put_table("c/train.parquet", image=CELLS, celeb_id=[1, 2, 2, 1], **{name: [True, False] * 2 for name in ATTRIBUTES})
    source = open_source(DataSettings(source="celeba:c", group="celeb_id"))
    assert source.facts()["attributes"] == ATTRIBUTES and len(ATTRIBUTES) == len(set(ATTRIBUTES)) == 40
    (item,) = source.items(1, 2)
    assert item.attributes == (0,) * 40 and item.group == "2"
    few = open_source(DataSettings(source="celeba:c", attribute_columns=["Male", "Young"]))
    assert few.facts()["attributes"] == ["Male", "Young"]


def test_splits_without_labels_are_left_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from twofold.data.hub import Hub

    parts = {name: datasets.Dataset.from_dict({"image": [b"x"]}) for name in ("train", "validation", "test")}
    monkeypatch.setattr(Hub, "_splits", property(lambda self: datasets.DatasetDict(parts)))
    source = open_source(DataSettings(source="imagenet"))
    assert list(source.left_out()) == ["test"] and source.count() == 2


def test_a_folder_of_that_name_is_the_folder(put: Callable[..., Path]) -> None:
    put("mnist/1.png")
    assert [item.id for item in open_source(DataSettings(source="mnist")).items()] == ["1.png"]


def test_what_is_said(put: Callable[..., Path]) -> None:
    put("x/1.png")
    assert error("cifar10:y") == "data=cifar10:y: there is no folder 'y'"
    assert error("cifar10:") == "data=cifar10:: names no folder; data=cifar10:FOLDER, or data=cifar10 for the hub's"
    assert error("cifar10:x") == (
        "data=cifar10:x: this folder is not laid out as cifar10 is published; "
        "expected: cifar-10-batches-bin: data_batch_1.bin, ...; or Parquet files of the hub"
    )
    assert error("svhn:x").endswith("expected: Parquet files of the hub")
    assert error("cifar-10").endswith("did you mean 'cifar10'?")


def test_files_that_are_not_read(put: Callable[..., Path]) -> None:
    for name in ("data_batch_1", "batches.meta"):
        put(f"p/{name}", b"\x80\x04")
    for name in ("train", "test", "meta"):
        put(f"q/{name}", b"\x80\x04")
    put("s/train_32x32.mat", b"MATLAB")
    for folder, name in {"p": "cifar10", "q": "cifar100"}.items():
        for source in (folder, f"{name}:{folder}"):
            assert error(source) == (
                f"data={source}: holds CIFAR's Python version: pickled files, which can run any code and are not read; "
                f"download the binary version, or use the hub: data={name}"
            )
    assert error("s") == "data=s: holds SVHN's .mat files, which are not read; use the hub: data=svhn"


def test_the_documentation_has_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs/data.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", text, re.MULTILINE))
    for name, named in NAMED.items():
        for value in (named.hub, named.splits, named.licence, *named.columns):
            assert value in rows[name], (name, value)


def test_real_columns(shared_data: Callable[[str], Path]) -> None:
    import pyarrow.parquet as pq

    for name in ("cifar10", "fashion_mnist"):
        folder = shared_data(name)
        schema = pq.ParquetFile(next(folder.glob("*.parquet"))).schema_arrow
        assert image_column(schema, None, "x") and label_column(schema, None, "x") == "label"
        assert len(open_source(DataSettings(source=f"{name}:{folder}")).classes()) == 10
