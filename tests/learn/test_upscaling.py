"""Training of super-resolution models: resuming, crops, what is measured, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.batches import Batch
from twofold.learn.crops import cropped
from twofold.learn.objectives import objective
from twofold.run import Run, build, load
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import TINY, same, weights
from .test_resume import Interrupted, die_at

SR: dict[str, Any] = {
    "data": {"flip": True},
    "network": {"attention": [], "classes": 0, "low_factor": 2},
    "objective": {"crop": 6},
}


def settings(**changes: Any) -> TrainSettings:
    return resolve(TrainSettings, [("tiny", TINY), ("sr", SR), ("test", changes)])[0]


def test_killed_and_continued_is_bit_identical(tmp_path: Path) -> None:
    train(settings(), tmp_path / "whole", "cpu")
    with pytest.raises(Interrupted):
        train(settings(), tmp_path / "run", "cpu", die_at(160))
    train(settings(), tmp_path / "run", "cpu")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    rows = [[row for row in Run(tmp_path / name).log() if row["kind"] == "validation"] for name in ("whole", "run")]
    assert rows[0] == rows[1] and rows[0][-1]["psnr"] > 5 and 0 < rows[0][-1]["ssim"] < 1
    assert Run(tmp_path / "whole").result()["metrics"]["best_psnr"] >= rows[0][-1]["psnr"]  # type: ignore[index]
    assert (tmp_path / "whole/snapshots/best-psnr.safetensors").is_file()
    model: Any = load(tmp_path / "whole")
    assert model.low_factor == 2 and model.shape == (1, 8, 8)


def batch(n: int = 3, h: int = 8, w: int = 12) -> Batch:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, h, w), dtype=torch.uint8, generator=g)
    uniforms = torch.rand(n, 5, generator=g, dtype=torch.float64)
    return Batch(images, torch.full((n,), -1), uniforms, torch.randn(n, 1, h, w, generator=g))


def test_crops_are_parts_of_their_images() -> None:
    whole = batch()
    whole.uniforms[:, -2:] = torch.tensor([[0.0, 0.0], [0.999, 0.999], [0.5, 0.25]])
    found = cropped(whole, 4)
    assert found.noise is not None and found.noise.shape == found.images.shape == (3, 1, 4, 4)
    for i, (top, left) in enumerate([(0, 0), (4, 8), (2, 2)]):
        assert torch.equal(found.images[i], whole.images[i, :, top : top + 4, left : left + 4])


def test_training_sees_crops_and_held_out_images_are_whole() -> None:
    made = settings(objective={"crop": 4})
    learned = objective(build(made, (1, 8, 12), []), made.objective)
    assert learned.further == 2
    assert learned.train().noised(batch()).x.shape == (3, 1, 4, 4)
    held_out = learned.eval().noised(batch())
    assert held_out.x.shape == (3, 1, 8, 12) and held_out.cond["low"].shape == (3, 1, 8, 12)


def test_the_low_image_is_made_of_what_is_seen() -> None:
    """Of the mirrored and cropped 8-bit pixels, as a user's file would be."""
    from twofold.codec import PixelCodec
    from twofold.lowres import enlarge, shrink

    made = settings(objective={"crop": None})
    learned = objective(build(made, (1, 8, 12), []), made.objective)
    one = batch()
    low = PixelCodec().encode(shrink(one.images, 2))
    assert torch.equal(learned.noised(one).cond["low"], enlarge(low, 8, 12))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"crop": 3}}, "crop=3 needs network.low_factor, and to be a multiple"),
        ({"objective": {"crop": 4}, "network": {"low_factor": None}}, "crop=4 needs network.low_factor"),
        ({"objective": {"kind": "joint"}}, "low_factor=2 is for super-resolution of pixels"),
        ({"network": {"low_factor": 3}}, "low_factor"),
        ({"data": {"crop_area": [0.8, 1]}}, r"data.crop_area enlarges what it crops.*objective.crop cuts parts"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)


def test_images_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"objective.crop=16: the images have 8x8 pixels"):
        train(settings(objective={"crop": 16}), tmp_path / "a", "cpu")
    with pytest.raises(UserError, match=r"9x9: is no multiple of 2"):
        train(settings(data={"size": 9}), tmp_path / "b", "cpu")


def test_older_settings_keep_their_hash() -> None:
    plain = resolve(TrainSettings, [("tiny", TINY)])[0].model_dump(mode="json")
    assert not {"low_factor", "low_residual"} & set(plain["network"]) and "crop" not in plain["objective"]
