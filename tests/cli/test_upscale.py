"""`twofold upscale`, from settings to folders: sizes, truths, resuming, and every mistake in one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twofold.cli.main import main
from twofold.lowres import shrink
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import random_run

SMALL = {"network": {"channels": 8, "blocks": 1}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A super-resolution model of grey images, x2, with random weights."""
    settings = resolve(TrainSettings, [*open_preset("sr-digits-mini").layers, ("test", SMALL)])[0]
    return random_run(tmp_path_factory.mktemp("upscale") / "sr", settings, [], seed=0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three grey images of different sizes, one of them odd."""
    (tmp_path / "photos").mkdir()
    for i, size in enumerate([(8, 8), (8, 8), (13, 10)]):
        pixels = np.random.default_rng(i).integers(0, 256, size, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"p{i}.png")
    return tmp_path / "photos"


def upscale(run: Path, *words: object, code: int = 0) -> None:
    assert main(["upscale", str(run), *map(str, words), "--device", "cpu", "--quiet"]) == code


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_images_of_any_size(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    upscale(run, photos, "steps=2", "--out", out)
    assert {p.name: pixels(p).shape for p in (out / "images").iterdir()} == {
        "p0.png": (16, 16), "p1.png": (16, 16), "p2.png": (26, 20)
    }  # fmt: skip
    assert "3 images (images, upscaled.csv, comparison.png)" in (said := capsys.readouterr().out) and "PSNR" not in said
    alone = tmp_path / "alone"
    upscale(run, photos / "p1.png", "steps=2", "--out", alone)
    assert np.array_equal(pixels(alone / "images" / "p1.png"), pixels(out / "images" / "p1.png"))
    upscale(run, photos, "steps=2", "seed=1", "n=1", "--out", tmp_path / "other")
    assert not np.array_equal(pixels(tmp_path / "other" / "images" / "p0.png"), pixels(out / "images" / "p0.png"))


def test_truth_by_shrinking_and_by_name(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """shrink=true is what one gets by shrinking oneself and naming the originals."""
    upscale(run, photos, "steps=2", "shrink=true", "encoder=null", "--out", tmp_path / "a")
    (tmp_path / "low").mkdir()
    (tmp_path / "true").mkdir()
    for file in photos.iterdir():
        whole = torch.from_numpy(pixels(file).copy())[None, None]
        whole = whole[..., : whole.shape[2] // 2 * 2, :]
        Image.fromarray(shrink(whole, 2)[0, 0].numpy()).save(tmp_path / "low" / file.name)
        Image.fromarray(whole[0, 0].numpy()).save(tmp_path / "true" / f"{file.stem}.bmp")
    upscale(run, tmp_path / "low", "steps=2", f"truth={tmp_path / 'true'}", "--out", tmp_path / "b")
    tables = [list(csv.DictReader((tmp_path / name / "upscaled.csv").open())) for name in "ab"]
    assert tables[0] == tables[1] and all(float(row["psnr"]) < 100 for row in tables[0])
    metrics = json.loads((tmp_path / "a" / "result.json").read_text())["metrics"]
    assert metrics["measured"] == 3
    assert metrics["psnr"] == pytest.approx(np.mean([float(row["psnr"]) for row in tables[0]]))
    assert "bicubic" in (said := capsys.readouterr().out) and "smaller window" in said


def test_without_images_the_held_out_part(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upscale(run, "n=70", "steps=2", "encoder=pixels", "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]
    assert found["images"] == found["measured"] == 70 and found["frechet"] > 0
    assert 12 < found["psnr_bicubic"] < 15 and "frechet/pixels" in capsys.readouterr().out


def test_resumes(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was finished is not computed again; what is missing or other is, to the same pixels."""
    import twofold.cli.upscale as verb

    upscale(run, photos, "steps=2", "--out", tmp_path / "whole")
    made, real = [], verb.enlarged
    monkeypatch.setattr(verb, "enlarged", lambda model, lows, s: made.append(len(lows)) or real(model, lows, s))
    upscale(run, photos, "steps=2", "--out", tmp_path / "whole")
    assert made == []
    before = pixels(tmp_path / "whole" / "images" / "p2.png")
    (tmp_path / "whole" / "images" / "p2.png").unlink()
    upscale(run, photos, "steps=2", "--out", tmp_path / "whole")
    assert made == [1] and np.array_equal(pixels(tmp_path / "whole" / "images" / "p2.png"), before)


def test_tiles(run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20), np.uint8)).save(tmp_path / "large.png")
    upscale(run, tmp_path / "large.png", "steps=2", "tile=32", "--out", tmp_path / "out")
    assert pixels(tmp_path / "out" / "images" / "large.png").shape == (60, 40)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photos", "steps=0"], "steps=0"),
        (["photos", "truth=photos"], "p0.png: becomes 16x16, and its true image is 8x8"),
        (["photos", "truth=colour"], "p0.png: has no true image of its name in"),
        (["photos", "shrink=true", "truth=photos"], "shrink=true says that the images themselves are the truth"),
        (["colour"], "IMAGES colour: c.png: is in colour, and this model enlarges grey images"),
        (["photos", "most_pixels=300"], "p2.png: would become 26x20, more than most_pixels=300"),
        (["photos", "sampler=dppm"], "did you mean"),
        (["photos", "label=3"], "this model is unconditional"),
        (["nothing"], "IMAGES"),
        (["truth=photos"], "the run's own images are the truth"),
        (["photos", "at=best-x"], "best-x"),
    ],
)
def test_mistakes(
    words: list[str],
    message: str,
    run: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("colour").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save("colour/c.png")
    upscale(run, *words, "--out", "out", code=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("twofold: error: ") and message in error
    assert not list(Path("out").glob("images/*"))


def test_other_images_in_the_same_folder(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upscale(run, photos, "steps=2", "--out", tmp_path / "out")
    upscale(run, photos, "steps=3", "--out", tmp_path / "out", code=2)
    assert "holds other upscaled images: steps" in capsys.readouterr().err


def test_bad_images_may_be_left_out(run: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "p1.png").write_bytes(b"nothing")
    upscale(run, photos, "steps=2", "--out", tmp_path / "a", code=2)
    upscale(run, photos, "steps=2", "on_bad_image=skip", "--out", tmp_path / "b")
    assert sorted(p.stem for p in (tmp_path / "b" / "images").iterdir()) == ["p0", "p2"]


@pytest.mark.parametrize("verb", [["sample"], ["evaluate"], ["probe"], ["predict", "x.png"], ["edit", "x.png", "to=1"]])
def test_other_verbs_say_which_one_it_is(run: Path, verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb[0], str(run), *verb[1:], "--quiet", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "is a super-resolution model" in error and "twofold upscale" in error


def test_a_model_of_another_kind(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = resolve(TrainSettings, [*open_preset("digits").layers, ("test", SMALL)])[0]
    other = random_run(tmp_path / "digits", settings, [str(i) for i in range(10)], seed=0)
    upscale(other, photos, code=2)
    assert "is no super-resolution model; train one: twofold train sr-x4" in capsys.readouterr().err
