"""`twofold predict RUN IMAGES`: labels, probabilities, features or anomaly scores of new images, as CSV or Parquet."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.probe import PredictSettings
from ..settings.resolve import parse_assignments, resolve, settings_hash
from .embedded import encoding
from .located import locates, predict_places
from .probe import home_of, prepare
from .show import Progress, say
from .tablefile import TableFile, check_ending
from .tally import Tally
from .told import told_as

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..denoiser import Denoiser
    from ..settings.data import DataSettings

OPTIONS = ("--out", "--device", "--quiet")
BATCH = 256  # images that are decoded and answered together

Columns = dict[str, list[Any]]


def settings_model() -> type[PredictSettings]:
    return PredictSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", help="a run, a probe, a .safetensors file, or a diffusers folder")
    parser.add_argument("images", metavar="IMAGES", help="an image, a folder, Parquet files or a hub name")


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(PredictSettings, [("command line", parse_assignments(args.assignments))])
    out = Path(args.out) if args.out else None
    if out is not None and out.suffix:
        check_ending(out)  # before anything is loaded; a name without an ending may be meant for a folder of masks
    print(predict(args.source, args.images, settings, args.device, args.quiet, out))
    return 0


@dataclass(frozen=True)
class Answerer:
    """Says something about a batch. shape: (C, H, W) that images are fitted to. classes: in the order of
    probabilities, empty where none are given. answer: images and ids -> columns. fitted: how images become that shape,
    where it is not as the run's were."""

    name: str
    shape: tuple[int, int, int]
    answer: Callable[[Tensor, list[str]], Columns]
    classes: list[str]
    fitted: dict[str, str] = field(default_factory=dict)


def predict(
    source: str, images: str, settings: PredictSettings, device: str | None, quiet: bool, out: Path | None = None
) -> str:
    """Answers for all images, written to `out` (default: `predictions` of the run); returns what to tell the user."""
    say("loading torch ...", quiet)
    import torch  # noqa: F401 (said in two parts, so that nothing is silent for long)

    say("loading the model ...", quiet)
    from ..data import open_images, stream
    from ..learn.training import make_accelerator
    from ..run import load_to_use

    place = make_accelerator(device).device
    check_words(settings)
    model: Any = None if settings.probe else load_to_use(source, settings.at, place)
    path = out or default_path(source, images, settings)
    if locates(model):
        if settings.precision != "auto":
            prepare(model, settings.precision, place)
        folder = path.with_suffix("") if out is None and hasattr(model, "masks") else path
        data = data_of(source, images, image_shape(model), settings)
        with told_as(f"IMAGES {images}", f"data={images}"):
            return predict_places(model, source, data, settings, folder, quiet)
    check_ending(path)
    answerer = answerer_for(source, model, settings, place, path, quiet)
    data = data_of(source, images, answerer.shape, settings, answerer.fitted)
    with told_as(f"IMAGES {images}", f"data={images}"):
        opened = open_images(data)
    tally = Tally(answerer.classes, opened.classes(), settings)
    total, done, skipped = opened.count(), 0, 0
    with Progress(answerer.name, quiet) as progress, TableFile(path) as table:
        for part in stream(opened, data, BATCH):
            skipped += len(part.skipped)
            for name, reason in part.skipped:
                progress.line(f"left out: {name} ({reason})")
            if part.ids:
                columns = answerer.answer(part.images, part.ids)
                table.write({"id": part.ids, **columns, **tally.given(part)})
                tally.add(part, columns)
            done += len(part.ids) + len(part.skipped)
            progress(done, total)
    if not table.rows:
        raise UserError(images, "holds no readable image", "nothing was written")
    left = f", {skipped} unreadable ones left out" if skipped else ""
    return f"{path}: {table.rows:,} images{left}" + tally.text()


def answerer_for(
    source: str, model: Any, settings: PredictSettings, device: torch.device, out: Path, quiet: bool
) -> Answerer:
    """Whoever answers what was asked for. model: what `source` holds, None where a probe is named instead. Raises
    `UserError` saying what would be needed."""
    from ..denoiser import Denoiser, JointDenoiser
    from ..hashing import model_hash
    from ..recognize.classifier import answering
    from ..run import load_probe, newest_probe

    if settings.probe:
        model = load_probe(settings.probe, device, settings.draws)
    if isinstance(model, Denoiser):
        prepare(model, settings.precision, device)
        if settings.anomaly:
            return detecting(source, model, settings, out, quiet)
        if settings.method == "zero_shot":
            return zero_shot(model, settings)
        probe = newest_probe(source, Path(), model=model_hash(model))
        if settings.embed:
            return embedding(model, load_probe(probe, device) if probe else None, settings)
        if isinstance(model, JointDenoiser):
            model = answering(model)
            say("by the model's own head", quiet)
        elif probe is None:
            hint = f"fit one: twofold probe {source}" + (", or use method=zero_shot" if model.classes else "")
            raise UserError(source, "is a denoiser without a probe, so it has no classes to tell apart", hint)
        else:
            model = load_probe(probe, device, settings.draws)
            say(f"by the probe {probe}, fitted on {model.facts.data}", quiet)
    if not model.class_names and hasattr(model, "embed"):
        return Answerer("reading features", image_shape(model), encoding(source, model, settings), [])
    for wrong, name in ((settings.anomaly, "anomaly=true"), (settings.embed, "embed=true")):
        if wrong:
            raise UserError(name, f"{source} holds a classifier", "give the run of a denoiser")
    if hasattr(model, "denoiser"):
        prepare(model.denoiser, settings.precision, device)
    if settings.sigma is not None:
        model.sigma = level_of(model, settings.sigma)
    return classifying(model)


def level_of(model: Any, sigma: float) -> float:
    """The noise level to ask a classifier at. Raises `UserError` for one that knows no noise, or not this much."""
    if getattr(model, "sigma_range", None) is None:
        raise UserError(f"sigma={sigma:g}", "this classifier is asked about clean images", "leave sigma out")
    low, high = model.sigma_range
    if sigma and not low <= sigma <= high:
        raise UserError(f"sigma={sigma:g}", f"the classifier knows {low:.4g} to {high:.4g}", "or 0, the clean image")
    return sigma


def classifying(model: Any) -> Answerer:
    """The most probable class, its probability, and those of all classes."""
    from ..measure import probabilities

    columns = attribute_columns if getattr(model, "multi_label", False) else probability_columns

    def answer(images: Tensor, ids: list[str]) -> Columns:
        return columns(probabilities(model, images), list(model.class_names))

    facts = getattr(model, "facts", None)
    fitted = {"fit": facts.fit, "background": facts.background} if facts else {}
    return Answerer("classifying", image_shape(model), answer, list(model.class_names), fitted)


def check_words(settings: PredictSettings) -> None:
    """Raises `UserError` for settings that would say nothing here."""
    for name in ("normal", "good"):
        if getattr(settings, name) is not None and not settings.anomaly:
            raise UserError(f"{name}={getattr(settings, name)}", "is about anomalies", "add anomaly=true")
    if settings.anomaly and settings.embed:
        raise UserError("embed=true", "anomaly=true writes scores instead", "ask for one of them at a time")
    if settings.layers and not settings.embed:
        raise UserError("layers", "says which features are written", "add embed=true")


def zero_shot(model: Denoiser, settings: PredictSettings) -> Answerer:
    """The class whose condition leaves the least denoising error; the columns are its posterior."""
    from ..recognize.zero_shot import ZeroShotClassifier

    classifier = ZeroShotClassifier(model, micro_batch=settings.micro_batch)

    def answer(images: Tensor, ids: list[str]) -> Columns:
        return probability_columns(classifier.probabilities(images), list(classifier.class_names))

    return Answerer("classifying zero-shot", image_shape(model), answer, list(classifier.class_names))


def probability_columns(found: Tensor, classes: list[str]) -> Columns:
    """label, probability, and one column per class."""
    top = found.max(1)
    columns: Columns = {
        "label": [classes[k] for k in top.indices.tolist()],
        "probability": [round(value, 6) for value in top.values.tolist()],
    }
    for k, name in enumerate(classes):
        columns[f"p({name})"] = [round(value, 6) for value in found[:, k].tolist()]
    return columns


def attribute_columns(found: Tensor, classes: list[str]) -> Columns:
    """label (all that are more likely than not, with ; between them), and one column per class."""
    columns: Columns = {"label": [";".join(n for n, p in zip(classes, row, strict=True) if p > 0.5) for row in found]}
    for k, name in enumerate(classes):
        columns[f"p({name})"] = [round(value, 6) for value in found[:, k].tolist()]
    return columns


def embedding(model: Denoiser, probe: Any, settings: PredictSettings) -> Answerer:
    """Features: of the layers and the noise level asked for, else those that the probe chose, else the middle."""
    from ..run.features import reader_for

    reader = reader_for(model, probe, settings.layers, settings.sigma, settings.draws or 5, settings.micro_batch)

    def answer(images: Tensor, ids: list[str]) -> Columns:
        found = reader.read(images)
        return {name: found[:, k].tolist() for k, name in enumerate(reader.names())}

    return Answerer("reading features", image_shape(model), answer, [])


def detecting(source: str, model: Denoiser, settings: PredictSettings, out: Path, quiet: bool) -> Answerer:
    """Anomaly scores in standard deviations of good parts, and a map beside each image."""
    from ..recognize.anomaly import AnomalyDetector
    from .anomaly_maps import write_map

    draws = settings.draws or 5
    detector = AnomalyDetector(model, draws=draws, score=settings.score, micro_batch=settings.micro_batch)
    with Progress("learning what good parts look like", quiet) as progress:
        detector.fit(good_parts(source, settings, model), progress)
    folder = out.with_suffix("")

    def answer(images: Tensor, ids: list[str]) -> Columns:
        scores, maps = detector.compare(images)
        names = [write_map(folder, name, image, one) for name, image, one in zip(ids, images, maps, strict=True)]
        return {"anomaly": [round(float(score), 6) for score in scores], "map": names}

    return Answerer("looking for anomalies", image_shape(model), answer, [])


def good_parts(source: str, settings: PredictSettings, model: Denoiser, most: int = 2_000) -> Tensor:
    """Images of good parts: those named, else what the run held out for validation."""
    import numpy as np

    from ..data import open_store, spread
    from ..run import Run

    if settings.normal is not None:
        store, split = open_store(data_of(source, settings.normal, image_shape(model), settings)), "all"
    elif (Path(source) / "settings.yaml").is_file():
        store, split = open_store(Run.open(source).settings().data), "validation"
    else:
        raise UserError("anomaly=true", f"{source} is no run, so good parts are not known", "name some: normal=FOLDER")
    rows = store.indices(split)
    if settings.good is not None and len(store.classes) > 1:
        if settings.good not in store.classes:
            what = f"the images of good parts have classes {', '.join(store.classes[:5])}, and none of this name"
            raise UserError(f"good={settings.good}", what, "name good parts alone: normal=FOLDER")
        rows = rows[np.asarray(store.labels[rows]) == store.classes.index(settings.good)]
    return store.batch(rows[spread(len(rows), most)])


def image_shape(model: Any) -> tuple[int, int, int]:
    """(C, H, W) that images are fitted to: as the probe's were, or the model's own; what a latent model encodes."""
    from ..denoiser import Denoiser
    from ..generate.sample import image_shape as of_denoiser

    return of_denoiser(model) if isinstance(model, Denoiser) else tuple(model.shape)


def data_of(
    source: str,
    images: str,
    shape: tuple[int, int, int],
    settings: PredictSettings,
    fitted: dict[str, str] | None = None,
) -> DataSettings:
    """How new images become the model's: fitted as its training images were, or as `fitted` says."""
    from ..run import Run
    from ..settings.data import DataSettings

    c, h, w = shape
    how = {"size": (h, w), "channels": c, "on_bad_image": settings.on_bad_image}
    home = home_of(source)
    if (home / "settings.yaml").is_file():
        trained = Run.open(home).settings().data
        how |= {"fit": trained.fit, "background": trained.background}
    how |= fitted or {}
    return DataSettings.model_validate({"source": images, **how})


def default_path(source: str, images: str, settings: PredictSettings) -> Path:
    name = Path(images.rstrip("/")).stem or "images"
    return home_of(source) / "predictions" / f"{name}-{settings_hash(settings)[:8]}.csv"
