"""Blocks that are computed anew in the backward pass: the same numbers, bit for bit, in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from twofold.learn.footprint import step_bytes
from twofold.networks import build
from twofold.settings.network import DiTSettings, UNetSettings, UViTSettings

ADM = {"resample": "residual", "conditioning": "scale_shift", "head_channels": 8, "learned_variance": True}
EDM = {"resample": "residual", "skip_scale": 0.5, "decoder_attention": "last"}
UNET = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (8,), "classes": 3}
NETWORKS: dict[str, Any] = {
    "ddpm": lambda c: UNetSettings(**UNET, dropout=0.3, checkpoint=c),
    "adm": lambda c: UNetSettings(**UNET, **ADM, checkpoint=c),
    "edm": lambda c: UNetSettings(**UNET, **EDM, checkpoint=c),
    "dit": lambda c: DiTSettings(width=16, depth=3, heads=2, classes=3, dropout=0.3, checkpoint=c),
    "uvit": lambda c: UViTSettings(width=16, depth=2, heads=2, classes=3, dropout=0.3, checkpoint=c),
}


def gradients(name: str, checkpoint: bool, half: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    network: nn.Module = build(NETWORKS[name](checkpoint), (3, 16, 16), 3).train()
    for p in network.parameters():  # what begins at zero would hide the rest
        nn.init.normal_(p, std=0.1)
    x, cond = torch.randn(4, 3, 16, 16), {"label": torch.tensor([0, 1, 2, -1])}
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        out = network(x, torch.linspace(-1, 1, 4), cond)
    out.float().square().mean().backward()
    return out, {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_are_bit_equal(name: str, half: bool) -> None:
    kept, anew = (gradients(name, checkpoint, half) for checkpoint in (False, True))
    assert torch.equal(kept[0], anew[0])
    assert kept[1].keys() == anew[1].keys() and all(torch.equal(kept[1][n], anew[1][n]) for n in kept[1])
    assert any(bool(g.any()) for g in anew[1].values())


@pytest.mark.parametrize("name", NETWORKS)
def test_less_is_kept(name: str) -> None:
    found = []
    for checkpoint in (False, True):
        with torch.device("meta"):
            network = build(NETWORKS[name](checkpoint), (3, 16, 16), 3).train()
        x, c_noise = torch.zeros(8, 3, 16, 16, device="meta"), torch.zeros(8, device="meta")
        found.append(step_bytes(network, lambda n=network, x=x, c=c_noise: n(x, c)))
    assert found[1] < 0.7 * found[0]


def test_nothing_is_computed_twice_where_no_gradients_are_asked_for() -> None:
    network = build(NETWORKS["ddpm"](True), (3, 16, 16), 3).train()
    calls = []
    network.enc[1].register_forward_pre_hook(lambda *_: calls.append(1))  # type: ignore[index]
    with torch.no_grad():
        network(torch.zeros(1, 3, 16, 16), torch.zeros(1))
    assert len(calls) == 1
    network(torch.zeros(1, 3, 16, 16), torch.zeros(1)).sum().backward()
    assert len(calls) == 3
