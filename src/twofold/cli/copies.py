"""`twofold copies SAMPLES data=RUN`: before images are shared, which of them are copies of training images?"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..files import atomic_file, atomic_folder, atomic_json
from ..settings.copies import CopiesSettings
from ..settings.resolve import parse_assignments, resolve, settings_hash
from .copied import Real, Space, Suspects, blocks, real_images, run_and_data, spaces_of, suspects
from .evaluate import home_of
from .results import alone_on
from .show import Progress, say
from .tablefile import TableFile
from .train import command_line

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..measure.copies import Near, Verdict

OPTIONS = ("--out", "--device", "--quiet")
PROBES = 2_000  # training images that are looked at for near duplicates among the others


def settings_model() -> type[CopiesSettings]:
    return CopiesSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("samples", metavar="SAMPLES", help="a folder of images, of `twofold sample` too, or an .npz")


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(CopiesSettings, [("command line", parse_assignments(args.assignments))])
    out = Path(args.out) if args.out else None
    found, text = copies(args.samples, settings, args.device, args.quiet, out, command_line())
    print(text)
    share = found["flagged"]["share"]
    if settings.fail_above is not None and share > settings.fail_above:
        say(f"twofold: {share:.2%} are flagged, more than fail_above={settings.fail_above:g}")
        return 1
    return 0


@dataclass(frozen=True)
class Compared:
    """What came of one space: of the images, of the held-out ones, the verdict, and the share of training images that
    have a near duplicate among the others."""

    ours: Near
    real: Near
    verdict: Verdict
    near_duplicates: float


def copies(
    samples: str,
    settings: CopiesSettings,
    device: str | None,
    quiet: bool,
    out: Path | None = None,
    command: str = "",
) -> tuple[dict[str, Any], str]:
    """What is found, as result.json holds it, and what to tell the user. Writes the folder `out` (default: copies/ in
    the folder of samples, or in the current one) and, if asked for, one with the images that are not flagged.
    """
    path = Path(samples)
    if not path.exists():
        raise UserError(samples, "is not there", "give a folder of images or an .npz")
    kept = Path(settings.keep) if settings.keep else None
    if kept is not None and kept.exists():
        raise UserError(f"keep={settings.keep}", "is there already", "give a new folder")
    say("loading torch ...", quiet)
    from .generated import Generated, pixels_hash

    place = alone_on(device, "copies are looked for")
    say("reading the images ...", quiet)
    given = suspects(path)
    shape = tuple(given.images.shape[1:])
    trained, data = run_and_data(path, settings, shape)
    real = real_images(data, settings, shape, quiet)
    spaces = spaces_of(trained, settings, place, quiet)
    rate = settings.rate / len(spaces)
    compared = {}
    for space in spaces:
        compared[space.name] = compare(space, real, given.images, settings, rate, quiet)
    digest = pixels_hash(Generated(given.images, None))
    rows = table_of(given, real, compared)
    found = result_of(samples, digest, given, real, compared, rows, settings, command)
    folder = out or home_of(path) / "copies" / f"{settings_hash(settings)}-{digest[:8]}"
    write(folder, found, rows, given, real, compared, settings)
    text = told(found, folder)
    if kept is not None:
        text += f"\n{kept}: {write_kept(kept, given, rows):,} images that are not flagged"
    return found, text


def compare(space: Space, real: Real, images: Tensor, settings: CopiesSettings, rate: float, quiet: bool) -> Compared:
    """Searches all training images for those nearest to the images and to the held-out ones, in one pass over them."""
    import torch

    from ..data import spread
    from ..measure.copies import NEIGHBOURS, apart, closest, judged, least_rate, limit_of, nearest_in

    groups = [images, real.held_out]
    views = [view for group in groups for view in ([group, group.flip(3)] if settings.flips else [group])]
    probes = spread(len(real.train), PROBES)
    queries = [space.embed(view) for view in views] + [space.embed(real.store.batch(real.train[probes]))]
    with Progress(f"comparing by {space.name}", quiet) as progress:

        def all_blocks() -> Any:
            for k, block in enumerate(blocks(space, real, settings.block)):
                progress(k * settings.block, len(real.train))
                yield block

        distances, rows = nearest_in(torch.cat(queries), all_blocks(), NEIGHBOURS)
    parts = list(zip(distances.split([len(q) for q in queries]), rows.split([len(q) for q in queries]), strict=True))
    per = len(views) // len(groups)
    ours, others = closest(parts[:per]), closest(parts[per : 2 * per])
    same = limit_of(others[0][:, 0], max(rate, least_rate(len(real.held_out))))
    vectors = lambda at: space.embed(real.store.batch(real.train[at.numpy()]))  # noqa: E731
    found, new = apart(*ours, vectors, same), apart(*others, vectors, same)
    twice = (parts[-1][0][:, 1] < same).double().mean().item() if distances.shape[1] > 1 else 0.0
    return Compared(found, new, judged(found, new, rate, settings.rule), twice)


def table_of(given: Suspects, real: Real, compared: dict[str, Compared]) -> list[dict[str, Any]]:
    """A row per image, the most suspicious first: by the smallest of its p-values and then of its ratios."""
    rows = []
    for i, name in enumerate(given.ids):
        best = min(compared, key=lambda space: _order(compared[space], i))
        at = int(compared[best].ours.row[i])
        why = [space for space, one in compared.items() if bool(one.verdict.flagged[i])]
        row: dict[str, Any] = {"id": name, "flagged": bool(why), "by": ";".join(why) if why else ""}
        row |= {"nearest": real.store.id(int(real.train[at])), "times": int(real.times[at])}
        for k, one in enumerate(compared.values()):
            end = "features" if k else "pixels"
            nearest = real.store.id(int(real.train[int(one.ours.row[i])]))
            numbers = {"distance": one.ours.d1[i], "ratio": one.ours.ratio[i], "p": one.verdict.p[i]}
            row |= {f"nearest_{end}": nearest, **{f"{k}_{end}": float(f"{float(v):.6g}") for k, v in numbers.items()}}
        rows.append({**row, "_order": (not why, *_order(compared[best], i)), "_i": i, "_at": at, "_by": best})
    return sorted(rows, key=lambda row: row["_order"])


def _order(one: Compared, i: int) -> tuple[float, float]:
    return float(one.verdict.p[i]), float(one.ours.ratio[i])


def said_of(one: Compared) -> dict[str, Any]:
    """What result.json holds of one space."""
    from ..measure.neighbours import distance_report

    said = one.verdict
    return {
        "flagged": int(said.flagged.sum()),
        "limit": said.limit,
        "rate": said.rate,
        "nearer": said.nearer,
        "nearer_interval": list(said.nearer_interval),
        "near_duplicates": one.near_duplicates,
        **distance_report(one.ours.d1, one.real.d1),
    }


def result_of(
    samples: str,
    digest: str,
    given: Suspects,
    real: Real,
    compared: dict[str, Compared],
    rows: Sequence[dict[str, Any]],
    settings: CopiesSettings,
    command: str,
) -> dict[str, Any]:
    """What result.json holds."""
    from ..learn.training import versions
    from ..measure.answers import share_interval

    count, n = sum(row["flagged"] for row in rows), len(rows)
    spaces = {name: said_of(one) for name, one in compared.items()}
    return {
        "samples": samples,
        "hash": digest,
        "images": n,
        "flagged": {"images": count, "share": count / n, "interval": list(share_interval(count / n, n))},
        "rule": settings.rule,
        "rate": sum(space["rate"] for space in spaces.values()),
        "spaces": spaces,
        "held_out": {"images": len(real.held_out), "from": real.held_out_from},
        "data": {"name": real.store.name, "hash": real.store.content_hash},
        "training": {
            "images": int(real.times.sum()),
            "exact_duplicates": int(real.times.sum()) - len(real.train),
            "near_duplicates": max(one.near_duplicates for one in compared.values()),
        },
        "settings": settings.model_dump(mode="json"),
        "command": command,
        "versions": versions(),
    }


def write(
    folder: Path,
    found: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    given: Suspects,
    real: Real,
    compared: dict[str, Compared],
    settings: CopiesSettings,
) -> None:
    """copies.csv, result.json and report.html."""
    from ..report.copies import Pairs, write_page

    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}", "is a file", "give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in rows[0] if not name.startswith("_")]
    with TableFile(folder / "copies.csv") as table:
        table.write({name: [row[name] for row in rows] for name in names})
    atomic_json(folder / "result.json", found)
    first = rows[: settings.shown]
    nearest = real.store.batch(real.train[[row["_at"] for row in first]]).numpy()
    ratios = [float(compared[row["_by"]].ours.ratio[row["_i"]]) for row in first]
    pairs = Pairs(given.images[[row["_i"] for row in first]].numpy(), nearest, ratios)
    values = {name: (*_deciding(one, settings.rule), one.verdict.limit) for name, one in compared.items()}
    write_page(folder, found, pairs, values)


def _deciding(one: Compared, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """What the rule looks at, of the images and of the held-out ones."""
    near = (one.ours, one.real)
    ours, real = ((part.ratio if rule == "ratio" else part.d1).numpy() for part in near)
    return ours, real


def told(found: dict[str, Any], folder: Path) -> str:
    """What to tell the user: the verdict, and where the rest is."""
    from ..report.copies import verdict

    low, high = found["flagged"]["interval"]
    share = f"{100 * found['flagged']['share']:.2f} % flagged ({100 * low:.2f} to {100 * high:.2f}: 95 % interval)"
    return "\n".join([*verdict(found), f"{share}; {folder}: report.html, copies.csv, result.json"])


def write_kept(folder: Path, given: Suspects, rows: Sequence[dict[str, Any]]) -> int:
    """PNGs of the images that are not flagged, under their names; returns how many. All of them, or no folder."""
    from ..generate.chunks import write_png

    kept, names = sorted(row["_i"] for row in rows if not row["flagged"]), kept_names(given.ids)
    with atomic_folder(folder) as temporary:
        for i in kept:
            path = temporary / names[i]
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_file(path, lambda file, i=i: write_png(file, given.images[i].numpy()))  # type: ignore[misc]
    return len(kept)


def kept_names(ids: Sequence[str]) -> list[str]:
    """The file of each image: its id as a path that stays in the folder, ending in .png; no two alike."""
    from ..data.decode import EXTENSIONS

    ending = re.compile(rf"\.({'|'.join(EXTENSIONS)})$", re.IGNORECASE)
    names, taken = [], set()
    for name in ids:
        parts = [part for part in re.split(r"[/\\]", ending.sub("", name)) if part not in ("", ".", "..")]
        plain = re.sub(r'[<>:"|?*\x00-\x1f]', "_", "/".join(parts)) or "image"
        found, k = plain, 1
        while found.lower() in taken:
            k += 1
            found = f"{plain}-{k}"
        taken.add(found.lower())
        names.append(f"{found}.png")
    return names
