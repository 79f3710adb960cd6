"""Attentive pooling: learned queries look at all positions of a layer's map; a linear layer reads what they gather.

    a_h = softmax_t(q_h . u_t),  logits = W [sum_t a_ht u_t]_h + b        u_t: standardised tokens

A cross-attention of learned queries (Chen et al. 2024, "Context autoencoder") with what is redundant left out: q_h
stands for query times key projection, and the value projections are part of W. `learn.probing` trains it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from .heads import Features

TOKENS = 2**24  # numbers of the maps that are looked at together


class AttentiveHead(nn.Module):
    """Learned queries that pool the tokens of a map, and a linear layer: (N, T, D) -> (N, K).

    mean, scale (D,): what the tokens are standardised with. queries: how many ways to look.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, classes: int, queries: int = 1) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.query = nn.Parameter(0.02 * torch.randn(queries, len(mean)))
        self.linear = nn.Linear(queries * len(mean), classes)

    def forward(self, maps: Tensor) -> Tensor:
        tokens = (maps - self.mean) / self.scale
        weights = torch.softmax(tokens @ self.query.T, dim=1)  # (N, T, queries)
        return self.linear((weights.mT @ tokens).flatten(1))

    @torch.no_grad()
    def logits(self, maps: Features) -> Tensor:
        """(N, T, D) -> (N, K), without gradients and in bounded memory. Raises `UserError` for another D."""
        if maps.ndim != 3 or maps.shape[2] != len(self.mean):
            raise UserError("maps", f"of shape {tuple(maps.shape)}", f"expected (N, T, {self.query.shape[1]})")
        rows, step = torch.arange(len(maps)), max(1, TOKENS // (maps.shape[1] * maps.shape[2]))
        return torch.cat([self(rows_of(maps, part, 0, self.query.device)) for part in rows.split(step)])

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name: what `from_tensors` takes and a safetensors file holds."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> AttentiveHead:
        head = cls(tensors["mean"], tensors["scale"], len(tensors["linear.bias"]), len(tensors["query"]))
        head.load_state_dict(dict(tensors))
        return head.requires_grad_(False)


def rows_of(x: Features, rows: Tensor, axis: int, device: torch.device | str) -> Tensor:
    """Some rows along an axis, float32, on the device. Of a memory map nothing else is read."""
    if isinstance(x, Tensor):
        return x.detach().index_select(axis, rows.to(x.device)).to(device, torch.float32)
    picked = x[:, rows.numpy()] if axis else x[rows.numpy()]
    return torch.from_numpy(np.ascontiguousarray(picked)).to(device, torch.float32)
