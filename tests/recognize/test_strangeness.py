"""Scores of strangeness: their definitions by hand, their limits, and an exact denoiser."""

from __future__ import annotations

import math

import pytest
import torch

from twofold.measure.separation import separation
from twofold.oracle import MixtureDenoiser
from twofold.recognize.strangeness import BY_ANSWERS, by_answers, by_denoising


def test_by_hand() -> None:
    found = by_answers(torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]))
    assert set(found) == set(BY_ANSWERS)
    assert found["max_probability"].tolist() == pytest.approx([0.25, 0.5])
    assert found["energy"].tolist() == pytest.approx([-math.log(4), -math.log(2)])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found["entropy"].tolist() == pytest.approx([entropy, math.log(2)])


def test_one_attribute_is_two_classes() -> None:
    z = torch.randn(50, 1, generator=torch.Generator().manual_seed(0)).double()
    one, two = by_answers(z, multi_label=True), by_answers(torch.cat([torch.zeros_like(z), z], 1))
    for name in BY_ANSWERS:
        assert torch.allclose(one[name], two[name], atol=1e-12), name


def test_several_attributes_are_each_by_itself() -> None:
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).double()
    together = by_answers(z, multi_label=True)
    alone = [by_answers(z[:, k : k + 1], multi_label=True) for k in range(3)]
    assert torch.allclose(together["energy"], sum(one["energy"] for one in alone))  # type: ignore[arg-type]
    for name in ("max_probability", "entropy"):
        assert torch.allclose(together[name], torch.stack([one[name] for one in alone]).mean(0))


@pytest.mark.parametrize("multi_label", [False, True])
def test_very_sure_answers_are_still_told_apart(multi_label: bool) -> None:
    z = torch.tensor([[30.0, -30.0], [45.0, -45.0], [1000.0, -1000.0]])
    found = by_answers(z, multi_label)
    for name, values in found.items():
        assert values.isfinite().all(), name
    assert found["max_probability"][0] > found["max_probability"][1] > 0
    if not multi_label:
        shifted = by_answers(z + 7)
        assert torch.allclose(shifted["max_probability"], found["max_probability"])
        assert torch.allclose(shifted["energy"], found["energy"] - 7)


def test_an_exact_denoiser_knows_its_own() -> None:
    """Images of the mixture and images of noise: the first are as strange as those it learned from, the others are
    told apart."""
    generator = torch.Generator().manual_seed(0)
    means = 0.5 * torch.randn(3, 1, 6, 6, generator=generator, dtype=torch.float64)
    oracle = MixtureDenoiser(means, [0.1] * 3, [1.0] * 3)
    known, own = (oracle.codec.decode(oracle.sample(n, generator)) for n in (80, 60))
    other = torch.randint(0, 256, (60, 1, 6, 6), dtype=torch.uint8, generator=generator)
    steps: list[tuple[int, int]] = []
    inside, outside = by_denoising(oracle, known, (own, other), progress=lambda *at: steps.append(at))
    assert inside.shape == outside.shape == (60,) and inside.dtype == torch.float64
    assert abs(float(inside.mean())) < 0.5 and separation(inside, outside)["auroc"] > 0.99
    assert [done for done, _ in steps] == sorted(done for done, _ in steps) and steps[-1] == (200, 200)
