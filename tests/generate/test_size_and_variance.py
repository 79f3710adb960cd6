"""Images of another size than in training, and ancestral sampling with a learned variance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from twofold.denoiser import Cond, NetworkDenoiser
from twofold.errors import UserError
from twofold.generate import plan, sample, trajectory
from twofold.generate.guidance import classifier_guided, clipped, guided
from twofold.generate.produce import produce
from twofold.networks.unet import UNet
from twofold.noise import family
from twofold.oracle import MixtureDenoiser
from twofold.settings.network import UNetSettings
from twofold.settings.noise import VPNoise
from twofold.settings.sample import SampleSettings

UNets = Callable[..., NetworkDenoiser]


class Share(MixtureDenoiser):
    """The oracle with a variance of its own: the same v everywhere, or by label."""

    learns_variance = True
    share: Any = 0.0

    def denoise_and_variance(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
        x0_hat = self.denoise(x, sigma, cond)
        if self.share == "label":
            assert cond is not None
            return x0_hat, cond["label"].to(x).view(-1, 1, 1, 1).expand_as(x)
        return x0_hat, torch.full_like(x, self.share)


def _share(share: Any) -> Share:
    means = 0.5 * torch.randn((3, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = Share(means, [0.1, 0.2, 0.3], [1.0, 2.0, 1.0])
    made.share = share
    return made


@pytest.mark.parametrize("size", [(8, 12), (13, 9), (16, 16)])
def test_a_unet_makes_images_of_other_sizes(unet: UNets, size: tuple[int, int]) -> None:
    denoiser = unet("edm")
    images = sample(denoiser, 3, label=[0, 1, 2], steps=2, size=size, micro_batch=3)
    assert images.shape == (3, 3, *size)
    alone = sample(denoiser, [1], label=[1], steps=2, size=size, micro_batch=3)
    assert torch.equal(alone[0], images[1])
    last = list(trajectory(denoiser, 3, label=[0, 1, 2], steps=2, size=size, micro_batch=3))[-1]
    assert last.images is not None and torch.equal(last.images, images)


def test_the_size_it_was_trained_at_changes_nothing(unet: UNets) -> None:
    denoiser = unet("edm")
    assert torch.equal(sample(denoiser, 2, steps=2), sample(denoiser, 2, steps=2, size=(8, 8)))


def test_a_model_of_one_size_says_so(oracle: MixtureDenoiser, unet: UNets) -> None:
    with pytest.raises(UserError, match=r"size=8x6.*one size.*trained at 4x4"):
        sample(oracle, 1, size=(8, 6))
    with pytest.raises(UserError, match="guide knows one size"):
        plan(unet("edm"), size=(8, 6), guide=oracle.as_classifier())


def test_a_folder_of_another_size(unet: UNets, tmp_path: Path) -> None:
    settings = SampleSettings(n=3, steps=2, size="8x12", micro_batch=2)  # type: ignore[arg-type]
    produce(unet("edm"), tmp_path, settings, "hash")
    with Image.open(tmp_path / "images" / "0" / "0.png") as image:
        assert image.size == (12, 8)


def test_size_in_words() -> None:
    assert SampleSettings(size=16).size == (16, 16)  # type: ignore[arg-type]
    for bad in ("16x", [1, 2, 3], "0x4", 5000):
        with pytest.raises(ValueError, match="size"):
            SampleSettings(size=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(("share", "variance"), [(0.0, "small"), (1.0, "large")])
def test_the_ends_of_a_learned_variance_are_the_fixed_ones(share: float, variance: str) -> None:
    denoiser = _share(share)
    how: dict[str, Any] = {"sampler": "ddpm", "steps": 12, "grid": "log"}
    steps = [list(trajectory(denoiser, 4, **how, **more))[-1].x for more in ({}, {"variance": variance})]
    assert plan(denoiser, **how).options["variance"] == "learned"  # what was learned is used
    assert torch.allclose(steps[0], steps[1], atol=1e-9)


def test_a_learned_variance_has_its_spread() -> None:
    """One step: x' = mean + sqrt(large^v small^(1-v)) n, with the noise that the fixed ones get."""
    ends = []
    for share in (0.0, 1.0, 0.25):
        steps = trajectory(_share(share), 3, sampler="ddpm", steps=2, grid="log", sigma_min=1.0, sigma_max=3.0)
        ends.append([step.x for step in steps][1])
    small, large, quarter = ends
    s, t = 3.0, 1.0
    low, high = (t / s) ** 2 * (s**2 - t**2), (1 + t**2) / (1 + s**2) * (s**2 - t**2)
    noise = (large - small) / (high**0.5 - low**0.5)
    expected = small + noise * (high**0.125 * low**0.375 - low**0.5)
    assert torch.allclose(quarter, expected, atol=1e-9)


def test_guidance_and_clipping_leave_the_variance_alone() -> None:
    denoiser = _share("label")
    label = torch.tensor([1, 2, 0])
    x, sigma = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    plain = guided(denoiser, label, 3.0)(x, sigma)
    both = guided(denoiser, label, 3.0, variance=True)
    pulled = classifier_guided(both, denoiser.as_classifier(), label, 2.0)
    for output, x0_hat in (
        (both(x, sigma), plain),
        (clipped(both, -0.1, 0.1)(x, sigma), plain.clamp(-0.1, 0.1)),
        (
            pulled(x, sigma),
            classifier_guided(guided(denoiser, label, 3.0), denoiser.as_classifier(), label, 2.0)(x, sigma),
        ),
    ):
        assert torch.allclose(output[:, :1], x0_hat)
        assert torch.equal(output[:, 1:], label.double().view(-1, 1, 1, 1).expand(3, 1, 4, 4))


def test_a_network_with_twice_the_outputs(unet: UNets) -> None:
    torch.manual_seed(0)
    settings = UNetSettings(channels=8, multipliers=(1, 2), blocks=1, attention=(), classes=3, learned_variance=True)
    denoiser = NetworkDenoiser(UNet(settings, (3, 8, 8)), family(VPNoise()), (3, 8, 8), 3)
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 4.0])
    x0_hat, v = denoiser.denoise_and_variance(x, sigma)
    assert torch.equal(x0_hat, denoiser.denoise(x, sigma)) and v.shape == x.shape
    assert torch.equal(denoiser.decode(denoiser.encode(x, sigma)), x0_hat)
    variance = denoiser.variance(x, sigma)
    assert bool((variance > 0).all()) and variance.shape == x.shape
    images = [
        sample(denoiser, 3, label=[0, 1, 2], sampler="ddpm", steps=3, guidance=2.0, **more)
        for more in ({}, {"variance": "small"})
    ]
    assert not torch.equal(*images)
    with pytest.raises(UserError, match="learned no variance"):
        sample(unet("vp"), 1, sampler="ddpm", steps=2, variance="learned")


def test_grids_beyond_a_number_of_levels(unet: UNets) -> None:
    denoiser = unet("vp")
    assert len(plan(denoiser, grid="ddim25").sigmas) == 26
    assert len(plan(denoiser, grid="10,15,20", steps=45).sigmas) == 46
    with pytest.raises(UserError, match=r"steps=20.*ddim25 has 25 levels"):
        plan(denoiser, grid="ddim25", steps=20)
    with pytest.raises(UserError, match="no discrete table"):
        plan(unet("edm"), grid="ddim25")
    with pytest.raises(UserError, match=r"grid=cosine.*ddim25"):
        plan(denoiser, grid="cosine")
    with pytest.raises(UserError, match="grid=ddim25: takes no sigma_min or sigma_max"):
        plan(denoiser, grid="ddim25", sigma_min=0.5)
    with pytest.raises(UserError, match="to_zero=false: grid=1 has one level"):
        plan(denoiser, grid="1", to_zero=False)
    with pytest.raises(UserError, match="sigma_min=5: not between 0 and sigma_max=2"):
        plan(denoiser, grid="fast", sigma_min=5.0, sigma_max=2.0)
    fast = plan(denoiser, sampler="dpm_fast", grid="fast", steps=50)
    assert len(fast.sigmas) == 51 and float(fast.sigmas[-1]) == denoiser.sigma_range[0]


@pytest.mark.parametrize("sampler", ["dpmpp2m", "heun", "ddpm", "dpm_fast"])
def test_a_recipe_that_ends_above_zero(unet: UNets, sampler: str, tmp_path: Path) -> None:
    denoiser = unet("edm")
    ends = plan(denoiser, sampler=sampler, grid="log", steps=4, to_zero=False).sigmas
    assert len(ends) == 5 and float(ends[-1]) == pytest.approx(denoiser.sigma_range[0])
    images = sample(denoiser, 2, sampler=sampler, grid="log", steps=4, to_zero=False)
    assert images.shape == (2, 3, 8, 8)
    produce(denoiser, tmp_path, SampleSettings(n=2, sampler=sampler, steps=4, grid="log", to_zero=False), "hash")
    manifest = json.loads((tmp_path / "manifest.json").read_text())["request"]
    assert manifest["to_zero"] is False and manifest["sigma_min"] == pytest.approx(denoiser.sigma_range[0])


def test_sizes_and_labels_as_people_write_them(unet: UNets) -> None:
    denoiser = unet("edm")
    denoiser.class_names = ["cat", "dog", "owl"]
    by_name = sample(denoiser, 2, label=["dog", "owl"], steps=2, size=8)
    assert torch.equal(by_name, sample(denoiser, 2, label=[1, 2], steps=2))
    assert torch.equal(sample(denoiser, 1, label="dog", steps=2), sample(denoiser, 1, label=1, steps=2))
    with pytest.raises(UserError, match=r"label=dgo: no such class; did you mean 'dog'"):
        sample(denoiser, 1, label="dgo")
    for size in ((0, 3), (9, 300_000), (8, 8, 8), 0):
        with pytest.raises(UserError, match="not a size"):
            plan(denoiser, size=size)  # type: ignore[arg-type]
