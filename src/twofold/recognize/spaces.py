"""The space in which features are compared: what is done to them before a classifier of few labels sees them.

    rows        u = s / |s|, s = x - mean_j x_j     each image by itself: one number is taken off, then length 1
    columns     u = (x - mean) / std                over all images, labelled or not
    whitened    u = V^T (x - mean) / sqrt(lambda)   the leading principal components, of equal variance

Nothing here knows a label, so all images may be used, and usually should: with two labels per class the variance of a
feature is unknown to the labelled ones. A head carries its space along (`InSpace`), so that it is never forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError, nearest
from .heads import Features, LinearHead, as_float
from .soft_votes import SoftVotes

SPACES = ("raw", "rows", "columns", "columns+rows", "whitened", "whitened+rows")
DIMS = 64  # principal components that are kept, unless told otherwise
BLOCK = 2**24  # numbers of features that are turned into float64 at a time


def standardised(x: Tensor) -> Tensor:
    """Features (..., D), each row centred and then of length 1 (the pre-processing of DPT's published classifier).

    A row of equal numbers has no direction and becomes 0.
    """
    largest = x.abs().amax(-1, keepdim=True)
    x = x - x.mean(-1, keepdim=True)
    x = torch.where(x.abs() <= 8 * torch.finfo(x.dtype).eps * largest, 0.0, x)  # what rounding has left
    return torch.nn.functional.normalize(x, dim=-1, eps=torch.finfo(x.dtype).tiny)


@dataclass(frozen=True)
class Space:
    """(x - mean) times a matrix, then each row standardised or not. mean (D,); matrix (D,), a diagonal, or (D, R)."""

    mean: Tensor
    matrix: Tensor
    rows: bool

    def __call__(self, x: Features) -> Tensor:
        """(N, D) -> (N, R), in x's precision and on its device. Raises `UserError` for another D."""
        x = as_float(x, len(self.mean))
        mean, matrix = self.mean.to(x), self.matrix.to(x)
        x = x - mean
        x = x * matrix if matrix.ndim == 1 else x @ matrix
        return standardised(x) if self.rows else x

    @property
    def dims(self) -> int:
        """R."""
        return self.matrix.shape[-1]

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "matrix": self.matrix, "rows": torch.tensor(self.rows)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Space:
        return cls(tensors["mean"], tensors["matrix"], bool(tensors["rows"]))


def space_of(name: str, x: Features, dims: int | None = None) -> Space:
    """The space of this name for features (N, D) of all images, labelled or not.

    dims: principal components of a whitened one, `DIMS` by default and at most as many as there are. Directions with
    less than 1e-6 of the largest variance are not blown up. Raises `UserError` for another name, and for features that
    are not finite.
    """
    if name not in SPACES:
        raise UserError(f"space={name}", "no such space", nearest(name, SPACES))
    if dims is not None and dims < 1:
        raise UserError(f"dims={dims}", "not a number of components", "1 or more")
    x = as_float(x)
    if not torch.isfinite(x).all():
        raise UserError("features", "NaN or infinity", "check how they were computed")
    zero, one = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    if name in ("raw", "rows"):
        return Space(zero, one, name == "rows")
    mean = _mean(x)
    matrix = _whitening(x, mean, dims or DIMS) if name.startswith("whitened") else _scales(x, mean)
    return Space(mean.to(x.dtype), matrix.to(x.dtype), name.endswith("rows"))


def _mean(x: Tensor) -> Tensor:
    parts = x.split(max(1, BLOCK // x.shape[1]))
    return torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(x)


def _scales(x: Tensor, mean: Tensor) -> Tensor:
    """(D,): 1 / standard deviation, 0 for constant features."""
    parts = x.split(max(1, BLOCK // x.shape[1]))
    std = (torch.stack([(part.double() - mean).square().sum(0) for part in parts]).sum(0) / len(x)).sqrt()
    return torch.where(std > 1e-8 * std.max().clamp(min=1e-30), 1 / std.clamp(min=1e-30), 0.0)


def _whitening(x: Tensor, mean: Tensor, dims: int) -> Tensor:
    """(D, R): leading principal directions over their standard deviations."""
    covariance = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for part in x.split(max(1, BLOCK // x.shape[1])):
        centred = part.double() - mean
        covariance += centred.T @ centred
    variance, directions = torch.linalg.eigh(covariance / len(x))
    keep = min(dims, int((variance > 1e-6 * variance[-1]).sum()) or 1)
    return (directions[:, -keep:] / variance[-keep:].clamp(min=1e-30).sqrt()).flip(1).contiguous()


@dataclass(frozen=True)
class InSpace:
    """A head with the space it was fitted in: features as they come (N, D) -> (N, K)."""

    space: Space
    head: LinearHead | SoftVotes

    def logits(self, x: Features) -> Tensor:
        return self.head.logits(self.space(x))

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name: what `from_tensors` takes and a safetensors file holds."""
        parts = (("space", self.space.tensors()), ("head", self.head.tensors()))
        return {f"{part}.{name}": value for part, tensors in parts for name, value in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> InSpace:
        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}

        head = part("head")
        kind = SoftVotes if "probabilities" in head else LinearHead
        return cls(Space.from_tensors(part("space")), kind.from_tensors(head))


def linear(weight: Tensor, bias: Tensor) -> LinearHead:
    """A head on the space's own coordinates: weight (R, K), bias (K,)."""
    return LinearHead(weight, bias, weight.new_zeros(len(weight)), weight.new_ones(len(weight)))
