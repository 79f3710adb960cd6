"""What a choice of noise level is worth, for each image, from the teacher's pooled features z there.

    task           -CE(head(z_i), label_i)                                  of labelled images         (RepFusion)
    least_squares  -|one_hot(label_i) - prediction of z_i by the others|^2  of labelled images
    infonce        log softmax_j(cos(z_i, z_j) / T) at j = i                of all: how much an image's feature is its
                   own among those of the batch; the teacher against itself, as published

The prediction is ridge regression on all other labelled images of the batch, found in closed form (residuals divided by
1 - leverage), so a batch smaller than the features leaves something to tell; the published residual is 0 there.
All are without gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .losses import info_nce


@torch.no_grad()
def task_reward(logits: Tensor, label: Tensor) -> Tensor:
    """(B,) for logits (B, K) and labels (B,), 0 where the label is -1."""
    return -functional.cross_entropy(logits, label, ignore_index=-1, reduction="none")


@torch.no_grad()
def infonce_reward(z: Tensor, temperature: float) -> Tensor:
    """(B,) for features (B, D)."""
    return -info_nce(z, z, temperature)


@torch.no_grad()
def least_squares_reward(z: Tensor, label: Tensor, classes: int, ridge: float) -> Tensor:
    """(B,) for features (B, D) and labels (B,), 0 where the label is -1 or no other image has one.

    ridge: penalty, in units of the mean squared length of a centred feature.
    """
    reward = z.new_zeros(len(z))
    at = (label >= 0).nonzero()[:, 0]
    if len(at) < 2:
        return reward
    precise = torch.float32 if z.device.type == "mps" else torch.float64
    target = functional.one_hot(label[at], classes).to(precise)
    residual = left_out_residuals(z[at].to(precise), target, ridge)
    reward[at] = -residual.square().sum(1).to(reward)
    return reward


def left_out_residuals(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """(n, K): y minus its prediction from the other rows, by ridge regression of y (n, K) on x (n, D) with an
    intercept. The penalty is ridge times the mean squared length of a centred row of x.

    Exact up to the intercept and the penalty, which are those of all rows.
    """
    n = len(x)
    x, y = x - x.mean(0), y - y.mean(0)
    gram = x @ x.T
    penalty = ridge * gram.diagonal().mean().clamp(min=torch.finfo(x.dtype).tiny)
    # hat = gram (gram + penalty)^-1 = 1 - penalty (gram + penalty)^-1
    inverse = torch.linalg.inv(gram + penalty * torch.eye(n, dtype=x.dtype, device=x.device))
    leverage = 1 - penalty * inverse.diagonal() + 1 / n
    return penalty * (inverse @ y) / (1 - leverage).clamp(min=1e-6)[:, None]
