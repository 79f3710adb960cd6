"""Between a denoiser and a sampler: two kinds of guidance, and clipping, as callables (x, sigma) -> x0_hat.

With a learned variance they return x0_hat and v, stacked along the channels (see `twofold.reverse`); what is done to
x0_hat leaves v alone, and of two guided passes v is the conditional one's.

    guided            = uncond + g * (cond - uncond)            (Ho and Salimans 2022, eq. 6, with g = 1 + w)
    classifier_guided = x0_hat + scale * sigma^2 * grad_x log p(label | x, sigma)

g = 1 is the conditional model, g = 0 the unconditional one, g > 1 exaggerates the condition. The second is Dhariwal and
Nichol 2021, algorithm 2, in terms of x0: by Tweedie's formula x0_hat = x + sigma^2 grad log p(x), and by Bayes' rule
scale 1 on an unconditional model is the conditional one, as far as the classifier is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..denoiser import Classifier, Cond, Denoiser
from ..errors import UserError
from ..noise import as_sigma, expand
from .samplers import Denoise
from .targets import log_probability


def guided(
    denoiser: Denoiser,
    label: Tensor | None,
    guidance: float = 1.0,
    interval: tuple[float, float] | None = None,
    variance: bool = False,
) -> Denoise:
    """A callable (x, sigma) -> x0_hat that denoises towards these labels.

    label: (B,) int64, -1 = none; None: no labels at all, and one unconditional pass. guidance: g above.
    interval: (low, high) in sigma; guidance acts where low < sigma <= high, and the plain conditional model elsewhere
        (Kynkaanniemi et al. 2024, section 3). variance: return v too, as (B, 2C, H, W).

    Both passes are one forward of the concatenated batch; wherever g is 1 or 0 there is one pass of the batch itself.
    """
    check_interval(interval)
    ask = _with_variance(denoiser) if variance else denoiser.denoise
    if label is None:
        return lambda x, sigma: ask(x, sigma, None)
    null = torch.full_like(label, -1)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = as_sigma(sigma)
        g = torch.full_like(sigma, guidance)
        g = torch.where(within(interval, sigma), g, 1.0)
        if bool((g == 1).all()):
            return ask(x, sigma, {"label": label})
        if bool((g == 0).all()):
            return ask(x, sigma, {"label": null})
        twice = sigma if sigma.ndim == 0 else torch.cat([sigma, sigma])
        both = ask(torch.cat([x, x]), twice, {"label": torch.cat([label, null])})
        cond, uncond = both.chunk(2)
        without = uncond[:, : x.shape[1]]
        return _changed(cond, x, lambda x0_hat: without + expand(g, x) * (x0_hat - without))

    return denoise


def _with_variance(denoiser: Denoiser) -> Callable[[Tensor, Tensor, Cond | None], Tensor]:
    return lambda x, sigma, cond: torch.cat(denoiser.denoise_and_variance(x, sigma, cond), 1)


def _changed(output: Tensor, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The output for x with another x0_hat; what it says of the variance stays."""
    channels = x.shape[1]
    if output.shape[1] == channels:
        return change(output)
    return torch.cat([change(output[:, :channels]), output[:, channels:]], 1)


def classifier_guided(
    denoise: Denoise,
    classifier: Classifier,
    label: Tensor,
    scale: float,
    interval: tuple[float, float] | None = None,
) -> Denoise:
    """The same callable, pulled towards what the classifier takes for these labels.

    denoise: whose x0_hat is moved; it may be the result of `guided`, and may be clipped afterwards. label: (B,) int64,
    the classifier's classes, -1 = left alone, or (B, K) attributes in 1, 0, -1 (left free). scale: 0 (no guide) or
    more; more always means more of the class. interval: (low, high) in sigma; the classifier is asked only where
    low < sigma <= high.

    Costs one pass and its gradient through the classifier. Works in inference mode; parameters get no gradients.
    """
    check_interval(interval, "guide_interval")
    check_scale(scale)
    if scale == 0 or bool((label == -1).all()):
        return denoise

    def moved(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = as_sigma(sigma)
        return _changed(denoise(x, sigma), x, lambda x0_hat: pulled(x, sigma, x0_hat))

    def pulled(x: Tensor, sigma: Tensor, x0_hat: Tensor) -> Tensor:
        inside = within(interval, sigma)
        if bool(inside.all()):
            return x0_hat + expand(scale * sigma**2, x) * class_gradient(classifier, x, sigma, label)
        if bool(inside.any()):  # levels the classifier may not know are not shown to it
            rows, x0_hat = inside.nonzero()[:, 0].to(x.device), x0_hat.clone()
            pull = class_gradient(classifier, x[rows], sigma[inside], label[rows])
            x0_hat[rows] += expand(scale * sigma[inside] ** 2, x) * pull
        return x0_hat

    return moved


def class_gradient(classifier: Classifier, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
    """grad_x log p(label | x, sigma), (B, C, H, W) in x's dtype; 0 for label -1.

    label: (B,), or (B, K) for a classifier of attributes (see `targets`). Each image's own: the log-probabilities of
    the batch are added up, not averaged.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # copies, because what was made in inference mode cannot take part in gradients
        seen = x.detach().clone().to(_dtype(classifier, x)).requires_grad_()
        sigma, label = sigma.clone(), label.clone().to(x.device)
        log_p = log_probability(classifier.logits(seen, sigma).to(seen), label)
        return torch.autograd.grad(log_p.sum(), seen)[0].to(x)


def _dtype(classifier: Classifier, x: Tensor) -> torch.dtype:
    """What a classifier computes in: its weights' type, float32 or better, or that of x where it has none."""
    weights = classifier.parameters() if isinstance(classifier, nn.Module) else iter(())
    first = next((weight.dtype for weight in weights if weight.is_floating_point()), x.dtype)
    return torch.promote_types(first, torch.float32)


def within(interval: tuple[float, float] | None, sigma: Tensor) -> Tensor:
    """Whether low < sigma <= high, of sigma's shape; everywhere without an interval."""
    if interval is None:
        return torch.ones_like(sigma, dtype=torch.bool)
    return (interval[0] < sigma) & (sigma <= interval[1])


def check_interval(interval: tuple[float, float] | None, name: str = "interval") -> None:
    """Raises `UserError` for what is no interval of sigma."""
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise UserError(f"{name}={interval}", "not an interval of sigma", "0 <= low < high")


def check_scale(scale: float) -> None:
    """Raises `UserError` for what is no scale of a guide."""
    if not (math.isfinite(scale) and scale >= 0):
        raise UserError(f"guide_scale={scale:g}", "not a scale", "0 (no guide) or more")


def clipped(denoise: Denoise, low: float = -1.0, high: float = 1.0) -> Denoise:
    """The same with x0_hat clamped to [low, high], where the pixels of every image lie; never for latents."""
    return lambda x, sigma: _changed(denoise(x, sigma), x, lambda x0_hat: x0_hat.clamp(low, high))
