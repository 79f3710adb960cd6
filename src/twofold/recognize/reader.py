"""Features of images as they come, without a cache: what a fitted probe, an embedding and the transformer read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import UserError
from ..generate.sample import place
from ..taps import check_layers
from .bank import feature_maps
from .choose import Place
from .pooling import check_pool, pooled
from .views import Views


class Reader:
    """`read(images)`: features of these places, side by side, averaged over noise draws.

    places: (layer, sigma) pairs; layers of one noise level are read in one pass. draws, seed: of the noise, which is
    that of a bank with the same seed. clean: see `bank.Grid`. Raises `UserError` for layers, levels and poolings that
    the denoiser does not have.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        places: Sequence[Place],
        pool: str = "mean",
        draws: int = 1,
        seed: int = 0,
        clean: bool = False,
        micro_batch: int = 128,
    ) -> None:
        self.denoiser, self.pool, self.draws, self.clean = denoiser, check_pool(pool), draws, clean
        self.micro_batch, self.views = micro_batch, Views(draws, seed=seed)
        self.widths: list[int] = []  # of the places' features; known after the first images
        self.places = [(check_layers([layer], denoiser.layers, denoiser.aliases)[0], sigma) for layer, sigma in places]
        low, high = denoiser.sigma_range
        for _, sigma in self.places:
            if sigma != 0 and not low * (1 - 1e-6) <= sigma <= high * (1 + 1e-6):
                raise UserError(f"sigma={sigma:g}", f"the model knows {low:.4g} to {high:.4g}", "or 0, the clean image")

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> (N, sum of D) float32 on the CPU. The denoiser should be in eval mode."""
        return torch.cat([self._read(part) for part in images.split(self.micro_batch)])

    def names(self) -> list[str]:
        """`<layer>@<sigma>[<channel>]` of every feature, in order; known after the first images."""
        pairs = zip(self.places, self.widths, strict=True)
        return [f"{layer}@{sigma:g}[{k}]" for (layer, sigma), width in pairs for k in range(width)]

    def _read(self, images: Tensor) -> Tensor:
        device = place(self.denoiser)[0]
        x0 = self.denoiser.codec.encode(images.to(device))
        sums: dict[Place, Tensor] = {}
        for draw in range(self.draws):
            noise = self.views.make(images, draw, self.denoiser.shape)[1].to(device)
            for sigma in dict.fromkeys(sigma for _, sigma in self.places):
                layers = list(dict.fromkeys(layer for layer, level in self.places if level == sigma))
                maps = feature_maps(self.denoiser, x0, noise, sigma, layers, self.clean)
                for layer in layers:
                    value = pooled(maps[layer], self.pool)
                    sums[layer, sigma] = sums[layer, sigma] + value if draw else value
        self.widths = [sums[place].shape[1] for place in self.places]
        return (torch.cat([sums[place] for place in self.places], dim=1) / self.draws).cpu()


def as_images(x: object, denoiser: Denoiser) -> Tensor:
    """Pixels in one of the usual forms as uint8 (N, C, H, W), as the denoiser's codec takes them.

    Takes uint8 arrays or tensors (N, C, H, W), (N, H, W, C), (N, H, W) for one channel, and flat (N, C * H * W). Latent
    models resize, so they take (N, C, H, W) and (N, H, W, C) of any size with 1 or 3 channels.
    Raises `UserError` for anything else.
    """
    array = x.cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if array.dtype != np.uint8:
        hint = "give pixels 0..255 as uint8: for 0..1 use (255 * x).round().astype('uint8')"
        raise UserError("images", f"their type is {array.dtype}", hint)
    if getattr(denoiser.codec, "latent", False):
        if array.ndim != 4 or not {array.shape[1], array.shape[3]} & {1, 3}:
            raise UserError("images", f"of shape {array.shape}", "the model takes (N, 3, H, W)")
        array = array if array.shape[1] in (1, 3) else array.transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(array))
    c, h, w = denoiser.shape
    forms = {(c, h, w): array, (h, w, c): array, (c * h * w,): array} | ({(h, w): array} if c == 1 else {})
    if array.ndim < 2 or array.shape[1:] not in forms:
        raise UserError("images", f"of shape {array.shape}", f"the model takes (N, {c}, {h}, {w})")
    if array.shape[1:] == (h, w, c) and (h, w, c) != (c, h, w):
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array.reshape(-1, c, h, w)))
