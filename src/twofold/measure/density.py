"""Density and coverage (Naeem et al. 2020, eq. 4 and 5): precision and recall that one outlier does not change.

A real image's ball reaches to its k-th nearest other real image.

    density   how many real balls a generated image lies in on average, divided by k: about 1 for equal distributions,
              above 1 where images crowd where real ones are dense
    coverage  the share of real balls with a generated image inside, in [0, 1]
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .neighbours import _centred, _checked, _chunks, _slack, manifold_radii

NEIGHBOURS = 5  # as published


def density_coverage(
    real: Tensor | np.ndarray, fake: Tensor | np.ndarray, k: int = NEIGHBOURS, real_radii: Tensor | None = None
) -> tuple[float, float]:
    """(density, coverage) of fake (M, D) against real (N, D) features.

    Coverage depends on N and M: compare at equal numbers. real_radii: `manifold_radii(real, k)`, where several sets
    meet the same real images. Raises `UserError` where real has k vectors or fewer, D differs, or a value is not
    finite.
    """
    real, fake = _checked(real, fake)
    if not 1 <= k < len(real):
        raise UserError(f"k={k}", f"{len(real)} real images", f"1 to {len(real) - 1}, or more images")
    radii = manifold_radii(real, k) if real_radii is None else real_radii
    real, fake = real.double(), fake.double()
    radii = radii.to(real.device)
    q, r, norms = _centred(fake, real)
    balls, met = 0, torch.zeros(len(r), dtype=torch.bool, device=r.device)
    for rows in _chunks(len(q), len(r) * 8 * 3):
        excess = torch.addmm(norms, q[rows], r.T, alpha=-2) + q[rows].square().sum(1)[:, None] - radii
        inside = excess <= 0
        unsure = excess.abs() <= _slack(q[rows], norms)[:, None]  # too near the edge for a product to call
        query, reference = unsure.nonzero(as_tuple=True)
        for part in _chunks(len(query), q.shape[1] * 16):
            at, to = query[part], reference[part]
            inside[at, to] = (fake[rows][at] - real[to]).square().sum(1) <= radii[to]
        balls += int(inside.sum())
        met |= inside.any(0)
    return balls / (k * len(fake)), met.double().mean().item()
