"""Settings of the data: where images come from and how they become one uint8 store."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import Settings

LARGEST_SIDE = 4096


class DataSettings(Settings):
    """A source of images. A bare string is its `source`: `data=digits`, `data=photos/`."""

    source: str = Field(
        min_length=1, description="digits, a folder, a Parquet file or folder, or a hub name (org/name[:config])"
    )
    size: tuple[int, int] | None = Field(
        None, description="height x width in pixels: 32 or 32x48; default: as they are, if all agree"
    )
    fit: Literal["crop", "stretch", "pad"] = Field("crop", description="how an image of another shape becomes size")
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 RGB; default: 1 if every image is grey")
    background: Literal["white", "black"] = Field("white", description="behind transparent pixels and around pad")
    image_column: str | None = Field(None, description="column of the images (Parquet, hub); default: found by type")
    label_column: str | None = Field(None, description="column of the labels; default: label, if there is one")
    on_bad_image: Literal["error", "skip"] = Field("error", description="an unreadable file ends packing or is skipped")
    validation_share: float = Field(0.1, ge=0, lt=1, description="share held out for validation if the source has none")
    test_share: float = Field(0.2, ge=0, lt=1, description="share held out for the test if the source has none")
    split_seed: int = Field(0, ge=0, lt=2**63, description="seed of that stratified split")
    flip: bool = Field(False, description="random horizontal flips in training")

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("size", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        """32, "32", "32x48", [32, 48] -> (height, width)."""
        if isinstance(value, str) and re.fullmatch(r"\s*\d+(\s*[xX]\s*\d+)?\s*", value):
            value = [int(side) for side in re.split("[xX]", value)]
        if isinstance(value, int) and not isinstance(value, bool):
            value = [value]
        if value is None:
            return None
        if not isinstance(value, list | tuple) or len(value) not in (1, 2):
            raise ValueError(f"{value!r} is not a size; write 32, or height x width such as 32x48")
        return (value[0], value[-1])

    @field_validator("size")
    @classmethod
    def _sides(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not all(1 <= side <= LARGEST_SIDE for side in value):
            raise ValueError(f"{value[0]}x{value[1]} is out of range; each side is 1 to {LARGEST_SIDE} pixels")
        return value

    @model_validator(mode="after")
    def _something_to_train_on(self) -> DataSettings:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share {self.validation_share:g} and test_share {self.test_share:g} leave nothing to train "
                "on; their sum must be below 1"
            )
        return self
