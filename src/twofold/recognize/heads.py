"""Linear heads on features: applying them, judging them, choosing among them.

    logits = ((x - mean) / scale) W + b        features (N, D) -> (N, K)

A grid of heads holds one per problem (a layer at a noise level: a feature matrix) and strength of regularisation.
Features of P problems are (P, N, D), as a tensor or an array that may be memory-mapped: one problem is read at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

Features = Tensor | np.ndarray
BUDGET = 64 * 2**20  # bytes of the largest temporary tensor
NEVER = -1e4  # bias of a class that had no labels: finite, so that losses stay numbers, and far below any other
TEMPERATURES = (1e-2, 1e2)


@dataclass(frozen=True)
class LinearHead:
    """weight (D, K), bias (K,), mean (D,), scale (D,)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def logits(self, x: Features) -> Tensor:
        """(N, D) -> (N, K), in x's precision and on its device."""
        x = as_float(x, self.weight.shape[0])
        weight, bias, mean, scale = (tensor.to(x) for tensor in self.tensors().values())
        return torch.cat([torch.addmm(bias, (part - mean) / scale, weight) for part in _parts(x, len(bias))])

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name: what `from_tensors` takes and a safetensors file holds."""
        return {"weight": self.weight, "bias": self.bias, "mean": self.mean, "scale": self.scale}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LinearHead:
        return cls(*(tensors[name] for name in ("weight", "bias", "mean", "scale")))


@dataclass(frozen=True)
class Heads:
    """Heads of P problems at S strengths: weight (P, S, D, K), bias (P, S, K), mean (P, D), scale (P, D).

    l2: the S strengths, empty where the heads were not regularised (S = 1). gradient (P, S): how far each fit is
    from its minimum, as its fitting function says; empty where that is not known.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    l2: tuple[float, ...] = ()
    gradient: Tensor | None = None

    def head(self, p: int, s: int = 0) -> LinearHead:
        """One of them."""
        return LinearHead(self.weight[p, s], self.bias[p, s], self.mean[p], self.scale[p])

    def logits(self, x: Features) -> Tensor:
        """(P, N, D) -> (P, S, N, K). For scores only, `accuracy` needs no memory for them all."""
        self._check(x)
        strengths = range(self.weight.shape[1])
        return torch.stack(
            [torch.stack([self.head(p, s).logits(problem(x, p)) for s in strengths]) for p in range(len(self.weight))]
        )

    def accuracy(self, x: Features, y: Features) -> Tensor:
        """(P, S) float64: shares of the labelled images that each head gets right. y (N,), -1 = unlabelled."""
        self._check(x)
        problems, strengths, dims, classes = self.weight.shape
        rows, y = labelled(y, (1, *x.shape)[-2], classes)
        right = torch.zeros(problems, strengths, dtype=torch.float64)
        for p in range(problems):
            features = problem(x, p)[rows.to(device_of(x))]
            weight = self.weight[p].permute(1, 0, 2).reshape(dims, -1).to(features)  # one product for all strengths
            start = 0
            for part in _parts((features - self.mean[p].to(features)) / self.scale[p].to(features), weight.shape[1]):
                logits = (part @ weight).unflatten(1, (strengths, classes)) + self.bias[p].to(features)
                truth = y[start : start + len(part)].to(features.device)
                right[p] += (logits.argmax(2) == truth[:, None]).double().sum(0).cpu()
                start += len(part)
        return right / len(y)

    def _check(self, x: Features) -> None:
        problems, dims = self.mean.shape
        if (1, *x.shape)[-3:] != (problems, x.shape[-2], dims) or x.ndim not in (2, 3):
            raise UserError("features", f"of shape {tuple(x.shape)}", f"these heads expect ({problems}, N, {dims})")


def temperature(logits: Features, y: Features) -> float:
    """T > 0 for which softmax(logits / T) gives y the highest likelihood (Guo et al. 2017, section 4.2).

    logits (N, K), y (N,) with -1 = unlabelled: images that nothing was fitted on. Convex in 1 / T, so the minimum is
    found, by Newton's method inside a bracket. T stays within `TEMPERATURES`, at whose ends lie logits without a
    single mistake and logits no better than chance. Raises `UserError` for shapes, labels or values that are not right.
    """
    logits = as_float(logits).double()
    rows, y = labelled(y, len(logits), logits.shape[1])
    logits = logits[rows.to(logits.device)]
    if not torch.isfinite(logits).all():
        raise UserError("logits", "NaN or infinity")
    right = logits.gather(1, y.to(logits.device)[:, None])[:, 0]
    if torch.equal(right, logits.amax(1)):  # ever sharper is ever better
        return TEMPERATURES[0]
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    beta = 1.0
    for _ in range(100):
        p = torch.softmax(beta * logits, 1)
        mean = (p * logits).sum(1)
        slope = (mean - right).mean().item()
        bend = ((p * logits.square()).sum(1) - mean.square()).mean().item()
        low, high = (beta, high) if slope < 0 else (low, beta)
        newton = beta - slope / bend if bend > 0 else 0.0
        beta, before = (newton if low < newton < high else (low * high) ** 0.5), beta
        if abs(beta - before) <= 1e-10 * beta:
            break
    return 1 / beta


def problem(x: Features, p: int) -> Tensor:
    """Features (N, D) of problem p of (P, N, D), or of the only one of (N, D), as a float tensor."""
    return as_float(x[p] if x.ndim == 3 else x)


def as_float(x: Features, dims: int | None = None) -> Tensor:
    """(N, D) in float32, or float64 where it is. Raises `UserError` for another number of dimensions."""
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(np.array(x))  # a copy: memory maps may not be written to
    if x.ndim != 2 or (dims is not None and x.shape[1] != dims):
        raise UserError("features", f"of shape {tuple(x.shape)}", f"expected (N, {dims if dims else 'D'})")
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


def device_of(x: Features) -> torch.device:
    return x.device if isinstance(x, Tensor) else torch.device("cpu")


def labelled(y: Features, n: int, classes: int) -> tuple[Tensor, Tensor]:
    """The rows that have a label, and their labels: int64, on the CPU.

    Raises `UserError` for labels that are not n integers from -1 to classes - 1, or that are all -1.
    """
    y = torch.as_tensor(np.array(y) if isinstance(y, np.ndarray) else y).cpu()
    if y.shape != (n,) or y.is_floating_point():
        raise UserError("labels", f"{y.dtype} of shape {tuple(y.shape)}", f"expected {n} integers")
    wrong = y[(y < -1) | (y >= classes)]
    if len(wrong):
        raise UserError("labels", f"label {int(wrong[0])} of {classes} classes", f"0 to {classes - 1}, or -1 for none")
    rows = (y >= 0).nonzero()[:, 0]
    if not len(rows):
        raise UserError("labels", "no image is labelled", "-1 means unlabelled")
    return rows, y[rows].long()


def _parts(x: Tensor, columns: int) -> Iterator[Tensor]:
    """Rows of x, in parts whose product with so many columns fits the budget."""
    return iter(x.split(max(1, BUDGET // (8 * max(columns, x.shape[1])))))
