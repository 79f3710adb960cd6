"""The page of a few-label experiment: all that is known is there, nothing else, and nothing of it is markup."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twofold.measure.answers import share_interval
from twofold.report.confusions import confusion_figure
from twofold.report.fewlabel import draw, render, summary, write_page
from twofold.report.fewlabel_figures import MOST_ROWS, class_grid, confidence_figure, stages_figure

from .common import Tags, words

CLASSES = ["ant", "bee", "cat"]
CONFUSION = [[40, 2, 0], [0, 35, 7], [1, 0, 44]]


def accuracy(value: float | None, n: int = 200) -> dict[str, Any]:
    return {"value": value, "interval": None if value is None else list(share_interval(value, n)), "n": n}


def result(**change: Any) -> dict[str, Any]:
    """All there is; what is not known is None."""
    confidence = {"edges": [0, 0.25, 0.5, 0.75, 1], "count": [0, 10, 30, 89], "right": [0, 4, 20, 85]}
    parts = [
        {"name": "denoiser", "folder": "parts/denoiser-1", "hash": "1", "seconds": 0.0, "made": "found", "because": ""},
        {
            "name": "generator",
            "folder": "parts/g-2",
            "hash": "2",
            "seconds": 93.2,
            "made": "redone",
            "because": "pseudo",
        },
    ]
    found: dict[str, Any] = {
        "command": "twofold fewlabel data=insects labels_per_class=2",
        "settings": {"data": {"source": "insects"}, "images": {"per_class": 128}},
        "data": {
            "name": "insects", "hash": "ab" * 32, "source": "insects/", "train_images": 135,
            "labelled": dict.fromkeys(CLASSES, 2), "test_images": 200,
        },
        "classes": CLASSES,
        "accuracy": {"stage 3": accuracy(0.925), "stage 1": accuracy(0.85), "self-training": accuracy(0.86)},
        "pseudo": {"confusion": CONFUSION, "accuracy": 119 / 129, "confidence": confidence, "most": [], "least": []},
        "parts": parts,
        "rounds": [{"pseudo": 0.9, "stage 3": accuracy(0.9)}, {"pseudo": 0.92, "stage 3": accuracy(0.925)}],
        "seconds": 100.0,
        "versions": {"torch": "2.7"},
    }  # fmt: skip
    return found | change


def images(n: int = 4, classes: int = 3, channels: int = 1) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (classes, n, channels, 6, 5), np.uint8)
    titles = [f"ant {k}0 %" for k in range(n)]
    return {"samples": pixels, "most": pixels[0], "least": pixels[1], "most_titles": titles, "least_titles": titles}


def test_the_page_says_what_is_known(tmp_path: Path) -> None:
    path = write_page(tmp_path, result(), images())
    page = path.read_text("utf-8")
    tags, text = Tags(page), words(page)
    assert path.name == "report.html" and tags.links <= tags.ids and len(tags.links) == 7
    assert all(source.startswith("data:image/png;base64,") for source in tags.sources) and len(tags.sources) == 6
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {
        f"{name}.png" for name in ("stages", "confusion", "confidence", "samples", "most", "least")
    }
    for part in (
        "6 of 135 training images of 3 classes were labelled.",
        "Stage 3 names 92.5 % of 200 test images rightly (88.0 % to 95.4 %); stage 1, from the labelled images alone, "
        "85.0 %: +7.5 points.",
        "129 images without a label got a pseudo label. Of those whose label is known for comparison, 92.2 % are",
        "bee cat 7 16.7 %",  # what is mistaken for what, most often first
        "generator made again: pseudo 93 parts/g-2",
        "denoiser there already parts/denoiser-1",
        "Pseudo labels that are right Stage 3 1 90.0 % 90.0 % 2 92.0 % 92.5 %",
        "6, 2 of each class",
        "per_class: 128",
        "twofold fewlabel data=insects labels_per_class=2",
    ):
        assert part in text, part
    order = [text.index(name) for name in ("Stage 1 ", "Self-training", "Stage 3 92.5 %")]
    assert text.index("ant bee 2") > text.index("bee cat 7") and order[1] < order[2]


def test_the_page_says_what_the_last_classifier_learned_from() -> None:
    def text(**final: float) -> str:
        found = result(settings={"final": final})
        return words(render(found, draw(found, {})))

    assert "a classifier of labelled, pseudo-labelled and generated images" in text(pseudo=1.0, generated=1.0)
    assert "a classifier of labelled and generated images" in text(pseudo=0.0, generated=1.0)
    assert "a classifier of labelled and pseudo-labelled images" in text(pseudo=1.0, generated=0.0)


def test_without_labels_of_test_images_and_without_hidden_ones(tmp_path: Path) -> None:
    unknown = {name: accuracy(None, 0) for name in ("stage 1", "stage 3")}
    found = result(accuracy=unknown, rounds=[{"pseudo": None, "stage 3": accuracy(None, 0)}])
    confidence = found["pseudo"]["confidence"] | {"right": None}
    found["pseudo"] = {"confusion": None, "accuracy": None, "confidence": confidence, "most": [], "least": []}
    page = write_page(tmp_path, found, None).read_text("utf-8")
    text = words(page)
    assert Tags(page).links == {"pseudo", "parts", "data", "settings", "reproduce"}
    assert "The test images have no labels, or there are none, so no accuracy is known." in text
    assert "Whether they are right is not known." in text and "%:" not in text
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["confidence.png"]


@pytest.mark.parametrize("stage", ["1", "2"])
def test_a_single_stage(tmp_path: Path, stage: str) -> None:
    found = result(accuracy={"stage 1": accuracy(0.8)}, rounds=[], stage=stage)
    text = words(write_page(tmp_path, found, images() | {"samples": None}).read_text("utf-8"))
    assert "Stage 1 names 80.0 % of 200 test images rightly" in text and "Generated images" not in text
    assert "Rounds" not in text


def test_names_and_commands_are_no_markup() -> None:
    evil = "<script>alert(1)</script>"
    found = result(classes=[evil, "bee", "cat"], command=evil, settings={"data": evil})
    found["data"] = found["data"] | {"name": evil, "source": evil, "labelled": {evil: 2, "bee": 2, "cat": 2}}
    found["parts"] = [{"name": evil, "folder": evil, "hash": evil, "seconds": 1.0, "made": evil, "because": evil}]
    page = render(found, draw(found, images()))
    assert "<script" not in page and page.count("&lt;script&gt;") >= 7


def test_many_classes_and_images_fit() -> None:
    k = 60
    names = [f"a rather long name of class number {i}" for i in range(k)]
    found = result(classes=names)
    found["pseudo"] = found["pseudo"] | {"confusion": np.eye(k, dtype=int).tolist()}
    found["data"] = found["data"] | {"labelled": {name: 1 + i % 3 for i, name in enumerate(names)}}
    pictures = draw(found, images(14, k, 3))
    page = words(render(found, pictures))
    assert f"The first classes; there are {k - MOST_ROWS} more." in page and "119, 1 to 3 of each class" not in page
    assert f"{sum(found['data']['labelled'].values())}, 1 to 3 of each class" in page
    assert all(max(size(png)) < 2500 for png in pictures.values())
    assert "Mistaken most often" not in page


def size(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def test_rows_of_samples_are_classes() -> None:
    pixels = np.zeros((2, 3, 1, 4, 4), np.uint8)
    pixels[1] = 255
    grid = np.asarray(Image.open(io.BytesIO(class_grid(pixels, ["no", "yes"]))).convert("RGBA"))
    opaque = grid[..., 3] == 255
    upper, lower = grid[: len(grid) // 2], grid[len(grid) // 2 :]
    tiles = slice(grid.shape[1] // 2, None)
    assert upper[:, tiles][opaque[: len(upper), tiles]][:, :3].max() == 0
    assert lower[:, tiles][opaque[len(upper) :, tiles]][:, :3].min() == 255


def test_a_page_that_was_there_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    write_page(tmp_path, result(), images())
    before = (tmp_path / "report.html").read_bytes()
    broken = copy.deepcopy(result())
    broken["data"].pop("labelled")
    with pytest.raises(KeyError):
        write_page(tmp_path, broken, images())
    assert (tmp_path / "report.html").read_bytes() == before
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def test_a_stage_whose_share_is_all_or_nothing_has_bars() -> None:
    for value in (0.0, 1.0):
        assert stages_figure({"stage 1": accuracy(value), "mine": accuracy(value)}) is not None
    assert stages_figure({}) is None and stages_figure({"stage 1": accuracy(None)}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"right": None},
        {"right": [0, 0]},
        {"right": [0, 3], "known": [0, 5], "mean": [None, 0.9]},
        {"right": [0, 0], "known": [0, 0]},
    ],
)
def test_confidence_with_what_is_known_of_it(change: dict[str, Any]) -> None:
    assert confidence_figure({"edges": [0, 0.5, 1], "count": [0, 9], **change}) is not None


def test_nothing_counted_is_no_figure() -> None:
    assert confidence_figure({"edges": [0, 0.5, 1], "count": [0, 0], "right": None}) is None


def test_a_class_without_images_has_a_row() -> None:
    """Its shares are 0, not not-a-number."""
    with np.errstate(all="raise"):
        assert confusion_figure([[0, 0], [1, 3]], ["a", "b"])


def test_summary_of_one_stage_alone_compares_nothing() -> None:
    lines = summary(result(accuracy={"generated alone": accuracy(0.5)}))
    assert lines[1].startswith("Generated alone names 50.0 %") and "points" not in lines[1]
