"""Settings of `twofold export`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Settings


class ExportSettings(Settings):
    """Which files a model becomes, how they are timed, and what a model that is shared is called."""

    to: Literal["onnx", "torchscript", "exported", "all", "diffusers", "hub"] = Field(
        "onnx",
        description="onnx (ONNX Runtime, others), torchscript (torch.jit.load), exported (torch.export.load), or all; "
        "of a diffusion model: diffusers (a folder that its pipelines open); hub uploads a run with a model card",
    )
    at: str = Field("last", description="snapshot of a run: last, best-<metric> or an image count")
    runs: int = Field(30, ge=3, description="calls whose median is the latency")
    repo: str | None = Field(None, description="to=hub: the repository, org/name; made if it is not there")
    private: bool = Field(True, description="to=hub: only you see it; false publishes it")
    licence: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
        description="of the weights, in the card: mit, apache-2.0, cc-by-4.0 ...",
    )
    dataset: str | None = Field(
        None, pattern=r"^[\w.-]+/[\w.-]+$", description="in the card: where the data are on a hub, org/name"
    )
    diffusers: bool = Field(
        False, description="to=hub: its layout beside ours, so that its pipelines open the same name"
    )
