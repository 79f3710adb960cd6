"""Policy networks: the published sizes, and what becomes of them for other images."""

from __future__ import annotations

import pytest
import torch

from twofold.errors import UserError
from twofold.networks.policy import AlexNet, SmallPolicy, policy_network, task_head


@pytest.mark.parametrize(
    ("kind", "side", "count"),
    [("small32", 32, 146_156), ("small64", 64, 135_292), ("alexnet", 256, 2_770_984), ("mlp", 32, 538_856)],
)
def test_published_sizes(kind: str, side: int, count: int) -> None:
    with torch.device("meta"):
        network = policy_network(kind, (3, side, side), 1000)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("kind", ["auto", "small32", "mlp", "alexnet"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 14, 14), (1, 28, 28), (3, 32, 48), (2, 100, 72)])
def test_any_image_and_any_number_of_choices(kind: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = policy_network(kind, shape, 7)
    x = torch.randn(3, *shape)
    logits = network(x)
    assert logits.shape == (3, 7)
    assert not torch.allclose(logits[0], logits[1])  # it looks at the image
    assert torch.allclose(network(x[1:2]), logits[1:2], atol=1e-5)


def test_auto_goes_by_the_shorter_side() -> None:
    def widths(side: int, other: int) -> int | str:
        network = policy_network("auto", (3, side, other), 4)
        return "alexnet" if isinstance(network, AlexNet) else len(network.convolutions) // 3  # type: ignore[arg-type]

    found = [widths(8, 8), widths(32, 200), widths(64, 64), widths(128, 160)]
    assert found == [2, 2, 3, "alexnet"]


def test_small_images_are_padded_and_large_ones_are_not() -> None:
    assert isinstance(small := policy_network("small32", (1, 14, 14), 4), SmallPolicy)
    assert small.convolutions[0].padding == (2, 2)
    assert policy_network("small32", (1, 28, 28), 4).convolutions[0].padding == (0, 0)  # type: ignore[union-attr, index]
    with pytest.raises(
        UserError, match="objective.sigma.network=small64: halves images of 6x6 to nothing; use auto or mlp"
    ):
        policy_network("small64", (1, 6, 6), 4)


@pytest.mark.parametrize(("divisor", "hidden"), [(1, 12), (4, 3), (100, 1)])
def test_the_task_head(divisor: int, hidden: int) -> None:
    head = task_head(12, 5, divisor)
    assert head(torch.randn(2, 12)).shape == (2, 5)
    widths = [layer.weight.shape for layer in head if isinstance(layer, torch.nn.Linear)]  # type: ignore[union-attr]
    assert widths == [(hidden, 12), (hidden, hidden), (5, hidden)]
