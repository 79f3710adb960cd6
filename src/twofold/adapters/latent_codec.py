"""Images <-> the latents of an autoencoder that diffusers runs (Rombach et al. 2022).

    x0 = scale * (z - shift),   z = the posterior's mean, or mean + std * noise

Images are resized last: what augments them works at their own size (the order that DiT's probes were published with).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec import PixelCodec
from ..errors import UserError
from ..hashing import weights_hash
from .diffusers_files import class_name, read_model

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

PIXELS_AT_ONCE = 2**20  # of a micro-batch; a layer of 128 channels at full resolution takes 512 MiB of float32


class LatentCodec(nn.Module):
    """The codec of a latent model; a module, so that it moves with the denoiser that owns it.

    vae: diffusers' AutoencoderKL; stays in eval mode and gets no gradients. size: (H, W) that images are resized to
    before they are encoded, None for their own. scale, shift: of the latents, by default the autoencoder's own.

    Raises `UserError` for a size that the autoencoder cannot halve often enough.
    """

    latent = True

    def __init__(
        self,
        vae: AutoencoderKL,
        size: tuple[int, int] | None = None,
        scale: float | None = None,
        shift: float | None = None,
    ) -> None:
        super().__init__()
        module: Any = vae  # its stubs know neither its configuration nor that it is a module
        self.vae = module.requires_grad_(False)
        config = module.config
        self.stride = 2 ** (len(config.block_out_channels) - 1)
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.scale = float(config.scaling_factor if scale is None else scale)
        self.shift = float((config.shift_factor or 0) if shift is None else shift)
        self._pixels = PixelCodec()
        self.eval()
        if self.size is not None:
            self._check_size(*self.size)

    @property
    def key(self) -> str:
        """SHA-256 of the weights, size, scale and shift, computed at each access: equal keys, equal latents."""
        facts = f"{weights_hash(self.vae)} {self.size} {self.scale!r} {self.shift!r}"
        return hashlib.sha256(facts.encode()).hexdigest()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: a denoiser that is trained reads its latents, and does not change them."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """uint8 (B, C, H, W), grey or RGB, on any device -> x0 (B, D, h, w) float32 on the autoencoder's.

        noise: (B, D, h, w) standard normal, to draw from the posterior; None gives its mean.
        Raises `UserError` for other channels and for a size the autoencoder cannot encode.
        """
        if images.shape[1] not in (1, 3):
            what = f"{images.shape[1]} channels"
            raise UserError("images", what, "a latent model reads grey or RGB images")
        if self.size is None:
            self._check_size(*images.shape[2:])
        height, width = self.size or images.shape[2:]
        batch = max(1, PIXELS_AT_ONCE // (height * width))
        parts = images.split(batch)
        noises = [None] * len(parts) if noise is None else noise.split(batch)
        return torch.cat([self._encode(part, own) for part, own in zip(parts, noises, strict=True)])

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """x0 (B, D, h, w) -> uint8 (B, 3, H, W): rounded to the nearest level and clamped."""
        batch = max(1, PIXELS_AT_ONCE // (x0.shape[2] * x0.shape[3] * self.stride**2))
        return torch.cat([self._decode(part) for part in x0.split(batch)])

    def _encode(self, images: Tensor, noise: Tensor | None) -> Tensor:
        weight = next(self.vae.parameters())
        pixels = self._pixels.encode(images.to(weight.device))
        if self.size is not None and tuple(pixels.shape[2:]) != self.size:
            smaller = pixels.shape[2] > self.size[0] or pixels.shape[3] > self.size[1]
            pixels = F.interpolate(pixels, self.size, mode="bilinear", align_corners=False, antialias=smaller)
        pixels = pixels.expand(-1, 3, -1, -1).to(weight.dtype)
        with torch.autocast(weight.device.type, enabled=False):
            posterior = self.vae.encode(pixels).latent_dist
        z = posterior.mean.float()
        if noise is not None:
            z = z + posterior.std.float() * noise.to(z)
        return (z - self.shift) * self.scale

    def _decode(self, x0: Tensor) -> Tensor:
        weight = next(self.vae.parameters())
        z = x0.to(weight.device).float() / self.scale + self.shift
        with torch.autocast(weight.device.type, enabled=False):
            return self._pixels.decode(self.vae.decode(z.to(weight.dtype)).sample)

    def _check_size(self, height: int, width: int) -> None:
        if height % self.stride or width % self.stride:
            hint = f"the autoencoder needs multiples of {self.stride}"
            raise UserError(f"size {height}x{width}", "cannot be encoded", hint)


def codec_for(folder: Path, shape: tuple[int, int, int]) -> LatentCodec:
    """The AutoencoderKL in diffusers' folder, at the size that makes latents of this shape.

    Raises `UserError` for another class, for other channels, and for latents that are not scaled by one factor.
    """
    if class_name(folder) != "AutoencoderKL":
        raise UserError(f"{folder}: {class_name(folder)}", "another class than makes latents", "valid: AutoencoderKL")
    from diffusers import AutoencoderKL

    vae = read_model(folder, AutoencoderKL)
    c = vae.config
    if c.latent_channels != shape[0] or (c.in_channels, c.out_channels) != (3, 3):
        what = f"{c.in_channels} -> {c.latent_channels} -> {c.out_channels} channels"
        raise UserError(str(folder), what, f"the transformer needs 3 -> {shape[0]} -> 3")
    for key in ("latents_mean", "latents_std"):
        if c.get(key) is not None:
            raise UserError(f"{folder}: {key}", "latents scaled by channel are not supported", "use scaling_factor")
    stride = 2 ** (len(c.block_out_channels) - 1)
    return LatentCodec(vae, (shape[1] * stride, shape[2] * stride))


class NoCodec:
    """The codec of a latent model whose autoencoder is not there: latents can be used, images cannot."""

    latent = True

    def __init__(self, where: str) -> None:
        self.where = where

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        raise self._error()

    def decode(self, x0: Tensor) -> Tensor:
        raise self._error()

    def _error(self) -> UserError:
        hint = "a vae folder is needed beside the transformer's: give a DiTPipeline folder, or set denoiser.codec"
        return UserError(self.where, "a latent model without its autoencoder reads and makes no images", hint)
