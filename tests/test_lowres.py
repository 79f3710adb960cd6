"""Images at a lower resolution and back: against Pillow, and what becomes of constants and of sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from twofold.errors import UserError
from twofold.lowres import enlarge, enlarged, shrink


def by_pillow(images: Tensor, height: int, width: int) -> Tensor:
    resized = [
        np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC))
        for image in images
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_is_pillows_bicubic(factor: int) -> None:
    """Of noise, the worst there is: Pillow rounds to whole levels between its two passes, and so does this."""
    images = torch.randint(0, 256, (2, 3, 48, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    off = (shrink(images, factor).int() - by_pillow(images, 48 // factor, 32 // factor).int()).abs()
    assert off.max() <= 1 and off.float().mean() < 0.05
    off = (enlarged(images, factor).int() - by_pillow(images, 48 * factor, 32 * factor).int()).abs()
    assert off.max() <= 2 and off.float().mean() < 0.05


def test_is_what_images_are_packed_with() -> None:
    from twofold.data.decode import decode
    from twofold.settings.data import DataSettings

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    packed = decode(pixels, DataSettings(source="x", size=(8, 8)))
    ours = shrink(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], 4)[0].permute(1, 2, 0)
    assert np.abs(packed.astype(int) - ours.numpy().astype(int)).max() <= 1


def test_antialiased() -> None:
    """Stripes of one pixel become grey; every second pixel alone would be black."""
    stripes = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    stripes[..., ::2] = 255
    assert (shrink(stripes, 4)[..., 1:-1].int() - 127).abs().max() < 8


@given(st.integers(0, 255), st.sampled_from([2, 4, 8]), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_a_plain_image_stays_plain(level: int, factor: int, h: int, w: int) -> None:
    plain = torch.full((1, 1, h * factor, w * factor), level, dtype=torch.uint8)
    low = shrink(plain, factor)
    assert low.shape == (1, 1, h, w) and (low == level).all()
    assert torch.equal(enlarged(low, factor), plain)


def test_enlarging_x0() -> None:
    low = torch.randn(1, 3, 4, 4).clamp(-1, 1)
    large = enlarge(low, 16, 16)
    assert large.shape == (1, 3, 16, 16) and large.abs().max() <= 1
    assert enlarge(large, 16, 16) is large


def test_sizes_that_are_no_multiple() -> None:
    with pytest.raises(UserError, match=r"30x33: is no multiple of 4, .*give images of 28x32"):
        shrink(torch.zeros(1, 1, 30, 33, dtype=torch.uint8), 4)
