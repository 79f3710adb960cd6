"""Losses on a teacher's features: against plain NumPy, their gradients, and what their least value is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from twofold.learn.distilling import Losses
from twofold.learn.distilling.losses import distance
from twofold.learn.distilling.relations import relational
from twofold.settings.imitation import AttentionLoss, ContrastiveLoss, DenseLoss, HintLoss, RKDLoss

N, S, T = 5, 3, 4
KINDS: dict[str, Any] = {
    "hint": HintLoss(weight=0.7),
    "hint l1": HintLoss(distance="l1"),
    "hint l2_norm": HintLoss(distance="l2_norm"),
    "hint cosine": HintLoss(distance="cosine"),
    "dense": DenseLoss(),
    "dense cosine": DenseLoss(distance="cosine"),
    "attention": AttentionLoss(weight=3.0),
    "rkd": RKDLoss(distance=2.0, angle=3.0),
    "contrastive": ContrastiveLoss(temperature=0.5),
}


def maps(channels: int, side: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, channels, side, side, generator=generator, dtype=torch.float64)


def made(*kinds: str, pairs: list[tuple[int, int]] | None = None) -> Losses:
    torch.manual_seed(1)
    return Losses(pairs or [(T, S)], [KINDS[kind] for kind in kinds]).double()


def adapted(losses: Losses, student: torch.Tensor) -> np.ndarray:
    weight, bias = (p.detach().numpy() for p in losses.adapters[0].parameters())
    return np.einsum("ts,nshw->nthw", weight[:, :, 0, 0], student.numpy()) + bias[:, None, None]


def bilinear(maps: np.ndarray, size: int) -> np.ndarray:
    """Halfway between pixels, edges repeated, one place at a time."""
    side = maps.shape[-1]
    out = np.zeros((*maps.shape[:2], size, size))
    for i in range(size):
        for j in range(size):
            y, x = (min(max((p + 0.5) * side / size - 0.5, 0), side - 1) for p in (i, j))
            a, b = int(y), int(x)
            c, d = min(a + 1, side - 1), min(b + 1, side - 1)
            top = maps[..., a, b] * (1 - x + b) + maps[..., a, d] * (x - b)
            low = maps[..., c, b] * (1 - x + b) + maps[..., c, d] * (x - b)
            out[..., i, j] = top * (1 - y + a) + low * (y - a)
    return out


def unit(x: np.ndarray, axis: int = 1) -> np.ndarray:
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


def smooth_l1(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def brute_force_rkd(s: np.ndarray, t: np.ndarray) -> tuple[float, float]:
    """Every pair and every triplet by itself."""

    def far(x: np.ndarray) -> np.ndarray:
        found = np.linalg.norm(x[:, None] - x[None], axis=2)
        return found / found[found > 0].mean()

    def angles(x: np.ndarray) -> np.ndarray:
        n, out = len(x), np.zeros((len(x),) * 3)
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    a, b = x[j] - x[i], x[k] - x[i]
                    lengths = np.linalg.norm(a) * np.linalg.norm(b)
                    out[i, j, k] = a @ b / lengths if lengths else 0.0
        return out

    return smooth_l1(far(s) - far(t)).mean(), smooth_l1(angles(s) - angles(t)).mean()


def reference(kind: str, losses: Losses, student: torch.Tensor, teacher: torch.Tensor) -> np.ndarray:
    s, t = student.numpy(), teacher.numpy()
    mean = (2, 3)
    if kind == "rkd":
        far, angle = brute_force_rkd(s.mean(mean), t.mean(mean))
        return np.full(N, 2 * far + 3 * angle)
    if kind == "attention":
        a, b = ((m**2).sum(1).reshape(N, -1) for m in (bilinear(s, t.shape[-1]), t))
        a, b = (m / (np.linalg.norm(m, axis=1, keepdims=True) + 1e-6) for m in (a, b))
        return 3 * ((a - b) ** 2).mean(1)
    mine = adapted(losses, student)
    if kind.startswith("dense"):
        mine = bilinear(mine, t.shape[-1])
        if kind == "dense":
            return ((mine - t) ** 2).mean((1, 2, 3))
        return (1 - (unit(mine) * unit(t)).sum(1)).mean((1, 2))
    mine, t = mine.mean(mean), t.mean(mean)
    match kind:
        case "hint":
            return 0.7 * ((mine - t) ** 2).mean(1)
        case "hint l1":
            return np.abs(mine - t).mean(1)
        case "hint l2_norm":
            return ((unit(mine) - unit(t)) ** 2).mean(1)
        case "hint cosine":
            return 1 - (unit(mine) * unit(t)).sum(1)
    logits = unit(mine) @ unit(t).T / 0.5
    return np.log(np.exp(logits).sum(1)) - np.diag(logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mine", "theirs"), [(4, 2), (2, 4), (3, 3)])
def test_a_loss_is_its_formula(kind: str, mine: int, theirs: int) -> None:
    losses, student, teacher = made(kind), maps(S, mine, 0), maps(T, theirs, 1)
    found = losses([student], [teacher])
    assert found.shape == (N,)
    assert np.allclose(found.detach().numpy(), reference(kind, losses, student, teacher), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    """To the student and the adapters, none to the teacher."""
    losses, teacher = made(kind), maps(T, 2, 1).requires_grad_()
    student = maps(S, 3, 0).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: losses([s], [teacher]), (student,))
    losses([student], [teacher]).mean().backward()
    assert student.grad is not None and bool((student.grad != 0).any()) and teacher.grad is None
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in losses.parameters())
    assert bool(len(losses.adapters)) == kind.startswith(("hint", "dense", "contrastive"))


def test_losses_are_summed_and_pairs_averaged() -> None:
    pairs = [(T, S), (2, S)]
    both = made("hint", "attention", pairs=pairs)
    student, teacher = [maps(S, 3, 0), maps(S, 2, 1)], [maps(T, 3, 2), maps(2, 4, 3)]
    singles = []
    for kind in ("hint", "attention"):
        for i in range(2):
            one = made(kind, pairs=[pairs[i]])
            if kind == "hint":
                one.adapters[0].load_state_dict(both.adapters[i].state_dict())
            singles.append(one(student[i : i + 1], teacher[i : i + 1]))
    assert torch.allclose(both(student, teacher), sum(singles) / 2)


def test_an_image_may_have_one_pair_of_its_own() -> None:
    losses = made("hint", "dense", pairs=[(T, S), (2, S)])
    student, teacher = [maps(S, 3, 0), maps(S, 2, 1)], [maps(T, 3, 2), maps(2, 4, 3)]
    pair = torch.tensor([0, 1, 1, 0, 1])
    each = torch.stack([losses.of_pair(i, student[i], teacher[i]) for i in range(2)], 1)
    assert torch.allclose(losses(student, teacher, pair), each.gather(1, pair[:, None])[:, 0])
    losses(student, teacher, torch.zeros(N, dtype=torch.int64)).sum().backward()  # a pair that no image has
    assert all(p.grad is not None for p in losses.parameters())  # as processes that share gradients need it
    assert not any(bool((p.grad != 0).any()) for p in losses.adapters[1].parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["l2", "l1", "l2_norm", "cosine"])
def test_equal_features_are_nearest(kind: str) -> None:
    x = maps(S, 1, 0)[:, :, 0, 0]
    assert torch.allclose(distance(kind, x, x), torch.zeros(N, dtype=torch.float64), atol=1e-12)
    assert bool((distance(kind, x, x + 0.3) > 1e-4).all()) and bool((distance(kind, x, -x) > 1e-2).all())
    y = (x + 0.3).requires_grad_()
    distance(kind, y, x).sum().backward()
    assert y.grad is not None
    assert bool((distance(kind, (y - 1e-3 * y.grad).detach(), x) < distance(kind, y.detach(), x)).all())


def test_what_rkd_ignores() -> None:
    """Where features are, how large they are and how they are turned."""
    x = maps(S, 1, 0)[:, :, 0, 0]
    turn = torch.linalg.qr(torch.randn(S, S, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    assert float(relational(x @ turn * 7 + 100, x)) < 1e-12
    assert float(relational(x.flip(0), x)) > 0.1


@given(n=st.integers(2, 6), at_once=st.integers(1, 400), seed=st.integers(0, 99), same=st.booleans())
@settings(max_examples=20, deadline=None)
def test_rkd_in_parts_is_rkd_by_brute_force(n: int, at_once: int, seed: int, same: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(n, d, generator=generator, dtype=torch.float64) for d in (3, 5))
    if same:
        s[0], t[1] = s[-1], t[0]  # two images of one feature
    s.requires_grad_()
    found = relational(s, t, 2.0, 3.0, at_once)
    far, angle = brute_force_rkd(s.detach().numpy(), t.numpy()) if not (same and n == 2) else (math.nan, math.nan)
    (gradient,) = torch.autograd.grad(found, s)
    (whole,) = torch.autograd.grad(relational(s, t, 2.0, 3.0), s)
    assert torch.allclose(gradient, whole, atol=1e-12) and bool(gradient.isfinite().all())
    if math.isfinite(far):
        assert float(found.detach()) == pytest.approx(2 * far + 3 * angle, rel=1e-8, abs=1e-10)


def test_rkd_of_one_image_and_of_equal_ones() -> None:
    x = torch.ones(1, 4, requires_grad=True)
    assert float(relational(x, x).detach()) == 0
    equal = torch.ones(4, 3, requires_grad=True)
    loss = relational(equal, torch.randn(4, 3))
    loss.backward()
    assert math.isfinite(float(loss.detach())) and equal.grad is not None and bool(equal.grad.isfinite().all())


class Largest(TorchDispatchMode):
    """The most numbers in one result."""

    most = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.most = max(self.most, found.numel() if isinstance(found, torch.Tensor) else 0)
        return found


def test_rkd_never_holds_all_angles() -> None:
    n, saved = 48, dict[int, int]()
    s, t = torch.randn(n, 8, requires_grad=True), torch.randn(n, 8)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = relational(s, t, at_once=2 * n * n)
    assert largest.most <= 2 * n * n
    assert sum(saved.values()) < 20 * n * n < n**3
    with Largest() as largest:
        loss.backward()
    assert largest.most <= 2 * n * n


def test_half_precision_maps_are_compared_in_single() -> None:
    student, teacher = maps(S, 3, 0), maps(T, 3, 1)
    for kind in KINDS:
        losses = made(kind).float()
        half = losses([student.bfloat16()], [teacher.bfloat16()])
        assert half.dtype == torch.float32
        assert torch.allclose(half.double(), losses([student.float()], [teacher.float()]).double(), rtol=0.1, atol=0.05)
