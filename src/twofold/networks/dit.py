"""A diffusion transformer: patches become tokens, blocks are told noise level and label by adaLN-Zero.

    block   x + gate attention(scale norm(x) + shift),  x + gate mlp(scale norm(x) + shift)       (and the 1 in scale)

The six vectors come from the embedding by one linear layer that begins at zero, so that every block begins as the
identity. Peebles and Xie 2023 (sections 3.2 and appendix A). Positions are sines and cosines of column and row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..settings.network import DiTSettings
from ..taps import Layer
from .blocks import attend
from .unet import sinusoid

Cond = Mapping[str, Tensor]


def positions(
    width: int, grid: tuple[int, int], trained: tuple[int, int], device: torch.device | str = "cpu"
) -> Tensor:
    """Position embeddings (h * w, width) float32, row by row: the first half tells the column, the second the row.

    grid: (h, w) tokens. trained: (h, w) of the size the network was trained at; another grid is laid over the same
    range, so that its corners are where they were.
    """
    dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
    steps = torch.arange(width // 4, dtype=dtype, device=device)
    frequencies = torch.exp(-math.log(10000) / (width // 4) * steps)
    halves = []
    for now, then in zip(grid, trained, strict=True):
        angle = torch.arange(now, dtype=dtype, device=device)[:, None] * (then / now) * frequencies
        halves.append(torch.cat([angle.sin(), angle.cos()], dim=1))
    rows, columns = halves
    h, w = grid
    both = [columns[None].expand(h, w, -1), rows[:, None].expand(h, w, -1)]
    return torch.cat(both, dim=2).flatten(0, 1).float()


class NoiseAndLabel(nn.Module):
    """Noise level and label to one vector: c_noise (B,), label (B,) int64 -> (B, D). The last row of `label` is "none".

    A network without classes has no labels and none of them is looked at.
    """

    def __init__(self, settings: DiTSettings) -> None:
        super().__init__()
        self.channels, self.endpoint = settings.embedding_channels, settings.embedding_endpoint
        self.first = nn.Linear(self.channels, settings.width)
        self.second = nn.Linear(settings.width, settings.width)
        self.label = nn.Embedding(settings.classes + 1, settings.width) if settings.classes else None

    def forward(self, c_noise: Tensor, label: Tensor) -> Tensor:
        waves = sinusoid(c_noise, self.channels, "cos_sin", self.endpoint).to(self.first.weight.dtype)
        emb = self.second(F.silu(self.first(waves)))
        return emb if self.label is None else emb + self.label(label)


def label_rows(x: Tensor, cond: Cond | None, classes: int) -> Tensor:
    """Rows (B,) of an embedding with one for each class and the last for "no label", which is -1 or a missing key.

    x: whatever has B and the device. Raises `UserError` for a label that there is no class for.
    """
    label = (cond or {}).get("label")
    if label is None:
        return torch.full((len(x),), classes, dtype=torch.long, device=x.device)
    # elsewhere than on a CPU reading a label would stall every step; there the embedding itself stops a wrong one
    if (not classes or label.device.type == "cpu") and int(label.max()) >= classes:
        raise UserError(f"label {int(label.max())}", f"the network knows {classes} classes", "-1 is none")
    return torch.where(label < 0, classes, label).to(x.device)


class SelfAttention(nn.Module):
    """Self-attention over tokens: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2))
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class DiTBlock(nn.Module):
    """Attention and an MLP over a map: (B, D, h, w), (B, D) -> (B, D, h, w).

    Maps are kept as tokens are, channels last, so that going from one to the other moves nothing.
    """

    def __init__(self, settings: DiTSettings) -> None:
        super().__init__()
        width, hidden = settings.width, round(settings.width * settings.mlp_ratio)
        self.dropout = settings.dropout
        self.norm1 = nn.LayerNorm(width, settings.norm_eps, elementwise_affine=False)
        self.attention = SelfAttention(width, settings.heads)
        self.norm2 = nn.LayerNorm(width, settings.mlp_norm_eps or settings.norm_eps, elementwise_affine=False)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, D)
        vectors = self.modulation(F.silu(emb))[:, None].chunk(6, dim=2)
        shift1, scale1, gate1, shift2, scale2, gate2 = vectors
        h = self.attention(modulated(self.norm1(tokens), shift1, scale1))
        tokens = tokens + gate1 * F.dropout(h, self.dropout, self.training)
        h = F.gelu(self.fc1(modulated(self.norm2(tokens), shift2, scale2)), approximate="tanh")
        h = self.fc2(F.dropout(h, self.dropout, self.training))
        return (tokens + gate2 * h).transpose(1, 2).unflatten(2, x.shape[2:])


class Head(nn.Module):
    """The last layer: a map (B, D, h, w) and the embedding -> pixels (B, C, h * patch, w * patch)."""

    def __init__(self, settings: DiTSettings, channels: int) -> None:
        super().__init__()
        self.patch = settings.patch
        self.norm = nn.LayerNorm(settings.width, settings.norm_eps, elementwise_affine=False)
        self.modulation = nn.Linear(settings.width, 2 * settings.width)
        self.out = nn.Linear(settings.width, settings.patch**2 * channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift, scale = self.modulation(F.silu(emb))[:, None].chunk(2, dim=2)
        pixels = self.out(modulated(self.norm(x.flatten(2).transpose(1, 2)), shift, scale))
        pixels = pixels.unflatten(1, x.shape[2:]).unflatten(3, (self.patch, self.patch, -1))  # (B, h, w, p, p, C)
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) x + shift."""
    return torch.addcmul(shift, x, 1 + scale)


class DiT(nn.Module):
    """F of a diffusion transformer: forward(x (B, C, H, W), c_noise (B,), cond) -> (B, C or 2C, H, W).

    cond: `label` (B,) int64 with -1 = none; a missing key is none. learns_variance: the output has a second half, about
    the variance of a reverse step. Any H and W that are multiples of the patch; see `positions`.
    layers: "block.0" .. are maps (B, D, H / patch, W / patch); aliases "layer-0" .. are the published names.

    Raises `UserError` for a shape that is no multiple of the patch, and for a label it was not built for.
    """

    def __init__(self, settings: DiTSettings, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.settings, self.shape = settings, shape
        self.classes = settings.classes or 0
        self.learns_variance = settings.learned_variance
        self._check(*shape[1:])
        self.stem = nn.Conv2d(shape[0], settings.width, settings.patch, stride=settings.patch)
        count = settings.depth if settings.embedders == "each" else 1
        self.embedders = nn.ModuleList(NoiseAndLabel(settings) for _ in range(count))
        self.blocks = nn.ModuleList(DiTBlock(settings) for _ in range(settings.depth))
        self.head = Head(settings, shape[0] * (1 + self.learns_variance))
        self.layers = {f"block.{k}": Layer(b, settings.width, settings.patch) for k, b in enumerate(self.blocks)}
        self.aliases = {f"layer-{k}": f"block.{k}" for k in range(settings.depth)}
        self._initialise()

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        self._check(*x.shape[2:])
        label = label_rows(x, cond, self.classes)
        embs = [embedder(c_noise, label) for embedder in self.embedders]
        h = self._tokens(x)
        for k, block in enumerate(self.blocks):
            h = self._run(block, h, embs[k % len(embs)])
        return self.head(h, embs[0])

    def _run(self, block: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        """A block's map; with `checkpoint`, in training, only what goes into it is kept."""
        if self.settings.checkpoint and self.training and torch.is_grad_enabled():
            random = self.settings.dropout > 0
            found: Tensor = checkpoint(block, h, emb, use_reentrant=False, preserve_rng_state=random)
            return found
        return block(h, emb)  # type: ignore[no-any-return]

    def size_problem(self, height: int, width: int) -> str | None:
        """Why images of this size cannot be made, None if they can."""
        patch = self.settings.patch
        if height % patch == 0 and width % patch == 0:
            return None
        return f"a DiT with patches of {patch} needs multiples of {patch}"

    def _tokens(self, x: Tensor) -> Tensor:
        """The first map, (B, D, h, w)."""
        h = self.stem(x)
        patch, (_, height, width) = self.settings.patch, self.shape
        trained = (height // patch, width // patch)
        table = positions(self.settings.width, (h.shape[2], h.shape[3]), trained, h.device)
        return (h.flatten(2).transpose(1, 2) + table.to(h.dtype)).transpose(1, 2).unflatten(2, h.shape[2:])

    def _check(self, height: int, width: int) -> None:
        problem = self.size_problem(height, width)
        if problem:
            raise UserError(f"size {height}x{width}", problem, "choose another size or network.patch")

    def _initialise(self) -> None:
        """As published: Xavier; small normal embeddings; what modulates, and the last layer, begin at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.stem.weight.view(self.settings.width, -1))
        nn.init.zeros_(self.stem.bias)  # type: ignore[arg-type]
        for name, weight in self.named_parameters():
            if name.startswith("embedders.") and name.endswith(".weight"):
                nn.init.normal_(weight, std=0.02)
            elif name.endswith("modulation.weight") or name == "head.out.weight":
                nn.init.zeros_(weight)
