"""Exact nearest neighbours in bounded memory, and what follows from them: precision, recall, memorisation.

Squared distances come from one matrix product, |q|^2 + |r|^2 - 2 q.r, which is fast and cancels where q is near r: in
float32 the distance of a near copy is mostly rounding. So the product only proposes candidates. Their distances are
computed again as |q - r|^2 in float64, and a query is settled only where a bound on the rounding of the product proves
that nothing nearer was left out; the others are searched again in float64, and what is still undecided (ties) directly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

BUDGET = 128 * 2**20  # bytes of the largest temporary matrix
UNLIKE = 0.5  # share of images far from everything (`farther_than_real`) above which they say nothing about copying
SPARE = 8  # candidates beyond k: room for round-off of the matrix product to swap neighbours


def nearest(queries: Tensor | np.ndarray, references: Tensor | np.ndarray, k: int = 1) -> tuple[Tensor, Tensor]:
    """The k nearest references of each query, nearest first: distances (Q, k) float64, indices (Q, k) int64.

    queries (Q, D), references (R, D): Euclidean distance, in their own units. Exact to float64's rounding of |q - r|,
    also for float32 vectors, which are searched faster. Equally near references come in any order. Memory beyond
    copies of the vectors stays near `BUDGET`. Raises `UserError` where k is not in 1..R, D differs, or a value is not
    finite.
    """
    queries, references = _checked(queries, references)
    if not 1 <= k <= len(references):
        raise UserError(f"k={k}", f"there are {len(references)} references", f"1 to {len(references)}")
    squares, indices = _search(queries, references, k)
    return squares.sqrt().cpu(), indices.cpu()


def precision_recall(
    real: Tensor | np.ndarray, fake: Tensor | np.ndarray, k: int = 3, real_radii: Tensor | None = None
) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2): two shares in [0, 1].

    real (N, D) and fake (M, D) features. A set's manifold is the union of balls around its vectors, each reaching to
    the k-th nearest other vector of the set. Precision: the share of fake on real's manifold (are they plausible?).
    Recall: the share of real on fake's manifold (is everything covered?). Both depend on N and M: compare at equal
    numbers. real_radii: `manifold_radii(real, k)`, most of the work, where several sets meet the same real images.
    Raises `UserError` where a set has k vectors or fewer.
    """
    real, fake = _checked(real, fake)
    for name, rows in (("real", real), ("fake", fake)):
        if len(rows) <= k or k < 1:
            raise UserError(f"k={k}", f"{len(rows)} {name} images", f"1 to {len(rows) - 1}, or more images")
    real_radii = manifold_radii(real, k) if real_radii is None else real_radii
    return _covered(fake, real, real_radii), _covered(real, fake, manifold_radii(fake, k))


def manifold_radii(rows: Tensor | np.ndarray, k: int = 3) -> Tensor:
    """Squared distance (N,) float64 of each vector to its k-th nearest other one. Raises `UserError` as `nearest`."""
    rows, _ = _checked(rows, rows)
    if not 1 <= k < len(rows):
        raise UserError(f"k={k}", f"{len(rows)} images", f"1 to {len(rows) - 1}, or more images")
    return _search(rows.double(), rows.double(), k + 1)[0][:, k]  # the nearest one is the vector itself


def neighbour_report(
    samples: Tensor | np.ndarray, train: Tensor | np.ndarray, held_out: Tensor | np.ndarray
) -> dict[str, dict[str, Any]]:
    """Distances to the nearest training image, of samples and of held-out real images: evidence of memorisation.

    All (N, D) features of one encoder. Returns {"nearest_median", "nearest_5_percent": {"samples", "real",
    "real_interval"}, "nearer_than_real", "farther_than_real": {"samples", "real"}}. real_interval: 95 % interval of the
    real images' quantile; genuinely new real images fall below the point value as often as not. nearer_than_real is the
    share below the held-out images' 5 % quantile, so 0.05 where samples keep the same distance from the training images
    as new real images do, and near 1 for copies; farther_than_real that above their 99 % quantile, so 0.01, and near 1
    for what looks like none of them: noise is no copy, and no success. Raises `UserError` as `nearest` does.
    """
    return distance_report(nearest(samples, train)[0].flatten(), nearest(held_out, train)[0].flatten())


def distance_report(ours: Tensor, real: Tensor) -> dict[str, dict[str, Any]]:
    """`neighbour_report` of known distances to the nearest training image: of samples (N,) and of held-out images."""
    low, high = real.quantile(0.05), real.quantile(0.99)
    report: dict[str, dict[str, Any]] = {
        name: {
            "samples": ours.quantile(share).item(),
            "real": real.quantile(share).item(),
            "real_interval": quantile_interval(real, share),
        }
        for name, share in (("nearest_median", 0.5), ("nearest_5_percent", 0.05))
    }
    shares = {"nearer_than_real": (ours < low, 0.05), "farther_than_real": (ours > high, 0.01)}
    return report | {
        name: {"samples": which.double().mean().item(), "real": usual} for name, (which, usual) in shares.items()
    }


def quantile_interval(values: Tensor, share: float, z: float = 1.96) -> list[float]:
    """95 % interval of a quantile, from order statistics: the number of values below it is binomial."""
    n, ranked = len(values), values.sort().values
    middle, width = n * share, z * math.sqrt(n * share * (1 - share))
    places = (math.floor(middle - width), math.ceil(middle + width))
    return [ranked[min(max(place, 0), n - 1)].item() for place in places]


def _covered(queries: Tensor, references: Tensor, radii: Tensor) -> float:
    """Share of queries inside the ball of at least one reference. In float64: a radius is no place for rounding."""
    queries, references = queries.double(), references.double()
    radii = radii.to(references.device)
    q, r, norms = _centred(queries, references)
    inside = torch.zeros(len(q), dtype=torch.bool, device=q.device)
    for rows in _chunks(len(q), len(r) * 8 * 3):
        excess = torch.addmm(norms, q[rows], r.T, alpha=-2) + q[rows].square().sum(1)[:, None] - radii
        slack = _slack(q[rows], norms)[:, None]
        hit = (excess < -slack).any(1)
        query, reference = ((excess <= slack) & ~hit[:, None]).nonzero(as_tuple=True)  # too near the edge to call
        for part in _chunks(len(query), q.shape[1] * 16):
            at, to = query[part], reference[part]
            exact = (queries[rows][at] - references[to]).square().sum(1)
            hit[at[exact <= radii[to]]] = True
        inside[rows] = hit
    return inside.double().mean().item()


def _search(queries: Tensor, references: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances (Q, k) float64, ascending, and indices (Q, k)."""
    q, r, norms = _centred(queries, references)
    m = min(k + SPARE, len(r))
    squares = torch.empty(len(q), k, dtype=torch.float64, device=q.device)
    indices = torch.empty(len(q), k, dtype=torch.int64, device=q.device)
    unsure = torch.zeros(len(q), dtype=torch.bool, device=q.device)
    for rows in _chunks(len(q), max(len(r) * q.element_size() * 2, m * q.shape[1] * 16)):
        proposed, candidates = torch.addmm(norms, q[rows], r.T, alpha=-2).topk(m, largest=False)
        squares[rows], indices[rows] = _refine(queries[rows], references, candidates, k)
        if m < len(r):
            beyond = proposed[:, -1].double() + q[rows].double().square().sum(1) - _slack(q[rows], norms)
            unsure[rows] = squares[rows, -1] > beyond
    if unsure.any():
        again = _direct if queries.dtype == torch.float64 else _search
        squares[unsure], indices[unsure] = again(queries[unsure].double(), references.double(), k)
    return squares, indices


def _refine(queries: Tensor, references: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of the candidates (Q, m), by |q - r|^2 in float64."""
    squares = (queries.double()[:, None] - references[candidates].double()).square().sum(2)
    squares, order = squares.topk(k, largest=False)
    return squares, candidates.gather(1, order)


def _direct(queries: Tensor, references: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same without the matrix product, for the few queries that it cannot settle."""
    squares = queries.new_empty(len(queries), k)
    indices = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    for rows in _chunks(len(queries), max(8 * len(references), (k + SPARE) * queries.shape[1] * 16)):
        far = torch.cdist(queries[rows], references, compute_mode="donot_use_mm_for_euclid_dist")
        candidates = far.topk(min(k + SPARE, len(references)), largest=False).indices
        squares[rows], indices[rows] = _refine(queries[rows], references, candidates, k)
    return squares, indices


def _centred(queries: Tensor, references: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both moved so that the references' mean is 0, which makes the terms that cancel small, and |r|^2 (R,)."""
    origin = references.mean(0)
    r = references - origin
    return queries - origin, r, r.square().sum(1)


def _slack(queries: Tensor, norms: Tensor) -> Tensor:
    """(Q,) float64: the most by which rounding can move a squared distance of the matrix product.

    Inner products of D terms err by at most D eps/2 |q| |r| (Higham 2002, eq. 3.5), which makes D eps/2 (|q| + |r|)^2
    for the sum; the rest of the doubled bound is for centring, norms and additions.
    """
    eps = torch.finfo(queries.dtype).eps
    reach = queries.double().square().sum(1).sqrt() + norms.max().double().sqrt()
    return (queries.shape[1] + 8) * eps * reach.square()


def _chunks(rows: int, row_bytes: int) -> Iterator[slice]:
    step = max(1, BUDGET // max(1, row_bytes))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def _checked(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    """Both as matrices of one float dtype with equal D and finite values, or `UserError`.

    float64 if either is, or where float32 products are allowed to be sloppy (TF32), which the bound knows nothing of.
    """
    a, b = (torch.as_tensor(rows).detach() for rows in (a, b))
    for rows in (a, b):
        if rows.ndim != 2 or len(rows) == 0:
            raise UserError("features", f"of shape {tuple(rows.shape)}", "expected (images, dimensions), not empty")
        if not torch.isfinite(rows).all():
            raise UserError("features", "NaN or infinity", "check the encoder and its images")
    if a.shape[1] != b.shape[1]:
        raise UserError("features", f"{a.shape[1]} dimensions and {b.shape[1]} dimensions", "use one encoder for both")
    double = torch.float64 in (a.dtype, b.dtype) or torch.get_float32_matmul_precision() != "highest"
    device = "cpu" if a.device.type == "mps" else a.device  # which has no float64
    dtype = torch.float64 if double else torch.float32
    return a.to(device, dtype), b.to(device, dtype)
