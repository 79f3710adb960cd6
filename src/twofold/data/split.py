"""Train, validation and test: seeded, stratified, and decided once for a packed store.

A split that the source names itself is kept. What it lacks is carved out of its training images (out of all images
where it names none): `validation_share` and `test_share` of every class, rounded up or down.

Images of `data.unlabelled` and `data.generated` are for training and change nothing of this: those of `data.source`
are split as without them. The exception is one that belongs together with a validation or test image (is the same, or
of the same group): it follows that one, so that nothing of what is held out is trained on.

What belongs together stays on one side. Exact duplicates follow the first of them, which leaves all other images
where they are without them. Groups (a person, a part, a patient) are dealt whole, large ones first, each to the part
p where it does least harm to what is wanted of every class c: to the one with the smallest change of

    sum_c (have[p, c] - want[p, c])^2 / want[p, c],    want[p, c] = share_p * images of c
"""

from __future__ import annotations

import numpy as np

from ..settings.data import DataSettings
from .items import CODES, JOINED, SPLITS
from .order import keyed

NONE = -1  # code of an image whose source names no split
TRAIN, VALIDATION, TEST = range(len(SPLITS))
BEHIND = CODES.index(JOINED)  # code of an image of `data.unlabelled`; those of `data.generated` have a higher one
VERSION = 2  # of the rule below: stored splits of another version are not reused


def split_key(settings: DataSettings) -> str:
    """Names the split that these settings ask for; settings of the pixels do not change it."""
    return f"v{VERSION}-{settings.validation_share!r}-{settings.test_share!r}-{settings.split_seed}"


def assign(
    own: np.ndarray,
    labels: np.ndarray,
    settings: DataSettings,
    component: np.ndarray | None = None,
    grouped: bool = False,
) -> np.ndarray:
    """Codes (N,) int8 into `SPLITS`. own: (N,) the source's codes, `NONE` everywhere where it names no splits,
    `BEHIND` or higher at its end for the images of another one.

    component: (N,) the first row of what belongs together with each image; None: every image is on its own.
    grouped: whether the source says so (else they are only duplicates).
    """
    first = int((own < BEHIND).sum())
    if first < len(own):
        codes = assign(own[:first], labels[:first], settings, None if component is None else component[:first], grouped)
        return np.concatenate([codes, _followers(codes, component, len(own))])
    named = set(np.unique(own).tolist())
    codes = np.where(own == NONE, TRAIN, own).astype(np.int8)
    shares = [
        settings.validation_share if VALIDATION not in named else 0.0,
        settings.test_share if TEST not in named else 0.0,
    ]
    rows = np.flatnonzero(codes == TRAIN)
    wanted = (1 - sum(shares), *shares)
    together = np.arange(len(rows)) if component is None else _renumbered(component[rows])
    if grouped:
        codes[rows] = stratify_groups(labels[rows], together, wanted, settings.split_seed)
    else:
        codes[rows] = stratify(labels[rows], wanted, settings.split_seed)[together]
    return codes


def _followers(codes: np.ndarray, component: np.ndarray | None, n: int) -> np.ndarray:
    """The parts of the images behind those with these codes: training, or that of what they belong together with."""
    behind = np.full(n - len(codes), TRAIN, np.int8)
    if component is not None:
        follow = component[len(codes) :] < len(codes)
        behind[follow] = codes[component[len(codes) :][follow]]
    return behind


def _renumbered(component: np.ndarray) -> np.ndarray:
    """The same components among fewer rows: for each row, the place of the first of its component."""
    _, first, which = np.unique(component, return_index=True, return_inverse=True)
    return first[which]


def stratify(labels: np.ndarray, shares: tuple[float, ...], seed: int) -> np.ndarray:
    """Splits rows at random, class by class (-1 counts as a class).

    labels: (N,). shares: one per part, non-negative, summing to 1; the first part gets at least one image of every
    class. Returns (N,) int8: the part of each row. In every class each part has its share rounded up or down; over
    all classes together the parts stay near their shares too, even where every class is tiny.
    """
    parts = np.zeros(len(labels), np.int8)
    chance = keyed(seed, np.arange(len(labels)))
    owed = np.zeros(len(shares))  # what rounding has withheld from each part so far
    order = np.lexsort((chance, labels))
    names, starts = np.unique(labels[order], return_index=True)
    strata = np.split(order, starts[1:])
    # classes in random order: which of many tiny ones gives an image to the small parts is a matter of the seed
    for stratum in np.argsort(keyed(seed + 1, names.astype(np.int64) + 1), kind="stable"):
        rows = strata[stratum]
        counts, owed = _apportion(len(rows), shares, owed)
        parts[rows] = np.repeat(np.arange(len(shares)), counts)
    return parts


def _apportion(n: int, shares: tuple[float, ...], owed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """n images among the parts: each share of n rounded down, the rest to whom most is owed."""
    quota = np.round(np.array(shares) * n, 9)  # 0.1 * 30 is 3, not 3.0000000000000004
    counts = np.floor(quota).astype(np.int64)
    want = owed + quota - counts
    rank = np.where(quota > counts, want, -np.inf)  # rounded up at most once, and never above a whole quota
    if counts[0] == 0:
        rank[0] = np.inf
    extra = np.argsort(-rank, kind="stable")[: n - counts.sum()]
    counts[extra] += 1
    return counts, owed + quota - counts


def stratify_groups(labels: np.ndarray, together: np.ndarray, shares: tuple[float, ...], seed: int) -> np.ndarray:
    """Splits rows at random so that rows of one component stay together, class by class as nearly as that allows.

    labels: (N,). together: (N,) the first row of each row's component. Otherwise as `stratify`, but a class that is one
    component lies in one part, usually the one with the largest share; single rows are dealt last, and make up for
    what whole components have spoilt.
    """
    _, classes = np.unique(labels, return_inverse=True)
    sizes = np.bincount(together, minlength=len(labels))
    want = np.outer(shares, np.bincount(classes)).astype(np.float64)
    have = np.zeros_like(want)
    parts = np.zeros(len(labels), np.int8)
    order = np.argsort(together, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(together[order])) + 1)
    large = [rows for rows in members if len(rows) > 1]
    chance = keyed(seed, np.array([rows[0] for rows in large], np.int64))
    # the largest first, but chance decides between those within a factor of two: every seed deals anew
    for i in sorted(range(len(large)), key=lambda i: (-len(large[i]).bit_length(), chance[i])):
        names, counts = np.unique(classes[large[i]], return_counts=True)
        wanted, over = want[:, names], have[:, names] - want[:, names]
        with np.errstate(divide="ignore"):
            harm = np.where(wanted > 0, counts * (2 * over + counts) / wanted, np.inf).sum(axis=1)
        part = int(np.argmin(harm))
        have[part, names] += counts
        parts[large[i]] = part
    _deal_singles(parts, classes, np.flatnonzero(sizes[together] == 1), want - have, seed)
    return parts


def _deal_singles(parts: np.ndarray, classes: np.ndarray, rows: np.ndarray, lacking: np.ndarray, seed: int) -> None:
    """Fills what each part still lacks of each class with single rows; lacking: (parts, classes)."""
    owed = np.zeros(len(lacking))
    chance = keyed(seed, rows)
    for label in np.unique(classes[rows]):
        mine = np.flatnonzero(classes[rows] == label)
        mine = rows[mine[np.argsort(chance[mine], kind="stable")]]
        wanted = np.maximum(lacking[:, label], 0)
        if not wanted.sum():
            wanted = np.eye(len(lacking))[0]
        counts, owed = _apportion(len(mine), tuple(wanted / wanted.sum()), owed)
        parts[mine] = np.repeat(np.arange(len(lacking)), counts)
