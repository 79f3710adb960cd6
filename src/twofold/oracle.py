"""The exact denoiser of a mixture of isotropic Gaussians: what a perfect network would answer.

Data: x0 ~ sum_k w_k N(mu_k, std_k^2 I). In the frame x = x0 + sigma * noise, with v_k = std_k^2 + sigma^2,

    p(x)          = sum_k w_k N(x; mu_k, v_k I)
    r_k(x)        = w_k N(x; mu_k, v_k I) / p(x)                          posterior of the component
    E[x0 | x, k]  = mu_k + std_k^2 / v_k (x - mu_k)                       Wiener filter of one component
    E[x0 | x]     = sum_k r_k E[x0 | x, k]                                denoise
    grad log p(x) = sum_k r_k (mu_k - x) / v_k = (E[x0 | x] - x) / sigma^2   score (Tweedie's formula)

For one Gaussian the probability-flow ODE dx/dsigma = (x - E[x0|x]) / sigma (Karras et al. 2022, eq. 1) has a closed
solution: x - mu scales as sqrt(std^2 + sigma^2). Samplers, guidance, losses and probes are tested against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from . import taps
from .codec import PixelCodec
from .denoiser import Cond, Denoiser, State
from .errors import UserError
from .noise import Family, as_sigma
from .noise import family as make_family
from .settings.noise import EDMNoise
from .taps import Layer


class _Evidence(nn.Module):
    """Log-likelihood of every pixel under every component, up to a constant; its sum over pixels decides."""

    def forward(self, x: Tensor, means: Tensor, variance: Tensor) -> Tensor:
        distance = (x[:, None] - means).square().sum(2)  # (B, K, H, W)
        variance = variance[:, :, None, None]
        return -0.5 * (distance / variance + x.shape[1] * variance.log())


class _Posterior(nn.Module):
    """Log-posterior of the components."""

    def forward(self, evidence: Tensor, log_weights: Tensor) -> Tensor:
        return torch.log_softmax(evidence.sum((2, 3)) + log_weights, 1)[:, :, None, None]  # (B, K, 1, 1)


class _ComponentMeans(nn.Module):
    """E[x0 | x, k] of every component, stacked along the channels."""

    def forward(self, x: Tensor, means: Tensor, gain: Tensor) -> Tensor:
        return (means + gain[:, :, None, None, None] * (x[:, None] - means)).flatten(1, 2)  # (B, K * C, H, W)


class _Expectation(nn.Module):
    """Their average under the posterior, or the labelled component's."""

    def forward(self, components: Tensor, log_posterior: Tensor, label: Tensor) -> Tensor:
        k = log_posterior.shape[1]
        posterior = log_posterior.softmax(1)  # renormalises what a guide may have edited
        chosen = nn.functional.one_hot(label.clamp(min=0), k).to(posterior)[:, :, None, None]
        posterior = torch.where((label >= 0)[:, None, None, None], chosen, posterior)
        return (posterior[:, :, None] * components.unflatten(1, (k, -1))).sum(1)  # (B, C, H, W)


class MixtureDenoiser(Denoiser):
    """Exact `denoise` for a mixture of K isotropic Gaussians, with layers, so that whatever takes a network takes it.

    means: (K, C, H, W). stds: (K,), > 0. weights: (K,), > 0, normalised here.
    family: whose sigma range and start it has, and whose range it enforces; without one it has EDM's range and is
        exact at every sigma >= 0.
    labels: cond["label"] selects the component (-1 = the whole mixture); False makes it an unconditional model.

    It computes in the dtype of x. Layers: "enc.0" evidence per pixel (B, K, H, W); "mid" log-posterior (B, K, 1, 1),
    which the label does not touch; "dec.0" the components' means (B, K * C, H, W); "dec.1" x0_hat (B, C, H, W).

    Raises `UserError` for shapes that do not fit and for stds or weights that are not positive.
    """

    means: Tensor
    stds: Tensor
    log_weights: Tensor

    def __init__(
        self,
        means: Tensor,
        stds: Tensor | Sequence[float],
        weights: Tensor | Sequence[float],
        family: Family | None = None,
        labels: bool = True,
    ) -> None:
        super().__init__()
        means, stds, weights = (torch.as_tensor(v, dtype=torch.float64) for v in (means, stds, weights))
        if means.ndim != 4:
            raise UserError("means", f"shape {tuple(means.shape)}", "a mixture needs (K, C, H, W)")
        k, c, h, w = means.shape
        for name, values in (("stds", stds), ("weights", weights)):
            if values.shape != (k,) or not bool((values > 0).all()):
                raise UserError(name, f"shape {tuple(values.shape)}", f"{k} positive numbers are needed, one per mean")
        self.register_buffer("means", means)
        self.register_buffer("stds", stds)
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.family = family or make_family(EDMNoise())
        self._enforce = family is not None
        self.shape, self.sigma_range = (c, h, w), self.family.sigma_range
        self.classes = k if labels else 0
        self.codec, self.clip = PixelCodec(), False
        self.evidence, self.posterior = _Evidence(), _Posterior()
        self.components, self.expectation = _ComponentMeans(), _Expectation()
        self.layers = {
            "enc.0": Layer(self.evidence, k, 1),
            "mid": Layer(self.posterior, k, h),
            "dec.0": Layer(self.components, k * c, 1),
            "dec.1": Layer(self.expectation, c, 1),
        }

    def start_scale(self, sigma: float) -> float:
        return self.family.start_scale(sigma)

    def denoise(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> Tensor:
        self._check(sigma)
        return self._run(x, sigma, cond)

    def features(
        self, x: Tensor, sigma: Tensor | float, layers: Iterable[str], cond: Cond | None = None
    ) -> dict[str, Tensor]:
        sigma = as_sigma(sigma)
        self._check(torch.where(sigma == 0, self.sigma_range[0], sigma))
        return taps.read(lambda: self._run(x, sigma, cond), self.layers, layers)

    def encode(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> State:
        """Up to the posterior: `taps["mid"]` (B, K, 1, 1) may be edited, `decode` renormalises it."""
        self._check(sigma)
        mid = self._posterior(x, sigma)
        emb = as_sigma(sigma).to(x).expand(len(x))[:, None]
        return State({"mid": mid}, emb, {"x": x, "sigma": sigma, "label": self._label(x, cond)})

    def decode(self, state: State) -> Tensor:
        """x0_hat (B, C, H, W) from a state that may have been edited."""
        return self._decode(state.context["x"], state.context["sigma"], state.taps["mid"], state.context["label"])

    def logits(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """log r_k(x), (B, K): the best possible classifier of the component, at any sigma >= 0."""
        return self._posterior(x, sigma)[:, :, 0, 0]

    def as_classifier(self) -> OracleClassifier:
        """The same as a `Classifier`, whose `class_names` are the components' "0", "1", ... ."""
        return OracleClassifier(self)

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """ln p(x), (B,), in nats."""
        evidence = self.evidence(x, self.means.to(x), self._variance(x, sigma)).sum((2, 3))
        constant = 0.5 * math.prod(self.shape) * math.log(2 * math.pi)
        return torch.logsumexp(evidence + self.log_weights.to(x), 1) - constant

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """grad log p(x), (B, C, H, W); sigma may be 0."""
        share = self.logits(x, sigma).exp() / self._variance(x, sigma)
        return (share[:, :, None, None, None] * (self.means.to(x) - x[:, None])).sum(1)

    def draw_labels(self, n: int, generator: torch.Generator) -> Tensor:
        """Components drawn by their weights, (n,) int64."""
        return torch.multinomial(self.log_weights.exp().cpu(), n, replacement=True, generator=generator)

    def sample(self, n: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """Clean data x0 (n, C, H, W) float64 on the CPU, of these components or of drawn ones."""
        label = self.draw_labels(n, generator) if label is None else label
        noise = torch.randn((n, *self.shape), generator=generator, dtype=torch.float64)
        return self.means.cpu()[label] + self.stds.cpu()[label].view(-1, 1, 1, 1) * noise

    def exact(self, x: Tensor, sigma_from: float, sigma_to: float, label: int | None = None) -> Tensor:
        """Where the probability-flow ODE takes x from sigma_from to sigma_to; one Gaussian, or one component by label.

        Raises `UserError` for a mixture without a label: its ODE has no closed solution.
        """
        k = self._one("exact", label)
        mean, variance = self.means[k].to(x), float(self.stds[k]) ** 2
        return mean + (x - mean) * math.sqrt((sigma_to**2 + variance) / (sigma_from**2 + variance))

    def minimum_loss(self, sigma: Tensor | float, label: int | None = None) -> Tensor:
        """E |x0 - E[x0|x]|^2 per dimension, float64, shape of sigma: no denoiser of one Gaussian can do better."""
        variance = self.stds[self._one("minimum_loss", label)].cpu() ** 2
        sigma = as_sigma(sigma)
        return variance * sigma**2 / (variance + sigma**2)

    def _one(self, what: str, label: int | None) -> int:
        if label is None and len(self.means) > 1:
            raise UserError(what, f"a mixture of {len(self.means)} has no closed form", "give the label of a component")
        return label or 0

    def _check(self, sigma: Tensor | float) -> None:
        sigma = as_sigma(sigma)
        if self._enforce:
            self.family.check(sigma)
        elif not bool((sigma >= 0).all()):
            raise UserError(f"sigma={float(sigma.min()):.6g}", "not a noise level", "sigma is at least 0")

    def _label(self, x: Tensor, cond: Cond | None) -> Tensor:
        label = (cond or {}).get("label")
        if label is None or not self.classes:
            return torch.full((len(x),), -1, device=x.device)
        if int(label.max()) >= self.classes:
            raise UserError(f"label={int(label.max())}", "no such component", f"0..{self.classes - 1}, or -1 for all")
        return label.to(x.device)

    def _variance(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """v_k, (B, K) or (1, K)."""
        return self.stds.to(x).square() + as_sigma(sigma).to(x).reshape(-1, 1).square()

    def _posterior(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        evidence = self.evidence(x, self.means.to(x), self._variance(x, sigma))
        return self.posterior(evidence, self.log_weights.to(x))

    def _decode(self, x: Tensor, sigma: Tensor | float, log_posterior: Tensor, label: Tensor) -> Tensor:
        gain = self.stds.to(x).square() / self._variance(x, sigma)
        return self.expectation(self.components(x, self.means.to(x), gain), log_posterior, label)

    def _run(self, x: Tensor, sigma: Tensor | float, cond: Cond | None) -> Tensor:
        return self._decode(x, sigma, self._posterior(x, sigma), self._label(x, cond))


class OracleClassifier:
    """A mixture seen as a `Classifier`."""

    def __init__(self, oracle: MixtureDenoiser) -> None:
        self.oracle = oracle
        self.class_names = [str(k) for k in range(len(oracle.means))]

    def logits(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """x (B, C, H, W) in the frame x0 + sigma * noise -> (B, K) log-posterior."""
        return self.oracle.logits(x, sigma)
