"""The convolutions with fewer products are the plain ones: outputs and gradients, in float64 and where they run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.networks import convolve
from twofold.networks.convolve import Conv3x3


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


def doubled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return plain(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias)


def tensors(*shape: int, dtype: torch.dtype, memory_format: torch.memory_format) -> list[Tensor]:
    torch.manual_seed(0)
    batch, channels, height, width, out = shape
    x = torch.randn(batch, channels, height, width, dtype=dtype).contiguous(memory_format=memory_format)
    weight = torch.randn(out, channels, 3, 3, dtype=dtype).contiguous(memory_format=memory_format) / channels**0.5
    return [t.requires_grad_() for t in (x, weight, torch.randn(out, dtype=dtype))]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("fewer", "reference", "size"),
    [
        (convolve.Winograd.apply, plain, (5, 8)),
        (convolve.Winograd.apply, plain, (1, 4)),
        (convolve.transposed, doubled, (5, 4)),
        (convolve.transposed, doubled, (1, 1)),
    ],
)
def test_is_the_plain_convolution(
    fewer: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    size: tuple[int, int],
    memory_format: torch.memory_format,
) -> None:
    x, weight, bias = tensors(2, 3, *size, 6, dtype=torch.float64, memory_format=memory_format)
    output, expected = fewer(x, weight, bias), reference(x, weight, bias)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(fewer(x, weight, None) + bias[:, None, None], output, rtol=0, atol=1e-12)
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(output, (x, weight, bias), upstream),
        torch.autograd.grad(expected, (x, weight, bias), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_wide_layers_take_it_and_stay_exact_to_rounding(
    memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64: within float32's rounding, in the memory format that came in; small layers are left alone."""
    calls = []
    run = convolve.Winograd.apply
    monkeypatch.setattr(convolve.Winograd, "apply", lambda *a: (calls.append(1), run(*a))[1])
    conv = Conv3x3(128, 128).to(memory_format=memory_format)  # type: ignore[call-overload]
    x = torch.randn(8, 128, 16, 16).contiguous(memory_format=memory_format)
    with torch.no_grad():
        output = conv(x)
        expected = plain(x.double(), conv.weight.double(), conv.bias.double())
        assert calls and output.is_contiguous(memory_format=memory_format)
        assert float((output - expected).abs().max() / expected.abs().max()) < 1e-5
        calls.clear()
        for small in (x[:1], x[..., :12], x[..., :15]):  # few pixels, narrow, not a multiple of 4
            torch.testing.assert_close(conv(small), plain(small, conv.weight, conv.bias))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert conv(x).dtype == torch.bfloat16
        assert conv.double()(x.double()).dtype == torch.float64
        assert not calls


def test_upsampled_is_doubling_then_convolving() -> None:
    conv = Conv3x3(6, 4)
    x = torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(conv.upsampled(x), doubled(x, conv.weight, conv.bias), rtol=1e-5, atol=1e-6)
