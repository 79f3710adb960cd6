"""Packing in parts: by one process or several, in one go or with a break, the store is the same, bit for bit."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twofold.data import Item, Store, cache_root, forks, open_store
from twofold.data import join as joining
from twofold.data import pack as packing
from twofold.data.decode import BadImage, _usual_jpeg, decode
from twofold.data.duplicates import image_hashes
from twofold.data.pack import pack
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from ..processes import Started
from .conftest import encoded, pixels

Put = Callable[..., Path]


class Given:
    """Any items as a source."""

    name, where = "given", "data=given"

    def __init__(self, items: list[Item], **facts: Any) -> None:
        self._items, self._facts = items, facts

    def identity(self) -> str:
        return "given"

    def classes(self) -> list[str]:
        return ["a", "b"]

    def count(self) -> int:
        return len(self._items)

    def left_out(self) -> list[str]:
        return []

    def facts(self) -> dict[str, Any]:
        return self._facts

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        yield from self._items[start:stop]


def packed(items: list[Item], folder: Path, facts: dict[str, Any] | None = None, **values: Any) -> Store:
    settings = DataSettings(source="given", **values)
    pack(Given(items, **(facts or {})), settings, folder, lambda: True, None)
    return Store(folder, settings)


def contents(folder: Path) -> dict[str, str]:
    """Hashes of the files of a store."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def some_items(n: int, bad: tuple[int, ...] = (), coloured: tuple[int, ...] = ()) -> list[Item]:
    return [
        Item(
            f"{i:03}.png",
            b"bad" if i in bad else encoded(pixels(i, 4, 6, 3) if i in coloured else pixels(i, 4, 6)),
            i % 3 - 1,
            ("train", "test", None)[i % 3] if i % 2 else None,
        )
        for i in range(n)
    ]


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coloured", [(), (0,), (39,), (3, 20)])
def test_the_size_of_parts_does_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coloured: tuple[int, ...]
) -> None:
    items, values = some_items(40, (5, 12, 13, 14, 38), coloured), {"on_bad_image": "skip"}
    whole = packed(items, tmp_path / "whole", **values)
    assert whole.shape == (3 if coloured else 1, 4, 6) and len(whole) == 35
    for rows in (3, 7):
        monkeypatch.setattr(packing, "PART", rows)
        folder = tmp_path / str(rows)
        assert packed(items, folder, **values).content_hash == whole.content_hash
        assert contents(folder) == contents(tmp_path / "whole")
    np.testing.assert_array_equal(whole.hashes, image_hashes(whole.images))
    assert not list(tmp_path.glob(".*.parts"))


def test_images_of_other_sizes_in_other_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PART", 3)
    items = [Item(f"{i}", pixels(i, 4, 6 if i < 7 else 5), -1, None) for i in range(9)]
    with pytest.raises(UserError, match=r"^data=given: images differ in size: 6 is 4x6 and 7 is 4x5 \(height x width"):
        packed(items, tmp_path / "x")
    items = [Item(f"{i}", pixels(i, 4, 6 if i < 6 else 5), -1, None) for i in range(9)]
    shutil.rmtree(tmp_path / ".x.parts")
    with pytest.raises(UserError, match=r"^data=given: images differ in size: 0 is 4x6 and 6 is 4x5 \(height x width"):
        packed(items, tmp_path / "x")
    assert not (tmp_path / ".x.parts").exists()


def test_what_is_left_of_a_source_that_has_changed_is_removed(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PART", 2)
    for i in range(6):
        put(f"x/{i}.png", pixels(i, 4, 4))
    put("x/5.png", b"bad")
    for source in ({}, {"size": 2}):
        with pytest.raises(UserError, match=r"5\.png: cannot be read"):
            open_store(DataSettings(source="x", **source))
    folder = cache_root() / "data"
    assert len(list(folder.glob(".*.parts"))) == 2  # four good images are safe, at either size
    put("x/5.png", pixels(5, 4, 4))
    assert len(open_store(DataSettings(source="x"))) == 6
    (other,) = folder.glob(".*.parts")
    assert json.loads((other / "plan.json").read_text())["size"] == [2, 2]


SHARE = """
import sys
from twofold.data import open_store, pack
from twofold.settings.data import DataSettings
pack.PART = 8
made = []
real = pack._Packing._make
pack._Packing._make = lambda self, parts, part: (made.append(part), real(self, parts, part))
print(open_store(DataSettings(source="x", on_bad_image="skip")).content_hash, len(made))
"""


def test_processes_share_the_parts(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(300):
        put(f"x/{i:03}.png", b"bad" if i % 50 == 7 else pixels(i, 64, 64, 3))
    settings = DataSettings(source="x", on_bad_image="skip")
    alone = open_store(settings)
    expected = contents(alone.folder)
    shutil.rmtree(alone.folder)
    processes = [Started("-c", SHARE) for _ in range(2)]
    answers = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert {answer[0] for answer in answers} == {alone.content_hash}
    assert sum(int(answer[1]) for answer in answers) == 38  # each of the 38 parts once
    assert contents(alone.folder) == expected and not list(alone.folder.parent.glob(".*.parts"))


# -- forks ------------------------------------------------------------------------------------------------------------

forking = pytest.mark.skipif(not forks.possible(), reason="processes are forked on Linux only")


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets the smallest source be packed by four processes; the list holds how many forks each store had."""
    made: list[int] = []
    real = forks.Forks

    def counted(count: int, work: Callable[[], None]) -> forks.Forks:
        found = real(count, work)
        made.append(len(found))
        return found

    for name, value in {"ALONE": 0, "PART": 4, "_workers": lambda: 3, "TICK": 0.01, "Forks": counted}.items():
        monkeypatch.setattr(packing, name, value)
    return made


@forking
def test_forks_make_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: list[int]) -> None:
    items, values = some_items(90, (5, 12, 13, 14, 38), (39,)), {"on_bad_image": "skip"}
    packed(items, tmp_path / "forked", **values)
    assert max(forked) == 3 and multiprocessing.active_children() == []
    monkeypatch.setattr(packing, "possible", lambda: False)
    packed(items, tmp_path / "alone", **values)
    assert contents(tmp_path / "forked") == contents(tmp_path / "alone")
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"forked", "alone"}


@forking
def test_forks_do_most_of_the_work_where_the_parent_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: list[int]
) -> None:
    here, real, mine = os.getpid(), packing.decode_item, []

    def slow(item: Item, *more: Any) -> Any:
        if os.getpid() == here:
            mine.append(item.id)
            time.sleep(0.02)
        return real(item, *more)

    monkeypatch.setattr(packing, "decode_item", slow)
    calls: list[tuple[int, int | None]] = []
    settings = DataSettings(source="given")
    pack(Given(some_items(90)), settings, tmp_path / "x", lambda: True, lambda *call: calls.append(call))
    assert len(mine) < 45 and len(Store(tmp_path / "x", settings)) == 90
    assert calls == sorted(calls) and calls[-1] == (90, 90)


@forking
def test_what_a_fork_meets_is_said_in_the_same_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: list[int]
) -> None:
    here, real, items = os.getpid(), packing.decode_item, some_items(90)

    def bad_for_forks(item: Item, *more: Any) -> Any:
        if os.getpid() != here:
            raise BadImage("it is torn")
        time.sleep(0.02)
        return real(item, *more)

    monkeypatch.setattr(packing, "decode_item", bad_for_forks)
    message = r"^data=given: \d{3}\.png: cannot be read: it is torn; repair or remove it, "
    with pytest.raises(UserError, match=message) as caught:
        packed(items, tmp_path / "x")
    assert caught.value.hint == "repair or remove it, or set data.on_bad_image=skip"
    assert multiprocessing.active_children() == [] and not (tmp_path / "x").exists()


@forking
def test_a_fork_that_is_killed_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: list[int]
) -> None:
    here, real = os.getpid(), packing.decode_item

    def dies(item: Item, *more: Any) -> Any:
        if os.getpid() != here and item.id == "050.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(item, *more)

    monkeypatch.setattr(packing, "decode_item", dies)
    assert len(packed(some_items(90), tmp_path / "x")) == 90
    assert not list(tmp_path.glob(".*.parts"))


STOPPED = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # who is started in the background may ignore it
from twofold.data import forks, open_store, pack
from twofold.settings.data import DataSettings
pack.ALONE, pack.PART, pack.TICK, pack._workers = 0, 4, 0.01, lambda: 3
here, real = os.getpid(), pack.decode_item

def slow(*given):
    time.sleep(0.05)
    return real(*given)

pack.decode_item = slow
first = []

def progress(done, total):
    if done >= 8 and not first:
        first.append(done)
        print(*(process.pid for process in forks.multiprocessing.active_children()), flush=True)

open_store(DataSettings(source="x"), progress)
"""


@forking
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whoever_is_stopped_leaves_no_fork_and_no_half_store(put: Put, how: signal.Signals) -> None:
    for i in range(90):
        put(f"x/{i:03}.png", pixels(i, 4, 4, 3))
    process = Started("-c", STOPPED)
    pids = [int(pid) for pid in next(process.lines()).split()]
    assert len(pids) == 3
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    for _ in range(200):
        if not (alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]):
            break
        time.sleep(0.05)
    assert alive == []
    (left,) = [path for path in (cache_root() / "data").iterdir() if path.is_dir()]
    assert left.name.endswith(".parts")  # what is complete is kept
    assert len(open_store(DataSettings(source="x"))) == 90
    assert not left.exists()


# -- joining where there is little room -------------------------------------------------------------------------------


def few_free(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(joining.shutil, "disk_usage", lambda path: usage(10**6, 0, 10**6))


def test_joining_where_there_is_no_room_for_two_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = some_items(40, coloured=(11,))
    whole = packed(items, tmp_path / "whole")
    monkeypatch.setattr(packing, "PART", 8)
    few_free(monkeypatch)
    removed: list[str] = []
    real = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **more: (removed.append(str(self)), real(self, **more))[1])
    assert packed(items, tmp_path / "tight").content_hash == whole.content_hash
    assert len([name for name in removed if name.endswith("images.npy")]) == 5
    assert contents(tmp_path / "tight") == contents(tmp_path / "whole")


def test_a_killed_join_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = some_items(40, coloured=(30,))
    whole = packed(items, tmp_path / "whole")
    monkeypatch.setattr(packing, "PART", 8)
    few_free(monkeypatch)
    real, seen = joining._blocks, []

    def dies(part: object, file: Path, row: tuple[int, ...]) -> Iterator[np.ndarray]:
        seen.append(file)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(part, file, row)  # type: ignore[arg-type]

    monkeypatch.setattr(joining, "_blocks", dies)
    with pytest.raises(KeyboardInterrupt):
        packed(items, tmp_path / "tight")
    monkeypatch.setattr(packing, "decode_item", lambda *_: pytest.fail("decoded again"))
    assert packed(items, tmp_path / "tight").content_hash == whole.content_hash
    assert len(seen) == 6  # three parts before, one that was interrupted, two after
    assert contents(tmp_path / "tight") == contents(tmp_path / "whole")


def test_pixels_that_a_crash_has_lost_are_packed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = some_items(40)
    whole = packed(items, tmp_path / "whole")
    monkeypatch.setattr(packing, "PART", 8)
    real = joining.Join.run

    def dies(self: joining.Join) -> dict[str, Any]:
        (tmp_path / ".tight.parts" / "000000" / "images.npy").unlink()
        monkeypatch.setattr(joining.Join, "run", real)
        return real(self)

    monkeypatch.setattr(joining.Join, "run", dies)
    assert packed(items, tmp_path / "tight").content_hash == whole.content_hash


# -- what belongs to an image -----------------------------------------------------------------------------------------


def rich_items(n: int) -> list[Item]:
    """Images with everything, and some without."""
    out = []
    for i in range(n):
        rng = np.random.default_rng(i)
        out.append(
            Item(
                f"{i}", pixels(i, 6, 8, 3), i % 2, None,
                group=None if i % 5 == 4 else f"person {i // 3}",
                attributes=None if i == 2 else (i % 2, -1, 1),
                mask=None if i % 4 == 3 else rng.integers(0, 3, (6, 8), np.uint8),
                points=None if i == 1 else np.array([[i, 1], [np.nan, np.nan]]),
                pair=encoded(pixels(i + 100, 6, 8)),
            )
        )  # fmt: skip
    return out


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_what_belongs_to_an_image_is_packed_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(packing, "PART", rows)
    items = rich_items(10)
    facts = {"attributes": ["smiling", "young", "hat"], "mask_classes": ["x", "y", "z"], "points": 2, "flip_pairs": []}
    store = packed(items, tmp_path / "x", facts, points_outside="keep")
    assert store.attribute_names == facts["attributes"] and store.point_names == ["0", "1"]
    assert store.mask_classes == ["x", "y", "z"] and store.flip_pairs == []
    for i, item in enumerate(items):
        assert tuple(store.attributes[i]) == (item.attributes or (-1, -1, -1))
        np.testing.assert_array_equal(store.masks[i], np.full((6, 8), 255) if item.mask is None else item.mask)
        np.testing.assert_array_equal(store.points[i], np.full((2, 2), np.nan) if i == 1 else item.points)
        np.testing.assert_array_equal(store.pairs[i], pixels(i + 100, 6, 8)[None])
    assert store.groups.tolist() == [0, 0, 0, 1, -1, 1, 2, 2, 2, -1]
    assert store.points.dtype == np.float32 and store.attributes.dtype == np.int8 and store.masks.dtype == np.uint8
    monkeypatch.setattr(packing, "PART", 3)
    assert contents(packed(items, tmp_path / "y", facts, points_outside="keep").folder) == contents(store.folder)


def test_the_hash_covers_what_belongs_to_the_images(tmp_path: Path) -> None:
    items = rich_items(6)
    hashes = {packed(items, tmp_path / "0").content_hash}
    other = rich_items(8)
    for i, change in enumerate(("group", "attributes", "mask", "points", "pair"), 1):
        changed = [
            items[0]._replace(**{change: getattr(other[5 if change == "attributes" else 7], change)}),
            *items[1:],
        ]
        if change == "mask":
            changed[0] = items[0]._replace(mask=other[6].mask)
        hashes.add(packed(changed, tmp_path / str(i)).content_hash)
    bare = [item._replace(group=None, attributes=None, mask=None, points=None, pair=None) for item in items]
    hashes.add(packed(bare, tmp_path / "bare").content_hash)
    assert len(hashes) == 7
    digest = hashlib.sha256
    images = np.stack([pixels(i, 6, 8, 3).transpose(2, 0, 1) for i in range(6)])
    parts = ["(3, 6, 8)", digest(images.tobytes()).hexdigest(), digest(np.arange(6) % 2).hexdigest()]
    # that of stores without belongings never changes: runs and statistics are kept under it
    assert packed(bare, tmp_path / "again").content_hash == digest(" ".join(parts).encode()).hexdigest()


@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair": None}, "data=given: 3: has no paired image, while others have one; add it"),
        ({"points": np.zeros((3, 2))}, "data=given: its images have 2 to 3 points; give all equally many"),
        ({"attributes": (1,)}, "data=given: its images have 1 to 3 attributes; give all equally many"),
    ],
)
def test_images_that_do_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str, rows: int
) -> None:
    monkeypatch.setattr(packing, "PART", rows)
    items = rich_items(6)
    items[3] = items[3]._replace(**change)
    with pytest.raises(UserError) as caught:
        packed(items, tmp_path / "x")
    assert str(caught.value) == message


def test_groups_and_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    items = [Item(str(i), pixels(i // 2 if i < 40 else i, 4, 4), i % 2, None) for i in range(200)]
    store = packed(items, tmp_path / "pairs")
    assert (store.codes[:40:2] == store.codes[1:40:2]).all() and set(store.codes) == {0, 1, 2}
    items = [Item(str(i), pixels(i, 4, 4), i % 2, None, group=str(i % 25)) for i in range(200)]
    store = packed(items, tmp_path / "groups")
    assert all(len(set(store.codes[i::25])) == 1 for i in range(25))
    assert np.abs(np.bincount(store.codes) - [140, 20, 40]).max() <= 4  # half a group
    few = packed([item._replace(group="one") for item in items], tmp_path / "one")
    with pytest.raises(UserError, match="its test split holds no image; all images belong to one group"):
        few.indices("test")


def test_a_store_packed_without_hashes_gets_them(tmp_path: Path) -> None:
    store = packed(some_items(9), tmp_path / "x")
    codes = store.codes.copy()
    for file in (store.folder / "hashes.npy", *store.folder.glob("split-*.npy")):
        file.unlink()
    again = Store(store.folder, store.settings)
    np.testing.assert_array_equal(again.codes, codes)
    assert (store.folder / "hashes.npy").is_file()


# -- JPEG -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 30}, {"quality": 100, "subsampling": 0}, {"subsampling": 1}, {"progressive": True},
        {"optimize": True, "comment": b"hello"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(1, 1, 3), (17, 23, 3), (64, 48, 3), (31, 16)])
def test_both_jpeg_decoders_give_the_same_pixels(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    content = encoded(pixels(1, *shape), "JPEG", **options)
    usual = _usual_jpeg(content)
    assert usual is not None
    np.testing.assert_array_equal(usual, np.asarray(Image.open(io.BytesIO(content))))
    for values in ({}, {"channels": 1}, {"size": 16}, {"size": 9, "channels": 1, "fit": "pad"}):
        settings = DataSettings(source="x", **values)
        quick = decode(content, settings)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules[decode.__module__], "_usual_jpeg", lambda content: None)
            np.testing.assert_array_equal(decode(content, settings), quick)


def test_unusual_and_damaged_jpegs_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(pixels(1, 64, 64, 3), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    cases = [
        encoded(Image.new("CMYK", (16, 16)), "JPEG"),
        encoded(pixels(1, 8, 8, 3), "JPEG", exif=exif),
        whole[: len(whole) // 2],
        whole[:30],
        whole[:-2],
        b"\xff\xd8\xff",
        encoded(pixels(1, 8, 8, 3)),
    ]
    assert [_usual_jpeg(content) for content in cases] == [None] * len(cases)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert _usual_jpeg(whole) is None  # and Pillow refuses a bomb
    assert _usual_jpeg(encoded(pixels(1, 8, 8, 3), "JPEG")) is not None


def test_real_jpegs_are_decoded_alike(shared_data: Callable[[str], Path]) -> None:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(shared_data("cifar10") / "test-00000-of-00001.parquet")
    for cell in next(file.iter_batches(300, columns=["image"])).column("image").to_pylist():
        usual = _usual_jpeg(cell["bytes"])
        assert usual is not None
        np.testing.assert_array_equal(usual, np.asarray(Image.open(io.BytesIO(cell["bytes"]))))
