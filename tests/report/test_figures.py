"""Grids are exact to the pixel; curves and bars survive what logs and class names hold."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from twofold.report.figures import (
    class_bars,
    image_grid,
    loss_curve,
    neighbour_grid,
    smooth,
    time_grid,
    trajectory_grid,
)
from twofold.report.grids import short_count


def pixels(png: bytes) -> np.ndarray:
    """(H, W, 4) uint8."""
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG" and image.mode == "RGBA"
    return np.asarray(image)


def images(n: int, channels: int = 1, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, height, width), dtype=np.uint8)


def rows(n: int = 60) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"kind": "train", "n_images": 1000 * i, "loss": 1 / i + 0.1, "lr": 1e-3} for i in range(1, n + 1)
    ]
    found += [{"kind": "validation", "n_images": 10_000 * i, "loss": 1 / i + 0.2, "frechet": 9 / i} for i in (1, 3, 6)]
    return found


# -- grids --------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12), st.integers(1, 5))
def test_every_pixel_becomes_a_square(n: int, channels: int, height: int, width: int, columns: int) -> None:
    """Enlarged by a whole number, in row-major order, nothing blurred; what is left is transparent."""
    given_images = images(n, channels, height, width)
    across = min(columns, n)
    canvas = pixels(image_grid(given_images, columns, width=100))
    scale = max(1, round((100 - 4 * (across - 1)) / (across * width)))
    high, wide = scale * height, scale * width
    covered = np.zeros(canvas.shape[:2], bool)
    for i, image in enumerate(given_images):
        y, x = (i // across) * (high + 4), (i % across) * (wide + 4)
        tile = canvas[y : y + high, x : x + wide]
        colour = np.broadcast_to(image.transpose(1, 2, 0), (height, width, 3))
        np.testing.assert_array_equal(tile[..., :3], colour.repeat(scale, 0).repeat(scale, 1))
        covered[y : y + high, x : x + wide] = True
    assert (canvas[..., 3] == np.where(covered, 255, 0)).all()
    assert canvas.shape[1] == across * (wide + 4) - 4


def test_torch_and_numpy_images_give_the_same_bytes() -> None:
    array = images(5)
    assert image_grid(array, 3) == image_grid(torch.from_numpy(array), 3)


def test_labels_stand_below_their_images() -> None:
    plain, labelled = (
        pixels(image_grid(np.zeros((4, 1, 8, 8), np.uint8), 2, labels)) for labels in (None, list("abcd"))
    )
    assert labelled.shape[0] > plain.shape[0] and labelled.shape[1] == plain.shape[1]
    tile = (plain.shape[0] - 4) // 2
    ink = (labelled[..., :3] == 122).all(-1) & (labelled[..., 3] > 200)
    assert ink[tile : tile + 40].any() and ink[-40:].any() and not ink[:tile].any()


@pytest.mark.parametrize("label", ["an endless name " * 30, "", "$x_1$ <b>", "漢字", "W" * 200])
def test_any_label_fits_its_tile(label: str) -> None:
    canvas = pixels(image_grid(images(2), 2, [label, "b"]))
    assert canvas.shape == pixels(image_grid(images(2), 2, ["a", "b"])).shape
    wide = (canvas.shape[1] - 4) // 2
    assert canvas[-30:, wide + 1 : wide + 3, 3].max() == 0  # nothing reaches into the gap


def test_large_images_keep_their_pixels() -> None:
    array = images(2, 3, 300, 500)
    canvas = pixels(image_grid(array, 2))
    assert canvas.shape == (300, 1004, 4)
    np.testing.assert_array_equal(canvas[:, 504:, :3], array[1].transpose(1, 2, 0))


def test_time_grid_has_a_row_per_checkpoint() -> None:
    checkpoints = [(1000, images(12, seed=1)), (250_000, images(12, seed=2)), (1_500_000, images(12, seed=3))]
    canvas = pixels(time_grid(checkpoints, columns=4))
    opaque = canvas[..., 3].min(1)  # 255 only in no row: the gutter is transparent
    assert opaque.max() == 0
    right = canvas[:, -8:, 3].min(1) == 255
    assert (np.diff(right.astype(int)) == 1).sum() + right[0] == 3
    last = checkpoints[2][1][3, 0]
    scale = next(s for s in range(1, 200) if not right[-s - 1]) // 8 if not right.all() else 0
    assert scale and (canvas[-scale:, -scale:, 0] == last[-1, -1]).all()


def test_trajectory_has_a_column_per_step() -> None:
    steps = np.stack([images(2, seed=s) for s in range(5)])
    canvas = pixels(trajectory_grid(steps, [80, 10, 1, 0.1, 0]))
    assert (canvas[-1, :, 3] == 255).sum() % 5 == 0
    assert (canvas[-1, -1, :3] == steps[4, 1, 0, -1, -1]).all()
    assert canvas[:28, :, 3].any()  # the noise levels above


def test_neighbours_stand_below_their_samples() -> None:
    ours, theirs = images(3, seed=1), images(3, seed=2)
    canvas = pixels(neighbour_grid(ours, theirs, [0.5, 1.25, 30], columns=3))
    columns = canvas[..., 3] == 255
    right = columns[:, -1]
    starts = np.flatnonzero(np.diff(np.concatenate([[0], right.astype(int)])) == 1)
    assert len(starts) == 2
    assert (canvas[starts[0], -1, :3] == ours[2, 0, 0, -1]).all()
    assert (canvas[starts[1], -1, :3] == theirs[2, 0, 0, -1]).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: image_grid(images(2).astype(np.float32), 2),
        lambda: image_grid(images(2)[0], 2),
        lambda: image_grid(images(2, channels=2), 2),
        lambda: image_grid(images(1)[:0], 2),
        lambda: image_grid(images(2), 2, ["a"]),
        lambda: time_grid([]),
        lambda: trajectory_grid(np.stack([images(2)] * 3), [1.0]),
        lambda: neighbour_grid(images(2), images(2), [1.0]),
    ],
)
def test_what_is_not_images_is_refused(call: Any) -> None:
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (50_000, "50 k"),
        (123_456, "123 k"),
        (1_234_567, "1.23 M"),
        (10**9, "1 G"),
    ],
)
def test_counts_are_short(n: int, words: str) -> None:
    assert short_count(n) == words


# -- curves and bars ----------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, st.integers(1, 300), elements=st.floats(-100, 100)))
def test_smoothing_stays_within_the_values_and_keeps_the_ends(values: np.ndarray) -> None:
    smoothed = smooth(values)
    assert smoothed.shape == values.shape
    assert smoothed.min() >= values.min() - 1e-9 and smoothed.max() <= values.max() + 1e-9
    assert smoothed[0] == pytest.approx(values[0], abs=1e-9) and smoothed[-1] == pytest.approx(values[-1], abs=1e-9)


def test_smoothing_does_not_lag_and_removes_noise() -> None:
    line = np.linspace(5, 1, 200)
    np.testing.assert_allclose(smooth(line), line, atol=1e-12)
    noise = np.random.default_rng(0).standard_normal(2000)
    assert smooth(noise).std() < 0.2
    assert len(smooth(np.array([]))) == 0


def test_loss_curve_shows_what_was_logged() -> None:
    loss_only = [{key: value for key, value in row.items() if key != "frechet"} for row in rows()]
    full, short = loss_curve(rows()), loss_curve(loss_only)
    assert full is not None and short is not None
    assert pixels(full).shape[0] > pixels(short).shape[0]
    blue, orange = np.array([0x2A, 0x83, 0xC5]), np.array([0xD9, 0x66, 0x0A])
    for colour in (blue, orange):
        assert (np.abs(pixels(full)[..., :3].astype(int) - colour).max(-1) < 8).sum() > 200
    assert pixels(full)[0, 0, 3] == 0  # transparent: for light and dark pages


@pytest.mark.parametrize(
    "log", [[], [{"kind": "train", "n_images": 5, "loss": None}], [{"kind": "other", "n_images": 1}]]
)
def test_no_loss_no_figure(log: list[dict[str, Any]]) -> None:
    assert loss_curve(log) is None


@pytest.mark.parametrize(
    "log",
    [
        rows()[:1],
        rows()[-3:],
        [row | {"loss": float("nan")} for row in rows()[:3]] + rows()[3:],
        [row | {"loss": -1.0} for row in rows()],
        [{"kind": "validation", "n_images": 10, "loss": 0.5, "accuracy": 0.9, "frechet": float("inf")}],
        [row | {"loss": 0.0} for row in rows()],
    ],
    ids=["one row", "held-out only", "nan", "negative", "accuracy", "zero"],
)
def test_odd_logs_make_a_figure_without_warnings(log: list[dict[str, Any]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loss_curve(log) is not None


@pytest.mark.parametrize(
    "name", ["cat", "$x^$", "\\frac", "漢字", "very long name of a class that has no end", "<b>", ""]
)
def test_class_bars_take_any_name(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = class_bars({name: {"samples": 0.4, "real": 0.5}, "other": {"samples": 0.6, "real": 0.5}})
    assert png is not None and pixels(png).shape[1] == 880


def test_class_bars_of_many_classes_show_the_most_different() -> None:
    shares = {f"class {i}": {"samples": 0.001 * (1 + i % 7), "real": 0.004} for i in range(1000)}
    many, few = class_bars(shares), class_bars(dict(list(shares.items())[:24]))
    assert many is not None and few is not None and pixels(many).shape == pixels(few).shape
    assert class_bars({}) is None
    assert class_bars({"a": {"acceptance": 0.5}}) is None


def test_figures_are_reproducible_and_leave_no_trace() -> None:
    import matplotlib

    before = matplotlib.rcParams["font.size"], matplotlib.rcParams["text.parse_math"]
    assert loss_curve(rows()) == loss_curve(rows())
    assert (matplotlib.rcParams["font.size"], matplotlib.rcParams["text.parse_math"]) == before
