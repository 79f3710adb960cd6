"""PSNR, SSIM and detail: against torchmetrics and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from twofold.codec import PixelCodec
from twofold.measure.fidelity import C1, EQUAL, detail, psnr, ssim


def pair(h: int = 33, w: int = 40, c: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    rough = torch.rand(4, c, h // 4 + 1, w // 4 + 1, generator=g)
    a = torch.nn.functional.interpolate(rough, (h, w), mode="bilinear").mul(255).to(torch.uint8)
    b = (a.int() + torch.randint(-30, 31, a.shape, generator=g)).clamp(0, 255).to(torch.uint8)
    return a, b


def test_psnr_is_torchmetrics() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    a, b = pair()
    for i, value in enumerate(psnr(a, b)):
        theirs = peak_signal_noise_ratio(a[i].double(), b[i].double(), data_range=255.0)
        assert float(value) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_torchmetrics(channels: int) -> None:
    """Where the window lies within the image; their own mean takes mirrored edges in as well."""
    from torchmetrics.functional.image import structural_similarity_index_measure as theirs

    a, b = pair(c=channels)
    full = theirs(a.double(), b.double(), data_range=255.0, reduction="none", return_full_image=True)[1]
    expected = full[:, :, 5:-5, 5:-5].flatten(1).mean(1)
    torch.testing.assert_close(ssim(a, b), expected, rtol=0, atol=1e-6)
    assert (ssim(a, b) < 0.99).all()


def test_a_constant_offset_in_x0() -> None:
    """0.1 in [-1, 1] is 10 log10(4 / 0.01) = 26.02 dB; the peak is 255 of levels, never of [-1, 1]."""
    codec = PixelCodec()
    x0 = torch.zeros(1, 3, 16, 16)
    exact = 20 * math.log10(255 / 12)  # of 12.75 levels, 12 are left by rounding here
    assert float(psnr(codec.decode(x0), codec.decode(x0 + 0.1))) == pytest.approx(exact, abs=1e-6)
    assert 10 * math.log10(2**2 / 0.1**2) == pytest.approx(26.02, abs=0.001) and abs(exact - 26.02) < 0.6
    levels = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    assert float(psnr(levels, levels + 10)) == pytest.approx(28.1308, abs=1e-4)


def test_plain_images_in_closed_form() -> None:
    """Without variance SSIM is the term of the means."""
    a, b = (torch.full((1, 1, 16, 16), value, dtype=torch.uint8) for value in (100, 110))
    assert float(ssim(a, b)) == pytest.approx((2 * 100 * 110 + C1) / (100**2 + 110**2 + C1), abs=1e-9)


def test_equal_images() -> None:
    a, _ = pair()
    assert (psnr(a, a) == EQUAL).all() and torch.allclose(ssim(a, a), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("side", [1, 2, 8, 10])
def test_images_smaller_than_the_window(side: int) -> None:
    a, b = pair(side, side, 1)
    assert torch.isfinite(ssim(a, b)).all() and (ssim(a, b) < 1).any()


@pytest.mark.parametrize("other", [torch.zeros(1, 1, 8, 9, dtype=torch.uint8), torch.zeros(1, 1, 8, 8)])
def test_only_equal_shapes_of_uint8(other: Tensor) -> None:
    a = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="two equal shapes"):
        psnr(a, other)
    with pytest.raises(ValueError, match="two equal shapes"):
        ssim(a, other)


def test_detail_in_closed_form() -> None:
    """A ramp of 3 levels a pixel across has 9 there and 0 down; a chessboard 255^2 everywhere; blur takes some away."""
    ramp = torch.arange(0, 30, 3, dtype=torch.uint8).expand(1, 1, 6, 10)
    assert float(detail(ramp)) == pytest.approx(9 * (6 * 9) / (6 * 9 + 5 * 10))
    at = torch.arange(8)
    board = (255 * ((at[:, None] + at) % 2)).to(torch.uint8).expand(2, 3, 8, 8)
    assert detail(board).tolist() == [255.0**2] * 2
    a, _ = pair()
    blurred = torch.nn.functional.avg_pool2d(a.float(), 3, 1, 1).to(torch.uint8)
    assert (detail(blurred)[:, None] < detail(a)).all()
    assert detail(a[:, :, :1, :1]).tolist() == [0.0] * 4
