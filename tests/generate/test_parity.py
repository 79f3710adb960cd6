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

from twofold.generate.grids import respaced_grid, respaced_times
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
    scheduler: Any,
    denoise: Denoise,
    vp: VP,
    start: Tensor,
    seed: int = 1,
    before: Callable[[], None] = lambda: None,
    **step: Any,
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
        before()
        x = scheduler.step(eps, t, x, **step).prev_sample
    return x, visited


def start_noise() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def recorded(seed: int = 1) -> Callable[[], Tensor]:
    """The noise a scheduler draws from a generator of this seed, in the same order."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def ours_on(sigmas: Tensor, name: str, denoise: Denoise, vp: VP, **options: Any) -> Tensor:
    x = start_noise() * vp.start_scale(float(sigmas[0]))
    ours = final(SAMPLERS[name].function(denoise, x, sigmas, recorded(), **options))
    assert float(ours.std()) > 0.3  # something was sampled
    return ours


def compare(theirs: Tensor, visited: list[float], name: str, denoise: Denoise, vp: VP, **options: Any) -> None:
    sigmas = ddim_grid(vp, STEPS)
    assert visited == pytest.approx(sigmas[:-1].tolist(), rel=1e-12)
    torch.testing.assert_close(ours_on(sigmas, name, denoise, vp, **options), theirs, rtol=0, atol=1e-9)


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


def on_grid(scheduler: Any, vp: VP, sigmas: Tensor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scheduler set to visit these levels, in float64 all through: its step casts the sample to float32."""
    scheduler = in_float64(scheduler)
    times = [int(t) for t in vp.t(sigmas[:-1])]
    scheduler.set_timesteps(len(times))
    scheduler.timesteps, scheduler.sigmas = torch.tensor(times), sigmas
    monkeypatch.setattr(torch, "float32", torch.float64)
    return scheduler


MULTISTEP = {
    "dpmpp2m": {"solver_order": 2, "algorithm_type": "dpmsolver++"},
    "dpmpp3m": {"solver_order": 3, "algorithm_type": "dpmsolver++"},
    "dpmpp2m_sde": {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
}


@pytest.mark.parametrize("name", MULTISTEP)
def test_dpm_solver_multistep(vp: VP, oracle: MixtureDenoiser, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(**TABLE, **MULTISTEP[name], final_sigmas_type="zero")
    scheduler = on_grid(scheduler, vp, ddim_grid(vp, STEPS), monkeypatch)
    theirs, visited = sampled_by(scheduler, oracle.denoise, vp, start_noise())
    compare(theirs, visited, name, oracle.denoise, vp)


def test_singlestep_of_order_2(vp: VP, oracle: MixtureDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = diffusers.DPMSolverSinglestepScheduler(**TABLE, solver_order=2, final_sigmas_type="zero")
    scheduler = on_grid(scheduler, vp, ddim_grid(vp, STEPS), monkeypatch)
    theirs, visited = sampled_by(scheduler, oracle.denoise, vp, start_noise(), draws=False)
    compare(theirs, visited, "dpmpp2s", oracle.denoise, vp)


@pytest.mark.parametrize(
    ("name", "order", "kind"),
    [
        ("dpm2", 2, "dpmsolver"),
        ("dpm3", 3, "dpmsolver"),
        ("dpm_fast", 3, "dpmsolver"),
        ("dpmpp_fast", 3, "dpmsolver++"),
    ],
)
def test_singlestep_down_to_the_smallest_level(
    vp: VP, oracle: MixtureDenoiser, monkeypatch: pytest.MonkeyPatch, name: str, order: int, kind: str
) -> None:
    """The noise prediction of diffusers refuses sigma 0. 49 intervals: 16 steps of order 3 and one of order 1.

    Its way to the second node of order 3 is its step of order 2, where the papers integrate a line exactly, which it
    calls "heun" and then also uses, with a parabola, for the end: so it is told to change between the two.
    """
    sigmas = ddim_grid(vp, STEPS)[:-1]
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        **TABLE, solver_order=order, algorithm_type=kind, final_sigmas_type="sigma_min", lower_order_final=True
    )
    scheduler = on_grid(scheduler, vp, sigmas, monkeypatch)

    def as_in_the_papers() -> None:
        inner = order == 3 and scheduler.order_list[scheduler.step_index or 0] == 2
        scheduler.register_to_config(solver_type="heun" if inner else "midpoint")

    theirs, _ = sampled_by(scheduler, oracle.denoise, vp, start_noise(), draws=False, before=as_in_the_papers)
    theirs = theirs * (1 + sigmas[-1] ** 2).sqrt()
    torch.testing.assert_close(ours_on(sigmas, name, oracle.denoise, vp), theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("order", "variant"), [(2, "bh2"), (3, "bh2")])
def test_unipc(vp: VP, oracle: MixtureDenoiser, monkeypatch: pytest.MonkeyPatch, order: int, variant: str) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(**TABLE, solver_order=order, solver_type=variant)
    scheduler = on_grid(scheduler, vp, ddim_grid(vp, STEPS), monkeypatch)
    theirs, visited = sampled_by(scheduler, oracle.denoise, vp, start_noise(), draws=False)
    compare(theirs, visited, "unipc", oracle.denoise, vp, order=order, variant=variant)


@pytest.mark.parametrize(("order", "variant"), [(2, "bh1"), (2, "bh2"), (3, "bh1")])
def test_unipc_down_to_the_smallest_level(
    vp: VP, oracle: MixtureDenoiser, monkeypatch: pytest.MonkeyPatch, order: int, variant: str
) -> None:
    """Theirs with bh1 is not finite at sigma 0, and lowers its order before any end unless told not to."""
    sigmas = ddim_grid(vp, STEPS)[:-1]
    scheduler = diffusers.UniPCMultistepScheduler(
        **TABLE, solver_order=order, solver_type=variant, lower_order_final=False
    )
    scheduler = on_grid(scheduler, vp, sigmas, monkeypatch)
    theirs, _ = sampled_by(scheduler, oracle.denoise, vp, start_noise(), draws=False)
    ours = ours_on(sigmas, "unipc", oracle.denoise, vp, order=order, variant=variant)
    torch.testing.assert_close(ours, theirs * (1 + sigmas[-1] ** 2).sqrt(), rtol=0, atol=1e-9)


def test_plms(vp: VP, oracle: MixtureDenoiser) -> None:
    """Without its Runge-Kutta start; it visits the second level twice. With `set_alpha_to_one` it ends at sigma 0."""
    scheduler = in_float64(diffusers.PNDMScheduler(**TABLE, skip_prk_steps=True, set_alpha_to_one=True))
    scheduler.set_timesteps(STEPS)
    theirs, visited = sampled_by(scheduler, oracle.denoise, vp, start_noise(), draws=False)
    assert visited[1] == visited[2]
    compare(theirs, visited[:1] + visited[2:], "plms", oracle.denoise, vp)


def test_learned_variance(vp: VP, oracle: MixtureDenoiser) -> None:
    """Their network gives v in [-1, 1]; ours has moved it to [0, 1]."""
    scheduler = in_float64(
        diffusers.DDPMScheduler(**TABLE, variance_type="learned_range", clip_sample=False, timestep_spacing="leading")
    )
    scheduler.set_timesteps(STEPS)
    generator, x = torch.Generator().manual_seed(1), start_noise()
    share = torch.linspace(-1, 1, 16, dtype=torch.float64).view(1, 1, 4, 4).expand(SHAPE)
    for t in scheduler.timesteps:
        sigma = vp.sigma(t)
        state = x * (1 + sigma**2).sqrt()
        eps = (state - oracle.denoise(state, sigma)) / sigma
        x = scheduler.step(torch.cat([eps, share], 1), t, x, generator=generator).prev_sample

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.cat([oracle.denoise(x, sigma), (share + 1) / 2], 1)

    visited = [float(vp.sigma(t)) for t in scheduler.timesteps]
    compare(x, visited, "ddpm", denoise, vp, variance="learned")


@pytest.mark.parametrize("sections", ["ddim25", "10,15,20", 30])
def test_posterior_variances_of_respaced_tables(vp: VP, oracle: MixtureDenoiser, sections: int | str) -> None:
    """diffusers given the same times: what a step adds, with x0_hat and noise known, is the posterior's spread."""
    scheduler = in_float64(diffusers.DDPMScheduler(**TABLE, variance_type="fixed_small", clip_sample=False))
    times = respaced_times(1000, sections)[::-1]
    scheduler.set_timesteps(timesteps=times)
    sigmas = respaced_grid(vp, sections)
    zero, one = torch.zeros(SHAPE).double(), torch.ones(SHAPE).double()
    for i, t in enumerate(times[:-1]):
        steps = list(SAMPLERS["ddpm"].function(lambda x, sigma: zero, zero, sigmas[i : i + 2], lambda: one))
        ours = float(steps[-1].x.mean()) ** 2 / (1 + float(sigmas[i + 1]) ** 2)
        assert ours == pytest.approx(float(scheduler._get_variance(t)), rel=1e-9)
    theirs, _ = sampled_by(scheduler, oracle.denoise, vp, start_noise())
    torch.testing.assert_close(ours_on(sigmas, "ddpm", oracle.denoise, vp), theirs, rtol=0, atol=1e-9)


SIGMA_SCHEDULERS = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {"generator": 1}),
    "lms": ("LMSDiscreteScheduler", {"order": 4}),
}


@pytest.mark.parametrize("name", SIGMA_SCHEDULERS)
def test_schedulers_in_sigma(vp: VP, oracle: MixtureDenoiser, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Their states are in our frame already: they divide by sqrt(1 + sigma^2) in `scale_model_input`."""
    kind, step = SIGMA_SCHEDULERS[name]
    if "generator" in step:
        step = {"generator": torch.Generator().manual_seed(step["generator"])}
    scheduler = in_float64(getattr(diffusers, kind)(**TABLE, timestep_spacing="leading"))
    scheduler.set_timesteps(STEPS)
    sigmas = ddim_grid(vp, STEPS)
    torch.testing.assert_close(scheduler.sigmas.double(), sigmas, rtol=1e-6, atol=0)
    scheduler.sigmas = sigmas
    monkeypatch.setattr(torch, "float32", torch.float64)  # a step casts the sample to float32
    x, visited = start_noise() * vp.start_scale(float(sigmas[0])), []
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        visited.append(float(sigma))
        torch.testing.assert_close(scheduler.scale_model_input(x, t), x / (1 + sigma**2).sqrt())
        x = scheduler.step((x - oracle.denoise(x, sigma)) / sigma, t, x, **step).prev_sample
    compare(x, visited, name, oracle.denoise, vp)
