"""`twofold evaluate RUN|FOLDER [data=SOURCE ...]`: how good images are, or how right a classifier is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..settings.evaluate import EvaluateSettings
from ..settings.resolve import parse_assignments, resolve, settings_hash
from .show import Progress, say

OPTIONS = ("--out", "--device", "--quiet")


def settings_model() -> type[EvaluateSettings]:
    return EvaluateSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN|FOLDER", help="a run, or a folder of generated images")


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(EvaluateSettings, [("command line", parse_assignments(args.assignments))])
    out = Path(args.out) if args.out else None
    found, page = evaluate(args.source, settings, args.device, args.quiet, out)
    print_table(found)
    if page is not None:
        print(f"report: {page}")
    return 0


def evaluate(
    source: str,
    settings: EvaluateSettings,
    device: str | None,
    quiet: bool,
    out: Path | None = None,
    frechet_target: float | None = None,
    command: str = "",
) -> tuple[dict[str, Any], Path | None]:
    """The evaluation of a run or of a folder of images, as plain data, and the page it was added to, if any.

    Written to `out` (default: RUN/evaluations) as <hash of its settings>.json. frechet_target: see `report.verdict`.
    """
    say("loading ...", quiet)
    from ..data import open_store
    from ..files import atomic_json
    from ..learn.training import make_accelerator
    from ..recognize.classifier import NetworkClassifier
    from ..run import Run, load

    in_run = (Path(source) / "settings.yaml").is_file()
    if not in_run and not Path(source).exists():
        load(source)  # a hub name, or a clear error
    data = settings.data or (Run.open(source).settings().data if in_run else None)
    if data is None:
        raise UserError("data", "not given, and the images come from no run that knows its data", "add data=SOURCE")
    accelerator = make_accelerator(device)
    with Progress("packing the data", quiet=True) as packing:
        packing.quiet = quiet
        store = open_store(data, packing)
    model = None
    if not (Path(source).is_dir() and not in_run and not (Path(source) / "model_index.json").is_file()):
        model = load(source, settings.at, accelerator.device)
    page = None
    if isinstance(model, NetworkClassifier):
        found = judge(model, store, settings)
    else:
        images, labels = _images(source, model, settings, quiet)
        found = compare(images, labels, store, settings, quiet, accelerator.device)
        if in_run:
            from ..report.build import report_run

            page = report_run(Run.open(source), store, model, images, labels, found, frechet_target, command)
    out = out or (Path(source) if in_run else Path(".")) / "evaluations"
    out.mkdir(parents=True, exist_ok=True)
    atomic_json(out / f"{settings_hash(settings)}.json", found)
    return found, page


def _images(source: str, model: Any, settings: EvaluateSettings, quiet: bool) -> tuple[Any, list[int] | None]:
    import torch

    from ..data import open_store
    from ..generate import sample
    from ..learn.validation import labels_for
    from ..settings.data import DataSettings

    if model is None:
        store = open_store(DataSettings(source=source))
        return store.batch(store.indices("all")), None
    seeds = range(settings.seed, settings.seed + settings.n)
    labels = labels_for(range(settings.n), model.classes)
    with Progress("sampling", quiet) as progress:
        images = sample(
            model,
            seeds,
            label=labels,
            sampler=settings.sampler,
            steps=settings.steps,
            guidance=settings.guidance if model.classes else 1.0,
            micro_batch=settings.micro_batch,
            progress=progress,
        )
    return torch.as_tensor(images).cpu(), labels


def compare(
    images: Any, labels: list[int] | None, store: Any, settings: EvaluateSettings, quiet: bool, device: Any
) -> dict[str, Any]:
    """The verdict on generated images: `measure.quality` against this store, and the distance to all of `split`."""
    import torch

    from ..measure import Gaussian, embed, encoder, frechet_distance
    from ..measure.quality import quality
    from ..measure.statistics import reference
    from ..run import load

    chosen = encoder(settings.encoder)
    judge_model: Any = load(settings.classifier, device=device) if settings.classifier else None
    say("measuring ...", quiet)
    target = reference(store, settings.split, chosen)
    train, held_out = _bounded(store, "train"), _bounded(store, "test")
    known = torch.tensor(labels) if labels is not None else None
    found = quality(images, train, held_out, chosen, judge_model, known)
    distance = frechet_distance(Gaussian.of(embed(chosen, images)), target.gaussian)
    found["frechet_to_split"] = {"split": settings.split, "images": len(images), "value": distance}
    found["settings"] = settings.model_dump(mode="json")
    found["data"] = {"name": store.name, "hash": store.content_hash}
    return found


def _bounded(store: Any, split: str, most: int = 20_000) -> Any:
    """A split's images, evenly thinned to what fits in memory easily."""
    import numpy as np

    rows = store.indices(split)
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    return store.batch(rows)


def judge(model: Any, store: Any, settings: EvaluateSettings) -> dict[str, Any]:
    """Accuracy and calibration of a classifier on the test part (or `split`, where one is named)."""
    import torch

    from ..measure import accuracy, calibration_error, probabilities

    split = "test" if settings.split == "all" else settings.split
    rows = store.indices(split)
    label = torch.from_numpy(store.labels[rows].astype("int64"))
    if not bool((label >= 0).any()):
        raise UserError(f"data.source={store.name}", "has no labels", "accuracy needs one sub-folder per class")
    seen = probabilities(model, store.batch(rows))
    metrics = {"accuracy": accuracy(seen, label), "calibration_error": calibration_error(seen, label)}
    return {
        "metrics": {name: {"samples": value} for name, value in metrics.items()},
        "images": {split: int((label >= 0).sum())},
        "data": {"name": store.name, "hash": store.content_hash},
        "settings": settings.model_dump(mode="json"),
    }


def print_table(found: dict[str, Any]) -> None:
    """The metrics, one a line: generated, real for comparison, and a fitted Gaussian's."""
    columns = ("samples", "real", "gaussian")
    print(f"{'':28}" + "".join(f"{name:>12}" for name in columns))
    for name, row in found["metrics"].items():
        values = [f"{row[c]:12.4f}" if c in row else f"{'':12}" for c in columns]
        print(f"{name:28}" + "".join(values))
    if "frechet_to_split" in found:
        whole = found["frechet_to_split"]
        print(f"{'distance to ' + whole['split']:28}{whole['value']:12.4f}   ({whole['images']} samples)")
    print(json.dumps(found["images"]))
