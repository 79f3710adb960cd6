"""The packed store: what goes in comes out, once, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import threading
import tracemalloc
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

import twofold
from twofold.data import Store, cache_root, describe, open_store, parts
from twofold.data import pack as packing
from twofold.data import writer as writing
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from ..processes import Started
from .conftest import encoded, image_cells, pixels

Put = Callable[..., Path]


def store_of(source: str = "x", **values: object) -> Store:
    return open_store(DataSettings(source=source, **values))


def error(source: str = "x", **values: object) -> str:
    with pytest.raises(UserError) as caught:
        store_of(source, **values)
    return str(caught.value)


def left_behind() -> list[str]:
    """What the cache holds beside locks and complete stores."""
    folder = cache_root() / "data"
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path.name for path in found if not path.name.endswith(".lock") and not (path / "meta.json").is_file()]


# -- what goes in comes out -------------------------------------------------------------------------------------------


def test_digits(here: Path) -> None:
    from sklearn.datasets import load_digits

    digits, store = load_digits(), store_of("digits")
    assert len(store) == 1797 and store.shape == (1, 8, 8) and store.classes == list("0123456789")
    assert isinstance(store.images, np.memmap) and isinstance(store.labels, np.memmap)
    np.testing.assert_array_equal(store.images[:, 0], np.rint(digits.images * 255 / 16))
    np.testing.assert_array_equal(store.labels, digits.target)
    assert store.id(0) == "digits:0" and store.id(1796) == "digits:1796"
    assert len(store.indices("all")) == 1797
    assert sum(len(store.indices(split)) for split in ("train", "validation", "test")) == 1797


def test_a_folder(put: Put) -> None:
    images = {f"{name}/{i:03}.png": pixels(i, 4, 6, 3) for i in range(40) for name in ("ant", "bee")}
    for name, image in images.items():
        put(f"x/{name}", image)
    store = store_of()
    assert len(store) == 80 and store.shape == (3, 4, 6) and store.name == "x"
    assert [store.id(i) for i in range(80)] == sorted(images)
    for i, name in enumerate(sorted(images)):
        np.testing.assert_array_equal(store.images[i], images[name].transpose(2, 0, 1))
    assert store.labels.dtype == np.int64 and store.labels.tolist() == [0] * 40 + [1] * 40
    meta = store.meta
    assert meta["class_counts"] == [40, 40] and meta["unlabelled"] == 0 and meta["splits"] == {}
    assert meta["bad_images"] == [] and meta["twofold"] == twofold.__version__


def test_batch_is_a_copy_of_any_rows(put: Put) -> None:
    for i in range(5):
        put(f"x/{i}.png", pixels(i, 4, 4, 3))
    store = store_of()
    rows = np.array([3, 0, 3])
    batch = store.batch(rows)
    assert batch.dtype == torch.uint8 and batch.shape == (3, 3, 4, 4)
    np.testing.assert_array_equal(batch.numpy(), store.images[rows])
    batch.zero_()
    assert store.images[3].any()
    assert torch.equal(store.batch(torch.tensor([1])), store.batch([1]))
    assert store.batch([]).shape == (0, 3, 4, 4)
    for rows_that_are_not in ([5], [-1]):
        with pytest.raises(IndexError):
            store.batch(rows_that_are_not)
    for row in (5, -1):
        with pytest.raises(IndexError):
            store.id(row)


@pytest.mark.parametrize("coloured", [0, 20, 39, None])
def test_channels_are_found_while_packing(put: Put, coloured: int | None) -> None:
    grey = [np.full((4, 4), i, np.uint8) for i in range(40)]
    for i, image in enumerate(grey):
        # every other grey image is stored as RGB with equal channels
        put(f"x/{i:02}.png", np.stack([image] * 3, axis=2) if i % 2 else image)
    if coloured is not None:
        put(f"x/{coloured:02}.png", np.full((4, 4, 3), (1, 2, 3), np.uint8))
    store = store_of()
    channels = 1 if coloured is None else 3
    assert store.shape == (channels, 4, 4)
    for i in range(40):
        expected = [1, 2, 3] if i == coloured else [i] * channels
        np.testing.assert_array_equal(store.images[i], np.broadcast_to(np.reshape(expected, (-1, 1, 1)), store.shape))
    direct = store_of(channels=channels)
    assert direct.folder != store.folder and direct.content_hash == store.content_hash
    assert sorted(path.name for path in store.folder.glob("[!s]*.npy")) == [
        "hashes.npy", "id_bytes.npy", "id_offsets.npy", "images.npy", "labels.npy",
    ]  # fmt: skip


def test_content_hash_is_that_of_the_content(put: Put, put_table: Put) -> None:
    images = [pixels(i, 4, 4, 3) for i in range(3)]
    for i, image in enumerate(images):
        put(f"x/{'aab'[i]}/{i}.png", image)
    put_table("y.parquet", image=image_cells(*images), label=["a", "a", "b"])
    put_table("z.parquet", image=image_cells(*images), label=["a", "b", "b"])
    put_table("w.parquet", image=image_cells(*images[:2], images[0]), label=["a", "a", "b"])
    names = ("x", "y.parquet", "z.parquet", "w.parquet")
    hashes = [store_of(name).content_hash for name in names]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3 and len(hashes[0]) == 64


def test_splits_of_the_source(put: Put) -> None:
    for name in ("train/a/0", "train/a/1", "val/a/2", "test/a/3"):
        put(f"x/{name}.png")
    store = store_of()
    assert store.meta["splits"] == {"train": 2, "validation": 1, "test": 1}
    found = {split: [store.id(i) for i in store.indices(split)] for split in ("train", "validation", "test")}
    assert found == {
        "train": ["train/a/0.png", "train/a/1.png"],
        "validation": ["val/a/2.png"],
        "test": ["test/a/3.png"],
    }


def test_a_store_travels_to_other_processes_as_its_path(put: Put) -> None:
    for i in range(20):
        put(f"x/{i}.png", pixels(i, 32, 32, 3))
    store = store_of(split_seed=5)
    sent = pickle.dumps(store)
    assert len(sent) < 2000
    np.testing.assert_array_equal(pickle.loads(sent).indices("test"), store.indices("test"))


def test_describe(put: Put) -> None:
    for i in range(10):
        put(f"x/{'ab'[i % 2]}/{i}.png", pixels(i, 4, 4, 3))
    store = store_of(validation_share=0.2, test_share=0.2)
    facts = describe(store)
    assert facts["counts"] == {
        "train": {"a": 3, "b": 3},
        "validation": {"a": 1, "b": 1},
        "test": {"a": 1, "b": 1},
    }
    scaled = store.images / 255
    np.testing.assert_allclose(facts["mean"], scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(facts["std"], scaled.std(axis=(0, 2, 3)), rtol=1e-12)
    assert facts["bytes"] >= 10 * 48 and facts["hash"] == store.content_hash and facts["shape"] == [3, 4, 4]
    json.dumps(facts)


def test_describe_counts_the_unlabelled(put: Put) -> None:
    put("x/train/cat/0.png"), put("x/train/unlabelled/0.png"), put("x/test/1.png")
    counts = describe(store_of(validation_share=0))["counts"]
    assert counts["train"] == {"cat": 1, "unlabelled": 1} and counts["test"] == {"cat": 0, "unlabelled": 1}
    (
        put("y/train/0.png"),
        put("y/test/1.png"),
        put("y/metadata.csv", b"file_name,label\ntrain/0.png,unlabelled\ntest/1.png,\n"),
    )
    counts = describe(store_of("y", validation_share=0))["counts"]
    assert counts["train"] == {"unlabelled": 1} and counts["test"] == {"unlabelled": 0, "no label": 1}


def test_real_images(here: Path, shared_data: Callable[[str], Path]) -> None:
    file = shared_data("cifar10") / "test-00000-of-00001.parquet"
    store = store_of(str(file))
    assert len(store) == 10_000 and store.shape == (3, 32, 32) and store.meta["splits"] == {"test": 10_000}
    assert store.meta["class_counts"] == [1000] * 10 and store.classes[3] == "cat"
    with pytest.raises(UserError, match="its train split holds no image; its files all belong to other splits"):
        store.indices("train")


# -- once -------------------------------------------------------------------------------------------------------------


def test_it_is_packed_once(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("x/a.png"), put("x/b.png")
    first = store_of()
    monkeypatch.setattr(packing, "decode_item", lambda *_: pytest.fail("packed again"))
    assert store_of().content_hash == first.content_hash
    assert store_of(split_seed=7, test_share=0.5, flip=True).folder == first.folder


def test_changed_images_are_packed_again(put: Put) -> None:
    put("x/a.png")
    first = store_of()
    put("x/b.png")
    second = store_of()
    assert (len(first), len(second)) == (1, 2) and first.folder != second.folder


def test_another_split_is_a_small_file(put: Put) -> None:
    for i in range(30):
        put(f"x/{'abc'[i % 3]}/{i}.png", pixels(i, 4, 4))
    first, other = store_of(), store_of(split_seed=1)
    before = (first.folder / "images.npy").stat()
    assert not np.array_equal(first.indices("train"), other.indices("train"))
    after = (first.folder / "images.npy").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    files = sorted(first.folder.glob("split-*.npy"))
    assert len(files) == 2 and all(file.stat().st_size < 300 for file in files)
    np.testing.assert_array_equal(store_of().indices("test"), first.indices("test"))


def test_a_damaged_or_unwritable_split_file_is_made_again(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(30):
        put(f"x/{i}.png", pixels(i, 4, 4))
    test = store_of().indices("test")
    (file,) = store_of().folder.glob("split-*.npy")
    file.write_bytes(file.read_bytes()[:-5])
    np.testing.assert_array_equal(store_of().indices("test"), test)
    file.unlink()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    np.testing.assert_array_equal(store_of().indices("test"), test)
    assert not file.exists() and not list(file.parent.glob(".split*"))


# -- whole or not at all ----------------------------------------------------------------------------------------------

PACK = """
import os, signal, sys
from twofold.data import open_store, pack
from twofold.settings.data import DataSettings

def progress(done, total):
    if sys.argv[1] == "die" and done > 64:
        os.kill(os.getpid(), signal.SIGKILL)

pack.TICK, pack.PART = 0, 32
store = open_store(DataSettings(source="x"), progress)
print(store.content_hash, len(store))
"""


def test_a_killed_pack_goes_on_where_it_was(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(200):
        put(f"x/{i:03}.png", pixels(i, 4, 4, 3))
    process = Started("-c", PACK, "die")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (leftover,) = left_behind()
    assert leftover.startswith(".x-") and leftover.endswith(".parts")
    found = {path.name for path in (cache_root() / "data" / leftover).iterdir() if path.is_dir()}
    assert {"000000", "000001"} < found and len(found) == 3  # of 32 images each, and the one that was at work
    decoded = []
    real = packing.decode_item
    monkeypatch.setattr(packing, "decode_item", lambda item, *more: (decoded.append(item.id), real(item, *more))[1])
    store = store_of()
    assert len(store) == 200 and left_behind() == []
    assert sorted(decoded) == [f"{i:03}.png" for i in range(64, 200)]
    for i in (0, 63, 64, 199):
        np.testing.assert_array_equal(store.images[i], pixels(i, 4, 4, 3).transpose(2, 0, 1))


def test_two_processes_make_one_store(put: Put) -> None:
    for i in range(300):
        put(f"x/{i:03}.png", pixels(i, 8, 8, 3))
    processes = [Started("-c", PACK, "live") for _ in range(2)]
    answers = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert answers == {f"{store_of().content_hash} 300\n"} and left_behind() == []
    assert len([path for path in (cache_root() / "data").iterdir() if path.is_dir()]) == 1


def test_who_waits_for_the_lock_reports_and_finds_the_store(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("x/a.png")
    store = store_of()
    aside = store.folder.with_name("aside")
    os.rename(store.folder, aside)  # as if the other process were still at work
    monkeypatch.setattr(packing, "TICK", 0.01)
    monkeypatch.setattr(packing, "decode_item", lambda *_: pytest.fail("packed although another process did"))
    parts = store.folder.with_name(f".{store.folder.name}.parts")
    parts.mkdir()
    lock = FileLock(parts / "000000.lock", is_singleton=False)
    lock.acquire()
    calls = []

    def progress(done: int, total: int | None) -> None:
        calls.append((done, total))
        if len(calls) == 3:
            os.rename(aside, store.folder)
            lock.release()

    assert open_store(DataSettings(source="x"), progress).content_hash == store.content_hash
    assert len(calls) >= 3 and set(calls) == {(0, 1)} and left_behind() == []


def test_progress_goes_on_while_one_image_takes_long(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(40):
        put(f"x/{i:02}.png", pixels(i, 4, 4, 3))
    enough = threading.Event()
    real = packing.decode_item

    def slow(*given: object) -> object:
        assert enough.wait(30), "no progress while waiting"
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "decode_item", slow)
    monkeypatch.setattr(packing, "TICK", 0.01)
    calls: list[tuple[int, int | None]] = []

    def progress(done: int, total: int | None) -> None:
        calls.append((done, total))
        if len(calls) > 5:
            enough.set()

    open_store(DataSettings(source="x"), progress)
    assert calls[:6] == [(0, 40)] * 6 and calls[-1] == (40, 40)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_an_interrupted_pack_leaves_nothing(put: Put) -> None:
    put("x/a.png")

    def progress(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_store(DataSettings(source="x"), progress)
    assert left_behind() == []


def test_memory_does_not_grow_with_the_data(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    n, image, workers = 400, 3 * 64 * 64, 2
    for i in range(n):
        put(f"x/{i:03}.png", encoded(np.full((64, 64, 3), (i % 251, 0, 9), np.uint8)))
    monkeypatch.setattr(packing, "_workers", lambda: workers)
    store_of(size=8)  # imports and caches first
    tracemalloc.start()
    store = store_of()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert store.images.nbytes == n * image
    ahead = (workers + 4) * packing.CHUNK  # what may wait, and what is being stacked and written
    assert peak < 2 * ahead * image < n * image


# -- what is said -----------------------------------------------------------------------------------------------------


def test_images_of_different_sizes(put: Put) -> None:
    put("x/a.png", pixels(0, 48, 40, 3)), put("x/b.png", pixels(0, 50, 40, 3))
    assert error() == (
        "data=x: images differ in size: a.png is 48x40 and b.png is 50x40 (height x width); "
        "choose one size for all, for example data.size=32"
    )
    assert left_behind() == []
    assert store_of(size="16x24").shape == (3, 16, 24)


def test_a_bad_image_is_named(put: Put) -> None:
    put("x/a.png"), put("x/b.png", b"not an image")
    assert error() == (
        "data=x: b.png: cannot be read: it is not an image of a known format (png, jpg, jpeg, bmp, gif, webp, tif, "
        "tiff, ppm, pgm), or is damaged at its beginning; repair or remove it, or set data.on_bad_image=skip"
    )
    assert left_behind() == []


def test_bad_images_are_skipped_and_listed(put: Put) -> None:
    whole = encoded(pixels(0, 64, 64, 3))
    put("x/a.png", whole), put("x/b.png", b""), put("x/c.png", whole[:3000]), put("x/d.png", whole)
    store = store_of(on_bad_image="skip")
    assert [store.id(i) for i in range(len(store))] == ["a.png", "d.png"]
    assert [bad["id"] for bad in store.meta["bad_images"]] == ["b.png", "c.png"]
    assert store.meta["bad_images"][0]["reason"] == "the file is empty"
    assert describe(store)["bad_images"] == store.meta["bad_images"]


def test_bad_rows_of_a_table_are_named(put_table: Put) -> None:
    put_table("x.parquet", image=image_cells(pixels(0, 4, 4), None))
    assert error("x.parquet").startswith("data=x.parquet: x.parquet:1: cannot be read: there is no image in this row;")


def test_no_image_can_be_read(put: Put) -> None:
    put("x/a.png", b""), put("x/b.png", b"")
    assert error(on_bad_image="skip") == "data=x: none of its 2 images can be read; the first: a.png: the file is empty"


def test_a_table_without_rows(put_table: Put) -> None:
    put_table("x.parquet", image=image_cells(), label=[])
    assert error("x.parquet") == "data=x.parquet: holds no row; give one with images"


def test_a_source_that_changes_while_it_is_packed(put: Put) -> None:
    put("x/a.png")

    def progress(done: int, total: int | None) -> None:
        put("x/b.png")

    with pytest.raises(UserError, match=r"^data=x: changed while it was being packed; run the command again$"):
        open_store(DataSettings(source="x"), progress)
    assert left_behind() == []
    assert len(store_of()) == 2


def test_too_little_room_is_said_at_the_first_image(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("x/a.png", pixels(0, 10, 10, 3)), put("x/b.png", pixels(0, 10, 10, 3))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 700, 300))
    message = error()
    assert message.startswith(f"{cache_root() / 'data'}: the disk is full: packing needs 728 bytes here and ")
    assert "are free; free some room, or set the environment variable TWOFOLD_CACHE to a folder on another" in message
    assert left_behind() == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up(put: Put, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    for i in range(40):
        put(f"x/{i:02}.png", pixels(i, 10, 10, 3))
    real = writing.ArrayFile.append

    def append(self: writing.ArrayFile, rows: np.ndarray) -> None:
        if self.path.name == "images.npy" and self.rows >= 16:
            raise OSError(code, os.strerror(code))
        real(self, rows)

    monkeypatch.setattr(writing.ArrayFile, "append", append)
    assert f"{cache_root() / 'data'}: the disk is full: packing needs 14,560 bytes here and " in error()
    assert left_behind() == []


def test_a_disk_that_is_full_before_the_first_image(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("x/a.png")

    def fail(*_: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packing.FileLock, "acquire", fail)
    assert error().startswith(f"{cache_root() / 'data'}: the disk is full (")


def test_other_failures_keep_their_traceback_and_leave_nothing(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("x/a.png")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writing.ArrayFile, "append", fail)
    with pytest.raises(OSError, match="Input/output error"):
        store_of()
    assert left_behind() == []


def test_a_cache_that_cannot_be_written(put: Put, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("x/a.png"), put("file", b"")
    monkeypatch.setenv("TWOFOLD_CACHE", str(here / "file"))
    message = error()
    assert message.startswith(f"{here}/file/data: cannot be written (")
    assert message.endswith("; set the environment variable TWOFOLD_CACHE to a folder of yours")


def test_cache_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOFOLD_CACHE", "~/elsewhere")
    assert cache_root() == Path.home() / "elsewhere"
    monkeypatch.delenv("TWOFOLD_CACHE")
    assert cache_root() == Path.home() / ".cache/twofold"


@pytest.mark.parametrize("file", ["images.npy", "labels.npy", "id_bytes.npy", "splits.npy"])
def test_a_damaged_store(put: Put, file: str) -> None:
    for i in range(3):
        put(f"x/{i}.png")
    folder = store_of().folder
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[:-1])
    message = error()
    assert message.startswith(f"{folder}: this packed store is damaged (") and message.endswith(
        "delete it; it is packed again"
    )
    (folder / file).unlink()
    assert "this packed store is damaged" in error()
    shutil.rmtree(folder)
    assert len(store_of()) == 3


def test_splits_that_hold_nothing(put: Put) -> None:
    for i in range(3):
        put(f"x/{i}.png")
    cases = {
        "test": (0.0, "data=x: its test split holds no image; data.test_share is 0; set it to hold images out"),
        "validation": (
            0.01,
            "data=x: its validation split holds no image; there are too few training images to hold any out; "
            "raise data.validation_share or add images",
        ),
    }
    for split, (share, message) in cases.items():
        with pytest.raises(UserError) as caught:
            store_of(**{f"{split}_share": share}).indices(split)
        assert str(caught.value) == message


def test_no_such_split(put: Put) -> None:
    put("x/a.png")
    with pytest.raises(UserError, match=r"^split=trian: no such split; did you mean 'train'\?$"):
        store_of().indices("trian")


def test_a_folder_that_another_process_removes_meanwhile_begins_again(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is done removes the parts while another one is about to note its plan in them."""
    put("x/0.png", pixels(0, 8, 8, 3))
    write, removed = parts.atomic_json, []

    def removing(path: Path, value: object) -> None:
        if not removed:
            removed.append(path)
            shutil.rmtree(path.parent)
        write(path, value)

    monkeypatch.setattr(parts, "atomic_json", removing)
    assert len(store_of()) == 1 and len(removed) == 1 and left_behind() == []
