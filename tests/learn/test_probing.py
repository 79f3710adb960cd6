"""Gradient-trained heads against plain PyTorch loops and against what they must be able to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.data.order import ImageOrder
from twofold.errors import UserError
from twofold.learn.probing import train_attentive, train_linear
from twofold.recognize.attentive import AttentiveHead


def made(problems: int = 3, views: int = 2, n: int = 150, dims: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    x = torch.randn(problems, 1, classes, dims, generator=g)[:, :, y] + torch.randn(
        problems, views, n, dims, generator=g
    )
    return x * torch.linspace(0.5, 4, dims) + 1, y


def plain(x: Tensor, y: Tensor, classes: int, epochs: int, batch: int, lr: float, norm: bool, seed: int) -> nn.Module:
    """The published procedure for one problem, x (V, N, D), written with PyTorch's own parts."""
    torch.manual_seed(seed)
    linear = nn.Linear(x.shape[2], classes)
    model = nn.Sequential(nn.BatchNorm1d(x.shape[2], eps=1e-6, affine=False), linear) if norm else linear
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    order, n = ImageOrder(len(y), seed), len(y)
    for epoch in range(epochs):
        for rows in torch.from_numpy(order(np.arange(epoch * n, (epoch + 1) * n))).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(x[epoch % len(x)][rows]), y[rows]).backward()
            optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_published_procedure(norm) -> None:  # type: ignore[no-untyped-def]
    x, y = made()
    heads = train_linear(x, y, 4, epochs=5, batch_size=32, lr=0.02, norm=norm, seed=3)
    new = made(n=40)[0][:, 1]
    logits = heads.logits(new)
    assert logits.shape == (3, 1, 40, 4) and heads.l2 == ()
    for p in range(3):
        expected = plain(x[p], y, 4, 5, 32, 0.02, norm == "batch", 3)
        assert torch.allclose(logits[p, 0], expected(new[p]), atol=1e-5)
        start = nn.Linear(6, 4).weight  # of the same size, but another start: the comparison can fail
        assert (heads.weight[p, 0].T - start).abs().max() > 0.01


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_together_is_one_by_one(norm) -> None:  # type: ignore[no-untyped-def]
    x, y = made(4)
    y = torch.where(torch.arange(len(y)) % 5 == 0, -1, y)
    together = train_linear(x, y, 4, epochs=4, batch_size=32, norm=norm)
    for p in range(4):
        alone = train_linear(x[p : p + 1], y, 4, epochs=4, batch_size=32, norm=norm)
        for name in ("weight", "bias", "mean", "scale"):
            assert torch.allclose(getattr(together, name)[p], getattr(alone, name)[0], atol=1e-5)


def test_unlabelled_images_are_not_seen() -> None:
    x, y = made()
    some = torch.arange(len(y)) % 3 > 0
    expected = train_linear(x[:, :, some], y[some], 4, epochs=3)
    x[:, :, ~some] = torch.nan
    assert torch.equal(train_linear(x, torch.where(some, y, -1), 4, epochs=3).weight, expected.weight)


def test_views_come_from_arrays_maps_and_functions(tmp_path: Path) -> None:
    x, y = made()
    expected = train_linear(x, y, 4, epochs=3, batch_size=64)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    asked = []

    def view(v: int) -> Tensor:
        asked.append(v)
        return x[:, v]

    assert torch.equal(train_linear(mapped, y.numpy(), 4, epochs=3, batch_size=64).weight, expected.weight)
    assert torch.equal(train_linear(view, y, 4, epochs=3, batch_size=64, views=2).weight, expected.weight)
    assert asked[-3:] == [0, 1, 0]
    assert not torch.equal(train_linear(x[:, :1], y, 4, epochs=3, batch_size=64).weight, expected.weight)


def test_it_is_a_function_of_the_seed() -> None:
    x, y = made()
    before = torch.random.get_rng_state()
    one = train_linear(x, y, 4, epochs=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(17)
    assert torch.equal(train_linear(x, y, 4, epochs=2).weight, one.weight)
    assert not torch.equal(train_linear(x, y, 4, epochs=2, seed=1).weight, one.weight)


def test_a_last_batch_of_one_image_does_not_spoil_the_norm() -> None:
    x, y = made(n=65)
    heads = train_linear(x, y, 4, epochs=2, batch_size=32, norm="batch")
    assert torch.isfinite(heads.logits(x[:, 0])).all()


def tokens(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Maps (N, 9, 5) whose class is the sign that one marked token carries; the mean of all tokens is class-free."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    maps = torch.randn(n, 9, 5, generator=g)
    sign = 2.0 * y - 1
    maps[:, :, 1] = -torch.rand(n, 9, generator=g) * sign[:, None]
    maps[:, :, 0] = 0
    at = torch.randint(9, (n,), generator=g)
    maps[torch.arange(n), at, 0] = 6
    maps[torch.arange(n), at, 1] = -(maps[:, :, 1].sum(1) - maps[torch.arange(n), at, 1])  # so that the sum is 0
    return maps, y


def test_attention_sees_what_the_mean_does_not() -> None:
    (maps, y), (new, truth) = tokens(400, 0), tokens(400, 1)
    assert maps[:, :, 1].sum(1).abs().max() < 1e-5
    pooled = train_linear(maps.mean(1)[None, None], y, 2, epochs=40, batch_size=50, lr=0.02)
    assert pooled.accuracy(new.mean(1)[None], truth).item() < 0.65
    head = train_attentive(maps[None], y, 2, epochs=40, batch_size=50, lr=0.02)
    logits = head.logits(new)
    assert (logits.argmax(1) == truth).double().mean() > 0.97

    shuffled = new[:, torch.randperm(9, generator=torch.Generator().manual_seed(0))]
    assert torch.allclose(head.logits(shuffled), logits, atol=1e-4)


def test_attention_of_equal_tokens_is_a_linear_layer() -> None:
    g = torch.Generator().manual_seed(0)
    head = AttentiveHead(torch.randn(5, generator=g), torch.rand(5, generator=g) + 1, 3, queries=2)
    x = torch.randn(4, 5, generator=g)
    expected = head.linear(((x - head.mean) / head.scale).repeat(1, 2))
    assert torch.allclose(head.logits(x[:, None].expand(4, 7, 5)), expected, atol=1e-6)


def test_attentive_heads_are_stored_and_seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    maps, y = tokens(60, 0)
    maps = maps * 3 + 100
    views = torch.stack([maps, maps + 1])
    head = train_attentive(views, y, 2, heads=3, epochs=3, batch_size=20)
    assert torch.allclose(head.mean, maps.mean((0, 1)), rtol=1e-5)
    assert torch.allclose(head.scale, maps.std((0, 1), correction=0), rtol=1e-4)
    save_file(head.tensors(), tmp_path / "head.safetensors")
    again = AttentiveHead.from_tensors(load_file(tmp_path / "head.safetensors"))
    assert torch.equal(again.logits(maps), head.logits(maps)) and again.query.shape == (3, 5)
    other = train_attentive(lambda v: views[v].numpy(), y, 2, heads=3, epochs=3, batch_size=20, views=2)
    assert torch.equal(other.logits(maps), head.logits(maps))
    monkeypatch.setattr("twofold.recognize.attentive.TOKENS", 100)
    assert torch.allclose(head.logits(maps.numpy()), again.logits(maps), atol=1e-5)
    decayed = train_attentive(views, y, 2, heads=3, epochs=3, batch_size=20, weight_decay=10.0)
    assert decayed.linear.weight.norm() < 0.9 * head.linear.weight.norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(2, 8, 3)}, "features: of shape (2, 8, 3); expected four axes"),
        ({"x": torch.full((2, 1, 8, 3), torch.nan)}, "features: the probe ended in NaN or infinity"),
        ({"y": torch.zeros(8, dtype=torch.int64)}, "labels: all images are of one class"),
        ({"y": torch.arange(9) % 2}, "labels: torch.int64 of shape (9,); expected 8 integers"),
        ({"norm": "bach"}, "norm=bach: no such normalisation; did you mean 'batch'?"),
        ({"epochs": 0}, "epochs=0: nothing to train on"),
        ({"batch_size": 0}, "batch_size=0: nothing to train on"),
        ({"x": lambda v: torch.randn(2, 8, 3), "views": 0}, "views=0: nothing to look at"),
    ],
)
def test_mistakes_are_told(change: dict[str, object], message: str) -> None:
    given = {"x": torch.randn(2, 1, 8, 3), "y": torch.arange(8) % 2, "classes": 2, "epochs": 1} | change
    with pytest.raises(UserError) as error:
        train_linear(**given)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_mistakes_about_attention_are_told() -> None:
    maps, y = tokens(8, 0)
    with pytest.raises(UserError, match="heads=0: nothing looks at the maps"):
        train_attentive(maps[None], y, 2, heads=0)
    with pytest.raises(UserError, match="features: the probe ended in NaN"):
        train_attentive(torch.full_like(maps, torch.inf)[None], y, 2)
    head = train_attentive(maps[None], y, 2, epochs=1)
    with pytest.raises(UserError, match=r"maps: of shape \(8, 9, 3\); expected \(N, T, 5\)"):
        head.logits(maps[:, :, :3])
