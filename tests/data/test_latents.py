"""Stored latents: the numbers, in whatever parts, by whichever process, after whatever accident."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from twofold.data import Store, latents, open_store
from twofold.data.latents import Latents, Shelf, fill, moments_bytes, shelf
from twofold.errors import UserError
from twofold.settings.data import DataSettings

SHAPE = (2, 4, 4)


class Halves:
    """Makes moments (4, 4, 4) of 8 x 8 digits that tell image and mirror image apart; counts what it encodes."""

    moments_key = "a"

    def __init__(self) -> None:
        self.seen = 0

    def moments(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        quarter = images[:, :, ::2, :4].float() / 7 - 13
        return torch.cat([quarter, -quarter, quarter + 1, quarter * 0 - 30], 1)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    monkeypatch.setattr(latents, "SHARD_ROWS", 300)
    monkeypatch.setattr(latents, "BATCH", 64)
    found = open_store(DataSettings(source="digits"))
    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path))
    return found


def made(store: Store, mirror: bool = True, rows: np.ndarray | None = None) -> Shelf:
    return shelf(Halves(), store, store.indices("train") if rows is None else rows, SHAPE, mirror)


def test_they_are_what_the_encoder_makes_of_image_and_mirror_image(store: Store) -> None:
    found = made(store)
    told = list(fill(found, Halves(), store))
    assert told[0][0] == 0 and told[-1] == (len(found.rows), len(found.rows)) and found.missing() == []
    rows = np.random.default_rng(0).choice(found.rows, 500)
    mirrored = np.arange(500) % 3 == 0
    images = store.batch(rows)
    images[torch.from_numpy(mirrored)] = images[torch.from_numpy(mirrored)].flip(-1)
    assert torch.equal(Latents(found)(rows, mirrored), Halves().moments(images).half())
    plain = Latents(found)(rows)
    assert torch.equal(plain, Halves().moments(store.batch(rows)).half()) and plain.dtype == torch.float16


def test_processes_and_one_process_end_with_the_same_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three take turns: each image is encoded by one of them, and none ends before all is there."""
    monkeypatch.setattr(latents, "TICK", 0)
    found = made(store, mirror=False)
    encoders = [Halves() for _ in range(3)]
    going = {rank: fill(found, encoder, store, rank, 3) for rank, encoder in enumerate(encoders)}
    while going:
        for rank, each in list(going.items()):
            if (told := next(each, None)) is None:
                assert found.missing() == []
                del going[rank]
            else:
                assert 0 <= told[0] <= told[1] == len(found.rows)
    assert sum(encoder.seen for encoder in encoders) == len(found.rows) and all(encoder.seen for encoder in encoders)
    shared = [found.file(i).read_bytes() for i in range(found.shards)]
    assert found.shards == 5
    for i in range(found.shards):
        found.file(i).unlink()
    list(fill(found, Halves(), store, 2, 3))  # the others have folders of their own
    assert [found.file(i).read_bytes() for i in range(found.shards)] == shared


def test_only_what_is_missing_or_cut_short_is_made_again(store: Store) -> None:
    found, encoder = made(store), Halves()
    going = fill(found, encoder, store)
    for done, _ in going:
        if done > 500:  # within the second shard
            break
    going.close()
    assert [i for i in range(found.shards) if found.file(i).exists()] == [0]
    assert not list(found.folder.glob(".*.part"))
    os.truncate(found.file(0), 1000)
    killed = found.folder / f".{found.file(1).name}.999999.part"
    killed.write_bytes(b"half")
    list(fill(found, Halves(), store))
    assert not killed.exists()
    found.file(2).unlink()
    encoder = Halves()
    list(fill(found, encoder, store))
    assert encoder.seen == 2 * 300
    encoder = Halves()
    assert list(fill(found, encoder, store)) == [(0, 0)] and encoder.seen == 0


def test_shelves_of_other_rows_views_or_encoders_are_apart(store: Store) -> None:
    other = Halves()
    other.moments_key = "b"  # type: ignore[misc]
    rows = store.indices("train")
    found = [made(store), made(store, False), made(store, rows=rows[1:]), shelf(other, store, rows, SHAPE, True)]
    assert len({each.folder for each in found}) == 4
    assert made(store, rows=np.concatenate([rows[::-1], rows])).folder == made(store).folder
    assert found[1].views == 1 and found[0].row_bytes == 2 * found[1].row_bytes


def test_a_full_disk_is_told_before_anything_is_encoded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(latents.shutil, "disk_usage", lambda path: usage)
    encoder = Halves()
    with pytest.raises(UserError, match="codec.store=false"):
        list(fill(made(store), encoder, store))
    assert encoder.seen == 0


def test_a_disk_that_fills_up_meanwhile_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    found, append = made(store), latents.ArrayFile.append

    def full(file: latents.ArrayFile, rows: np.ndarray) -> None:
        if found.file(0).exists():
            raise OSError(errno.ENOSPC, "no space left on device")
        append(file, rows)

    with monkeypatch.context() as patch:
        patch.setattr(latents.ArrayFile, "append", full)
        with pytest.raises(UserError, match="the disk is full"):
            list(fill(found, Halves(), store))
    assert found.missing() == [1, 2, 3, 4] and not list(found.folder.glob(".*.part"))
    list(fill(found, Halves(), store))
    assert found.missing() == []


def test_what_is_not_finite_or_not_there_is_named(store: Store) -> None:
    found = made(store)
    with pytest.raises(UserError, match="these latents are not there"):
        Latents(found)
    broken = Halves()
    broken.moments = lambda images: torch.full((len(images), 4, 4, 4), float("nan"))  # type: ignore[method-assign]
    with pytest.raises(UserError, match="not finite"):
        list(fill(found, broken, store))
    list(fill(found, Halves(), store))
    with pytest.raises(IndexError):
        Latents(found)(store.indices("test")[:3])


def test_imagenet_takes_42_gigabytes() -> None:
    assert 2_562_334 * moments_bytes((8, 32, 32)) == pytest.approx(42e9, rel=0.01)
