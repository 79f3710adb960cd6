"""The verdict: good, collapsed, copied and Gaussian images must get different ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from twofold.errors import UserError
from twofold.measure import PixelEncoder
from twofold.measure.quality import MEANINGS, fitted_gaussian, meaning, quality


@cache
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits, uint8 (N, 1, 8, 8), in random order, and their labels."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    images = torch.from_numpy((data.images[order] * 255 / 16).round().astype(np.uint8))
    return images[:, None], torch.from_numpy(data.target[order])


class Judge:
    """Nearest class mean of the digits, as sure as softmax of distances makes it."""

    class_names: Sequence[str] = tuple("0123456789")

    def __init__(self) -> None:
        images, labels = digits()
        x0 = images.float().flatten(1) / 127.5 - 1
        self.means = torch.stack([x0[labels == k].mean(0) for k in range(10)])

    def logits(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return -torch.cdist(x.flatten(1), self.means).square()


@cache
def verdict(kind: str, more: tuple[str, ...] = ()) -> dict[str, Any]:
    images, labels = digits()
    train, held_out, new = images[:900], images[900:1300], images[1300:1700]
    asked = labels[1300:1700]
    match kind:
        case "copies":
            new, asked = train[:400], labels[:400]
        case "collapsed":
            new = images[:900][labels[:900] == 3][:80].repeat(5, 1, 1, 1)
            asked = torch.arange(400) % 10
        case "gaussian":
            new = fitted_gaussian(train, 400, seed=5)
        case "noise":
            new = torch.randint(0, 256, new.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return quality(new, train, held_out, PixelEncoder(), Judge(), asked, further=more)


def further(kind: str) -> dict[str, Any]:
    return verdict(kind, ("kid", "coverage"))


def test_new_real_images_pass_on_everything() -> None:
    metrics = verdict("real")["metrics"]
    frechet = metrics["frechet/pixels"]
    assert frechet["samples"] == pytest.approx(frechet["real"], rel=0.25)
    assert frechet["interval"][0] <= frechet["samples"] <= frechet["interval"][1]
    for name in ("precision/pixels", "recall/pixels", "acceptance"):
        assert metrics[name]["samples"] == pytest.approx(metrics[name]["real"], abs=0.06)
    assert metrics["agreement"]["samples"] > 0.85
    assert metrics["nearer_than_real"]["samples"] < 0.12
    assert metrics["class_share_gap"]["samples"] < 6


def test_a_fitted_gaussian_fools_the_distance_and_nothing_else() -> None:
    metrics = verdict("gaussian")["metrics"]
    noise = verdict("noise")["metrics"]["frechet/pixels"]["samples"]
    frechet = metrics["frechet/pixels"]
    assert frechet["samples"] < 0.05 * noise
    assert frechet["samples"] == pytest.approx(frechet["gaussian"], rel=0.2)
    assert metrics["precision/pixels"]["samples"] < metrics["precision/pixels"]["real"] - 0.2
    assert metrics["acceptance"]["samples"] < metrics["acceptance"]["real"] - 0.2
    assert metrics["precision/pixels"]["gaussian"] == pytest.approx(metrics["precision/pixels"]["samples"], abs=0.08)


def test_collapse_shows_in_recall_and_shares() -> None:
    metrics = verdict("collapsed")["metrics"]
    assert metrics["recall/pixels"]["samples"] < 0.3 < metrics["recall/pixels"]["real"]
    assert metrics["class_share_gap"]["samples"] > 70
    assert metrics["agreement"]["samples"] < 0.2


def test_copies_show_in_the_neighbours() -> None:
    metrics = verdict("copies")["metrics"]
    assert metrics["nearest_median"]["samples"] == 0
    assert metrics["nearest_median"]["real"] > 0
    assert metrics["nearer_than_real"]["samples"] == 1


def test_further_metrics_tell_the_same_story() -> None:
    """New real images pass, collapse shows in coverage, a fitted Gaussian in density, all of it in KID."""
    real, collapsed, gaussian = (further(kind)["metrics"] for kind in ("real", "collapsed", "gaussian"))
    for name in ("density/pixels", "coverage/pixels"):
        assert real[name]["samples"] == pytest.approx(real[name]["real"], abs=0.1)
    assert abs(real["kid/pixels"]["samples"]) < 0.1 * collapsed["kid/pixels"]["samples"]
    assert collapsed["coverage/pixels"]["samples"] < 0.3 < real["coverage/pixels"]["samples"]
    assert gaussian["density/pixels"]["samples"] < 0.5 * real["density/pixels"]["samples"]
    low, high = collapsed["kid/pixels"]["interval"]
    assert low <= collapsed["kid_all/pixels"]["samples"] <= high


def test_every_metric_has_a_meaning_and_everything_is_json() -> None:
    result, more = verdict("real"), further("real")
    assert all(meaning(name) for name in more["metrics"])
    assert {name.split("/")[0] for name in more["metrics"]} == set(MEANINGS) - {"FID", "sFID", "inception_score"}
    assert further("real")["metrics"] | result["metrics"] == more["metrics"]  # nothing else changes
    assert meaning("nonsense") == ""
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["images"] == {"samples": 400, "real_train": 900, "real_held_out": 400, "frechet": 400}


def test_classes_add_up() -> None:
    table = verdict("real")["classes"]
    assert list(table) == list(Judge.class_names)
    for side in ("samples", "real"):
        assert sum(row[side] for row in table.values()) == pytest.approx(1)
    right = verdict("real")["metrics"]["agreement"]["samples"]
    asked = np.bincount(digits()[1][1300:1700], minlength=10) / 400
    assert sum(row["agreement"] * share for row, share in zip(table.values(), asked, strict=True)) == pytest.approx(
        right
    )


def test_without_classifier_or_labels_their_metrics_are_absent() -> None:
    images, _ = digits()
    new, train, held_out = images[:50], images[50:200], images[200:260]
    plain = quality(new, train, held_out, PixelEncoder(4), repeats=1)
    assert "classes" not in plain and "acceptance" not in plain["metrics"] and "frechet/pixels4" in plain["metrics"]
    unlabelled = quality(new, train, held_out, PixelEncoder(), Judge(), torch.full((50,), -1), repeats=1)
    assert "agreement" not in unlabelled["metrics"] and "acceptance" in unlabelled["metrics"]
    assert not any("agreement" in row for row in unlabelled["classes"].values())


def test_deterministic_in_its_seed() -> None:
    images, _ = digits()
    sets = images[:60], images[60:200], images[200:260]
    one, same = (quality(*sets, PixelEncoder(), repeats=2, seed=3) for _ in range(2))
    other = quality(*sets, PixelEncoder(), repeats=2, seed=4)
    assert one == same != other


def test_fitted_gaussian_has_the_moments() -> None:
    random = np.random.default_rng(0)
    pixels = 128 + 12 * random.standard_normal((500, 6)) @ random.standard_normal((6, 6))
    images = torch.from_numpy(pixels.clip(0, 255).round().astype(np.uint8)).view(500, 1, 2, 3)
    drawn = fitted_gaussian(images, 40_000).flatten(1).numpy()
    real = images.flatten(1).numpy()
    assert drawn.shape == (40_000, 6)
    np.testing.assert_allclose(drawn.mean(0), real.mean(0), atol=1)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(real.T), atol=0.03 * np.cov(real.T).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": torch.zeros(9, 3, 8, 8, dtype=torch.uint8)}, "samples: of shape \\(3, 8, 8\\)"),
        ({"samples": torch.zeros(9, 1, 8, 8)}, "samples: torch.float32"),
        ({"samples": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)}, "only 4 images"),
        ({"real_held_out": torch.zeros(0, 1, 8, 8, dtype=torch.uint8)}, "held-out images"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "one per sample: \\(50,\\)"),
        ({"labels": torch.full((50,), 10)}, "label 10; the classifier knows 10 classes"),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(change: dict[str, Tensor], message: str) -> None:
    class Never(PixelEncoder):
        def embed(self, images: Tensor) -> Tensor:
            raise AssertionError("too late")

    images, _ = digits()
    given: dict[str, Any] = {"samples": images[:50], "real_train": images[50:99], "real_held_out": images[99:150]}
    with pytest.raises(UserError, match=message):
        quality(**given | change, encoder=Never(), classifier=Judge())
