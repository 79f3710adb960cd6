"""The figures and tables of recognition say what the numbers say."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from twofold.report import recognition
from twofold.report.page import Report, write_report

CELLS = [
    {"places": [[layer, sigma]], "validation": value, "loss": 0.1}
    for layer, row in {"enc.0": (0.5, 0.4), "mid": (0.9, 0.8), "dec.0": (0.85, 0.7)}.items()
    for sigma, value in zip((0.05, 0.4), row, strict=True)
]
FEW = [
    {
        **{"k": k, "places": [["mid", 0.05]], "accuracy": a, "interval": (a - 0.05, a + 0.05)},
        **{"raw": a - 0.1, "raw_interval": (a - 0.12, a - 0.08)},
    }
    for k, a in ((1, 0.6), (5, 0.8), (50, 0.95))
]
OVER = [
    {"n_images": n, "accuracy": a, "frechet": f, "layer": "mid", "sigma": 0.05}
    | {"contrastive": [{"layer": "mid", "sigma": 0.05, "alignment": 0.1 * n, "uniformity": -n}]}
    for n, a, f in ((1, 0.8, 4.0), (2, 0.9, 3.0), (3, 0.85, None))
]


def result(**changes: Any) -> dict[str, Any]:
    one = {"accuracy": 0.912, "interval": (0.9, 0.93), "averaged": 0.92, "places": [["mid", 0.05]]}
    return {
        "images": {"train": 1000, "validation": 100, "test": 359},
        "classes": ["cat", "<dog>"],
        "cells": CELLS,
        "results": {"one layer": one, "raw pixels": {"accuracy": 0.8, "interval": (0.78, 0.82)}},
        "winner": "one layer",
        "labels_per_class": FEW,
        "over_training": OVER,
        "contrastive": [],
        "zero_shot": {"images": 50, "accuracy": 0.7, "interval": (0.6, 0.8), "agreement": 0.75, "probe": 0.9},
        "finding": [{"question": "Is it?", "holds": None, "evidence": "who knows"}],
        "warnings": ["Beware of <this>."],
        **changes,
    }


def pixels(png: bytes | None) -> np.ndarray:
    assert png is not None
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)


def test_the_best_place_is_framed() -> None:
    orange = np.array([0xD9, 0x66, 0x0A])

    def middle(top: tuple[str, float]) -> float:
        image = pixels(recognition.heat_map(CELLS, top))
        rows, _columns = np.nonzero((np.abs(image[..., :3] - orange).sum(-1) < 12) & (image[..., 3] > 200))
        assert len(rows) > 50
        return float(rows.mean() / len(image))

    assert (
        middle(("enc.0", 0.05)) < middle(("mid", 0.4)) < middle(("dec.0", 0.05))
    )  # rows in order of execution, top to bottom


def test_nothing_to_draw_is_nothing_drawn() -> None:
    assert recognition.heat_map(CELLS[:1], ("enc.0", 0.05)) is None
    assert recognition.label_curve(FEW[:1]) is None and recognition.training_curves(OVER[:1]) is None
    assert recognition.label_curve([{k: v for k, v in row.items() if "raw" not in k} for row in FEW]) is not None


def test_training_curves_draw_what_there_is() -> None:
    whole, bare = recognition.training_curves(OVER), [{**r, "frechet": None, "contrastive": None} for r in OVER]
    assert len(pixels(whole)) > 2 * len(pixels(recognition.training_curves(bare)))


def test_words_of_the_table() -> None:
    found = recognition.table(result())
    assert "91.2 %" in found["summary"] and "359 test images" in found["summary"]
    assert [row["name"] for row in found["rows"]] == ["One layer", "Raw pixels", "Zero-shot"]
    assert found["rows"][0]["where"] == "mid at sigma 0.05" and "75.0 %" in found["rows"][2]["where"]
    assert found["labels"][0] == {
        "name": "1 per class",
        "accuracy": "60.0 % ± 5.0",
        "raw": "50.0 % ± 2.0",
        "where": "mid at sigma 0.05",
    }
    assert found["finding"][0]["answer"] == "unknown"


def test_page_of_a_run_with_a_probe(tmp_path: Path) -> None:
    path = write_report(tmp_path, Report("title", recognition=result()))
    page = path.read_text()
    for words in ("Recognition", "Zero-shot", "5 per class", "Is it?", "Beware of &lt;this&gt;."):
        assert words in page
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == {"features", "labels", "training"}
    bare = write_report(tmp_path, Report("title", recognition=result(labels_per_class=[], over_training=[])))
    assert "5 per class" not in bare.read_text()


def test_accuracy_against_noise_is_drawn() -> None:
    rows = [
        {"sigma": sigma, "accuracy": a, "low": a - 0.02, "high": a + 0.02}
        for sigma, a in ((0.0, 0.98), (0.1, 0.97), (1.0, 0.6), (10.0, 0.1))
    ]
    one, two = recognition.noise_curves({"a": rows}), recognition.noise_curves({"a": rows, "b": rows[1:]})
    assert pixels(one)[..., 3].any() and one != two
