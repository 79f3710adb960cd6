"""The page of a distillation: all that is known is there, nothing else, and nothing of it is markup."""

from __future__ import annotations

import copy
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twofold.measure.answers import share_interval
from twofold.recognize.segmenter import class_colours
from twofold.report.teaching import draw, render, write_page
from twofold.report.teaching_figures import (
    class_iou_figure,
    errors_figure,
    imitation_figure,
    levels_figure,
    students_figure,
)
from twofold.report.teaching_grids import SAID, TRUE, cards, legend, mask_grid, point_grid
from twofold.report.teaching_words import flops_text, next_steps, summary, time_text, verdict

from .common import Tags, words

CLASSES = ["ant", "bee", "cat"]
NAMES = ("taught", "scratch", "equal compute")
MAIN = {"classify": "accuracy", "segment": "miou", "landmarks": "nme"}
PHRASES = {
    "classify": "The taught student reaches an accuracy of 90.0 % (85.1 % to 93.4 %), the same student from scratch "
    "75.0 % (68.6 % to 80.5 %): the taught one is 15.0 points better, more than their 95 % intervals leave open.",
    "segment": "The taught student reaches a mean IoU of 60.0 % (58.0 % to 62.0 %), the same student from scratch "
    "50.0 % (48.0 % to 52.0 %): the taught one is 10.0 points better, more than",
    "landmarks": "The taught student reaches a normalised mean error of 4.00 % (3.80 % to 4.20 %), the same student "
    "from scratch 6.00 % (5.80 % to 6.20 %): the taught one is 2.00 points better, more than",
}


def measure(value: float | None, reach: float = 0.02, n: int = 200) -> dict[str, Any]:
    interval = None if value is None else [value - reach, value + reach]
    return {"value": value, "interval": interval, "n": n}


def judged(task: str, level: int) -> dict[str, Any]:
    """What is found of a student; level 0 is the best one."""
    if task == "classify":
        value = (0.9, 0.75, 0.8)[level]
        confusion = [[40, 2, 0], [0, 35, 7 + level], [1, 0, 44]]
        row = {"value": value, "interval": list(share_interval(value, 200)), "n": 200}
        return {"metrics": {"accuracy": row}, "details": {"confusion": confusion, "classes": CLASSES}}
    if task == "segment":
        value = (0.6, 0.5, 0.55)[level]
        scores = {name: measure(value + k / 10) for k, name in enumerate(("miou", "macc", "aacc"))}
        return {"metrics": scores, "details": {"classes": CLASSES, "iou": [value, 0.3, None]}}
    value = (0.04, 0.06, 0.05)[level]
    errors = [*np.linspace(0.5 * value, 1.5 * value, 40).tolist(), None]
    subset = {"nme": 2 * value, "failure_rate": 0.5, "auc": 0.2, "images": 12.0, "left_out": 0.0}
    return {
        "metrics": {"nme": measure(value, 0.002), "failure_rate": measure(0.05), "auc": measure(0.6 - level / 10)},
        "details": {
            "normaliser": "inter_ocular",
            "threshold": 0.1,
            "errors": errors,
            "subsets": {"blur": subset, "pose": {"images": 0.0, "left_out": 0.0}},
        },
    }


def result(task: str = "classify", names: tuple[str, ...] = NAMES, **change: Any) -> dict[str, Any]:
    """All there is, as `learn.teaching.run` returns it."""
    arms = {
        name: judged(task, level)
        | {
            "run": f"runs/x/parts/{name.split()[0]}-run-1",
            "parameters": 77_754,
            "n_images": 12_800 * (1 + level),
            "lr": 0.01,
            "tried": {"0.01": 0.8, "0.1": None} if level < 2 else {"0.01": 0.8},
            "flops": 1.5e12,
            "seconds": 100.0,
        }
        for level, name in enumerate(NAMES)
        if name in names
    }
    parts = [
        {"name": "backbone", "folder": "parts/backbone-1", "hash": "abcdef012345", "seconds": 34.3, "made": "made",
         "because": ""},
        {"name": "taught-run", "folder": "parts/taught-run-2", "hash": "012345abcdef", "seconds": 15.5,
         "made": "redone", "because": "settings.train.lr: 0.1 -> 0.01"},
    ]  # fmt: skip
    teacher = {
        "source": "runs/teacher", "layers": ["mid", "dec.0"], "student_layers": ["stage.2", "stage.3"],
        "parameters": 1_001_729, "input": "noised",
    }  # fmt: skip
    found: dict[str, Any] = {
        "command": "twofold distill runs/teacher data=insects",
        "settings": {"data": {"source": "insects"}, "backbone": {"kind": "resnet", "depth": 18, "blocks": None}},
        "task": task,
        "measure": MAIN[task],
        "stage": "all",
        "data": {
            "name": "insects", "source": "insects/", "hash": "ab" * 32, "train_images": 1200, "known_images": 60,
            "test_images": 200,
        },
        "arms": arms,
        "pretraining": {
            "run": "runs/x/parts/backbone-1",
            "teacher": teacher,
            "selection": {"sigma": [0.05, 0.1, 0.2, 0.4], "probability": [0.1, 0.6, 0.2, 0.1]},
            "losses": [{"n_images": 1000 * k, "loss": 0.1 / k} for k in (1, 2, 3)],
            "n_images": 40_960,
            "flops": 1e12,
            "seconds": 27.4,
        },
        "parts": parts,
        "seconds": 92.2,
        "versions": {"torch": "2.7"},
    }  # fmt: skip
    return found | change


def pictures(task: str = "classify", names: tuple[str, ...] = NAMES, n: int = 12, size: int = 12) -> dict[str, Any]:
    random = np.random.default_rng(0)
    shown: dict[str, Any] = {
        "images": random.integers(0, 256, (n, 1, size, size), np.uint8),
        "ids": [f"test/{k}.png" for k in range(n)],
    }
    if task == "classify":
        truth = np.arange(n) % 3
        truth[-1] = -1
        answers = {name: np.zeros(n, np.int64) for name in names}
        return shown | {"kind": "labels", "truth": truth, "classes": CLASSES, "answers": answers}
    if task == "segment":
        masks = random.integers(0, 2, (n, size, size)).astype(np.uint8)
        masks[:, 0] = 255
        answers = {name: masks % 2 for name in names}
        return shown | {"kind": "masks", "truth": masks, "classes": CLASSES, "answers": answers}
    points = random.uniform(0, size - 1, (n, 5, 2))
    answers = {name: points + 0.5 for name in names}
    return shown | {"kind": "points", "truth": points, "answers": answers}


def text_of(found: dict[str, Any], shown: dict[str, Any] | None = None) -> str:
    """The page's words, without its pictures."""
    return words(render(found, {}, shown or {}, "runs/x"))


FIGURES = {
    "classify": {"confusion-taught", "confusion-scratch"},
    "segment": {"masks", "iou"},
    "landmarks": {"points", "errors"},
}
SAYS = {
    "classify": [
        "Taught 90.0 % 85.1 % to 93.4 % 77,754 12,800 after 40,960 with the teacher 0.01 tried 0.01: 80.0 %, 0.1: not "
        "known 1.5 TFLOP 2 min",
        "bee cat 7 16.7 %",  # what is mistaken for what, most often first
        "ant ✓ taught: ant ✓ scratch: ant ✓ equal: ant bee ✗ taught: ant",
        "not known taught: ant",
    ],
    "segment": [
        "Taught 60.0 % 58.0 % to 62.0 % 70.0 % 68.0 % to 72.0 % 80.0 % 78.0 % to 82.0 %",
        "All 3 classes",
        "ant 60.0 % 50.0 % 55.0 %",
        "cat nowhere nowhere nowhere",
    ],
    "landmarks": [
        "Taught 4.00 % 3.80 % to 4.20 % 5.0 % 3.0 % to 7.0 % 0.600 0.580 to 0.620",
        "divided by the distance of the outer corners of the eyes; above 10 % an image counts as a failure.",
        "blur 12 8.00 % 12.00 % 10.00 %",
    ],
}


@pytest.mark.parametrize("task", MAIN)
def test_the_page_says_what_is_known(task: str, tmp_path: Path) -> None:
    path = write_page(tmp_path, result(task), pictures(task))
    page = path.read_text("utf-8")
    tags, text = Tags(page), words(page)
    assert path.name == "report.html" and tags.links <= tags.ids and len(tags.links) == 8
    assert all(source.startswith("data:image/png;base64,") for source in tags.sources)
    figures = {file.stem for file in (tmp_path / "figures").iterdir()}
    assert figures == {"students", "loss", "levels"} | FIGURES[task]
    assert len(tags.sources) == len(figures) + 12 * (task == "classify")
    for part in (
        PHRASES[task],
        "Student: resnet, 18 layers, 77,754 parameters. Teacher: runs/teacher.",
        "60 of 1,200 training images are",
        "200 images, which nobody learned from, test the students.",
        "stage.2 imitates mid, stage.3 imitates dec.0",
        "taught-run made again: settings.train.lr: 0.1 -&gt; 0.01 16 parts/taught-run-2 012345abcdef",
        "twofold predict runs/x/parts/taught-run-1 IMAGES",
        "twofold export runs/x/parts/taught-run-1",
        "twofold distill runs/teacher data=insects",
        *SAYS[task],
    ):
        assert part in text, part


@pytest.mark.parametrize("task", MAIN)
@pytest.mark.parametrize("name", NAMES)
def test_a_single_student(task: str, name: str) -> None:
    """Its page compares nothing with what is not there."""
    found = result(task, (name,)) | ({} if name == "taught" else {"pretraining": None})
    text = text_of(found, pictures(task, (name,)))
    assert "better" not in text.replace("the better", "").replace("less is better", "")
    assert ("Nothing is here to hold it against" in text) == (name == "taught")
    assert ("Teacher: none." in text) == (name != "taught")


def test_pretraining_alone(tmp_path: Path) -> None:
    page = write_page(tmp_path, result(names=()), {}).read_text("utf-8")
    assert Tags(page).links == {"teaching", "next", "parts", "data", "settings", "reproduce"}
    assert "The student has been taught; it has not learned a task yet." in words(page)
    assert f"twofold distill student={tmp_path} task=classify data=SOURCE" in words(page)
    assert {file.stem for file in (tmp_path / "figures").iterdir()} == {"loss", "levels"}


@pytest.mark.parametrize("task", MAIN)
def test_what_is_not_known_is_left_out(task: str) -> None:
    """No test images, one validation, a selection without a table, nothing tried, one part without its seconds."""
    found = result(task)
    for arm in found["arms"].values():
        arm |= {"metrics": {}, "details": {}, "tried": {}}
    found["arms"]["scratch"]["metrics"] = {found["measure"]: {"value": None, "interval": None, "n": 0}}
    found["data"]["test_images"] = 0
    found["pretraining"] |= {"selection": None, "losses": [{"n_images": 1, "loss": 0.5}]}
    found["parts"][0]["seconds"] = None
    assert draw(found, {}) == {}
    text = text_of(found)
    assert "how good the students are is not known" in text and "%" not in text.replace("95 %", "")


def test_a_student_that_was_taught_before_and_a_classifier_as_teacher() -> None:
    before = result(pretraining={"student": "runs/taught"})
    before["settings"] |= {"student": "runs/taught"}
    text = text_of(before)
    assert "It was taught before: runs/taught." in text
    assert "Student: that of runs/taught, 77,754 parameters. Teacher: that of runs/taught." in text
    found = result(pretraining=None)
    found["settings"] |= {"finetune": {"objective": {"kind": "kd", "teacher": "runs/wide"}}}
    text = text_of(found)
    assert (
        "Teacher: runs/wide." in text and "with the teacher" not in text and "What the student was taught" not in text
    )


def against(measure_name: str, taught: tuple[float, float, float], scratch: tuple[float, float, float]) -> str:
    arms = {
        name: {"metrics": {measure_name: {"value": value, "interval": [low, high], "n": 9}}}
        for name, (value, low, high) in {"taught": taught, "scratch": scratch}.items()
    }
    [line] = verdict({"arms": arms, "measure": measure_name})
    return line


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ((0.9, 0.88, 0.92), (0.8, 0.78, 0.82), "10.0 points better, more than their 95 % intervals leave open."),
        ((0.9, 0.85, 0.95), (0.88, 0.83, 0.93), "2.0 points better, but the 95 % intervals overlap"),
        ((0.8, 0.78, 0.82), (0.9, 0.88, 0.92), "10.0 points worse, more than their 95 % intervals leave open; here"),
        ((0.88, 0.83, 0.93), (0.9, 0.85, 0.95), "2.0 points worse, though the 95 % intervals overlap"),
        ((0.9, 0.85, 0.95), (0.9, 0.85, 0.95), "there is no difference."),
    ],
)
def test_the_verdict(ours: tuple[float, float, float], theirs: tuple[float, float, float], says: str) -> None:
    assert says in against("accuracy", ours, theirs)
    mirrored = [tuple(0.1 * (1 - end) for end in (value[0], value[2], value[1])) for value in (ours, theirs)]
    of_errors = against("nme", mirrored[0], mirrored[1])  # type: ignore[arg-type]
    assert re.sub(r"\d+\.\d+ points", "", says) in re.sub(r"\d+\.\d+ points", "", of_errors)


def test_the_verdict_against_equal_computing() -> None:
    lines = verdict(result("landmarks"))
    assert len(lines) == 2
    assert lines[1] == (
        "From scratch with as much computing as teaching took in all, it is 5.00 % (4.80 % to 5.20 %): the taught one "
        "is 1.00 points better, more than their 95 % intervals leave open."
    )


def test_the_best_student_is_the_one_to_go_on_with() -> None:
    found = result("landmarks")
    found["arms"]["scratch"]["metrics"]["nme"] = measure(0.01, 0.001)
    assert next_steps(found, "x")[0][0] == "twofold predict runs/x/parts/scratch-run-1 IMAGES"


def test_a_value_that_is_no_number_is_not_known() -> None:
    found = result("segment", ("taught",))
    found["arms"]["taught"]["metrics"]["miou"] = {"value": float("nan"), "interval": [float("nan")] * 2, "n": 3}
    assert "nan" not in text_of(found) and "not known" in summary(found)[-1]
    found["arms"]["taught"]["metrics"]["miou"] = {"value": 0.5, "interval": [float("nan")] * 2, "n": 3}
    assert "reaches a mean IoU of 50.0 %." in text_of(found)


@pytest.mark.parametrize("task", MAIN)
def test_names_and_commands_are_no_markup(task: str) -> None:
    evil = "<script>alert(1)</script>"
    found, shown = result(task, command=evil, settings={"data": evil, "student": evil}), pictures(task)
    found["data"] = found["data"] | {"name": evil, "source": evil}
    found["parts"] = [{"name": evil, "folder": evil, "hash": evil, "seconds": 1.0, "made": evil, "because": evil}]
    found["pretraining"]["teacher"] |= {"source": evil, "layers": [evil], "student_layers": [evil]}
    for arm in found["arms"].values():
        arm["run"] = evil
        if "classes" in arm["details"]:
            arm["details"]["classes"] = [evil, "bee", "cat"]
        if "subsets" in arm["details"]:
            arm["details"]["subsets"][evil] = arm["details"]["subsets"]["blur"]
    shown["ids"] = [f'"{evil}'] * 12
    if "classes" in shown:
        shown["classes"] = [evil, "bee", "cat"]
    page = render(found, draw(found, shown), shown, "x")
    Tags(page)
    assert "<script" not in page and page.count("&lt;script&gt;") >= 12


def test_a_page_that_was_there_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    write_page(tmp_path, result(), pictures())
    before = (tmp_path / "report.html").read_bytes()
    broken = copy.deepcopy(result())
    broken["data"].pop("known_images")
    with pytest.raises(KeyError):
        write_page(tmp_path, broken, pictures())
    assert (tmp_path / "report.html").read_bytes() == before
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def pixels(png: bytes) -> np.ndarray:
    """(H, W, 3) where something is drawn; what is transparent is black."""
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)
    found: np.ndarray = rgba[..., :3] * (rgba[..., 3:] == 255)
    return found


def test_masks_lie_over_their_images_in_the_colours_of_the_legend() -> None:
    """Below a black image its truth and the answer, half as bright as the legend; void stays black."""
    shown = pictures("segment", ("taught",), 1, 4)
    shown["images"][:] = 0
    shown["truth"] = np.zeros((1, 4, 4), np.uint8)
    shown["truth"][0, 0] = 255
    shown["answers"] = {"taught": np.ones((1, 4, 4), np.uint8)}
    colours = [tuple(int(v) for v in row) for row in class_colours(3)]
    assert legend(shown) == [(CLASSES[k], "#{:02x}{:02x}{:02x}".format(*colours[k])) for k in (0, 1)]
    grid = pixels(mask_grid(shown))
    side = (len(grid) - 8) // 3  # three rows with gaps of 4 pixels
    middle = [grid[row * (side + 4) + side // 2, -side // 2] for row in range(3)]
    halves = [np.round(np.array(colours[k]) / 2) for k in (0, 1)]
    assert (middle[0] == 0).all()
    assert np.abs(middle[1] - halves[0]).max() <= 1 and np.abs(middle[2] - halves[1]).max() <= 1
    assert (grid[side + 4 + side // 8, -side // 2] == 0).all()


def test_points_are_drawn_where_they_are() -> None:
    """Small images are enlarged and the points with them: the middle of pixel (x, y) is the middle of its square."""
    shown = pictures("landmarks", ("taught",), 1, 16)
    shown["images"][:] = 0
    shown["truth"] = np.array([[[3.0, 4.0], [np.nan, np.nan]]])
    shown["answers"] = {"taught": np.array([[[12.0, 11.0], [7.0, 2.0]]])}
    grid = pixels(point_grid(shown))
    tile = grid[:, -len(grid) :]  # square
    scale = len(tile) / 16
    for colour, place in ((TRUE, (3, 4)), (SAID, (7, 2))):
        found = (np.argwhere((tile == colour).all(-1))[:, ::-1] + 0.5) / scale - 0.5
        near = found[np.abs(found - np.array(place)).max(1) < 2]
        assert np.abs((near.min(0) + near.max(0)) / 2 - np.array(place)).max() < 0.2, colour
    assert not ((tile == TRUE).all(-1)[: int(3 * scale), int(5 * scale) :]).any()  # the one that is not visible


@pytest.mark.parametrize("size", [8, 28, 48, 256, 700])
@pytest.mark.parametrize("task", ["segment", "landmarks"])
def test_grids_of_small_and_large_images_fit(task: str, size: int) -> None:
    shown = pictures(task, NAMES, 12, size)
    grid = Image.open(io.BytesIO((mask_grid if task == "segment" else point_grid)(shown)))
    assert 400 < grid.width < 1700 and grid.height < 3000


def test_cards_say_who_is_right() -> None:
    found = cards(pictures("classify", ("scratch", "taught"), 4))
    assert [one["truth"] for one in found] == ["ant", "bee", "cat", "not known"]
    assert found[1]["answers"] == [("taught", "ant", False), ("scratch", "ant", False)]
    assert [one["answers"][0][2] for one in found] == [True, False, False, None]
    assert cards({}) == [] and cards(pictures("segment")) == []


def test_many_classes_fit() -> None:
    k = 150
    found = result("segment")
    for level, arm in enumerate(found["arms"].values()):
        names = [f"a rather long name of class number {i}" for i in range(k)]
        arm["details"] = {"classes": names, "iou": [None if i == 7 else (i + level) % 10 / 10 for i in range(k)]}
    png = class_iou_figure(found["arms"])
    assert png is not None and max(Image.open(io.BytesIO(png)).size) < 4000
    assert f"All {k} classes" in words(render(found, {"iou": png}, {}, "x"))
    confused = result()
    for arm in confused["arms"].values():
        arm["details"] = {"classes": names, "confusion": np.eye(k, dtype=int).tolist()}
    assert "mistaken" not in text_of(confused)


def test_figures_without_anything_to_show() -> None:
    assert students_figure({}, "accuracy") is None
    assert imitation_figure([]) is None and imitation_figure([{"n_images": 1, "loss": None}] * 3) is None
    assert levels_figure(None) is None and levels_figure({"sigma": [0.1], "probability": [1.0]}) is None
    assert class_iou_figure({"taught": {"details": {"classes": CLASSES}}}) is None
    nothing = {"taught": {"details": {"errors": [None, None], "threshold": 0.1}}}
    assert errors_figure(nothing) is None and errors_figure({}) is None


@pytest.mark.parametrize("count", [2, 32, 1000])
def test_levels_of_any_table(count: int) -> None:
    sigma = np.geomspace(0.01, 80, count)
    png = levels_figure({"sigma": sigma[::-1].tolist(), "probability": [1 / count] * count})
    assert png is not None and Image.open(io.BytesIO(png)).width == 880


def test_sizes_and_times_in_words() -> None:
    assert [flops_text(v) for v in (12.0, 3.2e9, 1.5e12, 2e15)] == ["12 FLOP", "3.2 GFLOP", "1.5 TFLOP", "2 PFLOP"]
    assert [time_text(v) for v in (0.5, 75, 600, 10_000)] == ["0.5 s", "75 s", "10 min", "2.8 h"]
