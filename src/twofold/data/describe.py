"""What is in a store, for people and reports: counts, imbalance, what belongs together and where it lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .beside import Beside
from .duplicates import across, same
from .items import SPLITS
from .sources import open_source
from .store import Store

BLOCK = 1 << 24  # bytes of pixels looked at together


def describe(store: Store) -> dict[str, Any]:
    """What is in a store.

    images, shape, classes, counts {split: {class: images}} (key "unlabelled" for label -1), mean and std per channel
    with pixels in 0..1, bytes on disk, hash, bad_images, left_out, folder; imbalance, small_classes, attributes
    {name: {"yes", "no", "unknown"}}, belongings [what else each image has], duplicates, groups, joined: see the
    functions of these names. Reads every pixel once.
    """
    counts = class_counts(store)
    mean, std = _moments(store)
    return {
        "name": store.name,
        "images": len(store),
        "shape": list(store.shape),
        "classes": store.classes,
        "counts": counts,
        "imbalance": imbalance(counts, store.classes),
        "small_classes": small_classes(counts, store.classes),
        "attributes": attributes(store),
        "belongings": belongings(store),
        "duplicates": duplicates(store),
        "groups": groups(store),
        "joined": joined(store),
        "mean": mean,
        "std": std,
        "bytes": sum(file.stat().st_size for file in store.folder.iterdir()),
        "hash": store.content_hash,
        "bad_images": store.meta["bad_images"],
        "left_out": store.meta["left_out"],
        "folder": str(store.folder),
    }


def class_counts(store: Store) -> dict[str, dict[str, int]]:
    """{split: {class: images}}; what has no label comes last, if anything."""
    names = [*store.classes, "unlabelled" if "unlabelled" not in store.classes else "no label"]
    counts = {}
    for code, split in enumerate(SPLITS):
        n = np.bincount(np.asarray(store.labels)[store.codes == code] % len(names), minlength=len(names))
        counts[split] = {name: int(k) for name, k in zip(names, n, strict=True) if k or name != names[-1]}
    return counts


def imbalance(counts: Mapping[str, Mapping[str, int]], classes: list[str]) -> dict[str, float] | None:
    """Of the labelled training images: largest and smallest class, their ratio, and the effective number of classes.

    The last is the exponential of the entropy of the classes' shares: K if all K are equally frequent, about 1 if
    one has nearly everything. None without two classes that have images. ratio leaves classes without images out.
    """
    n = np.array([counts["train"].get(name, 0) for name in classes], np.float64)
    n = n[n > 0]
    if len(n) < 2:
        return None
    share = n / n.sum()
    return {
        "largest": int(n.max()),
        "smallest": int(n.min()),
        "ratio": float(n.max() / n.min()),
        "effective": math.exp(float(-(share * np.log(share)).sum())),
    }


def small_classes(counts: Mapping[str, Mapping[str, int]], classes: list[str]) -> dict[str, list[str]]:
    """{class: parts it is missing from}, of the parts that hold labelled images; classes of a single image and such."""
    used = [split for split in SPLITS if any(counts[split].get(name, 0) for name in classes)]
    found = {name: [split for split in used if not counts[split].get(name, 0)] for name in classes}
    return {name: missing for name, missing in found.items() if missing}


def attributes(store: Store) -> dict[str, dict[str, int]]:
    """{attribute: {"yes": images, "no": ..., "unknown": ...}}."""
    if store.attributes is None:
        return {}
    values = np.asarray(store.attributes)
    counts = [(values == value).sum(axis=0).tolist() for value in (1, 0, -1)]
    rows = zip(*counts, strict=True)
    return {
        name: dict(zip(("yes", "no", "unknown"), row, strict=True))
        for name, row in zip(store.attribute_names, rows, strict=True)
    }


def belongings(store: Store) -> list[str]:
    """What each image has beside its label, in words."""
    found = []
    if store.attributes is not None:
        found.append(f"{store.attributes.shape[1]} attributes")
    if store.masks is not None:
        found.append(f"mask ({len(store.mask_classes)} classes)" if store.mask_classes else "mask")
    if store.points is not None:
        found.append(f"{store.points.shape[1]} points")
    if store.pairs is not None:
        found.append(f"paired image ({store.pairs.shape[1]} channels)")
    return found


def duplicates(store: Store) -> dict[str, int]:
    """images: those that are the same, pixel by pixel, as an earlier one. sets: of equal images. across: such sets
    that lie in more than one part, which only a source's own splits bring about."""
    first = same(store.hashes)
    again = np.flatnonzero(first != np.arange(len(first)))
    return {
        "images": len(again),
        "sets": len(np.unique(first[again])),
        "across": len(across(first, store.codes)),
    }


def groups(store: Store) -> dict[str, int] | None:
    """count, largest (images), across: groups that lie in more than one part; None if images have none."""
    if store.groups is None:
        return None
    grouped = np.flatnonzero(np.asarray(store.groups) >= 0)
    codes = np.asarray(store.groups)[grouped]
    sizes = np.bincount(codes, minlength=1)
    return {
        "count": int((sizes > 0).sum()),
        "largest": int(sizes.max()),
        "across": len(across(codes, store.codes[grouped])),
    }


def joined(store: Store) -> dict[str, Any] | None:
    """source, images: of `data.unlabelled`. held_out: those that follow a validation or test image; None without it."""
    if "joined" not in store.meta:
        return None
    bare = store.codes[store.n_own : len(store) - store.n_generated]
    held_out = int((bare != SPLITS.index("train")).sum())
    return {**store.meta["joined"], "held_out": held_out}


def crossing(store: Store) -> str:
    """One line about what lies in several parts although it belongs together; "" if nothing does."""
    found, own = duplicates(store)["across"], groups(store)
    lines = [f"identical images ({found:,} sets)"] if found else []
    if own and own["across"]:
        lines.append(f"images of one group ({own['across']:,} groups)")
    return f"{' and '.join(lines)} lie in several of the source's own splits" if lines else ""


def ungrouped(store: Store) -> str:
    """One line where groups cannot do what they are for: none is there, or too few to hold any out; else ""."""
    if store.settings.group is None:
        return ""
    if not store.n_groups:
        return f"data.group={store.settings.group} is empty for every image: none are kept together"
    wanted = {"validation": store.settings.validation_share, "test": store.settings.test_share}
    empty = [part for part, share in wanted.items() if share and not (store.codes == SPLITS.index(part)).any()]
    count = f"{store.n_groups} groups are" if store.n_groups > 1 else "1 group is"
    return f"{count} too few, since each stays whole: no image is left for {' and '.join(empty)}" if empty else ""


def following(store: Store) -> str:
    """One line about images of `data.unlabelled` that are not trained on; "" where there are none."""
    found = joined(store)
    if found is None or not found["held_out"]:
        return ""
    why = "are the same as images for validation or test, or of their groups: they stay with these"
    return f"{found['held_out']:,} images of data.unlabelled={found['source']} {why}"


def annotated(store: Store) -> str:
    """One line on how many training images' masks or points may be learned from, where `data.annotated` says it."""
    if store.settings.annotated is None:
        return ""
    train = store.indices("train")
    count = f"{len(store.annotated_rows()):,} of {len(train):,} training images are annotated"
    return f"{count} (data.annotated={store.settings.annotated:g}, data.labels_seed={store.settings.labels_seed})"


def outside(store: Store) -> list[str]:
    """Lines on key points that were outside their image, or lie outside the packed one; [] where none do."""
    lines, found = [], store.meta.get("points_outside")
    if found:
        where = f"{found['points']:,} points of {found['images']:,} images"
        lines.append(f"{where} are outside what they belong to, and count as not there (data.points_outside)")
    if store.points is not None:
        points, side = np.asarray(store.points), np.array(store.shape[:0:-1])
        beyond = np.any((points < -0.5) | (points > side - 0.5), axis=2)  # false for NaN
        if beyond.any():
            where = f"{int(beyond.sum()):,} points of {int(beyond.any(1).sum()):,} images"
            lines.append(f"{where} lie beyond the packed image, which data.fit or data.points_outside lets them")
    return lines


def notes(store: Store) -> list[str]:
    """What whoever relies on the split should know, a line each; see `crossing`, `ungrouped` and `following`, and of
    masks and key points `annotated` and `outside`.
    """
    lines = (crossing(store), ungrouped(store), following(store), annotated(store))
    return [line for line in lines if line] + outside(store)


def unreadable(store: Store) -> str:
    """One line on the images that were left out because they cannot be read; "" where there are none."""
    bad = store.meta["bad_images"]
    if not bad:
        return ""
    reason = ": ".join(map(str, bad[0].values()))
    many = f"{len(bad):,} images cannot be read and are" if len(bad) > 1 else "one image cannot be read and is"
    place = f"listed under bad_images in {store.folder / 'meta.json'}"
    return f"{store.settings.source}: {many} left out, {'first ' if len(bad) > 1 else ''}{reason}; {place}"


def unused_columns(store: Store) -> str:
    """One line on the columns of a folder's metadata.csv or .jsonl that no setting names; "" where there are none."""
    own = store.settings.model_copy(update={"unlabelled": None, "generated": None})
    beside = getattr(open_source(own), "beside", None)
    return beside.unused() if isinstance(beside, Beside) else ""


def _moments(store: Store) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, pixels in 0..1; exact, from counts of the 256 levels."""
    levels = np.zeros((store.shape[0], 256), np.int64)
    step = max(1, BLOCK // int(np.prod(store.shape)))
    for start in range(0, len(store), step):
        block = store.images[start : start + step]
        for channel, counts in enumerate(levels):
            counts += np.bincount(block[:, channel].ravel(), minlength=256)
    share = levels / levels.sum(axis=1, keepdims=True)
    value = np.arange(256) / 255
    mean = share @ value
    return mean.tolist(), np.sqrt(np.maximum(share @ value**2 - mean**2, 0)).tolist()
