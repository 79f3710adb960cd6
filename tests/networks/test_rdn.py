"""The residual dense network: its size, what it computes, any size of images, and what it starts as."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.errors import UserError
from twofold.lowres import enlarge
from twofold.networks.rdn import RDN, DenseBlock, Upscaler
from twofold.settings.regression import RDNSettings


def small(shape: tuple[int, int, int] = (1, 16, 16), **options: Any) -> RDN:
    """In float64, with weights that are all of some size."""
    given = {"channels": 6, "growth": 4, "blocks": 2, "dense_layers": 3, "low_factor": 2, **options}
    torch.manual_seed(0)
    network = RDN(RDNSettings(**given), shape).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return network.requires_grad_(False)


@pytest.mark.parametrize(("factor", "rgb"), [(2, False), (4, True)])
def test_parameters(factor: int, rgb: bool) -> None:
    """Counted by hand: c channels, g growth, a 3x3 convolution of a to b has 9ab + b."""
    c, g, images = 64, 32, 3 if rgb else 1
    dense = sum(9 * (c + k * g) * g + g for k in range(6)) + (c + 6 * g) * c + c
    shallow, fused = (9 * images * c + c) + (9 * c * c + c), (3 * c * c + c) + (9 * c * c + c)
    large = (9 * c * c * factor**2 + c * factor**2) + (9 * c * images + images)
    with torch.device("meta"):
        network = RDN(RDNSettings(low_factor=factor), (images, 256, 256))
    assert sum(p.numel() for p in network.parameters()) == shallow + 3 * dense + fused + large


def test_a_layer_sees_all_before_it() -> None:
    """A convolution of maps side by side is the sum of those of each, with their parts of the weights."""
    torch.manual_seed(0)
    block, h = DenseBlock(6, 4, 3).double(), torch.randn(2, 6, 5, 7, dtype=torch.float64)
    maps = [h]
    for layer in block.layers:
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
        parts = weight.split([m.shape[1] for m in maps], 1)
        z = sum(F.conv2d(m, part, padding=1) for m, part in zip(maps, parts, strict=True)) + bias[:, None, None]
        maps.append(z * torch.sigmoid(z))
    fused = torch.einsum("oc,bchw->bohw", block.fuse.weight[:, :, 0, 0], torch.cat(maps, 1))
    assert block.fuse.bias is not None
    torch.testing.assert_close(block(h), h + fused + block.fuse.bias[:, None, None])


def test_an_untrained_one_is_bicubic() -> None:
    torch.manual_seed(0)
    low = torch.rand(2, 3, 5, 4) * 2 - 1
    network = RDN(RDNSettings(channels=8, growth=4), (3, 16, 16))
    assert torch.equal(network.upscale(low), enlarge(low, 20, 16))
    plain = RDN(RDNSettings(channels=8, growth=4, low_residual=False), (3, 16, 16))
    assert (plain.upscale(low) - enlarge(low, 20, 16)).abs().min() > 0


@pytest.mark.parametrize("residual", [True, False])
def test_a_part_is_a_part_of_the_whole(residual: bool) -> None:
    """Away from edges, as far as its convolutions reach: 2 in the stem, 3 in a block, 3 behind, 1 of bicubic."""
    network, low = small(low_residual=residual), torch.rand(1, 1, 40, 34, dtype=torch.float64) * 2 - 1
    reach = 2 + 2 * 3 + 3 + 1
    whole, part = network.upscale(low), network.upscale(low[:, :, 4:34, 5:31])
    inner = (..., slice(2 * reach, -2 * reach), slice(2 * reach, -2 * reach))
    torch.testing.assert_close(part[inner], whole[:, :, 8:68, 10:62][inner], rtol=1e-12, atol=1e-12)
    assert (part - whole[:, :, 8:68, 10:62]).abs().max() > 1e-3  # but not at them


def test_who_asks_for_its_cost_calls_it_as_a_denoiser() -> None:
    network, x0 = small(), torch.rand(2, 1, 16, 16, dtype=torch.float64)
    assert torch.equal(network(x0, torch.zeros(2)), network.upscale(x0[:, :, ::2, ::2]))


def test_the_model_computes_in_half_precision_if_told() -> None:
    network, low = small().float(), torch.rand(1, 1, 8, 8)
    model = Upscaler(network, (1, 16, 16))
    exact = model(low)
    model.autocast = torch.bfloat16
    assert model(low).dtype == torch.float32 and not torch.equal(model(low), exact)
    torch.testing.assert_close(model(low), exact, atol=0.5, rtol=0.05)


def test_a_factor_that_divides_no_side() -> None:
    with pytest.raises(UserError, match="30x32: is no multiple of 4"):
        RDN(RDNSettings(), (1, 30, 32))
