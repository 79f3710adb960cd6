"""A network in guided-diffusion's layout, written for these tests alone: its state dict has the published names.

Attention is written as one loop over heads, so that nothing of its two row orders is shared with what is tested.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, emb: int, film: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.film, self.scale = film, scale
        self.in_layers = nn.ModuleList([nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)])
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, outputs * (1 + film)))
        self.out_layers = nn.ModuleList(
            [nn.GroupNorm(32, outputs), nn.SiLU(), nn.Identity(), nn.Conv2d(outputs, outputs, 3, padding=1)]
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = F.silu(self.in_layers[0](x))
        h, x = self.resized(h), self.resized(x)
        h, told = self.in_layers[2](h), self.emb_layers(emb)[:, :, None, None]
        if self.film:
            factor, offset = told[:, : h.shape[1]], told[:, h.shape[1] :]
            h = self.out_layers[0](h) * (1 + factor) + offset
        else:
            h = self.out_layers[0](h + told)
        return self.skip_connection(x) + self.out_layers[3](F.silu(h))

    def resized(self, x: Tensor) -> Tensor:
        if self.scale < 1:
            return F.avg_pool2d(x, 2)
        return x if self.scale == 1 else x.repeat_interleave(2, 2).repeat_interleave(2, 3)


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int, order: str) -> None:
        super().__init__()
        self.heads, self.order = heads, order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv, self.proj_out = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        rows, width, done = self.qkv(self.norm(x).flatten(2)), x.shape[1] // self.heads, []
        for head in range(self.heads):
            places = [3 * head + i if self.order == "legacy" else i * self.heads + head for i in range(3)]
            q, k, v = (rows[:, place * width : (place + 1) * width] for place in places)
            weights = torch.einsum("bdi,bdj->bij", q, k).div(width**0.5).softmax(2)
            done.append(torch.einsum("bij,bdj->bdi", weights, v))
        return x + self.proj_out(torch.cat(done, 1)).view_as(x)


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


class Guided(nn.Module):
    """forward(x (B, C, H, W), t (B,), y (B,) or None) -> (B, outputs, H, W).

    ratios: of the levels' widths to `width`. attends: by level. heads: how many, or with `of` how wide each is.
    """

    def __init__(
        self,
        width: int,
        ratios: tuple[float, ...],
        blocks: int,
        attends: tuple[bool, ...],
        heads: int = 1,
        of: int | None = None,
        order: str = "legacy",
        film: bool = True,
        updown: bool = True,
        classes: int = 0,
        channels: int = 3,
        outputs: int = 6,
    ) -> None:
        super().__init__()
        self.width, emb = width, 4 * width
        widths = [int(width * ratio) for ratio in ratios]
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        if classes:
            self.label_emb = nn.Embedding(classes, emb)

        def attention(at: int) -> Attention:
            return Attention(at, at // of if of else heads, order)

        def stage(inputs: int, at: int, level: int) -> list[nn.Module]:
            return [Residual(inputs, at, emb, film), *([attention(at)] if attends[level] else [])]

        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(channels, widths[0], 3, padding=1)])])
        kept = [widths[0]]
        for level, at in enumerate(widths):
            for _ in range(blocks):
                self.input_blocks.append(nn.ModuleList(stage(kept[-1], at, level)))
                kept.append(at)
            if level < len(widths) - 1:
                self.input_blocks.append(nn.ModuleList([Residual(at, at, emb, film, 0.5) if updown else Down(at)]))
                kept.append(at)
        last = widths[-1]
        self.middle_block = nn.ModuleList(
            [Residual(last, last, emb, film), attention(last), Residual(last, last, emb, film)]
        )
        self.output_blocks = nn.ModuleList()
        for level, at in reversed(list(enumerate(widths))):
            for i in range(blocks + 1):
                parts = stage(last + kept.pop(), at, level)
                if level and i == blocks:
                    parts.append(Residual(at, at, emb, film, 2.0) if updown else Up(at))
                self.output_blocks.append(nn.ModuleList(parts))
                last = at
        self.out = nn.Sequential(nn.GroupNorm(32, last), nn.SiLU(), nn.Conv2d(last, outputs, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        half = self.width // 2
        angle = t[:, None] * 10000.0 ** (-torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angle.cos(), angle.sin()], 1))
        if y is not None:
            emb = emb + self.label_emb(y)
        h, kept = self.input_blocks[0][0](x), []  # type: ignore[index]
        kept.append(h)
        for parts in list(self.input_blocks)[1:]:
            for part in parts:  # type: ignore[attr-defined]
                h = part(h, emb)
            kept.append(h)
        for part in self.middle_block:
            h = part(h, emb)
        for parts in self.output_blocks:
            h = torch.cat([h, kept.pop()], 1)
            for part in parts:  # type: ignore[attr-defined]
                h = part(h, emb)
        return self.out(h)


PUBLISHED: dict[str, dict[str, Any]] = {
    "64": {"width": 192, "ratios": (1, 2, 3, 4), "blocks": 3, "of": 64, "order": "new", "classes": 1000},
    "128": {"width": 256, "ratios": (1, 1, 2, 3, 4), "blocks": 2, "heads": 4, "classes": 1000},
    "256": {"width": 256, "ratios": (1, 1, 2, 2, 4, 4), "blocks": 2, "of": 64, "classes": 1000},
    "256-uncond": {"width": 256, "ratios": (1, 1, 2, 2, 4, 4), "blocks": 2, "of": 64},
    "512": {"width": 256, "ratios": (0.5, 1, 1, 2, 2, 4, 4), "blocks": 2, "of": 64, "classes": 1000},
}


def published(name: str) -> Guided:
    """A published model on the meta device: attention at 32, 16 and 8 pixels."""
    options = PUBLISHED[name]
    sizes = [int(name.split("-")[0]) >> level for level in range(len(options["ratios"]))]
    with torch.device("meta"):
        return Guided(attends=tuple(size in (32, 16, 8) for size in sizes), **options)


def tiny(**options: Any) -> Guided:
    """2 levels of 32 and 64 channels, attention in the second, random weights everywhere."""
    torch.manual_seed(0)
    settings = {"width": 32, "ratios": (1, 2), "blocks": 1, "attends": (False, True), "heads": 2, **options}
    made = Guided(**settings)
    return made.eval()
