"""Guidance by the model's own head: closed forms on an exact model, and that it always pulls towards the target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twofold.denoiser import JointDenoiser, State
from twofold.errors import UserError
from twofold.generate import SAMPLERS, sample
from twofold.generate.cost import relative_cost
from twofold.generate.guidance import classifier_guided
from twofold.generate.labels import asks_attributes, class_names
from twofold.generate.representations import is_joint, own_guided, representation_guided
from twofold.generate.sample import plan
from twofold.generate.targets import log_probability
from twofold.oracle import MixtureDenoiser
from twofold.taps import Layer

SHAPE = (1, 4, 4)
JointUNets = Callable[..., JointDenoiser]
LABEL = torch.tensor([0, 1, 2, -1])


class ExactJoint(MixtureDenoiser):
    """A mixture that names its components: what the head reads is the posterior that the decoder weights by."""

    def read(self, state: State) -> Tensor:
        return state.taps["mid"][:, :, 0, 0]


def exact() -> ExactJoint:
    means = 0.4 * torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ExactJoint(means, [0.1, 0.2, 0.3], [1.0, 2.0, 1.0], labels=False)


def points(n: int = 4, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    return 2 * torch.randn((n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.3, 2.0, 7.0])
@pytest.mark.parametrize("through", ["encoder", "head"])
def test_plain_representations_of_an_exact_model(scale: float, through: Any) -> None:
    """The only map is m = log r, so d log p(y) / dm = onehot(y) - r, and the decoder weights by softmax(m + s g)."""
    oracle, x, sigma = exact(), points(), torch.tensor(0.9, dtype=torch.float64)
    log_r = oracle.logits(x, sigma)
    known = (LABEL >= 0).to(log_r)[:, None]
    pull = (nn.functional.one_hot(LABEL.clamp(min=0), 3) - log_r.exp()) * known
    state = oracle.encode(x, sigma)
    expected = oracle.decode(replace(state, taps={"mid": (log_r + scale * pull)[:, :, None, None]}))
    found = representation_guided(oracle, LABEL, scale, None, False, through)(x, sigma)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found[3], oracle.denoise(x, sigma)[3])


def test_normalised_edits_are_a_share_of_the_map_and_let_go_of_what_has_arrived() -> None:
    oracle, x, sigma = exact(), points(), torch.tensor(0.9, dtype=torch.float64)
    seen: list[Tensor] = []
    decode = oracle.decode
    oracle.decode = lambda state: (seen.append(state.taps["mid"]), decode(state))[1]  # type: ignore[method-assign, func-returns-value]
    small = representation_guided(oracle, LABEL, 0.25)(x, sigma)
    before = oracle.encode(x, sigma).taps["mid"]
    moved = (seen[0] - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
    p = before[:, :, 0, 0].exp().gather(1, LABEL.clamp(min=0)[:, None])[:, 0]
    torch.testing.assert_close(moved, 0.25 * (1 - p) * (LABEL >= 0))
    half, plain = representation_guided(oracle, LABEL, 0.5)(x, sigma), oracle.denoise(x, sigma)
    assert bool(((half - plain).square().sum((1, 2, 3)) > (small - plain).square().sum((1, 2, 3)))[:3].all())
    for scale in (0.6, 4.0):  # beyond half a map's size what changes is extrapolated
        far = representation_guided(oracle, LABEL, scale)(x, sigma)
        torch.testing.assert_close(far, plain + 2 * scale * (half - plain), rtol=1e-9, atol=1e-9)
        assert torch.equal(far[3], plain[3])


@pytest.mark.parametrize("sigma", [torch.tensor(0.8), torch.tensor([0.2, 0.8, 3.0, 9.0])])
def test_its_own_classifier_at_scale_one_is_the_conditional_model(sigma: Tensor) -> None:
    """Bayes: E[x0|x] + s^2 grad log p(y|x) = E[x0|x, y], with the encoder run once."""
    oracle, x = exact(), points()
    conditional = MixtureDenoiser(oracle.means, oracle.stds, oracle.log_weights.exp())
    found = own_guided(oracle, LABEL, 1.0)(x, sigma.double())
    torch.testing.assert_close(found, conditional.denoise(x, sigma.double(), {"label": LABEL}), rtol=1e-9, atol=1e-9)


FAMILIES = ("edm", "vp", "flow")


def read_again(model: Any, state: State, x: Tensor, sigma: Tensor, edited: dict[str, Tensor]) -> Tensor:
    """The logits where every edit is made while the encoder runs, so that later maps see it."""
    handles = []
    for name, tap in edited.items():
        layer: Layer = model.layers[name]
        delta = tap - state.taps[name]
        handles.append(layer.module.register_forward_hook(lambda module, args, output, delta=delta: output + delta))
    try:
        return model.read(model.encode(x, sigma))
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("through", ["encoder", "head"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("several", [False, True])
def test_a_small_edit_always_raises_log_p(
    joint_unet: JointUNets, family: str, through: Any, normalise: bool, several: bool
) -> None:
    """An untrained network in float64: more scale, more log p(target); the sign that the published code had wrong."""
    model = joint_unet(family, several).double()
    x, sigma = points(4, model.shape), torch.tensor(0.7, dtype=torch.float64)
    target = torch.tensor([[1, 0, -1], [-1, 0, -1], [1, 1, 1], [0, -1, 1]]) if several else torch.tensor([0, 1, 2, 0])
    seen: list[State] = []
    decode = model.decode
    model.decode = lambda state: (seen.append(state), decode(state))[1]  # type: ignore[func-returns-value]
    state = model.encode(x, sigma)
    before = log_probability(model.read(state), target)
    for scale in (1e-3, 2e-3):
        representation_guided(model, target, scale if normalise else 10 * scale, None, normalise, through)(x, sigma)
        edited = seen.pop()
        direct = log_probability(model.read(edited), target)
        # through the encoder, what was differentiated is edits that the rest of the encoder sees
        whole = log_probability(read_again(model, state, x, sigma, edited.taps), target)
        after = direct if through == "head" else whole
        assert bool((after > before).all())
        before = after


@pytest.mark.parametrize("guided", [representation_guided, own_guided])
def test_images_are_guided_each_by_itself(joint_unet: JointUNets, guided: Any) -> None:
    model = joint_unet("edm").double()
    x, target = points(4, model.shape), torch.tensor([0, -1, 2, 1])
    for sigma in (torch.tensor(0.7), torch.tensor([0.1, 0.7, 3.0, 20.0])):
        sigma = sigma.double()
        found = guided(model, target, 0.8)(x, sigma)
        for i in range(4):
            alone = guided(model, target[i : i + 1], 0.8)(x[i : i + 1], sigma if sigma.ndim == 0 else sigma[i])
            torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("guided", [representation_guided, own_guided])
@pytest.mark.parametrize("inference", [True, False])
def test_without_a_target_or_outside_the_interval_it_is_the_plain_denoiser(
    joint_unet: JointUNets, guided: Any, inference: bool
) -> None:
    model = joint_unet("vp").train(False)
    with torch.inference_mode(inference), torch.no_grad():
        x, sigma, target = points(4, model.shape).float(), torch.tensor(0.7), torch.tensor([0, -1, 2, -1])
        plain = model.denoise(x, sigma)
        found = guided(model, target, 0.3)(x, sigma)
        assert torch.equal(found[[1, 3]], plain[[1, 3]]) and not torch.isclose(found[[0, 2]], plain[[0, 2]]).all()
        none = torch.full((4,), -1)
        assert torch.equal(guided(model, target, 4.0)(x, sigma)[[1, 3]], plain[[1, 3]])
        for other in (guided(model, target, 0.0), guided(model, none, 0.3), guided(model, target, 0.3, (0.7, 9.0))):
            assert torch.equal(other(x, sigma), plain)
        assert torch.equal(guided(model, target, 0.3, (0.2, 0.7))(x, sigma), found)  # low < sigma <= high
        levels = torch.tensor([0.7, 0.7, 0.1, 0.1])
        within = guided(model, target, 0.3, (0.2, 0.7))(x, levels)
        assert torch.equal(within[1:], model.denoise(x, levels)[1:]) and not torch.equal(within[0], plain[0])
    assert not x.requires_grad and all(p.grad is None for p in model.parameters())


def test_how_often_the_encoder_and_the_decoder_run(joint_unet: JointUNets) -> None:
    model, ran = joint_unet("edm"), {"encode": 0, "decode": 0}
    for name in ran:
        whole = getattr(model.network, name)

        def counting(*args: Any, name: str = name, whole: Any = whole) -> Any:
            ran[name] += 1
            return whole(*args)

        setattr(model.network, name, counting)
    x, sigma, target = points(4, model.shape).float(), torch.tensor(0.7), torch.tensor([0, 1, 2, -1])
    for how in (
        representation_guided(model, target, 0.3),
        representation_guided(model, target, 0.3, through="head"),
        own_guided(model, target, 0.3),
    ):
        how(x, sigma)
        assert ran == {"encode": 1, "decode": 1}
        ran.update(encode=0, decode=0)
    representation_guided(model, target, 4.0)(x, sigma)
    assert ran == {"encode": 1, "decode": 2}
    ran.update(encode=0, decode=0)
    classifier_guided(lambda x, sigma: model.denoise(x, sigma, None), model, target, 0.3)(x, sigma)
    assert ran == {"encode": 2, "decode": 1}


def test_it_equals_guidance_by_the_model_as_a_classifier(joint_unet: JointUNets) -> None:
    model = joint_unet("flow").double()
    x, sigma, target = points(4, model.shape), torch.tensor(0.7).double(), torch.tensor([0, 1, 2, -1])
    twice = classifier_guided(lambda x, sigma: model.denoise(x, sigma, None), model, target, 3.0)(x, sigma)
    torch.testing.assert_close(own_guided(model, target, 3.0)(x, sigma), twice, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("guided", [representation_guided, own_guided])
def test_half_precision(joint_unet: JointUNets, guided: Any) -> None:
    model = joint_unet("edm")
    x, sigma, target = points(4, model.shape).float(), torch.tensor(0.7), torch.tensor([0, 1, 2, -1])
    full = guided(model, target, 0.2)(x, sigma)
    model.autocast = torch.bfloat16
    half = guided(model, target, 0.2)(x, sigma)
    assert half.dtype == torch.float32 and bool(half.isfinite().all())
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)
    assert torch.equal(half[3], model.denoise(x, sigma)[3])


def test_maps_the_head_does_not_read_stay() -> None:
    class Reads(ExactJoint):
        def encode(self, *args: Any, **more: Any) -> State:
            state = super().encode(*args, **more)
            return replace(state, taps={**state.taps, "aside": torch.ones(len(state.emb), 2, 1, 1)})

    oracle, x = exact(), points()
    other = Reads(oracle.means, oracle.stds, oracle.log_weights.exp(), labels=False)
    sigma = torch.tensor(0.9, dtype=torch.float64)
    found = representation_guided(other, LABEL, 0.5)(x, sigma)
    assert torch.equal(found, representation_guided(oracle, LABEL, 0.5)(x, sigma))


def test_mistakes() -> None:
    assert is_joint(exact()) and not is_joint(MixtureDenoiser(exact().means, [1.0] * 3, [1.0] * 3))
    for arguments, what in (
        ({"scale": -1.0}, "guide_scale=-1: not a scale; 0"),
        ({"scale": float("nan")}, "not a scale"),
        ({"scale": 1.0, "interval": (2.0, 1.0)}, r"guide_interval=\(2.0, 1.0\): not an interval"),
        ({"scale": 1.0, "through": "hed"}, "through=hed: no such way; did you mean 'head'"),
    ):
        with pytest.raises(UserError, match=what):
            representation_guided(exact(), LABEL, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("guide", ["representations", "own"])
@pytest.mark.parametrize("sampler", ["dpmpp2m", "heun", "ddpm", "ddim"])
def test_every_solver_and_micro_batch(joint_unet: JointUNets, guide: str, sampler: str) -> None:
    model = joint_unet("vp")
    how: dict[str, Any] = {"sampler": sampler, "steps": 4, "guide": guide}
    assert sampler in SAMPLERS
    found = sample(model, 4, [0, 1, "eel", -1], micro_batch=4, **how)
    plain = sample(model, 4, sampler=sampler, steps=4, micro_batch=4)
    assert torch.equal(found[3], plain[3]) and not torch.equal(found[:3], plain[:3])
    assert torch.equal(sample(model, [2, 0], ["eel", "cat"], micro_batch=4, **how), found[[2, 0]])
    two = sample(model, 4, [0, 1, 2, -1], micro_batch=2, **how)
    assert int((two.int() - found.int()).abs().max()) <= 1


def test_an_unconditional_exact_model_guided_by_its_own_head_is_the_conditional_one() -> None:
    oracle = exact()
    oracle.class_names = ["a", "b", "c"]
    conditional = MixtureDenoiser(oracle.means, oracle.stds, oracle.log_weights.exp())
    found = sample(oracle, 3, ["a", "b", "c"], guide="own", guide_scale=1.0, steps=8)
    expected = sample(conditional, 3, [0, 1, 2], steps=8)
    assert int((found.int() - expected.int()).abs().max()) <= 1


def test_guides_that_cannot_be_are_told_before_anything_is_computed(joint_unet: JointUNets, unet: Any) -> None:
    joint, plain = joint_unet("edm"), unet("edm", 3)
    for model, arguments, what in (
        (
            plain,
            {"guide": "representations"},
            "guide=representations: this model does not classify .*`twofold train jo",
        ),
        (plain, {"guide": "own"}, "guide=own: this model does not classify what it makes; .*guide=RUN"),
        (joint, {"guide": "labels"}, "guide=labels: this model is unconditional; use guide=own, guide=rep"),
        (joint, {"guide": "onw"}, "guide=onw: is no kind of guide; did you mean 'own'"),
        (joint, {"guide": "own"}, "guide_scale=5: there is no label to guide towards; give label="),
        (joint, {"guide": "own", "label": 0, "guidance": 2.0}, "guidance=2: this model is unconditional"),
        (joint, {"guide": "own", "guide_interval": (90.0, 99.0)}, "guide_interval: none of the sampler's noise levels"),
        (plain, {"guide": "labels", "guide_scale": 2.0}, "guide_scale, .*: there is no guide; .* guidance="),
        (
            joint,
            {"label": 0},
            "label=0: this model is unconditional; leave the label out, or give guide=own, guide=rep",
        ),
    ):
        with pytest.raises(UserError, match=what):
            sample(model, 2, **{"label": None, **arguments})


@pytest.mark.parametrize("several", [False, True])
def test_a_conditional_joint_model_takes_the_labels_of_whoever_is_asked(joint_unet: JointUNets, several: bool) -> None:
    """Its head knows three names, its denoiser five labels, which are not shown where the head guides."""
    model, how = joint_unet("edm", several, classes=5), {"steps": 2, "micro_batch": 2}
    assert class_names(model) == list("01234") and class_names(model, "own") == ["cat", "dog", "eel"]
    plain = sample(model, 2, **how)
    for guide in ("own", "representations"):
        found = sample(model, 2, "eel", guide=guide, **how)
        assert torch.equal(found, sample(model, 2, 2, guide=guide, **how)) and not torch.equal(found, plain)
        assert torch.equal(sample(model, 2, 2, guide=guide, guide_scale=0, **how), plain)
        assert relative_cost(model, plan(model, steps=2, guide=guide)) > 1
        with pytest.raises(UserError, match="label=4: no such class; labels are 0..2: cat, dog, eel"):
            sample(model, 2, 4, guide=guide, **how)
    assert asks_attributes(model, "own") is several and not asks_attributes(model, None)
    assert not torch.equal(sample(model, 2, 4, guide="labels", **how), plain)
    with pytest.raises(UserError, match="label=5: no such class"):
        sample(model, 2, 5, **how)


def test_a_conditional_joint_model_given_as_a_classifier_is_shown_its_labels(joint_unet: JointUNets) -> None:
    model, how = joint_unet("edm", classes=3), {"steps": 2, "micro_batch": 2}
    found = sample(model, 2, 1, guide=model, guide_scale=1e-9, **how)
    assert torch.equal(found, sample(model, 2, 1, **how)) and not torch.equal(found, sample(model, 2, **how))


def test_labels_is_the_models_own_condition(unet: Any) -> None:
    model, how = unet("edm", 3), {"guidance": 2.0, "steps": 2, "micro_batch": 2}
    assert torch.equal(sample(model, 2, [0, 1], guide="labels", **how), sample(model, 2, [0, 1], **how))


def test_relative_cost(joint_unet: JointUNets, unet: Any) -> None:
    model = joint_unet("edm")
    half = (float(plan(model, steps=4).sigmas[2]), model.sigma_range[1])  # two of the four levels
    costs = {
        name: relative_cost(model, plan(model, steps=4, **how))
        for name, how in {
            "plain": {},
            "own": {"guide": "own"},
            "near": {"guide": "representations", "guide_scale": 0.3},
            "far": {"guide": "representations"},
            "half": {"guide": "own", "guide_interval": half},
            "twice": {"guide": joint_unet("edm")},
        }.items()
    }
    assert costs["plain"] == 1 and 1 < costs["near"] <= costs["own"] < costs["far"] < 2.6
    assert costs["half"] == pytest.approx((1 + costs["own"]) / 2)
    assert costs["own"] < costs["twice"]  # the encoder runs once
    assert relative_cost(unet("edm", 3), plan(unet("edm", 3), guidance=2.0)) == pytest.approx(2, abs=0.05)
