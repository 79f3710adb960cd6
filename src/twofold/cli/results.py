"""What a model makes of given images: by how many processes, where it goes, and what it has to be to be continued."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.base import Settings
from ..settings.resolve import settings_hash
from .probe import home_of

if TYPE_CHECKING:
    import torch


def alone_on(device: str | None, work: str) -> torch.device:
    """The device of one process. work: what is told of several, as in "edits are made". Raises `UserError` for them."""
    from ..learn.training import make_accelerator

    accelerator = make_accelerator(device)
    if accelerator.num_processes > 1:
        raise UserError("torchrun", f"{work} by one process", "give the same command without it")
    return accelerator.device


def place_of(
    kind: str, source: str, images: str, settings: Settings, identity: Any, weights: Any, **more: Any
) -> tuple[Path, dict[str, Any]]:
    """The folder where results go if no other is named, and what must be the same for one to be continued.

    kind: of folders in a run, as "edits". identity: of the images. weights: hashes of the networks. more: facts that
    follow from these.
    """
    given = {"images": hashed(identity), "weights": weights}
    name = "-".join([Path(images.rstrip("/")).stem or "images", settings_hash(settings), hashed(given)[:8]])
    return home_of(source) / kind / name, {**given, **more, "settings": settings.model_dump(mode="json")}


def hashed(identity: Any) -> str:
    return hashlib.sha256(repr(identity).encode()).hexdigest()
