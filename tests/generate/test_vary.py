"""Variations: nothing changes at strength 0, nothing is left at 1, and one Gaussian has a closed form between them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from twofold.errors import UserError
from twofold.generate import plan
from twofold.generate.given import options_of_part
from twofold.generate.invert import strength_sigma
from twofold.generate.vary import levels_below, solver_steps, vary, varying
from twofold.oracle import MixtureDenoiser


def mixture() -> MixtureDenoiser:
    means = 1.2 * torch.rand((5, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.6
    return MixtureDenoiser(means, [0.2] * 5, [1.0] * 5)


def drawn(model: MixtureDenoiser, n: int = 6) -> Tensor:
    return model.codec.decode(model.sample(n, torch.Generator().manual_seed(1)))


def test_strength_zero_is_the_image_and_more_changes_more() -> None:
    model = mixture()
    images = drawn(model)
    assert torch.equal(vary(model, images, 0), images)
    change = [(vary(model, images, s).double() - images.double()).square().mean() for s in (0.1, 0.3, 0.5, 0.7, 1.0)]
    assert all(a < b for a, b in pairwise(change))


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    model = mixture()
    images = drawn(model)
    whole = vary(model, images, 0.5, seeds=range(6), label=2, micro_batch=4)
    assert torch.equal(vary(model, images[4:5], 0.5, seeds=[4], label=2, micro_batch=4)[0], whole[4])
    assert not torch.equal(vary(model, images[4:5], 0.5, seeds=[5], label=2, micro_batch=4)[0], whole[4])


def test_steps_end_in_the_result() -> None:
    model = mixture()
    images, made = drawn(model, 3), plan(model, micro_batch=4)
    steps = list(varying(model, made, images, [0, 1, 2], 0.6))
    assert [step.index for step in steps] == [*range(solver_steps(made, 0.6, model.sigma_range) + 1)]
    assert torch.equal(steps[-1].images, vary(model, images, 0.6, micro_batch=4))
    assert len(list(varying(model, made, images, [0, 1, 2], 0))) == 1
    assert [s.images is None for s in varying(model, made, images, [0, 1, 2], 0.6, previews=False)].count(False) == 1


def test_levels_are_those_of_the_plan_below_the_strength() -> None:
    model = mixture()
    made = plan(model, steps=20)
    levels = levels_below(made, 0.5, model.sigma_range)
    assert float(levels[0]) == pytest.approx(strength_sigma(0.5, model.sigma_range)) and float(levels[-1]) == 0
    assert set(levels[1:].tolist()) <= set(made.sigmas.tolist()) and bool((levels[1:] < levels[:-1]).all())


def test_of_one_gaussian_it_is_the_closed_form() -> None:
    """From x = x0 + sigma z the ODE ends in mean + (x - mean) std / sqrt(std^2 + sigma^2)."""
    model = MixtureDenoiser(torch.full((1, 1, 4, 4), 0.1), [0.2], [1.0])
    images, strength = drawn(model, 1).expand(256, -1, -1, -1), 0.5
    sigma = strength_sigma(strength, model.sigma_range)
    found = model.codec.encode(vary(model, images, strength, seeds=256, steps=200, clip=False)).double()
    shrink = 0.2 / (0.04 + sigma**2) ** 0.5
    x0 = model.codec.encode(images[:1]).double()[0]
    assert torch.allclose(found.mean(0), 0.1 + shrink * (x0 - 0.1), atol=4 * sigma * shrink / 16 + 0.005)
    assert found.std(0).mean().item() == pytest.approx(sigma * shrink, rel=0.03)


def test_churn_is_that_of_the_whole_way() -> None:
    """s_churn is spread over all steps, of which a variation takes the last ones: with 4 of 8 it gets half of it."""
    model = mixture()
    made = plan(model, "heun", 8, s_churn=2.0)
    part = options_of_part(made, 4)
    assert part["s_churn"] / 4 == made.options["s_churn"] / 8
    assert {k: v for k, v in part.items() if k != "s_churn"} == {
        k: v for k, v in made.options.items() if k != "s_churn"
    }


@pytest.mark.parametrize("strength", [-0.1, 1.5, "much", float("nan")])
def test_strengths_that_cannot_be(strength: object) -> None:
    model = mixture()
    with pytest.raises(UserError, match="not a strength; 0 .the image itself. to 1"):
        vary(model, drawn(model), strength)  # type: ignore[arg-type]
