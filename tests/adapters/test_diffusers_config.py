"""Translation of options and schedules, without diffusers: what comes in is what went out, the rest is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.adapters import diffusers_config as dc
from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.networks import build
from twofold.networks.unet import UNet
from twofold.noise import family
from twofold.settings.network import ConvNetSettings, UNetSettings
from twofold.settings.noise import VPNoise

CIFAR10 = {  # of google/ddpm-cifar10-32
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}


def network(shape: tuple[int, int, int] = (3, 32, 32), **options: Any) -> UNet:
    with torch.device("meta"):
        return UNet(UNetSettings(**options), shape)


def denoiser(module: Any, noise: VPNoise | None = None) -> NetworkDenoiser:
    return NetworkDenoiser(module, family(noise or VPNoise()), (3, 32, 32))


def test_the_published_configuration() -> None:
    options, shape = dc.settings_of(CIFAR10)
    assert shape == (3, 32, 32)
    assert options == UNetSettings(classes=0, downsample_padding="end", norm_eps=1e-6)
    assert sum(p.numel() for p in UNet(options, shape).parameters()) == 35_746_307


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "multipliers": st.sampled_from([(1,), (1, 2), (1, 1, 3)]),
            "blocks": st.integers(1, 3),
            "attention": st.sampled_from([(), (32,)]),
            "head_channels": st.sampled_from([None, 8, 32]),
            "dropout": st.sampled_from([0.0, 0.3]),
            "conditioning": st.sampled_from(["add", "scale_shift"]),
            "embedding_order": st.sampled_from(["sin_cos", "cos_sin"]),
            "embedding_endpoint": st.booleans(),
            "norm_groups": st.sampled_from([4, 8]),
            "norm_eps": st.sampled_from([1e-5, 1e-6]),
        }
    ),
    st.sampled_from(["both", "end"]),
    st.sampled_from(["conv", "residual"]),
)
def test_there_and_back(options: dict[str, Any], padding: str, resample: str) -> None:
    if len(options["multipliers"]) > 1:  # with one level nothing is resampled
        options = {**options, "downsample_padding": padding, "resample": resample}
    ours = network((1, 32, 48), channels=32, classes=0, **options)
    dc.exportable_network(denoiser(ours))
    back, shape = dc.settings_of(dc.config_of(ours))
    assert (back, shape) == (ours.settings, ours.shape)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sample_size": None}, "sample_size"),
        ({"out_channels": 9}, "out_channels=9"),
        ({"block_out_channels": [128, 192, 256, 256]}, "block_out_channels"),
        ({"block_out_channels": [128, 256]}, "down_block_types"),
        ({"attention_head_dim": 48}, "attention_head_dim=48"),
        ({"class_embed_type": "timestep"}, "class_embed_type=timestep"),
        ({"add_attention": False}, "add_attention=False"),
        ({"mid_block_type": None}, "mid_block_type=None"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor=1.4"),
        ({"freq_shift": 2}, "freq_shift=2"),
        ({"center_input_sample": True}, "center_input_sample=True"),
        ({"time_embedding_dim": 7}, "time_embedding_dim=7"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups=None"),
        ({"up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"]}, "up_block_types"),
        ({"up_block_types": ["SkipUpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]}, "SkipUpBlock2D"),
        ({"downsample_type": "resnet"}, "mixed"),
        ({"downsample_type": "fir"}, "downsample_type=fir"),
        ({"num_clas_embeds": 3}, "did you mean 'num_class_embeds'"),
    ],
)
def test_what_twofold_cannot_say_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        dc.settings_of({**CIFAR10, **change})


def test_norms_of_unequal_groups_are_named() -> None:
    narrow = network(channels=32, multipliers=(1, 2), attention=())
    with pytest.raises(UserError, match=r"norm_groups=32: a norm over \d+ channels has \d+ groups"):
        dc.exportable_network(denoiser(narrow))


def test_padding_other_networks_and_times_are_named() -> None:
    with pytest.raises(UserError, match="3x30x32"):
        dc.exportable_network(denoiser(network((3, 30, 32))))
    with pytest.raises(UserError, match="ConvNet"):
        dc.exportable_network(denoiser(build(ConvNetSettings(), (3, 32, 32), 2)))
    with pytest.raises(UserError, match="time_scale"):
        dc.exportable_noise(denoiser(None, VPNoise(time_scale=0.001)))
    with pytest.raises(UserError, match="steps=10"):
        dc.betas_of(VPNoise(steps=10))


@pytest.mark.parametrize(
    ("scheduler", "named"),
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule=sigmoid"),
        ({"beta_schedule": "linear", "beta_end": 0.03}, "beta_end=0.03"),
        ({"beta_schedule": "linear", "rescale_betas_zero_snr": True}, "beta_schedule=linear"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"beta_schedule": "linear", "prediction_type": "flow"}, "prediction_type=flow"),
        ({"trained_betas": [0.1, 0.2]}, "no noise table"),
    ],
)
def test_unknown_schedules_are_named(scheduler: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        dc.noise_of(scheduler)


def test_a_table_written_out_is_recognised() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000).tolist()
    assert dc.noise_of({"trained_betas": betas, "prediction_type": "sample"}) == VPNoise(predicts="x0")
