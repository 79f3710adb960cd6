"""Images <-> the latents of an autoencoder that diffusers runs (Rombach et al. 2022).

    x0 = scale * (z - shift),   z = the posterior's mean, or mean + exp(logvar / 2) * noise

Mean and logvar together are the moments (B, 2D, h, w); what is kept of images are these, because a draw from the
posterior costs nothing and an encoder does.

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
from ..files import atomic_folder
from ..hashing import weights_hash
from .diffusers_files import class_name, read_model

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

LOGVAR = (-30.0, 20.0)  # the published range
PIXELS_AT_ONCE = 2**20  # of a micro-batch; a layer of 128 channels at full resolution takes 512 MiB of float32


class LatentCodec(nn.Module):
    """The codec of a latent model; a module, so that it moves with the denoiser that owns it.

    vae: diffusers' AutoencoderKL; stays in eval mode and gets no gradients. size: (H, W) that images are resized to
    before they are encoded, None for their own. scale, shift: of the latents, by default the autoencoder's own.
    channels: of decoded images: 1 makes those of an RGB autoencoder grey; None: as it has them.

    Raises `UserError` for a size that the autoencoder cannot halve often enough.
    """

    latent = True

    def __init__(
        self,
        vae: AutoencoderKL,
        size: tuple[int, int] | None = None,
        scale: float | None = None,
        shift: float | None = None,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        module: Any = vae  # its stubs know neither its configuration nor that it is a module
        self.vae: Any = module.requires_grad_(False)
        config = module.config
        self.stride = 2 ** (len(config.block_out_channels) - 1)
        self.channels = channels or int(config.out_channels)
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

    @property
    def moments_key(self) -> str:
        """The same for what `moments` depends on: weights and size."""
        return hashlib.sha256(f"{weights_hash(self.vae)} {self.size}".encode()).hexdigest()

    def shape_of(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(D, h, w) of x0 for images of shape (C, H, W). Raises `UserError` for images it cannot encode."""
        self._check_channels(shape[0])
        height, width = self.size or shape[1:]
        self._check_size(height, width)
        return int(self.vae.config.latent_channels), height // self.stride, width // self.stride

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: a denoiser that is trained reads its latents, and does not change them."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """uint8 (B, C, H, W), grey or RGB, on any device -> x0 (B, D, h, w) float32 on the autoencoder's.

        noise: (B, D, h, w) standard normal, to draw from the posterior; None gives its mean.
        Raises `UserError` for other channels and for a size the autoencoder cannot encode.
        """
        moments = self.moments(images)
        return self.draw(moments, noise)

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> (B, 2D, h, w) float32: the posterior's mean, and its logvar within -30..20.

        Raises `UserError` as `encode` does.
        """
        self._check_channels(images.shape[1])
        if self.size is None:
            self._check_size(*images.shape[2:])
        height, width = self.size or images.shape[2:]
        batch = max(1, PIXELS_AT_ONCE // (height * width))
        return torch.cat([self._moments(part) for part in images.split(batch)])

    def draw(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """x0 (B, D, h, w) float32, on the autoencoder's device, of moments in any float type; noise as in `encode`."""
        weight = next(self.vae.parameters())
        mean, logvar = moments.to(weight.device, torch.float32).chunk(2, 1)
        z = mean if noise is None else mean + (logvar / 2).exp() * noise.to(mean)
        return (z - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """x0 (B, D, h, w) -> uint8 (B, channels, H, W): rounded to the nearest level and clamped."""
        batch = max(1, PIXELS_AT_ONCE // (x0.shape[2] * x0.shape[3] * self.stride**2))
        return torch.cat([self._decode(part) for part in x0.split(batch)])

    def _moments(self, images: Tensor) -> Tensor:
        weight = next(self.vae.parameters())
        pixels = self._pixels.encode(images.to(weight.device))
        if self.size is not None and tuple(pixels.shape[2:]) != self.size:
            smaller = pixels.shape[2] > self.size[0] or pixels.shape[3] > self.size[1]
            pixels = F.interpolate(pixels, self.size, mode="bilinear", align_corners=False, antialias=smaller)
        pixels = pixels.expand(-1, self.vae.config.in_channels, -1, -1).to(weight.dtype)
        with torch.autocast(weight.device.type, enabled=False):
            posterior = self.vae.encode(pixels).latent_dist
        return torch.cat([posterior.mean.float(), posterior.logvar.float().clamp(*LOGVAR)], 1)

    def _decode(self, x0: Tensor) -> Tensor:
        weight = next(self.vae.parameters())
        z = x0.to(weight.device).float() / self.scale + self.shift
        with torch.autocast(weight.device.type, enabled=False):
            pixels = self.vae.decode(z.to(weight.dtype)).sample
        if self.channels == 1 and pixels.shape[1] != 1:
            pixels = pixels.mean(1, keepdim=True)
        return self._pixels.decode(pixels)

    def _check_channels(self, channels: int) -> None:
        own = int(self.vae.config.in_channels)
        if channels not in (1, own):
            what = f"{channels} channels"
            if own == 3:
                raise UserError("images", what, "a latent model reads grey or RGB images")
            raise UserError("images", what, "this autoencoder is of grey images: set data.channels=1")

    def _check_size(self, height: int, width: int) -> None:
        if height % self.stride or width % self.stride:
            hint = f"the autoencoder needs multiples of {self.stride}"
            raise UserError(f"size {height}x{width}", "cannot be encoded", hint)


def codec_for(folder: Path, shape: tuple[int, int, int]) -> LatentCodec:
    """The AutoencoderKL in diffusers' folder, at the size that makes latents of this shape.

    Raises `UserError` for another class, for other channels, and for latents that are not scaled by one factor.
    """
    vae: Any = read_autoencoder(folder)
    c = vae.config
    if c.latent_channels != shape[0] or (c.in_channels, c.out_channels) != (3, 3):
        what = f"{c.in_channels} -> {c.latent_channels} -> {c.out_channels} channels"
        raise UserError(str(folder), what, f"the transformer needs 3 -> {shape[0]} -> 3")
    stride = 2 ** (len(c.block_out_channels) - 1)
    return LatentCodec(vae, (shape[1] * stride, shape[2] * stride))


def read_autoencoder(folder: Path) -> AutoencoderKL:
    """The AutoencoderKL in a folder in diffusers' layout, in eval mode.

    Raises `UserError` for another class, other channels out than in, and latents that are not scaled by one factor.
    """
    if class_name(folder) != "AutoencoderKL":
        raise UserError(f"{folder}: {class_name(folder)}", "another class than makes latents", "valid: AutoencoderKL")
    from diffusers import AutoencoderKL

    vae: Any = read_model(folder, AutoencoderKL)
    c = vae.config
    for key in ("latents_mean", "latents_std"):
        if c.get(key) is not None:
            raise UserError(f"{folder}: {key}", "latents scaled by channel are not supported", "use scaling_factor")
    if c.in_channels != c.out_channels or c.in_channels not in (1, 3):
        what = f"{c.in_channels} channels in, {c.out_channels} out"
        raise UserError(str(folder), what, "an autoencoder of grey or RGB images is needed")
    return vae


def write_autoencoder(codec: LatentCodec, folder: Path) -> None:
    """Puts the autoencoder with its scale and shift into a new folder, in diffusers' layout, whole or not at all."""
    vae: Any = codec.vae
    vae.register_to_config(scaling_factor=codec.scale, shift_factor=codec.shift or None)
    with atomic_folder(folder) as temporary:
        vae.save_pretrained(temporary, safe_serialization=True)


class NoCodec:
    """The codec of a latent model whose autoencoder is not there: latents can be used, images cannot.

    where: the model, for messages. hint: how its autoencoder is given.
    """

    latent = True
    HINT = "a vae folder is needed beside the transformer's: give a DiTPipeline folder, or set denoiser.codec"

    def __init__(self, where: str, hint: str = HINT) -> None:
        self.where, self.hint = where, hint

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        raise self._error()

    def decode(self, x0: Tensor) -> Tensor:
        raise self._error()

    def _error(self) -> UserError:
        return UserError(self.where, "a latent model without its autoencoder reads and makes no images", self.hint)
