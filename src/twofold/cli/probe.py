"""`twofold probe RUN [data=SOURCE ...]`: what a denoiser's features know, for every layer and noise level."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.probe import ProbeSettings
from ..settings.resolve import parse_assignments, resolve, settings_hash
from .packed import packed
from .sample import precision as named
from .show import Progress, say
from .train import command_line

if TYPE_CHECKING:
    from ..data import Store
    from ..denoiser import Denoiser
    from ..learn.probed import Workplace
    from ..settings.data import DataSettings

OPTIONS = ("--out", "--device", "--quiet")
PROBES = "probes"


def settings_model() -> type[ProbeSettings]:
    return ProbeSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", help="a run folder, a .safetensors file, or a diffusers folder")


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(ProbeSettings, [("command line", parse_assignments(args.assignments))])
    out = Path(args.out) if args.out else None
    found, folder = probe(args.source, settings, args.device, args.quiet, out, command_line())
    if found is not None:
        print_result(found, folder)
    return 0


def probe(
    source: str, settings: ProbeSettings, device: str | None, quiet: bool, out: Path | None = None, command: str = ""
) -> tuple[dict[str, Any] | None, Path]:
    """Probes a model and writes result.json, probe.safetensors, figures and report.html into a folder of the run.

    Returns what was found, as plain data (None in all processes but the first), and the folder. A finished probe of
    the same model, data and settings is read, not computed again.
    """
    say("loading torch ...", quiet)
    import torch  # noqa: F401 (said in two parts, so that nothing is silent for long)

    say("loading the model and the data ...", quiet)
    from ..files import atomic_json
    from ..hashing import model_hash
    from ..learn.foreign import check_foreign
    from ..learn.training import make_accelerator, versions
    from ..report.probe import write_probe_page

    accelerator = make_accelerator(device)
    first = accelerator.is_main_process
    start = time.monotonic()
    denoiser = open_denoiser(source, settings.at, accelerator.device)
    store = packed(data_for(source, settings.data, denoiser), quiet or not first)
    check_foreign(source, denoiser, store)
    name = model_hash(denoiser)
    folder = out or home_of(source) / PROBES / f"{settings_hash(settings)}-{name[:8]}"
    facts = {
        "source": {"path": source, "at": settings.at, "hash": name},
        "data": {"name": store.name, "hash": store.content_hash, "source": store.settings.source},
        "settings": settings.model_dump(mode="json"),
    }
    done = finished(folder, facts)
    if done is not None:
        say(f"{folder} is finished; nothing to do", quiet or not first)
        return (done if first else None), folder
    with Progress("probing", quiet or not first) as progress:
        place = workplace(accelerator, progress)
        measured = measure(source, denoiser, store, settings, place, accelerator.device, folder if first else None)
    if not first:
        return None, folder
    found = {
        "command": command,
        **facts,
        **measured,
        "seconds": round(time.monotonic() - start, 1),
        "versions": versions(),
    }
    atomic_json(folder / "result.json", found)
    write_probe_page(folder, found)
    return found, folder


def measure(
    source: str,
    denoiser: Denoiser,
    store: Store,
    settings: ProbeSettings,
    place: Workplace,
    device: Any,
    folder: Path | None,
) -> dict[str, Any]:
    """Everything that is found out. folder: where the probe is saved; None in processes that only help."""
    from ..learn.probe_result import result
    from ..learn.probed import Probing

    over_training: list[dict[str, Any]] = []
    at = settings.at
    if at == "all":
        over_training = along_training(source, store, settings, place, device)
        at = str(max(over_training, key=lambda row: row["accuracy"])["at"])
        denoiser = open_denoiser(source, at, device)
    prepare(denoiser, settings.precision, device)
    probing = Probing(denoiser, store, settings, place)
    seen = seen_by(source, denoiser, store)
    return result(probing, folder, model_path(source, folder), at, over_training, seen)


def along_training(
    source: str, store: Store, settings: ProbeSettings, place: Workplace, device: Any
) -> list[dict[str, Any]]:
    """The best validation accuracy of every snapshot of a run, beside its Frechet distance."""
    from ..learn.probe_result import summary
    from ..learn.probed import Probing
    from ..run import Run

    run = Run.open(source)
    frechet = {row["n_images"]: row["frechet"] for row in run.log() if "frechet" in row}
    rows = []
    for at, n_images in run.numbered_snapshots():
        denoiser = open_denoiser(source, at, device)
        prepare(denoiser, settings.precision, device)
        near = min(frechet, key=lambda n: abs(n - n_images), default=None)
        there = near is not None and abs(near - n_images) <= 0.1 * n_images
        rows.append({"at": at, "n_images": n_images, "frechet": frechet[near] if near is not None and there else None})
        rows[-1] |= summary(Probing(denoiser, store, settings, place))
    if len(rows) < 2:
        hint = "train with train.snapshot_images=[...]"
        raise UserError("at=all", f"{source} keeps {len(rows)} numbered snapshots", hint)
    return rows


def open_denoiser(source: str, at: str, device: Any) -> Denoiser:
    """The denoiser of a source. Raises `UserError` for a classifier."""
    from ..denoiser import Denoiser
    from ..run import load_to_use

    model = load_to_use(source, "last" if at == "all" else at, device)
    if not isinstance(model, Denoiser):
        raise UserError(source, "holds a classifier", "give the run of a denoiser")
    return model


def prepare(denoiser: Any, precision: str, device: Any) -> None:
    """Sets the number format the network computes in."""
    from ..learn.fastest import DTYPES

    denoiser.autocast = DTYPES[named(denoiser, precision, device)]


def data_for(source: str, wanted: DataSettings | None, denoiser: Denoiser) -> DataSettings:
    """The images to probe on: those asked for, else the run's own; in the size and channels that the model takes."""
    from ..run import Run

    if wanted is None:
        if not (Path(source) / "settings.yaml").is_file():
            raise UserError(source, "is no run, so it has no data of its own", "name some: data=SOURCE")
        return Run.open(source).settings().data
    if getattr(denoiser.codec, "latent", False):
        return wanted
    c, h, w = denoiser.shape
    given = {name: getattr(wanted, name) for name in ("size", "channels")}
    needed = {"size": (h, w), "channels": c}
    for name, value in given.items():
        if value is not None and value != needed[name]:
            raise UserError(f"data.{name}={value}", f"the model takes {c} x {h} x {w}", f"leave data.{name} out")
    return wanted.model_copy(update=needed)


def home_of(source: str) -> Path:
    """Where the results of a model go: its run, the folder of a probe, or the current folder."""
    names = ("settings.yaml", "probe.safetensors")
    return Path(source) if any((Path(source) / name).is_file() for name in names) else Path()


def model_path(source: str, folder: Path | None) -> str:
    """How a file in `folder` names the model: relative to it where that is a path in the same tree."""
    import os

    path = Path(source)
    if folder is None or not path.exists():
        return source
    return os.path.relpath(path.resolve(), folder.resolve())


def seen_by(source: str, denoiser: Denoiser, store: Store) -> dict[str, Any]:
    """What the denoiser was trained with, as far as it bears on trust: labels, and images of the test part."""
    from ..data import open_store
    from ..run import Run

    seen: dict[str, Any] = {"labels": bool(denoiser.classes), "test_images": None, "own": False}
    if not (Path(source) / "settings.yaml").is_file():
        return seen
    trained = Run.open(source).settings().data
    try:
        own = open_store(trained)
    except UserError:  # the data have gone since
        return seen
    if own.content_hash == store.content_hash:
        both = set(own.indices("train").tolist()) & set(store.indices("test").tolist())
        return {**seen, "test_images": bool(both), "own": True}
    same_place = Path(trained.source).resolve() == Path(store.settings.source).resolve()
    return {**seen, "test_images": None if same_place else False}


def finished(folder: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The result in a folder, if it is of the same model, data and settings. Raises `UserError` for another one."""
    file = folder / "result.json"
    if not file.is_file() or not (folder / "probe.safetensors").is_file():
        return None
    found = json.loads(file.read_text())
    if {name: found.get(name) for name in ("data", "settings")} != {name: facts[name] for name in ("data", "settings")}:
        raise UserError(str(folder), "holds a probe of other data or settings", "give another --out")
    if found["source"]["hash"] != facts["source"]["hash"]:
        raise UserError(str(folder), "holds a probe of another model", "give another --out")
    return found


def workplace(accelerator: Any, progress: Progress) -> Workplace:
    """This process's share of the work, and how it is shown."""
    from ..learn.probed import Workplace

    def show(what: str, done: int, total: int) -> None:
        progress(done, total, what)

    return Workplace(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone, show)


def print_result(found: dict[str, Any], folder: Path) -> None:
    """The chosen head and its baselines, in a few lines."""
    from ..report.recognition import places_text

    for name, row in found["results"].items():
        low, high = row["interval"]
        where = f"  {places_text(row['places'])}" if row.get("places") else ""
        print(f"{name:<14} {100 * row['accuracy']:5.1f} % of test images ({100 * low:.1f} to {100 * high:.1f}){where}")
    zero = found["zero_shot"]
    if zero:
        text = f"{100 * zero['accuracy']:5.1f} % of {zero['images']} test images; the probe agrees on"
        print(f"{'zero-shot':<14} {text} {100 * zero['agreement']:.1f} %")
    for row in found["labels_per_class"]:
        raw = f", raw pixels {100 * row['raw']:.1f} %" if "raw" in row else ""
        k = "all labels" if row.get("all") else f"{row['k']:>4} labels per class"
        print(f"{k}: {100 * row['accuracy']:.1f} %{raw}")
    for answer in found["finding"]:
        mark = {True: "yes", False: "no", None: "unknown"}[answer["holds"]]
        print(f"{answer['question']} {mark}: {answer['evidence']}")
    for warning in found["warnings"]:
        print(f"note: {warning}")
    print(f"report: {folder / 'report.html'}")
