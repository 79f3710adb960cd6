"""The head of a joint model: sizes, what it is a function of, and the published one's defect."""

from __future__ import annotations

import pytest
import torch

from twofold.errors import UserError
from twofold.networks.unet import UNet
from twofold.settings.network import TapHeadSettings, UNetSettings

ADM = {"blocks": 3, "heads": 4, "classes": 0, "conditioning": "scale_shift", "embedding_order": "cos_sin"}
PUBLISHED = TapHeadSettings(kind="published", dropout=0.7)


@pytest.mark.parametrize(
    ("channels", "shape", "multipliers", "attention", "classes", "trunk", "head"),
    [
        (128, (3, 32, 32), (1, 2, 2, 2), (16, 8), 10, 52_542_979, 6_922_892),
        (128, (3, 32, 32), (1, 2, 2, 2), (16, 8), 100, 52_542_979, 7_090_022),
        (128, (3, 64, 64), (1, 2, 3, 4), (16, 8), 40, 121_060_483, 13_896_746),
        (64, (3, 64, 64), (1, 2, 3, 4), (16, 8), 40, 30_301_763, 3_505_706),
        (64, (1, 28, 28), (1, 2, 2), (28,), 10, 8_799_105, 915_276),
    ],
)
def test_published_counts(channels, shape, multipliers, attention, classes, trunk, head) -> None:  # type: ignore[no-untyped-def]
    settings = UNetSettings(channels=channels, multipliers=multipliers, attention=attention, head=PUBLISHED, **ADM)
    with torch.device("meta"):
        network = UNet(settings, shape, classes)
    assert network.head is not None
    own = sum(p.numel() for p in network.head.parameters())
    assert (own, sum(p.numel() for p in network.parameters()) - own) == (head, trunk)


def small(kind: str = "taps", multipliers: tuple[int, ...] = (1, 2), blocks: int = 1, classes: int = 3) -> UNet:
    torch.manual_seed(0)
    settings = UNetSettings(
        channels=8, multipliers=multipliers, blocks=blocks, attention=(), head=TapHeadSettings(kind=kind, dropout=0)
    )
    return UNet(settings, (1, 8, 8), classes)


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 1, 2)])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("kind", ["taps", "published"])
def test_any_depth(multipliers: tuple[int, ...], blocks: int, kind: str) -> None:
    network = small(kind, multipliers, blocks).eval()
    state = network.encode(torch.randn(2, 1, 8, 8), torch.randn(2))
    assert network.read(state).shape == (2, 3)


def test_means_over_parts() -> None:
    """With a grid of 2 x 2 the head knows where things are: a mirrored map is another answer."""
    found = {}
    for pool in (1, 2):
        torch.manual_seed(0)
        head = TapHeadSettings(dropout=0, pool=pool)
        settings = UNetSettings(channels=8, multipliers=(1, 2), blocks=1, attention=(), head=head)
        network = UNet(settings, (1, 8, 8), 3).eval()
        state = network.encode(torch.randn(2, 1, 8, 8), torch.zeros(2))
        before = network.read(state)
        state.taps["mid"] = state.taps["mid"].flip(-1)
        found[pool] = torch.allclose(network.read(state), before, atol=1e-5)
    assert found == {1: True, 2: False}


def test_one_pass_for_both() -> None:
    """F of the first images and logits of chosen ones are what separate passes give."""
    network = small().eval()
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    network.enc[0].register_forward_hook(count)
    x, c_noise, rows = torch.randn(5, 1, 8, 8), torch.randn(5), torch.tensor([4, 1])
    output, logits = network.both(x, c_noise, None, 3, rows)
    assert passes == 1
    torch.testing.assert_close(output, network(x[:3], c_noise[:3]))
    torch.testing.assert_close(logits, network.read(network.encode(x, c_noise))[rows])
    assert network.both(x, c_noise, None, 0, rows)[0].shape == (0, 1, 8, 8)
    assert network.both(x, c_noise, None, 5, rows[:0])[1].shape == (0, 3)


def test_it_is_told_the_noise_level_and_every_tap_counts() -> None:
    network = small().eval()
    x = torch.randn(1, 1, 8, 8)
    state = network.encode(x, torch.zeros(1))
    before = network.read(state)
    other = network.encode(x, torch.zeros(1))
    other.context["c_noise"] = torch.ones(1)
    assert not torch.allclose(before, network.read(other))
    for name in state.taps:
        edited = network.encode(x, torch.zeros(1))
        edited.taps[name] = edited.taps[name] + torch.randn_like(edited.taps[name])
        assert not torch.allclose(before, network.read(edited)), name


def test_answers_are_of_one_image_alone() -> None:
    network = small().train()  # no dropout: what a batch norm would change is left
    x, c_noise = torch.randn(6, 1, 8, 8), torch.randn(6)
    together = network.read(network.encode(x, c_noise))
    torch.testing.assert_close(together[:1], network.read(network.encode(x[:1], c_noise[:1])))


@pytest.mark.parametrize("rows", [0, 1])
def test_published_norms_are_not_moved_by_fewer_than_two_images(rows: int) -> None:
    network = small("published").train()
    assert network.head is not None
    before = {name: value.clone() for name, value in network.head.named_buffers()}
    logits = network.both(torch.randn(4, 1, 8, 8), torch.zeros(4), None, 4, torch.arange(rows))[1]
    assert logits.shape == (rows, 3) and bool(logits.isfinite().all())
    assert all(torch.equal(value, before[name]) for name, value in network.head.named_buffers())


def test_only_the_published_head_saturates_away_from_its_noise_level() -> None:
    """Trained at one raw time, a batch norm divides all others by almost nothing; an embedding does not."""
    found = {}
    for kind in ("taps", "published"):
        network = small(kind).train()
        assert network.head is not None
        for _ in range(300):
            network.both(torch.randn(8, 1, 8, 8), torch.zeros(8), None, 0, torch.arange(8))
        with torch.no_grad():
            state = network.eval().encode(torch.randn(8, 1, 8, 8), torch.full((8,), 999.0))
            found[kind] = network.read(state).softmax(1).amax(1).mean().item()
    assert found["published"] > 0.99 and found["taps"] < 0.9


def test_too_few_classes() -> None:
    with pytest.raises(UserError, match=r"network\.head\.classes: a classifier of 1 classes"):
        small(classes=1)
