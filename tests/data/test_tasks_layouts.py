"""CelebAMask-HQ, WFLW, CamVid and faces68, each on a tiny fake in its layout."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twofold.data import Store, fingerprint, open_source, open_store
from twofold.data.celeba_masks import CLASSES, PARTS, CelebAMasks
from twofold.data.describe import notes
from twofold.data.wflw import ATTRIBUTES, Wflw
from twofold.errors import UserError
from twofold.settings.data import DataSettings
from twofold.settings.faces import WFLW98

from .conftest import image_cells, pixels

Put = Callable[..., Path]


def store(source: str, **values: Any) -> Store:
    return open_store(DataSettings(source=source, **values))


def error(source: str, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        store(source, **values)
    return str(caught.value)


# -- CelebAMask-HQ -----------------------------------------------------------------------------------------------------

ORIGINAL = [162770, 162771, 182637, 182638]  # numbers of CelebA's images, at both ends of its validation part


def white(*boxes: tuple[slice, slice]) -> np.ndarray:
    """A part's mask of 8x8, as it is published: white on black, RGB."""
    out = np.zeros((8, 8, 3), np.uint8)
    for box in boxes:
        out[box] = 255
    return out


def put_masks(put: Put, faces: int = 4) -> None:
    for i in range(faces):
        put(f"m/CelebA-HQ-img/{i}.jpg", pixels(i, 16, 16, 3))
        folder = f"m/CelebAMask-HQ-mask-anno/{i // 2}/{i:05}"
        put(f"{folder}_skin.png", white((slice(0, 8), slice(1, 8))))
        put(f"{folder}_hair.png", white((slice(0, 2), slice(0, 8))))
        put(f"{folder}_l_brow.png", white((slice(3, 4), slice(5, 7))))
    put("m/CelebAMask-HQ-mask-anno/0/00000_hat.png", white((slice(0, 1), slice(0, 8))))
    lines = [f"{i}   {number - 1}  {number:06}.jpg" for i, number in enumerate(ORIGINAL[:faces])]
    put("m/CelebA-HQ-to-CelebA-mapping.txt", "\n".join(["idx orig_idx orig_file", *lines]).encode())


@pytest.mark.parametrize("source", ["m", "celebamask-hq:m"])
def test_masks_of_faces_are_composed_in_the_published_order(put: Put, source: str) -> None:
    put_masks(put)
    found = store(source)
    assert found.shape == (3, 16, 16) and found.masks is not None
    assert found.mask_classes == CLASSES and len(CLASSES) == 19 and CLASSES[0] == "background"
    pairs = [[CLASSES[i] for i in pair] for pair in found.mask_flip_pairs]
    assert pairs == [["l_brow", "r_brow"], ["l_eye", "r_eye"], ["l_ear", "r_ear"]]
    half = np.zeros((8, 8), np.uint8)  # of the image's size
    half[:, 1:] = CLASSES.index("skin")
    half[3, 5:7] = CLASSES.index("l_brow")
    half[:2] = CLASSES.index("hair")
    np.testing.assert_array_equal(found.masks[1], half.repeat(2, 0).repeat(2, 1))
    half[0] = CLASSES.index("hat")
    np.testing.assert_array_equal(found.masks[0], half.repeat(2, 0).repeat(2, 1))
    assert found.id(0) == "0.jpg" and [found.id(i) for i in found.indices("validation")] == ["1.jpg", "2.jpg"]
    assert [found.id(i) for i in found.indices("test")] == ["3.jpg"]
    np.testing.assert_array_equal(store(source, size=8).masks[0], half)


def test_the_published_split_is_that_of_celeba() -> None:
    """That the ranges of numbers give 24,183, 2,993 and 2,824 faces needs the real mapping; their ends are CelebA's."""
    from twofold.data.celeba_masks import FIRST_TEST, FIRST_VALIDATION

    assert (FIRST_VALIDATION - 1, FIRST_TEST - FIRST_VALIDATION, 202_600 - FIRST_TEST) == (162_770, 19_867, 19_962)


def test_celebas_own_list_of_parts_counts(put: Put, here: Path) -> None:
    put_masks(put)
    names = [f"{number:06}.jpg" for number in ORIGINAL]
    put("m/list_eval_partition.txt", "".join(f"{n} {i}\n" for n, i in zip(names, (2, 0, 0, 1), strict=True)).encode())
    found = store("m", most=1)
    assert [found.id(i) for i in range(3)] == ["1.jpg", "3.jpg", "0.jpg"] and len(found) == 3
    put("m/list_eval_partition.txt", f"{names[0]} 2\n".encode())
    assert error("m").startswith("m/CelebA-HQ-to-CelebA-mapping.txt line 3: 162771.jpg has no part in m/list_eval_part")
    os.remove(here / "m/list_eval_partition.txt"), os.remove(here / "m/CelebA-HQ-to-CelebA-mapping.txt")
    assert {item.split for item in open_source(DataSettings(source="m")).items()} == {None}


def test_celebamask_that_is_damaged(put: Put, here: Path) -> None:
    put_masks(put)
    before = fingerprint(DataSettings(source="m"))
    grey = put("m/CelebAMask-HQ-mask-anno/1/00003_nose.png", np.full((8, 8), 7, np.uint8))
    assert fingerprint(DataSettings(source="m")) != before
    assert "3.jpg: cannot be read: its mask: 00003_nose.png holds the value 7; a part's mask is black" in error("m")
    put(str(grey.relative_to(here)), np.zeros((4, 8), np.uint8))
    assert "its mask: 00003_nose.png is 4x8 and 00003_skin.png 8x8 (height x width)" in error("m")
    found = store("m", on_bad_image="skip")
    assert len(found) == 3 and [bad["id"] for bad in found.meta["bad_images"]] == ["3.jpg"]
    os.remove(grey)
    os.remove(here / "m/CelebA-HQ-img/2.jpg")
    assert error("m") == (
        "m/CelebAMask-HQ-mask-anno/1/00002_skin.png: there is no image for it (1 images are missing); "
        "add CelebA-HQ-img/2.jpg, or set data.on_bad_image=skip"
    )
    (bad,) = store("m", on_bad_image="skip").meta["bad_images"]
    assert bad["id"] == "2.jpg" and bad["reason"].startswith("there is no file")
    put("m/CelebA-HQ-img/2.jpg"), put("m/CelebA-HQ-img/9.jpg")
    assert error("m") == "m/CelebA-HQ-to-CelebA-mapping.txt: 9: has no line; download it again"
    os.remove(here / "m/CelebA-HQ-img/9.jpg")
    put("m/CelebAMask-HQ-mask-anno/1/00003_beard.png")
    assert "00003_beard.png: its name is no image's number and one of 18 parts" in error("m")
    assert error("m", mask_column="x").startswith("data.mask_column=x: data=m has its own masks only; leave it out")
    assert error("celebamask-hq:.").endswith("expected: CelebA-HQ-img/*.jpg, CelebAMask-HQ-mask-anno/*/*.png")
    assert error("celebamask-hq") == (
        "data=celebamask-hq: this data set is not on the hub; give the folder it is in: data=celebamask-hq:FOLDER"
    )


def test_a_face_without_any_part(put: Put, here: Path) -> None:
    put_masks(put, faces=2)
    for part in ("skin", "hair", "l_brow"):
        os.remove(here / f"m/CelebAMask-HQ-mask-anno/0/00001_{part}.png")
    assert "1.jpg: cannot be read: its mask: there is no file of any part" in error("m")
    bare = open_source(DataSettings(source="digits", unlabelled="m").of_unlabelled())
    assert isinstance(bare, CelebAMasks) and [item.mask for item in bare.items()] == [None]  # 1.jpg is for validation
    assert PARTS.index("eye_g") == 5  # the pairs of the mirror are about its neighbours


# -- WFLW --------------------------------------------------------------------------------------------------------------


def face(seed: int, left: float, top: float, side: float) -> np.ndarray:
    """98 points in a box."""
    return np.random.default_rng(seed).uniform(0, side, (98, 2)).round(3) + np.array([left, top])


FACES = {  # the box (left, top, right, bottom) of a wide image 40x30, one that leaves it, and one of another image
    "a/1.png": [(10, 5, 26, 17), (30, 10, 44, 34)],
    "b/2.png": [(4, 4, 20, 20)],
}


def face_of(name: str, box: tuple[float, ...]) -> np.ndarray:
    return face(sum(name.encode()) + int(box[0]), box[0], box[1], min(box[2] - box[0], box[3] - box[1]))


def line(name: str, box: tuple[float, ...], codes: tuple[int, ...]) -> str:
    return " ".join([*(f"{x:.6f}" for x in face_of(name, box).ravel()), *map(str, box), *map(str, codes), name])


CODES = [(0, 1, 0, 0, 1, 0), (1, 0, 0, 0, 0, 0), (0, 0, 0, 1, 1, 1)]
LIST = "w/WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{}.txt"


def put_wflw(put: Put) -> None:
    for i, name in enumerate(FACES):
        put(f"w/WFLW_images/{name}", pixels(i, 30, 40, 3))
    rows = [(name, box) for name, boxes in FACES.items() for box in boxes]
    lines = [line(name, box, codes) for (name, box), codes in zip(rows, CODES, strict=True)]
    put(LIST.format("train"), "\n".join(lines[:2]).encode())
    put(LIST.format("test"), (lines[2] + "\n").encode())


@pytest.mark.parametrize("source", ["w", "wflw:w"])
def test_faces_in_the_wild_are_cut_out(put: Put, source: str) -> None:
    put_wflw(put)
    opened = open_source(DataSettings(source=source))
    assert isinstance(getattr(opened, "source", opened), Wflw)
    facts = opened.facts()
    assert facts["points"] == 98 and facts["flip_pairs"] == [list(pair) for pair in WFLW98]
    assert facts["attributes"] == list(ATTRIBUTES) and opened.classes() == []
    items = list(opened.items())
    assert [item.id for item in items] == ["a/1.png#train-0", "a/1.png#train-1", "b/2.png#test-0"]
    assert [item.group for item in items] == ["a/1.png", "a/1.png", "b/2.png"]
    assert [item.split for item in items] == ["train", "train", "test"]
    assert [item.attributes for item in items] == CODES
    # the first: 16 wide and 12 high round (18, 11), so a square of 1.25 * 16 = 20 whose middle is half a pixel away
    assert items[0].encoded[1] == (8, 2, 28, 22)  # type: ignore[index]
    found = store(source, size=20)
    assert found.points is not None and found.flip_pairs == facts["flip_pairs"]
    left, top = items[0].encoded[1][:2]  # type: ignore[index]
    np.testing.assert_array_equal(
        found.images[0], pixels(0, 30, 40, 3)[top : top + 20, left : left + 20].transpose(2, 0, 1)
    )
    np.testing.assert_allclose(found.points[0], face_of("a/1.png", FACES["a/1.png"][0]) - [left, top], atol=1e-4)


def test_what_is_beyond_the_image_is_black_and_points_move_with_the_size(put: Put) -> None:
    put_wflw(put)
    left, top, right, bottom = open_source(DataSettings(source="w")).items(1, 2).__next__().encoded[1]  # type: ignore
    assert right - left == bottom - top == 30  # 1.25 * 24
    assert abs((left + right - 1) / 2 - 37) <= 0.5 and abs((top + bottom - 1) / 2 - 22) <= 0.5
    found = store("w", size=60)
    assert found.points is not None
    assert not found.images[1, :, :, 2 * (40 - left) + 4 :].any() and not found.images[1, :, 2 * (30 - top) + 4 :].any()
    expected = (face_of("a/1.png", FACES["a/1.png"][1]) - [left, top] + 0.5) * 2 - 0.5  # two pixels for each
    np.testing.assert_allclose(found.points[1], expected, atol=1e-3)
    tight = store("w", size=20, padding=1)
    assert tight.points is not None
    side = open_source(DataSettings(source="w", padding=1)).items(0, 1).__next__().encoded[1]  # type: ignore
    assert side[2] - side[0] == 16
    assert fingerprint(DataSettings(source="w", padding=1)) != fingerprint(DataSettings(source="w"))


def test_points_beyond_the_square_count_as_not_there(put: Put) -> None:
    put_wflw(put)
    points = face_of("a/1.png", FACES["a/1.png"][0])
    points[7] = [0, 29]
    entries = [*map(str, points.ravel()), *map(str, FACES["a/1.png"][0]), *"000000", "a/1.png"]
    put(LIST.format("train"), " ".join(entries).encode())
    found = store("w", size=20)
    assert found.points is not None and np.isnan(found.points[0, 7]).all() and np.isfinite(found.points[0, 8]).all()
    assert found.meta["points_outside"] == {"points": 1, "images": 1}
    assert notes(found)[-1].startswith("1 points of 1 images are outside what they belong to, and count as not there")
    assert "its point 7 " in error("w", size=20, points_outside="error")


def test_wflw_that_lacks_something(put: Put, here: Path) -> None:
    put_wflw(put)
    assert error("w", label_column="x").startswith("data.label_column=x: data=w has its own points and attributes only")
    assert error("w", attribute_columns=["blurr"]).endswith("data=w has no such attribute; did you mean 'blur'?")
    some = store("w", size=8, attribute_columns=["blur", "occlusion"])
    assert some.attribute_names == ["blur", "occlusion"] and np.asarray(some.attributes).tolist() == [
        [0, 1],
        [0, 0],
        [1, 1],
    ]
    test = here / LIST.format("test")
    whole = test.read_text()
    for wrong, said in {
        "1 2 3": "has 3 entries instead of 207; 196 coordinates, a box, 6 attributes and a name",
        whole.replace("4 4 20 20", "4 4 4 20"): "its box 4, 4, 4, 20 is empty",
        whole.replace("4 4 20 20", "4 4 nan 20"): "holds a coordinate that is not finite",
        whole.replace("4 4 20 20", "4 4 x 20"): "holds no numbers",
        whole.replace("20 0 0 0", "20 0 2 0"): "holds a coordinate that is not finite, or an attribute beside 0 and 1",
    }.items():
        test.write_text("\n" + wrong)
        assert error("w").startswith(f"{LIST.format('test')} line 2: {said}")
    test.write_text(whole.replace("b/2.png", "b/9.png"))
    assert error("w", size=8) == (
        f"{LIST.format('test')} line 1: there is no image w/WFLW_images/b/9.png; add it, or set data.on_bad_image=skip"
    )
    (bad,) = store("w", size=8, on_bad_image="skip").meta["bad_images"]
    assert bad["id"] == "b/9.png#test-0" and bad["reason"].startswith("there is no file")
    assert (
        error("digits", padding=2.0)
        == "data.padding=2: data=digits has no boxes of faces; leave it out; it is about WFLW"
    )


def test_the_converted_lists_say_the_same(put: Put) -> None:
    """MMPose's: center and scale in units of 200 pixels, subsets of the test part in files of their own."""
    put_wflw(put)
    rows = [(name, box) for name, boxes in FACES.items() for box in boxes]

    def annotation(i: int) -> dict[str, Any]:
        name, (left, top, right, bottom) = rows[i]
        points = np.concatenate([face_of(name, rows[i][1]), np.ones((98, 1))], axis=1)
        scale = max(right - left, bottom - top) / 200
        centre = [(left + right) / 2, (top + bottom) / 2]
        return {"image_id": i, "keypoints": points.ravel().tolist(), "center": centre, "scale": scale}

    def written(part: str, *numbers: int) -> None:
        images = [{"id": i, "file_name": rows[i][0]} for i in numbers]
        found = {"images": images, "annotations": [annotation(i) for i in numbers]}
        put(f"v/annotations/face_landmarks_wflw_{part}.json", json.dumps(found).encode())

    for i, name in enumerate(FACES):
        put(f"v/images/{name}", pixels(i, 30, 40, 3))
    written("train", 0, 1), written("test", 2)
    bare = store("v", size=20)
    assert bare.attributes is None
    for name, code in zip(ATTRIBUTES, CODES[2], strict=True):
        written(f"test_{name}", *([2] if code else []))
    one, other = store("w", size=20), store("v", size=20)
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_allclose(one.points, other.points, atol=1e-3)
    assert np.asarray(other.attributes).tolist() == [[-1] * 6, [-1] * 6, list(CODES[2])]
    put(
        "v/annotations/face_landmarks_wflw_test.json", b'{"images": [{"id": 1, "file_name": "x"}], "annotations": [{}]}'
    )
    assert error("v").startswith("v/annotations/face_landmarks_wflw_test.json annotation 0: is no face (KeyError: 'key")
    put("v/annotations/face_landmarks_wflw_test.json", b"[]")
    assert error("v").startswith("v/annotations/face_landmarks_wflw_test.json: is no list in the style of COCO")


# -- short names of tables ---------------------------------------------------------------------------------------------


def test_camvid_needs_no_setting(put_table: Callable[..., Path]) -> None:
    mask = pixels(0, 4, 4) % 12
    put_table("c/train.parquet", image=image_cells(pixels(1, 4, 4, 3)), mask=image_cells(mask))
    found = store("camvid:c", validation_share=0, test_share=0)
    assert found.masks is not None and len(found.mask_classes) == 11
    np.testing.assert_array_equal(found.masks[0], np.where(mask == 11, 255, mask))
    put_table("d/train.parquet", image=image_cells(pixels(1, 4, 4, 3)), mask=image_cells(mask + 1))
    assert "train.parquet:0: cannot be read: its mask: there is no class 12; there are 11" in error("camvid:d")


def test_camvid_as_it_is_here(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("camvid")
    said = json.loads((folder / "classes.json").read_text())
    found = store(f"camvid:{folder}", size="45x60", most=20, annotated=0.1)
    assert said["ignore_index"] == 11 and said["classes"] == [*found.mask_classes, "void"]
    assert set(np.unique(found.masks)) <= {*range(11), 255} and len(found.annotated_rows()) == 2
    plain = {"mask_column": "mask", "mask_void": 11, "mask_classes": said["classes"][:11]}
    same = store(str(folder), size="45x60", most=20, **plain)
    assert same.content_hash == found.content_hash and same.mask_classes == found.mask_classes


def test_faces68_needs_no_setting(shared_data: Callable[[str], Path]) -> None:
    found = store(f"faces68:{shared_data('faces68')}", size=64, most=300)
    assert found.points is not None and found.flip_pairs is not None and len(found.flip_pairs) == 29
    groups = [set(found.groups[found.indices(split)].tolist()) for split in ("train", "validation", "test")]  # type: ignore
    assert all(groups) and not groups[0] & groups[1] and not (groups[0] | groups[1]) & groups[2]
    full = store(f"faces68:{shared_data('faces68')}", most=300)
    np.testing.assert_allclose(found.points, (np.asarray(full.points) + 0.5) / 2 - 0.5, atol=1e-4)  # 128 -> 64 pixels
