"""What is known before an evaluation: whether the run was trained on these images, and what was measured earlier."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.evaluate import EvaluateSettings
from .answered import rows_of

if TYPE_CHECKING:
    import numpy as np

    from ..data import Store
    from ..run import Run

KEPT = {"ood": "images of another kind", "likelihood": "bits per dimension"}  # parts that an evaluation may lack


def run_of(path: Path) -> Run | None:
    """The run that a model or a folder of samples belongs to: RUN, or that of RUN/samples/<name>."""
    from ..run import Run

    for folder in (path, path.resolve().parent.parent):
        if (folder / "settings.yaml").is_file() and (folder == path or path.resolve().parent.name == "samples"):
            return Run.open(folder)
    return None


def warn_of_training_images(
    found: dict[str, Any], path: Path, store: Store | None, settings: EvaluateSettings, quiet: bool
) -> None:
    """Puts into the notes how many of the images that count as held out the run was trained on, if any were.

    Its own data keep their parts apart; other data may be its `data.unlabelled`, or its own in other parts.
    """
    run = run_of(path)
    if run is None or store is None or settings.data is None:
        return
    note = ""
    with contextlib.suppress(UserError):  # the run's data may be gone; then nothing is known
        note = seen_note(run, store, settings, quiet)
    if note:
        found["notes"] = [*found.get("notes", ()), note]


def seen_note(run: Run, store: Store, settings: EvaluateSettings, quiet: bool) -> str:
    """One sentence, or nothing. Raises `UserError` where the run's data cannot be opened or nothing is held out."""
    from ..data import open_store
    from .show import Progress

    trained = run.settings().data
    if trained.unlabelled is None and trained.source != store.settings.source:
        return ""
    with Progress("packing the data that it was trained on", quiet) as packing:
        theirs = open_store(trained, packing)
    split, rows = rows_of(store, settings)
    train = theirs.indices("train")
    mine, behind = keys(store, rows), train >= theirs.n_own
    bare, named = set(keys(theirs, train[behind])), set(keys(theirs, train[~behind]))
    seen = sum(key in bare or key in named for key in mine)
    if not seen:
        return ""
    how = ", without their labels" if not any(key in named for key in mine) else ""
    return (
        f"{seen:,} of the {len(rows):,} images of the {split} part of {store.name} are among those that {run.path} was "
        f"trained on{how}: neither accuracy nor distances nor likelihood are those of images it has not seen"
    )


def keys(store: Store, rows: np.ndarray) -> list[bytes]:
    """What equal images have in common."""
    import numpy as np

    return np.ascontiguousarray(store.hashes[rows]).view("V16").reshape(-1).tolist()


def with_earlier(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """An evaluation with the parts of `KEPT` that it lacks, from the newest one in the folder, of the same weights and
    the same data, that has them; its notes say from where."""
    same = lambda one: (one["source"]["hash"], one["data"]["hash"])  # noqa: E731
    files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    whole = dict(found)
    for file in files:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # damaged, or of another kind
            one = json.loads(file.read_text("utf-8"))
            for part in [part for part in KEPT if part in one and part not in whole and same(one) == same(found)]:
                whole[part] = one[part]
                whole["notes"] = [*whole.get("notes", ()), f"{KEPT[part]}: measured before, {file.name}"]
    return whole
