"""Files that are there whole or not at all: temporary name, sync, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError, nearest


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _full_disk_is_said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise disk_full(path) from error


def disk_full(path: Path) -> UserError:
    """The error for a full disk at `path`: says how much is free and where."""
    folder = next((p for p in [path, *path.parents] if p.exists()), Path("."))
    free = shutil.disk_usage(folder).free / 2**20
    return UserError(str(path), f"the disk is full ({free:.0f} MiB free); nothing was half-written", "free some room")


def atomic_file(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write(temporary path)`, then puts the synced file at `path`. On failure `path` is as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _full_disk_is_said(path):
            write(temporary)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_bytes(path: Path, data: bytes | str) -> None:
    """Puts these bytes (or this text, UTF-8) at `path`."""
    raw = data.encode() if isinstance(data, str) else data
    atomic_file(path, lambda temporary: temporary.write_bytes(raw))


def atomic_json(path: Path, value: Any) -> None:
    """Puts `value` as indented JSON at `path`."""
    atomic_bytes(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling folder that becomes `path` if the block succeeds and vanishes if not.

    Where `path` appears meanwhile (another process was faster), the new folder is dropped and `path` kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _full_disk_is_said(path):
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file)
            try:
                os.rename(temporary, path)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def nearest_path(path: Path, names: Sequence[str] = ()) -> str:
    """A hint naming what is most like the first part of the path that does not exist; "" where nothing is.

    names: what else may be meant where the path is a bare name.
    """
    missing = next((part for part in [*reversed(path.parents), path] if not part.exists()), path)
    try:
        there = [entry.name for entry in missing.parent.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return ""
    hint = nearest(missing.name, [*names, *there] if str(missing) == path.name else there)
    if not hint.startswith("did you mean"):
        return ""
    return hint if missing.parent == Path() else f"in {missing.parent}, {hint}"
