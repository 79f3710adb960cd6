"""A size of images, as people write it: 32, 32x48, or [32, 48]."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

LARGEST_SIDE = 4096


def _parse(value: Any) -> Any:
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


def _check(value: tuple[int, int] | None) -> tuple[int, int] | None:
    if value is not None and not all(1 <= side <= LARGEST_SIDE for side in value):
        raise ValueError(f"{value[0]}x{value[1]} is out of range; each side is 1 to {LARGEST_SIDE} pixels")
    return value


Size = Annotated[tuple[int, int] | None, BeforeValidator(_parse), AfterValidator(_check)]
