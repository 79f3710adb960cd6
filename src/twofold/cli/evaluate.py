"""`twofold evaluate RUN|FOLDER [data=SOURCE ...]`: how good images are, or how right a classifier is."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.evaluate import EvaluateSettings
from ..settings.resolve import parse_assignments, resolve, settings_hash
from .sample import precision
from .show import Progress, say
from .yardstick import Yardstick, check_images, check_judge, fewest, held_out_of, prepare, short

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..data import Store
    from ..denoiser import Denoiser
    from ..recognize.classifier import NetworkClassifier
    from ..recognize.probe import ProbeClassifier
    from ..settings.data import DataSettings

OPTIONS = ("--out", "--device", "--quiet")


def settings_model() -> type[EvaluateSettings]:
    return EvaluateSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN|FOLDER", help="a model, or a folder of generated images")


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(EvaluateSettings, [("command line", parse_assignments(args.assignments))])
    out = Path(args.out) if args.out else None
    found, page = evaluate(args.source, settings, args.device, args.quiet, out)
    print_table(found)
    if page is not None:
        print(f"report: {page}")
    return 0


@dataclass(frozen=True)
class Generated:
    """Generated images uint8 (N, C, H, W), the classes asked for (-1 = none), what the classes are called, and the
    number format the network computed in, where that is known."""

    images: Tensor
    labels: list[int] | None
    names: Sequence[str] = ()
    precision: str = ""


def evaluate(
    source: str,
    settings: EvaluateSettings,
    device: str | None,
    quiet: bool,
    out: Path | None = None,
    frechet_target: float | None = None,
    command: str = "",
) -> tuple[dict[str, Any], Path | None]:
    """The evaluation of a model or of a folder of images, as plain data, and the page it was added to, if any.

    Written to `out` (default: `evaluations` in the run or in the folder that `twofold sample` made) as <hash of its
    settings>-<hash of what was evaluated>.json, before the page is. frechet_target: see `report.verdict`.
    """
    say("loading torch ...", quiet)
    import torch  # noqa: F401 (said in two parts, so that nothing is silent for long)

    say("loading the model and the data ...", quiet)
    from ..data import open_store
    from ..denoiser import Denoiser
    from ..files import atomic_bytes, atomic_json
    from ..hashing import weights_hash
    from ..learn.training import make_accelerator
    from ..report.recognition import noise_curves
    from ..run import Run, load
    from ..run.load import is_model

    path = Path(source)
    place = make_accelerator(device).device
    # what is no folder of images is a model, a hub name, or a clear error
    model = load(source, settings.at, place) if is_model(path) or not path.is_dir() else None
    if settings.noise_levels and (model is None or isinstance(model, Denoiser)):
        raise UserError("noise_levels", f"{source} is no classifier", "leave noise_levels out, or give one's run")
    data = data_of(path, settings)
    with Progress("packing the data", quiet=True) as packing:
        packing.quiet = quiet
        store = open_store(data, packing)
    if model is not None and not isinstance(model, Denoiser):
        given, found = None, judge(model, store, settings, quiet)
    else:
        yardstick = prepare(store, settings, place)
        given = draw_samples(model, yardstick, settings, place, quiet) if model else read_images(path)
        check_images(tuple(given.images.shape[1:]), given.names if given.labels else (), yardstick, settings)
        found = compare(given, yardstick, settings, quiet)
    name = weights_hash(model) if model else pixels_hash(given)
    found |= {"source": {"path": source, "hash": name}, "settings": settings.model_dump(mode="json")}
    out = out or home_of(path) / "evaluations"
    out.mkdir(parents=True, exist_ok=True)
    base = out / f"{settings_hash(settings)}-{name[:8]}"
    atomic_json(base.with_suffix(".json"), found)
    if found.get("noise"):
        atomic_bytes(base.with_suffix(".png"), noise_curves({path.name: found["noise"]}))
        say(f"accuracy against noise: {base.with_suffix('.png')}", quiet)
    page = None
    if given is not None and isinstance(model, Denoiser) and (path / "settings.yaml").is_file():
        from ..report.build import report_run

        page = report_run(Run.open(path), store, model, given.images, given.labels, found, frechet_target, command)
    return found, page


def data_of(path: Path, settings: EvaluateSettings) -> DataSettings:
    """The real images: those given, or those of the run that a model or a folder of samples belongs to."""
    from ..run import Run

    if settings.data is not None:
        return settings.data
    for folder in (path, path.resolve().parent.parent):  # RUN, or RUN/samples/<name>
        if (folder / "settings.yaml").is_file() and (folder == path or path.resolve().parent.name == "samples"):
            return Run.open(folder).settings().data
    raise UserError("data", "not given, and the images come from no run that knows its data", "add data=SOURCE")


def home_of(path: Path) -> Path:
    """Where results belong: a run, or a folder of samples with its manifest; never among somebody's own images."""
    return path if any((path / name).is_file() for name in ("settings.yaml", "manifest.json")) else Path()


def pixels_hash(given: Generated | None) -> str:
    return hashlib.sha256(given.images.numpy().tobytes()).hexdigest() if given is not None else ""


def draw_samples(
    model: Denoiser, yardstick: Yardstick, settings: EvaluateSettings, device: torch.device, quiet: bool
) -> Generated:
    """The model's samples, after everything that can be wrong with comparing them has been checked."""
    from ..generate import sample
    from ..generate.produce import class_names
    from ..generate.sample import image_shape
    from ..learn.fastest import DTYPES
    from ..learn.validation import labels_for

    names = class_names(model)
    check_images(image_shape(model), names, yardstick, settings)
    if settings.guidance != 1 and not model.classes:
        raise UserError(f"guidance={settings.guidance:g}", "this model is unconditional", "leave guidance out")
    model.autocast = DTYPES[precision(model, settings.precision, device)]
    labels = labels_for(range(settings.n), model.classes)
    with Progress("sampling", quiet) as progress:
        progress(0, settings.n)  # shown at once: the first batch may take a while
        images = sample(
            model,
            range(settings.seed, settings.seed + settings.n),
            label=labels,
            sampler=settings.sampler,
            steps=settings.steps,
            guidance=settings.guidance,
            micro_batch=settings.micro_batch,
            progress=progress,
        )
    return Generated(images.cpu(), labels, names, str(model.autocast or "full").removeprefix("torch."))


def read_images(path: Path) -> Generated:
    """The images of a folder that `twofold sample` made, with their labels, or of any folder.

    Raises `UserError` for a folder of samples that is not finished, a damaged images.npz, and too few images.
    """
    from ..data import open_store
    from ..generate import manifest
    from ..settings.data import DataSettings

    made = None
    with contextlib.suppress(UserError):  # somebody else's manifest.json
        made = manifest.read(path)
    if made is not None and not made["complete"]:
        raise UserError(str(path), "its images are not all there yet", "repeat the `twofold sample` that began it")
    if made is not None and (path / "images.npz").is_file():
        images, labels = read_npz(path / "images.npz")
        request = made["request"]
        found = Generated(images, labels, request.get("classes", ()), request.get("precision", ""))
    else:
        store = open_store(DataSettings(source=str(path if made is None else path / "images")))
        found = Generated(store.batch(store.indices("all")), None)
    if len(found.images) < fewest():
        many = f"only {len(found.images)} images"
        raise UserError(str(path), many, f"at least {fewest()}; hundreds mean something")
    return found


def read_npz(path: Path) -> tuple[Tensor, list[int] | None]:
    """Images uint8 (N, C, H, W) and labels (None if there are none) of an images.npz of `twofold sample`."""
    import numpy as np
    import torch

    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["arr_0"], file["arr_1"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(str(path), f"cannot be read ({reason})", "delete it and repeat the `twofold sample`") from None
    if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise UserError(str(path), f"holds {images.dtype} {images.shape}", "expected uint8 images (N, H, W, C), labels")
    tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return tensor, [int(label) for label in labels] if bool((labels >= 0).any()) else None


def compare(given: Generated, yardstick: Yardstick, settings: EvaluateSettings, quiet: bool) -> dict[str, Any]:
    """The verdict on generated images: `measure.quality` against the store, and the distance to all of `split`."""
    import torch

    from ..measure import Gaussian, embed, frechet_distance
    from ..measure.quality import quality
    from ..measure.statistics import reference

    say("measuring ...", quiet)
    store, encoder = yardstick.store, yardstick.encoder
    target = reference(store, settings.split, encoder)
    train, held_out = store.batch(yardstick.train), store.batch(yardstick.held_out)
    known = torch.tensor(given.labels) if given.labels is not None else None
    found = quality(given.images, train, held_out, encoder, yardstick.judge, known)
    distance = frechet_distance(Gaussian.of(embed(encoder, given.images)), target.gaussian)
    found["frechet_to_split"] = {"split": settings.split, "images": len(given.images), "value": distance}
    found["precision"] = given.precision
    found["held_out"] = {"split": yardstick.part, "images": len(held_out)}
    found["data"] = {"name": store.name, "hash": store.content_hash}
    return found


def judge(
    model: NetworkClassifier | ProbeClassifier, store: Store, settings: EvaluateSettings, quiet: bool
) -> dict[str, Any]:
    """Accuracy and calibration of a classifier on the held-out part (or `split`, where one is named), and its accuracy
    against noise where it knows any.
    """
    import torch

    from ..measure import accuracy, calibration_error, probabilities
    from ..recognize.noise_curve import accuracy_against_noise, levels_of

    where = f"data={store.settings.source}"
    check_judge(model, store, where)
    if settings.split == "all":
        split, rows = held_out_of(store, 1)
    else:
        split, rows = settings.split, store.indices(settings.split)
    label = torch.from_numpy(store.labels[rows].astype("int64"))
    if not bool((label >= 0).any()):
        raise UserError(where, "has no labels", "accuracy needs one sub-folder per class")
    if list(store.classes) != list(model.classes):
        what = f"its classes are {short(store.classes)}, the classifier knows {short(model.classes)}"
        raise UserError(where, what, "give data of the same classes")
    levels = levels_of(model, settings.noise_levels)
    classifier: Any = model  # a `Classifier`, whose classes mypy wants to be any sequence
    images = store.batch(rows)
    seen = probabilities(classifier, images)
    metrics = {"accuracy": accuracy(seen, label), "calibration_error": calibration_error(seen, label)}
    with Progress("accuracy against noise", quiet) as progress:
        draws = settings.noise_draws
        curve = accuracy_against_noise(classifier, images, label, levels, draws, progress=progress)
    return ({"noise": curve} if curve else {}) | {
        "metrics": {name: {"samples": value} for name, value in metrics.items()},
        "images": {split: int((label >= 0).sum())},
        "held_out": {"split": split, "images": len(rows)},
        "asked_at": getattr(model, "sigma", 0.0),
        "data": {"name": store.name, "hash": store.content_hash},
    }


def print_table(found: dict[str, Any]) -> None:
    """The metrics, one a line: generated, real for comparison, and a fitted Gaussian's."""
    judged = "frechet_to_split" not in found and "accuracy" in found["metrics"]
    columns = ("samples",) if judged else ("samples", "real", "gaussian")
    heading = ("classifier",) if judged else columns
    print(f"{'':28}" + "".join(f"{name:>12}" for name in heading))
    for name, row in found["metrics"].items():
        values = [f"{row[c]:12.4f}" if c in row else f"{'':12}" for c in columns]
        print(f"{name:28}" + "".join(values))
    if "frechet_to_split" in found:
        whole = found["frechet_to_split"]
        print(f"{'distance to ' + whole['split']:28}{whole['value']:12.4f}   ({whole['images']} samples)")
    for row in found.get("noise", ()):
        name, interval = f"accuracy at sigma {row['sigma']:g}", f"[{row['low']:.4f}, {row['high']:.4f}]"
        print(f"{name:28}{row['accuracy']:12.4f}   {interval} (95 %)")
    part = found["held_out"]
    if part["split"] == "validation":
        print(f"held out: {part['images']} images of the validation part, for want of a test part")
    if judged:
        level = found.get("asked_at", 0)
        what = f"with noise of sigma {level:g}, at which it was trained" if level else "clean"
        print(f"on {part['images']} images of the {part['split']} part, {what}")
    else:
        print(json.dumps(found["images"]))
