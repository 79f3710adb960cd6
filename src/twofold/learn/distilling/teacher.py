"""The teacher of a distillation: a frozen denoiser whose maps are read, and that stops after the deepest one wanted.

    clean     the network is told sigma and sees x0 itself, x = x0 / c_in(sigma); as published with RepFusion
    noised    x = x0 + sigma * noise, as it was trained

It is held without being registered: it is in no checkpoint, no other process hears of its weights, and it stays in eval
mode whatever its student does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ...codec import PixelCodec
from ...denoiser import Denoiser
from ...errors import UserError
from ...hashing import model_hash
from ...noise import VP, add
from ...run import load
from ...taps import Layer, check_layers
from ..inherit import place_of, probed_layer


class Teacher:
    """maps(x0, sigma, noise) -> the maps of its layers.

    source: as `twofold.load` takes it, RUN@SNAPSHOT too. layers: names, () for the best of its newest probe or else the
    middle one. shape: (C, H, W) of the images. Raises `UserError` for what is no denoiser, or one of other images.
    """

    def __init__(
        self, source: str, layers: Sequence[str], input: Literal["clean", "noised"], shape: tuple[int, int, int]
    ) -> None:
        where = f"objective.teacher={source}"
        model: Any = load(*place_of(source))
        if not isinstance(model, Denoiser):
            hint = "give the run of a denoiser; a classifier teaches with objective.kind=kd"
            raise UserError(where, "is no denoiser", hint)
        self.source, self.denoiser, self.input, self.shape = source, model, input, shape
        self.names = [model.aliases.get(name, name) for name in layers] or [default_layer(model, source)]
        check_layers(self.names, model.layers, model.aliases)
        self._check(where)

    def _check(self, where: str) -> None:
        model, pixels = self.denoiser, isinstance(self.denoiser.codec, PixelCodec)
        if pixels and model.shape[0] != self.shape[0]:
            what = f"sees {model.shape[0]} channels, the data has {self.shape[0]}"
            raise UserError(where, what, f"set data.channels={model.shape[0]}")
        if pixels and not model.clip:
            what = "does not work on images in [-1, 1], which its student sees"
            raise UserError(where, what, "give a denoiser of pixels, or of latents with its autoencoder")
        height, width = self.x0_shape[1:]
        if problem := model.size_problem(height, width):
            size = "x".join(map(str, model.shape[1:])) if pixels else "that of the images its autoencoder was made for"
            raise UserError(where, f"{self.shape[1]}x{self.shape[2]} images do not fit: {problem}", f"data.size={size}")
        if self.input == "clean" and not hasattr(model, "family"):
            raise UserError(where, "has no noise family, which objective.input=clean needs", "use noised")

    @property
    def x0_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what its network sees: pixels, or latents."""
        shape_of = getattr(self.denoiser.codec, "shape_of", None)
        return self.shape if shape_of is None else shape_of(self.shape)

    @property
    def layers(self) -> list[Layer]:
        """Those that are read, in the order they were asked for."""
        return [self.denoiser.layers[name] for name in self.names]

    @property
    def levels(self) -> Tensor | None:
        """The levels of its own table, float64, rising; None where it has none."""
        family = getattr(self.denoiser, "family", None)
        steps = getattr(getattr(family, "settings", None), "steps", None)
        if not isinstance(family, VP) or steps is None or family.settings.table == "continuous":
            return None
        return family.sigma(torch.arange(steps))

    @property
    def key(self) -> str:
        """A name of everything that its maps depend on but the image, the level and the noise."""
        return f"{model_hash(self.denoiser)} {self.names} {self.input}"

    def to(self, device: torch.device, autocast: torch.dtype | None) -> Teacher:
        """On this device, computing in this precision."""
        self.denoiser.to(device).autocast = autocast
        return self

    @torch.no_grad()
    def maps(self, x0: Tensor, sigma: Tensor, noise: Tensor | None) -> list[Tensor]:
        """Maps (B, D, h, w) float32 of x0 (B, C, H, W) in [-1, 1], each at its sigma (B,) float64.

        noise: (B, *x0_shape); not looked at where the input is clean.
        """
        model = self.denoiser
        if not isinstance(model.codec, PixelCodec):
            x0 = model.codec.encode(PixelCodec().decode(x0))
        if self.input == "clean":
            x = model.family.clean(x0, sigma)  # type: ignore[operator, union-attr]
        else:
            assert noise is not None
            x = add(x0, noise, sigma)
        found = model.features(x, sigma, self.names)
        return [found[name].float() for name in self.names]


def default_layer(model: Denoiser, source: str) -> str:
    """The best layer of a run's newest probe; the middle of a network that has one; else that half way through."""
    probed = probed_layer(place_of(source)[0])
    names = list(model.layers)
    if probed in model.layers:
        return str(probed)
    return "mid" if "mid" in names else names[len(names) // 2]
