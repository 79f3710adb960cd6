"""Folders that diffusers opens: its pipelines and loops make the images that our samplers make of the same noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import twofold
from twofold.adapters.diffusers_write import write_diffusers
from twofold.adapters.latent_codec import LatentCodec
from twofold.denoiser import JointDenoiser, NetworkDenoiser
from twofold.errors import UserError
from twofold.generate import SAMPLERS, clipped, final
from twofold.hashing import weights_hash
from twofold.networks import build
from twofold.noise import family
from twofold.noise import grid as levels
from twofold.settings.network import DiTSettings, TapHeadSettings, UNetSettings, UViTSettings
from twofold.settings.noise import EDMNoise, FlowNoise, VPNoise

diffusers = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "norm_groups": 4}
DIT: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "embedding_endpoint": True, "classes": 3}
SHAPE = (1, 8, 8)
N = 3
SHORT = 20  # entries of a table


def unet(noise: Any, shape: tuple[int, int, int] = SHAPE, codec: Any = None, **options: Any) -> NetworkDenoiser:
    """An untrained U-Net whose output depends on everything it is told."""
    torch.manual_seed(0)
    settings = UNetSettings(**{**SMALL, "classes": 0, **options})
    network = build(settings, shape)
    names = [f"class {k}" for k in range(settings.classes or 0)]
    more = {"codec": codec, "clip": codec is None, "class_names": names}
    return NetworkDenoiser(network, family(noise), shape, settings.classes or 0, **more).eval().requires_grad_(False)


def dit(noise: Any, shape: tuple[int, int, int] = SHAPE, codec: Any = None, **options: Any) -> NetworkDenoiser:
    torch.manual_seed(0)
    settings = DiTSettings(**{**DIT, **options})
    network = build(settings, shape)
    for parameter in network.parameters():  # some begin at zero
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    made = NetworkDenoiser(network, family(noise), shape, settings.classes or 0, codec, codec is None)
    return made.eval().requires_grad_(False)


def briefly_trained(model: NetworkDenoiser) -> NetworkDenoiser:
    """The model after some steps on digits, so that it denoises a little."""
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images[:512]).float()[:, None] / 8 - 1
    labels = torch.from_numpy(load_digits().target[:512])
    draws = torch.Generator().manual_seed(0)
    model.train().requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(15):
        rows = torch.randint(512, (32,), generator=draws)
        sigma = model.family.training_sigma(torch.rand(32, generator=draws).double())
        noise = torch.randn(32, *SHAPE, generator=draws)
        x = images[rows] + sigma.float()[:, None, None, None] * noise
        cond = {"label": labels[rows]} if model.classes else None
        loss = (model(x, sigma, cond) - model.family.target(images[rows], noise, sigma)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def ours(
    model: NetworkDenoiser, sampler: str, sigmas: Tensor, noise: list[Tensor], labels: Any = None, clip: bool = True
) -> Tensor:
    """x0 of our sampler: the first noise is the start, the others are drawn on the way."""
    cond = None if labels is None else {"label": torch.tensor(labels)}
    denoise = lambda x, sigma: model.denoise(x.float(), sigma, cond)  # noqa: E731
    x = noise[0].double() * model.start_scale(float(sigmas[0]))
    rest = iter(noise[1:])
    steps = SAMPLERS[sampler].function(clipped(denoise) if clip else denoise, x, sigmas, lambda: next(rest))
    return final(steps).float()


def draws(model: NetworkDenoiser, count: int, seed: int = 5) -> list[Tensor]:
    """The noise that a pipeline draws from a generator with this seed: one tensor after the other."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N, *model.shape, generator=generator) for _ in range(count)]


def within_one_level(theirs: Any, x0: Tensor) -> None:
    """Images of a pipeline (N, H, W, C) in 0..1 and x0 (N, C, H, W) in -1..1, as bytes."""
    theirs = np.round(np.asarray(theirs) * 255).astype(int)
    mine = ((x0.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(theirs - mine).max() <= 1
    assert mine.std() > 5  # not one grey


def opened(kind: str, folder: Path) -> Any:
    pipe = getattr(diffusers, kind).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def started(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


VPS = [
    VPNoise(steps=SHORT),
    VPNoise(steps=SHORT, table="cosine", predicts="v"),
    VPNoise(steps=SHORT, table="joint", predicts="x0"),
    VPNoise(steps=SHORT, time_offset=1, time_scale=1 / SHORT),
    VPNoise(steps=10),  # its betas are capped
    VPNoise(steps=SHORT, table="sqrt_linear"),  # betas that diffusers has no name for
]


@pytest.mark.parametrize("noise", VPS, ids=lambda n: f"{n.table}-{n.predicts}-{n.time_scale:g}-{n.steps}")
def test_ddpm_and_ddim_make_the_same_images(noise: VPNoise, tmp_path: Path) -> None:
    model = unet(noise)
    model = briefly_trained(model) if noise == VPS[0] else model
    facts = write_diffusers(model, tmp_path / "out")
    assert facts["pipeline"] == "DDPMPipeline" and facts["samples"]
    steps = noise.steps
    theirs = opened("DDPMPipeline", tmp_path / "out")(N, started(), steps, output_type="np").images
    within_one_level(theirs, ours(model, "ddpm", levels(model.family, steps, "time"), draws(model, steps)))
    fewer = steps // 5
    pipe = opened("DDIMPipeline", tmp_path / "out")
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    for clip in (True, False):
        pipe.scheduler.register_to_config(clip_sample=clip)
        more: dict[str, Any] = {"use_clipped_model_output": True, "output_type": "np"}
        theirs = pipe(N, started(), 0.0, fewer, **more).images
        x0 = ours(model, "ddim", levels(model.family, fewer, "ddim"), draws(model, 1), clip=clip)
        within_one_level(theirs, x0)


def test_with_classes(tmp_path: Path) -> None:
    model = briefly_trained(unet(VPNoise(steps=SHORT), classes=10))
    assert write_diffusers(model, tmp_path / "out")["pipeline"] == "ConsistencyModelPipeline"
    pipe = opened("DiffusionPipeline", tmp_path / "out")
    assert type(pipe).__name__ == "ConsistencyModelPipeline"
    theirs = pipe(N, [3, 0, 10], SHORT, generator=started(), output_type="np").images
    labels = [3, 0, -1]
    x0 = ours(model, "ddpm", levels(model.family, SHORT, "time"), draws(model, SHORT), labels)
    within_one_level(theirs, x0)
    assert type(opened("DDPMPipeline", tmp_path / "out").unet).__name__ == "UNet2DModel"


@pytest.mark.parametrize("classes", [0, 10])
def test_edm(classes: int, tmp_path: Path) -> None:
    model = briefly_trained(unet(EDMNoise(sigma_max=20.0), classes=classes))
    write_diffusers(model, tmp_path / "out")
    pipe = opened("ConsistencyModelPipeline", tmp_path / "out")
    labels = [3, 0, 9] if classes else None
    theirs = pipe(N, labels, 12, generator=started(), output_type="np").images
    start = draws(model, 1)[0] * pipe.scheduler.init_noise_sigma / 20.0  # diffusers begins at sqrt(sigma^2 + 1)
    x0 = ours(model, "euler", levels(model.family, 12, "karras"), [start], labels, clip=False)
    within_one_level(theirs, x0)
    pipe.scheduler = diffusers.EDMDPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, final_sigmas_type="zero", euler_at_final=True
    )
    theirs = pipe(N, labels, 12, generator=started(), output_type="np").images
    x0 = ours(model, "dpmpp2m", levels(model.family, 12, "karras"), [start], labels, clip=False)
    within_one_level(theirs, x0)


@pytest.mark.parametrize("classes", [0, 10])
def test_flow(classes: int, tmp_path: Path) -> None:
    model = briefly_trained(unet(FlowNoise(t_max=0.99), classes=classes))
    facts = write_diffusers(model, tmp_path / "out")
    pipe = opened("DDPMPipeline", tmp_path / "out")
    assert facts["samples"] == (not classes)
    if not classes:
        assert pipe(N, started(), 10, output_type="np").images.shape == (N, 8, 8, 1)
    times = np.linspace(0.99, 0.001, 10)
    pipe.scheduler.set_timesteps(sigmas=times)
    x, labels = draws(model, 1)[0], [3, 0, 9]
    told = {"class_labels": torch.tensor(labels)} if classes else {}
    for t in pipe.scheduler.timesteps:
        x = pipe.scheduler.step(pipe.unet(x, t, **told).sample.detach(), t, x).prev_sample
    sigmas = torch.from_numpy(np.append(times / (1 - times), 0.0))
    x0 = ours(model, "euler", sigmas, draws(model, 1), labels if classes else None, clip=False)
    within_one_level((x.permute(0, 2, 3, 1).clamp(-1, 1).numpy() + 1) / 2, x0)


def autoencoder(channels: int = 1) -> LatentCodec:
    torch.manual_seed(1)
    vae = diffusers.AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=2,
    ).eval()
    return LatentCodec(vae, (16, 16), scale=0.7, channels=channels)


def test_latents(tmp_path: Path) -> None:
    model = unet(VPNoise(steps=SHORT), (2, 8, 8), autoencoder())
    facts = write_diffusers(model, tmp_path / "out")
    assert facts["pipeline"] == "LDMPipeline" and facts["samples"] and facts["parts"] == ["unet", "scheduler", "vqvae"]
    pipe = opened("LDMPipeline", tmp_path / "out")
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    theirs = pipe(N, started(), num_inference_steps=10, output_type="np").images
    x0 = ours(model, "ddim", levels(model.family, 10, "ddim"), draws(model, 1), clip=False)
    within_one_level(theirs, model.codec.decode(x0).float() / 127.5 - 1)
    again(model, tmp_path / "out")


def test_dit_of_latents(tmp_path: Path) -> None:
    model = dit(VPNoise(steps=SHORT), (2, 8, 8), autoencoder(3), learned_variance=True)
    facts = write_diffusers(model, tmp_path / "out")
    assert facts["pipeline"] == "DiTPipeline" and facts["samples"]
    pipe = opened("DiTPipeline", tmp_path / "out")
    assert pipe([0], 1.0, started(), 2, output_type="np").images.shape == (1, 16, 16, 3)  # with its own scheduler too
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    theirs = pipe([2, 0, 1], 1.0, started(), 10, output_type="np").images
    x0 = ours(model, "ddim", levels(model.family, 10, "ddim"), draws(model, 1), [2, 0, 1], clip=False)
    within_one_level(theirs, model.codec.decode(x0).float() / 127.5 - 1)
    again(model, tmp_path / "out")


def again(model: NetworkDenoiser, folder: Path) -> None:
    """Read back: the same weights and images, bit for bit, and the same in all else that matters."""
    found: Any = twofold.load(folder)
    assert weights_hash(found) == weights_hash(model)
    assert found.shape == model.shape and found.classes == model.classes and found.clip == model.clip
    assert found.family.settings == model.family.settings
    label = None if not model.classes else model.classes - 1
    options: dict[str, Any] = {"steps": 5, "label": label}
    assert torch.equal(twofold.sample(found, range(2), **options), twofold.sample(model, range(2), **options))
    if model.classes and list(model.class_names):
        assert list(found.class_names) == list(model.class_names)


@pytest.mark.parametrize(
    ("noise", "options"),
    [
        *((noise, {}) for noise in VPS),
        (VPNoise(steps=SHORT), {"classes": 3}),
        (VPNoise(steps=SHORT, time_offset=1, time_scale=1 / SHORT), {"embedding_order": "cos_sin", "classes": 2}),
        (VPNoise(steps=SHORT), {"learned_variance": True}),
        (EDMNoise(sigma_data=0.6, p_mean=-1.0), {"classes": 3}),
        (FlowNoise(t_max=0.99, training="uniform"), {}),
    ],
)
def test_what_was_written_is_read_back(noise: Any, options: dict[str, Any], tmp_path: Path) -> None:
    model = unet(noise, **options)
    write_diffusers(model, tmp_path / "out")
    again(model, tmp_path / "out")


def test_a_dit_of_pixels_is_read_back(tmp_path: Path) -> None:
    for k, noise in enumerate((VPNoise(steps=SHORT), EDMNoise(), FlowNoise())):
        model = dit(noise, embedders="shared" if k else "each")
        facts = write_diffusers(model, tmp_path / str(k))
        assert facts["pipeline"] == "DiTPipeline" and not facts["samples"]
        found = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / str(k) / "transformer").eval()
        x, t = torch.randn(N, *SHAPE), torch.tensor([3.0, 10.0, 19.0])
        labels = torch.tensor([0, 2, -1])
        theirs = found(x, t, class_labels=torch.where(labels < 0, 3, labels)).sample
        torch.testing.assert_close(theirs, model.network(x, t, {"label": labels}), rtol=1e-4, atol=1e-5)
        again(model, tmp_path / str(k))


def test_a_joint_model_gives_its_denoiser(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(UNetSettings(**SMALL, classes=0, head=TapHeadSettings()), SHAPE, 3)
    joint = JointDenoiser(network, family(VPNoise(steps=SHORT)), SHAPE, class_names=["a", "b", "c"]).eval()
    facts = write_diffusers(joint, tmp_path / "out")
    assert any("joint" in note for note in facts["notes"])
    found: Any = twofold.load(tmp_path / "out")
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(found.denoise(x, 0.5), joint.denoise(x, 0.5))


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: unet(VPNoise(), skip_scale=0.7), r"network\.skip_scale=0\.7: UNet2DModel cannot express it"),
        (lambda: unet(VPNoise(), norm_groups=32), r"norm_groups=32: a norm over .* all norms must have equally many"),
        (lambda: unet(VPNoise(table="continuous")), r"noise\.table=continuous: diffusers has no such schedule"),
        (lambda: unet(VPNoise(first=1)), r"noise\.first=1: diffusers steps down to entry 0"),
        (lambda: unet(FlowNoise(time_scale=0.5)), r"noise\.time_scale=0\.5"),
        (lambda: dit(VPNoise(), embedding_endpoint=False), r"network\.embedding_endpoint=False: DiTTransformer2DModel"),
        (lambda: dit(VPNoise(), classes=0), r"network\.classes=0: .* always told a class"),
        (lambda: dit(VPNoise(), mlp_ratio=2.0), r"network\.mlp_ratio=2"),
        (lambda: dit(VPNoise(time_scale=0.001)), r"noise\.time_scale"),
    ],
)
def test_what_diffusers_cannot_say_is_named(model: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        write_diffusers(model(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_other_networks_are_named(tmp_path: Path) -> None:
    network = build(UViTSettings(width=16, depth=2, heads=2, classes=0), SHAPE)
    with pytest.raises(UserError, match="network UViT: diffusers has no such network; a unet or a dit"):
        write_diffusers(NetworkDenoiser(network, family(VPNoise()), SHAPE), tmp_path / "out")


def test_an_index_that_disagrees_is_told(tmp_path: Path) -> None:
    """A table of times that is not what it says, and noise settings that the scheduler contradicts."""
    write_diffusers(unet(VPNoise(steps=SHORT, time_offset=1, time_scale=0.01)), tmp_path / "out")
    index = tmp_path / "out" / "model_index.json"
    whole = json.loads(index.read_text())

    def refused(noise: Any, message: str) -> None:
        index.write_text(json.dumps({**whole, "_twofold": {**whole["_twofold"], "noise": noise}}))
        with pytest.raises(UserError, match=message):
            twofold.load(tmp_path / "out")

    noise = whole["_twofold"]["noise"]
    refused({**noise, "time_offset": 0.5}, "time_embedding_type=learned of .*not the sinusoid of known times")
    refused({**noise, "steps": 50}, r"_twofold\.noise: scheduler_config\.json says something else")
    refused({"kind": "none"}, r"_twofold\.noise: not settings of noise")
    refused(None, "time_embedding_type=learned")
