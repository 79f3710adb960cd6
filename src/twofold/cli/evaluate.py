"""`twofold evaluate RUN|FOLDER|FILE.npz [data=SOURCE ...]`: how good images are, or how right a classifier is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.evaluate import EvaluateSettings
from ..settings.resolve import parse_assignments, resolve, settings_hash
from .answered import judge, number, print_answers
from .compared import check_reference, compare, compare_to_file, save_statistics
from .generated import Generated, check_request, draw_samples, pixels_hash, read_images, settled
from .history import run_of, warn_of_training_images, with_earlier
from .likelihood import OF_LIKELIHOOD, measure_likelihood, prepare_likelihood, print_likelihood
from .located import locates
from .ood import Beside, prepare_beside, print_told_apart
from .packed import packed
from .placed import judge_places, print_places
from .show import say
from .yardstick import check_images, judge_of, named, prepare

if TYPE_CHECKING:
    import torch

    from ..data import Store
    from ..settings.data import DataSettings

OPTIONS = ("--out", "--device", "--quiet")
OF_GUIDE = ("guide", "guide_scale", "guide_interval")
# settings that mean nothing: where no samples are drawn; besides, where the answers of a classifier are measured
OF_SAMPLING = ("n", "seed", "sampler", "steps", "guidance", *OF_GUIDE, "precision", "micro_batch")
OF_ANSWERS = ("noise_levels", "noise_draws", "ood", "ood_images", *OF_LIKELIHOOD)  # of models alone
OF_POINTS = ("normaliser", "threshold")
OF_IMAGES = ("encoder", "weights", "metrics", "reference", "save_statistics", "classifier")


def settings_model() -> type[EvaluateSettings]:
    return EvaluateSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="RUN|FOLDER",
        nargs="?",
        help="a model, a folder of generated images, or an .npz of them; may be left out with save_statistics=",
    )


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(EvaluateSettings, [("command line", parse_assignments(args.assignments))])
    out = Path(args.out) if args.out else None
    check_places(settings, out)
    if settings.ood is None:
        refuse_given(settings, ["ood_images"], "no images of another kind are named")
    if args.source is None:
        return write_reference(settings, args.device, args.quiet)
    found, page = evaluate(args.source, settings, args.device, args.quiet, out)
    if found:  # in the first process
        print_table(found)
    if page is not None:
        print(f"report: {page}")
    return 0


def write_reference(settings: EvaluateSettings, device: str | None, quiet: bool) -> int:
    """The statistics of real images alone."""
    if settings.save_statistics is None or settings.data is None:
        what = "neither images nor a model are named"
        raise UserError("twofold evaluate", what, "name them, or give data=SOURCE and save_statistics=FILE.npz")
    if settings.reference is not None:
        raise UserError(
            f"reference={settings.reference}", "there is nothing to compare with it", "name a run or images"
        )
    refuse_given(settings, (*OF_SAMPLING, *OF_ANSWERS, "at"), "only the statistics of real images are written")
    say("loading torch ...", quiet)
    from ..learn.training import make_accelerator

    accelerator = make_accelerator(device)
    quiet = quiet or not accelerator.is_main_process
    store = packed(settings.data, quiet)
    classifier = judge_of(settings, store, accelerator.device)
    encoder = named(settings, store.shape, accelerator.device, classifier=classifier)
    about = save_statistics(store, settings, encoder, quiet)
    if about is not None:
        print(f"{settings.save_statistics}: {about['images']:,} images of {about['data']}, encoder {about['encoder']}")
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
    """The evaluation of a model or of images, as plain data, and the page it was added to, if any.

    Written to `out` (default: `evaluations` in the run or in the folder that `twofold sample` made) as <hash of its
    settings>-<hash of what was evaluated>.json, before the page is. frechet_target: see `report.verdict`. Processes of
    a torchrun share the work; the first one writes, the others return ({}, None).
    """
    say("loading torch ...", quiet)
    import torch  # noqa: F401 (said in two parts, so that nothing is silent for long)

    say("loading the model and the data ...", quiet)
    from ..denoiser import Denoiser, JointDenoiser
    from ..hashing import weights_hash
    from ..learn.training import make_accelerator
    from ..run import load_to_use
    from ..run.load import is_model

    path, accelerator = Path(source), make_accelerator(device)
    place, first = accelerator.device, accelerator.is_main_process
    quiet = quiet or not first
    # what is no folder of images and no .npz is a model, a hub name, or a clear error
    is_images = (path.is_dir() and not is_model(path)) or (path.suffix == ".npz" and path.is_file())
    if is_images:
        refuse_given(settings, (*OF_SAMPLING, "at"), f"{source} holds images that are made already")
        refuse_given(settings, OF_ANSWERS, f"{source} holds images, and no model that could answer")
    model: Any = None if is_images else load_to_use(source, settings.at, place)
    if settings.noise_levels and isinstance(model, Denoiser) and not isinstance(model, JointDenoiser):
        raise UserError("noise_levels", f"{source} is no classifier", "leave noise_levels out, or give one's run")
    given, store, beside = None, None, None
    counted = prepare_likelihood(source, model, settings, lambda: packed(data_of(path, settings), quiet))
    if not locates(model) or hasattr(model, "masks"):
        refuse_given(settings, OF_POINTS, f"{source} finds no key points")
    if locates(model):
        refuse_given(settings, (*OF_SAMPLING, *OF_IMAGES, *OF_ANSWERS), f"{source} says where things are in an image")
        store = packed(data_of(path, settings), quiet)
        found = judge_places(model, store, path, settings, quiet) if first else None
    elif model is not None and not isinstance(model, Denoiser):
        check_answers(model, source)
        what = f"{source} is a classifier: its answers are measured, no images"
        refuse_given(settings, (*OF_SAMPLING, *OF_IMAGES), what)
        store = packed(data_of(path, settings), quiet)
        beside = prepare_beside(model, store, settings, quiet)
        found = judge(model, store, settings, quiet) if first else None
    else:
        settings = settled(settings, model)
        beside = beside_images(path, model, settings, quiet)
        given, store, found = against(path, model, settings, place, quiet)
    bits = measure_likelihood(model, counted, settings, quiet) if counted else {}
    if found is None:
        return {}, None
    found |= bits
    if beside is not None:
        beside.add_to(found, settings, quiet)
    warn_of_training_images(found, path, store, settings, quiet)
    settings = settled(settings, model)  # of what is not sampled too: its name is what it always was
    name = weights_hash(model) if model is not None else pixels_hash(given)
    found |= {"source": {"path": source, "hash": name}, "settings": settings.model_dump(mode="json")}
    keep(found, path, (out or home_of(path) / "evaluations") / f"{settings_hash(settings)}-{name[:8]}", quiet)
    if model is None or store is None or locates(model) or not (path / "settings.yaml").is_file():
        return found, None
    return found, page_of(path, store, model, given, found, frechet_target, command)


def check_answers(model: Any, source: str) -> None:
    """Raises `UserError` for a model that names nothing."""
    if not getattr(model, "class_names", None):
        what = "holds a backbone without a head, whose features are no answers"
        raise UserError(source, what, f"train a head on it (init_from={source}), or write features: twofold predict")


def page_of(
    path: Path,
    store: Store,
    model: Any,
    given: Generated | None,
    found: dict[str, Any],
    frechet_target: float | None,
    command: str,
) -> Path:
    """The page of the run, made anew with what was found; of a classifier it shows answers and no images."""
    from ..report.build import report_run
    from ..run import Run

    found = with_earlier(found, path / "evaluations")
    if given is None:
        return report_run(Run.open(path), store, None, found={"answers": found, "ood": found.get("ood")})
    images, labels, names = given.images, given.labels, given.names
    return report_run(Run.open(path), store, model, images, labels, found, frechet_target, command, names)


def beside_images(path: Path, model: Any, settings: EvaluateSettings, quiet: bool) -> Beside | None:
    """What a denoiser is asked for besides its images, checked; None for a folder of images, or if it is nothing."""
    from ..denoiser import JointDenoiser

    if model is None or not (settings.ood or isinstance(model, JointDenoiser)):
        return None
    store = None
    try:
        store = packed(data_of(path, settings), quiet)
    except UserError:  # `against` says so where the images need data too
        if settings.ood is not None:
            raise
    return prepare_beside(model, store, settings, quiet)


def check_places(settings: EvaluateSettings, out: Path | None) -> None:
    """Raises `UserError` where results could not be written in the end, because a file is where a folder must be."""
    statistics = Path(settings.save_statistics).parent if settings.save_statistics else None
    for where, folder in (("--out", out), ("save_statistics", statistics)):
        there = next((place for place in (folder, *folder.parents) if place.exists()), None) if folder else None
        if there is not None and not there.is_dir():
            raise UserError(f"{where}: {there}", "is a file", "give a folder")


def refuse_given(settings: EvaluateSettings, fields: Sequence[str], what: str) -> None:
    """Raises `UserError` naming those of these settings that were given, whatever their value."""
    given = [name for name in fields if name in settings.model_fields_set]
    if given:
        raise UserError(", ".join(given), what, f"leave {given[0] if len(given) == 1 else 'them'} out")


def against(
    path: Path, model: Any, settings: EvaluateSettings, device: torch.device, quiet: bool
) -> tuple[Generated, Store | None, dict[str, Any] | None]:
    """The images, the real ones they were compared with if any were, and the result in the first process.

    Everything that can be wrong with the comparison is told before images are sampled.
    """
    from ..generate.produce import class_names
    from ..generate.sample import image_shape
    from ..measure.statfile import read_statistics

    file = read_statistics(settings.reference) if settings.reference else None
    if file is not None:
        check_reference(file, settings)
    given = None if model is not None else read_images(path)
    shape = image_shape(model) if given is None else tuple(given.images.shape[1:])
    names = class_names(model) if given is None else given.names if given.labels else ()
    if file is not None and settings.data is None:
        encoder = named(settings, shape, device, file)
        if given is None:
            check_request(model, settings)
            given = draw_samples(model, settings, device, quiet)
        return given, None, compare_to_file(given, file, encoder, settings, quiet)
    store = packed(data_of(path, settings), quiet)
    yardstick = prepare(store, settings, device, file)
    check_images(shape, names, yardstick, settings)
    if given is None:
        check_request(model, settings)
        given = draw_samples(model, settings, device, quiet)
    found = compare(given, yardstick, settings, quiet, file)
    if settings.save_statistics:
        save_statistics(store, settings, yardstick.encoder, quiet)
    return given, store, found


def keep(found: dict[str, Any], path: Path, base: Path, quiet: bool) -> None:
    """Writes <base>.json, a classifier's accuracy against noise as <base>.png, how far its confidence is right as
    <base>-reliability.png, and how other kinds of images are told apart as <base>-ood.png."""
    from ..files import atomic_bytes, atomic_json
    from ..report.answers import reliability_figure, strangeness_figure
    from ..report.recognition import noise_curves

    base.parent.mkdir(parents=True, exist_ok=True)
    atomic_json(base.with_suffix(".json"), found)
    answers = found.get("answers", found)
    for key, what, name, draw in (
        ("noise", "accuracy against noise", ".png", lambda rows: noise_curves({path.name: rows})),
        ("reliability", "confidence and accuracy", "-reliability.png", reliability_figure),
        ("ood", "images of another kind", "-ood.png", strangeness_figure),
    ):
        rows = found.get(key) if key == "ood" else answers.get(key)
        if rows:
            atomic_bytes(base.with_name(base.name + name), draw(rows))
            say(f"{what}: {base.with_name(base.name + name)}", quiet)


def data_of(path: Path, settings: EvaluateSettings) -> DataSettings:
    """The real images: those given, or those of the run that a model or a folder of samples belongs to."""
    if settings.data is not None:
        return settings.data
    run = run_of(path)
    if run is not None:
        return run.settings().data
    raise UserError("data", "not given, and the images come from no run that knows its data", "add data=SOURCE")


def home_of(path: Path) -> Path:
    """Where results belong: a run, or a folder of samples with its manifest; never among somebody's own images."""
    return path if any((path / name).is_file() for name in ("settings.yaml", "manifest.json")) else Path()


def print_table(found: dict[str, Any]) -> None:
    """The metrics, one a line: of images, of answers, and of telling other kinds of images apart."""
    if found.get("kind") in ("masks", "points"):
        print_places(found)
    elif "request" in found:
        print_images(found)
        if "answers" in found:
            print_answers(found["answers"], "answers")
    else:
        print_answers(found)
    if "ood" in found:
        print_told_apart(found["ood"])
    if "likelihood" in found:
        print_likelihood(found["likelihood"])


def print_images(found: dict[str, Any]) -> None:
    """Generated, real for comparison, and a fitted Gaussian's."""
    columns = ("samples", "real", "gaussian") if "held_out" in found else ("samples",)
    width = max(28, *(len(name) + 1 for name in found["metrics"]))
    print(f"{'':{width}}" + "".join(f"{name:>12}" for name in columns))
    for name, row in found["metrics"].items():
        values = [f"{number(row[c]):>12}" if c in row else f"{'':12}" for c in columns]
        print(f"{name:{width}}" + "".join(values))
    for key, where in (("frechet_to_split", "split"), ("frechet_to_reference", "file")):
        if key in found:
            whole, name = found[key], f"distance to {Path(found[key][where]).name}"
            print(f"{name:{width}}{number(whole['value']):>12}   (all {whole['images']:,} samples)")
    part = found.get("held_out", {"split": "", "images": 0})
    if part["split"] == "validation":
        print(f"held out: {part['images']} images of the validation part, for want of a test part")
    cost = found["request"]["samples"].get("relative_cost")
    if cost is not None:
        print(f"{'relative_cost':{width}}{number(cost):>12}   (of guidance: computation over that of unguided samples)")
    counts = found["images"]
    if "frechet" in counts:
        seen = (
            f"{counts['samples']:,} samples, {counts['real_train']:,} training and {counts['real_held_out']:,} held-out"
        )
        print(f"the columns compare {seen} images; frechet rows take {counts['frechet']:,} of each kind")
    for line in (found["note"], *found["notes"]):
        print(line)
