"""Several processes of a torchrun make the same mistake: the first of them tells it.

A mistake that the first process does not make as well (a file is missing on one machine) is told by whoever makes it.
They agree through the store that the launcher keeps for its processes; where there is none, everybody speaks: a line
too many is better than none.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

KEY = "twofold/told"
PATIENCE = timedelta(seconds=5)  # for the first process to fail too


def tell_once(text: str, tell: Callable[[str], None]) -> None:
    """Calls `tell` with the text in the first process, and in those that have another one to tell.

    It waits for the first process: when one has left, the launcher ends those that are still there.
    """
    rank, store = int(os.environ.get("RANK", "0")), None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        with contextlib.suppress(Exception):  # of any kind: this must not hide what is to be told
            store = _store()
    if rank == 0:
        tell(text)
        if store is not None:
            with contextlib.suppress(Exception):  # it has gone: the others speak for themselves
                store.set(KEY, text)
        return
    first = ""
    if store is not None:
        with contextlib.suppress(Exception):  # it has nothing to tell, or has gone
            store.wait([KEY], PATIENCE)
            first = store.get(KEY).decode()
    if first != text:
        tell(f"process {rank}: {text}")


def _store() -> Any:
    from torch.distributed import TCPStore

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(*place, is_master=False, timeout=PATIENCE)
