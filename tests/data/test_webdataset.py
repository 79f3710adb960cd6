"""Tar files as sources: samples, labels, what belongs to them, slices, and damaged archives."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twofold.data import Item, decode, fingerprint, open_source
from twofold.data.tar import members
from twofold.data.webdataset import split_key
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from .conftest import encoded, pixels

IMAGES = [pixels(i, 4, 4, 3) for i in range(8)]
PutTar = Callable[..., Path]


@pytest.fixture
def put_tar(here: Path) -> PutTar:
    """put_tar("x.tar", {"0.png": bytes, ...}): writes the members in this order."""

    def write(name: str, members: dict[str, bytes | dict[str, Any]], format: int = tarfile.PAX_FORMAT) -> Path:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=format) as tar:
            for member, content in members.items():
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                header = tarfile.TarInfo(member)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
        return path

    return write


def samples(n: int = 6, start: int = 0) -> dict[str, bytes | dict[str, Any]]:
    found: dict[str, bytes | dict[str, Any]] = {}
    for i in range(start, start + n):
        found[f"a/{i:04}.png"] = encoded(IMAGES[i % 8])
        found[f"a/{i:04}.cls"] = f"{[7, 3][i % 2]}\n".encode()
    return found


def read(source: str = "x.tar", **values: Any) -> list[Item]:
    return list(open_source(DataSettings(source=source, **values)).items())


def error(source: str = "x.tar", **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(source, **values)
    return str(caught.value)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_and_labels(put_tar: PutTar, format: int) -> None:
    long = "b" * 120  # a name that takes headers of its own
    put_tar("x.tar", {**samples(), f"{long}/9.png": encoded(IMAGES[6]), f"{long}/9.cls": b"-1"}, format)
    source = open_source(DataSettings(source="x.tar"))
    items = list(source.items())
    assert source.name == "x" and source.classes() == ["3", "7"] and source.count() == 7
    assert [(item.id, item.label, item.split) for item in items[:2]] == [
        ("x.tar:a/0000", 1, None),
        ("x.tar:a/0001", 0, None),
    ]
    assert (items[6].id, items[6].label) == (f"x.tar:{long}/9", -1)
    for item, image in zip(items, IMAGES, strict=False):
        np.testing.assert_array_equal(decode(item.encoded, DataSettings(source="x")), image)
    for start in range(8):
        assert list(source.items(start)) == items[start:]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(here: Path, format: int) -> None:
    """Names of all lengths and letters, folders, links, empty files, sizes about a block."""
    names = ["a.png", "ü" * 20, "n" * 100, "d" * 60 + "/" + "n" * 60, "d/" * 40 + "x", "p/q", "empty", "z"]
    names += [] if format == tarfile.USTAR_FORMAT else ["l" * 300, "d/" * 90 + "n" * 120, "日本" * 60]
    with tarfile.open(here / "x.tar", "w", format=format) as tar:
        for i, name in enumerate(names):
            header = tarfile.TarInfo(name)
            header.size = 0 if name == "empty" else 510 + i
            header.mtime = 1.5 if i % 2 else 7
            tar.addfile(header, io.BytesIO(bytes(header.size)))
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
                other = tarfile.TarInfo(f"other{i}")
                other.type, other.linkname = kind, "a.png"
                tar.addfile(other)
    with tarfile.open(here / "x.tar") as tar:
        expected = [(m.name, m.offset, m.offset_data, m.size) for m in tar if m.isfile()]
    with (here / "x.tar").open("rb") as file:
        found = [tuple(member[:4]) for member in members(file, here / "x.tar")]
        assert found == expected and len(found) == len(names)
        for i, (_, offset, _, _) in enumerate(expected):
            assert [tuple(member[:4]) for member in members(file, here / "x.tar", offset)] == expected[i:]


def test_several_files_with_splits_and_a_pattern(put_tar: PutTar) -> None:
    (
        put_tar("x/train-0000.tar", samples(3)),
        put_tar("x/train-0001.tar", samples(2, 3)),
        put_tar("x/val-0.tar", samples(2)),
    )
    source = open_source(DataSettings(source="x"))
    every = list(source.items())
    assert [item.split for item in every] == ["train"] * 5 + ["validation"] * 2
    for start in range(8):
        for stop in (None, *range(8)):
            assert list(source.items(start, stop)) == every[start:stop]
    assert [item.id for item in read("x", most=1)] == ["train-0000.tar:a/0000", "val-0.tar:a/0000"]
    assert len(read("x/train-*.tar")) == 5
    assert open_source(DataSettings(source="x", most=1)).classes() == ["7"]  # the rest is not looked at


def test_labels_of_other_members_and_fields(put_tar: PutTar) -> None:
    one = {"0.jpg": encoded(IMAGES[0], "JPEG"), "0.txt": b" a dog ", "0.json": {"label": "dog", "kind": 4, "x": None}}
    two = {"1.jpg": encoded(IMAGES[1], "JPEG"), "1.txt": b"a cat", "1.json": {"label": "cat", "kind": 2, "x": True}}
    put_tar("x.tar", {**one, **two})
    cases = {None: ["cat", "dog"], "txt": ["a cat", "a dog"], "kind": ["2", "4"], "x": ["true"]}
    for column, classes in cases.items():
        source = open_source(DataSettings(source="x.tar", label_column=column))
        assert source.classes() == classes
        assert [item.label for item in source.items()] == ([-1, 0] if column == "x" else [1, 0])
    put_tar("y.tar", {"0.png": encoded(IMAGES[0]), "0.json": {"kind": 2}})
    assert open_source(DataSettings(source="y.tar")).classes() == []


def test_what_belongs_to_an_image(put_tar: PutTar) -> None:
    members: dict[str, bytes | dict[str, Any]] = {}
    for i in range(3):
        members |= {
            f"p{i // 2}_{i}.png": encoded(IMAGES[i]),
            f"p{i // 2}_{i}.mask.png": encoded(IMAGES[i][..., 0]),
            f"p{i // 2}_{i}.pair.jpg": b"pair %d" % i,
            f"p{i // 2}_{i}.points.json": json.dumps([[i, 1], [None, None]]).encode(),
            f"p{i // 2}_{i}.json": {"smiling": i > 0, "male": None, "who": 7, "marks": [1, 2, 3, i]},
        }
    put_tar("x.tar", members)
    settings = {"attribute_columns": ["smiling", "male"], "mask_void": 9, "group": r"re:^(p\d)_"}
    source = open_source(DataSettings(source="x.tar", **settings))
    assert source.facts() == {"attributes": ["smiling", "male"], "points": 2, "mask_void": 9}
    items = list(source.items())
    assert [item.attributes for item in items] == [(0, -1), (1, -1), (1, -1)]
    assert [item.group for item in items] == ["p0", "p0", "p1"]
    assert items[1].mask == encoded(IMAGES[1][..., 0]) and items[1].pair == b"pair 1"
    np.testing.assert_array_equal(items[2].points, np.array([[2, 1], [np.nan, np.nan]], np.float32))
    others = read(group="who", points_column="marks")
    assert others[2].group == "7" and others[2].points is not None and others[2].points.tolist() == [[1, 2], [3, 2]]


def test_several_images_in_a_sample(put_tar: PutTar) -> None:
    put_tar("x.tar", {"0.left.png": b"l", "0.right.png": b"r"})
    assert error() == "x.tar: 0: has several images: left.png, right.png; set data.image_column=left.png"
    assert read(image_column="right.png")[0].encoded == b"r"
    assert error(image_column="up.png") == "x.tar: 0: has no member .up.png; valid: left.png, right.png"


def test_keys() -> None:
    assert split_key("a.b/0001.mask.PNG") == ("a.b/0001", "mask.png")
    assert split_key("./0001") == ("0001", "")


def test_hidden_members_and_folders_are_ignored(put_tar: PutTar, here: Path) -> None:
    put_tar("x.tar", {"._0.png": b"mac", "./0.png": encoded(IMAGES[0]), ".git/1.png": b"x"})
    (here / "x").mkdir()
    with tarfile.open(here / "x.tar", "a") as tar:
        tar.add(here / "x", "folder")
    assert [item.id for item in read()] == ["x.tar:0"]


def test_nothing_is_written_outside(put_tar: PutTar, here: Path) -> None:
    put_tar("x.tar", {"../../evil.png": encoded(IMAGES[0])})
    before = sorted(here.parent.parent.rglob("*.png"))
    assert len(read()) == 1 and sorted(here.parent.parent.rglob("*.png")) == before


def test_the_fingerprint_follows_the_files(put_tar: PutTar) -> None:
    put_tar("x.tar", samples(2))
    first = fingerprint(DataSettings(source="x.tar"))
    put_tar("x.tar", samples(3))
    assert fingerprint(DataSettings(source="x.tar")) != first


# -- what is said ----------------------------------------------------------------------------------------------------


def test_damaged_files_name_the_member(put_tar: PutTar, here: Path) -> None:
    path = put_tar("x.tar", samples())
    content = path.read_bytes()
    for cut, said in {
        512 + 20: "x.tar: a/0000.png: cannot be read as tar (the file ends before it does)",
        1024: "x.tar: after a/0000.png: cannot be read as tar (the archive is cut short here)",
        1024 + 100: "x.tar: after a/0000.png: cannot be read as tar (",
        100: "x.tar: after its beginning: cannot be read as tar (",
        0: "x.tar: after its beginning: cannot be read as tar (",
    }.items():
        path.write_bytes(content[:cut])
        assert error().startswith(said), cut
        assert error().endswith("download or write it again")
    broken = bytearray(content)
    broken[1024 + 148] ^= 1  # the checksum of the second header
    path.write_bytes(broken)
    assert error() == (
        "x.tar: after a/0000.png: cannot be read as tar (a damaged header follows); download or write it again"
    )


def test_samples_that_lack_something(put_tar: PutTar) -> None:
    put_tar("x.tar", {"0.cls": b"1", "0.txt": b"a"})
    assert error() == (
        "x.tar: 0: has no image (members: .cls, .txt); every sample needs one; is the archive a WebDataset?"
    )
    put_tar("x.tar", {"0.png": b"a", "0.cls": b"1", "1.png": b"a"})
    assert error() == "x.tar: 1: has no member .cls; add it"
    put_tar("x.tar", {"0.png": b"a", "0.json": {"label": 1}, "1.png": b"a", "1.json": {"lable": 1}})
    assert error() == "x.tar: 1.json: has no 'label', which data.label_column names; did you mean 'lable'?"
    put_tar("x.tar", {"0.png": b"a", "0.mask.png": b"m", "1.png": b"a"})
    assert error() == "x.tar: 1: has no member .mask.png, unlike the first sample; all or none need one"
    put_tar("x.tar", {"0.png": b"a"})
    assert error(group="who") == "x.tar: 0: has no member .json; the settings name fields of it"
    assert error(mask_column="seg") == "data.mask_column=seg: data=x.tar has no columns; call the members KEY.mask.png"


def test_members_of_another_kind(put_tar: PutTar) -> None:
    put_tar("x.tar", {"0.png": b"a", "0.json": b"{", "0.points.json": b"[[1, 2]]"})
    assert error().startswith("x.tar: 0.json: is no JSON (")
    put_tar("x.tar", {"0.png": b"a", "0.json": b"[1]"})
    assert error(label_column="label") == 'x.tar: 0.json: is no JSON object; write {"label": ..., ...}'
    put_tar("x.tar", {"0.png": b"a", "0.json": {"label": [1]}})
    assert error() == "x.tar: 0.json: label is [1], which is no class; labels are whole numbers or texts"
    put_tar("x.tar", {"0.png": b"a", "0.cls": b"1", "1.png": b"a", "1.cls": b"dog"})
    assert error() == "data=x.tar: some labels are whole numbers and some are texts; write all of one kind"
    put_tar("x.tar", {"0.png": b"a", "0.points.json": b"[[1, 2]]", "1.png": b"b", "1.points.json": b"[]"})
    assert error() == ("x.tar: 1.points.json: holds 0 points, but the first image has 1; all need the same ones")
    put_tar("x.tar", {"0.png": b"a", "0.PNG": b"b"})
    assert error().startswith("x.tar: 0.PNG: cannot be read as tar (it is there twice)")


def test_compressed_archives_are_no_source(put: Callable[..., Path]) -> None:
    put("x.tar.gz", b"\x1f\x8b")
    assert error("x.tar.gz") == "data=x.tar.gz: is an archive; unpack it and give the folder"
