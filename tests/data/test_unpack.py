"""A store as PNG files, and back: same pixels, classes, splits and belongings; killed, continued, refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twofold.cli.main import main
from twofold.data import SPLITS, Store, open_store
from twofold.data import unpack as module
from twofold.data.unpack import unpack
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from .conftest import encoded, pixels

Put = Callable[..., Path]


def opened(source: Path | str, **options: Any) -> Store:
    return open_store(DataSettings(source=str(source), **options))


def listed(out: Path) -> list[dict[str, str]]:
    with (out / "images.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def facts(store: Store, i: int, split: bool = True) -> tuple[Any, ...]:
    """What must come back of an image: its pixels, its class by name, its split, what belongs to it."""
    label = int(store.labels[i])
    more = [None if a is None else a[i].tobytes() for a in (store.masks, store.pairs)]
    points = None if store.points is None else tuple(np.nan_to_num(store.points[i], nan=-9).round(3).ravel().tolist())
    where = SPLITS[store.codes[i]] if split else ""
    return (store.images[i].tobytes(), store.classes[label] if label >= 0 else None, where, *more, points)


def same(a: Store, b: Store, split: bool = True) -> bool:
    return sorted(map(repr, (facts(a, i, split) for i in range(len(a))))) == sorted(
        map(repr, (facts(b, i, split) for i in range(len(b))))
    )


def test_digits_come_back(here: Path) -> None:
    digits = opened("digits")
    out = unpack(digits, here / "out")
    assert sorted(p.name for p in out.iterdir()) == [*"0123456789", "images.csv"]
    again = opened(out)
    assert same(digits, again, split=False) and again.shape == (1, 8, 8) and again.classes == digits.classes
    row = listed(out)[17]
    assert row["id"] == digits.id(17) and row["split"] == SPLITS[digits.codes[17]]
    pixel = np.asarray(Image.open(out / row["file"]))
    assert pixel.dtype == np.uint8 and np.array_equal(pixel, digits.images[17, 0])


def test_with_splits_what_was_held_out_stays_held_out(here: Path) -> None:
    digits = opened("digits", most=200)
    again = opened(unpack(digits, here / "out", splits=True))
    assert same(digits, again)
    assert (here / "out" / "test" / "3").is_dir() and (here / "out" / "validation").is_dir()


def test_names_are_kept(put: Put, here: Path) -> None:
    """Sub-folders, endings, Chinese, blanks; two files that differ in their ending alone."""
    names = ["划痕/b 1.png", "划痕/deep/1.bmp", "cracks/x.jpg", "cracks/x.png", "unlabelled/u.png", "cracks/a%b.png"]
    for i, name in enumerate(names):
        image = Image.fromarray(pixels(i, 6, 6, 3))
        put(f"photos/{name}", encoded(image, {"jpg": "JPEG", "bmp": "BMP"}.get(name[-3:], "PNG")))
    store = opened("photos")
    out = unpack(store, here / "out")
    files = {row["id"]: row["file"] for row in listed(out)}
    assert files == {
        "划痕/b 1.png": "划痕/b 1.png",
        "划痕/deep/1.bmp": "划痕/deep_1.png",
        "cracks/a%b.png": "cracks/a%25b.png",
        "cracks/x.jpg": "cracks/x.png",
        "cracks/x.png": f"cracks/x-{[store.id(i) for i in range(6)].index('cracks/x.png')}.png",
        "unlabelled/u.png": "unlabelled/u.png",
    }
    assert same(store, opened(out), split=False)


def test_a_source_with_splits_has_folders_of_them(put: Put, here: Path) -> None:
    for i, name in enumerate(["train/a/1", "train/b/1", "val/a/2", "val/b/3", "test/a/4", "test/b/5"]):
        put(f"photos/{name}.png", pixels(i, 4, 4, 3))
    store = opened("photos")
    out = unpack(store, here / "out")
    assert {row["file"] for row in listed(out)} >= {"train/a/1.png", "validation/b/3.png", "test/b/5.png"}
    assert same(store, opened(out))
    flat = unpack(store, here / "flat", splits=False)
    assert sorted(p.name for p in flat.iterdir()) == ["a", "b", "images.csv"]


def test_without_classes_it_is_flat(put: Put, here: Path) -> None:
    for i in range(3):
        put(f"photos/{i}.png", pixels(i, 4, 4, 3))
    out = unpack(opened("photos"), here / "out")
    assert sorted(p.name for p in out.iterdir()) == ["0.png", "1.png", "2.png", "images.csv"]


def test_masks_points_and_pairs_stand_beside(put: Put, here: Path) -> None:
    for i in range(6):
        put(f"photos/images/{i}.png", pixels(i, 8, 8, 3))
        put(f"photos/masks/{i}.png", pixels(i, 8, 8) % 3)
        put(f"photos/pairs/{i}.png", pixels(i + 10, 8, 8))
        points = [[1.5, 2.25], [None, None]] if i else [[0.0, 7.0], [3.5, 3.5]]
        put(f"photos/points/{i}.json", json.dumps(points).encode())
    store = opened("photos")
    out = unpack(store, here / "out")
    assert sorted(p.name for p in out.iterdir()) == ["images", "images.csv", "masks", "pairs", "points"]
    assert same(store, opened(out), split=False)


def test_attributes_and_groups_are_in_a_table(put: Put, here: Path) -> None:
    rows = ["file_name,smiling,old,who"]
    for i in range(4):
        put(f"photos/images/{i}.png", pixels(i, 4, 4, 3))
        rows.append(f"images/{i}.png,{i % 2},{'' if i == 3 else 1},p{i // 2}")
    put("photos/metadata.csv", "\n".join(rows).encode())
    options: dict[str, Any] = {"attribute_columns": ["smiling", "old"], "validation_share": 0, "test_share": 0}
    store = opened("photos", group="who", **options)
    out = unpack(store, here / "out")
    again = opened(out, group="group", **options)
    order = [[store.id(i) for i in range(4)].index(row["id"]) for row in listed(out)]
    assert np.array_equal(again.attributes, store.attributes[order])  # type: ignore[index]
    assert again.n_groups == store.n_groups == 2


def test_a_killed_call_is_continued(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits, written = opened("digits", most=60), []
    whole = module._whole

    def some(path: Path, data: bytes) -> None:
        if len(written) == 25:
            raise KeyboardInterrupt
        written.append(path)
        whole(path, data)

    monkeypatch.setattr(module, "_whole", some)
    with pytest.raises(KeyboardInterrupt):
        unpack(digits, here / "out")
    assert not (here / "out").exists()
    more: list[Path] = []
    monkeypatch.setattr(module, "_whole", lambda path, data: (more.append(path), whole(path, data)))
    unpack(digits, here / "out")
    assert len(more) == 60 - 25 and not set(more) & set(written)
    assert same(digits, opened(here / "out"), split=False)
    assert not [p for p in here.iterdir() if p.name.startswith(".out")]


def test_what_is_left_of_other_data_is_not_mixed_in(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(store: Store, names: Any, work: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_tables", stop)
        with pytest.raises(KeyboardInterrupt):
            unpack(opened("digits", most=60), here / "out")
    few = opened("digits", most=30)
    assert same(few, opened(unpack(few, here / "out")), split=False)


def test_what_would_be_lost_is_refused(put: Put, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("out/mine.txt", b"mine")
    with pytest.raises(UserError, match="--out .*out: is not empty"):
        unpack(opened("digits"), here / "out")
    put("file", b"")
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"--out \.: is the folder that you are in"):
        (here / "bare").mkdir()
        patch.chdir(here / "bare")
        unpack(opened("digits"), Path("."))
    with pytest.raises(UserError, match="is a file"):
        unpack(opened("digits"), here / "file")
    for name in ("a", "b"):
        put(f"photos/train/{name}/1.png")
        put(f"photos/train/test/{name}.png")
    with pytest.raises(UserError, match=r"class 'test': would not be read as a class.*set splits=true"):
        unpack(opened("photos"), here / "new", splits=False)
    (here / "empty").mkdir()
    assert unpack(opened("digits", most=20), here / "empty").is_dir()


def test_the_verb(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "unpack", "digits", "--quiet", "data.most=50"]
    assert main([*words, "splits=true", "--out", "out"]) == 0
    told = capsys.readouterr().out
    assert told == "out: 50 images; out/images.csv lists them; read again with data=out\n"
    assert (here / "out" / "train").is_dir()
    for wrong, message in (([], "--out is missing"), (["--out", "x", "splits=3"], "is neither true nor false")):
        assert main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err
