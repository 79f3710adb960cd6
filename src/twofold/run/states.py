"""Training states: everything a run needs to continue as if it had not been interrupted.

    state/000000012800/tensors.safetensors   weights, their average and the optimiser's moments
    state/000000012800/state.json            counters, environment, and the hash of the tensors

A state appears whole (temporary folder, sync, rename). On resuming, the newest one whose hash is right is used; a
damaged one is reported and the one before it used.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from ..files import atomic_folder, atomic_json, sha256

TENSORS, FACTS = "tensors.safetensors", "state.json"
SPARE = 1 << 20  # bytes for headers and JSON beside the tensors


@dataclass(frozen=True)
class State:
    """n_images: images seen. tensors: by name, on the CPU. facts: plain JSON."""

    n_images: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save_state(folder: Path, state: State, keep: int) -> None:
    """Adds a state to `folder`, then removes all but the newest `keep`."""
    path = folder / f"{state.n_images:012d}"
    for later in _states(folder):  # damaged ones that were passed over: made anew when their time comes
        if later.name >= path.name:
            shutil.rmtree(later)
    with atomic_folder(path) as temporary:
        plain = {name: value.detach().to("cpu").contiguous() for name, value in state.tensors.items()}
        save_file(plain, temporary / TENSORS)
        facts = {**state.facts, "n_images": state.n_images, "sha256": sha256(temporary / TENSORS)}
        atomic_json(temporary / FACTS, facts)
    for old in _states(folder)[:-keep]:
        shutil.rmtree(old)
    for leftover in folder.glob(".*.tmp"):  # of a killed save
        shutil.rmtree(leftover, ignore_errors=True)


def newest_state(folder: Path) -> tuple[State | None, list[str]]:
    """The newest undamaged state (None if there is none), and a line for every damaged one that was passed over."""
    damaged: list[str] = []
    for path in reversed(_states(folder)):
        try:
            return _read(path), damaged
        except (OSError, ValueError, KeyError) as error:
            damaged.append(f"{path}: damaged state passed over ({error})")
    return None, damaged


def read_state(folder: Path, at: str = "last") -> State:
    """The state at so many images, or the newest. Raises `UserError` listing those there are, and for a damaged one."""
    there = _states(folder)
    path = folder / f"{int(at):012d}" if at.isdecimal() else there[-1] if at == "last" and there else None
    if path is None or not path.is_dir():
        counts = ", ".join(str(int(p.name)) for p in there)
        hint = f"there are: {counts}" if there else "train it first; train.keep_states says how many are kept"
        raise UserError(f"{folder.parent}@{at}", "no such training state, or not any more", hint)
    try:
        return _read(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(str(path), f"damaged state ({error})", "name another one") from None


def check_room(folder: Path, needed: int, hint: str) -> None:
    """Raises `UserError` where `folder` has no room for so many bytes more; called before any of them is written."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        what = f"the next save needs {_mib(needed + SPARE)} MiB of disk, {_mib(free)} are free; nothing was written"
        raise UserError(str(folder), what, hint)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f}"


def _read(path: Path) -> State:
    """One state; raises what it finds wrong with it."""
    facts = json.loads((path / FACTS).read_text())
    if sha256(path / TENSORS) != facts["sha256"]:
        raise ValueError("its tensors do not match their hash")
    return State(facts["n_images"], load_file(path / TENSORS), facts)


def _states(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("[0-9]*") if p.is_dir())
