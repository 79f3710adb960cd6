"""`twofold predict` and `twofold evaluate` for what says where things are: segmenters, landmarkers; and backbones."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score

import twofold
from twofold.cli.main import main
from twofold.data import open_store
from twofold.data.decode import decode_indices
from twofold.measure.landmarks import image_errors
from twofold.recognize.segmenter import class_colours
from twofold.settings.data import DataSettings

from .students import student_run

NAMES = ["left", "right", "middle"]
SHAPE = (3, 12, 16)
SIZES = [(12, 16), (24, 32), (30, 30), (7, 20)]  # height and width of the photos; the third and fourth are cropped

Out = Callable[[], str]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i, (height, width) in enumerate(SIZES):
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Parquet file per part: images, masks of NAMES and void, three points, a group, an attribute."""
    folder, random = tmp_path_factory.mktemp("table"), np.random.default_rng(1)

    def cell(array: np.ndarray) -> dict[str, Any]:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    for name, count in (("train", 4), ("test", 9)):
        masks = random.choice(np.array([0, 1, 2, 255], np.uint8), (count, *SHAPE[1:]))
        points = random.uniform(0, 11, (count, 6)).astype(np.float32)
        points[0, 2:4] = np.nan
        columns = {
            "image": [cell(random.integers(0, 256, (*SHAPE[1:], 3), np.uint8)) for _ in range(count)],
            "mask": [cell(mask) for mask in masks],
            "points": list(points),
            "who": [f"{name}{i // 2}" for i in range(count)],
            "smiling": [i % 2 for i in range(count)],
        }
        pq.write_table(pa.table(columns), folder / f"{name}-00000-of-00001.parquet")
    return folder


def data_of(table: Path) -> dict[str, Any]:
    return {
        "source": str(table),
        "mask_column": "mask",
        "mask_classes": NAMES,
        "points_column": "points",
        "group": "who",
        "attribute_columns": ["smiling"],
    }


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Path:
    return student_run(tmp_path_factory.mktemp("s") / "run", "segmentation", NAMES, SHAPE, data=data_of(table))


@pytest.fixture(scope="module")
def landmarker(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Path:
    return student_run(tmp_path_factory.mktemp("l") / "run", "landmarks", NAMES, SHAPE, data=data_of(table))


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1).copy())[None]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# -- predict ------------------------------------------------------------------------------------------------------


def test_masks_have_the_size_of_the_photos(
    segmenter: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks"
    assert main(["predict", str(segmenter), str(photos), "--quiet", "--out", str(out)]) == 0
    assert f"{out}: 4 images" in capsys.readouterr().out
    rows = rows_of(out / "classes.csv")
    assert [row["mask"] for row in rows] == [f"{i}.png" for i in range(4)]
    for row, (height, width) in zip(rows, SIZES, strict=True):
        picture = Image.open(out / row["mask"])
        assert picture.mode == "P" and picture.size == (width, height)
        mask = decode_indices((out / row["mask"]).read_bytes())  # as a mask column would be read
        assert set(np.unique(mask)) <= {0, 1, 2, 255}
        for k, name in enumerate(NAMES):
            assert float(row[f"share({name})"]) == pytest.approx((mask == k).mean(), abs=1e-6)
        assert float(row["void"]) == pytest.approx((mask == 255).mean(), abs=1e-6)
        assert np.array_equal(picture.getpalette()[:9], class_colours(3).flatten().numpy())
    model = twofold.load(segmenter)
    expected = model.masks(pixels(photos / "0.png"))[0].numpy()  # of the size that the model takes
    np.testing.assert_array_equal(decode_indices((out / "0.png").read_bytes()), expected)
    cropped = decode_indices((out / "2.png").read_bytes())
    assert (cropped[:3] == 255).all() and (cropped[-3:] == 255).all() and (cropped[5:25] != 255).all()
    assert float(rows[1]["void"]) == 0


def test_names_of_masks_never_collide(segmenter: Path, tmp_path: Path) -> None:
    for name in ("a/a.png", "a/a.bmp", "b/a.png", "b/c d.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 12)).save(path)
    assert main(["predict", str(segmenter), str(tmp_path / "in"), "--quiet", "--out", str(tmp_path / "out")]) == 0
    found = {row["id"]: row["mask"] for row in rows_of(tmp_path / "out" / "classes.csv")}
    assert len(found) == 4 and len(set(found.values())) == 4
    assert found["b/a.png"] == "b/a.png" and found["b/c d.png"] == "b/c_d.png"
    assert all((tmp_path / "out" / mask).is_file() for mask in found.values())


def test_masks_of_a_table_are_named_by_its_rows(segmenter: Path, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [str(segmenter), str(table / "test-00000-of-00001.parquet"), "--quiet", "--out", str(out)]
    for _ in range(2):  # the second time over the first
        assert main(["predict", *words]) == 0
        rows = rows_of(out / "classes.csv")
        assert [row["mask"] for row in rows] == [f"test-00000-of-00001.parquet_{i}.png" for i in range(9)]
        assert len(list(out.iterdir())) == 10


def test_masks_never_replace_the_images(
    segmenter: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos, tmp_path / "mine")
    before = {file.name: file.read_bytes() for file in (tmp_path / "mine").iterdir()}
    assert main(["predict", str(segmenter), str(tmp_path / "mine"), "--quiet", "--out", str(tmp_path / "mine")]) == 2
    assert "holds other files and no classes.csv; masks are named like the images" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (tmp_path / "mine").iterdir()} == before


def test_points_are_in_pixels_of_the_photos(landmarker: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "points.csv"
    assert main(["predict", str(landmarker), str(photos), "--quiet", "--out", str(out)]) == 0
    rows = rows_of(out)
    coordinates = [f"{axis}{k}" for k in range(3) for axis in "xy"]
    assert list(rows[0]) == ["id", *coordinates, *(f"confidence{k}" for k in range(3))]
    model = twofold.load(landmarker)
    points, confidence = model.points(pixels(photos / "0.png"))
    assert [float(rows[0][name]) for name in coordinates] == pytest.approx(points.flatten().tolist(), abs=2e-3)
    sure = [float(rows[0][f"confidence{k}"]) for k in range(3)]
    assert sure == pytest.approx(confidence[0].tolist(), abs=1e-5)
    half = torch.nn.functional.interpolate(pixels(photos / "0.png").float(), scale_factor=2).to(torch.uint8)
    Image.fromarray(half[0].permute(1, 2, 0).numpy()).save(tmp_path / "twice.png")  # every pixel four times
    again = tmp_path / "again.csv"
    assert main(["predict", str(landmarker), str(tmp_path / "twice.png"), "--quiet", "--out", str(again)]) == 0
    (row,) = rows_of(again)
    assert all(-0.5 <= float(row[f"x{k}"]) <= 31.5 and -0.5 <= float(row[f"y{k}"]) <= 23.5 for k in range(3))


def test_a_turned_photo_keeps_its_points_and_masks_in_its_own_pixels(
    landmarker: Path, segmenter: Path, photos: Path, tmp_path: Path
) -> None:
    """A file that says it is to be turned by 180 degrees: answers are those of the turned image, turned back."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(photos / "0.png").save(tmp_path / "turned.png", exif=exif)
    upright = pixels(photos / "0.png").flip(-1, -2)
    out = tmp_path / "points.csv"
    assert main(["predict", str(landmarker), str(tmp_path / "turned.png"), "--quiet", "--out", str(out)]) == 0
    (row,) = rows_of(out)
    found, _ = twofold.load(landmarker).points(upright)
    expected = torch.tensor([15.0, 11.0]) - found[0]
    assert [float(row[f"x{k}"]) for k in range(3)] == pytest.approx(expected[:, 0].tolist(), abs=2e-3)
    folder = tmp_path / "masks"
    assert main(["predict", str(segmenter), str(tmp_path / "turned.png"), "--quiet", "--out", str(folder)]) == 0
    mask = decode_indices((folder / "turned.png").read_bytes())
    np.testing.assert_array_equal(mask, twofold.load(segmenter).masks(upright)[0].flip(-1, -2).numpy())


def test_features_of_a_backbone(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = student_run(tmp_path / "run", "embedding", [], SHAPE)
    out = tmp_path / "features.parquet"
    assert main(["predict", str(run), str(photos / "0.png"), "--quiet", "--out", str(out)]) == 0
    found = pq.read_table(out).to_pylist()[0]
    expected = twofold.load(run).embed(pixels(photos / "0.png"))[0]
    values = [found[f"embedding[{k}]"] for k in range(len(expected))]
    assert values == pytest.approx(expected.tolist(), abs=1e-5) and len(found) == len(expected) + 1
    words = [str(run), str(photos / "0.png"), "--quiet", "--out", str(out)]
    assert main(["predict", *words, "embed=true", "layers=stage.0"]) == 0
    assert "stage.0[0]" in pq.read_table(out).column_names
    assert main(["predict", *words, "sigma=0.1"]) == 2
    assert "sigma: " in capsys.readouterr().err
    assert main(["evaluate", str(run), "--quiet"]) == 2
    assert "a backbone without a head" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("which", "words", "message"),
    [
        ("segmenter", ["embed=true"], "embed: .* holds a segmenter"),
        ("landmarker", ["sigma=0.2"], "sigma: .* holds a landmarker"),
        ("segmenter", ["--out", "a.csv"], "masks are written to a folder; name a folder"),
        ("landmarker", ["--out", "a.txt"], "its ending names no kind of table"),
        ("landmarker", ["--out", "a"], "its ending names no kind of table"),
    ],
)
def test_predict_mistakes(
    request: pytest.FixtureRequest,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    which: str,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = request.getfixturevalue(which)
    assert main(["predict", str(run), str(photos), "--quiet", *words]) == 2
    text = capsys.readouterr().err
    assert re.search(message, text), text
    assert list(tmp_path.iterdir()) == []


# -- evaluate -----------------------------------------------------------------------------------------------------


def evaluated(run: Path, *words: str) -> dict[str, Any]:
    folder = run / "evaluations"
    before = set(folder.glob("*.json"))
    assert main(["evaluate", str(run), "--quiet", *words]) == 0
    (new,) = set(folder.glob("*.json")) - before
    found: dict[str, Any] = json.loads(new.read_text())
    return found


def test_masks_are_measured_on_the_test_part(segmenter: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(segmenter)
    said = capsys.readouterr().out
    assert "miou" in said and "IoU of middle" in said and "on 9 images of the test part" in said
    store = open_store(DataSettings.model_validate(data_of(table)))
    rows = store.indices("test")
    predicted = twofold.load(segmenter).masks(store.batch(rows)).numpy()
    truth = np.asarray(store.masks[rows])
    known = truth != 255
    iou = jaccard_score(truth[known], predicted[known], labels=[0, 1, 2], average=None)
    assert found["metrics"]["miou"]["samples"] == pytest.approx(iou.mean())
    assert found["metrics"]["aacc"]["samples"] == pytest.approx((truth == predicted)[known].mean())
    for name, value in zip(NAMES, iou, strict=True):
        assert found["per_class"][name]["iou"] == pytest.approx(value)
    low, high = found["metrics"]["miou"]["interval"]
    assert low < iou.mean() < high


def test_points_are_measured_by_the_normaliser_that_is_asked_for(
    landmarker: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(DataSettings.model_validate(data_of(table)))
    rows = store.indices("test")
    points = twofold.load(landmarker).points(store.batch(rows))[0].numpy()
    for words, normaliser, told in (
        ([], "box", "bounding box"),
        (["normaliser=[0,2]", "threshold=0.5"], (0, 2), "the distance of points 0 and 2; failed: above 0.5"),
        (["normaliser=10"], 10.0, "10 pixels"),
    ):
        found = evaluated(landmarker, *words)
        assert told in capsys.readouterr().out
        errors = image_errors(points, np.asarray(store.points[rows]), normaliser)
        assert found["metrics"]["nme"]["samples"] == pytest.approx(errors.mean())
        limit = 0.5 if "threshold=0.5" in words else 0.1
        assert found["metrics"]["failure_rate"]["samples"] == pytest.approx((errors > limit).mean())
        assert found["curve"][-1]["share"] == pytest.approx((errors <= limit).mean())
        assert found["subsets"]["smiling"]["nme"] == pytest.approx(errors[1::2].mean())
        low, high = found["metrics"]["nme"]["interval"]
        assert low < errors.mean() < high


@pytest.mark.parametrize(
    ("which", "words", "message"),
    [
        ("segmenter", ["normaliser=box"], "finds no key points"),
        ("segmenter", ["encoder=pixels"], "says where things are in an image"),
        ("segmenter", ["data=digits"], "set data.size and data.channels"),
        ("segmenter", ["data=digits", "data.size=12x16", "data.channels=3"], "has no masks; name their column"),
        ("landmarker", ["data=digits", "data.size=12x16", "data.channels=3"], "has no key points"),
        ("landmarker", ["normaliser=inter_ocular"], "outer eye corners is not known"),
        ("landmarker", ["noise_levels=[0.1]"], "says where things are in an image"),
    ],
)
def test_evaluate_mistakes(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], which: str, words: list[str], message: str
) -> None:
    assert main(["evaluate", str(request.getfixturevalue(which)), "--quiet", *words]) == 2
    assert message in capsys.readouterr().err


def test_masks_of_other_classes_are_refused(segmenter: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"data={table}", "data.mask_column=mask", "data.mask_classes=[a,b,c]"]
    assert main(["evaluate", str(segmenter), "--quiet", *words]) == 2
    assert "the classes of its masks are a, b, c, the model knows left, right, middle" in capsys.readouterr().err
