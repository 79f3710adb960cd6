"""One U-Net, by options those of DDPM, DDAE, Joint Diffusion (ADM) and EDM's DDPM++.

    encoder: stem; per level `blocks` x block, then downsample
    decoder: middle; per level `blocks + 1` x block(cat(h, skip)), then upsample; norm, SiLU, convolution

Ho et al. 2020 (DDPM), Dhariwal and Nichol 2021 (ADM), Song et al. 2021 and Karras et al. 2022 (DDPM++).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..denoiser import State
from ..errors import UserError, nearest
from ..lowres import check_divides, enlarge
from ..settings.network import UNetSettings
from ..taps import Layer
from .blocks import Attention, Block, Downsample, Middle, Norm, Stem, Upsample, embedding_width, silu
from .head import build_head, pooled

Cond = Mapping[str, Tensor]
EDM_CLOSING_GAIN, EDM_QKV_GAIN = 1e-5, math.sqrt(0.2)


def sinusoid(c_noise: Tensor, channels: int, order: str = "sin_cos", endpoint: bool = True) -> Tensor:
    """Sines and cosines of c_noise (B,) at frequencies 1 .. 1/10000: (B, channels), float32 or better.

    endpoint: the lowest frequency is exactly 1/10000; otherwise 1/10000 is the first one left out.
    """
    half = channels // 2
    c_noise = c_noise.to(torch.promote_types(c_noise.dtype, torch.float32))
    steps = torch.arange(half, dtype=c_noise.dtype, device=c_noise.device)
    angle = c_noise[:, None] * torch.exp(-math.log(10000) * steps / (half - int(endpoint)))
    waves = (angle.sin(), angle.cos())
    return torch.cat(waves if order == "sin_cos" else waves[::-1], dim=1)


class Embedding(nn.Module):
    """Noise level, label and augmentation to one vector: c_noise (B,) -> (B, E), E = `embedding_width`.

    cond: `label` (B,) int64 with -1 = none, `augment` (B, augment_dim) with zeros = none; a missing key is none.
    Raises `UserError` for a label or an augmentation the network was not built for.
    """

    def __init__(self, settings: UNetSettings) -> None:
        super().__init__()
        width, wide = settings.embedding_channels or settings.channels, embedding_width(settings)
        if width % 2:
            name = "embedding_channels" if settings.embedding_channels else "channels"
            raise UserError(f"network.{name}={width}", "odd", "the sinusoidal embedding needs an even number")
        self.settings, self.width = settings, width
        self.classes = settings.classes or 0
        self.first = nn.Linear(width, wide)
        self.second = nn.Linear(wide, wide)
        self.augment = nn.Linear(settings.augment_dim, width, bias=False) if settings.augment_dim else None
        self.label: nn.Linear | nn.Embedding | None = None
        if self.classes:
            before = settings.label_position == "before"
            self.label = nn.Linear(self.classes, width) if before else nn.Embedding(self.classes, wide)

    def forward(self, c_noise: Tensor, cond: Cond | None) -> Tensor:
        label, augment = self._checked(cond or {})
        if label is None:
            label = torch.full((len(c_noise),), -1, dtype=torch.long, device=c_noise.device)
        s = self.settings
        emb = self.waves(c_noise)
        if isinstance(self.label, nn.Linear):  # one-hot of unit variance; "none" is the zero vector
            one_hot = label[:, None] == torch.arange(self.classes, device=label.device)
            emb = emb + self.label(one_hot.to(emb.dtype) * math.sqrt(self.classes))
        if self.augment is not None:
            if augment is None:  # still used: processes that train together must use the same parameters
                augment = emb.new_zeros(len(emb), s.augment_dim)
            emb = emb + self.augment(augment.to(emb.dtype))
        emb = self.second(F.silu(self.first(emb)))
        if isinstance(self.label, nn.Embedding):
            emb = emb + self.label(label.clamp(min=0)) * (label >= 0).to(emb.dtype)[:, None]
        return emb

    def waves(self, c_noise: Tensor) -> Tensor:
        """The noise level alone, before anything is learned of it: (B, width)."""
        order, endpoint = self.settings.embedding_order, self.settings.embedding_endpoint
        return sinusoid(c_noise, self.width, order, endpoint).to(self.first.weight.dtype)

    def _checked(self, cond: Cond) -> tuple[Tensor | None, Tensor | None]:
        label, augment = cond.get("label"), cond.get("augment")
        # on an accelerator reading a label would stall every step; there the embedding itself catches a wrong one
        if label is not None and (self.label is None or label.device.type == "cpu"):
            largest = int(label.max())
            if largest >= self.classes:
                raise UserError(f"label {largest}", f"the network knows {self.classes} classes", "-1 is none")
        if augment is not None and self.augment is None and bool(augment.any()):
            raise UserError("augment", "the network has no augmentation labels", "set network.augment_dim")
        return label, augment


def joined(block: nn.Module, h: Tensor, active: Tensor, skip: Tensor | None) -> Tensor:
    """A block of a map, or of two side by side."""
    found: Tensor = block(h if skip is None else torch.cat([h, skip], dim=1), active)
    return found


class UNet(nn.Module):
    """F of a U-Net: forward(x (B, C, H, W), c_noise (B,), cond) -> (B, C, H, W); see `Embedding` for cond.

    learns_variance: the output is (B, 2C, H, W) and its second half is about the variance of a reverse step.

    Any H and W: odd sizes are padded with zeros inside, to a multiple of 2^(levels - 1), and the output is cropped.
    layers: "enc.0" (stem) and every other tensor the decoder will be given, "mid", "dec.0" .. after each decoder block.
    aliases: DDAE's names, "out_1" for "dec.0" and so on. shape is what `attention`'s resolutions refer to.

    head: with `settings.head` it also names what is in the image: `read(encode(...))` gives logits (B, classes).
    low_factor: with it, the input is x and beside it the enlarged cond["low"] (B, C, h, w), which c_in does not scale
    (Saharia et al. 2021, SR3); none: zeros. low_residual: F is about x0 less that image: see `NetworkDenoiser`.
    low_noise: beside that the level of the noise on it, cond["low_noise"] (B,), at every place; none: 0.

    Raises `UserError` for an attention resolution no level has, for heads that do not divide the channels and for a
    low_factor that does not divide the shape.
    """

    def __init__(self, settings: UNetSettings, shape: tuple[int, int, int], classes: int = 0) -> None:
        super().__init__()
        self.settings, self.shape = settings, tuple(shape)
        self.low_factor, self.low_noise = settings.low_factor or 0, settings.low_noise
        check_divides(shape[1], shape[2], self.low_factor or 1)
        self.multiple = 2 ** (len(settings.multipliers) - 1)
        attends = _attention_levels(settings, shape)
        widths = [settings.channels * m for m in settings.multipliers]
        self.embedding = Embedding(settings)
        self.enc, self.dec, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.layers: dict[str, Layer] = {}
        skips = self._build_encoder(widths, attends)
        self.mid = Middle(widths[-1], settings)
        self.layers["mid"] = Layer(self.mid, widths[-1], self.multiple)
        self._build_decoder(widths, attends, skips)
        self.aliases = {f"out_{k + 1}": f"dec.{k}" for k in range(len(self.dec))}
        self.norm = Norm(widths[0], settings, settings.out_norm_groups)
        self.learns_variance = settings.learned_variance
        self.low_residual = bool(settings.low_factor) and settings.low_residual
        self.out = nn.Conv2d(widths[0], shape[0] * (1 + self.learns_variance), 3, padding=1)
        self._initialise()
        self.head: nn.Module | None = None
        if settings.head is not None:
            widths = [widths[-1], *skips]  # the middle first
            self.head = build_head(settings.head, widths, self.embedding.width, classes)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        return self.decode(self.encode(x, c_noise, cond))

    def encode(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> State:
        """Everything the decoder reads: {"enc.0": .., "enc.1": .., "mid": ..} and the embedding."""
        emb = self.embedding(c_noise, cond)
        active = F.silu(emb)
        height, width = x.shape[2:]
        top, left = -height % self.multiple // 2, -width % self.multiple // 2
        h = self._beside(x, cond) if self.low_factor else x
        if height % self.multiple or width % self.multiple:
            h = F.pad(h, (left, -width % self.multiple - left, top, -height % self.multiple - top))
        taps = {}
        for k, module in enumerate(self.enc):
            h = taps[f"enc.{k}"] = self._run(module, h, active)
        if "mid" in self.layers:
            taps["mid"] = self._run(self.mid, h, active)
        crop = slice(top, top + height), slice(left, left + width)
        return State(taps, emb, {"crop": crop, "c_noise": c_noise})

    def _beside(self, x: Tensor, cond: Cond | None) -> Tensor:
        """x (B, C, H, W), the enlarged low image, with `low_noise` its level everywhere: (B, 2C or 2C + 1, H, W)."""
        low, level = (cond or {}).get("low"), (cond or {}).get("low_noise")
        beside = [x, torch.zeros_like(x) if low is None else enlarge(low, *x.shape[2:]).to(x.dtype)]
        if self.low_noise:
            place = torch.zeros_like(x[:, :1])
            beside.append(place if level is None else place + level.to(x)[:, None, None, None])
        return torch.cat(beside, 1)

    def decode(self, state: State) -> Tensor:
        """F (B, C or 2C, H, W) from a state that may have been edited."""
        rows, columns = state.context["crop"]
        return self.out(silu(self.norm(self._decoded(state))))[:, :, rows, columns]

    def read(self, state: State, rows: Tensor | None = None) -> Tensor:
        """What the head sees in a state that may have been edited: logits (B, classes), or of these rows alone."""
        assert self.head is not None and self.settings.head is not None
        maps = [state.taps["mid"], *(state.taps[f"enc.{k}"] for k in range(len(self.enc)))]
        taps, c_noise = pooled(maps, self.settings.head.pool), state.context["c_noise"]
        if rows is not None:
            taps, c_noise = [z[rows] for z in taps], c_noise[rows]
        return self.head(taps, c_noise, self.embedding.waves(c_noise))

    def both(self, x: Tensor, c_noise: Tensor, cond: Cond | None, denoised: int, read: Tensor) -> tuple[Tensor, Tensor]:
        """F of the first `denoised` images (their number may be 0), and the logits of those at `read` (n,) int64.

        One pass of the encoder over all of them.
        """
        state = self.encode(x, c_noise, cond)
        logits = self.read(state, read)
        if not denoised:
            return x[:0], logits
        taps = {name: h[:denoised] for name, h in state.taps.items()}
        return self.decode(State(taps, state.emb[:denoised], state.context)), logits

    def size_problem(self, height: int, width: int) -> str | None:
        """Why images of this size cannot be made: never. Far from the trained size they are out of what it learned."""
        return None

    def trunk(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        """The map (B, D, h, w) of the last layer in the table: what a truncated network computes."""
        state = self.encode(x, c_noise, cond)
        return self._decoded(state) if len(self.dec) else next(reversed(state.taps.values()))

    def truncate(self, layer: str) -> None:
        """Removes whatever runs after this layer (a name or an alias); `encode` and `trunk` remain.

        Raises `UserError` for a layer that does not exist.
        """
        name = self.aliases.get(layer, layer)
        if name not in self.layers:
            raise UserError(f"network.layer={layer}", "no such layer", nearest(layer, [*self.layers, *self.aliases]))
        names = list(self.layers)
        kept = names[: names.index(name) + 1]
        encoders, decoders = (sum(k.startswith(prefix) for k in kept) for prefix in ("enc.", "dec."))
        self.enc, self.dec = self.enc[:encoders], self.dec[:decoders]
        self.up = self.up[: max(0, decoders - 1) // (self.settings.blocks + 1)]
        late = {"norm", "out", "head"} if "mid" in kept else {"norm", "out", "head", "mid"}
        for module in late & self._modules.keys():
            delattr(self, module)
        self.layers = {name: self.layers[name] for name in kept}
        self.aliases = {alias: name for alias, name in self.aliases.items() if name in kept}

    def _decoded(self, state: State) -> Tensor:
        """The last decoder block's map."""
        active = F.silu(state.emb)
        skips = [state.taps[f"enc.{k}"] for k in range(len(self.enc))]
        h = state.taps["mid"]
        for j, block in enumerate(self.dec):
            if j and j % (self.settings.blocks + 1) == 0:
                h = self._run(self.up[j // (self.settings.blocks + 1) - 1], h, active)
            h = self._run(block, h, active, skips.pop())
        return h

    def _run(self, block: nn.Module, h: Tensor, active: Tensor, skip: Tensor | None = None) -> Tensor:
        """A block's map; with `checkpoint`, in training, only what goes into it is kept."""
        if self.settings.checkpoint and self.training and torch.is_grad_enabled():
            random = self.settings.dropout > 0
            found: Tensor = checkpoint(joined, block, h, active, skip, use_reentrant=False, preserve_rng_state=random)
            return found
        return joined(block, h, active, skip)

    def _build_encoder(self, widths: list[int], attends: list[bool]) -> list[int]:
        """Fills `enc`; returns the channels of its tensors."""
        s = self.settings
        seen = self.shape[0] * (1 + bool(self.low_factor)) + bool(self.low_noise)
        self._add(self.enc, "enc", Stem(seen, s.channels), s.channels, 0)
        skips = [s.channels]
        for level, width in enumerate(widths):
            for _ in range(s.blocks):
                self._add(self.enc, "enc", Block(skips[-1], width, s, attends[level]), width, level)
                skips.append(width)
            if level < len(widths) - 1:
                down = Downsample(width, s) if s.resample == "conv" else Block(width, width, s, resample="down")
                self._add(self.enc, "enc", down, width, level + 1)
                skips.append(width)
        return skips

    def _build_decoder(self, widths: list[int], attends: list[bool], skips: list[int]) -> None:
        s, skips, previous = self.settings, list(skips), widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            for i in range(s.blocks + 1):
                attend = attends[level] and (s.decoder_attention == "all" or i == s.blocks)
                block = Block(previous + skips.pop(), width, s, attend)
                self._add(self.dec, "dec", block, width, level)
                previous = width
            if level:
                self.up.append(Upsample(width) if s.resample == "conv" else Block(width, width, s, resample="up"))

    def _add(self, to: nn.ModuleList, prefix: str, module: nn.Module, channels: int, level: int) -> None:
        self.layers[f"{prefix}.{len(to)}"] = Layer(module, channels, 2**level)
        to.append(module)

    def _initialise(self) -> None:
        """PyTorch's, ADM's (what closes a residual branch is zero) or EDM's (Xavier, the same nearly zero)."""
        how = self.settings.init
        attentions = [m for m in self.modules() if isinstance(m, Attention)]
        closing: list[nn.Module] = [self.out, *(m.conv2 for m in self.modules() if isinstance(m, Block))]
        closing += [attention.proj for attention in attentions]
        gains = {attention.qkv: EDM_QKV_GAIN for attention in attentions} | dict.fromkeys(closing, EDM_CLOSING_GAIN)
        for module in self.modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            if how == "edm":
                nn.init.xavier_uniform_(module.weight, gain=gains.get(module, 1.0))
            elif how == "zero_out" and module in closing:
                nn.init.zeros_(module.weight)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def resolutions_of(settings: UNetSettings, shape: tuple[int, ...]) -> list[int]:
    """The shorter side, in pixels, of each level for images of this shape (C, H, W), which are padded to fit."""
    multiple = 2 ** (len(settings.multipliers) - 1)
    side = -(-min(shape[1:]) // multiple) * multiple
    return [side >> level for level in range(len(settings.multipliers))]


def _attention_levels(settings: UNetSettings, shape: tuple[int, int, int]) -> list[bool]:
    """Which levels attend. Raises `UserError` for a resolution that no level has."""
    resolutions = resolutions_of(settings, shape)
    for wanted in settings.attention:
        if wanted not in resolutions:
            raise UserError(
                f"network.attention={wanted}",
                "no level has this resolution",
                "the levels of " + "x".join(map(str, shape)) + " have " + ", ".join(map(str, resolutions)),
            )
    return [resolution in settings.attention for resolution in resolutions]
