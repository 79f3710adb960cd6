"""`twofold inpaint` and `twofold vary`, end to end on digits with an untrained model, and their failure paths."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twofold.cli.main import main
from twofold.cli.masks import Masks
from twofold.data.transform import Placing
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from .test_sample_evaluate import make_run

QUICK = ["steps=2", "n=2", "--quiet"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "cond")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colour pictures larger than the model takes, two of one name in different folders."""
    folder = tmp_path_factory.mktemp("photos")
    for k, name in enumerate(("a/x.png", "b/x.png", "b/y z.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def saved(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_painted(model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o"
    words = [str(model), str(photos), "mask=0,0,8,4", "label=3", "repaints=2", *QUICK]
    assert main(["inpaint", *words, "--out", str(out)]) == 0
    assert "6 new images of 3" in capsys.readouterr().out
    rows = table(out / "inpainted.csv")
    assert [row["seed"] for row in rows] == ["0", "1"] * 3 and len({row["image"] for row in rows}) == 3
    original = np.asarray(Image.open(photos / "a" / "x.png").convert("L").resize((8, 8), Image.Resampling.BICUBIC))
    first, second = (np.asarray(Image.open(out / "images" / f"{row['file']}.png")) for row in rows[:2])
    assert np.array_equal(first[4:], second[4:]) and not np.array_equal(first[:4], second[:4])
    assert np.abs(first[4:].astype(int) - original[4:]).max() <= 2  # grey is made before it is made small
    mask = np.asarray(Image.open(out / "masks" / f"{rows[0]['image']}.png"))
    assert np.array_equal(mask, np.repeat([255, 0], 4)[:, None].repeat(8, 1)) and float(rows[0]["painted"]) == 0.5
    result = json.loads((out / "result.json").read_text())
    assert result["metrics"]["results"] == 6 and result["settings"]["mask"] == "0,0,8,4"
    assert (out / "overview.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_again_continues(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import twofold.generate.vary as module

    out, calls, whole = tmp_path / "o", [], module.varied
    words = ["vary", str(model), "digits", "images=5", "micro_batch=4", *QUICK, "--out", str(out)]

    def third_fails(*arguments: Any, **more: Any) -> Any:
        calls.append(len(arguments[2]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments, **more)

    monkeypatch.setattr(module, "varied", third_fails)
    assert main(words) == 130 and not (out / "varied.csv").exists() and calls == [4, 4, 2]
    assert main(words) == 0 and calls == [4, 4, 2, 2]  # what was finished is not computed again
    first, result = ((out / name).read_bytes() for name in ("varied.csv", "result.json"))
    monkeypatch.setattr(module, "varied", None)
    assert main(words) == 0 and (out / "varied.csv").read_bytes() == first
    assert (out / "result.json").read_bytes() == result and not (out / "masks").exists()
    straight = tmp_path / "straight"
    monkeypatch.setattr(module, "varied", whole)
    assert main([*words[:-1], str(straight)]) == 0
    for name in ("varied.csv", "overview.png", *(f"images/{row['file']}.png" for row in table(out / "varied.csv"))):
        assert (straight / name).read_bytes() == (out / name).read_bytes()
    capsys.readouterr()
    assert main([*words, "strength=0.9"]) == 2
    assert "holds other varied images: strength: 0.5 -> 0.9; choose another --out" in capsys.readouterr().err
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "x").write_text("mine")
    assert main([*words[:-1], str(tmp_path / "file")]) == 2
    assert "is there, and no folder of varied images" in capsys.readouterr().err


def test_default_folder_is_in_the_run(model: Path, photos: Path) -> None:
    assert main(["vary", str(model), str(photos / "a" / "x.png"), "strength=0", "label=all", *QUICK]) == 0
    (folder,) = (model / "varied").iterdir()
    rows = table(folder / "varied.csv")
    assert folder.name.startswith("x-") and [float(row["rms"]) for row in rows] == [0, 0]


DATA = DataSettings.model_validate({"source": "x", "size": (8, 8), "channels": 1})
SQUARE = Placing.of(1, (16, 16), DATA)


def test_masks_go_the_way_of_their_image(tmp_path: Path) -> None:
    """Of the image's size it is made small with it, of the model's size it is taken as it is."""
    large, small = np.zeros((16, 16), np.uint8), np.zeros((8, 8), np.uint8)
    large[:8], small[:, :2] = 255, 255
    one = Masks(str(saved(tmp_path / "m.png", large)), DATA).of("any", SQUARE)
    assert one[0, :4].all() and not one[0, 4:].any()
    as_is = Masks(str(saved(tmp_path / "s.png", small)), DATA).of("any", Placing.of(1, (30, 20), DATA))
    assert as_is[0, :, :2].all() and not as_is[0, :, 2:].any()
    wide = np.zeros((10, 20), np.uint8)
    wide[:, :10] = 255  # cropped to its middle, as the image is: half of that is white
    cropped = Masks(str(saved(tmp_path / "w.png", wide)), DATA).of("any", Placing.of(1, (20, 10), DATA))
    assert cropped[0, :, :4].all() and not cropped[0, :, 4:].any()
    folder = tmp_path / "masks"
    saved(folder / "a" / "x.png", large)
    saved(folder / "b" / "y.jpg", large.T.copy())
    masks = Masks(str(folder), DATA)
    assert masks.of("a/x.jpg", SQUARE)[0, :4].all() and masks.of("b/y.png", SQUARE)[0, :, :4].all()
    with pytest.raises(UserError, match="masks: c/z: there is no mask of this name for c/z.png; there are a/x, b/y"):
        masks.of("c/z.png", SQUARE)


def test_masks_are_of_what_is_seen(tmp_path: Path) -> None:
    """The camera lay on its side or stood on its head: the mask is drawn on the upright picture."""
    mask = np.zeros((20, 10), np.uint8)
    mask[:, 5:] = 255
    path = str(saved(tmp_path / "m.png", mask))
    for orientation, stored in ((6, (20, 10)), (8, (20, 10)), (3, (10, 20)), (1, (10, 20))):
        found = Masks(path, DATA).of("any", Placing.of(orientation, stored, DATA))
        assert found[0, :, 4:].all() and not found[0, :, :4].any()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((8, 8), np.uint8), "is black all over: nothing would be painted anew; make white what is to be"),
        (np.full((8, 8), 255, np.uint8), "covers the whole image: nothing of it would stay; make black what stays"),
        (
            np.zeros((8, 16), np.uint8),
            "it is 8x16 and the image 16x16 .*different shapes; give one of the image's size",
        ),
    ],
)
def test_masks_that_cannot_be(pixels: np.ndarray, message: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", pixels)
    with pytest.raises(UserError, match=message):
        Masks(str(path), DATA).of("any", SQUARE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mask=0,0,9,4"], "mask=0,0,9,4: is no box within 8 x 8 pixels (width x height); give left,top,right,bottom"),
        (["mask=4,0,4,4"], "mask=4,0,4,4: is no box within 8 x 8 pixels"),
        (["mask=0,0,8,8"], "mask=0,0,8,8: covers the whole image"),
        (["mask=nowhere.png"], "mask=nowhere.png: "),
        (["mask=1,1,4,4", "repaint_interval=[2,1]"], "2, 1 is no interval; give [low, high]"),
        (["mask=1,1,4,4", "label=eleven"], "label=eleven: no such class"),
        (["mask=1,1,4,4", "sampler=eular"], "sampler=eular: no such sampler; did you mean 'euler'?"),
        ([], "mask"),
    ],
)
def test_mistakes_are_one_line(
    model: Path, photos: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inpaint", str(model), str(photos / "a" / "x.png"), *words, *QUICK]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_an_unreadable_mask_is_named(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.png").write_bytes(b"not a picture")
    words = [str(model), str(photos / "a" / "x.png"), f"mask={tmp_path / 'm.png'}", *QUICK]
    assert main(["inpaint", *words]) == 2
    assert f"mask={tmp_path / 'm.png'}: " in capsys.readouterr().err
