"""The parts of the U-Net against their formulas, written out naively in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.networks.blocks import Attention, Block, Downsample, Norm, attend, group_count
from twofold.networks.unet import UNet, sinusoid
from twofold.settings.network import UNetSettings


def naive_norm(norm: Norm, x: Tensor) -> Tensor:
    grouped = x.unflatten(1, (norm.num_groups, -1))
    mean = grouped.mean((2, 3, 4), keepdim=True)
    variance = (grouped - mean).square().mean((2, 3, 4), keepdim=True)
    normal = ((grouped - mean) / (variance + norm.eps).sqrt()).flatten(1, 2)
    return normal * norm.weight[:, None, None] + norm.bias[:, None, None]


def naive_resample(x: Tensor, how: str | None) -> Tensor:
    if how == "down":
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if how == "up" else x


def naive_block(block: Block, x: Tensor, emb: Tensor, skip_scale: float) -> Tensor:
    def silu(h: Tensor) -> Tensor:
        return h / (1 + (-h).exp())

    h = naive_resample(silu(naive_norm(block.norm1, x)), block.resample)
    h = F.conv2d(h, block.conv1.weight, block.conv1.bias, padding=1)
    e = (emb @ block.emb.weight.T + block.emb.bias)[:, :, None, None]
    if block.scale_shift:
        scale, shift = e[:, : h.shape[1]], e[:, h.shape[1] :]
        h = naive_norm(block.norm2, h) * (1 + scale) + shift
    else:
        h = naive_norm(block.norm2, h + e)
    h = F.conv2d(silu(h), block.conv2.weight, block.conv2.bias, padding=1)
    skip = naive_resample(x, block.resample)
    if block.skip is not None:
        skip = F.conv2d(skip, block.skip.weight, block.skip.bias)
    return (h + skip) * skip_scale


@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"conditioning": "scale_shift"},
        {"skip_scale": math.sqrt(0.5), "resample_projection": True, "norm_eps": 1e-6},
    ],
    ids=["ddpm", "adm", "edm"],
)
@pytest.mark.parametrize("channels", [8, 12], ids=["same", "wider"])
def test_a_block_is_its_formula(options: dict[str, Any], resample: Any, channels: int) -> None:
    torch.manual_seed(0)
    settings = UNetSettings(channels=8, norm_groups=4, norm_group_channels=2, **options)
    block = Block(8, channels, settings, resample=resample).double()
    x, emb = torch.randn(2, 8, 6, 4).double(), torch.randn(2, 32).double()
    expected = naive_block(block, x, emb, settings.skip_scale)
    torch.testing.assert_close(block(x, emb), expected, rtol=0, atol=1e-12)
    with torch.no_grad():  # where SiLU works in place
        before = x.clone()
        torch.testing.assert_close(block(x, emb), expected, rtol=0, atol=1e-12)
        assert torch.equal(x, before)


@pytest.mark.parametrize("options", [{}, {"heads": 2}, {"head_channels": 2, "skip_scale": 0.5}])
def test_attention_is_its_formula(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    settings = UNetSettings(channels=8, norm_groups=4, **options)
    layer = Attention(8, settings).double()
    x = torch.randn(2, 8, 3, 5).double()
    tokens = naive_norm(layer.norm, x).flatten(2).transpose(1, 2)
    q, k, v = (tokens @ layer.qkv.weight.T + layer.qkv.bias).split(8, dim=2)
    out, width = torch.empty_like(q), 8 // layer.heads
    for head in range(layer.heads):
        part = slice(head * width, (head + 1) * width)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)).softmax(2)
        out[..., part] = weights @ v[..., part]
    out = (out @ layer.proj.weight.T + layer.proj.bias).transpose(1, 2).unflatten(2, (3, 5))
    torch.testing.assert_close(layer(x), (x + out) * settings.skip_scale, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens", [64, 400])
def test_attention_in_bfloat16(tokens: int) -> None:
    """Either way of computing it is within bfloat16's rounding of float64."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, tokens, 16).bfloat16() for _ in range(3))
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(attend(q, k, v).double(), expected, rtol=0, atol=2**-6)


@pytest.mark.parametrize("padding", ["both", "end"])
def test_downsampling_pads_where_it_says(padding: Any) -> None:
    down = Downsample(4, UNetSettings(channels=4, downsample_padding=padding)).double()
    x = torch.randn(1, 4, 6, 6).double()
    padded = F.pad(x, (1, 1, 1, 1) if padding == "both" else (0, 1, 0, 1))
    expected = F.conv2d(padded, down.weight, down.bias, stride=2)
    torch.testing.assert_close(down(x, x), expected, rtol=0, atol=1e-12)


def test_the_sinusoid_is_its_formula() -> None:
    t = torch.tensor([0.0, 0.3, 999.0], dtype=torch.float64)
    for endpoint in (True, False):
        frequencies = 10000 ** -(torch.arange(4, dtype=torch.float64) / (3 if endpoint else 4))
        angles = t[:, None] * frequencies
        expected = torch.cat([angles.sin(), angles.cos()], dim=1)
        torch.testing.assert_close(sinusoid(t, 8, "sin_cos", endpoint), expected)
        torch.testing.assert_close(sinusoid(t, 8, "cos_sin", endpoint), expected.roll(4, dims=1))
    assert sinusoid(t.bfloat16(), 8).dtype == torch.float32  # 999 is not a bfloat16, and its sine is another number


@pytest.mark.parametrize(
    ("channels", "groups", "least", "expected"),
    [(128, 32, 4, 32), (384, 32, 4, 32), (64, 32, 4, 16), (64, 32, 1, 32), (8, 32, 4, 2), (4, 32, 4, 1), (36, 8, 4, 6)],
)
def test_group_count(channels: int, groups: int, least: int, expected: int) -> None:
    assert group_count(channels, groups, least) == expected


def test_bfloat16_autocast_stays_near_float32() -> None:
    torch.manual_seed(0)
    network = UNet(UNetSettings(channels=16, multipliers=(1, 2), blocks=1, attention=(8,)), (3, 16, 16)).eval()
    x, c_noise = torch.randn(4, 3, 16, 16), torch.rand(4)
    with torch.no_grad():
        expected = network(x, c_noise)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = network(x, c_noise)
            assert network.norm(x.new_ones(1, 16, 2, 2).bfloat16()).dtype == torch.float32
    assert float((output - expected).square().mean().sqrt() / expected.square().mean().sqrt()) < 0.02
