"""The three contracts everything else is written against, and the denoiser that a network and a family make.

    Denoiser    denoise(x, sigma, cond) -> x0_hat          features(x, sigma, layers, cond) -> {name: map}
    Encoder     embed(images) -> (B, D)
    Classifier  logits(x, sigma) -> (B, K)

x = x0 + sigma * noise (see `twofold.noise`); sigma is () or (B,); cond is a mapping of tensors: `label` (B,) int64
with -1 = none, `augment` (B, 9), `low` (B, C, h, w): the image at a lower resolution, `low_noise` (B,): the level of
the noise on it. What "no condition" means to the network is the denoiser's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from . import taps as _taps
from .codec import Codec, PixelCodec
from .errors import UserError
from .lowres import enlarge
from .noise import Coefficients, Family, as_sigma, expand
from .reverse import between, table_family, table_step
from .taps import Layer

Cond = Mapping[str, Tensor]


@dataclass
class State:
    """Between encoder and decoder: what a guide may edit.

    taps: {layer name: (B, D, h, w)}, every tensor the decoder reads (skips and "mid"). Replacing one changes what
          the decoder sees, not what deeper encoder layers saw.
    emb: (B, E) embedding of noise level and condition.
    context: private to whoever made the state.
    """

    taps: dict[str, Tensor]
    emb: Tensor
    context: dict[str, Any] = field(default_factory=dict)


class Network(Protocol):
    """What computes F: plain modules that know neither sigma nor noise theory (see `twofold.networks`).

    One with `learns_variance` set returns (B, 2C, H, W): F, and then 2v - 1 (see `twofold.reverse`).
    """

    layers: Mapping[str, Layer]

    def __call__(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor: ...


class Denoiser(nn.Module):
    """Contract: removes noise from x and shows what it saw on the way.

    shape: (C, H, W) of x0. sigma_range: the noise levels it was trained for. classes: labels 0..classes-1, 0 = none;
    class_names: what they are called, () where nobody said.
    layers: {name: Layer} in order of execution. aliases: {published name: name in layers}, which `features` takes too.
    codec: images <-> x0. clip: x0 lives in [-1, 1]. autocast: what its network computes in; None: x's own.
    learns_variance: it knows `denoise_and_variance`. low_factor: of a super-resolution model, which needs cond["low"],
    an image so many times as small (or enlarged already, see `lowres.enlarge`); 0: it takes none.
    usual: the sampler that it is sampled with where none is named, and its steps, None: as many as the sampler takes.
    """

    shape: tuple[int, int, int]
    sigma_range: tuple[float, float]
    classes: int = 0
    class_names: Sequence[str] = ()
    layers: Mapping[str, Layer]
    aliases: Mapping[str, str] = {}
    codec: Codec
    clip: bool = True
    autocast: torch.dtype | None = None
    learns_variance: bool = False
    low_factor: int = 0
    usual: tuple[str, int | None] = ("dpmpp2m", None)

    def denoise(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> Tensor:
        """x0_hat (B, C, H, W), float32 or better: the expectation of x0 given x. Raises `UserError` off its range."""
        raise NotImplementedError

    def denoise_and_variance(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
        """x0_hat and v, both (B, C, H, W), in one pass; v says where between its bounds the variance of a reverse step
        lies (see `twofold.reverse`). Raises `UserError` for a model that learned none."""
        raise UserError("variance=learned", "this model learned no variance", "use variance=small or large")

    def features(
        self, x: Tensor, sigma: Tensor | float, layers: Iterable[str], cond: Cond | None = None
    ) -> dict[str, Tensor]:
        """{name: (B, D, h, w)} in order of execution; layers after the deepest one do not run.

        Never adds noise: x is already x0 + sigma * noise, or `Family.clean(x0, sigma)`. sigma may be 0.
        Raises `UserError` for a layer that does not exist (naming those that do).
        """
        raise NotImplementedError

    def start_scale(self, sigma: float) -> float:
        """Standard deviation of the first x of a sampler that starts at sigma."""
        raise NotImplementedError

    def size_problem(self, height: int, width: int) -> str | None:
        """Why it cannot denoise an x0 of this height and width; None where it can."""
        same = (height, width) == tuple(self.shape[1:])
        return None if same else "this model makes images of one size"


class Encoder(Protocol):
    """Images to vectors: Frechet distances, frozen features, neighbours. `name` goes into every result."""

    name: str

    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float (B, D)."""
        ...


@runtime_checkable
class Classifier(Protocol):
    """Whoever says what is in an image, clean (sigma 0) or noisy. `class_names` are in logit order."""

    class_names: Sequence[str]

    def logits(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """x (B, C, H, W) in the frame x0 + sigma * noise -> (B, K), unnormalised."""
        ...


class NetworkDenoiser(Denoiser):
    """A network and a noise family. Only F runs under autocast; coefficients and sums are float32 or better.

    One with `low_residual` works on what the enlarged low image lacks: x and x0 less that image, in the same frame.

    network: F(c_in x, c_noise, cond). autocast: dtype F runs in (torch.bfloat16, torch.float16), or None for x's own.
    """

    def __init__(
        self,
        network: nn.Module,
        family: Family,
        shape: tuple[int, int, int],
        classes: int = 0,
        codec: Codec | None = None,
        clip: bool = True,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.family = family
        self.shape = shape
        self.sigma_range = family.sigma_range
        self.classes = classes
        self.class_names = list(class_names)
        self.codec = codec or PixelCodec()
        self.clip = clip
        self.autocast: torch.dtype | None = None

    @property
    def layers(self) -> Mapping[str, Layer]:  # type: ignore[override]
        return self.network.layers  # type: ignore[return-value]

    @property
    def aliases(self) -> Mapping[str, str]:  # type: ignore[override]
        return getattr(self.network, "aliases", {})

    @property
    def learns_variance(self) -> bool:  # type: ignore[override]
        return bool(getattr(self.network, "learns_variance", False))

    @property
    def low_factor(self) -> int:  # type: ignore[override]
        return int(getattr(self.network, "low_factor", 0))

    def size_problem(self, height: int, width: int) -> str | None:
        ask = getattr(self.network, "size_problem", None)
        return ask(height, width) if ask else super().size_problem(height, width)

    def compile_network(self) -> None:
        """Run denoising through torch.compile. Features keep the eager network, where hooks fire."""
        object.__setattr__(self, "_compiled", torch.compile(self.network))

    def start_scale(self, sigma: float) -> float:
        return self.family.start_scale(sigma)

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        """F itself, float32: what a loss compares with `family.target`. Does not check the range of sigma.

        A network that learns variances gives (B, 2C, H, W): F, and then 2v - 1.
        """
        return self._output(x, self.family.coefficients(as_sigma(sigma)), cond)

    def denoise(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> Tensor:
        sigma = as_sigma(sigma)
        self.family.check(sigma)
        c = self.family.coefficients(sigma)
        return self._combine(x, c, self._predict(x, c, cond), cond)

    def denoise_and_variance(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
        if not self.learns_variance:
            return super().denoise_and_variance(x, sigma, cond)
        sigma = as_sigma(sigma)
        self.family.check(sigma)
        c = self.family.coefficients(sigma)
        output, share = self._output(x, c, cond).chunk(2, 1)
        return self._combine(x, c, output, cond), (share + 1) / 2

    def variance(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> Tensor:
        """Variance (B, C, H, W) of an ancestral step from x to the next lower entry of the table, as it was learned.

        In the frame x0 + sigma * noise; not to be confused with the variance of x0 given x. Raises `UserError` for a
        network that learned none.
        """
        v = self.denoise_and_variance(x, sigma, cond)[1]
        step = table_step(table_family(self.family), as_sigma(sigma))
        return between(v, step.low, step.high)

    def features(
        self, x: Tensor, sigma: Tensor | float, layers: Iterable[str], cond: Cond | None = None
    ) -> dict[str, Tensor]:
        c = self._feature_coefficients(x, as_sigma(sigma))
        return _taps.read(lambda: self._run(self.network, x, c, cond), self.layers, layers, self.aliases)

    def encode(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> State:
        """The network up to its middle. `decode(encode(x, sigma, cond))` equals `denoise(x, sigma, cond)`."""
        sigma = as_sigma(sigma)
        self.family.check(sigma)
        c = self.family.coefficients(sigma)
        return self._encoded(x, c, cond)

    def _encoded(self, x: Tensor, c: Coefficients, cond: Cond | None) -> State:
        state: State = self._run(self._split("encode"), x, c, cond)
        state.context["denoiser"] = (x, c, cond)
        return state

    def decode(self, state: State) -> Tensor:
        """x0_hat (B, C, H, W) from a state that may have been edited."""
        x, c, cond = state.context["denoiser"]
        decode = self._split("decode")
        with self._autocast(x):
            output = decode(state)
        return self._combine(x, c, self._mean(output.to(x.dtype)), cond)

    def _split(self, name: str) -> Any:
        if not hasattr(self.network, name):
            raise UserError(f"{type(self.network).__name__}", f"this network has no {name}", "it runs only as a whole")
        return getattr(self.network, name)

    def _feature_coefficients(self, x: Tensor, sigma: Tensor) -> Coefficients:
        """sigma = 0 is scaled as what it is and named by the smallest level the network knows."""
        at_least = torch.where(sigma == 0, self.sigma_range[0], sigma)
        self.family.check(at_least)
        known = self.family.coefficients(at_least)
        tiny = self.family.coefficients(torch.where(sigma == 0, torch.finfo(torch.float64).tiny, sigma))
        return Coefficients(tiny.c_skip, tiny.c_out, tiny.c_in, known.c_noise)

    def _autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def _run(self, network: Any, x: Tensor, c: Coefficients, cond: Cond | None) -> Any:
        c_noise = c.c_noise.to(device=x.device, dtype=x.dtype, non_blocking=True).expand(len(x))
        x = self.less(x, cond)
        with self._autocast(x):
            return network(expand(c.c_in, x) * x, c_noise, cond)

    def _output(self, x: Tensor, c: Coefficients, cond: Cond | None) -> Tensor:
        """All that the network says."""
        return self._run(getattr(self, "_compiled", self.network), x, c, cond).to(x.dtype)

    def _predict(self, x: Tensor, c: Coefficients, cond: Cond | None) -> Tensor:
        return self._mean(self._output(x, c, cond))

    def _mean(self, output: Tensor) -> Tensor:
        """F, without what is said about the variance."""
        return output.chunk(2, 1)[0] if self.learns_variance else output

    def less(self, x: Tensor, cond: Cond | None) -> Tensor:
        """x, or x0, less the enlarged low image, where that is what the network works on; else as it is.

        Raises `UserError` where a super-resolution model is given no low image.
        """
        if not self.low_factor:
            return x
        if not cond or "low" not in cond:
            what = "was given no low-resolution image"
            raise UserError("this super-resolution model", what, "use `twofold upscale RUN IMAGES`")
        residual = bool(getattr(self.network, "low_residual", False))
        return x - enlarge(cond["low"], *x.shape[2:]).to(x.dtype) if residual else x

    def _combine(self, x: Tensor, c: Coefficients, output: Tensor, cond: Cond | None) -> Tensor:
        rest = self.less(x, cond)
        x0_hat = expand(c.c_skip, x) * rest + expand(c.c_out, x) * output
        return x0_hat if rest is x else x0_hat + (x - rest)


class JointDenoiser(NetworkDenoiser):
    """One network that denoises and names what is in the image: a `Denoiser` and a `Classifier` at once.

    Its network has a head that reads the encoder's maps (see `twofold.networks.head`). class_names: K, those of the
    logits. multi_label: each of them is a yes-or-no question. sigma: the level its answers are best at, 0: clean ones.
    """

    def __init__(self, *args: Any, multi_label: bool = False, **more: Any) -> None:
        super().__init__(*args, **more)
        self.multi_label = multi_label
        self.sigma = 0.0

    def read(self, state: State) -> Tensor:
        """Logits (B, K), float32 or better, of a state of `encode`, edited or not. Differentiable in its taps."""
        with self._autocast(state.emb):
            logits: Tensor = self.network.read(state)  # type: ignore[operator]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def logits(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """(B, K) for x at sigma, () or (B,); a clean image, sigma = 0, is named by the smallest level. The decoder does
        not run. Raises `UserError` for other levels outside its range.
        """
        return self.read(self.encode_any(x, sigma))

    def encode_any(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> State:
        """`encode`, for sigma = 0 too."""
        return self._encoded(x, self._feature_coefficients(x, as_sigma(sigma)), cond)

    def both(self, x: Tensor, sigma: Tensor, cond: Cond | None, denoised: int, read: Tensor) -> tuple[Tensor, Tensor]:
        """F of the first `denoised` of B images, and the logits of those at `read` (n,): one pass of the encoder.

        For training: as `forward`, F is what a loss compares with `family.target`. sigma: (B,), 0 = clean.
        """
        network: Any = getattr(self, "_compiled_both", None) or self.network.both
        c = self._feature_coefficients(x, as_sigma(sigma))
        output, logits = self._run(lambda *inputs: network(*inputs, denoised, read), x, c, cond)
        return output.to(x.dtype), logits.to(torch.promote_types(logits.dtype, torch.float32))

    def compile_network(self) -> None:
        super().compile_network()
        object.__setattr__(self, "_compiled_both", torch.compile(self.network.both))  # type: ignore[arg-type]
