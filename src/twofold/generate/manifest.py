"""manifest.json: what a folder of generated images holds and how to make it again.

    complete     False until every image is there
    request      what was asked for: seed and label of every image (see `compact`), sampler, steps, guidance, ...;
                 classes: what the labels are called; with attributes: the texts of the different targets
    versions     what the exact bits depend on besides: package versions and the kind of device

Nothing in it depends on when, or by how many processes, the images were made.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import atomic_json

NAME = "manifest.json"
LONGEST_CYCLE = 4096
MOST_FOLDERS, LONGEST_FOLDER = 100, 100  # of attribute targets, and characters of their names


def compact(values: np.ndarray) -> dict[str, Any]:
    """Integers (N,) in few words: consecutive, repeating, in runs, or listed. `expand` is its inverse."""
    count = len(values)
    if not count:
        return {"list": []}
    if bool((np.diff(values) == 1).all()):
        return {"first": int(values[0]), "count": count}
    period = _period(values)
    if period:
        return {"cycle": values[:period].tolist(), "count": count}
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    if len(starts) <= count // 2:
        lengths = np.diff(starts, append=count)
        return {"runs": [[int(values[s]), int(n)] for s, n in zip(starts, lengths, strict=True)]}
    return {"list": values.tolist()}


def expand(short: dict[str, Any]) -> np.ndarray:
    """The integers (N,) int64 that `compact` was given."""
    if "first" in short:
        return np.arange(short["first"], short["first"] + short["count"], dtype=np.int64)
    if "cycle" in short:
        return np.resize(np.asarray(short["cycle"], np.int64), short["count"])
    if "runs" in short:
        values, lengths = np.asarray(short["runs"], np.int64).T
        return np.repeat(values, lengths)
    return np.asarray(short["list"], np.int64)


def _period(values: np.ndarray) -> int | None:
    """The smallest period that is seen at least twice."""
    for period in range(1, min(len(values) // 2, LONGEST_CYCLE) + 1):
        if values[period] == values[0] and np.array_equal(values[period:], values[:-period]):
            return period
    return None


def folders(names: Sequence[str]) -> dict[int, str]:
    """{label: folder name}: the classes' names, all numbered where one of them cannot be a folder of its own."""
    safe = [re.sub(r"[^\w.,()+-]+", "_", name).strip("._") for name in names]
    if len({name.casefold() for name in [*safe, "", "all"]}) < len(names) + 2:
        safe = [f"{k}-{name}" for k, name in enumerate(safe)]
    return {-1: "all", **dict(enumerate(safe))}


def target_folders(texts: Sequence[str]) -> dict[int, str]:
    """`folders` of attribute targets; where they are many or long, one folder for all images."""
    named = folders(texts)
    if len(texts) > MOST_FOLDERS or max((len(name) for name in named.values()), default=0) > LONGEST_FOLDER:
        return dict.fromkeys(named, "all")
    return named


def png_name(folder_of: Mapping[int, str], seed: int, label: int) -> str:
    """Where the PNG of an image lies below images/. folder_of: see `folders`."""
    return f"{folder_of[int(label)]}/{seed}.png"


def png_labels(request: dict[str, Any]) -> dict[str, int]:
    """{file below images/: label, -1 = none} of every image that was asked for."""
    folder_of = (target_folders if "attributes" in request else folders)(request["classes"])
    pairs = zip(expand(request["seeds"]).tolist(), expand(request["labels"]).tolist(), strict=True)
    return {png_name(folder_of, seed, label): label for seed, label in pairs}


def plain(value: Any) -> Any:
    """As it comes back from JSON: tuples are lists, infinity is a word."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def versions(device: str) -> dict[str, str]:
    """What the exact bits of images depend on besides the request."""
    import torch

    from .. import __version__

    return {
        "twofold": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": device,
        "machine": platform.machine(),
    }


def read(out: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None where there is none. Raises `UserError` for a file that is not one."""
    path = out / NAME
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = {"complete", "request", "versions"} <= manifest.keys()
    except (ValueError, AttributeError):
        known = False
    if not known:
        raise UserError(str(path), "is not a manifest of generated images", "delete it or give another folder")
    return manifest


def write(out: Path, complete: bool, request: dict[str, Any], versions: dict[str, str]) -> None:
    """Puts the manifest in place, whole or not at all."""
    atomic_json(out / NAME, {"complete": complete, "request": request, "versions": versions})


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`steps: 20 -> 50` for every entry that differs."""
    return [
        f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
