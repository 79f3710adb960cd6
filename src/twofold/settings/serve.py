"""Settings of `twofold serve`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Settings


class ServeSettings(Settings):
    """How a server shares its devices among those who ask, and what it refuses."""

    queue: int = Field(
        64, ge=1, description="requests that may wait for their turn; more are told 503 and when to retry"
    )
    batch: int = Field(32, ge=1, description="images that are computed together, at most; 1 = no batching")
    wait: float = Field(
        0.005, ge=0, le=1, description="seconds that a request waits for others to be computed with, at most"
    )
    groups: int = Field(4, ge=1, description="batches of different requests that take turns on a device")
    deadline: float = Field(60.0, gt=0, description="seconds from arrival in which a request is answered, or told 504")
    images: int = Field(64, ge=1, description="images of one request, made or sent, at most")
    steps: int = Field(1000, ge=1, description="solver steps of one request, at most")
    area: int = Field(16, ge=1, description="pixels of an image that is made, in multiples of the model's own, at most")
    pixels: int = Field(16_000_000, ge=1, description="pixels of an uploaded image, at most")
    bytes: int = Field(16_000_000, ge=1024, description="bytes of a request, at most")
    upload: float = Field(20.0, gt=0, description="seconds in which a request must have arrived whole")
    keys: str | None = Field(None, min_length=1, description="file of API keys, one a line; null = nobody needs one")
    hosts: tuple[str, ...] | None = Field(
        None, description="names by which it may be called; null = on loopback this machine's, elsewhere any"
    )
    neighbours: int = Field(
        20_000, ge=0, description="training images among which an image's neighbours are looked for; 0 = none"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="number format of the networks")
    devices: tuple[str, ...] | None = Field(
        None, description="several devices, each with all models: cuda:0,cuda:1; null = one, that of --device"
    )
    drain: float = Field(
        0.0, ge=0, description="seconds between being told to stop and refusing connections, for a balancer to notice"
    )
