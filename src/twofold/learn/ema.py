"""The moving average of the weights, by half-life in images (Karras et al. 2022, appendix F.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def decay(batch_size: int, n_images: int, halflife_images: int, rampup: float | None) -> float:
    """Decay of one step of `batch_size` images after `n_images`: 0.5^(batch / half-life).

    While n_images * rampup is below the half-life it takes its place, so that early weights are soon forgotten.
    """
    halflife = float(halflife_images) if rampup is None else min(halflife_images, rampup * n_images)
    return 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0


class Average:
    """Averaged copies of a network's weights, updated in place from the live ones.

    tensors: {name: average}; a weight that is not trained stands for its own average. own: those that have a copy.
    """

    def __init__(self, network: nn.Module) -> None:
        live = {name: value.detach() for name, value in network.state_dict().items()}
        frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
        self.own = [name for name in live if name not in frozen]
        self.tensors = {**live, **{name: live[name].clone() for name in self.own}}
        pairs = [(self.tensors[name], live[name]) for name in self.own]
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * weights, in one kernel for the whole network."""
        torch._foreach_lerp_([a for a, _ in self._floats], [w for _, w in self._floats], 1 - decay)
        for average, live in self._others:
            average.copy_(live)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Sets the averages of `own` to these tensors, by name."""
        for name in self.own:
            self.tensors[name].copy_(tensors[name])
