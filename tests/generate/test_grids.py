"""Respaced tables and the nodes of DPM-Solver-fast, against hand computations and properties."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.errors import UserError
from twofold.generate.grids import fast_grid, is_respacing, respaced_grid, respaced_times
from twofold.generate.samplers import SAMPLERS, fast_orders, final
from twofold.noise import alpha_bar, ddim_grid, family, log_grid
from twofold.oracle import MixtureDenoiser
from twofold.settings.noise import EDMNoise, FlowNoise, VPNoise


def test_kept_times_by_hand() -> None:
    # 100 times in three sections of 34, 33, 33 from 0, 34, 67: strides 33/1, 32/2, 32/3
    assert respaced_times(100, "2,3,4") == [0, 33, 34, 50, 66, 67, 78, 88, 99]
    assert respaced_times(10, "1,1") == [0, 5]
    assert respaced_times(10, "5") == [0, 2, 4, 7, 9]  # 2.25, 4.5 (to the even 4), 6.75
    assert respaced_times(10, 10) == respaced_times(10, "ddim10") == list(range(10))
    assert respaced_times(1000, "ddim25") == list(range(0, 1000, 40))
    assert respaced_times(1000, "ddim30") == list(range(0, 1000, 34))  # not 33, which the grid "ddim" takes
    # 1000 in sections of 334, 333, 333: strides 37, 332/14, 332/19
    times = respaced_times(1000, "10, 15, 20")
    assert times[:10] == [0, 37, 74, 111, 148, 185, 222, 259, 296, 333]
    assert times[10:13] == [334, 358, 381]
    assert times[24:27] == [666, 667, 684]
    assert times[-1] == 999


@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=5), total=st.integers(100, 1200))
def test_sections_are_spread_over_their_whole(counts: list[int], total: int) -> None:
    times = respaced_times(total, ",".join(map(str, counts)))
    assert len(times) == sum(counts)
    assert all(a < b for a, b in pairwise(times))
    size, longer = divmod(total, len(counts))
    start = 0
    for i, count in enumerate(counts):
        length = size + (i < longer)
        kept = [t for t in times if start <= t < start + length]
        assert len(kept) == count
        assert kept[0] == start
        if count > 1:
            assert kept[-1] == start + length - 1
            gaps = [b - a for a, b in pairwise(kept)]
            assert max(gaps) - min(gaps) <= 1
        start += length


@given(stride=st.integers(1, 500))
def test_ddim_keeps_every_kth_time(stride: int) -> None:
    count = len(range(0, 1000, stride))
    times = respaced_times(1000, f"ddim{count}")
    assert len(times) == count
    assert len({b - a for a, b in pairwise(times)}) <= 1
    assert times[0] == 0


def test_a_respaced_grid_holds_the_kept_levels() -> None:
    vp = family(VPNoise())
    grid = respaced_grid(vp, "10,20,30")
    assert grid.dtype == torch.float64
    assert len(grid) == 61
    assert grid[-1] == 0
    bar = torch.from_numpy(alpha_bar(VPNoise()))[respaced_times(1000, "10,20,30")[::-1]]
    torch.testing.assert_close(grid[:-1], ((1 - bar) / bar).sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(respaced_grid(vp, "ddim50"), ddim_grid(vp, 50), rtol=0, atol=0)
    assert float(respaced_grid(vp, 40)[0]) == pytest.approx(vp.sigma_range[1], rel=1e-12)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("ddim333", "grid=ddim333: no whole stride keeps 333 of 1000 times"),
        ("600,600", "grid=600,600: 600 times of a section of 500; give 1 to 500"),
        ("10,0", "grid=10,0: 0 times of a section of 500"),
        (1001, "grid=1001: 1001 times of a section of 1000"),
        ("ddim", "grid=ddim: not a respacing; write ddim25, 250 or 10,15,20"),
        ("a,b", "grid=a,b: not a respacing"),
        ("10,,20", "not a respacing"),
        (-3, "grid=-3: not a respacing"),
    ],
)
def test_what_a_table_cannot_give(sections: int | str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        respaced_grid(family(VPNoise()), sections)


def test_only_discrete_tables_are_respaced() -> None:
    for settings in (EDMNoise(), FlowNoise(), VPNoise(table="continuous")):
        with pytest.raises(UserError, match="grid=ddim25: this model has no discrete table"):
            respaced_grid(family(settings), "ddim25")


def test_names_of_respacings() -> None:
    assert all(is_respacing(text) for text in ("ddim25", "250", "10,15,20", "10, 15"))
    assert not any(is_respacing(text) for text in ("ddim", "karras", "log", "", "10,", "time", "ddim25,10"))


@pytest.mark.parametrize("evaluations", [1, 2, 3, 4, 5, 20, 25, 50])
def test_nodes_of_fast(evaluations: int) -> None:
    """Its steps are equally long in ln sigma, and each is cut evenly."""
    grid = fast_grid(evaluations, 0.01, 100.0)
    assert len(grid) == evaluations + 1
    assert (float(grid[0]), float(grid[-1])) == (100.0, 0.01)
    orders, at = fast_orders(evaluations), 0
    whole = (grid[0] / grid[-1]).log() / len(orders)
    for order in orders:
        gaps = -grid[at : at + order + 1].log().diff()
        torch.testing.assert_close(gaps, (whole / order).expand(order), rtol=1e-9, atol=0)
        at += order
    with pytest.raises(UserError, match="evaluations=0"):
        fast_grid(0, 0.01, 100.0)


def test_fast_on_its_own_grid_has_the_orders_of_its_steps() -> None:
    """On its published nodes the steps of order 3 have r1 = 1/3 and r2 = 2/3; 50 evaluations, 17 steps."""
    oracle = MixtureDenoiser(torch.linspace(-1, 1, 9).view(1, 1, 3, 3), [0.4], [1.0])
    x = 20 * torch.randn((4, 1, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = oracle.exact(x, 20.0, 0.05)
    for name in ("dpm_fast", "dpmpp_fast"):
        errors = {}
        for evaluations in (26, 50, 98):
            found = list(SAMPLERS[name].function(oracle.denoise, x, fast_grid(evaluations, 0.05, 20.0)))
            assert len(found) == evaluations + 1
            errors[evaluations] = float((found[-1].x - exact).abs().max())
        assert errors[98] < errors[50] < errors[26]
        assert errors[50] < 0.01
        plain = final(SAMPLERS["ddim"].function(oracle.denoise, x, log_grid(51, 0.05, 20.0)[:-1]))
        assert errors[50] < 0.2 * float((plain - exact).abs().max())
