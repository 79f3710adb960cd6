"""`twofold data pack|describe|split SOURCE [key=value ...]`: what twofold learns from, before it learns.

pack       packs the source into the cache (once; every later use opens it) and says where it lies
describe   counts, shape, mean and standard deviation, classes per split, unreadable files
split      how many images of each class are for training, validation and test; --out FILE lists them as CSV
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, nearest
from ..settings.data import DataSettings
from ..settings.resolve import parse_assignments, resolve
from .show import Progress, say

if TYPE_CHECKING:
    from ..data import Store

OPTIONS = ("--out", "--quiet")
MOST_FILES = 20  # unreadable files that are named


def settings_model() -> type[DataSettings]:
    return DataSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", metavar="|".join(ACTIONS), help="what to do with the source")
    parser.add_argument("source", metavar="SOURCE", help="digits, a folder, a Parquet file or folder, or a hub name")


def run(args: argparse.Namespace) -> int:
    if args.action not in ACTIONS:
        raise UserError(f"twofold data {args.action}", "no such action", nearest(args.action, ACTIONS))
    # as elsewhere (data.size=32), or without the prefix, which is all there is to set here
    assigned = parse_assignments([word.removeprefix("data.") for word in args.assignments])
    if "source" in assigned:
        raise UserError(
            f"source={assigned['source']}", f"the source is given already ({args.source})", "keep one of them"
        )
    layers = [("SOURCE", {"source": args.source}), ("command line", assigned)]
    settings, _ = resolve(DataSettings, layers)
    say("opening ...", args.quiet)
    store = _opened(settings, args.quiet)
    ACTIONS[args.action](store, args)
    return 0


def _opened(settings: DataSettings, quiet: bool) -> Store:
    """The store; a progress display appears if the source has to be packed."""
    from ..data import open_store

    with ExitStack() as stack:
        bar: Progress | None = None

        def progress(done: int, total: int | None) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(Progress(f"packing {settings.source}", quiet))
            bar(done, total)

        return open_store(settings, progress)


def pack(store: Store, args: argparse.Namespace) -> None:
    """Where the store is and what is in it."""
    channels, height, width = store.shape
    print_facts(
        {
            "store": store.folder,
            "images": f"{len(store):,}, {channels} x {height} x {width} (channels, height, width)",
            "classes": ", ".join(store.classes) or "none",
            "hash": store.content_hash[:16],
        }
    )
    print_bad(store.meta["bad_images"])


def describe(store: Store, args: argparse.Namespace) -> None:
    """Everything that is known without looking at single images."""
    from ..data import describe as facts_of

    facts = facts_of(store)
    pack(store, args)
    per_channel = zip(facts["mean"], facts["std"], strict=True)
    print_facts(
        {
            "on disk": f"{facts['bytes'] / 2**20:,.1f} MiB",
            "mean, std": "; ".join(f"{mean:.4f}, {std:.4f}" for mean, std in per_channel) + " (pixels 0..1)",
        }
    )
    print(counts_table(facts["counts"]))


def split(store: Store, args: argparse.Namespace) -> None:
    """Counts per class and part; the parts themselves as CSV."""
    from ..data import describe as facts_of

    print(counts_table(facts_of(store)["counts"]))
    if args.out:
        from ..files import atomic_bytes

        path = Path(args.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_bytes(path, split_csv(store))
        print(f"{path}: {len(store):,} rows")


def split_csv(store: Store) -> str:
    """`id,split,label,class` of every image, in the order of the store."""
    from ..data import SPLITS

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "split", "label", "class"])
    for i, (code, label) in enumerate(zip(store.codes, store.labels, strict=True)):
        rows.writerow([store.id(i), SPLITS[code], int(label), store.classes[label] if label >= 0 else ""])
    return text.getvalue()


ACTIONS: dict[str, Callable[[Store, argparse.Namespace], None]] = {"pack": pack, "describe": describe, "split": split}


def counts_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """{split: {class: images}} as a table with totals."""
    classes = list(dict.fromkeys(name for row in counts.values() for name in row))
    width = max([len("all images"), *map(len, classes)])
    lines = [f"{'':{width}}" + "".join(f"{split:>12}" for split in counts)]
    for name in classes:
        lines.append(f"{name:{width}}" + "".join(f"{row.get(name, 0):>12,}" for row in counts.values()))
    lines.append(f"{'all images':{width}}" + "".join(f"{sum(row.values()):>12,}" for row in counts.values()))
    return "\n".join(lines)


def print_facts(facts: Mapping[str, Any]) -> None:
    for name, value in facts.items():
        print(f"{name:<10} {value}")


def print_bad(bad: Sequence[Any]) -> None:
    """Files that were left out because they cannot be read."""
    if not bad:
        return
    print(f"unreadable {len(bad):,} files left out:")
    for item in bad[:MOST_FILES]:
        print(f"  {item if isinstance(item, str) else ': '.join(map(str, item.values()))}")
    if len(bad) > MOST_FILES:
        print(f"  and {len(bad) - MOST_FILES:,} more")
