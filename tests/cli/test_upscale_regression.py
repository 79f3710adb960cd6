"""`twofold upscale` with a regression model, which draws nothing, and a denoiser that knows noise on what it gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twofold.cli.main import main
from twofold.generate.upscale import upscale as enlarge_all
from twofold.lowres import enlarged
from twofold.run import load
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import random_run

RDN = {"network": {"channels": 6, "growth": 4, "blocks": 1, "dense_layers": 2, "low_factor": 2}}
NOISED = {"network": {"channels": 8, "blocks": 1, "low_noise": 0.3}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A regression model of grey images, x2, with random weights."""
    layers = [*open_preset("sr-x4-rdn-mini").layers, ("test", {**RDN, "data": {"source": "digits"}})]
    return random_run(tmp_path_factory.mktemp("rdn") / "rdn", resolve(TrainSettings, layers)[0], [], seed=0)


@pytest.fixture(scope="module")
def noised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser, x2, that was trained with noise of levels up to 0.3 on its small images."""
    layers = [*open_preset("sr-digits-mini").layers, ("test", NOISED)]
    return random_run(tmp_path_factory.mktemp("noised") / "sr", resolve(TrainSettings, layers)[0], [], seed=0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i, size in enumerate([(8, 8), (13, 10)]):
        pixels = np.random.default_rng(i).integers(0, 256, size, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"p{i}.png")
    return tmp_path / "photos"


def upscale(run: Path, *words: object, code: int = 0) -> None:
    assert main(["upscale", str(run), *map(str, words), "--device", "cpu", "--quiet"]) == code


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def lows(n: int, h: int, w: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_one_pass_over_images_of_any_size(run: Path, photos: Path, tmp_path: Path) -> None:
    upscale(run, photos, "tile=0", "--out", tmp_path / "out")
    made = {p.stem: pixels(p) for p in (tmp_path / "out" / "images").iterdir()}
    assert {name: image.shape for name, image in made.items()} == {"p0": (16, 16), "p1": (26, 20)}
    model: Any = load(run)
    for name, image in made.items():
        low = torch.from_numpy(pixels(photos / f"{name}.png").copy())[None, None]
        expected = model.codec.decode(model(model.codec.encode(low)))
        assert np.array_equal(image, expected[0, 0].numpy())


def test_measured_beside_bicubic(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upscale(run, "n=20", "encoder=pixels", "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]
    assert found["measured"] == 20 and 12 < found["psnr_bicubic"] < 15 and found["psnr"] != found["psnr_bicubic"]
    share = 100 * found["detail"] / found["detail_true"]
    said = capsys.readouterr().out
    assert "frechet/pixels" in said and f"{share:.1f} %" in said
    assert 0 < found["detail_bicubic"] < found["detail_true"]


def test_tiles_are_the_whole_where_it_does_not_look_further(run: Path) -> None:
    """It looks 5 small pixels far here, and where a tile ends within that it weighs least."""
    model: Any = load(run)
    images = lows(2, 40, 33)
    whole, tiled = (enlarge_all(model, images, [0, 0], tile=tile).int() for tile in (0, 48))
    apart, from_bicubic = (whole - tiled).abs(), (whole - enlarged(images, 2).int()).abs()
    assert apart.max() > 0 and apart.float().mean() < 0.02 * from_bicubic.float().mean()
    alone = enlarge_all(model, images[1:], [5], tile=48, micro_batch=1)
    assert torch.equal(alone[0].int(), tiled[1])  # whatever is beside it, and whatever the seed


@pytest.mark.parametrize(
    "word", ["sampler=heun", "steps=3", "sigma_max=2", "seed=1", "label=3", "guidance=2", "low_noise=0.1"]
)
def test_what_is_about_sampling_is_refused(
    word: str, run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upscale(run, photos, word, code=2)
    name = word.partition("=")[0]
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        f"twofold: error: {name}: {run} is a regression model, which draws nothing: one pass, and always the same "
        f"image; leave {name} out"
    )


@pytest.mark.parametrize(
    "verb",
    [
        ["sample"],
        ["evaluate"],
        ["probe"],
        ["predict", "x.png"],
        ["edit", "x.png", "to=1"],
        ["vary", "x.png"],
        ["inpaint", "x.png", "mask=x.png"],
        ["serve"],
    ],
)
def test_other_verbs_say_which_one_it_is(run: Path, verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb[0], str(run), *verb[1:], "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "is a super-resolution model" in error and "twofold upscale" in error


def test_noise_on_the_small_image(noised: Path, photos: Path, tmp_path: Path) -> None:
    """At 0 it is as if nothing had been said, folder's name included; above it belongs to the image and its seed."""
    for name, words in {
        "none": [],
        "zero": ["low_noise=0"],
        "some": ["low_noise=0.3"],
        "again": ["low_noise=0.3"],
    }.items():
        upscale(noised, photos, "steps=2", *words, "--out", tmp_path / name)
    made = {p.parent.parent.name: pixels(p) for p in tmp_path.glob("*/images/p1.png")}
    assert np.array_equal(made["none"], made["zero"]) and np.array_equal(made["some"], made["again"])
    assert not np.array_equal(made["none"], made["some"])
    settings = [json.loads((tmp_path / name / "result.json").read_text())["settings"] for name in ("none", "some")]
    assert "low_noise" not in settings[0] and settings[1]["low_noise"] == 0.3
    model: Any = load(noised)
    whole = enlarge_all(model, lows(3, 4, 4), [3, 1, 4], steps=2, micro_batch=2, low_noise=0.2)
    assert torch.equal(enlarge_all(model, lows(3, 4, 4)[2:], [4], steps=2, micro_batch=2, low_noise=0.2)[0], whole[2])
    other = enlarge_all(model, lows(3, 4, 4)[2:], [5], steps=2, micro_batch=2, low_noise=0.2)
    assert not torch.equal(other[0], whole[2])


def test_noise_it_does_not_know(noised: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upscale(noised, photos, "low_noise=0.4", code=2)
    assert "low_noise=0.4: the model was trained with levels up to 0.3; give 0 to 0.3" in capsys.readouterr().err
