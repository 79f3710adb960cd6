"""Settings of `twofold import`."""

from __future__ import annotations

from pydantic import Field

from .base import Settings
from .data import DataSettings


class ImportSettings(Settings):
    """What is known of a model from elsewhere besides the model itself."""

    data: DataSettings | None = Field(
        None, description="the images it belongs to, for evaluate, probe and train; default: not known"
    )
