"""Which training images' masks or key points may be learned from: `data.annotated`.

All own training images that have any, or so many of them, drawn at random; the others are images like those of
`data.unlabelled`. Validation and test parts keep theirs.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..errors import UserError
from ..settings.data import DataSettings
from .items import SPLITS

PURPOSE = 1  # sets this choice apart from that of labels of the same seed


class Annotated(Protocol):
    """Of a store, what the choice needs."""

    settings: DataSettings
    masks: np.ndarray | None
    points: np.ndarray | None

    @property
    def codes(self) -> np.ndarray: ...

    @property
    def n_own(self) -> int: ...


def having(store: Annotated, rows: np.ndarray) -> np.ndarray:
    """Those of these rows that have a mask, or a key point that is there. Those of `data.unlabelled` have none."""
    rows = rows[rows < store.n_own]
    if store.masks is not None:
        return rows
    if store.points is None:
        return rows[:0]
    return rows[np.isfinite(store.points[rows]).all(2).any(1)]


def annotated_rows(store: Annotated, rows: np.ndarray) -> np.ndarray:
    """Those of these rows, sorted, of which the mask or the key points may be learned from: int64, sorted.

    Which training images are among them depends on `labels_seed`, and with one seed fewer are among more. Raises
    `UserError` where there are none, or fewer than `data.annotated` asks for.
    """
    train, wanted = SPLITS.index("train"), store.settings.annotated
    if wanted is None:
        if not len(found := having(store, rows)):
            hint = "images of data.unlabelled have none; annotate some"
            raise UserError(f"data={store.settings.source}", "no image to learn from has a mask or key points", hint)
        return found
    known = having(store, np.flatnonzero(store.codes == train))
    if not len(known):
        what = f"no training image of {store.settings.source} has a mask or key points"
        raise UserError(f"data.annotated={wanted:g}", what, "leave it out, or say where they are: data.mask_column=...")
    count = wanted if isinstance(wanted, int) else max(1, round(wanted * len(known)))
    if count > len(known):
        what = f"{len(known):,} training images have a mask or key points"
        raise UserError(f"data.annotated={wanted}", what, f"ask for at most {len(known)}, or leave it out")
    chosen = np.random.default_rng([store.settings.labels_seed, PURPOSE]).permutation(known)[:count]
    others = having(store, rows[store.codes[rows] != train])
    return np.union1d(others, np.intersect1d(chosen, rows)).astype(np.int64)


def annotated_note(store: Annotated, rows: np.ndarray) -> str:
    """` (annotated, of 367)` of training images, where these are those that may be learned from, and not all; or ""."""
    train = np.flatnonzero(store.codes == SPLITS.index("train"))
    learned = len(rows) < len(train) and np.array_equal(rows, annotated_rows(store, train))
    return f" (annotated, of {len(train):,})" if learned else ""
