"""The classifier head of a joint model: it reads the means of the maps that a U-Net's encoder hands to its decoder.

    z = cat over taps k of mean over pixels of tap k                                  (B, F), the middle first
    taps        W2 silu(W1 cat of norm(z_k) + emb(c_noise)) + b2                      no statistics over a batch
    published   BN, W1, leaky ReLU, BN, W2 of cat(z, c_noise)                         Deja et al. 2023 (Joint Diffusion)

The published head has 6,922,892 parameters for 10 classes of 32x32 images. Its batch norm over the raw time collapses
where it is trained at one noise level: asked at any other, it answers with certainty whatever it sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..settings.network import TapHeadSettings

MOST = 512  # hidden units of a head whose width is not given
SLOPE = 0.01  # of the published head's leaky ReLU


def pooled(maps: Sequence[Tensor], pool: int = 1) -> list[Tensor]:
    """Means over the parts of a grid of pool x pool, (B, D_k pool^2), float32 or better."""
    found = [h.to(torch.promote_types(h.dtype, torch.float32)) for h in maps]
    if pool == 1:
        return [h.mean((2, 3)) for h in found]
    return [F.adaptive_avg_pool2d(h, pool).flatten(1) for h in found]


def build_head(settings: TapHeadSettings, widths: Sequence[int], embedding: int, classes: int) -> nn.Module:
    """The head for taps of these widths; embedding: width of the noise level's. classes: how many the data has.

    Raises `UserError` for fewer than 2 classes.
    """
    classes, widths = settings.classes or classes, [width * settings.pool**2 for width in widths]
    if classes < 2:
        raise UserError("network.head.classes", f"a classifier of {classes} classes", "it needs at least 2")
    if settings.kind == "published":
        return PublishedHead(settings, sum(widths), classes)
    return TapHead(settings, widths, embedding, classes)


class TapHead(nn.Module):
    """forward(taps [(B, D_k)], c_noise (B,), waves (B, E)) -> (B, classes).

    Each tap is normed by itself, because their scales differ; every answer is a function of its own image alone.
    """

    def __init__(self, settings: TapHeadSettings, widths: Sequence[int], embedding: int, classes: int) -> None:
        super().__init__()
        width = sum(widths)
        hidden = settings.hidden or min(MOST, max(1, width // 2))
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.hidden = nn.Linear(width, hidden)
        self.emb1 = nn.Linear(embedding, embedding)
        self.emb2 = nn.Linear(embedding, hidden)
        self.drop = nn.Dropout(settings.dropout)
        self.out = nn.Linear(hidden, classes)

    def forward(self, taps: Sequence[Tensor], c_noise: Tensor, waves: Tensor) -> Tensor:
        z = torch.cat([F.layer_norm(z, z.shape[1:]) for z in taps], dim=1) * self.gain + self.bias
        emb = self.emb2(F.silu(self.emb1(waves)))
        return self.out(self.drop(F.silu(self.hidden(self.drop(z)) + emb)))


class PublishedHead(nn.Module):
    """The same call; `waves` are not looked at. Fewer than two images are normed by the running statistics."""

    def __init__(self, settings: TapHeadSettings, width: int, classes: int) -> None:
        super().__init__()
        hidden = settings.hidden or max(1, width // 2)
        self.norm1, self.norm2 = nn.BatchNorm1d(width + 1), nn.BatchNorm1d(hidden)
        self.hidden = nn.Linear(width + 1, hidden)
        self.drop = nn.Dropout(settings.dropout)
        self.out = nn.Linear(hidden, classes)

    def forward(self, taps: Sequence[Tensor], c_noise: Tensor, waves: Tensor) -> Tensor:
        z = torch.cat([*taps, c_noise[:, None].to(taps[0].dtype)], dim=1)
        h = F.leaky_relu(self.hidden(_normed(self.norm1, self.drop(z))), SLOPE)
        return self.out(_normed(self.norm2, self.drop(h)))


def _normed(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    if len(x) > 1 or not norm.training:
        return norm(x)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
