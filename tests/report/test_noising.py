"""The forward noising in a run's report: levels of the family, what is shown of them, and what the model says."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from twofold.data import open_store
from twofold.denoiser import Denoiser, NetworkDenoiser
from twofold.networks import build
from twofold.noise import family
from twofold.oracle import MixtureDenoiser
from twofold.report.grids import LINE, as_tiles, level_grid
from twofold.report.noising import LEVELS, Noising, decibels, noising, picture, trained_levels, two_digits
from twofold.settings.data import DataSettings
from twofold.settings.iddm import IDDMSettings
from twofold.settings.noise import EDMNoise, FlowNoise, NoiseSettings, VPNoise


def denoiser(noise: NoiseSettings, classes: int = 0) -> NetworkDenoiser:
    torch.manual_seed(0)
    settings = IDDMSettings(channels=8, multipliers=(1, 2), heads=2, classes=classes)
    return NetworkDenoiser(build(settings, (1, 8, 8)).eval(), family(noise), (1, 8, 8), classes)


@pytest.mark.parametrize("noise", [VPNoise(first=1), EDMNoise(), FlowNoise(), VPNoise(table="continuous")])
def test_levels_part_the_training_evenly(noise: NoiseSettings) -> None:
    model = denoiser(noise)
    sigma = trained_levels(model, LEVELS)
    assert bool((sigma[1:] > sigma[:-1]).all())
    model.family.check(sigma)
    drawn = model.family.training_sigma(torch.linspace(0, 1 - 1e-9, 100_000, dtype=torch.float64))
    below = (drawn[:, None] < sigma).double().mean(0)
    torch.testing.assert_close(below, torch.linspace(0.02, 0.98, LEVELS, dtype=torch.float64), rtol=0, atol=2e-3)


def test_an_image_at_every_level_and_what_the_model_says() -> None:
    store = open_store(DataSettings(source="digits"))
    model = denoiser(VPNoise(first=1), 10)
    found = noising(model, store)
    assert found is not None
    row = int(store.indices("train")[0])
    assert found.noised.shape == found.denoised.shape == (LEVELS, 1, 8, 8) and found.noised.dtype == np.uint8
    clean = store.images[row].astype(int)
    off = np.abs(found.noised.astype(int) - clean).mean((1, 2, 3))
    assert off[0] < 8 and off[-1] > 60 and bool((np.diff(off) > 0).all())
    again = noising(model, store)
    assert again is not None and np.array_equal(again.noised, found.noised)  # the noise belongs to the image
    unconditional = noising(denoiser(VPNoise(first=1)), store)
    assert unconditional is not None and np.array_equal(unconditional.noised, found.noised)


def test_an_exact_denoiser_finds_the_image_again() -> None:
    """Of a model that knows three images only, the first of them the one that is shown."""
    store = open_store(DataSettings(source="digits"))
    images = store.batch(store.indices("train")[:3])
    exact = MixtureDenoiser(
        images.float() / 127.5 - 1, torch.full((3,), 0.01), torch.ones(3), family(VPNoise()), labels=False
    )
    found = noising(exact, store)
    assert found is not None
    off = np.abs(found.denoised.astype(int) - images[0].numpy().astype(int)).max((1, 2, 3))
    assert off[0] <= 3 and off[1] <= 3 and off[-1] > 20  # the last level leaves a mixture of all three


def test_decibels() -> None:
    assert [decibels(s) for s in (0.01, 0.1, 1.0, 10.0, 157.4)] == ["+40 dB", "+20 dB", "0 dB", "−20 dB", "−44 dB"]
    assert decibels(0.96) == "0 dB" and decibels(1.04) == "0 dB"


def test_levels_are_written_out_to_two_digits() -> None:
    values = (0.0123, 0.1, 0.996, 1.0, 2.449, 9.96, 14.4, 157.4)
    assert [two_digits(v) for v in values] == ["0.012", "0.10", "1.0", "1.0", "2.4", "10", "14", "160"]


def test_words_of_a_line_have_one_size() -> None:
    """One that needs small letters makes those beside it small: all of a line are equally high."""
    tiles = as_tiles(np.zeros((3, 1, 8, 8), np.uint8))
    for words in (["+8", "+8", "+8"], ["+8", "+88888888888888888", "+8"]):
        png = level_grid([tiles], words, ["8"] * 3, [""], ("", ""))
        above = np.asarray(Image.open(io.BytesIO(png)))[:LINE, :, 3] > 0
        third = above.shape[1] // 3
        tall = [int(part.any(1).sum()) for part in (above[:, :third], above[:, third:-third], above[:, -third:])]
        assert max(tall) - min(tall) <= 1 and (tall[0] > 15) == (words[1] == "+8")


def test_the_picture_has_a_column_per_level() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    png = picture(Noising(images, images[::-1], [0.01, 0.1, 1, 10, 100]))
    canvas = np.asarray(Image.open(io.BytesIO(png)))
    columns = (canvas[..., 3] == 255).sum(0)
    runs = np.flatnonzero(np.diff((columns > 60).astype(int)) == 1)
    assert canvas.ndim == 3 and len(runs) == 5


def test_a_model_that_needs_another_image_beside_has_none() -> None:
    class Upscaler(Denoiser):
        low_factor = 2

    assert noising(Upscaler(), open_store(DataSettings(source="digits"))) is None
