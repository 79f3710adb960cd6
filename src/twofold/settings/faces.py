"""Which key points of a face a mirror exchanges, for the two usual annotations: `data.flip_pairs=ibug68`."""

from __future__ import annotations

from typing import Any

from ..errors import nearest

Pairs = list[tuple[int, int]]


def _across(first: range, last: int) -> Pairs:
    """Points in a row whose partners stand in the reverse order: first[0] with `last`, first[1] with the one before."""
    return [(point, last - i) for i, point in enumerate(first)]


# 68 points of 300-W (Sagonas et al. 2013): jaw, brows, nostrils, eyes (corners and upper lids, then lower lids),
# outer lip above and below, inner lip above and below; ten lie on the middle line
IBUG68: Pairs = [
    *_across(range(8), 16),
    *_across(range(17, 22), 26),
    *_across(range(31, 33), 35),
    *_across(range(36, 40), 45),
    *_across(range(40, 42), 47),
    *_across(range(48, 51), 54),
    *_across(range(55, 57), 59),
    *_across(range(60, 62), 64),
    (65, 67),
]
# 98 points of WFLW (Wu et al. 2018): jaw, brows above and below, nostrils, eyes alike, lips, pupils
WFLW98: Pairs = [
    *_across(range(16), 32),
    *_across(range(33, 38), 46),
    *_across(range(38, 42), 50),
    *_across(range(55, 57), 59),
    *_across(range(60, 65), 72),
    *_across(range(65, 68), 75),
    *_across(range(76, 79), 82),
    *_across(range(83, 85), 87),
    *_across(range(88, 90), 92),
    (93, 95),
    (96, 97),
]
MIRRORED: dict[str, Pairs] = {"ibug68": IBUG68, "wflw98": WFLW98}


def pairs_named(value: Any) -> Any:
    """The pairs that a name stands for (on the command line it comes as a list of one); any other value as it is.

    Raises `ValueError` for an unknown name.
    """
    name = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(name, str):
        return value
    if name not in MIRRORED:
        raise ValueError(f"there are no flip pairs called {name!r}; {nearest(name, MIRRORED)}")
    return MIRRORED[name]
