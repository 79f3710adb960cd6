"""Folders as sources: layouts, what is ignored, and what is said when a layout makes no sense."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from twofold.data import fingerprint, open_source
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from .conftest import encoded, pixels

Put = Callable[..., Path]


def items(source: str) -> list[tuple[str, int, str | None]]:
    return [(item.id, item.label, item.split) for item in open_source(DataSettings(source=source)).items()]


def classes(source: str) -> list[str]:
    return open_source(DataSettings(source=source)).classes()


def error(source: str, **values: object) -> str:
    with pytest.raises(UserError) as caught:
        open_source(DataSettings(source=source, **values))
    return str(caught.value)


def test_flat_folder_has_no_labels(put: Put) -> None:
    for name in ("b.png", "a.JPG", "c.webp", "note.txt", ".hidden.png", "data.json", ".git/x.png", "docs/readme.md"):
        put(f"photos/{name}")
    assert items("photos") == [("a.JPG", -1, None), ("b.png", -1, None), ("c.webp", -1, None)]
    assert classes("photos") == []


def test_class_folders_in_sorted_order_and_nested(put: Put) -> None:
    for name in ("dog/1.png", "cat/z.png", "cat/2020/may/a.png", "cat/2020/b.png", "10/x.png", "9/x.png"):
        put(f"pets/{name}")
    assert classes("pets") == ["10", "9", "cat", "dog"]
    assert items("pets/") == [
        ("10/x.png", 0, None),
        ("9/x.png", 1, None),
        ("cat/z.png", 2, None),
        ("cat/2020/b.png", 2, None),
        ("cat/2020/may/a.png", 2, None),
        ("dog/1.png", 3, None),
    ]


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "Val"])
def test_split_folders(put: Put, validation: str) -> None:
    for name in ("train/cat/1.png", "train/dog/1.png", f"{validation}/dog/2.png", "test/3.png"):
        put(f"pets/{name}")
    assert classes("pets") == ["cat", "dog"]
    assert sorted(items("pets"), key=lambda item: item[0].lower()) == [
        ("test/3.png", -1, "test"),
        ("train/cat/1.png", 0, "train"),
        ("train/dog/1.png", 1, "train"),
        (f"{validation}/dog/2.png", 1, "validation"),
    ]


@pytest.mark.parametrize("name", ["unlabelled", "Unlabeled", "_unlabelled"])
def test_a_folder_called_unlabelled_is_no_class(put: Put, here: Path, name: str) -> None:
    for file in ("cat/1.png", f"{name}/2.png", f"{name}/deep/3.png", "zebra/4.png", f"zebra/{name}/5.png"):
        put(f"pets/{file}")
        put(f"parts/train/{file}")
    labels = {"cat/1.png": 0, f"{name}/2.png": -1, f"{name}/deep/3.png": -1, "zebra/4.png": 1, f"zebra/{name}/5.png": 1}
    assert classes("pets") == classes("parts") == ["cat", "zebra"]
    assert {id: label for id, label, _ in items("pets")} == labels
    assert set(items("parts")) == {(f"train/{id}", label, "train") for id, label in labels.items()}
    put("parts/test/1.png")  # a split without classes stays one
    assert classes("parts") == ["cat", "zebra"] and ("test/1.png", -1, "test") in items("parts")
    put(f"alone/{name}/1.png"), put("alone/2.png")  # no class anywhere: nothing is ambiguous
    assert classes("alone") == [] and [label for _, label, _ in items("alone")] == [-1, -1]
    put("empty/cat/1.png"), (here / "empty" / name).mkdir()
    assert classes("empty") == ["cat"]
    put(f"beside/{name}/1.png"), put("beside/train/cat/1.png")
    assert error("beside") == (
        f"data=beside: sub-folder {name!r} lies beside the split 'train'; move it into one of the splits: train/{name}"
    )


def test_flat_splits_have_no_labels(put: Put) -> None:
    put("x/train/1.png"), put("x/test/2.png")
    assert items("x") == [("test/2.png", -1, "test"), ("train/1.png", -1, "train")]
    assert classes("x") == []


def test_links_are_followed(put: Put, here: Path) -> None:
    put("elsewhere/1.png"), put("pets/cat/1.png")
    (here / "pets/dog").symlink_to(here / "elsewhere")
    assert items("pets") == [("cat/1.png", 0, None), ("dog/1.png", 1, None)]


def test_names_that_are_not_utf8(put: Put, here: Path) -> None:
    path = os.fsencode(here / "x") + b"/caf\xe9.png"
    os.makedirs(here / "x")
    with open(path, "wb") as file:
        file.write(encoded(pixels(0, 4, 4)))
    (item,) = open_source(DataSettings(source="x")).items()
    assert os.fsencode(item.id) == b"caf\xe9.png"
    assert len(fingerprint(DataSettings(source="x"))) == 64


# -- what is said ---------------------------------------------------------------------------------------------------


def test_missing_folder_names_the_nearest(put: Put) -> None:
    put("photos/a.png")
    assert error("photso") == "data=photso: there is no such file or folder; did you mean 'photos'?"
    assert error("photos/cats").startswith("data=photos/cats: there is no such file or folder; valid: digits, a folder")
    assert error("./phots/cats/x") == "data=./phots/cats/x: there is no such file or folder; did you mean 'photos'?"
    assert error("digit") == "data=digit: there is no such file or folder; did you mean 'digits'?"


def test_missing_folder_elsewhere_says_where(put: Put, here: Path) -> None:
    put("photos/a.png")
    assert error(f"{here}/photo/x").endswith(f"there is no such file or folder; in {here}, did you mean 'photos'?")


def test_empty_folder(here: Path) -> None:
    (here / "empty/sub").mkdir(parents=True)
    assert error("empty").startswith("data=empty: this folder holds no images; images end in png, jpg, jpeg, bmp")


def test_images_beside_class_folders(put: Put) -> None:
    put("x/1.png"), put("x/cat/2.png")
    assert error("x") == (
        "data=x: images lie both in the folder itself (1) and in sub-folders such as 'cat'; "
        "if they have no label, put them into a sub-folder called unlabelled, otherwise into those of their class"
    )
    put("y/1.png"), put("y/train/cat/2.png")
    assert error("y").endswith("and in sub-folders such as 'train'; move them into train, or another split")


def test_images_beside_class_folders_in_a_split(put: Put) -> None:
    put("x/train/1.png"), put("x/train/cat/2.png"), put("x/test/cat/2.png")
    assert error("x").startswith("data=x/train: images lie both in the folder itself (1) and in sub-folders such as")


def test_split_beside_class(put: Put) -> None:
    put("x/train/1.png"), put("x/cat/2.png")
    assert error("x").startswith("data=x: sub-folder 'train' is named like a split and 'cat' like a class; use splits")


def test_class_folder_without_images(put: Put, here: Path) -> None:
    put("x/cat/2.png")
    (here / "x/dog").mkdir()
    assert error("x") == (
        "data=x/dog: this class folder holds no images; "
        "add its images, or remove the folder (or begin its name with a dot)"
    )


def test_a_link_to_a_folder_above(put: Put, here: Path) -> None:
    put("x/cat/2.png")
    (here / "x/cat/loop").symlink_to(here / "x")
    assert error("x") == "x/cat/loop: is a link to a folder above it; remove the link"


def test_folder_that_cannot_be_read(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("x/cat/2.png")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "cat":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert error("x") == "x/cat: cannot be read (Permission denied); check its permissions"


def test_columns_make_no_sense_for_a_folder(put: Put) -> None:
    put("x/cat/2.png")
    assert error("x", label_column="breed") == (
        "data.label_column=breed: data=x has no columns; "
        "only Parquet and hub data have, or a folder with a metadata.csv"
    )
    assert error("digits", image_column="i") == (
        "data.image_column=i: data=digits has no columns; only Parquet and hub data have"
    )


def test_files_that_are_no_source(put: Put) -> None:
    put("x/cat/2.png"), put("x.zip", b"PK"), put("x.csv", b"a,b"), put("both/1.png"), put("both/t.parquet", b"")
    assert error("x/cat/2.png") == "data=x/cat/2.png: is one image; give the folder it is in: data=x/cat"
    assert error("x.zip") == "data=x.zip: is an archive; unpack it and give the folder"
    assert error("x.csv").startswith("data=x.csv: this kind of file is not a source of images; valid: digits, a folder")
    assert error("both") == "data=both: holds both images (1) and Parquet files (t.parquet); keep one kind in it"
    put("tar/cat/1.png"), put("tar/t.tar", b"")
    assert error("tar") == "data=tar: holds both images (1) and tar files (t.tar); keep one kind in it"


# -- fingerprint ----------------------------------------------------------------------------------------------------


def test_fingerprint_follows_files_and_pixel_settings(put: Put, here: Path) -> None:
    put("x/a.png"), put("x/note.txt", b"1")

    def of(**values: object) -> str:
        return fingerprint(DataSettings(source="x", **values))

    first = of()
    assert of() == first and len(first) == 64
    assert of(split_seed=3, validation_share=0.3, test_share=0.1, flip=True) == first
    put("x/note.txt", b"22")
    assert of() == first
    changed = [of(size=4), of(size=4, fit="pad"), of(channels=1), of(background="black"), of(on_bad_image="skip")]
    os.utime(here / "x/a.png", ns=(1, 1))
    changed.append(of())
    put("x/b.png")
    changed.append(of())
    (here / "x/b.png").rename(here / "x/c.png")
    changed.append(of())
    assert len({first, *changed}) == len(changed) + 1


def test_same_names_elsewhere_are_another_source(put: Put, here: Path) -> None:
    for folder in ("x", "y"):
        path = put(f"{folder}/a.bmp", encoded(np.zeros((2, 2), np.uint8), "BMP"))
        os.utime(path, ns=(1, 1))
    assert fingerprint(DataSettings(source="x")) != fingerprint(DataSettings(source="y"))
    assert fingerprint(DataSettings(source="x")) == fingerprint(DataSettings(source=f"{here}/y/../x/"))


def test_digits() -> None:
    source = open_source(DataSettings(source="digits"))
    found = list(source.items())
    assert source.classes() == list("0123456789")
    assert source.count() == len(found) == 1797
    image = found[0].encoded
    assert isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == (8, 8)
    assert image[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0 of 16
    assert found[0].id == "digits:0" and found[0].label == 0 and found[0].split is None
    assert [item.id for item in source.items(1795)] == ["digits:1795", "digits:1796"]
    assert [item.id for item in open_source(DataSettings(source="digits", most=2)).items()] == ["digits:0", "digits:1"]
    assert error("digits", group="who") == (
        "data.group=who: data=digits has no columns; only Parquet and hub data have"
    )
