"""`twofold copies`, end to end on digits: planted copies are found, kept images are those that are not flagged."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twofold.cli.copies import kept_names
from twofold.cli.main import main
from twofold.data import open_store
from twofold.report.copies import unlike
from twofold.settings.data import DataSettings

from .test_sample_evaluate import make_run


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 copies of training images, 20 mirrored and 20 noisy ones, and 120 images that were held out (validation)."""
    folder = tmp_path_factory.mktemp("planted")
    store = open_store(DataSettings(source="digits"))
    train = store.batch(store.indices("train")[:60]).numpy()
    noise = np.random.default_rng(0).normal(0, 5, train[:20].shape)
    noisy = np.clip(train[40:] + noise, 0, 255).astype(np.uint8)
    new = store.batch(store.indices("validation")[:120]).numpy()
    for name, images in (("copy", train[:20]), ("mirror", train[20:40, :, :, ::-1]), ("noisy", noisy), ("new", new)):
        (folder / name).mkdir()
        for k, image in enumerate(images):
            Image.fromarray(np.ascontiguousarray(image[0])).save(folder / name / f"{k:03d}.png")
    return folder


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "copies.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def share(rows: dict[str, dict[str, str]], kind: str) -> float:
    found = [row["flagged"] == "True" for name, row in rows.items() if name.startswith(kind)]
    return sum(found) / len(found)


def test_planted_copies_are_found(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, kept = tmp_path / "o", tmp_path / "kept"
    words = ["copies", str(planted), "data=digits", "rate=0.01", "flips=true", f"keep={kept}", "--quiet"]
    assert main([*words, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    rows = table(out)
    assert share(rows, "copy") == share(rows, "mirror") == 1 and share(rows, "noisy") > 0.9
    assert share(rows, "new") <= 0.05 and len(rows) == 180
    store = open_store(DataSettings(source="digits"))
    first = store.indices("train")[0]
    copy = rows["copy/000.png"]
    assert copy["nearest"] == store.id(int(first)) and float(copy["distance_pixels"]) == 0 and copy["by"] == "pixels"
    unflagged = {name for name, row in rows.items() if row["flagged"] == "False"}
    assert {str(path.relative_to(kept)) for path in kept.rglob("*.png")} == unflagged
    name = sorted(unflagged)[0]
    assert np.array_equal(np.asarray(Image.open(kept / name)), np.asarray(Image.open(planted / name)))
    found = json.loads((out / "result.json").read_text())
    count = 180 - len(unflagged)
    assert found["flagged"]["images"] == count and found["rate"] == pytest.approx(0.01)
    low, high = found["flagged"]["interval"]
    assert low < count / 180 < high and found["held_out"]["from"] == "the test part of the data"
    assert f"{count} of 180 images" in told and "too near to a training image" in told
    page = (out / "report.html").read_text()
    assert "too near to a training image" in page and page.count("<img") == 2 and "http" not in page


def test_the_exit_code_tells_scripts(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["copies", str(planted / "copy"), "data=digits", "--quiet", "--out", str(tmp_path / "o")]
    assert main([*words, "fail_above=0.5"]) == 1
    assert "100.00% are flagged, more than fail_above=0.5" in capsys.readouterr().err
    new = ["copies", str(planted / "new"), "data=digits", "--quiet", "--out", str(tmp_path / "n")]
    assert main([*new, "fail_above=0.1", "rule=distance"]) == 0
    assert json.loads((tmp_path / "n" / "result.json").read_text())["rule"] == "distance"
    told = capsys.readouterr().out
    assert "too near" not in told and "farther" not in told


def test_that_noise_is_no_copy_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "noise.npz", arr_0=np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))
    assert main(["copies", str(tmp_path / "noise.npz"), "data=digits", "--quiet", "--out", str(tmp_path / "o")]) == 0
    told = capsys.readouterr().out
    assert told.startswith("None of the 40 images is suspiciously near to a training image, which says little of these")
    said = "100.0 % of the images lie farther from every training image than 99 of 100 new real images do (by pixels)"
    assert said in told and said in (tmp_path / "o" / "report.html").read_text()
    found = json.loads((tmp_path / "o" / "result.json").read_text())
    assert found["spaces"]["pixels"]["farther_than_real"] == {"samples": 1.0, "real": 0.01}
    assert unlike({**found, "images": 1})[0].startswith("The image lies farther from every training image")


def test_a_run_knows_its_parts_and_its_features(planted: Path, tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "o"
    assert main(["copies", str(planted), f"data={run}", "rate=0.02", "--quiet", "--out", str(out)]) == 0
    rows, found = table(out), json.loads((out / "result.json").read_text())
    assert list(found["spaces"]) == [
        "pixels",
        next(name for name in found["spaces"] if name.startswith("own features")),
    ]
    assert share(rows, "copy") == 1 and share(rows, "mirror") < 0.5 and share(rows, "new") <= 0.06
    assert {"nearest_features", "ratio_features", "p_features"} <= set(rows["copy/000.png"])
    assert sum(space["rate"] for space in found["spaces"].values()) == pytest.approx(found["rate"])
    assert main(["sample", str(run), "n=8", "steps=2", "--quiet"]) == 0
    (samples,) = (run / "samples").iterdir()
    assert main(["copies", str(samples), "space=none", "--quiet"]) == 0  # the run is known from where they are
    (result,) = (samples / "copies").rglob("result.json")
    assert json.loads(result.read_text())["images"] == 8 and (result.parent / "report.html").is_file()


def test_other_real_images_may_calibrate(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    words = [f"held_out={planted / 'new'}", "block=100", "--quiet", "--out", str(out)]
    assert main(["copies", str(planted / "copy"), "data=digits", *words]) == 0
    found = json.loads((out / "result.json").read_text())
    assert found["held_out"] == {"images": 120, "from": str(planted / "new")}
    assert found["rate"] == pytest.approx(1 / 121)  # so few cannot vouch for less


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "data: not given, and the images come from no run that knows its data; add data=RUN"),
        (["data=digits", "space=own"], "space=own: there is no run of a denoiser whose features could be read"),
        (["data=digits", "data.size=16"], "data=digits: its images are 1 x 16 x 16, those looked at 1 x 8 x 8"),
        (["data=digits", "space=inceptoin"], "encoder=inceptoin: no such encoder; did you mean 'inception'?"),
        (["data=digits", "keep=."], "keep=.: is there already; give a new folder"),
    ],
)
def test_mistakes_are_one_line(
    planted: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["copies", str(planted / "copy"), *words, "--quiet"]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_a_run_says_how_its_data_are_made_ready(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    assert main(["copies", str(planted / "copy"), f"data={run}", "data.size=8", "--quiet"]) == 2
    assert "is a run, which knows how its images are made ready; leave data.size out" in capsys.readouterr().err


def test_kept_images_have_names_of_their_own() -> None:
    ids = ["a.png", "A.jpg", "part.parquet:0", "part.parquet:1", "../../etc/x.png", "/x", "b/c.v2", ".."]
    named = ["a.png", "A-2.png", "part.parquet_0.png", "part.parquet_1.png", "etc/x.png", "x.png", "b/c.v2.png"]
    assert kept_names(ids) == [*named, "image.png"]


def test_there_must_be_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "none.npz", arr_0=np.zeros((0, 8, 8, 1), np.uint8))
    assert main(["copies", str(tmp_path / "none.npz"), "data=digits", "--quiet"]) == 2
    assert "none.npz: holds no images" in capsys.readouterr().err
    (tmp_path / "two").mkdir()
    for side in (8, 9):
        Image.new("L", (side, side)).save(tmp_path / "two" / f"{side}.png")
    assert main(["copies", str(tmp_path / "two"), "data=digits", "--quiet"]) == 2
    told = capsys.readouterr().err
    assert f"error: {tmp_path / 'two'}: images differ in size" in told and "look at one size at a time" in told
    assert main(["copies", str(tmp_path / "nowhere"), "data=digits", "--quiet"]) == 2
    assert "nowhere: is not there; give a folder of images or an .npz" in capsys.readouterr().err
