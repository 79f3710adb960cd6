"""Pictures of counterfactuals."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from twofold.report.edits import ACROSS, BRIGHTER, DARKER, FULL, Shown, change_colours, edit_figure, edits_overview

GREY = np.full((1, 8, 8), 100, np.uint8)


def shown(**change: object) -> Shown:
    values = {
        "original": GREY,
        "edited": GREY + 40,
        "before": "1",
        "after": "3",
        "target": "3",
        "original_class": "1",
        "sigmas": [2.0, 0.5, 0.1],
        "p_target": [0.1, 0.6, 0.99],
        "p_original": [0.8, 0.3, 0.01],
        "kept": 0.95,
        "rms": 40.0,
    }
    return Shown(**(values | change))  # type: ignore[arg-type]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def test_colours_of_a_change_diverge_from_white() -> None:
    edited = GREY.astype(int).repeat(3, 0)
    edited[:, 0, 0], edited[:, 0, 1], edited[:, 0, 2] = 0, 255, 101
    found = change_colours(GREY.repeat(3, 0), edited.astype(np.uint8))
    assert found.shape == (3, 8, 8) and found[:, 5, 5].tolist() == [255] * 3
    assert found[:, 0, 1].tolist() == BRIGHTER.astype(int).tolist()  # 155 levels: beyond the scale
    share = 100 / FULL
    assert np.abs(found[:, 0, 0] - (255 + share * (DARKER - 255))).max() <= 0.5
    assert found[:, 0, 2].min() >= 252  # one level is hardly seen, on every picture the same


def test_changes_of_opposite_channels_are_told_as_their_mean() -> None:
    edited = GREY.repeat(3, 0).astype(int)
    edited[0] += 50
    edited[1] -= 50
    assert (change_colours(GREY.repeat(3, 0), edited.astype(np.uint8)) == 255).all()


def test_figure_shows_the_pixels_as_squares_in_the_colours_of_the_change() -> None:
    figure = pixels(edit_figure(shown()))
    assert figure.shape == (540, 1800, 4)
    colours = {tuple(colour) for colour in figure.reshape(-1, 4)}
    expected = tuple(change_colours(GREY, GREY + 40)[:, 0, 0])
    assert {(100, 100, 100, 255), (140, 140, 140, 255), (*expected, 255)} <= colours


def test_figure_of_attributes_and_of_colour() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    words = "Smiling;not Male;and$ so on for a very long time_^"
    one = edit_figure(shown(original=colour, edited=255 - colour, p_original=None, target=words, after=words))
    two = edit_figure(shown(original=colour, edited=255 - colour, target=words, after=words))
    assert one.startswith(b"\x89PNG") and one != two  # the second line and its name are missing


def test_figure_is_the_same_for_the_same_edit() -> None:
    assert edit_figure(shown()) == edit_figure(shown()) != edit_figure(replace(shown(), kept=0.2))


def test_overview_has_three_rows_for_every_row_of_edits() -> None:
    images = np.random.default_rng(0).integers(0, 256, (ACROSS + 2, 1, 8, 8), dtype=np.uint8)
    few = pixels(edits_overview(images[:2], images[2:4], ["1 → 3", "2 → 3"]))
    many = pixels(edits_overview(images, images[::-1].copy(), ["x"] * (ACROSS + 2)))
    assert few.shape[0] > 3 * 8 and many.shape[1] > many.shape[0]
    white = (few[:, :, :3] == 255).all(2) & (few[:, :, 3] == 255)
    same = pixels(edits_overview(images[:2], images[:2], ["a", "b"]))
    assert ((same[:, :, :3] == 255).all(2) & (same[:, :, 3] == 255)).sum() > white.sum()
    with pytest.raises(ValueError, match="2 originals, 1 edited"):
        edits_overview(images[:2], images[:1], ["a"])
