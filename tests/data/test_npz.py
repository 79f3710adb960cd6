"""An .npz file as a source: every layout, the splits and classes it names, flat memory, a line for each mistake."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twofold.data import SPLITS, Store, open_source, open_store
from twofold.data import pack as packing
from twofold.errors import UserError
from twofold.generate.chunks import write_npz
from twofold.settings.data import DataSettings

from .conftest import pixels

Put = Callable[..., Path]
IMAGES = pixels(3, 7, 4, 6, 3)
LABELS = np.array([2, 0, -1, 1, 1, 0, 2])
SHUFFLED = st.permutations(["train", "train", "test", "val", "", "", ""])


def store_of(**values: Any) -> Store:
    return open_store(DataSettings(**{"source": "a.npz", **values}))


def error(**values: Any) -> str:
    with pytest.raises(UserError) as caught:
        _ = store_of(**values).labels
    return str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1")])
def test_every_layout_of_the_same_images_is_the_same_store(here: Path, save: Any, names: tuple[str, str]) -> None:
    grey = IMAGES[..., 0]
    for given_, wanted in (
        (IMAGES, IMAGES.transpose(0, 3, 1, 2)),
        (IMAGES.transpose(0, 3, 1, 2).copy(), IMAGES.transpose(0, 3, 1, 2)),
        (grey, grey[:, None]),
        (grey[..., None], grey[:, None]),
        (grey[:, None], grey[:, None]),
    ):
        save(here / "a.npz", **{names[0]: given_, names[1]: LABELS.astype(np.int16), "more": np.zeros(3)})
        store = store_of()
        np.testing.assert_array_equal(store.images, wanted)
        assert store.labels.tolist() == LABELS.tolist() and store.classes == ["0", "1", "2"]
        assert [store.id(i) for i in (0, 6)] == ["a.npz:0", "a.npz:6"] and store.name == "a"


def test_what_sample_writes_is_a_labelled_source(here: Path) -> None:
    chunks = (part.transpose(0, 3, 1, 2) for part in (IMAGES[:4], IMAGES[4:]))
    write_npz(here / "a.npz", chunks, (3, 4, 6), LABELS, ["ant", "bee", "cat"])
    store = store_of()
    np.testing.assert_array_equal(store.images, IMAGES.transpose(0, 3, 1, 2))
    assert store.classes == ["ant", "bee", "cat"] and store.labels.tolist() == LABELS.tolist()
    write_npz(here / "a.npz", iter([IMAGES.transpose(0, 3, 1, 2)]), (3, 4, 6), np.full(7, -1))
    assert store_of().classes == [] and (store_of().labels == -1).all()
    np.savez(here / "a.npz", IMAGES)
    assert store_of().classes == []


def test_splits_are_kept_and_the_first_of_each_can_be_asked_for(here: Path) -> None:
    splits = ["train", "test", "train", "val", "train", "test", "train"]
    np.savez(here / "a.npz", images=IMAGES, labels=LABELS, splits=splits)
    store = store_of()
    wanted = [SPLITS.index("validation" if name == "val" else name) for name in splits]
    assert store.codes.tolist() == wanted
    some = store_of(most=1)
    assert [some.id(i) for i in range(len(some))] == ["a.npz:0", "a.npz:1", "a.npz:3"]
    np.testing.assert_array_equal(some.images, IMAGES[[0, 1, 3]].transpose(0, 3, 1, 2))
    np.savez(here / "b.npz", images=pixels(9, 5, 4, 6, 3), labels=[0, 0, 0, 0, 0], splits=["", "train", "test", "", ""])
    joined = store_of(unlabelled="b.npz")  # only what is for training, and no label
    assert len(joined) == 11 and (joined.labels[7:] == -1).all() and joined.id(8) == "unlabelled:b.npz:1"
    assert joined.classes == ["0", "1", "2"]


@given(st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_part_of_the_items_is_that_part(here: Path, data: st.DataObject) -> None:
    """Whatever is skipped, and in whatever pieces the file is read."""
    images = data.draw(st.sampled_from([IMAGES, IMAGES[..., 0], IMAGES.transpose(0, 3, 1, 2)]))
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    save(
        here / "a.npz",
        images=images,
        labels=LABELS,
        splits=data.draw(SHUFFLED),
    )
    source = open_source(DataSettings(source="a.npz", most=data.draw(st.sampled_from([None, 1, 2]))))
    everything = list(source.items())
    assert source.count() == len(everything)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, 7), st.integers(0, 7))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twofold.data.npz.AT_ONCE", data.draw(st.integers(1, 200)))
        for part, wanted in (
            (source.items(start, stop), everything[start:stop]),
            (source.items(start), everything[start:]),
        ):
            for item, other in zip(part, wanted, strict=True):
                assert (item.id, item.label, item.split) == (other.id, other.label, other.split)
                np.testing.assert_array_equal(item.encoded, other.encoded)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_file(here: Path, save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twofold.data.npz.AT_ONCE", 1 << 16)
    peaks = []
    for n in (1_000, 8_000):
        save(here / "a.npz", images=pixels(0, n, 32, 32))
        source = open_source(DataSettings(source="a.npz"))
        tracemalloc.start()
        assert sum(1 for _ in source.items()) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 7_000 * 64  # labels and rows, and nothing of 7 MB more pixels


def test_a_changed_file_is_packed_again(here: Path) -> None:
    np.savez(here / "a.npz", images=IMAGES)
    first = store_of()
    np.savez(here / "a.npz", images=255 - IMAGES[:6])
    assert store_of().folder != first.folder and len(store_of()) == 6
    np.savez(here / "b.npz", images=255 - IMAGES[:6])
    assert store_of(source="b.npz").content_hash == store_of().content_hash


GOOD = {"images": IMAGES, "labels": LABELS}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, "holds no array images or arr_0 but x; save the images as images=, uint8 (N, H, W, C)"),
        ({"images": IMAGES / 255}, "images is float64 (7, 4, 6, 3); save pixels as uint8, 0..255"),
        ({"images": np.array([None])}, "images is object (1,); save pixels as uint8, 0..255"),
        ({"images": IMAGES[0, 0]}, "images is uint8 (6, 3); give images (N, H, W), (N, H, W, C) or (N, C, H, W)"),
        ({"images": pixels(0, 3, 4, 5, 6)}, "images is uint8 (3, 4, 5, 6); give images (N, H, W)"),
        ({"images": IMAGES[:0]}, "holds no images; give some"),
        ({"images": np.asfortranarray(IMAGES)}, "images is stored last axis first; save numpy.ascontiguousarray"),
        ({**GOOD, "labels": LABELS[:3]}, "labels is int64 (3,), and there are 7 images; give one integer for each"),
        ({**GOOD, "labels": LABELS / 2}, "labels is float64 (7,), and there are 7 images; give one integer for each"),
        ({**GOOD, "labels": LABELS - 1}, "the label of image 2 is -2; labels begin at 0; -1 is none"),
        ({**GOOD, "classes": ["a", "b"]}, "the label of image 0 is 2, but it names 2 classes; labels begin at 0"),
        ({**GOOD, "classes": [1, 2]}, "classes is int64 (2,); save names as numpy.array([...]) of texts, one axis"),
        ({**GOOD, "classes": np.array(["a", None])}, "classes is object (2,); save names as numpy.array([...]) of"),
        ({**GOOD, "splits": ["train"]}, "splits names 1 of 7 images; give one name for each image"),
        ({**GOOD, "splits": ["trian"] * 7}, "there is no split 'trian'; did you mean 'train'?"),
    ],
)
def test_arrays_of_another_kind(here: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(here / "a.npz", **arrays)
    assert error().startswith(f"data=a.npz: {message}"), error()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_and_damaged_files(here: Path, save: Any) -> None:
    save(here / "a.npz", images=pixels(0, 50, 16, 16), labels=np.zeros(50, int))
    whole = (here / "a.npz").read_bytes()
    for content in (whole[:-30], whole[: len(whole) // 2], b"", b"hello"):
        (here / "a.npz").write_bytes(content)
        assert error() == "data=a.npz: cannot be read as .npz (File is not a zip file); write the file again"
    if save is np.savez_compressed:
        (here / "a.npz").write_bytes(whole[:3000] + bytes(2000) + whole[5000:])
        assert error().startswith("data=a.npz: cannot be read as .npz (Bad CRC-32 for file 'images.npy')")
    with zipfile.ZipFile(here / "a.npz", "w") as archive:
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (9, 4, 4), }".ljust(117) + b"\n"
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00v\x00" + header + bytes(100))
    assert error() == "data=a.npz: images is uint8 (9, 4, 4), but 100 bytes of it are there; write the file again"
    with zipfile.ZipFile(here / "a.npz", "w") as archive:
        archive.writestr("images.npy", b"no array")
    assert "cannot be read as .npz (the magic string is not correct" in error()
    with zipfile.ZipFile(here / "a.npz", "w") as archive:
        archive.writestr("photo.png", b"no array")
    assert error().startswith("data=a.npz: holds no array images or arr_0 but nothing; save the images as images=")


def test_settings_that_mean_nothing_here(here: Path) -> None:
    np.savez(here / "a.npz", images=IMAGES)
    assert error(label_column="y") == "data.label_column=y: data=a.npz has no columns; only Parquet and hub data have"
    assert error(streaming=True).startswith("data.streaming=true: data=a.npz is on this machine")


def test_forks_pack_it_to_the_same_store(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(5, 3000, 4, 4)
    np.savez_compressed(here / "a.npz", images=images)
    monkeypatch.setattr(packing, "_workers", lambda: 2)
    monkeypatch.setattr(packing, "ALONE", 100)
    np.testing.assert_array_equal(store_of().images[:, 0], images)
