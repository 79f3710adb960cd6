"""Settings of `twofold vary`: how much of an image stays (see `twofold.generate.vary`)."""

from __future__ import annotations

from pydantic import Field

from .given import GivenSettings


class VarySettings(GivenSettings):
    """How images are varied."""

    strength: float = Field(
        0.5, ge=0, le=1, description="0 (the image itself) to 1 (a new image): how much noise is added and taken away"
    )
