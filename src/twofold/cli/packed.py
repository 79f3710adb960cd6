"""The packed images of a source, for verbs that read some: packing is shown, and what had to be left out is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..settings.data import DataSettings
from .show import Progress, say

if TYPE_CHECKING:
    from ..data import Store


def packed(data: DataSettings, quiet: bool, title: str = "packing the data") -> Store:
    """`open_store` with a display called `title` while there is something to pack, and a line on unreadable images."""
    from ..data import open_store, unreadable

    with Progress(title, quiet) as packing:
        store = open_store(data, packing)
    if left_out := unreadable(store):
        say(left_out, quiet)
    return store
