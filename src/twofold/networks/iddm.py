"""The U-Net of IDDM (industrial defect diffusion): one-group norms, bilinear ups, attention at every resolution.

    double   norm(conv(act(norm(conv(x))))), of 3x3 convolutions without biases; as a residual: act(x + double(x))
    down     attention(double(residual(halved x)) + time)
    up       attention(double(residual(cat(skip, doubled x))) + time)
    time     linear(silu(emb)), emb = [sin, cos] of the table's t, and the label's vector where there is one

After the Integrated Design Diffusion Model (github.com/chairc/Integrated-Design-Diffusion-Model, its `unet`, and by
options `unetv2` and the parts of `unet-slim` that are used). There every attention layer held the whole N x N matrix of
its N pixels and was built for one image size; here it is computed without that matrix and for any size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..denoiser import State
from ..errors import UserError
from ..settings.iddm import IDDMSettings
from ..taps import Layer
from .dit import SelfAttention
from .unet import sinusoid

Cond = Mapping[str, Tensor]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "lrelu": lambda: nn.LeakyReLU(0.1),
}


class OneGroupNorm(nn.GroupNorm):
    """Over all channels and pixels of an image at once; computed in the precision of its weights."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class Double(nn.Module):
    """Two convolutions: (B, C, H, W) -> (B, D, H, W). between: channels after the first one, D by default."""

    def __init__(self, inputs: int, outputs: int, act: str, between: int | None = None, residual: bool = False) -> None:
        super().__init__()
        between = between or outputs
        self.conv1 = nn.Conv2d(inputs, between, 3, padding=1, bias=False)
        self.norm1 = OneGroupNorm(between)
        self.act = ACTIVATIONS[act]()
        self.conv2 = nn.Conv2d(between, outputs, 3, padding=1, bias=False)
        self.norm2 = OneGroupNorm(outputs)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.act(x + h) if self.residual else h


class Attending(nn.Module):
    """Self-attention over the pixels of a map and an MLP, each with its residual sum: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, heads: int, act: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = SelfAttention(channels, heads)
        self.fc1, self.fc2 = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.act = ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
        tokens = tokens + self.attention(self.norm1(tokens))
        tokens = tokens + self.fc2(self.act(self.fc1(self.norm2(tokens))))
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class Level(nn.Module):
    """What one resolution of the encoder or of the decoder computes on a map that has its size already."""

    def __init__(self, inputs: int, outputs: int, settings: IDDMSettings, attends: bool, between: int | None) -> None:
        super().__init__()
        act = settings.act
        self.first = Double(inputs, inputs, act, residual=True)
        self.second = Double(inputs, outputs, act, between)
        self.time = nn.Linear(settings.embedding_channels, outputs)
        self.attending = Attending(outputs, settings.heads, act) if attends else nn.Identity()

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        h: Tensor = self.second(self.first(x)) + self.time(active)[:, :, None, None]
        return self.attending(h)


class Down(Level):
    """(B, C, H, W) -> (B, D, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int, settings: IDDMSettings, attends: bool) -> None:
        super().__init__(inputs, outputs, settings, attends, None)

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        return super().forward(F.max_pool2d(x, 2), active)


class Up(Level):
    """h (B, C, H/2, W/2), skip (B, C, H, W) -> (B, D, H, W)."""

    def __init__(self, inputs: int, outputs: int, settings: IDDMSettings, attends: bool) -> None:
        super().__init__(inputs, outputs, settings, attends, inputs // 2)
        half = inputs // 2
        self.doubled: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        if settings.up == "transposed":
            self.doubled = nn.ConvTranspose2d(half, half, 2, stride=2)

    def forward(self, h: Tensor, active: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([skip, self.doubled(h)], dim=1), active)


class IDDM(nn.Module):
    """F of IDDM's U-Net: forward(x (B, C, H, W), c_noise (B,), cond) -> (B, C, H, W).

    c_noise: the table's t, raw. cond: `label` (B,) int64; -1, or a missing key, adds nothing to the time's vector.
    Any H and W: those that are no multiples of 2^levels are padded with zeros inside, and the output is cropped.
    layers: "enc.0" (full resolution) .. "enc.L", "mid", "dec.0" .. "dec.L-1" (full resolution again).

    Raises `UserError` for a label it was not built for.
    """

    def __init__(self, settings: IDDMSettings, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.settings, self.shape = settings, tuple(shape)
        self.classes = settings.classes or 0
        self.multiple = 2 ** len(settings.multipliers)
        self.label = nn.Embedding(self.classes, settings.embedding_channels) if self.classes else None
        self.layers: dict[str, Layer] = {}
        widths, act = settings.widths, settings.act
        deep, levels = widths[-1], len(widths)
        outputs = [*widths, deep]  # of the encoder's levels
        self.enc = nn.ModuleList([Double(shape[0], widths[0], act)])
        self.layers["enc.0"] = Layer(self.enc[0], widths[0], 1)
        for k in range(1, levels + 1):
            self._add(self.enc, "enc", Down(outputs[k - 1], outputs[k], settings, f"enc.{k}" in settings.places), k)
        wide = 2 * deep
        self.mid = nn.Sequential(Double(deep, wide, act), Double(wide, wide, act), Double(wide, deep, act))
        self.layers["mid"] = Layer(self.mid, deep, self.multiple)
        self.dec = nn.ModuleList()
        for k in range(levels):
            below, here = widths[levels - 1 - k], widths[max(levels - 2 - k, 0)]
            block = Up(2 * below, here, settings, f"dec.{k}" in settings.places)
            self._add(self.dec, "dec", block, levels - 1 - k)
        self.out = nn.Conv2d(widths[0], shape[0], 1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        return self.decode(self.encode(x, c_noise, cond))

    def encode(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> State:
        """Everything the decoder reads: {"enc.0": .., "enc.L-1": .., "mid": ..} and the vector of time and label.

        The encoder's last map, "enc.L", is read by the middle alone.
        """
        emb = self._embedding(x, c_noise, cond)
        active, (height, width) = F.silu(emb), x.shape[2:]
        top, left = -height % self.multiple // 2, -width % self.multiple // 2
        h = x
        if height % self.multiple or width % self.multiple:
            h = F.pad(x, (left, -width % self.multiple - left, top, -height % self.multiple - top))
        taps = {}
        for k, module in enumerate(self.enc):
            h = module(h, active) if k else module(h)
            taps[f"enc.{k}"] = h
        taps.popitem()
        taps["mid"] = self.mid(h)
        crop = slice(top, top + height), slice(left, left + width)
        return State(taps, emb, {"crop": crop})

    def decode(self, state: State) -> Tensor:
        """F (B, C, H, W) from a state that may have been edited."""
        active, h = F.silu(state.emb), state.taps["mid"]
        for k, block in enumerate(self.dec):
            h = block(h, active, state.taps[f"enc.{len(self.dec) - 1 - k}"])
        rows, columns = state.context["crop"]
        return self.out(h)[:, :, rows, columns]

    def size_problem(self, height: int, width: int) -> str | None:
        """Why images of this size cannot be made: never. Far from the trained size they are out of what it learned."""
        return None

    def _add(self, to: nn.ModuleList, prefix: str, block: Level, level: int) -> None:
        self.layers[f"{prefix}.{len(to)}"] = Layer(block, block.time.out_features, 2**level)
        to.append(block)

    def _embedding(self, x: Tensor, c_noise: Tensor, cond: Cond | None) -> Tensor:
        """Sines and cosines of t, and the label's row added where there is a label: (B, E)."""
        emb = sinusoid(c_noise, self.settings.embedding_channels, "sin_cos", endpoint=False).to(self.out.weight.dtype)
        label = (cond or {}).get("label")
        if label is None:
            label = torch.full((len(x),), -1, dtype=torch.long, device=x.device)
        # elsewhere than on a CPU reading a label would stall every step; there the embedding itself stops a wrong one
        elif (self.label is None or label.device.type == "cpu") and int(label.max()) >= self.classes:
            raise UserError(f"label {int(label.max())}", f"the network knows {self.classes} classes", "-1 is none")
        if self.label is None:
            return emb
        return emb + self.label(label.clamp(min=0)) * (label >= 0).to(emb.dtype)[:, None]
