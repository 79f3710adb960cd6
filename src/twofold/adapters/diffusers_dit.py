"""DiT (Peebles and Xie 2023) as diffusers runs it, with its autoencoder, as a denoiser of latents.

The peer library's own DiTTransformer2DModel computes; nothing of it is written again here. It was trained as DDPM:
linear betas 1e-4 .. 0.02, 1000 steps, predicting the noise and, in the second half of its output, where the variance
of the reverse step lies between its bounds (Nichol and Dhariwal 2021, eq. 15):

    ln var = v ln beta_t + (1 - v) ln beta~_t,     beta~_t = beta_t (1 - abar_{t-1}) / (1 - abar_t)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..codec import Codec
from ..denoiser import Cond, NetworkDenoiser
from ..errors import UserError
from ..noise import VP, as_sigma, expand, family
from ..settings.noise import VPNoise
from ..taps import Layer
from .diffusers_config import noise_of
from .diffusers_files import class_name, read_json, read_model
from .latent_codec import LatentCodec, NoCodec

TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")  # the second is what early folders say


class DiT(nn.Module):
    """F of a DiT: forward(x (B, C, S, S), c_noise (B,), cond) -> noise (B, C, S, S).

    transformer: diffusers' DiTTransformer2DModel. cond: `label` (B,) int64, -1 = none; a missing key is none.
    layers: "block.0" .. are the transformer's blocks, whose outputs are tokens (B, N, D); aliases "layer-0" .. are the
    published names. learns_variance: the output has a second half (`everything`).

    Raises `UserError` for outputs that are neither C nor 2C channels.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        config = transformer.config
        self.transformer = transformer
        self.channels, self.patch = config.in_channels, config.patch_size
        self.shape = (self.channels, config.sample_size, config.sample_size)
        self.classes = config.num_embeds_ada_norm  # the embedding of this index is "none"
        outputs = config.out_channels or self.channels
        if outputs not in (self.channels, 2 * self.channels):
            hint = f"valid: {self.channels}, or {2 * self.channels} with learned variances"
            raise UserError(f"out_channels={outputs}", "neither noise nor noise and variance", hint)
        self.learns_variance = outputs == 2 * self.channels
        width = config.num_attention_heads * config.attention_head_dim
        blocks = transformer.transformer_blocks
        self.layers = {f"block.{k}": Layer(block, width, self.patch) for k, block in enumerate(blocks)}
        self.aliases = {f"layer-{k}": f"block.{k}" for k in range(len(blocks))}

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        return self.everything(x, c_noise, cond)[:, : self.channels]

    def everything(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        """The whole output, (B, C or 2C, S, S)."""
        if x.shape[2] != x.shape[3] or x.shape[2] % self.patch:
            where = "x0 " + "x".join(map(str, x.shape[1:]))
            raise UserError(where, "a DiT needs squares", f"with sides that are multiples of {self.patch}")
        return self.transformer(x, timestep=c_noise, class_labels=self._label(x, cond or {})).sample

    def _label(self, x: Tensor, cond: Cond) -> Tensor:
        label = cond.get("label")
        if label is None:
            return torch.full((len(x),), self.classes, dtype=torch.long, device=x.device)
        if label.device.type == "cpu" and int(label.max()) >= self.classes:  # elsewhere the embedding itself stops it
            raise UserError(f"label {int(label.max())}", f"the network knows {self.classes} classes", "-1 is none")
        return torch.where(label < 0, self.classes, label).to(x.device)


class DiTDenoiser(NetworkDenoiser):
    """A DiT and its codec: `denoise`, `features` and `variance` of latents x0 (B, C, S, S).

    network: `DiT`. noise: its table. codec: a `LatentCodec`, or `NoCodec` where there is no autoencoder.
    """

    network: DiT
    family: VP

    def __init__(self, network: DiT, noise: VPNoise, codec: Codec, class_names: Sequence[str] = ()) -> None:
        super().__init__(network, family(noise), network.shape, network.classes, codec, False, class_names)

    def features(
        self, x: Tensor, sigma: Tensor | float, layers: Iterable[str], cond: Cond | None = None
    ) -> dict[str, Tensor]:
        """{name: (B, D, h, w)}: the tokens after a block, in their places; later blocks do not run."""
        tokens = super().features(x, sigma, layers, cond)
        grid = (x.shape[2] // self.network.patch, x.shape[3] // self.network.patch)
        return {name: value.transpose(1, 2).unflatten(2, grid) for name, value in tokens.items()}

    def variance(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> Tensor:
        """Variance (B, C, S, S) of an ancestral step from x to the next lower entry of the table, as it was learned.

        In the frame x0 + sigma * noise; not to be confused with the variance of x0 given x. At the lowest entry, where
        the lower bound would be 0, the next entry's is taken, as published. Raises `UserError` for a network that
        learned none.
        """
        if not self.network.learns_variance:
            raise UserError("variance", "this network predicts the noise only")
        sigma = as_sigma(sigma)
        self.family.check(sigma)
        output = self._run(self.network.everything, x, self.family.coefficients(sigma), cond).to(x.dtype)
        low, high, scale = self._bounds(sigma)
        v = (output[:, self.network.channels :] + 1) / 2
        return (v * expand(high.log(), x) + (1 - v) * expand(low.log(), x)).exp() * expand(scale, x)

    def _bounds(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """beta~_t, beta_t and 1 / abar_{t-1}, each as sigma."""
        before, beta, posterior = self._step(self.family.t(sigma))
        least = self._step(self.family.t(sigma).clamp(min=1))[2]  # beta~_0 would be 0
        return torch.maximum(posterior, least), beta, 1 / before

    def _step(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """abar_{t-1} (1 below the table), beta_t and beta~_t."""
        here = 1 / (1 + self.family.sigma(t) ** 2)
        before = torch.where(t >= 1, 1 / (1 + self.family.sigma((t - 1).clamp(min=0)) ** 2), 1.0)
        beta = 1 - here / before
        return before, beta, beta * (1 - before) / (1 - here)


def read_dit(folder: Path) -> DiTDenoiser:
    """The DiT in a DiTPipeline's folder (transformer, vae, scheduler), or in the transformer's own (latents only).

    Raises `UserError` naming what is missing, of another class, or not in the weights. No pickle is opened.
    """
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    index: Mapping[str, Any] = {}
    home, noise = folder, VPNoise()
    if (folder / "model_index.json").is_file():
        index, home = read_json(folder / "model_index.json"), folder / "transformer"
        scheduler = folder / "scheduler" / "scheduler_config.json"
        noise = noise_of(read_json(scheduler)) if scheduler.is_file() else noise
    _check_class(home, TRANSFORMERS)
    if index:
        _check_class(folder / "vae", ("AutoencoderKL",))
    network = DiT(read_model(home, DiTTransformer2DModel))
    codec: Codec = NoCodec(str(folder))
    if index:
        codec = _codec(folder / "vae", read_model(folder / "vae", AutoencoderKL), network.shape)
    return DiTDenoiser(network, noise, codec, _names(index, network.classes)).eval().requires_grad_(False)


def _check_class(folder: Path, valid: Sequence[str]) -> None:
    found = class_name(folder)
    if found not in valid:
        raise UserError(f"{folder}: {found}", "another class than a DiT is run with", f"valid: {valid[0]}")


def _codec(folder: Path, vae: Any, shape: tuple[int, int, int]) -> LatentCodec:
    """The autoencoder at the size that makes latents of this shape."""
    c = vae.config
    if c.latent_channels != shape[0] or (c.in_channels, c.out_channels) != (3, 3):
        what = f"{c.in_channels} -> {c.latent_channels} -> {c.out_channels} channels"
        raise UserError(str(folder), what, f"the transformer needs 3 -> {shape[0]} -> 3")
    for key in ("latents_mean", "latents_std"):
        if c.get(key) is not None:
            raise UserError(f"{folder}: {key}", "latents scaled by channel are not supported", "use scaling_factor")
    stride = 2 ** (len(c.block_out_channels) - 1)
    return LatentCodec(vae, (shape[1] * stride, shape[2] * stride))


def _names(index: Mapping[str, Any], classes: int) -> list[str]:
    """The pipeline's names of all classes in order, or none at all."""
    names = index.get("id2label")
    if not isinstance(names, Mapping) or not all(str(k) in names for k in range(classes)):
        return []
    return [str(names[str(k)]) for k in range(classes)]
