"""`twofold data` on digits and on a folder with a broken file."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path
from typing import Any

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
        (["labels", "digits", "per_class=2"], "twofold data labels: --out is missing; name the label file to write"),
        (["labels", "digits", "--out", "x"], "twofold data labels: per_class is missing; say how many images of each"),
        (
            ["labels", "digits", "--out", "x", "per_class=0"],
            "per_class=0: is not a whole number from 1 on; write per_",
        ),
        (["labels", "digits", "--out", "x", "per_class=2", "seed=-1"], "seed=-1: is not a whole number from 0 on"),
        (["labels", "digits", "--out", "x", "per_class=999"], "per_class=999: the smallest class has "),
        (["labels", "digits", "--out", ".", "per_class=2"], "--out .: is a folder; name the file to write"),
        (["pack"], "twofold data: SOURCE is missing; usage: twofold data pack|describe|split|labels|unpack SOURCE"),
    ],
)
def test_mistakes(words: list[str], start: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *words]) == 2
    assert f"twofold: error: {start}" in capsys.readouterr().err


def test_describe_tells_of_imbalance_and_of_classes_that_are_too_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (31, 8, 8), dtype=np.uint8)
    for i, image in enumerate(pixels):
        place = tmp_path / "x" / ("rare" if i == 30 else "some" if i > 24 else "many")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0] if i == 3 else image).save(place / f"{i}.png")
    assert main(["data", "describe", str(tmp_path / "x"), "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "duplicates 1 images are the same as an earlier one\n" in text
    assert "too few    images for every part: rare (validation, test), some (validation)\n" in text
    many, some = (int(line.split()[1]) for line in text.splitlines() if line.split()[0] in ("many", "some"))
    assert f"balance    largest class {many} training images, smallest 1 ({many}.0 times), effectively 1." in text
    assert many + some + 1 == int(text.splitlines()[-1].split()[2])
    assert main(["data", "split", str(tmp_path / "x"), "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("too few    images for every part: rare")


def test_duplicates_across_own_splits_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, name in enumerate(("train/a/0", "train/a/1", "train/a/2", "test/a/3")):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), i % 3, np.uint8)).save(tmp_path / "x" / f"{name}.png")
    for action in ("pack", "describe"):
        assert main(["data", action, str(tmp_path / "x"), "--quiet"]) == 0
        assert (
            "note       identical images (1 sets) lie in several of the source's own splits\n"
            in capsys.readouterr().out
        )


def test_groups_without_effect_are_noted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(folder), "on_bad_image=skip", "--quiet"]
    for action in ("pack", "describe", "split"):
        assert main(["data", action, *words]) == 0
        assert "note " not in capsys.readouterr().out
        assert main(["data", action, *words, r"group=re:(\.png)$"]) == 0
        note = "note       1 group is too few, since each stays whole: no image is left for validation and test\n"
        assert note in capsys.readouterr().out


def test_labels_writes_a_file_that_training_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "two.csv"
    assert main(["data", "labels", "digits", "per_class=2", "seed=3", "--out", str(out), "--quiet"]) == 0
    assert capsys.readouterr().out == f"{out}: 20 images, 2 of each class; train with data.labels={out}\n"
    direct = open_store(DataSettings(source="digits", labels_per_class=2, labels_seed=3))
    store = open_store(DataSettings(source="digits", labels=str(out)))
    np.testing.assert_array_equal(store.labels, direct.labels)
    assert main(["data", "describe", "digits", f"labels={out}", "--quiet"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("unlabelled")).split()
    assert row == ["unlabelled", f"{len(store.indices('train')) - 20:,}", "0", "0"]


def test_of_several_processes_one_tells(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["data", "pack", "digits"]) == 0
    assert capsys.readouterr() == ("", "")


def test_attributes_are_counted(tmp_path: Path) -> None:
    from twofold.cli.data import attributes_table

    counts = {"smiling": (1000, 3000, 2), "x": (0, 0, 1)}
    words = ("yes", "no", "unknown")
    table = attributes_table({name: dict(zip(words, row, strict=True)) for name, row in counts.items()})
    assert table.splitlines()[1].split() == ["smiling", "1,000", "3,000", "2", "25.0%"]
    assert table.splitlines()[2].split() == ["x", "0", "0", "1", "-"]


DOCS = (Path(__file__).parents[2] / "docs/data.md").read_text()


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/: two classes of images with masks, points and a table, in the working directory. scans/: two images."""
    rng, table = np.random.default_rng(0), ["file_name,patient"]
    for name in (f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(12)):
        for kind, pixels in (("images", rng.integers(0, 256, (8, 8, 3))), ("masks", rng.integers(0, 3, (8, 8)))):
            path = tmp_path / "photos" / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        points = (tmp_path / "photos/points" / name).with_suffix(".csv")
        points.parent.mkdir(parents=True, exist_ok=True)
        points.write_text("1,2\n3,4\n")
        table.append(f"images/{name},p{len(table) // 3}")
    (tmp_path / "photos/metadata.csv").write_text("\n".join(table))
    (tmp_path / "scans").mkdir()
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).save(tmp_path / f"scans/{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def test_the_documented_commands_work(documented: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^    twofold (data \w+ photos/.*)$", DOCS, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        assert main([*shlex.split(line, comments=True), "--quiet"]) == 0, line
    assert "note       metadata.csv has also: patient (unused; " in capsys.readouterr().out
    from_file = open_store(DataSettings(source="photos/", labels="few.csv"))
    drawn = open_store(DataSettings(source="photos/", labels_per_class=5, labels_seed=0))
    assert from_file.labels.tolist() == drawn.labels.tolist() and (drawn.labels == -1).any()


def test_the_documented_snippet_reads_what_belongs_to_images(documented: Path) -> None:
    code, *_ = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["images"].shape == (8, 3, 8, 8) and found["masks"].shape == (8, 8, 8)
    assert found["points"].shape == (8, 2, 2) and found["points"][0].tolist() == [[1, 2], [3, 4]]
    assert [found["store"].classes[i] for i in found["labels"]] == [name.partition("/")[0] for name in found["names"]]
    with Image.open(documented / "masks" / found["names"][0]) as mask:
        np.testing.assert_array_equal(found["masks"][0], np.asarray(mask))
