"""Inpainting: what is known stays, what is painted is what an exact posterior says, and what may be asked for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from twofold.errors import UserError
from twofold.generate import plan
from twofold.generate.inpaint import Again, cells, check_mask, decisive, inpaint, inpainting, solver_steps, stretches
from twofold.generate.samplers import SAMPLERS
from twofold.oracle import MixtureDenoiser

SHAPE = (1, 4, 4)


def mixture(k: int = 5, std: float = 0.2, shape: tuple[int, int, int] = SHAPE) -> MixtureDenoiser:
    means = 1.2 * torch.rand((k, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.6
    return MixtureDenoiser(means, [std] * k, [1.0] * k)


def drawn(model: MixtureDenoiser, n: int = 6) -> Tensor:
    return model.codec.decode(model.sample(n, torch.Generator().manual_seed(1)))


def half(height: int = 4, width: int = 4) -> Tensor:
    mask = torch.zeros((height, width), dtype=torch.bool)
    mask[: height // 2] = True
    return mask


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"ddpm"}))
def test_known_pixels_stay_and_the_rest_is_new(sampler: str) -> None:
    model = mixture()
    images = drawn(model)
    found = inpaint(model, images, half(), sampler=sampler, steps=5, repaints=2, micro_batch=4)
    assert found.dtype == torch.uint8 and torch.equal(found[:, :, 2:], images[:, :, 2:])
    assert (found[:, :, :2] != images[:, :, :2]).double().mean() > 0.5


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    model = mixture()
    images, masks = drawn(model), torch.stack([half().roll(k, 0) for k in range(6)])[:, None]
    whole = inpaint(model, images, masks, seeds=range(10, 16), label=[0, 1, 2, 3, 4, -1], micro_batch=4)
    for i in (0, 3, 5):
        one = inpaint(model, images[i : i + 1], masks[i : i + 1], [10 + i], [(0, 1, 2, 3, 4, -1)[i]], micro_batch=4)
        assert torch.equal(one[0], whole[i])
    other = inpaint(model, images[:1], masks[:1], seeds=[11], micro_batch=4)
    assert not torch.equal(other[0], whole[0])


def test_steps_are_counted_and_end_in_the_result() -> None:
    model = mixture()
    images, again = drawn(model, 3), Again(3, 2, (0.2, 4.0))
    made = plan(model, "dpmpp2m", 9, micro_batch=4)
    steps = list(inpainting(model, made, images, half(), [0, 1, 2], again=again))
    assert [step.index for step in steps] == [*range(solver_steps(made, again) + 1)]
    assert all(step.images is not None and step.images.shape == images.shape for step in steps)
    result = inpaint(
        model, images, half(), sampler="dpmpp2m", steps=9, repaints=3, jump=2, interval=(0.2, 4.0), micro_batch=4
    )
    assert torch.equal(steps[-1].images, result)
    bare = list(inpainting(model, made, images, half(), [0, 1, 2], again=again, previews=False))
    assert [step.images is None for step in bare] == [True] * (len(bare) - 1) + [False]


def test_the_route_covers_every_level_once_and_the_interval_again() -> None:
    made = plan(mixture(), "euler", 20)
    for again in (Again(1), Again(4), Again(4, 3), Again(2, 50), Again(3, 1, (1e-9, 1e9)), Again(3, 1, (500.0, 600.0))):
        route = stretches(made, again)
        assert [part[0] for part in route] == [0, *(part[1] for part in route[:-1])] and route[-1][1] == 20
        low, high = again.interval or decisive(made.shape)
        for first, end, times in route:
            inside = [low < float(sigma) <= high for sigma in made.sigmas[first:end]]
            assert all(inside) if times > 1 else again.repaints == 1 or not any(inside)
    assert solver_steps(made, Again(1)) == 20 and decisive((3, 64, 64)) == (0.2, 8.0)


def exact_moments(model: MixtureDenoiser, x0: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the masked pixels (P,), given the others: of the mixture with its posterior weights."""
    means, std = model.means[:, :, mask], float(model.stds[0])
    known = (x0[:, ~mask] - model.means[:, :, ~mask]).square().sum((1, 2))
    weight = torch.softmax(-known / (2 * std**2), 0)[:, None]
    mean = (weight * means[:, 0]).sum(0)
    return mean, std**2 + (weight * (means[:, 0] - mean).square()).sum(0)


def test_repainting_comes_nearer_to_the_exact_posterior() -> None:
    """At equal evaluations, and near to it: one Gaussian's worth of spread in every pixel."""
    model = mixture(6, 0.3)
    x0 = model.sample(1, torch.Generator().manual_seed(4))[0]
    image = model.codec.decode(x0[None])
    mask, n = half(), 512
    mean, variance = exact_moments(model, model.codec.encode(image)[0].double(), mask)

    def error(**how: Any) -> float:
        found = inpaint(model, image.expand(n, -1, -1, -1), mask, range(n), micro_batch=512, clip=False, **how)
        painted = model.codec.encode(found)[:, 0][:, mask].double()
        far = (painted.mean(0) - mean).square() / variance
        return float(far.mean().sqrt())

    often = error(repaints=10, steps=20)
    once = error(repaints=1, steps=solver_steps(plan(model, "euler_ancestral", 20), Again(10)))
    assert often < 0.5 * once and often < 0.15 + 3 / math.sqrt(n)


def test_cells_of_a_latent_are_new_where_any_pixel_is() -> None:
    mask = torch.zeros((1, 1, 8, 8), dtype=torch.bool)
    mask[..., 3, 5] = True
    found = cells(mask, (4, 2, 2))
    assert found.tolist() == [[[[0.0, 1.0], [0.0, 0.0]]]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (half(5, 4), "mask: is 5 x 4, the images are 4 x 4; give (4, 4), or (6, 1, 4, 4)"),
        (half().float(), "mask: is torch.float32; expected bool, True = paint anew"),
        (torch.zeros(4, 4).bool(), "mask of image 0: paints nothing anew; mark what is to be painted"),
        (torch.ones(4, 4).bool(), "mask of image 0: keeps nothing of the image; leave some of it, or use sample"),
    ],
)
def test_masks_that_cannot_be(mask: Tensor, message: str) -> None:
    model = mixture()
    with pytest.raises(UserError) as error:
        inpaint(model, drawn(model), mask)
    assert str(error.value) == message


def test_one_of_several_masks_is_named() -> None:
    masks = torch.stack([half(), torch.zeros(4, 4).bool()])[:, None]
    with pytest.raises(UserError, match="mask of image 1: paints nothing anew"):
        check_mask(masks, (2, 1, 4, 4))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"repaints": 0}, "repaints=0: not a number of times or of steps; 1 or more"),
        ({"jump": 0}, "jump=0: not a number of times or of steps; 1 or more"),
        ({"interval": (2.0, 1.0)}, r"interval=\(2.0, 1.0\): not an interval of sigma"),
        ({"seeds": [1, 2]}, "seeds: 2 for 6 images; give every image its own seed"),
        ({"sampler": "eular"}, "sampler=eular: no such sampler"),
    ],
)
def test_what_cannot_be_asked(how: dict[str, Any], message: str) -> None:
    model = mixture()
    with pytest.raises(UserError, match=message):
        inpaint(model, drawn(model), half(), **how)
    with pytest.raises(UserError, match="this model takes uint8 images of 1 x 4 x 4"):
        inpaint(model, torch.zeros((1, 3, 4, 4), dtype=torch.uint8), half())
