"""The verdict says yes and no where it should; the report is made from what a run folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.learn.common import tiny
from twofold.data import open_store
from twofold.learn import train
from twofold.report.build import asked_for, report_run
from twofold.report.verdict import verdict
from twofold.run import Run, load

GOOD: dict[str, Any] = {
    "frechet_to_split": {"split": "all", "images": 1000, "value": 0.17},
    "metrics": {
        "frechet/pixels": {"samples": 0.3, "real": 0.35, "gaussian": 0.9},
        "precision/pixels": {"samples": 0.8, "real": 0.9},
        "recall/pixels": {"samples": 0.8, "real": 0.9},
        "acceptance": {"samples": 0.95, "real": 0.98},
        "class_share_gap": {"samples": 1.0},
        "nearest_median": {"samples": 2.1, "real": 2.0, "real_interval": [1.95, 2.1]},
        "nearest_5_percent": {"samples": 1.5, "real": 1.4, "real_interval": [1.35, 1.5]},
    },
}


def test_good_samples_meet_every_criterion() -> None:
    criteria = verdict(GOOD, 0.2)
    assert len(criteria) == 7 and all(one.passed and one.meaning for one in criteria)
    assert "fitted Gaussian 0.900" in criteria[0].target


@pytest.mark.parametrize(
    ("metric", "value", "fails"),
    [
        ("precision/pixels", 0.76, True),  # 0.85 * 0.9 = 0.765
        ("precision/pixels", 0.77, False),
        ("recall/pixels", 0.5, True),
        ("acceptance", 0.88, True),  # 0.9 * 0.98 = 0.882
        ("class_share_gap", 5.1, True),
        ("class_share_gap", 5.0, False),
        ("nearest_median", 1.9, True),
        ("nearest_median", 1.96, False),
        ("nearest_5_percent", 1.3, True),
    ],
)
def test_each_criterion_can_fail(metric: str, value: float, fails: bool) -> None:
    found = {**GOOD, "metrics": {**GOOD["metrics"], metric: {**GOOD["metrics"][metric], "samples": value}}}
    assert sum(one.passed is False for one in verdict(found, 0.2)) == int(fails)


@pytest.mark.parametrize(("share", "judged"), [(0.01, True), (0.5, True), (0.51, False), (1.0, False)])
def test_that_noise_is_no_copy_is_no_merit(share: float, judged: bool) -> None:
    """Of images most of which look like none of the real ones it is not counted that they are no copies."""
    far = {"farther_than_real": {"samples": share, "real": 0.01}}
    copies = [one for one in verdict({**GOOD, "metrics": {**GOOD["metrics"], **far}}) if one.name.startswith("No cop")]
    assert [one.passed for one in copies] == [True if judged else None] * 2
    assert all((f"says nothing here: {share:.0%} of the images are farther" in one.target) != judged for one in copies)


def test_the_distance_has_a_target_only_where_one_is_given() -> None:
    assert verdict({**GOOD, "frechet_to_split": {**GOOD["frechet_to_split"], "value": 0.21}}, 0.2)[0].passed is False
    assert verdict(GOOD)[0].passed is None


def test_the_report_of_a_run(tmp_path: Path) -> None:
    train(tiny(n_images=128, preview_images=64), tmp_path / "run", "cpu")
    run, store = Run.open(tmp_path / "run"), open_store(tiny().data)
    model = load(tmp_path / "run")
    page = report_run(run, store, model).read_text()  # type: ignore[arg-type]
    for heading in ("Loss", "Samples over training time", "Generated beside real images", "Nearest training images"):
        assert heading in page
    assert "Verdict" not in page and 'src="http' not in page
    images = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8)
    page = report_run(run, store, model, images, [i % 10 for i in range(30)], GOOD, 0.2).read_text()  # type: ignore[arg-type]
    assert "All 7 criteria are met." in page


def test_classes_are_called_as_whoever_was_asked_calls_them() -> None:
    store = open_store(tiny().data)
    names = [f"digit {k}" for k in range(10)]
    assert asked_for([9, -1, 0], store, None, names) == ["digit 9", "none", "digit 0"]
    assert asked_for([9, -1], store, None) == ["9", "none"]
