"""Seeds to images: independence of the batch, labels, messages, side effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofold.codec import PixelCodec
from twofold.denoiser import Denoiser, NetworkDenoiser
from twofold.draws import SampleNoise
from twofold.errors import UserError
from twofold.generate import SAMPLERS, plan, sample, trajectory
from twofold.generate.guidance import clipped, guided
from twofold.generate.samplers import final
from twofold.noise import karras_grid
from twofold.oracle import MixtureDenoiser

UNets = Callable[..., NetworkDenoiser]
shared = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_sampling_is_the_parts_put_together(oracle: MixtureDenoiser) -> None:
    seeds, label = [5, 9], torch.tensor([1, 2])
    noise = SampleNoise(seeds, oracle.shape)
    sigmas = karras_grid(6, 0.01, 50.0)
    denoise = clipped(guided(oracle, label, 2.0))
    x0 = final(SAMPLERS["ddpm"].function(denoise, 50.0 * noise().double(), sigmas, noise))
    images = sample(
        oracle, seeds, label, "ddpm", steps=6, guidance=2.0, grid="karras", sigma_min=0.01, sigma_max=50.0, clip=True
    )
    assert torch.equal(images, PixelCodec().decode(x0))
    assert images.dtype == torch.uint8
    assert images.shape == (2, 1, 4, 4)
    images += 1  # an ordinary tensor, not one of inference mode


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("noise", ["edm", "vp", "flow"])
def test_image_of_a_seed_is_bit_identical_in_any_batch(unet: UNets, name: str, noise: str) -> None:
    denoiser = unet(noise)
    how: dict[str, Any] = {"sampler": name, "steps": 3, "guidance": 1.5, "micro_batch": 4}
    whole = sample(denoiser, 9, label=[0, 1, 2] * 3, **how)
    assert len({image.numpy().tobytes() for image in whole}) == 9
    for seeds in ([4], [8, 0, 4], [2, 3, 4, 5, 6, 7]):
        part = sample(denoiser, seeds, label=[seed % 3 for seed in seeds], **how)
        assert torch.equal(part, whole[seeds])


@shared
@given(seeds=st.lists(st.integers(0, 8), min_size=1, max_size=9, unique=True), micro_batch=st.integers(1, 6))
def test_another_micro_batch_moves_an_image_by_at_most_a_level(unet: UNets, seeds: list[int], micro_batch: int) -> None:
    denoiser = unet("edm")
    whole = sample(denoiser, 9, label=[0, 1, 2] * 3, steps=3, micro_batch=9)
    other = sample(denoiser, seeds, label=[seed % 3 for seed in seeds], steps=3, micro_batch=micro_batch)
    assert (other.int() - whole[seeds].int()).abs().max() <= 1


def test_every_forward_pass_has_micro_batch_rows(oracle: MixtureDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    denoise = oracle.denoise

    def counted(x: Tensor, *arguments: Any) -> Tensor:
        rows.append(len(x))
        return denoise(x, *arguments)

    monkeypatch.setattr(oracle, "denoise", counted)
    sample(oracle, 5, steps=2, micro_batch=4)
    assert rows == [4] * 4  # two batches, two steps
    rows.clear()
    sample(oracle, 5, label=1, steps=2, micro_batch=4, guidance=3.0)
    assert rows == [8] * 4


def test_seeds_are_a_number_a_range_or_a_list(oracle: MixtureDenoiser) -> None:
    three = sample(oracle, 3, steps=2)
    for seeds in (range(3), [0, 1, 2], torch.arange(3), torch.arange(3).numpy()):
        assert torch.equal(sample(oracle, seeds, steps=2), three)  # type: ignore[arg-type]
    assert torch.equal(sample(oracle, [2**63 - 1, 1], steps=2)[1], three[1])


def test_labels_choose_the_component(oracle: MixtureDenoiser) -> None:
    for label, expected in ((1, [1] * 60), ([0, 1, 2] * 20, [0, 1, 2] * 20), (torch.arange(60) % 3, [0, 1, 2] * 20)):
        images = sample(oracle, 60, label=label)
        answers = oracle.logits(PixelCodec().encode(images), 0.0).argmax(1)
        assert (answers == torch.tensor(expected)).double().mean() > 0.9
    free = oracle.logits(PixelCodec().encode(sample(oracle, 200)), 0.0).argmax(1)
    assert torch.bincount(free, minlength=3).tolist() == pytest.approx([50, 100, 50], abs=25)
    assert torch.equal(sample(oracle, 5, label=-1, steps=2), sample(oracle, 5, steps=2))


def test_samples_of_the_default_settings_have_the_datas_moments() -> None:
    mean = torch.linspace(-0.5, 0.5, 16, dtype=torch.float64).view(1, 1, 4, 4)
    oracle = MixtureDenoiser(mean, [0.15], [1.0])
    x0 = PixelCodec().encode(sample(oracle, 1000)).double()
    assert ((x0.mean(0) - mean[0]).abs() < 5 * 0.15 / 1000**0.5 + 1 / 255).all()
    assert float((x0 - mean).std()) == pytest.approx(0.15, rel=0.03)


def test_trajectory_ends_in_the_sample_and_shows_the_way(unet: UNets) -> None:
    denoiser = unet("vp")
    how: dict[str, Any] = {"label": 2, "steps": 5, "guidance": 2.0, "sampler": "heun", "s_churn": 2.0}
    steps = list(trajectory(denoiser, [3, 1], micro_batch=4, **how))
    assert [step.index for step in steps] == list(range(6))
    for step in steps:
        assert step.images is not None
        assert step.images.dtype == torch.uint8
        assert step.images.shape == step.x.shape == step.x0_hat.shape == (2, 3, 8, 8)
    assert steps[-1].sigma == 0
    assert steps[-1].images is not None
    assert torch.equal(steps[-1].images, sample(denoiser, [3, 1], micro_batch=4, **how))
    with pytest.raises(UserError, match="seeds: 5 images: a trajectory is one batch of 4; ask for fewer"):
        trajectory(denoiser, 5, micro_batch=4)
    with pytest.raises(UserError, match="no such sampler"):
        trajectory(denoiser, 2, sampler="nothing")  # at once, not at the first step


def modes(denoiser: Denoiser) -> list[bool]:
    return [module.training for module in denoiser.modules()]


def test_networks_are_evaluated_without_gradients_and_left_as_they_were(unet: UNets) -> None:
    denoiser = unet()
    denoiser.train()
    denoiser.network.eval()
    next(iter(denoiser.network.children())).train()
    before = modes(denoiser)
    assert len(set(before)) == 2
    seen: list[tuple[bool, bool, bool]] = []
    hook = denoiser.network.register_forward_pre_hook(
        lambda module, _: seen.append((module.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
    )
    sample(denoiser, 2, steps=2)
    assert set(seen) == {(False, False, True)}
    assert modes(denoiser) == before
    steps = trajectory(denoiser, 2, steps=3)
    next(steps)
    assert not torch.is_inference_mode_enabled()  # between steps the caller is as free as before
    assert torch.is_grad_enabled()
    assert not any(modes(denoiser))
    steps.close()  # type: ignore[attr-defined]
    assert modes(denoiser) == before
    hook.remove()


def test_modes_are_restored_when_sampling_fails(unet: UNets) -> None:
    denoiser = unet()
    denoiser.train()

    def fail(*_: object) -> None:
        raise MemoryError("no memory left")

    denoiser.network.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        sample(denoiser, 2, steps=2)
    assert all(modes(denoiser))


def test_progress_counts_images(oracle: MixtureDenoiser) -> None:
    seen: list[tuple[int, int]] = []
    sample(oracle, 10, steps=1, micro_batch=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_clipping_is_the_denoisers_habit_and_can_be_changed(unet: UNets) -> None:
    denoiser = unet("vp")
    largest: dict[bool | None, float] = {}
    for clip in (None, True, False):
        steps = list(trajectory(denoiser, 2, steps=3, clip=clip))
        largest[clip] = float(steps[0].x0_hat.abs().max())
    assert largest[None] == largest[True] == 1.0
    assert largest[False] > 1.0
    assert plan(denoiser).clip
    denoiser.clip = False  # a latent model
    assert not plan(denoiser).clip


@pytest.mark.parametrize(
    ("noise", "sampler", "kind"),
    [
        *[("vp", name, {"ddpm": "time", "heun": "karras"}.get(name, "log")) for name in SAMPLERS],
        *[("flow", name, {"ddpm": "time", "heun": "karras"}.get(name, "log")) for name in SAMPLERS],
        *[("edm", name, "karras" if name == "heun" else "log") for name in SAMPLERS],
    ],
)
def test_default_steps_and_grid(unet: UNets, noise: str, sampler: str, kind: str) -> None:
    chosen = plan(unet(noise), sampler)
    assert chosen.grid == kind
    assert len(chosen.sigmas) == SAMPLERS[sampler].steps + 1
    assert plan(unet(noise), sampler, steps=3, grid="log").grid == "log"


class Enlarging(PixelCodec):
    """Two latent channels to one of twice the size."""

    def decode(self, x0: Tensor) -> Tensor:
        return super().decode(x0.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :1])


class Foreign(Denoiser):
    """A denoiser from elsewhere: no family, no parameters, latents that decode to other shapes."""

    shape, sigma_range, classes, clip = (2, 3, 3), (0.1, 5.0), 0, False

    def __init__(self) -> None:
        super().__init__()
        self.codec = Enlarging()

    def denoise(self, x: Tensor, sigma: Tensor | float, cond: object = None) -> Tensor:
        assert x.dtype == torch.float32
        return x / 2

    def start_scale(self, sigma: float) -> float:
        return sigma


def test_denoisers_without_a_family_sample_on_their_range() -> None:
    assert sample(Foreign(), 3, steps=4).shape == (3, 1, 6, 6)
    assert plan(Foreign()).sigmas[[0, -2]].tolist() == pytest.approx([5.0, 0.1])
    with pytest.raises(UserError, match="use grid=karras"):
        plan(Foreign(), grid="time")
    with pytest.raises(UserError, match="sigma=80: outside"):
        plan(Foreign(), sigma_max=80.0)


def test_mistakes_are_told_before_anything_is_computed(oracle: MixtureDenoiser) -> None:
    oracle.denoise = None  # type: ignore[assignment, method-assign]
    unconditional = MixtureDenoiser(oracle.means, oracle.stds, oracle.log_weights.exp(), labels=False)
    for arguments, what in (
        ({"label": 3}, r"label=3: no such class; labels are 0\.\.2, or -1 for none"),
        ({"label": [0, 1, -2, 0]}, "label=-2: no such class"),
        ({"label": [0, 1]}, "label: 2 labels: for 4 images; give one label, or one per image"),
        ({"guidance": 2.0}, "guidance=2: there is no label to guide towards; give label="),
        ({"guidance": 2.0, "label": -1}, "there is no label to guide towards"),
        ({"sampler": "dpmpp2"}, "did you mean 'dpmpp2"),
        ({"etaa": 1.0, "sampler": "ddim"}, "etaa=1.0: sampler ddim has no such option; did you mean 'eta'"),
        ({"grid": "kar"}, "grid=kar: no such grid"),
        ({"steps": 0}, "steps=0: a grid needs at least one step"),
        ({"sigma_max": 90.0}, "sigma=90: outside"),
        ({"grid": "time"}, "grid=time"),
        ({"micro_batch": 0}, "micro_batch=0: at least one image"),
        ({"interval": (2.0, 1.0), "label": 0}, "interval=.*: not an interval of sigma"),
    ):
        with pytest.raises(UserError, match=what):
            sample(oracle, 4, **arguments)  # type: ignore[arg-type]
    for seeds, what in (([], "seeds: no image"), (0, "seeds: no image"), ([1, -1], "seed=-1"), ([2**63], "not a seed")):
        with pytest.raises(UserError, match=what):
            sample(oracle, seeds)
    with pytest.raises(UserError, match="label=0: this model is unconditional; leave the label out"):
        sample(unconditional, 4, label=0)


def test_importing_the_settings_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys; import twofold.settings.sample; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
