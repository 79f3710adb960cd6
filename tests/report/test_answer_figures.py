"""The figures and tables of answers say what the numbers say."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twofold.measure.answers import reliability
from twofold.report import answers
from twofold.report.page import Report, write_report

BLUE, ORANGE = np.array([0x2A, 0x83, 0xC5]), np.array([0xD9, 0x66, 0x0A])


def result(**changes: Any) -> dict[str, Any]:
    """As `twofold evaluate` writes it, of three classes."""
    sure, unsure = [0.9, 0.05, 0.05], [0.2, 0.45, 0.35]
    rows = reliability(np.array([sure] * 40 + [unsure] * 20), np.array([0] * 37 + [1] * 12 + [2] * 11))
    histogram = {"edges": [0.0, 1.0, 2.0], "inside": [0.9, 0.1], "outside": [0.25, 0.75]}
    score = {"auroc": 0.91, "low": 0.88, "high": 0.94, "fpr95": 0.4, "aupr": 0.8, "histogram": histogram, "log": False}
    return {
        "kind": "classes",
        "metrics": {
            "accuracy": {"samples": 0.817, "interval": [0.7, 0.89]},
            "brier": {"samples": 0.25},
            "temperature": {"samples": 1.5},
        },
        "reliability": rows,
        "noise": [{"sigma": s, "accuracy": a, "low": a - 0.1, "high": a + 0.1} for s, a in ((0.1, 0.8), (1.0, 0.5))],
        "per_class": {
            "cat": {"images": 37, "accuracy": 0.75, "low": 0.7, "high": 0.8, "precision": 0.6},
            "<dog>": {"images": 3, "accuracy": 0.5, "low": 0.1, "high": 0.9, "precision": None},
        },
        "held_out": {"split": "test", "images": 60},
        "asked_at": 0.0,
        "data": {"name": "pets"},
        "notes": ["Mind <this>."],
        "ood": {
            "own": {"name": "pets", "split": "test", "images": 60},
            "other": {"name": "cars", "split": "all", "images": 20},
            "scores": {"energy": score, "denoising_error": {**score, "auroc": 0.7}},
            "notes": [],
        },
        **changes,
    }


def pixels(png: bytes | None) -> np.ndarray:
    assert png is not None
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)


def of_colour(image: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return (np.abs(image[..., :3] - colour).sum(-1) < 12) & (image[..., 3] > 200)


def test_overconfidence_stands_below_the_diagonal() -> None:
    """Points of a model that is too sure stand lower than those of one that is not."""

    def height(share: float) -> float:
        right = round(100 * share)
        sure = np.tile([0.9, 0.1], (100, 1))
        image = pixels(answers.reliability_figure(reliability(sure, np.array([0] * right + [1] * (100 - right)))))
        upper = of_colour(image, BLUE)[: len(image) // 2, image.shape[1] // 2 :]  # without the legend and the bars
        return float(np.nonzero(upper)[0].mean())

    assert height(0.95) < height(0.8) < height(0.65)  # rows are counted from above


def test_a_panel_for_every_score() -> None:
    found = result()["ood"]
    two = pixels(answers.strangeness_figure(found))
    one = pixels(answers.strangeness_figure({**found, "scores": {"energy": found["scores"]["energy"]}}))
    assert len(two) > 1.5 * len(one)
    assert of_colour(one, BLUE).sum() > 100 and of_colour(one, ORANGE).sum() > 100


def test_logarithmic_scores_are_drawn_as_such() -> None:
    found = result()["ood"]
    score = {
        **found["scores"]["energy"],
        "histogram": {"edges": [1e-4, 1e-2, 1.0], "inside": [1, 0], "outside": [0, 1]},
    }

    def drawn(log: bool) -> np.ndarray:
        image = pixels(answers.strangeness_figure({**found, "scores": {"entropy": {**score, "log": log}}}))
        return of_colour(image[len(image) // 4 :], ORANGE).sum(0).nonzero()[0]

    assert drawn(True).min() > 1.5 * drawn(False).min()  # its bar begins in the middle, not at the left edge


def test_words_of_the_table() -> None:
    found = answers.table(result())
    assert "60 images of the test part of pets, 81.7 % are named rightly (70.0 % to 89.0 %)." in found["summary"]
    assert [row["title"] for row in found["rows"]] == ["Accuracy", "Brier score", "Temperature"]
    assert found["rows"][0]["value"] == "81.7 %" and found["rows"][1]["value"] == "0.25"
    assert all(row["meaning"] for row in found["rows"])
    assert found["classes"][1] == {"name": "<dog>", "cells": ["3", "50.0 %", "10.0 % to 90.0 %", ""]}
    assert found["scores"][0]["auroc"] == "0.910" and found["scores"][0]["fpr95"] == "40.0 %"
    assert "guessing gets 0.250" in found["scores_note"]
    few = answers.table(result(held_out={"split": "test", "images": 60, "labelled": 6}))["summary"]
    assert few.startswith("Of 6 labelled images of the test part of pets, which holds 60, 81.7 %")
    assert "with noise of sigma 0.5" in answers.table(result(asked_at=0.5))["summary"]


def test_of_many_classes_the_least_known_are_shown() -> None:
    one = {"images": 5, "low": 0.0, "high": 1.0, "precision": 0.5}
    many = {f"class {k}": {**one, "accuracy": k / 100} for k in reversed(range(100))}
    found = answers.table(result(per_class=many))
    assert found["left_out"] == 60 and [row["name"] for row in found["classes"]] == [f"class {k}" for k in range(40)]


def test_attributes_have_columns_of_their_own() -> None:
    row = {"images": 9, "share": 0.25, "accuracy": 0.8, "always": 0.75, "f1": 0.5, "average_precision": None}
    metrics = {"accuracy": {"samples": 0.8}, "macro_f1": {"samples": 0.5}}
    found = answers.table(result(kind="attributes", per_class={"bald": row}, metrics=metrics))
    assert found["classes"] == [{"name": "bald", "cells": ["25.0 %", "80.0 %", "75.0 %", "0.500", ""]}]
    assert len(found["columns"]) == 5 and found["kind"] == "Attribute"
    assert "80.0 % of its answers about attributes are right." in found["summary"]


def test_page_of_a_model_that_answers(tmp_path: Path) -> None:
    page = write_report(tmp_path, Report("title", answers=result())).read_text()
    for words in ("Answers", "&lt;dog&gt;", "Brier score", "Images of another kind", "Mind &lt;this&gt;.", "cars"):
        assert words in page
    names = {p.stem for p in (tmp_path / "figures").iterdir()}
    assert names == {"reliability", "against_noise", "strangeness"}


@pytest.mark.parametrize("content", [None, {}])
def test_no_answers_no_section(tmp_path: Path, content: Any) -> None:
    assert "<h2" not in write_report(tmp_path, Report("title", answers=content)).read_text()


def test_other_images_alone(tmp_path: Path) -> None:
    page = write_report(tmp_path, Report("title", answers={"ood": result()["ood"]})).read_text()
    assert "Other images" in page and "Brier score" not in page
