"""Guidance by a classifier against closed forms: with the exact classifier scale 1 is the conditional model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from twofold.codec import PixelCodec
from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.generate import SAMPLERS, produce, sample, trajectory
from twofold.generate.guidance import class_gradient, classifier_guided, guided
from twofold.generate.guide import make_guide, match_classes
from twofold.generate.manifest import expand
from twofold.generate.sample import plan
from twofold.oracle import MixtureDenoiser
from twofold.recognize.classifier import NetworkClassifier
from twofold.settings.sample import SampleSettings

SHAPE = (1, 4, 4)
UNets = Callable[..., NetworkDenoiser]


def mixture(labels: bool = True) -> MixtureDenoiser:
    means = 0.4 * torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MixtureDenoiser(means, [0.1, 0.2, 0.3], [1.0, 2.0, 1.0], labels=labels)


def points(n: int = 4, seed: int = 0) -> Tensor:
    return 2 * torch.randn((n, *SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABEL = torch.tensor([0, 1, 2, -1])


class Counting:
    """The exact classifier, remembering what it was asked."""

    def __init__(self, classes: list[str] | None = None, known: tuple[float, float] | None = None) -> None:
        self.exact = mixture().as_classifier()
        self.class_names = classes or self.exact.class_names
        self.calls: list[tuple[int, Any]] = []
        if known:
            self.sigma_range = known

    def logits(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.calls.append((len(x), torch.as_tensor(sigma).tolist()))
        return self.exact.logits(x, sigma)


class Linear(nn.Module):
    """Logits linear in x; float32; remembers its mode."""

    def __init__(self, n: int = 3, shape: tuple[int, ...] = SHAPE) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.dropout = nn.Linear(int(np.prod(shape)), n), nn.Dropout(0.5)
        self.class_names, self.shape = [str(k) for k in range(n)], shape

    def logits(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self.weight(self.dropout(x.flatten(1)))


@given(sigma=st.floats(0.01, 60), seed=st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_scale_one_on_the_unconditional_model_is_the_conditional_one(sigma: float, seed: int) -> None:
    """Bayes: E[x0|x] + s^2 grad log p(y|x) = E[x0|x, y]; without a label nothing is moved."""
    oracle, x, level = mixture(), points(seed=seed), torch.tensor(sigma, dtype=torch.float64)
    found = classifier_guided(oracle.denoise, oracle.as_classifier(), LABEL, 1.0)(x, level)
    torch.testing.assert_close(found, oracle.denoise(x, level, {"label": LABEL}), rtol=1e-9, atol=1e-9)
    assert torch.equal(found[3], oracle.denoise(x, level)[3])


@given(scale=st.floats(0, 9))
@settings(max_examples=20, deadline=None)
def test_it_moves_in_proportion_and_goes_with_classifier_free_guidance(scale: float) -> None:
    oracle, x, sigma = mixture(), points(), torch.tensor(1.3, dtype=torch.float64)
    inner = guided(oracle, LABEL, 2.0)
    conditional, free = oracle.denoise(x, sigma, {"label": LABEL}), oracle.denoise(x, sigma)
    found = classifier_guided(inner, oracle.as_classifier(), LABEL, scale)(x, sigma)
    torch.testing.assert_close(found, free + (2 + scale) * (conditional - free), rtol=1e-8, atol=1e-8)


def test_more_always_means_more_of_the_class() -> None:
    oracle, x, sigma = mixture(), points(3), torch.tensor(0.8, dtype=torch.float64)
    classifier, label = oracle.as_classifier(), torch.tensor([2, 0, 1])
    before = None
    for scale in (0.0, 0.01, 0.1, 0.5):
        x0_hat = classifier_guided(oracle.denoise, classifier, label, scale)(x, sigma)
        step = x + (x0_hat - oracle.denoise(x, sigma))  # the pull alone
        log_p = classifier.logits(step, sigma).gather(1, label[:, None])
        assert before is None or bool((log_p > before).all())
        before = log_p


@pytest.mark.parametrize("sigma", [torch.tensor(0.7), torch.tensor([0.1, 0.7, 3.0, 20.0])])
def test_an_images_gradient_does_not_depend_on_its_batch(sigma: Tensor) -> None:
    classifier, x = mixture().as_classifier(), points()
    whole = class_gradient(classifier, x, sigma, LABEL)
    for i in range(4):
        alone = class_gradient(classifier, x[i : i + 1], sigma if sigma.ndim == 0 else sigma[i], LABEL[i : i + 1])
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-12, atol=1e-14)
    assert torch.equal(whole[3], torch.zeros(SHAPE, dtype=torch.float64))


def test_the_gradient_is_that_of_log_p() -> None:
    classifier, x, sigma = mixture().as_classifier(), points(1), torch.tensor(0.9, dtype=torch.float64)
    found = class_gradient(classifier, x, sigma, torch.tensor([1]))
    step = torch.zeros_like(x)
    step[0, 0, 2, 1] = 1e-5

    def log_p(x: Tensor) -> float:
        return float(classifier.logits(x, sigma).log_softmax(1)[0, 1])

    assert float(found[0, 0, 2, 1]) == pytest.approx((log_p(x + step) - log_p(x - step)) / 2e-5, rel=1e-5)


def test_outside_its_interval_the_classifier_is_not_asked() -> None:
    oracle, x, classifier = mixture(), points(), Counting()
    within = classifier_guided(oracle.denoise, classifier, LABEL, 3.0, (0.5, 2.0))
    for sigma, asked in ((0.5, 0), (0.6, 1), (2.0, 1), (2.1, 0)):
        classifier.calls.clear()
        level = torch.tensor(sigma, dtype=torch.float64)
        found = within(x, level)
        assert len(classifier.calls) == asked
        everywhere = classifier_guided(oracle.denoise, Counting(), LABEL, 3.0)(x, level)
        assert torch.equal(found, everywhere if asked else oracle.denoise(x, level))
    classifier.calls.clear()
    sigmas = torch.tensor([0.1, 1.0, 2.0, 3.0], dtype=torch.float64)
    found = within(x, sigmas)
    assert classifier.calls == [(2, [1.0, 2.0])]
    plain, pulled = oracle.denoise(x, sigmas), classifier_guided(oracle.denoise, Counting(), LABEL, 3.0)(x, sigmas)
    torch.testing.assert_close(found, torch.stack([plain[0], pulled[1], pulled[2], plain[3]]), rtol=1e-12, atol=1e-12)


def test_samples_of_an_unconditional_model_land_in_the_class_that_was_asked_for() -> None:
    free, classifier = mixture(labels=False), mixture().as_classifier()
    label = [0, 1, 2] * 20
    images = sample(free, 60, label, guide=classifier)
    exact = sample(mixture(), 60, label)
    assert (images.int() - exact.int()).abs().max() <= 1  # the conditional model's own samples
    answers = classifier.logits(PixelCodec().encode(images).double(), 0.0)
    assert (answers.argmax(1) == torch.tensor(label)).double().mean() > 0.95
    before = classifier.logits(PixelCodec().encode(sample(free, 60)).double(), 0.0)
    rows = torch.arange(60)
    assert answers[rows, torch.tensor(label)].mean() > before[rows, torch.tensor(label)].mean() + 1
    whole = sample(free, 60, label, guide=classifier, guide_scale=0.0)
    assert torch.equal(whole, sample(free, 60))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_guided(sampler: str) -> None:
    how: dict[str, Any] = {"sampler": sampler, "steps": 6, "grid": "karras", "micro_batch": 8}
    found = sample(mixture(labels=False), 8, [2] * 8, guide=mixture().as_classifier(), **how)
    assert (found.int() - sample(mixture(), 8, [2] * 8, **how).int()).abs().max() <= 1


def test_networks_are_guided_without_gradients_of_their_own_and_left_as_they_were(unet: UNets) -> None:
    denoiser, classifier = unet("edm", 0), Linear(3, (3, 8, 8)).train()
    how: dict[str, Any] = {"steps": 3, "micro_batch": 4}
    plain = sample(denoiser, 4, **how)
    found = sample(denoiser, 4, [0, 1, 2, -1], guide=classifier, guide_scale=5.0, **how)
    assert classifier.training and classifier.dropout.training and classifier.weight.weight.grad is None
    assert not torch.equal(found[:3], plain[:3]) and torch.equal(found[3], plain[3])
    again = sample(denoiser, [2, 0], [2, 0], guide=classifier, guide_scale=5.0, **how)  # no dropout: the same bits
    assert torch.equal(again, found[[2, 0]])
    zero = sample(denoiser, 4, [0, 1, 2, -1], guide=classifier, guide_scale=0.0, **how)
    assert torch.equal(zero, plain)
    steps = list(trajectory(denoiser, 4, [0, 1, 2, -1], guide=classifier, guide_scale=5.0, **how))
    assert steps[-1].images is not None and torch.equal(steps[-1].images, found)
    assert max(float(step.x0_hat.abs().max()) for step in steps) <= 1  # clipped after it was moved
    double = sample(mixture(labels=False), 2, 1, guide=Linear(), steps=2)  # a float64 model, a float32 guide
    assert double.shape == (2, *SHAPE)


def test_it_acts_at_the_levels_the_classifier_knows() -> None:
    free, sigmas = mixture(labels=False), plan(mixture()).sigmas
    assert make_guide(free, Counting(), 1.0, None, sigmas).interval is None
    assert make_guide(free, Counting(known=(0.002, 80.0)), 1.0, None, sigmas).interval is None
    classifier = Counting(known=(0.05, 10.0))
    assert make_guide(free, classifier, 1.0, None, sigmas).interval == pytest.approx((0.05, 10.0), rel=2e-6)
    classifier.calls.clear()
    sample(free, 2, 1, guide=classifier)
    asked = [sigma for _, sigma in classifier.calls]
    assert min(asked) >= 0.05 and max(asked) <= 10 and len(set(asked)) == int(((sigmas >= 0.05) & (sigmas <= 10)).sum())
    assert make_guide(free, classifier, 1.0, (0.1, 1.0), sigmas).interval == (0.1, 1.0)
    with pytest.raises(UserError, match=r"guide_interval=0.01, 1: the guide knows noise levels 0.05 to 10 only"):
        make_guide(free, classifier, 1.0, (0.01, 1.0), sigmas)
    with pytest.raises(UserError, match="guide_interval: none of the sampler's noise levels"):
        make_guide(free, Counting(known=(100.0, 200.0)), 1.0, None, sigmas)


def test_classes_are_matched_by_name_where_both_have_names() -> None:
    oracle = mixture()
    oracle.class_names = ["cat", "dog", "eel"]
    assert match_classes(oracle, Counting(["eel", "fly", "cat", "dog"]).class_names) == (2, 3, 0)
    assert match_classes(oracle, Counting().class_names) == (0, 1, 2)  # a classifier of numbers
    with pytest.raises(UserError, match="guide: does not know the model's class 'dog'; did you mean 'dogs'"):
        match_classes(oracle, Counting(["cat", "dogs", "eel"]).class_names)
    oracle.class_names = []
    assert match_classes(oracle, Counting(["eel", "cat", "dog"]).class_names) == (0, 1, 2)
    with pytest.raises(UserError, match="guide: knows 2 classes, the model 3"):
        match_classes(oracle, Counting(["cat", "dog"]).class_names)
    assert match_classes(mixture(labels=False), Counting(["cat", "dog"]).class_names) == (0, 1)
    by = make_guide(mixture(labels=False), Counting(), 1.0)
    assert by.labels(torch.tensor([2, -1, 0])).tolist() == [2, -1, 0]
    oracle.class_names = ["cat", "dog", "eel"]
    by = make_guide(oracle, Counting(["eel", "cat", "dog"]), 1.0)
    assert by.labels(torch.tensor([2, -1, 0])).tolist() == [0, -1, 1]


class Deaf(nn.Module):
    """Answers without a gradient."""

    class_names = ("0", "1", "2")

    def logits(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return x.detach().flatten(1)[:, :3]


def test_mistakes_are_told_before_anything_is_computed() -> None:
    free, oracle, classifier = mixture(labels=False), mixture(), Counting()
    exact = oracle.as_classifier()
    clean = NetworkClassifier(nn.Flatten(), ["0", "1", "2"], SHAPE)
    free.denoise = oracle.denoise = None  # type: ignore[assignment, method-assign]
    for model, arguments, what in (
        (free, {"guide": clean, "label": 0}, "guide: it does not judge noisy images .*; give a classifier that was"),
        (free, {"guide": Deaf(), "label": 0}, "guide: its answers have no gradient; give a network"),
        (free, {"guide": oracle, "label": 0}, "guide: is no classifier"),
        (free, {"guide": "runs/a", "label": 0}, "guide=runs/a: is no kind of guide; valid: labels, repres"),
        (free, {"guide": Linear(3, (1, 8, 8)), "label": 0}, "guide: is a classifier of 1 x 8 x 8, the model makes 1 x"),
        (free, {"guide": exact, "label": 3}, r"label=3: no such class; labels are 0\.\.2"),
        (free, {"guide": exact}, "guide_scale=1: there is no label to guide towards; give label="),
        (free, {"guide": exact, "label": -1}, "there is no label to guide towards"),
        (free, {"guide": exact, "label": 0, "guide_scale": -1.0}, "guide_scale=-1: not a scale; 0"),
        (
            free,
            {"guide": exact, "label": 0, "guide_interval": (2.0, 1.0)},
            r"guide_interval=\(2.0, 1.0\): not an interval",
        ),
        (free, {"guide": exact, "label": 0, "guidance": 2.0}, "guidance=2: this model is unconditional; use guide_"),
        (
            free,
            {"guide_scale": 2.0},
            "guide_scale, guide_interval: there is no guide; give who guides: guide=own, repr",
        ),
        (oracle, {"guide": Linear(2), "label": 0}, "guide: knows 2 classes, the model 3"),
    ):
        with pytest.raises(UserError, match=what):
            sample(model, 4, **arguments)
    assert classifier.calls == []


ASKED = SampleSettings(n=6, micro_batch=4, steps=3)


def test_a_folder_of_guided_images(tmp_path: Path) -> None:
    free, classifier = mixture(labels=False), Counting(["cat", "dog", "eel"])
    produce(free, tmp_path, ASKED, "abc", guide=classifier, guide_hash="f00")
    request = json.loads((tmp_path / "manifest.json").read_text())["request"]
    assert request["guide"] == {"classifier": "f00", "scale": 1.0, "interval": None}
    assert request["classes"] == ["cat", "dog", "eel"] and expand(request["labels"]).tolist() == [0, 1, 2, 0, 1, 2]
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["cat", "dog", "eel"]
    expected = sample(free, 6, [0, 1, 2] * 2, steps=3, micro_batch=4, guide=mixture().as_classifier())
    with np.load(tmp_path / "images.npz") as archive:
        assert np.array_equal(archive["arr_0"], expected.numpy().transpose(0, 2, 3, 1))
    done = produce(free, tmp_path, ASKED, "abc", guide=classifier, guide_hash="f00")
    assert (done.made, done.complete) == (0, True)
    twice = ASKED.model_copy(update={"guide_scale": 2.0})
    for wanted, name, what in ((ASKED, "ba5", '"ba5", "scale": 1.0'), (twice, "f00", '"f00", "scale": 2.0')):
        with pytest.raises(UserError, match="holds images of other settings: guide: .* -> .*" + what):
            produce(free, tmp_path, wanted, "abc", guide=classifier, guide_hash=name)
    with pytest.raises(UserError, match="images of other settings: .*guide"):
        produce(free, tmp_path, ASKED, "abc")
    named = SampleSettings(n=2, micro_batch=2, steps=2, label="eel")
    produce(free, tmp_path / "eel", named, "abc", guide=classifier, guide_hash="f00")
    assert [p.name for p in (tmp_path / "eel/images").iterdir()] == ["eel"]
    with pytest.raises(UserError, match="label=eal: no such class; did you mean 'eel'"):
        produce(
            free, tmp_path / "b", named.model_copy(update={"label": "eal"}), "abc", guide=classifier, guide_hash="f"
        )


def test_guides_are_named_by_their_weights(tmp_path: Path) -> None:
    from twofold.hashing import weights_hash

    free = mixture(labels=False)
    produce(free, tmp_path, ASKED, "abc", guide=Linear())  # type: ignore[arg-type]
    request = json.loads((tmp_path / "manifest.json").read_text())["request"]
    assert request["guide"]["classifier"] == weights_hash(Linear())
    with pytest.raises(ValueError, match="no weights to name it by"):
        produce(free, tmp_path, ASKED, "abc", guide=Counting())
    with pytest.raises(ValueError, match="settings.guide names a classifier"):
        produce(free, tmp_path, ASKED.model_copy(update={"guide": "runs/c"}), "abc")
