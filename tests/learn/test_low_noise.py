"""Noise on the small image in training: how much, that the network is told, and that nothing else changes by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from twofold.codec import PixelCodec
from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.learn.batches import U_AUGMENT, Batch
from twofold.learn.lowered import low_draws, lowered
from twofold.learn.objectives import objective
from twofold.learn.training import train
from twofold.lowres import enlarge, shrink
from twofold.run import build
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import TINY

SR: dict[str, Any] = {"network": {"attention": [], "classes": 0, "low_factor": 2, "low_noise": 0.5}}


def settings(**changes: Any) -> TrainSettings:
    return resolve(TrainSettings, [("tiny", TINY), ("sr", SR), ("test", changes)])[0]


def model(**changes: Any) -> NetworkDenoiser:
    torch.manual_seed(0)
    made: Any = build(settings(**changes), (1, 8, 8), [])
    return made


def batch(n: int, columns: int) -> Batch:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(100, 156, (n, 1, 8, 8), dtype=torch.uint8, generator=g)
    uniforms = torch.rand(n, columns, generator=g, dtype=torch.float64)
    return Batch(images, torch.full((n,), -1), uniforms, torch.randn(n, 1, 8, 8, generator=g))


def test_the_noise_is_normal_and_of_the_level_that_is_told() -> None:
    """Divided by its level, what is added to the small images is standard normal."""
    denoiser = model()
    count = low_draws(denoiser, None)
    assert count == 1 + 16
    one = batch(4000, 2 + count)
    one.uniforms[:, 2] /= 4  # levels up to 1/8: nothing is clamped, so the enlarged image is linear in the small one
    found = lowered(denoiser, one, 2)
    torch.testing.assert_close(found["low_noise"], (0.5 * one.uniforms[:, 2]).float())
    u = one.uniforms[:, 3:19].reshape(-1, 1, 4, 4)
    low = PixelCodec().encode(shrink(one.images, 2)).double()
    noise = torch.erfinv(2 * u - 1) * 2**0.5
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    expected = enlarge(low + found["low_noise"].double()[:, None, None, None] * noise, 8, 8)
    torch.testing.assert_close(found["low"].double(), expected, rtol=0, atol=1e-5)


def test_the_ends_of_the_uniform_numbers_are_finite() -> None:
    denoiser = model()
    one = batch(2, low_draws(denoiser, None))
    one.uniforms[:] = torch.tensor([[0.0], [1 - 2.0**-53]], dtype=torch.float64)
    assert lowered(denoiser, one, 0)["low"].isfinite().all()


def test_off_it_is_as_it_was() -> None:
    """No more random numbers, no level, the same network; and on, what came before in an image's numbers stays."""
    off, on = settings(network={"low_noise": 0.0}, objective={"crop": 4}), settings(objective={"crop": 4})
    assert "low_noise" not in off.model_dump(mode="json")["network"]
    plain, noisy = (objective(build(made, (1, 8, 8), []), made.objective).train() for made in (off, on))
    assert (plain.uniforms, plain.further) == (U_AUGMENT + 2, 2)
    assert (noisy.uniforms, noisy.further) == (U_AUGMENT + 2 + 5, 2 + 5)
    assert set(plain.noised(batch(3, plain.uniforms)).cond) == {"low"}
    one = batch(3, noisy.uniforms)
    before = Batch(one.images, one.label, torch.cat([one.uniforms[:, :3], one.uniforms[:, -2:]], 1), one.noise)
    a, b = plain.noised(before), noisy.noised(one)
    assert torch.equal(a.x, b.x) and torch.equal(a.sigma, b.sigma) and not torch.equal(a.cond["low"], b.cond["low"])
    held_out = noisy.eval().noised(batch(3, noisy.uniforms)).cond
    assert set(held_out) == {"low"}  # not noised
    assert torch.equal(held_out["low"], plain.eval().noised(batch(3, plain.uniforms)).cond["low"])


def test_the_network_is_told_the_level() -> None:
    denoiser, x = model().eval(), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for parameter in denoiser.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    low = torch.rand(2, 1, 4, 4)
    none, zero, some = (
        denoiser.denoise(x, 0.5, {"low": low, **({} if level is None else {"low_noise": torch.tensor([level, 0.0])})})
        for level in (None, 0.0, 0.3)
    )
    assert torch.equal(none, zero)
    assert not torch.allclose(none[0], some[0], atol=1e-4) and torch.equal(none[1], some[1])


def test_it_trains(tmp_path: Path) -> None:
    short = {"n_images": 64, "preview_images": 1000, "validate_images": 1000}
    result = train(settings(objective={"crop": 6}, train=short), tmp_path / "run", "cpu")
    assert result["metrics"]["psnr"] > 5


def test_noise_on_nothing() -> None:
    with pytest.raises(UserError, match=r"low_noise=0.5 is noise on a small image; it needs low_factor"):
        settings(network={"low_factor": None})
