"""Settings of `twofold export`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Settings


class ExportSettings(Settings):
    """Which files a model becomes, and how they are timed."""

    to: Literal["onnx", "torchscript", "exported", "all"] = Field(
        "onnx",
        description="onnx (ONNX Runtime, others), torchscript (torch.jit.load), exported (torch.export.load), or all",
    )
    at: str = Field("last", description="snapshot of a run: last, best-<metric> or an image count")
    runs: int = Field(30, ge=3, description="calls whose median is the latency")
