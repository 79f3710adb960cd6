"""Classifiers of clean and noisy images: the loss against closed forms, and that training teaches something."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from twofold import noise as theory
from twofold.data import open_store
from twofold.data.augment import shifted
from twofold.learn import train
from twofold.learn.batches import U_SIGMA, Batch
from twofold.learn.objectives.supervised import SupervisedObjective, masked_bce
from twofold.recognize.classifier import NetworkClassifier
from twofold.run import build, load
from twofold.settings.noise import EDMNoise, FlowNoise, VPNoise
from twofold.settings.resolve import resolve
from twofold.settings.train import Supervised, TrainSettings

from .common import TINY

SHAPE = (1, 4, 4)


class Told(nn.Module):
    """A linear classifier that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)

    def forward(self, x, c_noise=None, cond=None):  # type: ignore[no-untyped-def]
        self.given = x, c_noise
        return self.linear(x.flatten(1))


def batch_of(n: int, **changes: Any) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8)
    uniforms = torch.rand(n, 5, generator=generator, dtype=torch.float64)
    made = Batch(images, torch.arange(n) % 3, uniforms, torch.randn(n, *SHAPE, generator=generator))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def objective(settings: Supervised, family: Any = None) -> SupervisedObjective:
    torch.manual_seed(0)
    return SupervisedObjective(NetworkClassifier(Told(), ["a", "b", "c"], SHAPE, family), settings)


@pytest.mark.parametrize("family", [EDMNoise(), VPNoise()], ids=str)
def test_training_levels_are_the_denoisers(family: Any) -> None:
    """One distribution for all classifiers, that of the family; the network sees c_in x and c_noise."""
    made, batch = objective(Supervised(sigma="training"), theory.family(family)), batch_of(6)
    assert made.needs_noise and made.denoiser is None and made.classifies
    losses = made(batch)
    known = theory.family(family)
    sigma = known.training_sigma(batch.uniforms[:, U_SIGMA])
    x = batch.images.float() / 127.5 - 1 + sigma.float()[:, None, None, None] * batch.noise
    c = known.coefficients(sigma)
    given, c_noise = made.network.given  # type: ignore[union-attr, misc]
    assert torch.allclose(given, x * c.c_in.float()[:, None, None, None], atol=1e-5)
    assert torch.allclose(c_noise, c.c_noise.float())
    expected = functional.cross_entropy(made.network.linear(given.flatten(1)), batch.label, reduction="none")  # type: ignore[union-attr, operator]
    assert torch.allclose(losses, expected)


def test_one_level() -> None:
    made, batch = objective(Supervised(sigma=0.5), theory.family(EDMNoise())), batch_of(4)
    made(batch)
    x = batch.images.float() / 127.5 - 1 + 0.5 * batch.noise
    assert torch.allclose(made.network.given[0], x / 0.5**0.5, atol=1e-5)  # type: ignore[index, union-attr]
    assert not objective(Supervised()).needs_noise


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_what_has_no_label_contributes_nothing(sigma: float) -> None:
    made, batch = objective(Supervised(sigma=sigma), theory.family(EDMNoise())), batch_of(6)
    batch.label[2:] = -1
    losses = made(batch)
    assert (losses[2:] == 0).all() and (losses[:2] > 0).all() and made.counted(batch.label) == 2
    losses.sum().backward()
    with_unlabelled = made.network.linear.weight.grad.clone()  # type: ignore[union-attr]
    made.network.zero_grad()
    made(next(batch.split(2))).sum().backward()
    assert torch.allclose(with_unlabelled, made.network.linear.weight.grad, atol=1e-6)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_batch_without_any_label(multi_label: bool) -> None:
    label = torch.full((4, 3), -1.0) if multi_label else torch.full((4,), -1)
    made, batch = objective(Supervised(multi_label=multi_label)), batch_of(4, label=label)
    losses = made(batch)
    assert (losses == 0).all() and made.counted(label) == 0 and made.correct(batch) == 0
    losses.sum().backward()
    assert all((p.grad == 0).all() for p in made.parameters())


def test_multi_label_is_the_mean_over_what_is_known() -> None:
    label = torch.tensor([[1.0, 0.0, 1.0], [1.0, -1.0, 0.0], [-1.0, -1.0, -1.0], [-1.0, -1.0, 0.0]])
    made, batch = objective(Supervised(multi_label=True)).requires_grad_(False), batch_of(4, label=label)
    losses = made(batch)
    logits = made.network.linear(made.network.given[0].flatten(1))  # type: ignore[index, operator, union-attr]
    each = -(
        label.clamp(min=0) * functional.logsigmoid(logits) + (1 - label.clamp(min=0)) * functional.logsigmoid(-logits)
    )
    expected = [each[0].mean(), (each[1, 0] + each[1, 2]) / 2, torch.zeros(()), each[3, 2]]
    assert torch.allclose(losses, torch.stack(expected)) and made.counted(label) == 3
    right = (logits > 0) == (label > 0.5)
    by_hand = right[0].float().mean() + (right[1, 0].float() + right[1, 2].float()) / 2 + right[3, 2].float()
    assert made.correct(batch) == pytest.approx(float(by_hand))
    smooth = masked_bce(logits, label, 0.2)
    assert float(smooth[3]) == pytest.approx(
        float(functional.binary_cross_entropy_with_logits(logits[3, 2], torch.tensor(0.1)))
    )


def test_black_comes_in_at_the_side() -> None:
    x0 = torch.arange(32.0).reshape(2, 1, 4, 4)
    least = torch.zeros(2, 2, dtype=torch.float64)
    moved = shifted(x0, least, 1, -1.0)
    assert torch.equal(moved[:, :, 1:, 1:], x0[:, :, :-1, :-1])
    assert (moved[:, :, 0] == -1).all() and (moved[:, :, :, 0] == -1).all()


def noisy(network: dict[str, Any], sigma: Any, **changes: Any) -> TrainSettings:
    own = {
        "data": {"source": "digits"},
        "network": network,
        "noise": {"kind": "edm"},
        "objective": {"kind": "supervised", "sigma": sigma},
        "train": {**TINY["train"], "save_images": 10**6, "validate_images": 10**6, "log_images": 640, **changes},
        "validation": {"max_images": 64},
    }
    return resolve(TrainSettings, [("test", own)])[0]


WIDE = {"kind": "wideresnet", "depth": 10, "width": 1}
ENCODER = {
    "kind": "unet_encoder",
    "channels": 8,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [4],
    "head_channels": 8,
}


def test_a_noise_conditional_network_learns_noisy_digits(tmp_path: Path) -> None:
    """Trained on all levels; at sigma = 0.1, on images it has not seen, far better than the 10 % of chance."""
    settings = noisy(WIDE, "training", n_images=6_400, batch_size=64, optimizer="sgd", lr=0.1, ema_halflife_images=500)
    result = train(settings, tmp_path / "run", "cpu")
    assert "accuracy" in result["metrics"] and not (tmp_path / "run/previews").exists()
    model, store = load(tmp_path / "run"), open_store(settings.data)
    rows = store.indices("test")
    x0 = model.codec.encode(store.batch(rows))
    x = x0 + 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    assert isinstance(model, NetworkClassifier)
    accuracy = (model.logits(x, 0.1).argmax(1) == torch.from_numpy(store.labels[rows])).float().mean()
    assert accuracy > 0.6


@pytest.mark.parametrize(
    "network",
    [
        WIDE,
        ENCODER,
        {"kind": "trunk", "head": "mlp", "unet": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]}},
    ],
    ids=["wideresnet", "unet_encoder", "mlp"],
)
def test_one_level_in_training_leaves_the_others_finite(network: dict[str, Any], tmp_path: Path) -> None:
    """No statistics over a batch anywhere: levels never seen give plain, unsaturated answers."""
    train(noisy(network, 0.1, n_images=640, lr=2e-3), tmp_path / "run", "cpu")
    model = load(tmp_path / "run")
    assert isinstance(model, NetworkClassifier) and model.sigma == 0.1
    generator = torch.Generator().manual_seed(0)
    for sigma in (0.0, 0.002, 0.1, 1.0, 10.0, 80.0):
        logits = model.logits(sigma * torch.randn(8, 1, 8, 8, generator=generator), sigma)
        assert logits.isfinite().all() and logits.softmax(1).amax(1).max() < 1 - 1e-4, sigma


@pytest.mark.parametrize(
    ("family", "c_noise", "number"),
    [
        (EDMNoise(), math.log(0.3) / 4, math.log(0.3)),
        (VPNoise(), 250.0, 0.25),
        (VPNoise(time_offset=1, time_scale=0.001), 0.25, 0.25),
        (VPNoise(table="continuous", steps=10), 250.0, 0.25),
        (FlowNoise(), 250.0, 0.25),
    ],
    ids=str,
)
def test_embeddings_are_scaled_to_their_noise_family(family: Any, c_noise: float, number: float) -> None:
    """ln sigma, or a time of 0..1, whatever number the family gives its networks; a scale that is set stays."""
    settings = noisy(WIDE, "training").model_copy(update={"noise": family})
    model = build(settings, (1, 8, 8), ["a", "b"])
    assert model.network.embedding.scale * c_noise == pytest.approx(number)  # type: ignore[union-attr, operator]
    own = noisy({**WIDE, "embedding_scale": 3.0}, "training")
    assert build(own, (1, 8, 8), ["a", "b"]).network.embedding.scale == 3.0  # type: ignore[union-attr]


def test_bfloat16(tmp_path: Path) -> None:
    result = train(noisy(WIDE, "training", n_images=64, precision="bf16"), tmp_path / "run", "cpu")
    assert result["nonfinite_steps"] == 0 and result["environment"]["precision"] == "bf16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"kind": "convnet"}, "objective": {"sigma": 0.1}}, "is not told the noise level; use wideresnet"),
        ({"network": {"kind": "unet"}}, "does not classify; use convnet, wideresnet, wrn, unet_encoder or trunk"),
        ({"objective": {"sigma": -1}}, r"objective\.sigma"),
        ({"objective": {"sigma": "some"}}, r"objective\.sigma"),
        ({"train": {"layer_decay": 0}}, r"train\.layer_decay"),
        ({"train": {"compile": True}}, "compile"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    base = {"data": {"source": "digits"}, "network": WIDE, "objective": {"kind": "supervised"}}
    from twofold.errors import UserError

    with pytest.raises(UserError, match=message) as error:
        resolve(TrainSettings, [("test", base), ("change", change)])
    assert "\n" not in str(error.value)


def test_labelled_images_alone(tmp_path: Path) -> None:
    """labelled_only: every batch is of images with a label, and the seed's order is that of a store of these alone."""
    from twofold.data import open_store
    from twofold.learn.batches import training_batches

    words = {"data": {"source": "digits", "labels_per_class": 3}, "network": {"kind": "convnet", "channels": 8}}
    for only in (False, True):
        objective = {"kind": "supervised", "labelled_only": only}
        settings, _ = resolve(TrainSettings, [("t", {**words, "objective": objective})])
        store = open_store(settings.data)
        label = training_batches(settings, store, 5, False, 0).make(0, 60).label
        assert int((label >= 0).sum()) == 60 if only else int((label >= 0).sum()) < 20
        if only:
            assert torch.bincount(label, minlength=10).tolist() == [6] * 10  # two rounds of thirty
