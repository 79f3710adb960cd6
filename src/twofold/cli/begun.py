"""What folders of `edit`, `inpaint`, `vary` and `upscale` have in common: they are begun once, for one request, and
continued by the same command.

    request.json   what must be the same        .done/   a file for each batch that is finished
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..files import atomic_json

if TYPE_CHECKING:
    import numpy as np

DONE = ".done"


def begin(path: Path, facts: dict[str, Any], kind: str, folders: Sequence[str]) -> None:
    """Makes the folder and these in it, or finds it begun with the same facts.

    kind: what it holds, for messages: "upscaled images". Raises `UserError` for a folder of something else.
    """
    request = path / "request.json"
    if request.is_file():
        _check_same(path, read_note(request), facts, kind)
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(str(path), f"is there, and no folder of {kind}", "choose another --out")
    for name in (*folders, DONE):
        (path / name).mkdir(parents=True, exist_ok=True)
    atomic_json(request, facts)


def _check_same(path: Path, old: dict[str, Any], facts: dict[str, Any], kind: str) -> None:
    from ..generate.manifest import differences

    flat = [{**one, **one.get("settings", {}), "settings": None} for one in (old, facts)]
    changed = differences(*flat)
    if changed:
        hint = "choose another --out, or the settings it was begun with"
        raise UserError(str(path), f"holds other {kind}: {'; '.join(changed)}", hint)


def stem_of(name: str, taken: set[str]) -> str:
    """What the pictures of an image are called: its id without what files cannot be called, and no name twice."""
    plain = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", name)
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", plain).strip("._") or "image"
    found, k = plain, 1
    while found in taken:
        k += 1
        found = f"{plain}-{k}"
    taken.add(found)
    return found


def read_note(path: Path) -> dict[str, Any]:
    """A file of JSON that was written here. Raises `UserError` for a damaged one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found}
    except (ValueError, TypeError):
        raise UserError(str(path), "cannot be read", "delete it and give the same command again") from None


def read_picture(path: Path, channels: int) -> np.ndarray:
    """uint8 (channels, H, W) of a PNG that was written here."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as file:
        pixels = np.asarray(file.convert("L" if channels == 1 else "RGB"))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
