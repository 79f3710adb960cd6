"""U-ViT: noise level, label and patches of x are tokens of one transformer, with long skips as in a U-Net.

    tokens  [label, time, patches] + positions
    block   x + attention(norm(x)),  x + mlp(norm(x))
    late    the same of linear([x, x of the early block that it mirrors])

depth / 2 early blocks, one in the middle, depth / 2 late ones. Bao et al. 2023 (sections 3 and 3.1; appendix for the
sizes). Positions are learned, those of the two first tokens too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..denoiser import State
from ..errors import UserError
from ..settings.network import UViTSettings
from ..taps import Layer
from .dit import SelfAttention, label_rows
from .unet import sinusoid

Cond = Mapping[str, Tensor]
EMBEDDING_STD = 0.02


class Attention(SelfAttention):
    """Self-attention over tokens: (B, N, D) -> (B, N, D); without biases of q, k and v as published."""

    def __init__(self, settings: UViTSettings) -> None:
        super().__init__(settings.width, settings.heads)
        if not settings.qkv_bias:
            self.qkv = nn.Linear(settings.width, 3 * settings.width, bias=False)


class UViTBlock(nn.Module):
    """(B, N, D) -> (B, N, D); a late block is given the tokens of the early block it mirrors as well.

    tap: nothing is computed in it; it is called with the map of the block's patches, for whoever reads layers.
    """

    def __init__(self, settings: UViTSettings, late: bool = False) -> None:
        super().__init__()
        width, hidden = settings.width, round(settings.width * settings.mlp_ratio)
        self.dropout, self.how = settings.dropout, settings.skip if late else "none"
        self.skip: nn.Linear | None = None
        if self.how not in ("add", "none"):
            self.skip = nn.Linear(2 * width if self.how == "concat" else width, width)
        self.norm1 = nn.LayerNorm(width, settings.norm_eps)
        self.attention = Attention(settings)
        self.norm2 = nn.LayerNorm(width, settings.norm_eps)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.tap = nn.Identity()

    def forward(self, x: Tensor, early: Tensor | None = None) -> Tensor:
        x = x if early is None else self._joined(x, early)
        x = x + F.dropout(self.attention(self.norm1(x)), self.dropout, self.training)
        h = F.dropout(F.gelu(self.fc1(self.norm2(x))), self.dropout, self.training)
        return x + self.fc2(h)

    def _joined(self, x: Tensor, early: Tensor) -> Tensor:
        """The ways that the paper compares (section 3.1)."""
        linear = self.skip if self.skip is not None else nn.Identity()
        match self.how:
            case "concat":
                return linear(torch.cat([x, early], dim=2))
            case "linear_add":
                return x + linear(early)
            case "add" | "add_linear":
                return linear(x + early)
        return x


class UViT(nn.Module):
    """F of a U-ViT: forward(x (B, C, H, W), c_noise (B,), cond) -> (B, C, H, W).

    cond: `label` (B,) int64 with -1 = none, which is the last row of the embedding; a missing key is none. A network
    without classes has no token for them.
    layers: "enc.0" .., "mid", "dec.0" .. are maps (B, D, H / patch, W / patch) of the patches; aliases: the published
    names, "in_blocks.0" .., "mid_block" and "out_blocks.0" ...
    Any H and W that are multiples of the patch; at another size than the trained one the positions of the patches are
    interpolated, bicubically, over the same range (Dosovitskiy et al. 2021, section 3.2).

    Raises `UserError` for a shape that is no multiple of the patch, and for a label it was not built for.
    """

    def __init__(self, settings: UViTSettings, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.settings, self.shape = settings, shape
        self.classes = settings.classes or 0
        self.extra = 1 + bool(self.classes)  # tokens before those of the patches
        self._check(*shape[1:])
        s, patch = settings, settings.patch
        self.grid = (shape[1] // patch, shape[2] // patch)
        self.stem = nn.Conv2d(shape[0], s.width, patch, stride=patch)
        self.time: nn.Module = TimeMLP(s.width) if s.time_mlp else nn.Identity()
        self.label = nn.Embedding(self.classes + 1, s.width) if self.classes else None
        self.positions = nn.Parameter(torch.empty(1, self.extra + self.grid[0] * self.grid[1], s.width))
        self.enc = nn.ModuleList(UViTBlock(s) for _ in range(s.depth // 2))
        self.mid = UViTBlock(s)
        self.dec = nn.ModuleList(UViTBlock(s, late=True) for _ in range(s.depth // 2))
        self.norm = nn.LayerNorm(s.width, s.norm_eps)
        self.out = nn.Linear(s.width, patch**2 * shape[0])
        self.smooth: nn.Module = nn.Conv2d(shape[0], shape[0], 3, padding=1) if s.final_conv else nn.Identity()
        self.aliases: dict[str, str] = {}
        self.layers: dict[str, Layer] = {}
        for name, published, block in self._named_blocks():
            self.layers[name] = Layer(block.tap, s.width, patch)  # type: ignore[arg-type]
            self.aliases[published] = name
        self._initialise()

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        tokens, skips = self._encoded(self._extra_tokens(x, c_noise, cond), x)
        return self._decoded(tokens, skips, self._grid(x))

    def encode(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> State:
        """Everything the late blocks read: {"enc.0": .., "mid": ..} as maps, and the tokens of time and label.

        Those at every depth are in the context: what edits the maps leaves them as they are.
        """
        extra = self._extra_tokens(x, c_noise, cond)
        tokens, skips = self._encoded(extra, x)
        named = {**{f"enc.{k}": skip for k, skip in enumerate(skips)}, "mid": tokens}
        grid = self._grid(x)
        beside = {f"extra.{name}": value[:, : self.extra] for name, value in named.items()}
        taps = {name: self._map(value, grid) for name, value in named.items()}
        return State(taps, extra.flatten(1), {"grid": grid, **beside})

    def decode(self, state: State) -> Tensor:
        """F (B, C, H, W) from a state that may have been edited."""
        named = {
            name: torch.cat([state.context[f"extra.{name}"], h.flatten(2).transpose(1, 2)], dim=1)
            for name, h in state.taps.items()
        }
        skips = [named[f"enc.{k}"] for k in range(len(self.enc))]
        return self._decoded(named["mid"], skips, state.context["grid"])

    def size_problem(self, height: int, width: int) -> str | None:
        """Why images of this size cannot be made, None if they can."""
        patch = self.settings.patch
        if height % patch == 0 and width % patch == 0:
            return None
        return f"a U-ViT with patches of {patch} needs multiples of {patch}"

    def _named_blocks(self) -> list[tuple[str, str, nn.Module]]:
        """(name of the layer, its published name, block) in order of execution."""
        early = [(f"enc.{k}", f"in_blocks.{k}", block) for k, block in enumerate(self.enc)]
        late = [(f"dec.{k}", f"out_blocks.{k}", block) for k, block in enumerate(self.dec)]
        return [*early, ("mid", "mid_block", self.mid), *late]

    def _extra_tokens(self, x: Tensor, c_noise: Tensor, cond: Cond | None) -> Tensor:
        """The tokens of label and time, without positions: (B, 1 or 2, D)."""
        waves = sinusoid(c_noise, self.settings.width, "cos_sin", endpoint=False).to(self.positions.dtype)
        tokens = [self.time(waves)]
        label = label_rows(x, cond, self.classes)
        if self.label is not None:
            tokens.insert(0, self.label(label))
        return torch.stack(tokens, dim=1)

    def _encoded(self, extra: Tensor, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The tokens after the middle block (B, N, D), and those after each early one."""
        self._check(*x.shape[2:])
        grid = self._grid(x)
        tokens = torch.cat([extra, self.stem(x).flatten(2).transpose(1, 2)], dim=1) + self._positions(grid)
        skips = []
        for block in self.enc:
            tokens = self._run(block, grid, tokens)
            skips.append(tokens)
        return self._run(self.mid, grid, tokens), skips

    def _decoded(self, tokens: Tensor, skips: list[Tensor], grid: tuple[int, int]) -> Tensor:
        for block, skip in zip(self.dec, reversed(skips), strict=True):
            tokens = self._run(block, grid, tokens, skip)
        pixels = self.out(self.norm(tokens[:, self.extra :]))
        patch = self.settings.patch
        pixels = pixels.unflatten(1, grid).unflatten(3, (patch, patch, -1))  # (B, h, w, p, p, C)
        return self.smooth(pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3))

    def _run(self, block: nn.Module, grid: tuple[int, int], *tokens: Tensor) -> Tensor:
        if self.settings.checkpoint and self.training and torch.is_grad_enabled():
            random = self.settings.dropout > 0
            found: Tensor = checkpoint(block, *tokens, use_reentrant=False, preserve_rng_state=random)
        else:
            found = block(*tokens)
        block.tap(self._map(found, grid))  # type: ignore[operator]
        return found

    def _map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The patches among the tokens, in their places: (B, D, h, w)."""
        return tokens[:, self.extra :].transpose(1, 2).unflatten(2, grid)

    def _grid(self, x: Tensor) -> tuple[int, int]:
        return x.shape[2] // self.settings.patch, x.shape[3] // self.settings.patch

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The table for a grid of patches, (1, N, D)."""
        if grid == self.grid:
            return self.positions
        table = self._map(self.positions, self.grid)
        table = F.interpolate(table, grid, mode="bicubic", align_corners=False)
        return torch.cat([self.positions[:, : self.extra], table.flatten(2).transpose(1, 2)], dim=1)

    def _check(self, height: int, width: int) -> None:
        problem = self.size_problem(height, width)
        if problem:
            raise UserError(f"size {height}x{width}", problem, "choose another size or network.patch")

    def _initialise(self) -> None:
        """As published, but for labels: those were drawn 50 times as wide as everything beside them."""
        nn.init.trunc_normal_(self.positions, std=EMBEDDING_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = self.settings.init_std
                nn.init.trunc_normal_(module.weight, std=std, a=-4 * std, b=4 * std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=EMBEDDING_STD)


class TimeMLP(nn.Module):
    """What is learned of the noise level: (B, D) -> (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, 4 * width)
        self.second = nn.Linear(4 * width, width)

    def forward(self, waves: Tensor) -> Tensor:
        out: Tensor = self.second(F.silu(self.first(waves)))
        return out
