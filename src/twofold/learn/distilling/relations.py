"""Relational knowledge distillation (Park et al. 2019): a student's batch is arranged as the teacher's.

    distance   smooth L1 of |x_i - x_j| / mean of those above 0                                      mean over i, j
    angle      smooth L1 of cos(j - i - k) = (d_ij^2 + d_ik^2 - d_jk^2) / (2 d_ij d_ik)           mean over i, j, k

The angles need no more than the (N, N) distances, so their products over channels are never made; of the N^3 angles a
few anchors' are there at a time, and are computed anew in the backward pass. Where two images have one feature, their
angles are 0, as with vectors normalised one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

ANGLES = 1 << 22  # at a time
SAME = 1e-12  # share of their squared lengths at which two features are one


def relational(
    student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0, at_once: int = ANGLES
) -> Tensor:
    """() loss of pooled features (N, S) and (N, T), without gradient to the teacher's; 0 for one image.

    distance, angle: factors on both parts. at_once: angles that are in memory at a time.
    """
    if len(student) < 2:
        return student.sum() * 0
    mine, theirs = _squared(student), _squared(teacher.detach())
    loss = distance * functional.smooth_l1_loss(_scaled(mine), _scaled(theirs))
    if angle:
        loss = loss + angle * _angle_loss(mine, theirs, max(1, at_once // len(student) ** 2))
    return loss.to(torch.promote_types(student.dtype, torch.float32))


def _squared(x: Tensor) -> Tensor:
    """(N, N) squared distances; 0 where they are nothing but rounding. In float64, where the device has it: differences
    of large numbers."""
    x = x.to(torch.float32 if x.device.type == "mps" else torch.float64)
    x = x - x.mean(0).detach()
    length = x.square().sum(1)
    sums = length[:, None] + length
    found = sums - 2 * x @ x.T
    share = SAME if x.dtype == torch.float64 else 1e-5
    return torch.where(found > share * sums, found, 0.0).fill_diagonal_(0)


def _roots(squared: Tensor) -> Tensor:
    """Square roots, whose gradient at 0 is 0."""
    there = squared > 0
    return torch.where(there, squared, 1.0).sqrt() * there


def _scaled(squared: Tensor) -> Tensor:
    """Distances over the mean of those above 0."""
    found = _roots(squared)
    return found / (found.sum() / (squared > 0).sum().clamp(min=1)).clamp(min=torch.finfo(found.dtype).tiny)


def _angle_loss(mine: Tensor, theirs: Tensor, anchors: int) -> Tensor:
    total, count = mine.new_zeros(()), len(mine)
    for start in range(0, count, anchors):
        rows = slice(start, start + anchors)
        if anchors >= count:
            total = total + _of_anchors(mine, theirs, rows)
        else:
            total = total + checkpoint(_of_anchors, mine, theirs, rows, use_reentrant=False, preserve_rng_state=False)
    return total / count**3


def _of_anchors(mine: Tensor, theirs: Tensor, rows: slice) -> Tensor:
    return functional.smooth_l1_loss(_angles(mine, rows), _angles(theirs, rows), reduction="sum")


def _angles(squared: Tensor, rows: slice) -> Tensor:
    """(n, N, N) cosines of the angles at these anchors i, between j and k."""
    there = squared[rows] > 0
    inverse = torch.where(there, squared[rows], 1.0).rsqrt() * there
    sides = squared[rows, :, None] + squared[rows, None, :] - squared
    return sides / 2 * inverse[:, :, None] * inverse[:, None, :]
