"""Pictures of counterfactuals."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from twofold.report.edits import (
    BRIGHTER,
    CELL,
    DARKER,
    DOWN,
    EDGE,
    FULL,
    GAP,
    HEADING,
    ORANGE,
    SPACING,
    Listed,
    Shown,
    change_colours,
    edit_figure,
    edits_overview,
)

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


def test_figure_says_what_came_of_the_edit() -> None:
    assert len({edit_figure(shown(verdict=text)) for text in ("", "flipped", "not flipped, not reached")}) == 3


def listed(size: int, words: tuple[str, ...] = ("flipped", "1 → 3", "p", "rms"), failed: bool = False) -> Listed:
    one, other = np.random.default_rng(size).integers(0, 256, (2, 1, size, size), dtype=np.uint8)
    return Listed(one, other, words, failed)


@pytest.mark.parametrize("size", [8, 28, 32])
def test_overview_is_as_large_as_its_edits(size: int) -> None:
    heading = ("target: 3", "answers: the guide")
    one, four, many = (pixels(edits_overview([listed(size)] * n, heading)).shape for n in (1, 4, DOWN + 1))
    cell = round(CELL / size) * size
    down = max(cell, 4 * SPACING) + GAP
    assert one[0] < 300 and one[1] < 600 and four[:2] == (one[0] + 3 * down, one[1])
    assert many[0] == one[0] + (DOWN - 1) * down and one[1] < many[1] <= 2 * one[1]


def test_overview_shows_whole_pixels_and_marks_failures() -> None:
    edit = listed(8)
    picture = pixels(edits_overview([edit]))
    grey = np.kron(edit.original[0], np.ones((CELL // 8, CELL // 8), np.uint8))
    found = next(
        picture[y : y + CELL, x : x + CELL, :3]
        for y in range(picture.shape[0] - CELL + 1)
        for x in [EDGE]
        if (picture[y, x : x + CELL, 0] == grey[0]).all()
    )
    assert (found == grey[:, :, None]).all()
    orange = tuple(int(ORANGE[i : i + 2], 16) for i in (1, 3, 5))
    same = Listed(edit.original, edit.original, ("not flipped",), True)
    for failed in (True, False):
        colours = pixels(edits_overview([replace(same, failed=failed)]))
        assert bool((colours == (*orange, 255)).all(2).any()) == failed
    assert (colours == 255).all(2).sum() == CELL**2  # no change is white, within a frame


def test_overview_of_long_words_and_mistakes() -> None:
    wide = pixels(edits_overview([listed(8, ("a very long answer " * 20,))], ["a target of many names " * 50]))
    assert wide.shape[1] <= HEADING + 2 * EDGE
    with pytest.raises(ValueError, match="2 edits of 2 sizes"):
        edits_overview([listed(8), listed(9)])
    with pytest.raises(ValueError, match="0 edits"):
        edits_overview([])
