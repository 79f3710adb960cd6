"""Data sets as they are published, each on a tiny fake in its layout."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twofold.data import Item, fingerprint, open_source
from twofold.data.named import ATTRIBUTES
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from .conftest import pixels

Put = Callable[..., Path]
WNIDS = ("n01440764", "n01443537")


def opened(source: str, **values: Any) -> tuple[Any, list[Item]]:
    found = open_source(DataSettings(source=source, **values))
    items = list(found.items())
    assert found.count() == len(items)
    for start, stop in [(0, 1), (1, 3), (2, None), (len(items), None)]:
        sliced = list(found.items(start, stop))
        assert [item[:1] + item[2:6] for item in sliced] == [item[:1] + item[2:6] for item in items[start:stop]]
    return found, items


def error(source: str, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        list(open_source(DataSettings(source=source, **values)).items())
    return str(caught.value)


def rows(items: list[Item]) -> list[tuple[str, int, str | None]]:
    return [(item.id, item.label, item.split) for item in items]


# -- ImageNet --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(put: Put) -> None:
    """tiny-imagenet-200 with two classes."""
    for wnid in WNIDS:
        put(f"tiny/train/{wnid}/images/{wnid}_0.JPEG"), put(f"tiny/train/{wnid}/{wnid}_boxes.txt", b"x\t0\t0\t1\t1")
    put("tiny/val/images/val_0.JPEG"), put("tiny/val/images/val_1.JPEG"), put("tiny/test/images/test_0.JPEG")
    put(
        "tiny/val/val_annotations.txt",
        f"val_0.JPEG\t{WNIDS[1]}\t0\t1\t2\t3\nval_1.JPEG\t{WNIDS[0]}\t0\t0\t1\t1\n".encode(),
    )
    put("tiny/words.txt", f"n00001740\tentity\n{WNIDS[0]}\ttench, Tinca tinca\n".encode())


@pytest.mark.parametrize("source", ["tiny", "tiny-imagenet:tiny"])
def test_tiny_imagenet(tiny: None, source: str) -> None:
    found, items = opened(source)
    assert found.classes() == list(WNIDS) and list(found.left_out()) == ["test"]
    assert found.facts()["class_titles"] == ["tench, Tinca tinca", WNIDS[1]]
    assert rows(items) == [
        (f"train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG", 0, "train"),
        (f"train/{WNIDS[1]}/images/{WNIDS[1]}_0.JPEG", 1, "train"),
        ("val/images/val_0.JPEG", 1, "validation"),
        ("val/images/val_1.JPEG", 0, "validation"),
    ]
    assert [item.id for item in opened(source, most=1)[1]] == [items[0].id, items[2].id]


def test_tiny_imagenet_follows_its_list(tiny: None, put: Put) -> None:
    first = fingerprint(DataSettings(source="tiny"))
    put("tiny/val/val_annotations.txt", f"val_0.JPEG\t{WNIDS[1]}\n".encode())
    assert fingerprint(DataSettings(source="tiny")) != first
    assert error("tiny") == "tiny/val/val_annotations.txt: val_1.JPEG: has no line; download the list again"
    put("tiny/val/val_annotations.txt", b"val_0.JPEG\tcat\n")
    assert error("tiny") == (
        "tiny/val/val_annotations.txt line 1: names no WordNet id (val_0.JPEG cat); "
        "a line holds an image and its WordNet id, or that id alone"
    )


MAPPINGS = {
    "LOC_val_solution.csv": f"ImageId,PredictionString\nval_1,{WNIDS[0]} 1 2 3 4\nval_0,{WNIDS[1]} 1 2 3 4 \n",
    "val/val_labels.txt": f"val_0.JPEG {WNIDS[1]}\nval_1.JPEG {WNIDS[0]}\n",
    "imagenet_2012_validation_synset_labels.txt": f"{WNIDS[1]}\n{WNIDS[0]}\n",
}


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("inside", ["", "ILSVRC/Data/CLS-LOC/"])
def test_imagenet_with_loose_validation_images(put: Put, mapping: str, inside: str) -> None:
    for wnid in WNIDS:
        put(f"in/{inside}train/{wnid}/{wnid}_1.JPEG")
    put(f"in/{inside}val/val_0.JPEG"), put(f"in/{inside}val/val_1.JPEG"), put(f"in/{inside}test/t.JPEG")
    put(f"in/{inside if '/' in mapping else ''}{mapping}", MAPPINGS[mapping].encode())
    put("in/LOC_synset_mapping.txt", f"{WNIDS[0]} tench, Tinca tinca\n{WNIDS[1]} goldfish\n".encode())
    for source in ("in", "imagenet:in"):
        found, items = opened(source)
        assert found.name == "in" and found.classes() == list(WNIDS) and list(found.left_out()) == ["test"]
        assert found.facts()["class_titles"] == ["tench, Tinca tinca", "goldfish"]
        assert rows(items)[2:] == [("val/val_0.JPEG", 1, "validation"), ("val/val_1.JPEG", 0, "validation")]


def test_imagenet_in_folders_is_a_folder_like_any_other(put: Put) -> None:
    for split in ("train", "val"):
        for wnid in WNIDS:
            put(f"in/{split}/{wnid}/{split}_1.JPEG")
    assert open_source(DataSettings(source="in")).identity().startswith("folder\0")
    for source in ("in", "imagenet:in"):
        found, items = opened(source)
        assert found.classes() == list(WNIDS)
        assert [(item.label, item.split) for item in items] == [
            (0, "train"),
            (1, "train"),
            (0, "validation"),
            (1, "validation"),
        ]


def test_imagenet_that_lacks_something(put: Put) -> None:
    put(f"in/train/{WNIDS[0]}/1.JPEG"), put("in/val/val_0.JPEG")
    assert error("in").startswith(
        "data=in/val: its images are not in folders of classes, and no list says what they are; "
        "add one of LOC_val_solution.csv, val_annotations.txt,"
    )
    put("in/val_labels.txt", f"val_0.JPEG {WNIDS[1]}\n".encode())
    assert error("in") == (
        f"data=in/val/val_0.JPEG: its class {WNIDS[1]} has no folder in train; copy train completely"
    )
    put("in/val_labels.txt", f"{WNIDS[0]}\n{WNIDS[0]}\n".encode())
    assert error("in") == (
        "in/val_labels.txt: holds 2 classes without images' names, and there are 1 images; "
        "it needs a line for each image, sorted by name"
    )
    put("in/val_labels.txt", b"\xff\xfe")
    assert error("in").startswith("in/val_labels.txt line 1: names no WordNet id")


# -- CelebA ----------------------------------------------------------------------------------------------------------

FACES = [f"{i:06}.jpg" for i in range(1, 6)]
CODES = np.random.default_rng(0).choice([-1, 1], (5, 40))
MARKS = np.arange(50).reshape(5, 10)
NAMES = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"


def put_celeba(put: Put, csv: bool, folders: tuple[str, str, str] = ("", "", "")) -> None:
    images, lists, parts = (f"c/{folder}" for folder in folders)
    for name in FACES:
        put(f"{images}img_align_celeba/{name}")

    def write(where: str, name: str, header: str, values: Any, is_counted: bool = True) -> None:
        lines = [
            " ".join([face, *(f"{v:2d}" for v in np.atleast_1d(row))]) for face, row in zip(FACES, values, strict=True)
        ]
        if csv:
            lines = [",".join(line.split()) for line in [f"image_id {header}", *lines]]
        elif is_counted:
            lines = [str(len(FACES)), header, *lines]
        put(f"{where}{name}.{'csv' if csv else 'txt'}", "\n".join(lines).encode())

    write(lists, "list_attr_celeba", " ".join(ATTRIBUTES), CODES)
    write(lists, "list_landmarks_align_celeba", NAMES, MARKS)
    write(parts, "list_eval_partition", "partition", [0, 1, 2, 0, 0], is_counted=False)
    write(lists, "identity_CelebA", "identity", [7, 8, 9, 7, 9], is_counted=False)


@pytest.mark.parametrize(
    ("csv", "folders"),
    [(False, ("", "", "")), (False, ("Img/", "Anno/", "Eval/")), (True, ("img_align_celeba/", "", ""))],
)
def test_celeba(put: Put, csv: bool, folders: tuple[str, str, str]) -> None:
    put_celeba(put, csv, folders)
    for source in ("c", "celeba:c"):
        found, items = opened(source, group="identity")
        facts = found.facts()
        assert facts["attributes"] == ATTRIBUTES and found.classes() == []
        assert facts["points"] == ["lefteye", "righteye", "nose", "leftmouth", "rightmouth"]
        assert facts["flip_pairs"] == [[0, 1], [3, 4]]
        assert [item.split for item in items] == ["train", "validation", "test", "train", "train"]
        assert [item.group for item in items] == ["7", "8", "9", "7", "9"]
        for i, item in enumerate(items):
            assert (
                item.id == FACES[i] and item.label == -1 and isinstance(item.encoded, Path) and item.encoded.is_file()
            )
            assert item.attributes == tuple((CODES[i] > 0).astype(int).tolist())
            np.testing.assert_array_equal(item.points, MARKS[i].reshape(5, 2).astype(np.float32))


def test_celeba_chosen(put: Put, here: Path) -> None:
    put_celeba(put, csv=False)
    found, items = opened("c", attribute_columns=["Young", "Male"], most=1)
    assert found.facts()["attributes"] == ["Young", "Male"]
    assert [item.id for item in items] == FACES[:3]
    columns = [ATTRIBUTES.index("Young"), ATTRIBUTES.index("Male")]
    assert [item.attributes for item in items] == [tuple((CODES[i, columns] > 0).astype(int)) for i in range(3)]
    os.remove(here / "c/list_landmarks_align_celeba.txt")
    found, items = opened("c")
    assert "points" not in found.facts() and items[0].points is None and items[0].group is None


def test_celeba_that_lacks_something(put: Put, here: Path) -> None:
    put_celeba(put, csv=False)
    assert error("c", attribute_columns=["Mael"]) == (
        "data.attribute_columns=Mael: list_attr_celeba.txt has no such attribute; did you mean 'Male'?"
    )
    assert error("c", group="who") == "data.group=who: data=c knows no such group; data.group=identity"
    assert error("c", label_column="Male").startswith("data.label_column=Male: data=c has attributes only")
    put("c/list_eval_partition.txt", f"{FACES[0]} 0\n".encode())
    assert error("c") == "c/list_eval_partition.txt: 000002.jpg: has no line; download the list again"
    put("c/list_eval_partition.txt", "".join(f"{face} 3\n" for face in FACES).encode())
    assert error("c") == "c/list_eval_partition.txt: a part is none of 0, 1 and 2; download it again"
    put("c/list_eval_partition.txt", f"{FACES[0]} 0\n{FACES[1]} 0 1\n".encode())
    assert error("c").startswith("c/list_eval_partition.txt line 2: has 2 values, unlike the lines above;")
    put("c/list_eval_partition.txt", f"{FACES[0]} train\n".encode())
    assert error("c").startswith("c/list_eval_partition.txt line 1: holds no whole numbers")
    put("c/list_eval_partition.txt", f"{FACES[0]} 99999999999\n".encode())
    assert error("c").startswith("c/list_eval_partition.txt line 1: holds no whole numbers")
    put("c/list_eval_partition.txt", b"\xff\xfe\n")
    assert error("c").startswith("c/list_eval_partition.txt: is no list of images and their values")
    put("c/list_eval_partition.txt", "".join(f"{face} 0\n" for face in FACES).encode())
    put("c/list_landmarks_align_celeba.txt", ("5\nx y z\n" + "".join(f"{face} 1 2 3\n" for face in FACES)).encode())
    assert error("c").startswith("c/list_landmarks_align_celeba.txt: a point has not two coordinates")
    os.remove(here / "c/list_eval_partition.txt")
    assert error("c") == "c/list_eval_partition.txt: is not there; download it with the other lists"


# -- CIFAR's binary files --------------------------------------------------------------------------------------------


def put_cifar(put: Put, names: tuple[str, ...], labels: int, n: int = 3) -> dict[str, np.ndarray]:
    found = {}
    for i, name in enumerate(names):
        values = pixels(i, n, labels + 3072)
        values[:, :labels] %= 2
        put(name, values.tobytes())
        found[name] = values
    return found


CIFAR10 = (*(f"c/data_batch_{i}.bin" for i in range(1, 6)), "c/test_batch.bin")


@pytest.mark.parametrize("source", ["c", "cifar10:c"])
def test_cifar10(put: Put, source: str) -> None:
    values = put_cifar(put, CIFAR10, 1)
    found, items = opened(source)
    assert found.classes()[:3] == ["airplane", "automobile", "bird"]
    assert [item.split for item in items] == ["train"] * 15 + ["test"] * 3
    assert items[4].id == "data_batch_2.bin:1" and items[4].label == values["c/data_batch_2.bin"][1, 0]
    record = values["c/data_batch_2.bin"][1, 1:]
    image = items[4].encoded
    assert isinstance(image, np.ndarray) and image.shape == (32, 32, 3)
    for channel, row, column in [(0, 0, 0), (1, 3, 5), (2, 31, 30)]:
        assert image[row, column, channel] == record[channel * 1024 + row * 32 + column]
    put("c/batches.meta.txt", b"\n".join(b"c%d" % i for i in range(10)) + b"\n\n")
    assert open_source(DataSettings(source=source)).classes() == [f"c{i}" for i in range(10)]


def test_cifar100(put: Put) -> None:
    values = put_cifar(put, ("c/train.bin", "c/test.bin"), 2)
    put("c/fine_label_names.txt", b"apple\nbear\n"), put("c/coarse_label_names.txt", b"fruit\nbeast\n")
    for column, classes in {"coarse_label": ["fruit", "beast"], "fine_label": ["apple", "bear"]}.items():
        found, items = opened("c", label_column=column)
        assert found.classes() == classes
        assert [item.label for item in items[:3]] == values["c/train.bin"][:, int(column == "fine_label")].tolist()
    assert open_source(DataSettings(source="cifar100:c")).classes() == ["apple", "bear"]
    assert error("c", label_column="label").startswith("data.label_column=label: data=c has no such column")


def test_cifar_that_is_damaged(put: Put, here: Path) -> None:
    put_cifar(put, CIFAR10, 1)
    put("c/test_batch.bin", bytes(3072))
    assert error("c") == "c/test_batch.bin: its 3,072 bytes are no multiple of 3073; download it again"
    put("c/test_batch.bin", bytes([77]) + bytes(3072))
    assert error("c") == (
        "data=c: test_batch.bin:0: its label is 77, but there are 10 classes; download the file again"
    )
    os.remove(here / "c/test_batch.bin")
    assert error("c").startswith("c/test_batch.bin: is not there; this data set has the files data_batch_1.bin,")


# -- idx -------------------------------------------------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("mark", ["-", "."])
def test_mnist(put: Put, is_packed: bool, mark: str) -> None:
    images = {"train": pixels(0, 4, 5, 6), "t10k": pixels(1, 2, 5, 6)}
    for name, values in images.items():
        for kind, content in {"images": values, "labels": np.arange(len(values), dtype=np.uint8)}.items():
            data = idx(content)
            file = f"m/{name}-{kind}{mark}idx{content.ndim}-ubyte{'.gz' if is_packed else ''}"
            put(file, gzip.compress(data) if is_packed else data)
    found, items = opened("m")
    assert found.classes() == list("0123456789")
    assert rows(items)[3:5] == [("train-images:3", 3, "train"), ("t10k-images:0", 0, "test")]
    np.testing.assert_array_equal(items[3].encoded, images["train"][3])
    assert open_source(DataSettings(source="fashion_mnist:m")).classes()[1] == "Trouser"
    assert [item.id for item in opened("mnist:m", most=1)[1]] == ["train-images:0", "t10k-images:0"]
    with pytest.raises(UserError, match="has no columns"):
        open_source(DataSettings(source="m", label_column="x"))


def test_idx_that_is_damaged(put: Put, here: Path) -> None:
    for name in ("train", "t10k"):
        put(f"m/{name}-images-idx3-ubyte", idx(pixels(0, 4, 5, 6)))
        put(f"m/{name}-labels-idx1-ubyte", idx(np.zeros(3, np.uint8)))
    assert error("m") == (
        "m/train-labels-idx1-ubyte: holds 3 labels, but train-images-idx3-ubyte 4 images; download both again"
    )
    for name in ("train", "t10k"):
        put(f"m/{name}-labels-idx1-ubyte", idx(np.zeros(4, np.uint8)))
    put("m/train-images-idx3-ubyte", idx(pixels(0, 4, 5, 6))[:-1])
    assert error("m") == (
        "m/train-images-idx3-ubyte: cannot be read as idx (it holds 119 values instead of 120); download it again"
    )
    put("m/train-images-idx3-ubyte", b"<html>not found</html>")
    assert error("m").startswith("m/train-images-idx3-ubyte: cannot be read as idx (it does not begin with 0 0 8 3)")
    put("m/train-images-idx3-ubyte", idx(pixels(0, 4, 5, 6)))
    list(open_source(DataSettings(source="m")).items())
    put("m/train-labels-idx1-ubyte", idx(np.full(4, 77, np.uint8)))  # a file that changes is read again
    assert error("m").startswith("data=m: train-images:0: its label is 77, but there are 10 classes")
    os.remove(here / "m/t10k-labels-idx1-ubyte"), put("m/train-images-idx3-ubyte", idx(pixels(0, 4, 5, 6)))
    assert error("m").startswith("m/t10k-labels-idx1-ubyte: is not there, neither plain nor as .gz")


def test_idx_that_is_badly_packed(put: Put) -> None:
    for name in ("train", "t10k"):
        put(f"m/{name}-images-idx3-ubyte.gz", gzip.compress(idx(pixels(0, 4, 5, 6)))[:-9])
        put(f"m/{name}-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(4, np.uint8))))
    assert error("m").startswith("m/train-images-idx3-ubyte.gz: cannot be read as idx (")
