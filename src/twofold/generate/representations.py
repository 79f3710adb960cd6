"""Guidance by the head of the model itself, which costs no second pass of its encoder.

    g_k     = d log p(target | taps, sigma) / d tap_k
    tap_k'  = tap_k + min(scale, 1/2) * (1 - p) * |tap_k| / |g_k| * g_k        through representations
    x0_hat' = x0_hat + max(1, 2 scale) * (decode(tap') - x0_hat)

    tap_k'  = tap_k + scale * g_k,  x0_hat' = decode(tap')                      the same, plain
    x0_hat' = decode(taps) + scale * sigma^2 * grad_x log p                     by its own classifier

The first edits what the decoder sees, in the same step (Deja et al. 2023, section 4.2; there the plain form). `scale`
is the share of a map's own size it is moved by, the same for every map, level and model, and 1 - p lets go of images
that have arrived. The decoder's norms keep it from following an edit far: beyond half a map's size what an edit changes
is extrapolated instead, for a second pass of the decoder. The stem's map stays: it is a linear image of x, by which the
decoder tells the noise, so that an edit of it acts the wrong way round. The last form is `classifier_guided` with the
encoder shared. Towards the target at any scale > 0; without a target an image is what `denoise` makes of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..denoiser import Cond, State
from ..errors import UserError, nearest
from ..noise import as_sigma, expand
from .guidance import check_interval, check_scale, within
from .samplers import Denoise
from .targets import asked, log_probability, probability

Through = Literal["encoder", "head"]
THROUGH = ("encoder", "head")
FARTHEST = 0.5  # share of its size that a map is moved by
STEM = "enc.0"
HALF_BOOST = 2.0**12  # of log p before its gradient is taken in float16, which knows nothing below 6e-8


class Joint(Protocol):
    """What is guided by itself: see `twofold.denoiser.JointDenoiser`."""

    def denoise(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> Tensor: ...
    def encode(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> State: ...
    def read(self, state: State) -> Tensor: ...
    def decode(self, state: State) -> Tensor: ...


def is_joint(denoiser: Any) -> bool:
    """Whether this model classifies what it denoises, and shows the state between."""
    return all(hasattr(denoiser, name) for name in ("encode", "read", "decode", "logits"))


def representation_guided(
    denoiser: Joint,
    target: Tensor,
    scale: float,
    interval: tuple[float, float] | None = None,
    normalise: bool = True,
    through: Through = "encoder",
) -> Denoise:
    """A callable (x, sigma) -> x0_hat that edits the encoder's maps towards these targets before they are decoded.

    target: (B,) int64 classes of the model's head, -1 = left alone; or (B, K) attributes in 1, 0, -1 (left free).
    scale: 0 (the plain denoiser) or more; up to 0.5 the decoder runs once a step. interval: (low, high) in sigma; acts
    where low < sigma <= high. normalise: False: the plain form above, of every map, whose scale has no natural size.
    through: "encoder": a map's gradient counts what it does by way of the maps after it, which costs a backward pass
    through the encoder; "head": what the head sees of it, at hardly any cost.

    Works in inference mode and under autocast; parameters get no gradients. An image's edit is its own, whatever it
    shares a batch with. Raises `UserError` for a bad scale, interval or `through`.
    """
    check_interval(interval, "guide_interval")
    check_scale(scale)
    if through not in THROUGH:
        raise UserError(f"through={through}", "no such way", nearest(through, THROUGH))
    if scale == 0 or not bool(asked(target).any()):
        return lambda x, sigma: denoiser.denoise(x, sigma, None)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        inside = within(interval, as_sigma(sigma))
        if not bool(inside.any()):
            return denoiser.denoise(x, sigma, None)
        with torch.inference_mode(False):
            goal = target.clone().to(x.device)
            state, gradients, p = _tap_gradients(denoiser, _own(x), as_sigma(sigma).clone(), goal, through)
            step = inside.to(p) * (min(scale, FARTHEST) * (1 - p) if normalise else scale * asked(goal).to(p))
            chosen = {k: g for k, g in gradients.items() if not normalise or k != STEM}
            taps = {name: _moved(tap, chosen.get(name), step, normalise) for name, tap in state.taps.items()}
        with torch.no_grad():
            edited = denoiser.decode(replace(state, taps=taps))
            if not normalise or scale <= FARTHEST:
                return edited
            plain = denoiser.decode(state)
            return plain + scale / FARTHEST * (edited - plain)

    return denoise


def own_guided(denoiser: Joint, target: Tensor, scale: float, interval: tuple[float, float] | None = None) -> Denoise:
    """A callable (x, sigma) -> x0_hat moved by scale * sigma^2 * grad_x log p(target | x, sigma) of the model's head.

    The arguments are those of `representation_guided`. It equals `classifier_guided` with the model as classifier, for
    one pass of the encoder instead of two.
    """
    check_interval(interval, "guide_interval")
    check_scale(scale)
    if scale == 0 or not bool(asked(target).any()):
        return lambda x, sigma: denoiser.denoise(x, sigma, None)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = as_sigma(sigma)
        inside = within(interval, sigma)
        if not bool(inside.any()):
            return denoiser.denoise(x, sigma, None)
        with torch.inference_mode(False), torch.enable_grad():
            seen, level, goal = _own(x).requires_grad_(), sigma.clone(), target.clone().to(x.device)
            state = denoiser.encode(seen, level, None)
            boost = _boost(state)
            log_p = log_probability(denoiser.read(state), goal) * boost
            pull = torch.autograd.grad(log_p.sum(), seen)[0] / boost
        with torch.no_grad():
            x0_hat = denoiser.decode(_detached(state))
            return x0_hat + expand(inside * scale * sigma**2, x) * pull

    return denoise


def _tap_gradients(
    denoiser: Joint, x: Tensor, sigma: Tensor, target: Tensor, through: Through
) -> tuple[State, dict[str, Tensor], Tensor]:
    """The state of x without its graph, {name: d log p / d tap} of the maps that matter to the head, and p (B,)."""
    with torch.enable_grad():
        if through == "encoder":
            state = denoiser.encode(x.requires_grad_(), sigma, None)
        else:
            with torch.no_grad():
                state = denoiser.encode(x, sigma, None)
            state = replace(state, taps={name: tap.detach().requires_grad_() for name, tap in state.taps.items()})
        logits, boost = denoiser.read(state), _boost(state)
        log_p = log_probability(logits, target) * boost
        taps = {name: tap for name, tap in state.taps.items() if tap.requires_grad}
        found = torch.autograd.grad(log_p.sum(), list(taps.values()), allow_unused=True)
    gradients = {name: g for name, g in zip(taps, found, strict=True) if g is not None}
    gradients = {name: g.to(torch.promote_types(g.dtype, torch.float32)) / boost for name, g in gradients.items()}
    return _detached(state), gradients, probability(logits.detach(), target)


def _moved(tap: Tensor, gradient: Tensor | None, step: Tensor, normalise: bool) -> Tensor:
    """A map (B, D, h, w) moved along its gradient by step (B,); normalised: by that share of its own length."""
    if gradient is None:
        return tap
    if normalise:
        length = gradient.flatten(1).norm(dim=1)
        size = tap.to(gradient.dtype).flatten(1).norm(dim=1)
        step = torch.where(length > 0, step * size / length, 0.0)
    return (tap + expand(step.to(gradient), gradient) * gradient).to(tap.dtype)


def _own(x: Tensor) -> Tensor:
    """A copy, because what was made in inference mode cannot take part in gradients."""
    return x.detach().clone()


def _detached(state: State) -> State:
    context = {name: value.detach() if isinstance(value, Tensor) else value for name, value in state.context.items()}
    return replace(
        state, taps={name: tap.detach() for name, tap in state.taps.items()}, emb=state.emb.detach(), context=context
    )


def _boost(state: State) -> float:
    return HALF_BOOST if any(tap.dtype == torch.float16 for tap in state.taps.values()) else 1.0
