"""Heads on frozen features by gradient steps: the published linear probe, for all problems at once, and attention.

Features are read, never computed, and one view of them (an augmented copy, a noise draw) is seen in each epoch. The
probes of a grid share nothing but the order of images, so one weight (P, K, D) and one elementwise optimiser train them
exactly as P separate runs would.

    linear      logits = W x + b            (Xiang et al. 2023: Adam, cosine)
    attentive   as `recognize.attentive` says
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.order import ImageOrder
from ..errors import UserError, nearest
from ..recognize.attentive import TOKENS, AttentiveHead, rows_of
from ..recognize.heads import Features, Heads, device_of, labelled

Views = Features | Callable[[int], Features]  # all views in one array, or a function of the view's index

EPS, MOMENTUM = 1e-6, 0.1  # of BatchNorm


def train_linear(
    x: Views,
    y: Features,
    classes: int,
    epochs: int = 15,
    batch_size: int = 512,
    lr: float = 4e-3,
    norm: Literal["none", "batch"] = "none",
    seed: int = 0,
    views: int = 1,
    device: torch.device | str | None = None,
) -> Heads:
    """Linear probes for P problems: Adam without decay, the learning rate falling to 0 by a cosine, epoch by epoch.

    x (P, V, N, D), an array that may be memory-mapped, or a function view(v) -> (P, N, D) of `views` views; epoch e
    sees view e mod V. y (N,): classes from 0, -1 = unlabelled and left out. norm "batch": a BatchNorm without weights
    before the layer (its last batch is left out if it is a single image). seed: the start, PyTorch's own of a linear
    layer and the same for all problems, and the order of images. device: the features' own, if
    not told. Returns `Heads` of one strength, on the CPU.
    Raises `UserError` for sizes that disagree, labels of one class, and features or a learning rate that end in NaN.
    """
    if norm not in ("none", "batch"):
        raise UserError(f"norm={norm}", "no such normalisation", nearest(norm, ("none", "batch")))
    view = _views(x, 1, views)
    first = view(0)
    problems, images, dims = first.shape
    device = device_of(first) if device is None else device
    rows, labels = _labels(y, images, classes)
    weight, bias = _linear_start(dims, classes, seed)
    weight = weight.repeat(problems, 1, 1).to(device).requires_grad_()  # (P, K, D)
    bias = bias.repeat(problems, 1)[:, :, None].to(device).requires_grad_()  # (P, K, 1)
    mean = torch.zeros(problems, dims, device=device)
    variance = torch.ones_like(mean)
    optimizer = torch.optim.Adam([weight, bias], lr=lr, fused=True)
    for features, at in _epochs(optimizer, view, len(rows), epochs, batch_size, seed):
        if norm == "batch" and len(at) == 1:
            continue
        batch = rows_of(features, rows[at], 1, device)  # (P, B, D)
        if norm == "batch":
            batch = _normalised(batch, mean, variance)
        logits = torch.baddbmm(bias, weight, batch.mT)
        truth = labels[at].to(device).expand(problems, -1)
        loss = F.cross_entropy(logits, truth, reduction="sum") / len(at)  # a sum over problems of their means
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight, bias = (_finite(part.detach().cpu()) for part in (weight, bias))
    scale = (variance + EPS).sqrt() if norm == "batch" else variance
    return Heads(weight.mT[:, None].contiguous(), bias[:, None, :, 0], mean.cpu(), scale.cpu())


def train_attentive(
    maps: Views,
    y: Features,
    classes: int,
    heads: int = 1,
    epochs: int = 15,
    batch_size: int = 512,
    lr: float = 4e-3,
    weight_decay: float = 0.0,
    seed: int = 0,
    views: int = 1,
    device: torch.device | str | None = None,
) -> AttentiveHead:
    """An attentive probe of one layer: AdamW, the learning rate falling to 0 by a cosine, epoch by epoch.

    maps (V, N, T, D): the T = h w positions of a layer's maps, an array that may be memory-mapped, or a function
    view(v) -> (N, T, D) of `views` views. heads: learned queries. Other arguments and errors as `train_linear`'s.
    Tokens are standardised with the statistics of the first view's labelled images. Returns a head without gradients.
    """
    if heads < 1:
        raise UserError(f"heads={heads}", "nothing looks at the maps", "1 or more")
    view = _views(maps, 0, views)
    first = view(0)
    rows, labels = _labels(y, len(first), classes)
    device = device_of(first) if device is None else device
    mean, scale = _token_statistics(first, rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = AttentiveHead(mean, scale, classes, heads).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    for features, at in _epochs(optimizer, view, len(rows), epochs, batch_size, seed):
        loss = F.cross_entropy(head(rows_of(features, rows[at], 0, device)), labels[at].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for parameter in head.parameters():
        _finite(parameter.detach())
    return head.eval().requires_grad_(False)


def _views(x: Views, axis: int, views: int) -> Callable[[int], Features]:
    """A function of the epoch to the view that it sees (three axes), from views along an axis or one by one."""
    if callable(x):
        one, count = x, views
    else:
        if x.ndim != 4 or 0 in x.shape:
            raise UserError("features", f"of shape {tuple(x.shape)}", "expected four axes, one of them views")
        count = x.shape[axis]

        def one(v: int) -> Features:
            return x[:, v] if axis else x[v]

    if count < 1:
        raise UserError(f"views={count}", "nothing to look at", "1 or more")
    return lambda epoch: one(epoch % count)


def _labels(y: Features, images: int, classes: int) -> tuple[Tensor, Tensor]:
    rows, labels = labelled(y, images, classes)
    if len(labels.unique()) < 2:
        raise UserError("labels", "all images are of one class", "a classifier needs at least two")
    return rows, labels


def _epochs(
    optimizer: torch.optim.Optimizer,
    view: Callable[[int], Features],
    n: int,
    epochs: int,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[Features, Tensor]]:
    """(the view of the epoch, which of n images) for every batch, with the learning rate set; the last may be short."""
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name}={value}", "nothing to train on", "1 or more")
    order, peak = ImageOrder(n, seed), optimizer.param_groups[0]["lr"]
    for epoch in range(epochs):
        features = view(epoch)
        optimizer.param_groups[0]["lr"] = peak * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        for at in torch.from_numpy(order(np.arange(epoch * n, (epoch + 1) * n))).split(batch_size):
            yield features, at


def _linear_start(dims: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K,) of a new linear layer of PyTorch's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(dims, classes)
    return layer.weight.detach(), layer.bias.detach()


def _normalised(batch: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """A training step of BatchNorm1d(affine=False) for each problem; the running statistics (P, D) are updated."""
    spread, centre = torch.var_mean(batch, 1, correction=0)
    mean.lerp_(centre, MOMENTUM)
    variance.lerp_(spread * (batch.shape[1] / (batch.shape[1] - 1)), MOMENTUM)
    return (batch - centre[:, None]) / (spread[:, None] + EPS).sqrt()


def _token_statistics(maps: Features, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) over images and positions; 1 where a channel is constant."""
    total = square = torch.zeros(maps.shape[2], dtype=torch.float64)
    origin = rows_of(maps, rows[:1], 0, "cpu")[0].double().mean(0)  # near the mean, so that the squares do not cancel
    for part in rows.split(max(1, TOKENS // (maps.shape[1] * maps.shape[2]))):
        tokens = rows_of(maps, part, 0, "cpu").double().flatten(0, 1) - origin
        total, square = total + tokens.sum(0), square + tokens.square().sum(0)
    n = len(rows) * maps.shape[1]
    scale = (square / n - (total / n).square()).clamp_min(0).sqrt()
    scale = torch.where(scale > 1e-6 * (origin + total / n).abs(), scale, torch.ones_like(scale))
    return _finite((origin + total / n).float()), scale.float()


def _finite(weights: Tensor) -> Tensor:
    if not torch.isfinite(weights).all():
        raise UserError("features", "the probe ended in NaN or infinity", "check the features, or lower lr")
    return weights
