"""Weights and outputs against diffusers' own UNet2DModel; whatever one side cannot say is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from twofold import load
from twofold.adapters.diffusers_unet import from_diffusers, to_diffusers, to_scheduler
from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.networks import build
from twofold.noise import family
from twofold.settings.network import UNetSettings
from twofold.settings.noise import EDMNoise, VPNoise
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

diffusers = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (8,), "norm_groups": 4}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"downsample_padding": "end", "norm_eps": 1e-6},
    {"classes": 3},
    {"resample": "residual", "attention": ()},
    {"conditioning": "scale_shift", "embedding_order": "cos_sin", "embedding_endpoint": False},
    {"head_channels": 8, "attention": (16, 8)},
    {"blocks": 2, "multipliers": (1, 2, 2), "attention": (8,)},
    {"learned_variance": True},
]


def denoiser(noise: Any = None, shape: tuple[int, int, int] = (3, 16, 16), **options: Any) -> NetworkDenoiser:
    torch.manual_seed(0)
    settings = UNetSettings(**{**SMALL, **options})
    model = NetworkDenoiser(build(settings, shape), family(noise or VPNoise()), shape, settings.classes or 0)
    return model.eval()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o)) or "plain")
def test_outputs_agree_both_ways(options: dict[str, Any]) -> None:
    ours = denoiser(**options)
    theirs = to_diffusers(ours)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0.0, 17.0, 999.0])
    labels = torch.tensor([0, 2, -1]) if options.get("classes") else None
    their_labels = None if labels is None else torch.where(labels < 0, 3, labels)
    with torch.no_grad():
        cond = {} if labels is None else {"label": labels}
        expected = theirs(x, t, class_labels=their_labels).sample
        assert relative(ours.network(x, t, cond), expected) < 1e-5
        again = from_diffusers(theirs)
        assert torch.equal(again.network(x, t, cond), ours.network(x, t, cond))
    assert again.classes == ours.classes and again.learns_variance == ours.learns_variance
    assert to_scheduler(ours).config.variance_type == ("learned_range" if ours.learns_variance else "fixed_small")


def test_the_preset_is_diffusers_exact() -> None:
    """ddpm-cifar10 at a quarter of its width: every other option is the preset's; the names are those of its layout."""
    settings, _ = resolve(TrainSettings, [*open_preset("ddpm-cifar10").layers])
    assert settings.network.kind == "unet"
    narrow = settings.network.model_copy(update={"channels": 32, "norm_groups": 8, "dropout": 0.0})
    network = build(narrow, (3, 32, 32)).eval()
    theirs = to_diffusers(NetworkDenoiser(network, family(settings.noise), (3, 32, 32)))
    config = theirs.config
    assert config.downsample_padding == 0 and config.freq_shift == 1 and not config.flip_sin_to_cos
    assert config.norm_eps == 1e-6 and config.down_block_types[1] == "AttnDownBlock2D"
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3.0, 500.0])
    with torch.no_grad():
        assert relative(network(x, t), theirs(x, t).sample) < 1e-5


def test_weights_written_by_diffusers_are_read(tmp_path: Path) -> None:
    """A random model that the peer made and saved itself, through `twofold.load`."""
    torch.manual_seed(1)
    theirs = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    ).eval()
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    diffusers.DDPMPipeline(theirs, scheduler).save_pretrained(tmp_path / "pipe")
    model = load(tmp_path / "pipe")
    assert isinstance(model, NetworkDenoiser)
    x0, noise = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    t = torch.tensor([100, 400])
    abar = scheduler.alphas_cumprod[t].double()
    sigma = ((1 - abar) / abar).sqrt()
    x_t = scheduler.add_noise(x0, noise, t)
    with torch.no_grad():
        v = theirs(x_t, t).sample
        expected = abar.sqrt().float()[:, None, None, None] * x_t - (1 - abar).sqrt().float()[:, None, None, None] * v
        x = x_t / abar.sqrt().float()[:, None, None, None]
        assert relative(model.denoise(x, sigma), expected) < 1e-4
    theirs.save_pretrained(tmp_path / "unet")
    again = from_diffusers(tmp_path / "unet", scheduler)
    with torch.no_grad():
        assert torch.equal(again.denoise(x, sigma), model.denoise(x, sigma))


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    theirs = to_diffusers(denoiser())
    theirs.save_pretrained(tmp_path / "unet")
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": Evil()}, tmp_path / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.bin is a pickle and is not opened"):
        from_diffusers(tmp_path / "unet")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"skip_scale": 0.5}, "skip_scale"),
        ({"augment_dim": 9}, "augment_dim"),
        ({"out_norm_groups": 2}, "out_norm_groups"),
        ({"decoder_attention": "last"}, "decoder_attention"),
        ({"classes": 3, "label_position": "before"}, "label_position"),
        ({"resample": "residual", "resample_projection": True}, "resample_projection"),
        ({"heads": 2, "attention": (16, 8)}, "heads"),
        ({"multipliers": (2, 2)}, "multipliers"),
        ({"embedding_channels": 32}, "embedding_channels"),
    ],
)
def test_what_diffusers_cannot_say_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        to_diffusers(denoiser(**options))


def test_noise_that_diffusers_cannot_say_is_named() -> None:
    with pytest.raises(UserError, match="EDM"):
        to_diffusers(denoiser(EDMNoise()))
    with pytest.raises(UserError, match="time_offset"):
        to_diffusers(denoiser(VPNoise(time_offset=1)))
    with pytest.raises(UserError, match="continuous"):
        to_scheduler(denoiser(VPNoise(table="continuous")))


@pytest.mark.parametrize("table", ["linear", "joint", "scaled_linear", "cosine"])
@pytest.mark.parametrize("predicts", ["eps", "v", "x0"])
def test_schedules_go_there_and_back(table: str, predicts: str) -> None:
    ours = denoiser(VPNoise(table=table, predicts=predicts, steps=500))  # type: ignore[arg-type]
    scheduler = to_scheduler(ours)
    ours_abar = 1 / (1 + ours.family.sigma(torch.arange(500.0)) ** 2)  # type: ignore[attr-defined]
    np.testing.assert_allclose(scheduler.alphas_cumprod.double(), ours_abar, rtol=1e-4)
    assert from_diffusers(to_diffusers(ours), scheduler).family.settings == ours.family.settings  # type: ignore[attr-defined]


def test_wrong_weights_and_keys_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    to_diffusers(denoiser()).save_pretrained(folder)
    file, config = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    whole = load_file(file)

    def refused(weights: dict[str, torch.Tensor], message: str) -> None:
        save_file(weights, file)
        with pytest.raises(UserError, match=message):
            from_diffusers(folder)

    refused({k: v for k, v in whole.items() if k != "conv_in.bias"}, r"missing: conv_in\.bias")
    refused({**whole, "surprise": torch.zeros(1)}, "surplus: surprise")
    refused({**whole, "conv_out.bias": torch.zeros(7)}, r"conv_out\.bias has shape \(7,\)")
    save_file(whole, file)
    options = json.loads(config.read_text())
    for change, message in (
        ({"act_fn": "gelu"}, "act_fn=gelu"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type=fourier"),
        ({"made_up": 1}, "made_up"),
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
    ):
        config.write_text(json.dumps({**options, **change}))
        with pytest.raises(UserError, match=message):
            from_diffusers(folder)
    config.write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        from_diffusers(folder)


def test_a_transposed_projection_does_not_pass(tmp_path: Path) -> None:
    """Square matrices have the right shape either way; the output tells."""
    ours = denoiser()
    theirs = to_diffusers(ours)
    name = next(n for n, _ in theirs.named_parameters() if n.endswith("to_q.weight"))
    with torch.no_grad():
        theirs.get_parameter(name).copy_(theirs.get_parameter(name).T.clone())
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([5.0])
    with torch.no_grad():
        assert relative(from_diffusers(theirs).network(x, t), ours.network(x, t)) > 1e-5
