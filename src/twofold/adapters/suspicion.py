"""Files that load but compute the wrong thing: attention weights in another layout than their reader takes them for.

A correct trained denoiser denoises best as it is. So its error is measured as it is and with its attention weights
read in other ways (projections transposed or exchanged, heads in another order), on the same images with the same
noise, and a reading that is clearly better is reported:

    d_i = mean over noise levels of ln(error as it is / error otherwise),     image i

where mean(d) exceeds `MARGIN`, its t statistic over the images `T`, d_i > 0 for `MOST` of them, and the other reading
really denoises: its error is below `DENOISES` times that of the best linear predictor. The last condition is what
tells a wrong file from a network without training, or from images of another kind than it was trained on, where other
readings can be better by much and by chance, though none is good (0.78 was the best of 51 trials on small networks).
On images of its own kind no other reading of a right file was better by more than 0.6 %, however short its training;
undoing what was done to all layers of a wrong one was better by 5 to 45 %, but only by 1 to 5 % for q or k alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser
from ..errors import UserError
from ..generate.sample import evaluating, place
from ..networks.blocks import Attention
from ..networks.dit import SelfAttention
from ..noise import Family, add, as_sigma, expand

MARGIN = 0.03
T = 8.0
MOST = 0.9
DENOISES = 0.75
HOPELESS = 2.0  # times the error of a network that says nothing; of 18 without training none had more than 1.5
LEVELS = (0.25, 0.5, 1.0, 2.0)  # noise levels in standard deviations of x0
FEWEST = 16  # images
BATCH = 128  # images in one pass

Parts = dict[str, Tensor]


@dataclass(frozen=True)
class Projections:
    """Attention weights, wherever they are kept: views on "q", "k", "v" and "out" (weights) and "q.bias" ..."""

    name: str
    heads: int
    parts: Parts


def attentions(network: nn.Module) -> list[Projections]:
    """All self-attention layers of a network of ours, or of one that diffusers runs, in order of their names."""
    return [
        Projections(name, int(module.heads), {part: tensor.detach() for part, tensor in parts.items()})  # type: ignore[arg-type]
        for name, module in network.named_modules()
        if (parts := _parts(module)) is not None
    ]


def _parts(module: nn.Module) -> Parts | None:
    if isinstance(module, Attention | SelfAttention):
        parts = dict(zip("qkv", module.qkv.weight.chunk(3), strict=True))
        parts |= {f"{name}.bias": bias for name, bias in zip("qkv", module.qkv.bias.chunk(3), strict=True)}
        return {**parts, "out": module.proj.weight}
    inputs = {name: getattr(module, f"to_{name}", None) for name in "qkv"}
    output = getattr(module, "to_out", None)
    if not isinstance(output, nn.ModuleList) or not all(isinstance(m, nn.Linear) for m in inputs.values()):
        return None
    parts = {name: linear.weight for name, linear in inputs.items()}  # type: ignore[union-attr]
    parts |= {f"{name}.bias": m.bias for name, m in inputs.items() if m.bias is not None}  # type: ignore[union-attr]
    square = len({part.shape for name, part in parts.items() if "." not in name}) == 1  # not cross-attention
    return {**parts, "out": output[0].weight} if square else None  # type: ignore[dict-item]


Reading = Callable[[Parts, int], Parts]  # weights and heads -> those that change


def _exchanged(order: str) -> Reading:
    """What is taken for q, k and v is really in this order."""
    pairs = [(to, source) for to, source in zip("qkv", order, strict=True) if to != source]
    return lambda parts, heads: {
        to + end: parts[source + end] for to, source in pairs for end in ("", ".bias") if source + end in parts
    }


def _transposed(*names: str) -> Reading:
    return lambda parts, heads: {name: parts[name].T for name in names if len(set(parts[name].shape)) == 1}


def _fused(inverse: bool) -> Reading:
    """q, k and v of each head together (the older layout of guided-diffusion) <-> all q, all k, all v."""

    def read(parts: Parts, heads: int) -> Parts:
        changed: Parts = {}
        for end in ("", ".bias"):
            if "q" + end in parts and heads > 1:
                rows = torch.cat([parts[name + end] for name in "qkv"])
                outer, inner = (3, heads) if inverse else (heads, 3)
                rows = rows.unflatten(0, (outer, inner, -1)).transpose(0, 1).flatten(0, 2)
                changed |= {name + end: part for name, part in zip("qkv", rows.chunk(3), strict=True)}
        return changed

    return read


def _interleaved(names: str, output: bool, inverse: bool) -> Reading:
    """Channels by head <-> heads by channel, of these projections, and of what the output projection reads."""

    def order(width: int, heads: int) -> Tensor:
        sizes = (heads, width // heads) if inverse else (width // heads, heads)
        return torch.arange(width).unflatten(0, sizes).T.flatten()

    def read(parts: Parts, heads: int) -> Parts:
        if heads == 1:
            return {}
        rows = order(len(parts["q"]), heads).to(parts["q"].device)
        changed = {n + end: parts[n + end][rows] for n in names for end in ("", ".bias") if n + end in parts}
        return changed | ({"out": parts["out"][:, rows]} if output else {})

    return read


READINGS: dict[str, Reading] = {
    **{f"q, k, v taken from {', '.join(o)}": _exchanged(o) for o in ("kqv", "vkq", "qvk", "kvq", "vqk")},
    **{f"{n} transposed": _transposed(n) for n in ("q", "k", "v", "out")},
    "q and k transposed": _transposed("q", "k"),
    "q, k and v transposed": _transposed("q", "k", "v"),
    "q, k, v and out transposed": _transposed("q", "k", "v", "out"),
    "q, k, v taken from each head in turn": _fused(False),
    "q, k, v of each head put together": _fused(True),
    "heads interleaved in q, k and v": _interleaved("qkv", False, False),
    "heads gathered in q, k and v": _interleaved("qkv", False, True),
    "heads interleaved in v": _interleaved("v", False, False),
    "heads gathered in v": _interleaved("v", False, True),
    "heads interleaved in q, k, v and out": _interleaved("qkv", True, False),
    "heads gathered in q, k, v and out": _interleaved("qkv", True, True),
}


@contextmanager
def reading(layers: Sequence[Projections], how: Reading) -> Iterator[bool]:
    """These layers' weights read otherwise, and bit for bit what they were afterwards. False: it is no change."""
    saved: list[tuple[Tensor, Tensor]] = []
    changed = False
    try:
        with torch.no_grad():
            for layer in layers:
                new = {name: value.clone() for name, value in how(layer.parts, layer.heads).items()}
                for name, value in new.items():
                    changed = changed or not torch.equal(value, layer.parts[name])
                    saved.append((layer.parts[name], layer.parts[name].clone()))
                    layer.parts[name].copy_(value)
        yield changed
    finally:
        with torch.no_grad():
            for part, value in saved:
                part.copy_(value)


class _Trial:
    """Denoising errors on one set of images and noise. x0: (N, C, H, W); sigmas: (L,) float64."""

    def __init__(self, denoiser: Denoiser, x0: Tensor, sigmas: Tensor, seed: int) -> None:
        device, dtype = place(denoiser)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((len(sigmas), *x0.shape), generator=generator)
        self.denoiser, self.sigmas = denoiser, sigmas
        self.x0 = x0.to(device, dtype)
        self.x = torch.stack([add(self.x0, n.to(self.x0), s) for n, s in zip(noise, sigmas, strict=True)])

    def errors(self, images: int) -> Tensor:
        """Mean squared error (L, images) float64 of the first so many images."""
        x0 = self.x0[:images].repeat(len(self.sigmas), 1, 1, 1)
        x, sigma = self.x[:, :images].flatten(0, 1), self.sigmas.repeat_interleave(images)
        parts = zip(x.split(BATCH), x0.split(BATCH), sigma.split(BATCH), strict=True)
        found = [(self.denoiser.denoise(x, s).double() - x0).square().mean((1, 2, 3)) for x, x0, s in parts]
        return torch.cat(found).cpu().view(len(self.sigmas), images)

    def linear(self) -> Tensor:
        """Error (L,) of the best m + g (x - m)."""
        variance = self.x0.double().var(correction=0).cpu()
        return variance * self.sigmas**2 / (variance + self.sigmas**2)

    def silent(self, family: Family) -> Tensor:
        """Error (L,) of F = 0, or what F = 1 changes if that is more."""
        c = family.coefficients(self.sigmas)
        skipped = torch.stack([expand(k, x) * x - self.x0 for k, x in zip(c.c_skip, self.x, strict=True)])
        return torch.maximum(skipped.double().square().mean((1, 2, 3, 4)).cpu(), c.c_out**2)


@torch.no_grad()
def suspicious(
    denoiser: Denoiser,
    x0: Tensor,
    sigmas: Sequence[float] | None = None,
    seed: int = 0,
    each: bool = True,
    hopeless: bool = True,
) -> list[str]:
    """What seems wrong with a denoiser's weights, worst first; empty where nothing does.

    x0: a few dozen images as the denoiser's codec encodes them, of the kind it was trained on. sigmas: noise levels, by
    default four about the standard deviation of x0. seed: of the noise. each: read every attention layer otherwise by
    itself too, which finds a single wrong one and costs that many times more.

    Also says so where the output is not finite, or (hopeless) where it is worse at every level than if the network were
    silent by a factor that no network without training reaches: a wrong file, or images unlike those it was trained on.
    Weights are afterwards bit for bit what they were.
    Raises `UserError` for fewer than 16 images.
    """
    with evaluating(denoiser):
        trial = _trial(denoiser, x0, sigmas, seed)
        errors = trial.errors(len(x0))
        if not errors.isfinite().all():
            return ["returns NaN or infinity"]
        layers = attentions(getattr(denoiser, "network", denoiser))
        groups = [(f"all {len(layers)} attention layers", layers)] if len(layers) > 1 else []
        found = [_best(trial, errors, where, some) for where, some in groups]
        if not any(found) and (each or len(layers) == 1):
            found = [_best(trial, errors, layer.name, [layer]) for layer in layers]
        texts = [text for _, text in sorted((f for f in found if f is not None), reverse=True)]
        return texts or (_hopeless(trial, errors) if hopeless else [])


def refuse_suspicious(where: str, denoiser: Denoiser, x0: Tensor, seed: int = 0, each: bool = True) -> None:
    """Raises `UserError` with the worst of what `suspicious` finds in the model that came from `where`.

    Bad denoising alone is not refused: the images may be of another kind, as in transfer.
    """
    found = suspicious(denoiser, x0, seed=seed, each=each, hopeless=False)
    if found:
        hint = "export the weights again, or give images of the kind it was trained on"
        raise UserError(where, found[0], hint)


@torch.no_grad()
def is_better(denoiser: Denoiser, x0: Tensor, how: str, sigmas: Sequence[float] | None = None, seed: int = 0) -> bool:
    """Whether this one of `READINGS`, of all attention layers at once, clearly denoises better than the weights as they
    are; arguments and the meaning of clearly as in `suspicious`. Raises `UserError` for fewer than 16 images."""
    with evaluating(denoiser):
        trial = _trial(denoiser, x0, sigmas, seed)
        layers = attentions(getattr(denoiser, "network", denoiser))
        return _best(trial, trial.errors(len(x0)), "all", layers, {how: READINGS[how]}) is not None


def _trial(denoiser: Denoiser, x0: Tensor, sigmas: Sequence[float] | None, seed: int) -> _Trial:
    if len(x0) < FEWEST:
        raise UserError(f"images: {len(x0)}", "too few to judge a model by", f"give {FEWEST} or more")
    levels = as_sigma(_levels(denoiser, x0) if sigmas is None else torch.as_tensor(list(sigmas)))
    return _Trial(denoiser, x0, levels, seed)


def _levels(denoiser: Denoiser, x0: Tensor) -> Tensor:
    low, high = denoiser.sigma_range
    return torch.tensor([min(max(level * float(x0.std()), low), high) for level in LEVELS], dtype=torch.float64)


def _best(
    trial: _Trial,
    errors: Tensor,
    where: str,
    layers: Sequence[Projections],
    readings: Mapping[str, Reading] = READINGS,
) -> tuple[float, str] | None:
    """The reading of these layers that is better than the weights as they are by most, if one clearly is."""
    best: tuple[float, str] | None = None
    few = max(FEWEST // 2, errors.shape[1] // 4)
    for name, how in readings.items():
        with reading(layers, how) as changed:
            if not changed or float(_gains(errors[:, :few], trial.errors(few)).mean()) < MARGIN / 2:
                continue
            other = trial.errors(errors.shape[1])
        gains = _gains(errors, other)
        mean = float(gains.mean())
        if (best is None or mean > best[0]) and _is_clear(gains, float((other.mean(1) / trial.linear()).mean())):
            lower = 1 - float(torch.tensor(-mean).exp())
            best = (mean, f"{where}: with {name} the denoising error is {lower:.0%} lower on {len(gains)} images")
    return best


def _is_clear(gains: Tensor, error: float) -> bool:
    """gains: (N,) of another reading; error: its own, as a part of the best linear predictor's."""
    mean, deviation = float(gains.mean()), float(gains.std())
    significant = mean > T * deviation / len(gains) ** 0.5 and float((gains > 0).double().mean()) >= MOST
    return mean > MARGIN and significant and error < DENOISES


def _gains(errors: Tensor, other: Tensor) -> Tensor:
    """ln(error / other), the mean over the noise levels: (N,)."""
    tiny = torch.finfo(torch.float64).tiny
    return (errors.clamp(min=tiny).log() - other.nan_to_num(torch.inf).clamp(min=tiny).log()).mean(0)


def _hopeless(trial: _Trial, errors: Tensor) -> list[str]:
    family = getattr(trial.denoiser, "family", None)
    if family is None:
        return []
    worse = float((errors.mean(1) / trial.silent(family)).min())
    if worse < HOPELESS:
        return []
    what = f"at every noise level its error is at least {worse:.1f} times that of a network that says nothing"
    return [f"does not denoise these images at all: {what}"]
