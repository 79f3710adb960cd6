"""Whether an exported file says what its model says, and how fast either is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from .formats import Asked
from .graphs import Graph

TOLERANCE = 1e-4  # float32: largest difference of outputs up to 1 in size; of larger ones times the largest of them
BATCHES = (1, 5)  # images asked about together, to see that no size is fixed
TIMED = (1, 16)
WARM = 3  # calls before those that are timed


@torch.inference_mode()
def compare(graph: Graph, asked: Asked, images: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the file answers against what the model does: {output: {largest_difference, largest_value[, tied]}}.

    images: {kind: uint8 (N, C, H, W)}; each kind is asked about in batches of `BATCHES`, as far as it has so many.
    What is chosen (the class of a pixel, the peak of a heat map) may differ where it is a tie, and is counted there.
    Raises `UserError` for a larger difference than the tolerance.
    """
    rows: dict[str, dict[str, float]] = {}
    for kind, some in images.items():
        for size in (size for size in BATCHES if size <= len(some)):
            batch = some[-size:]
            tied = graph.tied(batch, TOLERANCE)
            expected = graph.reference(batch)
            for name, got in zip(graph.outputs, asked(batch), strict=True):
                _note(rows.setdefault(name, {}), got, expected[name], tied.get(name))
                _check(name, rows[name], f"{size} {kind} images")
    return {name: {key: _rounded(value) for key, value in row.items()} for name, row in rows.items()}


def _note(row: dict[str, float], got: Tensor, expected: Tensor, tied: Tensor | None) -> None:
    """Adds a batch to the row of an output."""
    if got.shape != expected.shape:
        row["largest_difference"] = float("inf")
        return
    apart = (got.double() - expected.double()).abs()
    if tied is not None:
        tied = tied.reshape(*tied.shape, *[1] * (apart.ndim - tied.ndim)).expand_as(apart)
        row["tied"] = row.get("tied", 0) + int((tied & (apart > 0)).sum())
        apart = torch.where(tied, 0.0, apart)
    row["largest_difference"] = max(row.get("largest_difference", 0.0), _largest(apart))
    row["largest_value"] = max(row.get("largest_value", 0.0), _largest(expected.double().abs()))


def _largest(values: Tensor) -> float:
    """Infinity where one is no number."""
    return float(values.nan_to_num(nan=torch.inf).max()) if values.numel() else 0.0


def _check(name: str, row: Mapping[str, float], what: str) -> None:
    allowed = TOLERANCE * max(1.0, row.get("largest_value", 1.0))
    if not row["largest_difference"] <= allowed:
        differs = f"differs from the model by {row['largest_difference']:.3g} for {what}, more than {allowed:.3g}"
        raise UserError(name, differs, "nothing was written; export to another format, and please report this")


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


@torch.inference_mode()
def latency(asked: Callable[[Tensor], object], shape: tuple[int, int, int], runs: int) -> dict[str, float]:
    """Median milliseconds of a call, {"1": for one image, "16": for 16}, after a few to warm up."""
    found = {}
    for size in TIMED:
        images = torch.randint(0, 256, (size, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        for _ in range(WARM):
            asked(images)
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            asked(images)
            times.append(time.perf_counter() - start)
        found[str(size)] = round(1e3 * statistics.median(times), 4)
    return found
