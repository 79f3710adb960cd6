"""Counterfactuals: inversion against closed forms, edits of an exact model, and what may be asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor

from twofold.denoiser import JointDenoiser, NetworkDenoiser, State
from twofold.errors import UserError
from twofold.generate.distances import distances
from twofold.generate.edit import LADDER, apply, check_target, edit, is_target, path, recipe
from twofold.generate.invert import STRENGTHS, down_grid, inverted, strength_sigma
from twofold.generate.pull import answers
from twofold.generate.samplers import final, heun
from twofold.oracle import MixtureDenoiser
from twofold.recognize.views import image_noise
from twofold.settings.edit import EditSettings

SHAPE = (1, 4, 4)


class ExactJoint(MixtureDenoiser):
    """A mixture that names its components."""

    multi_label = False

    def read(self, state: State) -> Tensor:
        return state.taps["mid"][:, :, 0, 0]


def exact(spread: float = 0.35, std: float = 0.15) -> ExactJoint:
    means = spread * torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = ExactJoint(means, [std] * 3, [1.0, 1.0, 1.0], labels=False)
    model.class_names = ["a", "b", "c"]
    return model


def drawn(model: MixtureDenoiser, n: int = 12) -> tuple[Tensor, Tensor]:
    """Images of the mixture, and another component for each that they are of."""
    generator = torch.Generator().manual_seed(1)
    label = model.draw_labels(n, generator)
    images = model.codec.decode(model.sample(n, generator, label))
    return images, (answers(model, images).argmax(1) + 1 + torch.arange(n) % 2) % 3


def test_inversion_of_one_gaussian_is_its_closed_form() -> None:
    """Heun's method is of second order: half the step, a quarter of the error."""
    model = MixtureDenoiser(torch.full((1, *SHAPE), 0.2), [0.3], [1.0])
    x0 = torch.randn((4, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = model.exact(x0, 0.02, 3.0)
    errors = []
    for steps in (20, 40, 80):
        x = inverted(lambda x, s: model.denoise(x, s), x0, down_grid(steps, 3.0, 0.02))
        errors.append(float((x - found).abs().max()))
    assert errors[0] < 0.3 and errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3


def test_up_and_down_again_is_the_image() -> None:
    model = exact()
    x0 = model.codec.encode(drawn(model)[0]).double()
    grid = down_grid(80, 2.0, 0.02)
    denoise = lambda x, s: model.denoise(x, s)  # noqa: E731
    assert (final(heun(denoise, inverted(denoise, x0, grid), grid)) - x0).abs().max() < 0.02


def test_strengths_are_levels_within_what_the_model_knows() -> None:
    wide = (0.002, 80.0)
    assert [strength_sigma(s, wide) for s in (0.0, 0.5, 1.0)] == pytest.approx([STRENGTHS[0], 1.0, STRENGTHS[1]])
    assert strength_sigma(1.0, (0.01, 9.0)) == 9.0 and strength_sigma(0.0, (0.1, 9.0)) == 0.1
    with pytest.raises(ValueError, match="not within"):
        strength_sigma(1.1, wide)
    grid = down_grid(10, 2.0, 0.02)
    assert len(grid) == 11 and float(grid[0]) == pytest.approx(2.0) and float(grid[-2]) == pytest.approx(0.02)
    assert torch.allclose(grid[1:-1] / grid[:-2], grid[1] / grid[0]) and float(grid[-1]) == 0
    assert down_grid(10, 0.02, 0.02).tolist() == [0.02, 0.0] == down_grid(1, 0.02, 0.01).tolist()


@pytest.mark.parametrize("guide", ["own", "classifier", "representations"])
def test_an_exact_model_reaches_every_target_and_stays_near(guide: str) -> None:
    model = exact()
    images, target = drawn(model)
    who = model.as_classifier() if guide == "classifier" else guide
    if guide == "classifier":
        who.class_names = list(model.class_names)  # type: ignore[attr-defined]
    found = edit(model, images, target, guide=who, steps=8, confidence=0.9, scale=1.0, margin=0.0)
    assert bool(found.reached.all()) and torch.equal(found.after.argmax(1), target)
    assert bool((found.p_after >= 0.9).all()) and bool((found.p_before < 0.5).all())
    assert torch.equal(answers(model, found.images), found.after)
    whole = edit(model, images, target, guide=who, steps=8, confidence=0.9, scale=1.0, margin=1.0)
    assert bool((found.near.l2 <= whole.near.l2 + 1e-9).all()) and float(found.near.l2.mean()) < float(
        whole.near.l2.mean()
    )
    assert bool((whole.share == 1).all())
    assert found.steps.shape == (12, 8, *SHAPE) and found.step_sigmas.shape == (12, 8)
    assert torch.allclose(found.step_sigmas[:, 0].double(), found.sigma.double())


def test_the_share_that_is_kept_is_the_least() -> None:
    model = exact()
    images, target = drawn(model)
    how: dict[str, Any] = {"guide": "own", "strength": 0.7, "steps": 8, "confidence": 0.9, "scale": 4.0}
    found, whole = edit(model, images, target, margin=0.0, **how), edit(model, images, target, margin=1.0, **how)
    rows = found.reached & (found.share > 1 / 64)
    assert bool(rows.any())
    less = (found.share - 1 / 64).view(-1, 1, 1, 1)  # the last step of the search, on 8-bit images: within rounding
    x0, end = images.double(), whole.images.double()
    nearer = (x0 + (less - 1 / 64) * (end - x0)).round().clamp(0, 255).to(torch.uint8)
    p = answers(model, nearer).softmax(1).gather(1, target[:, None])[:, 0]
    assert bool((p[rows] < 0.93).all())


def test_an_image_that_is_the_target_already_stays() -> None:
    model = exact()
    images, _ = drawn(model)
    found = edit(model, images, answers(model, images).argmax(1), guide="own", steps=8, confidence=0.9)
    assert bool(found.reached.all()) and torch.equal(found.images, images) and float(found.share.max()) == 0


class Stubborn(ExactJoint):
    """Its answers about clean images are what `say` makes of them."""

    def __init__(self, say: Callable[[Tensor], Tensor]) -> None:
        model = exact()
        super().__init__(model.means, model.stds, model.log_weights.exp(), labels=False)
        self.class_names, self.say = ["a", "b", "c"], say

    def image_logits(self, images: Tensor) -> Tensor:
        yes = self.say(images.double().flatten(1).mean(1))
        return torch.stack([yes * 20.0 - 10, torch.zeros(len(images)), torch.zeros(len(images))], 1)


@pytest.mark.parametrize("among", [0, 1])
def test_an_original_that_is_enough_is_taken_back_to_whoever_its_neighbours_are(among: int) -> None:
    """Bright images are the target already, and lose that when they are edited; others never get there."""
    model = Stubborn(lambda bright: (bright > 250).double())
    others, _ = drawn(model, 2)
    images = torch.cat([torch.full((1, *SHAPE), 255, dtype=torch.uint8), others[: 2 * among]])
    found = edit(model, images, 0, guide="own", strength=0.9, steps=4)
    assert bool(found.reached[0]) and float(found.share[0]) == 0 and torch.equal(found.images[0], images[0])
    assert not bool(found.reached[1:].any()) and bool((found.share[1:] == 1).all())


def test_where_an_answer_comes_and_goes_the_whole_change_is_kept() -> None:
    """The answer holds at the end of the change and at its middle, not between: a margin falls into the gap."""
    dark, bright = 20.0, 230.0
    middle, gap = (dark + bright) / 2, (dark + bright) / 2 + 0.25 * (bright - dark) / 2
    model = Stubborn(lambda level: ((level > middle - 2) & ((level - gap).abs() > 15)).double())
    model.denoise = lambda x, sigma, cond=None: torch.full_like(x, 2 * bright / 255 - 1)  # type: ignore[method-assign]
    guide = Stubborn(lambda level: level)
    how = recipe(guide, "own", strength=0.9, steps=1, margin=0.25, asked=model)
    how = replace(how, pull=replace(how.pull, towards=lambda target, scale: model.denoise))
    images = torch.full((2, *SHAPE), int(dark), dtype=torch.uint8)
    found = apply(model, how, images, torch.zeros(2, dtype=torch.int64))
    assert bool(found.reached.all()) and bool((found.share == 1).all()) and bool((found.images == int(bright)).all())


def test_a_classifier_of_some_levels_only_guides_where_it_knows_them() -> None:
    model = exact()
    images, target = drawn(model)
    narrow = model.as_classifier()
    narrow.class_names = list(model.class_names)  # type: ignore[attr-defined]
    narrow.sigma_range = (0.05, 5.0)  # type: ignore[attr-defined]
    found = edit(model, images, target, guide=narrow, steps=6, confidence=0.9)
    assert bool(found.reached.all())


def test_an_edit_does_not_depend_on_its_neighbours() -> None:
    model = exact()
    images, target = drawn(model, 5)
    noise = image_noise(images, SHAPE)
    for noise_of in (None, noise):
        together = edit(model, images, target, guide="own", strength=0.7, steps=4, noise=noise_of)
        apart = edit(model, images, target, guide="own", strength=0.7, steps=4, noise=noise_of, micro_batch=1)
        assert (together.images.int() - apart.images.int()).abs().max() <= 1
        assert torch.equal(together.scale, apart.scale) and torch.equal(together.reached, apart.reached)


def test_the_ladder_stops_at_the_first_rung_that_is_enough() -> None:
    model = exact()
    images, target = drawn(model)
    how = recipe(model, "own", steps=6, confidence=0.9, scale=0.1, margin=1.0, search="first")
    assert len(how.rungs) == len(LADDER) and how.rungs[0][1] == 0.1 * LADDER[0][1]
    found = apply(model, how, images, target)
    alone = [apply(model, replace(how, rungs=(rung,)), images, target) for rung in how.rungs]
    reached = torch.stack([one.reached for one in alone])
    first = [int(column.nonzero()[0]) if bool(column.any()) else len(alone) - 1 for column in reached.T]
    assert len(set(first)) > 1
    for i, k in enumerate(first):
        if reached[k, i]:
            assert (float(found.sigma[i]), float(found.scale[i])) == pytest.approx(how.rungs[k])
            assert torch.equal(found.images[i], alone[k].images[i])


def test_of_all_rungs_the_nearest_that_is_enough_is_kept() -> None:
    model = exact()
    images, target = drawn(model)
    how = recipe(model, "own", steps=4, confidence=0.9, scale=0.5)
    found = apply(model, how, images, target)
    alone = [apply(model, replace(how, rungs=(rung,)), images, target) for rung in how.rungs]
    rms = torch.stack([one.near.rms.masked_fill(~one.reached, 999.0) for one in alone])
    assert bool(found.reached.all()) and torch.allclose(found.near.rms, rms.min(0).values, atol=0.2)
    first = apply(model, replace(how, search="first"), images, target)
    assert float(found.near.rms.mean()) < float(first.near.rms.mean())


def test_a_margin_keeps_more_of_the_change() -> None:
    model = exact()
    images, target = drawn(model)
    shares = [
        edit(model, images, target, guide="own", strength=0.8, steps=4, confidence=0.9, margin=margin).share
        for margin in (0.0, 0.25, 1.0)
    ]
    torch.testing.assert_close(shares[1], shares[0] + 0.25 * (1 - shares[0]))
    assert bool((shares[2] == 1).all()) and float(shares[0].mean()) < 0.9


def test_settings_have_the_defaults_of_the_function() -> None:
    settings, named = EditSettings(to="1"), signature(edit).parameters
    for name in ("strength", "sigma", "scale", "steps", "confidence", "margin", "search", "micro_batch"):
        assert getattr(settings, name) == named[name].default


def test_what_never_arrives_keeps_its_likeliest_attempt() -> None:
    model = exact()
    images, target = drawn(model)
    how = replace(recipe(model, "own", steps=4, confidence=0.9), rungs=((0.5, 0.3), (0.5, 0.2), (0.5, 0.1)))
    found = apply(model, how, images, target)
    never = ~found.reached
    assert bool(never.any())
    assert torch.allclose(found.scale[never], torch.tensor(0.3)) and bool((found.share[never] == 1).all())


def test_one_strength_or_level_is_one_attempt() -> None:
    model = exact()
    assert recipe(model, "own", strength=0.5, scale=3.0).rungs == ((pytest.approx(1.0), 3.0),)
    assert recipe(model, "own", strength=0.5, sigma=2.0, scale=3.0).rungs == ((2.0, 3.0),)
    scales = [scale for _, scale in recipe(model, "own", sigma=2.0, scale=1.0).rungs]
    assert scales == sorted(set(scales)) and {sigma for sigma, _ in recipe(model, "own", sigma=2.0).rungs} == {2.0}


def test_labels_guide_and_somebody_else_is_asked() -> None:
    means = exact().means
    model, judge = MixtureDenoiser(means, [0.15] * 3, [1.0] * 3), exact()
    judge.class_names = model.class_names = ["a", "b", "c"]
    images, target = drawn(judge)
    found = edit(model, images, target, asked=judge, steps=10, confidence=0.9)
    assert bool(found.reached.all())
    with pytest.raises(UserError, match="say nothing about an image"):
        recipe(model, "labels")


def test_the_path_is_what_is_asked_about_every_step() -> None:
    model = exact()
    images, target = drawn(model)
    found = edit(model, images, target, guide="own", strength=0.6, steps=10, margin=1.0, scale=0.6)
    p_target, p_original = path(found, target, model)
    assert p_original is not None and p_target.shape == p_original.shape == (12, 10)
    before = answers(model, images).argmax(1)
    for k in (0, 4, 9):
        believed = answers(model, found.steps[:, k]).softmax(1)
        torch.testing.assert_close(p_target[:, k], believed.gather(1, target[:, None])[:, 0])
        torch.testing.assert_close(p_original[:, k], believed.gather(1, before[:, None])[:, 0])


def test_attributes(joint_unet: Callable[..., JointDenoiser]) -> None:
    model = joint_unet(multi_label=True)
    images = torch.randint(0, 256, (3, *model.shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    target = torch.tensor([[1, 0, -1], [-1, 1, -1], [-1, -1, 0]])
    found = edit(model, images, target, guide="own", strength=0.7, steps=3, confidence=0.5)
    assert torch.equal(found.reached, is_target(found.after, target) & (found.p_after >= 0.5))
    assert path(found, target, model)[1] is None
    assert is_target(torch.tensor([[1.0, -2.0, 9.0]]), target[:1]).tolist() == [True]
    assert is_target(torch.tensor([[1.0, 2.0, 9.0]]), target[:1]).tolist() == [False]
    with pytest.raises(UserError, match=r"expected \(3, 3\) attributes"):
        check_target(1, 3, recipe(model, "own").pull)


def test_distances(unet: Callable[..., NetworkDenoiser]) -> None:
    model = unet().eval()
    a = torch.randint(0, 250, (4, *model.shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    near, same, back = distances(model, a, a + 3), distances(model, a, a), distances(model, a + 3, a)
    assert near.rms.tolist() == [3.0] * 4
    torch.testing.assert_close(near.l2, torch.full((4,), 3 / 127.5 * 192**0.5, dtype=torch.float64))
    assert same.features.abs().max() == 0 and bool((near.features > 0).all())
    torch.testing.assert_close(near.features, back.features)
    assert bool((distances(model, a, 255 - a).features > near.features).all())
    names = list(model.layers)
    chosen = [names[round(k * (len(names) - 1) / 4)] for k in range(5)]
    features = [model.features(model.codec.encode(images), 0.0, chosen) for images in (a, a + 3)]
    cosines = [torch.cosine_similarity(*(found[name] for found in features)) for name in chosen]
    expected = sum((2 - 2 * cosine).mean((1, 2)) for cosine in cosines)  # |u - v|^2 of unit vectors
    torch.testing.assert_close(near.features.float(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"strength": 1.5}, "strength=1.5: not a strength"),
        ({"strength": "much"}, "strength=much: not a strength"),
        ({"sigma": 1e4}, "the model knows"),
        ({"scale": 0.0}, "does not pull"),
        ({"steps": 0}, "at least one step"),
        ({"confidence": 1.0}, "not a probability to reach"),
        ({"margin": -0.1}, "margin=-0.1: not a share"),
        ({"search": "last"}, "no such search"),
        ({"guide": "noise"}, "no such guide"),
    ],
)
def test_what_cannot_be_asked_for(how: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        recipe(exact(), **{"guide": "own", **how})


def test_models_that_cannot_classify_are_told_how(unet: Callable[..., NetworkDenoiser]) -> None:
    for guide in (None, "representations", "own", "labels"):
        with pytest.raises(UserError, match="twofold train joint-digits-mini"):
            recipe(unet("edm", 0), guide)
    model = exact()
    for bad in (3, torch.full((12,), -1), torch.zeros(5)):
        with pytest.raises(UserError, match="target"):
            edit(model, drawn(model)[0], bad, guide="own")
    other = exact()
    other.class_names = ["a", "b", "d"]
    with pytest.raises(UserError, match="same classes"):
        recipe(model, "own", asked=other)
    model.codec.latent = True  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="latent"):
        recipe(model, "own")
