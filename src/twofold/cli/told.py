"""Mistakes are told about what was typed: a setting or an argument, not what became of it further down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..errors import UserError


@contextlib.contextmanager
def told_as(typed: str, *inner: str) -> Iterator[None]:
    """Within the block, errors about one of `inner` are about `typed`: guide=runs/a instead of runs/a."""
    try:
        yield
    except UserError as error:
        if error.where not in inner:
            raise
        raise UserError(typed, error.what, error.hint) from None
