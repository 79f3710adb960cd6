"""IDDM's tables of noise: end values, where they begin, and the grids of steps through them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from twofold.errors import UserError
from twofold.generate.grids import respaced_grid
from twofold.noise import VP, alpha_bar, family, grid
from twofold.settings.noise import VPNoise


def table(**options: object) -> VP:
    found = family(VPNoise(**options))  # type: ignore[arg-type]
    assert isinstance(found, VP)
    return found


def test_the_linear_table_is_the_published_one() -> None:
    abar = alpha_bar(VPNoise())
    published = {0: 0.9999, 1: 0.99978, 951: 1.04e-4, 981: 5.8e-5, 999: 4.0e-5}
    for t, value in published.items():
        assert abar[t] == pytest.approx(value, rel=1e-2 if value < 0.1 else 1e-5)
    assert table().sigma_range == pytest.approx((0.010000, 157.407), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "beta"),
    [
        ("sqrt_linear", lambda i: (0.01 + (math.sqrt(0.02) - 0.01) * i / 999) ** 2),
        ("sqrt", lambda i: math.sqrt(1e-4 + (0.02 - 1e-4) * i / 999)),
    ],
)
def test_roots(name: str, beta) -> None:  # type: ignore[no-untyped-def]
    betas = np.array([beta(i) for i in range(1000)])
    log_abar = np.log1p(-betas).cumsum()
    np.testing.assert_allclose(np.log(alpha_bar(VPNoise(table=name))), log_abar, rtol=1e-9)  # type: ignore[arg-type]
    vp = table(table=name)
    expected = np.sqrt(np.expm1(-log_abar[[0, -1]]))
    np.testing.assert_allclose(vp.sigma_range, expected, rtol=1e-9)
    t = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(vp.t(vp.sigma(t)), t, rtol=0, atol=1e-6)


def test_training_and_sampling_begin_at_the_first_entry() -> None:
    vp, whole = table(first=1), table()
    assert vp.sigma_range == (float(whole.sigma(1)), float(whole.sigma(999)))
    u = (torch.arange(999, dtype=torch.float64) + 0.5) / 999
    torch.testing.assert_close(vp.t(vp.training_sigma(u)), torch.arange(1.0, 1000.0, dtype=torch.float64))
    assert float(vp.t(vp.training_sigma(torch.tensor([0.0])))) == 1
    assert float(vp.t(vp.training_sigma(torch.tensor([1 - 1e-12], dtype=torch.float64)))) == 999
    with pytest.raises(UserError, match="outside"):
        vp.check(whole.sigma(0))


@pytest.mark.parametrize(("steps", "last"), [(20, 951), (50, 981), (999, 999)])
def test_iddms_ddim_steps(steps: int, last: int) -> None:
    """1, 1 + 1000 / steps, ... as IDDM walks them, from 951 and 981 on."""
    vp = table(first=1)
    times = vp.t(grid(vp, steps, "ddim")[:-1])
    assert times[0] == last and times[-1] == 1
    assert set((times[:-1] - times[1:]).tolist()) == {float(1000 // steps)}


def test_other_grids_stay_within_the_table() -> None:
    vp = table(first=1)
    for found in (grid(vp, 7, "time"), grid(vp, 7, "karras"), grid(vp, 7, "log"), respaced_grid(vp, "25")):
        vp.check(found[:-1])
        assert float(vp.t(found[-2])) == pytest.approx(1) and found[-1] == 0
    assert len(respaced_grid(vp, 999)) == 1000
    with pytest.raises(UserError, match="more than the 999 entries"):
        grid(vp, 1000, "ddim")


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValidationError, match=r"first=999 leaves no two of the 1000 entries"):
        VPNoise(first=999)
    with pytest.raises(ValidationError, match="table=continuous has none"):
        VPNoise(first=1, table="continuous")


def test_settings_of_before_are_written_as_before() -> None:
    assert "first" not in VPNoise().model_dump() and VPNoise(first=1).model_dump()["first"] == 1
