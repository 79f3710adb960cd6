"""`twofold data pack|describe|split|labels|unpack SOURCE [key=value ...]`: what twofold learns from, before it learns.

pack       packs the source into the cache (once; every later use opens it) and says where it lies; the same command
           on several machines that share the cache, or under torchrun, packs one store together
describe   counts, shape, mean and standard deviation, imbalance, duplicates, classes per split, unreadable files
split      how many images of each class are for training, validation and test; --out FILE lists them as CSV
labels     per_class=K seed=S --out FILE chooses K training images of each class, for data.labels=FILE
unpack     --out FOLDER writes the images as PNG files, one folder a class, with what belongs to them; splits=true
           also by split (the default where the source has splits); a folder that data=FOLDER reads again
"""

from __future__ import annotations

import argparse
import csv
import io
import os
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
MOST_SMALL = 10  # small classes that are named


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
    if args.action == "labels":
        args.chosen = _choice(args, assigned)
    if args.action == "unpack":
        args.splits = _splits(args, assigned)
    layers = [("SOURCE", {"source": args.source}), ("command line", assigned)]
    settings, _ = resolve(DataSettings, layers)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, one tells
    quiet = args.quiet or not first
    say("opening ...", quiet)
    store = _opened(settings, quiet)
    if first:
        ACTIONS[args.action](store, args)
    return 0


def _choice(args: argparse.Namespace, assigned: dict[str, Any]) -> dict[str, int]:
    """per_class and seed, taken out of what was assigned."""
    if not args.out:
        raise UserError("twofold data labels", "--out is missing", "name the label file to write")
    if "per_class" not in assigned:
        hint = "say how many images of each class: per_class=10"
        raise UserError("twofold data labels", "per_class is missing", hint)
    chosen = {}
    for name, least in (("per_class", 1), ("seed", 0)):
        value = str(assigned.pop(name, 0))
        if not value.isdecimal() or int(value) < least:
            raise UserError(f"{name}={value}", f"is not a whole number from {least} on", f"write {name}={least + 1}")
        chosen[name] = int(value)
    return chosen


def _splits(args: argparse.Namespace, assigned: dict[str, Any]) -> bool | None:
    """Whether files are to lie in folders of their splits, taken out of what was assigned; None: not said."""
    if not args.out:
        raise UserError("twofold data unpack", "--out is missing", "name the folder to write")
    value = assigned.pop("splits", None)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"splits={value}", "is neither true nor false", "write splits=true")
    return value


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
    print_store(store)
    print_notes(store)


def print_store(store: Store) -> None:
    from ..data.describe import belongings, joined

    bare = "" if (second := joined(store)) is None else f"{second['images']:,} of them are those of {second['source']}"
    made = store.meta.get("generated")
    channels, height, width = store.shape
    facts = {
        "store": store.folder,
        "images": f"{len(store):,}, {channels} x {height} x {width} (channels, height, width)",
        "classes": ", ".join(store.classes) or "none",
        "unlabelled": bare,
        "generated": f"{made['images']:,} of them are those of {made['source']}" if made else "",
        "with": ", ".join(belongings(store)),
        "licence": store.meta.get("facts", {}).get("licence"),
        "hash": store.content_hash[:16],
    }
    print_facts({name: value for name, value in facts.items() if value})
    print_bad(store.meta["bad_images"])


def describe(store: Store, args: argparse.Namespace) -> None:
    """Everything that is known without looking at single images."""
    from ..data import describe as facts_of
    from ..data.describe import unused_columns

    facts = facts_of(store)
    print_store(store)
    per_channel = zip(facts["mean"], facts["std"], strict=True)
    lines = {
        "on disk": f"{facts['bytes'] / 2**20:,.1f} MiB",
        "mean, std": "; ".join(f"{mean:.4f}, {std:.4f}" for mean, std in per_channel) + " (pixels 0..1)",
        "duplicates": f"{facts['duplicates']['images']:,} images are the same as an earlier one",
    }
    if facts["groups"]:
        lines["groups"] = f"{facts['groups']['count']:,}, the largest of {facts['groups']['largest']:,} images"
    if facts["imbalance"]:
        lines["balance"] = balance_line(facts["imbalance"])
    print_facts(lines)
    print_notes(store)
    if line := unused_columns(store):
        print(f"note       {line}")
    print_small(facts["small_classes"])
    print(counts_table(facts["counts"]))
    if facts["attributes"]:
        print("\n" + attributes_table(facts["attributes"]))


def split(store: Store, args: argparse.Namespace) -> None:
    """Counts per class and part; the parts themselves as CSV."""
    from ..data.describe import class_counts, small_classes

    counts = class_counts(store)
    print_notes(store)
    print_small(small_classes(counts, store.classes))
    print(counts_table(counts))
    if args.out:
        print(f"{_written(args.out, split_csv(store))}: {len(store):,} rows")


def labels(store: Store, args: argparse.Namespace) -> None:
    """Writes the label file of K training images of each class."""
    from ..data import label_subsets, labels_csv

    train = store.indices("train")
    k, seed = args.chosen["per_class"], args.chosen["seed"]
    rows = train[label_subsets(store.all_labels[train], [k], 1, seed, "per_class")[k][0]]
    path = _written(args.out, labels_csv(store, rows))
    print(f"{path}: {len(rows):,} images, {k} of each class; train with data.labels={path}")


def unpack(store: Store, args: argparse.Namespace) -> None:
    """Writes the PNG tree, and says how it is read again."""
    from ..data.unpack import unpack as write

    with Progress(f"unpacking {store.name}", args.quiet) as progress:
        out = write(store, Path(args.out), args.splits, progress)
    print(f"{out}: {len(store):,} images; {out / 'images.csv'} lists them; read again with data={out}")
    if store.classes != sorted(store.classes):
        print("note       read from folders, classes are in the order of their names, not in that of the source")


def _written(out: str, text: str) -> Path:
    from ..files import atomic_bytes

    path = Path(out)
    if path.is_dir():
        raise UserError(f"--out {out}", "is a folder", "name the file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_bytes(path, text)
    return path


def split_csv(store: Store) -> str:
    """`id,split,label,class` of every image, in the order of the store."""
    from ..data import SPLITS

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "split", "label", "class"])
    for i, (code, label) in enumerate(zip(store.codes, store.all_labels, strict=True)):
        rows.writerow([store.id(i), SPLITS[code], int(label), store.classes[label] if label >= 0 else ""])
    return text.getvalue()


ACTIONS: dict[str, Callable[[Store, argparse.Namespace], None]] = {
    "pack": pack,
    "describe": describe,
    "split": split,
    "labels": labels,
    "unpack": unpack,
}


def counts_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """{split: {class: images}} as a table with totals."""
    classes = list(dict.fromkeys(name for row in counts.values() for name in row))
    width = max([len("all images"), *map(len, classes)])
    lines = [f"{'':{width}}" + "".join(f"{split:>12}" for split in counts)]
    for name in classes:
        lines.append(f"{name:{width}}" + "".join(f"{row.get(name, 0):>12,}" for row in counts.values()))
    lines.append(f"{'all images':{width}}" + "".join(f"{sum(row.values()):>12,}" for row in counts.values()))
    return "\n".join(lines)


def attributes_table(attributes: Mapping[str, Mapping[str, int]]) -> str:
    """{attribute: {"yes": images, "no": ..., "unknown": ...}} as a table, with the share of yes among the known."""
    width = max([len("attribute"), *map(len, attributes)])
    lines = [f"{'attribute':{width}}{'yes':>12}{'no':>12}{'unknown':>12}{'share':>9}"]
    for name, row in attributes.items():
        known = row["yes"] + row["no"]
        share = f"{row['yes'] / known:.1%}" if known else "-"
        lines.append(f"{name:{width}}" + "".join(f"{n:>12,}" for n in row.values()) + f"{share:>9}")
    return "\n".join(lines)


def balance_line(found: Mapping[str, float]) -> str:
    """The imbalance of the training images in one line."""
    return (
        f"largest class {found['largest']:,} training images, smallest {found['smallest']:,} "
        f"({found['ratio']:.1f} times), effectively {found['effective']:.1f} classes; data.balance trains against it"
        if found["largest"] > found["smallest"]
        else f"every class has {found['largest']:,} training images"
    )


def print_small(small: Mapping[str, Sequence[str]]) -> None:
    """Classes that have too few images for every part."""
    if not small:
        return
    named = [f"{name} ({', '.join(parts)})" for name, parts in list(small.items())[:MOST_SMALL]]
    more = f" and {len(small) - MOST_SMALL:,} more" if len(small) > MOST_SMALL else ""
    print(f"too few    images for every part: {', '.join(named)}{more}")


def print_facts(facts: Mapping[str, Any]) -> None:
    for name, value in facts.items():
        print(f"{name:<10} {value}")


def print_notes(store: Store) -> None:
    from ..data import notes

    for line in notes(store):
        print(f"note       {line}")


def print_bad(bad: Sequence[Any]) -> None:
    """Files that were left out because they cannot be read."""
    if not bad:
        return
    print(f"unreadable {len(bad):,} files left out:")
    for item in bad[:MOST_FILES]:
        print(f"  {item if isinstance(item, str) else ': '.join(map(str, item.values()))}")
    if len(bad) > MOST_FILES:
        print(f"  and {len(bad) - MOST_FILES:,} more")
