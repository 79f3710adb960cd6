"""Latents against diffusers' own autoencoder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.adapters import latent_codec
from twofold.adapters.latent_codec import LatentCodec
from twofold.codec import PixelCodec
from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.noise import EDM
from twofold.settings.noise import EDMNoise

from . import peers

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    return LatentCodec(peers.autoencoder(), (16, 16))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two images of 16 x 16 at once."""
    monkeypatch.setattr(latent_codec, "PIXELS_AT_ONCE", 2 * 16 * 16)
    yield


def images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_latents_are_the_scaled_mean(codec: LatentCodec) -> None:
    picture = images(3, 3, 16, 16)
    with torch.no_grad():
        expected = codec.vae.encode(picture / 127.5 - 1).latent_dist.mean * 0.18215
    found = codec.encode(picture)
    assert found.shape == (3, 4, 8, 8) and found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_noise_draws_from_the_posterior(codec: LatentCodec) -> None:
    picture, noise = images(2, 3, 16, 16), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        posterior = codec.vae.encode(picture / 127.5 - 1).latent_dist
    expected = (posterior.mean + posterior.std * noise) * 0.18215
    torch.testing.assert_close(codec.encode(picture, noise), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(codec.encode(picture, noise), codec.encode(picture))


def test_decoding_is_the_autoencoders(codec: LatentCodec) -> None:
    x0 = codec.encode(images(2, 3, 16, 16))
    with torch.no_grad():
        expected = PixelCodec().decode(codec.vae.decode(x0 / 0.18215).sample)
    found = codec.decode(x0)
    assert found.dtype == torch.uint8 and found.shape == (2, 3, 16, 16)
    assert int((found.int() - expected.int()).abs().max()) <= 1


@pytest.mark.parametrize(("side", "antialias"), [(8, False), (40, True)])
def test_images_are_resized_and_grey_is_repeated(codec: LatentCodec, side: int, antialias: bool) -> None:
    picture = images(2, 1, side, side)
    resized = F.interpolate(picture / 127.5 - 1, (16, 16), mode="bilinear", antialias=antialias)
    with torch.no_grad():
        expected = codec.vae.encode(resized.repeat(1, 3, 1, 1)).latent_dist.mean * 0.18215
    torch.testing.assert_close(codec.encode(picture), expected, rtol=1e-4, atol=1e-5)


def test_batches_of_any_size_agree(codec: LatentCodec, small_batches: None) -> None:
    picture, noise = images(5, 3, 24, 24), torch.randn(5, 4, 8, 8)
    seen: list[int] = []
    handle = codec.vae.encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    together = codec.encode(picture, noise)
    handle.remove()
    assert seen == [2, 2, 1]
    apart = torch.cat([codec.encode(picture[i : i + 1], noise[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    difference = codec.decode(together).int() - torch.cat([codec.decode(row[None]) for row in together]).int()
    assert int(difference.abs().max()) <= 1


def test_scale_and_shift() -> None:
    vae = peers.autoencoder(scaling_factor=0.5, shift_factor=0.25)
    picture = images(1, 3, 16, 16)
    own, plain = LatentCodec(vae), LatentCodec(vae, scale=1, shift=0)
    z = plain.encode(picture)
    torch.testing.assert_close(own.encode(picture), (z - 0.25) * 0.5)
    assert int((own.decode((z - 0.25) * 0.5).int() - plain.decode(z).int()).abs().max()) <= 1
    assert own.key != plain.key


def test_the_key_names_weights_and_size(codec: LatentCodec) -> None:
    vae = peers.autoencoder()
    assert LatentCodec(vae, (16, 16)).key == codec.key
    assert LatentCodec(vae, (32, 32)).key != codec.key
    assert LatentCodec(vae, (16, 16), scale=1).key != codec.key
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] += 1e-3
    assert LatentCodec(vae, (16, 16)).key != codec.key


def test_it_moves_with_its_denoiser_and_stays_in_eval_mode(codec: LatentCodec) -> None:
    network = nn.Conv2d(4, 4, 1)
    denoiser = NetworkDenoiser(network, EDM(EDMNoise()), (4, 8, 8), codec=LatentCodec(peers.autoencoder(), (16, 16)))
    assert isinstance(denoiser.codec, LatentCodec)
    assert any(name.startswith("codec.vae.") for name in denoiser.state_dict())
    denoiser.train()
    assert denoiser.training and not any(module.training for module in denoiser.codec.modules())
    picture = images(1, 3, 16, 16)
    denoiser.to(torch.float64)
    found = denoiser.codec.encode(picture)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, codec.encode(picture), rtol=1e-4, atol=1e-5)
    assert codec.latent


def test_what_cannot_be_encoded_is_named(codec: LatentCodec) -> None:
    with pytest.raises(UserError, match="4 channels"):
        codec.encode(images(1, 4, 16, 16))
    with pytest.raises(TypeError, match="uint8"):
        codec.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(UserError, match="size 15x16: cannot be encoded; the autoencoder needs multiples of 2"):
        LatentCodec(codec.vae).encode(images(1, 3, 15, 16))
    with pytest.raises(UserError, match="size 16x17"):
        LatentCodec(codec.vae, (16, 17))
