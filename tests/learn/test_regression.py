"""Super-resolution in one pass: what is learned, what is measured, resuming, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.batches import Batch
from twofold.learn.objectives import objective
from twofold.lowres import enlarge, enlarged, shrink
from twofold.measure.fidelity import psnr, ssim
from twofold.networks.rdn import Upscaler
from twofold.run import Run, build, load
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import TINY, same, weights
from .test_resume import Interrupted, die_at

RDN: dict[str, Any] = {
    "data": {"source": "digits", "flip": True},
    "network": {"kind": "rdn", "channels": 8, "growth": 4, "blocks": 1, "dense_layers": 2, "low_factor": 2},
    "objective": {"kind": "regression", "crop": 6},
    "train": {**TINY["train"], "n_images": 128, "preview_images": 1000},
    "validation": {"max_images": 32},
}


def settings(**changes: Any) -> TrainSettings:
    return resolve(TrainSettings, [("rdn", RDN), ("test", changes)])[0]


def batch(n: int = 3, h: int = 8, w: int = 12) -> Batch:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, h, w), dtype=torch.uint8, generator=g)
    return Batch(images, torch.full((n,), -1), torch.rand(n, 5, generator=g, dtype=torch.float64), None)


def test_killed_and_continued_is_bit_identical(tmp_path: Path) -> None:
    train(settings(), tmp_path / "whole", "cpu")
    with pytest.raises(Interrupted):
        train(settings(), tmp_path / "run", "cpu", die_at(96))
    train(settings(), tmp_path / "run", "cpu")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    rows = [[row for row in Run(tmp_path / name).log() if row["kind"] == "validation"] for name in ("whole", "run")]
    assert rows[0] == rows[1] and rows[0][-1]["psnr"] > 5 and 0 < rows[0][-1]["ssim"] < 1
    assert (tmp_path / "whole/snapshots/best-psnr.safetensors").is_file()
    model: Any = load(tmp_path / "whole")
    assert isinstance(model, Upscaler) and model.low_factor == 2 and model.shape == (1, 8, 8)


@pytest.mark.parametrize("distance", ["mse", "l1"])
def test_it_begins_at_bicubic(distance: str) -> None:
    """Loss and measures of an untrained network are those of bicubic enlargement."""
    made, one = settings(objective={"crop": None, "distance": distance}), batch()
    learned = objective(build(made, (1, 8, 12), []), made.objective).eval()
    x0 = one.images.double() / 127.5 - 1
    off = enlarge(shrink(one.images, 2).double() / 127.5 - 1, 8, 12) - x0
    expected = (off.abs() if distance == "l1" else off.square()).flatten(1).mean(1)
    torch.testing.assert_close(learned(one).double(), expected, rtol=1e-4, atol=1e-5)
    bicubic = enlarged(shrink(one.images, 2), 2)  # rounded after either pass: up to a grey level off
    found = torch.stack([psnr(bicubic, one.images), ssim(bicubic, one.images)], 1)
    torch.testing.assert_close(learned.measure(one), found, rtol=2e-2, atol=2e-2)


def test_it_learns() -> None:
    """One batch by heart: what bicubic enlargement lacks becomes less."""
    made, one = settings(objective={"crop": None}), batch()
    torch.manual_seed(0)
    learned = objective(build(made, (1, 8, 12), []), made.objective).train()
    optimizer, losses = torch.optim.Adam(learned.parameters(), 1e-2), []
    for _ in range(20):
        losses.append(learned(one).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_training_sees_crops_and_held_out_images_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    made = settings(objective={"crop": 4})
    model: Any = build(made, (1, 8, 12), [])
    learned, seen = objective(model, made.objective), []
    upscale = model.network.upscale
    monkeypatch.setattr(model.network, "upscale", lambda low: seen.append(tuple(low.shape[2:])) or upscale(low))
    assert learned.further == 2 and not learned.needs_noise
    learned.train()(batch())
    learned.eval()(batch())
    assert seen == [(2, 2), (4, 6)]
    assert learned.pictures(batch()).shape == (3, 1, 8, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"crop": 3}}, r"objective.crop=3 must be a multiple of network.low_factor=2"),
        ({"network": {"kind": "unet"}}, "network.kind=rdn and objective.kind=regression belong together"),
        ({"objective": {"kind": "denoising"}}, "network.kind=rdn and objective.kind=regression belong together"),
        ({"init_from": "runs/a"}, "init_from is for denoisers"),
        ({"lora": {"rank": 2}}, "lora is for denoisers"),
        ({"codec": "runs/a"}, "objective.kind=regression works on pixels"),
        ({"train": {"compile": True}}, "train.compile=true is for denoisers"),
        ({"data": {"crop_area": [0.8, 1]}}, r"data.crop_area enlarges what it crops.*objective.crop cuts parts"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)


def test_nothing_starts_from_it(tmp_path: Path) -> None:
    from twofold.run import save_model

    made = settings()
    model: Any = build(made, (1, 8, 8), [])
    save_model(tmp_path / "model.safetensors", model.network.state_dict(), model, made, 0)
    other = resolve(TrainSettings, [("tiny", TINY), ("test", {"init_from": str(tmp_path / "model.safetensors")})])[0]
    with pytest.raises(UserError, match="is a super-resolution model that draws nothing; give the run of a denoiser"):
        train(other, tmp_path / "run", "cpu")


def test_images_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"objective.crop=16: the images have 8x8 pixels"):
        train(settings(objective={"crop": 16}), tmp_path / "a", "cpu")
    with pytest.raises(UserError, match=r"9x9: is no multiple of 2"):
        train(settings(data={"size": 9}), tmp_path / "b", "cpu")
