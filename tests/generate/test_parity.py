"""The samplers against the schedulers of diffusers (0.42), in float64, with the same noise.

A scheduler works on x_vp = x / sqrt(1 + sigma^2) and on the network's eps; ours on x and x0_hat. The denoiser is the
exact one of a mixture, so every step matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from twofold.generate.guidance import clipped
from twofold.generate.samplers import SAMPLERS, Denoise, final
from twofold.noise import VP, alpha_bar, ddim_grid, family
from twofold.oracle import MixtureDenoiser
from twofold.settings.noise import VPNoise

diffusers = pytest.importorskip("diffusers")

SHAPE = (6, 1, 4, 4)
STEPS = 50
TABLE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


@pytest.fixture(scope="module")
def vp() -> VP:
    made = family(VPNoise())
    assert isinstance(made, VP)
    return made


@pytest.fixture(scope="module")
def oracle() -> MixtureDenoiser:
    means = torch.randn((5, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MixtureDenoiser(means, [0.2, 0.3, 0.4, 0.5, 0.6], [1.0] * 5)


def in_float64(scheduler: Any) -> Any:
    """The same scheduler on the same table, not rounded to float32."""
    scheduler.alphas_cumprod = torch.from_numpy(alpha_bar(VPNoise()))
    return scheduler


def sampled_by(
    scheduler: Any, denoise: Denoise, vp: VP, start: Tensor, seed: int = 1, **step: Any
) -> tuple[Tensor, list[float]]:
    """diffusers' loop: the final sample in our frame (at sigma 0 the frames agree), and the sigmas it visited."""
    x, generator, visited = start, torch.Generator().manual_seed(seed), []
    if step.pop("draws", True):
        step["generator"] = generator
    for t in scheduler.timesteps:
        sigma = vp.sigma(t)
        visited.append(float(sigma))
        ours = x * (1 + sigma**2).sqrt()
        eps = (ours - denoise(ours, sigma)) / sigma
        x = scheduler.step(eps, t, x, **step).prev_sample
    return x, visited


def start_noise() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def recorded(seed: int = 1) -> Callable[[], Tensor]:
    """The noise a scheduler draws from a generator of this seed, in the same order."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def compare(theirs: Tensor, visited: list[float], name: str, denoise: Denoise, vp: VP, **options: Any) -> None:
    sigmas = ddim_grid(vp, STEPS)
    assert visited == pytest.approx(sigmas[:-1].tolist(), rel=1e-12)
    x = start_noise() * vp.start_scale(float(sigmas[0]))
    ours = final(SAMPLERS[name].function(denoise, x, sigmas, recorded(), **options))
    assert float(ours.std()) > 0.3  # something was sampled
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(vp: VP, oracle: MixtureDenoiser, variance: str, clip: bool) -> None:
    scheduler = in_float64(
        diffusers.DDPMScheduler(
            **TABLE, variance_type=f"fixed_{variance}", clip_sample=clip, timestep_spacing="leading"
        )
    )
    scheduler.set_timesteps(STEPS)
    theirs, visited = sampled_by(scheduler, oracle.denoise, vp, start_noise())
    denoise = clipped(oracle.denoise) if clip else oracle.denoise
    compare(theirs, visited, "ddpm", denoise, vp, variance=variance)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim(vp: VP, oracle: MixtureDenoiser, eta: float, clip: bool) -> None:
    scheduler = in_float64(diffusers.DDIMScheduler(**TABLE, clip_sample=clip, timestep_spacing="leading"))
    scheduler.set_timesteps(STEPS)
    # with use_clipped_model_output their eps belongs to the clipped x0, as ours always does
    theirs, visited = sampled_by(scheduler, oracle.denoise, vp, start_noise(), eta=eta, use_clipped_model_output=clip)
    denoise = clipped(oracle.denoise) if clip else oracle.denoise
    compare(theirs, visited, "ddim", denoise, vp, eta=eta)


def test_dpmpp2m(vp: VP, oracle: MixtureDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = in_float64(
        diffusers.DPMSolverMultistepScheduler(
            **TABLE, solver_order=2, algorithm_type="dpmsolver++", final_sigmas_type="zero"
        )
    )
    sigmas = ddim_grid(vp, STEPS)
    scheduler.set_timesteps(timesteps=[int(t) for t in vp.t(sigmas[:-1])])
    torch.testing.assert_close(scheduler.sigmas.double(), sigmas, rtol=1e-6, atol=0)
    scheduler.sigmas = sigmas
    monkeypatch.setattr(torch, "float32", torch.float64)  # its step casts the sample to float32
    theirs, visited = sampled_by(scheduler, oracle.denoise, vp, start_noise(), draws=False)
    compare(theirs, visited, "dpmpp2m", oracle.denoise, vp)


def test_euler(vp: VP, oracle: MixtureDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its states are in our frame already: it divides by sqrt(1 + sigma^2) in `scale_model_input`."""
    scheduler = in_float64(diffusers.EulerDiscreteScheduler(**TABLE, timestep_spacing="leading"))
    scheduler.set_timesteps(STEPS)
    sigmas = ddim_grid(vp, STEPS)
    torch.testing.assert_close(scheduler.sigmas.double(), sigmas, rtol=1e-6, atol=0)
    scheduler.sigmas = sigmas
    monkeypatch.setattr(torch, "float32", torch.float64)  # its step casts the sample to float32
    x, visited = start_noise() * vp.start_scale(float(sigmas[0])), []
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        visited.append(float(sigma))
        torch.testing.assert_close(scheduler.scale_model_input(x, t), x / (1 + sigma**2).sqrt())
        x = scheduler.step((x - oracle.denoise(x, sigma)) / sigma, t, x).prev_sample
    compare(x, visited, "euler", oracle.denoise, vp)
