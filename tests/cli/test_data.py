"""`twofold data` on digits and on a folder with a broken file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twofold.cli.main import main
from twofold.data import open_store
from twofold.settings.data import DataSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten grey images in two classes, one of them broken."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8), dtype=np.uint8)
    for i, image in enumerate(pixels):
        place = tmp_path / "photos" / ("cat" if i % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i}.png")
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(b"no image")
    return tmp_path / "photos"


def test_pack_says_where_and_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "pack", "digits", "--quiet"]) == 0
    found = capsys.readouterr()
    store = open_store(DataSettings(source="digits"))
    assert found.err == ""
    assert f"store      {store.folder}\n" in found.out
    assert "images     1,797, 1 x 8 x 8" in found.out
    assert "classes    0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in found.out
    assert f"hash       {store.content_hash[:16]}" in found.out


def test_describe_counts_every_image_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "describe", "digits", "--quiet", "test_share=0.3"]) == 0
    total = capsys.readouterr().out.splitlines()[-1].split()
    assert total[:2] == ["all", "images"]
    counts = [int(n.replace(",", "")) for n in total[2:]]
    assert sum(counts) == 1797
    assert counts[2] == pytest.approx(0.3 * 1797, abs=5)


def test_split_lists_every_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "split.csv"
    assert main(["data", "split", "digits", "--quiet", "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"{out}: 1,797 rows\n")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    store = open_store(DataSettings(source="digits"))
    for split in ("train", "validation", "test"):
        assert [i for i, row in enumerate(rows) if row["split"] == split] == store.indices(split).tolist()
    assert [int(row["label"]) for row in rows] == store.labels.tolist()
    assert len({row["id"] for row in rows}) == 1797


def test_a_broken_file_is_an_error_or_is_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "pack", str(folder), "--quiet"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "1.png" in line
    assert main(["data", "pack", str(folder), "on_bad_image=skip", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "images     9, 1 x 8 x 8" in text
    assert "classes    cat, dog" in text
    assert "unreadable 1 files left out:\n  cat/1.png: " in text


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["pck", "digits"], "twofold data pck: no such action; did you mean 'pack'?"),
        (["pack", "digits", "siz=8"], "siz (command line): unknown setting; did you mean 'size'?"),
        (["pack", "digits", "source=mine"], "source=mine: the source is given already (digits); keep one of them"),
        (["pack"], "twofold data: SOURCE is missing; usage: twofold data pack|describe|split SOURCE"),
    ],
)
def test_mistakes(words: list[str], start: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *words]) == 2
    assert capsys.readouterr().err.startswith(f"twofold: error: {start}")
