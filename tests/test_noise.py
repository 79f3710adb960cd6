"""Noise families against published tables, closed forms and diffusers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofold.errors import UserError
from twofold.noise import (
    GRIDS,
    VP,
    Family,
    add,
    alpha_bar,
    as_sigma,
    ddim_grid,
    expand,
    family,
    grid,
    karras_grid,
    log_grid,
    loss_weight,
    time_grid,
)
from twofold.settings.noise import EDMNoise, FlowNoise, NoiseSettings, VPNoise

TABLES = ("linear", "joint", "cosine", "scaled_linear", "continuous")
FAMILIES: dict[str, NoiseSettings] = {
    **{f"vp-{table}-eps": VPNoise(table=table) for table in TABLES},
    "vp-v": VPNoise(predicts="v"),
    "vp-x0": VPNoise(predicts="x0"),
    "edm": EDMNoise(),
    "edm-other": EDMNoise(sigma_data=1.3, sigma_min=0.01, sigma_max=20),
    "flow": FlowNoise(),
    "flow-uniform": FlowNoise(training="uniform", time_scale=1.0),
}
each_family = pytest.mark.parametrize("name", FAMILIES)
each_table = pytest.mark.parametrize("table", TABLES)


def vp(**settings: object) -> VP:
    made = family(VPNoise(**settings))  # type: ignore[arg-type]
    assert isinstance(made, VP)
    return made


def levels(f: Family, n: int = 41) -> Tensor:
    low, high = f.sigma_range
    return torch.linspace(math.log(low), math.log(high), n, dtype=torch.float64).exp().clamp(low, high)


# -- published numbers -------------------------------------------------------------------------------------------


def test_ddpm_table() -> None:
    """DDAE's levels of the linear table; its t counts from 1."""
    f = vp()
    assert alpha_bar(VPNoise())[-1] == pytest.approx(4.0358e-5, rel=1e-4)
    published = {1: 0.0100, 6: 0.0300, 11: 0.0469, 16: 0.0632, 21: 0.0794, 31: 0.1115, 51: 0.176, 101: 0.342}
    published |= {201: 0.724, 500: 3.42, 1000: 157.0}
    for t, sigma in published.items():
        assert float(f.sigma(t - 1)) == pytest.approx(sigma, rel=3e-3)
    assert f.sigma_range == pytest.approx((0.010000, 157.407), rel=1e-4)
    for t, value in {0: 0.9999, 1: 0.99978, 951: 1.04e-4, 981: 5.8e-5, 999: 4.0e-5}.items():
        assert alpha_bar(VPNoise())[t] == pytest.approx(value, rel=1e-2)


def test_joint_table() -> None:
    assert alpha_bar(VPNoise(table="joint"))[-1] == pytest.approx(2.5652e-5, rel=1e-4)
    low, high = vp(table="joint").sigma_range
    assert (low, high) == (pytest.approx(0.0316, rel=2e-3), pytest.approx(197, rel=5e-3))
    low, high = vp(table="joint", steps=500).sigma_range  # betas 0.002 .. 0.04
    assert (low, high) == (pytest.approx(0.0448, rel=2e-3), pytest.approx(205, rel=5e-3))


def test_stable_diffusion_table() -> None:
    assert vp(table="scaled_linear").sigma_range == pytest.approx((0.029167, 14.614641), rel=1e-4)


def test_dpt_continuous_table() -> None:
    f = vp(table="continuous", t_min=1e-4)
    for t, sigma in {1e-4: 0.003178, 1e-3: 0.010486, 1.0: 152.167}.items():
        assert float(f.sigma(999 * t)) == pytest.approx(sigma, rel=1e-3)
        back = (-0.1 + math.sqrt(0.01 + 39.8 * math.log1p(float(f.sigma(999 * t)) ** 2))) / 19.9
        assert float(f.t(f.sigma(999 * t))) == pytest.approx(999 * back, rel=1e-9)
        assert back == pytest.approx(t, rel=1e-9)


def test_cosine_table_follows_its_formula() -> None:
    f = lambda t: math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    found = alpha_bar(VPNoise(table="cosine"))
    for t in (0, 10, 500, 900):
        assert found[t] == pytest.approx(f(t + 1) / f(0), rel=1e-9)
    assert 1 - found[-1] / found[-2] == pytest.approx(0.999)


EDM_18 = [
    *(80, 57.5860, 40.7856, 28.3746, 19.3525, 12.9101, 8.4009, 5.3152, 3.2568),
    *(1.9233, 1.0882, 0.5853, 0.2964, 0.1395, 0.0599, 0.0229, 0.0075, 0.0020, 0),
]


def test_edm_grid_of_18_steps() -> None:
    sigmas = karras_grid(18, 0.002, 80)
    assert sigmas.dtype == torch.float64
    assert sigmas.tolist() == pytest.approx(EDM_18, rel=1e-3, abs=5e-5)
    assert torch.equal(grid(family(EDMNoise()), 18), sigmas)


@pytest.mark.parametrize(
    ("table", "schedule", "ends"),
    [
        ("linear", "linear", (1e-4, 0.02)),
        ("scaled_linear", "scaled_linear", (0.00085, 0.012)),
        ("cosine", "squaredcos_cap_v2", (1e-4, 0.02)),
    ],
)
def test_tables_are_those_of_diffusers(table: str, schedule: str, ends: tuple[float, float]) -> None:
    schedulers = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    theirs = schedulers.DDPMScheduler(beta_start=ends[0], beta_end=ends[1], beta_schedule=schedule)
    ours = alpha_bar(VPNoise(table=table))  # type: ignore[arg-type]
    # theirs is float32, a product of 1000 rounded factors
    np.testing.assert_allclose(ours, theirs.alphas_cumprod.double().numpy(), rtol=2e-4 if table == "cosine" else 5e-5)


def test_linear_table_is_diffusers_in_float64() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(torch.from_numpy(alpha_bar(VPNoise())), torch.cumprod(1 - betas, 0), rtol=1e-12, atol=0)


# -- sigma <-> t -------------------------------------------------------------------------------------------------


@each_table
@given(share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_time_and_sigma_are_inverse(table: str, share: float) -> None:
    f = vp(table=table)
    low = 999 * 1e-3 if table == "continuous" else 0.0
    t = low + share * (999 - low)
    sigma = f.sigma(t)
    assert float(f.t(sigma)) == pytest.approx(t, abs=1.01e-4)  # the snap to integers moves t by at most 1e-4
    assert float(f.sigma(f.t(sigma))) == pytest.approx(float(sigma), rel=5e-4)  # which is that much at most


@pytest.mark.parametrize("table", [table for table in TABLES if table != "continuous"])
@pytest.mark.parametrize("steps", [1000, 500, 10])
def test_own_levels_come_back_exactly_even_through_float32(table: str, steps: int) -> None:
    f, t = vp(table=table, steps=steps), torch.arange(steps, dtype=torch.float64)
    assert torch.equal(f.t(f.sigma(t)), t)
    assert torch.equal(f.t(f.sigma(t).float()), t)


def test_between_levels_time_is_kept_or_rounded() -> None:
    sigma = vp().sigma([10.3, 10.5, 10.7, 998.9])
    assert vp().t(sigma).tolist() == pytest.approx([10.3, 10.5, 10.7, 998.9], abs=1e-9)
    assert vp(discrete=True).t(sigma).tolist()[::2] == [10, 11]
    assert vp(discrete=True).t(sigma).tolist()[3] == 999


@each_table
def test_sigma_rises_with_time(table: str) -> None:
    t = torch.linspace(1, 999, 5000, dtype=torch.float64)
    assert (vp(table=table).sigma(t).diff() > 0).all()


def test_c_noise_conventions() -> None:
    sigma = vp().sigma([0, 10, 999])
    raw = vp().coefficients(sigma).c_noise
    assert raw.tolist() == [0, 10, 999]  # diffusers, Joint Diffusion
    ddae = vp(time_offset=1, time_scale=1e-3).coefficients(sigma).c_noise
    assert ddae.tolist() == pytest.approx([0.001, 0.011, 1.0], rel=1e-15)
    edm = family(EDMNoise()).coefficients(as_sigma(math.e**2)).c_noise
    assert float(edm) == pytest.approx(0.5)
    flow = family(FlowNoise()).coefficients(as_sigma(1.0)).c_noise
    assert float(flow) == 500
    dpt = vp(table="continuous")
    assert float(dpt.coefficients(dpt.sigma(499.5)).c_noise) == pytest.approx(499.5)
    huge = vp(table="scaled_linear", time_offset=1)
    assert huge.coefficients(huge.sigma(torch.tensor([0.0, 10.0, 999.0]))).c_noise.tolist() == [1, 11, 1000]
    large = vp(table="continuous", t_min=1e-4)
    ends = large.coefficients(torch.tensor(large.sigma_range, dtype=torch.float64)).c_noise
    assert ends.tolist() == pytest.approx([0.0999, 999], rel=1e-9)


# -- coefficients ------------------------------------------------------------------------------------------------


@each_family
def test_network_that_hits_its_target_returns_x0(name: str) -> None:
    f = family(FAMILIES[name])
    sigma = levels(f)
    g = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn((len(sigma), 3, 4, 4), generator=g, dtype=torch.float64) for _ in range(2))
    c = f.coefficients(sigma)
    x0_hat = expand(c.c_skip, x0) * add(x0, noise, sigma) + expand(c.c_out, x0) * f.target(x0, noise, sigma)
    assert ((x0_hat - x0).abs() <= 1e-14 * (1 + expand(sigma, x0))).all()


@each_family
def test_target_in_float32_does_not_cancel(name: str) -> None:
    """At both ends of sigma, where (x0 - c_skip x) / c_out computed in float32 would have lost most of its digits."""
    f = family(FAMILIES[name])
    sigma = torch.tensor([f.sigma_range[0], f.sigma_range[1]], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn((2, 3, 4, 4), generator=g, dtype=torch.float64).float().double() for _ in range(2))
    exact = f.target(x0, noise, sigma)
    single = f.target(x0.float(), noise.float(), sigma)
    assert single.dtype == torch.float32
    assert ((single.double() - exact).abs().max() / exact.abs().max()) < 5e-7
    c = f.coefficients(sigma)
    skipped, added = expand(c.c_skip, single) * add(x0, noise, sigma).float(), expand(c.c_out, single) * single
    size = 1 + skipped.abs() + added.abs()
    assert ((skipped + added - x0.float()).abs() <= 4e-7 * size).all()


@each_family
def test_network_input_and_target_have_the_promised_scale(name: str) -> None:
    """c_in x and the start noise c_in start_scale have unit variance for data of the family's own scale."""
    f = family(FAMILIES[name])
    sd = getattr(f.settings, "sigma_data", 1.0)  # type: ignore[attr-defined]
    sigma = levels(f, 5)
    c = f.coefficients(sigma)
    if name.startswith("flow"):
        torch.testing.assert_close(c.c_in * (1 + sigma), torch.ones_like(sigma))
    else:
        torch.testing.assert_close(c.c_in**2 * (sd**2 + sigma**2), torch.ones_like(sigma))
    high = f.sigma_range[1]
    start = float(f.coefficients(as_sigma(high)).c_in) * f.start_scale(high)
    assert start == pytest.approx(1.0, abs=3e-3)


def test_edm_target_has_unit_variance() -> None:
    f = family(EDMNoise())
    g, n = torch.Generator().manual_seed(0), 100_000
    for sigma in (0.002, 0.5, 80.0):
        x0, noise = (torch.randn((1, n), generator=g, dtype=torch.float64) for _ in range(2))
        target = f.target(0.5 * x0, noise, as_sigma([sigma]))
        assert float(target.var()) == pytest.approx(1, abs=5 * math.sqrt(2 / n))


def test_vp_is_ddpm_in_other_words() -> None:
    """x c_in = sqrt(abar) x0 + sqrt(1 - abar) noise, and x0_hat is DDPM's formula (Ho et al. 2020, eq. 15)."""
    f, abar = vp(), alpha_bar(VPNoise())
    t = [0, 10, 500, 999]
    sigma, abar = f.sigma(t), torch.from_numpy(abar)[t]
    g = torch.Generator().manual_seed(0)
    x0, noise, output = (torch.randn((4, 5), generator=g, dtype=torch.float64) for _ in range(3))
    c = f.coefficients(sigma)
    x = add(x0, noise, sigma)
    x_t = abar.sqrt()[:, None] * x0 + (1 - abar).sqrt()[:, None] * noise
    torch.testing.assert_close(expand(c.c_in, x) * x, x_t, rtol=1e-12, atol=1e-12)
    x0_hat = (x_t - (1 - abar).sqrt()[:, None] * output) / abar.sqrt()[:, None]
    torch.testing.assert_close(expand(c.c_skip, x) * x + expand(c.c_out, x) * output, x0_hat, rtol=1e-11, atol=1e-11)
    alpha, s = abar.sqrt()[:, None], (1 - abar).sqrt()[:, None]
    v = vp(predicts="v")
    torch.testing.assert_close(v.target(x0, noise, sigma), alpha * noise - s * x0, rtol=1e-11, atol=1e-11)


def test_flow_is_rectified_flow_in_other_words() -> None:
    """x c_in = (1 - t) x0 + t noise, and x0_hat = x_t - t v."""
    f = family(FlowNoise())
    t = torch.tensor([0.001, 0.3, 0.999], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    x0, noise, v = (torch.randn((3, 5), generator=g, dtype=torch.float64) for _ in range(3))
    c = f.coefficients(t / (1 - t))
    x, x_t = add(x0, noise, t / (1 - t)), (1 - t)[:, None] * x0 + t[:, None] * noise
    torch.testing.assert_close(expand(c.c_in, x) * x, x_t)
    torch.testing.assert_close(expand(c.c_skip, x) * x + expand(c.c_out, x) * v, x_t - t[:, None] * v)
    torch.testing.assert_close(c.c_noise, 1000 * t)


@each_family
def test_clean_input_is_what_the_network_sees(name: str) -> None:
    f = family(FAMILIES[name])
    x0, sigma = torch.randn(3, 1, 2, 2, dtype=torch.float64), levels(f, 3)
    torch.testing.assert_close(expand(f.coefficients(sigma).c_in, x0) * f.clean(x0, sigma), x0)


@each_family
def test_outside_its_range_a_family_refuses(name: str) -> None:
    f = family(FAMILIES[name])
    low, high = f.sigma_range
    f.check(torch.tensor([low, high]))  # float32, as it arrives from a data loader
    for bad in (0.99 * low, 1.01 * high, 0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match=r"sigma=.*: outside \[.*\]; this model was not trained for it"):
            f.check(torch.tensor([low, bad], dtype=torch.float64))


def test_sigma_is_a_scalar_or_one_per_image() -> None:
    assert float(as_sigma(0.1)) == 0.1  # exactly: a Python number must not pass through float32
    x = torch.ones(2, 1, 3, 3)
    assert add(x, x, 0.5).unique().tolist() == [1.5]
    assert add(x, x, torch.tensor([0.5, 1.0]))[:, 0, 0, 0].tolist() == [1.5, 2.0]
    assert add(x, x, 0.5).dtype == torch.float32
    with pytest.raises(ValueError, match="sigma must be"):
        as_sigma(torch.ones(2, 1))


# -- training ----------------------------------------------------------------------------------------------------


@each_family
@given(u=st.floats(0, 1, exclude_max=True))
@settings(max_examples=25, deadline=None)
def test_training_sigma_lies_in_range_and_rises_with_u(name: str, u: float) -> None:
    f = family(FAMILIES[name])
    pair = f.training_sigma(torch.tensor([0.9 * u, u], dtype=torch.float64))
    f.check(pair)
    assert pair.dtype == torch.float64
    assert pair[0] <= pair[1]


def test_training_distributions() -> None:
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert torch.equal(vp().t(vp().training_sigma(u[50::100])), torch.arange(1000, dtype=torch.float64))
    ln_sigma = family(EDMNoise()).training_sigma(u).log()
    assert float(ln_sigma.mean()) == pytest.approx(-1.2, abs=2e-3)
    assert float(ln_sigma.std()) == pytest.approx(1.2, abs=5e-3)
    uniform = family(FlowNoise(training="uniform")).training_sigma(u)
    t = uniform / (1 + uniform)
    assert float(t.mean()) == pytest.approx(0.5, abs=1e-4)
    assert float(t.var()) == pytest.approx(0.998**2 / 12, rel=1e-3)
    normal = family(FlowNoise()).training_sigma(u)
    assert float(normal.log().std()) == pytest.approx(1, abs=5e-3)  # logit t = ln sigma
    continuous = vp(table="continuous")
    t = continuous.t(continuous.training_sigma(u)) / 999
    assert float(t.mean()) == pytest.approx((1 + 1e-3) / 2, abs=1e-4)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_the_published_ones(gamma: float) -> None:
    """Hang et al. 2023, section 3.4: min(SNR, g) for x0, min(SNR, g)/SNR for eps, min(SNR, g)/(SNR + 1) for v."""
    sigma = levels(vp())
    snr = sigma**-2
    least = snr.clamp(max=gamma)
    for predicts, expected in {"eps": least / snr, "v": least / (snr + 1), "x0": least}.items():
        torch.testing.assert_close(loss_weight(vp(predicts=predicts), sigma, gamma), expected)


@each_family
def test_without_min_snr_every_level_counts_the_same(name: str) -> None:
    f = family(FAMILIES[name])
    assert loss_weight(f, levels(f)).unique().tolist() == [1.0]


def test_edm_weight_is_karras_lambda() -> None:
    f, sigma = family(EDMNoise()), levels(family(EDMNoise()))
    published = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    torch.testing.assert_close(published * f.coefficients(sigma).c_out ** 2, torch.ones_like(sigma))


# -- grids -------------------------------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_grids_descend_within_range_and_end_at_zero(name: str, kind: str, steps: int) -> None:
    f = family(FAMILIES[name])
    if (kind == "time" and name.startswith("edm")) or (kind == "ddim" and not hasattr(f, "table")):
        with pytest.raises(UserError, match="use grid=karras"):
            grid(f, steps, kind)
        return
    if kind == "ddim" and name == "vp-continuous-eps":
        with pytest.raises(UserError, match="no discrete table"):
            grid(f, steps, kind)
        return
    sigmas = grid(f, steps, kind)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float64
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    f.check(sigmas[:-1])
    if kind != "ddim":
        assert float(sigmas[0]) == pytest.approx(f.sigma_range[1])
        assert steps == 1 or float(sigmas[-2]) == pytest.approx(f.sigma_range[0])


def test_ddim_grid_is_the_leading_one() -> None:
    f = vp()
    assert f.t(ddim_grid(f, 100)[:-1]).tolist() == list(range(990, -1, -10))
    assert f.t(ddim_grid(f, 30)[:-1]).tolist() == [33 * k for k in range(29, -1, -1)]  # exactly as many as asked for
    with pytest.raises(UserError, match="steps=1001: more than the 1000 entries"):
        ddim_grid(f, 1001)


def test_time_grid_is_even_in_time() -> None:
    f = vp()
    assert f.t(time_grid(f, 1000)[:-1]).tolist() == list(range(999, -1, -1))
    assert f.t(time_grid(f, 4)[:-1]).tolist() == [999, 666, 333, 0]
    flow = time_grid(family(FlowNoise()), 11)[:-1]
    torch.testing.assert_close((flow / (1 + flow)).diff(), torch.full((10,), -0.0998, dtype=torch.float64))


def test_log_grid_is_even_in_log_sigma() -> None:
    steps = log_grid(9, 0.01, 100.0)[:-1].log().diff()
    torch.testing.assert_close(steps, torch.full((8,), -math.log(1e4) / 8, dtype=torch.float64))


def test_grid_ends_can_be_moved_within_the_range() -> None:
    f = family(EDMNoise())
    assert grid(f, 5, "log", sigma_min=0.1, sigma_max=10.0)[[0, 4]].tolist() == pytest.approx([10, 0.1])
    for arguments, what in (
        ({"sigma_max": 90.0}, "sigma=90: outside"),
        ({"sigma_min": 1e-4}, "sigma=0.0001: outside"),
        ({"sigma_min": 0.0}, "sigma=0: outside"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min=2: not below sigma_max=1"),
    ):
        with pytest.raises(UserError, match=what):
            grid(f, 5, "karras", **arguments)
    with pytest.raises(UserError, match="grid=time: takes no sigma_min"):
        grid(vp(), 5, "time", sigma_min=0.1)
    with pytest.raises(UserError, match="grid=karas: no such grid; valid: karras, log, time, ddim"):
        grid(f, 5, "karas")
    with pytest.raises(UserError, match="steps=0: a grid needs at least one step"):
        grid(f, 0)
