"""`twofold train PRESET data=SOURCE [key=value ...]`: train a denoiser or a classifier, or continue."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..settings.data import one_choice
from ..settings.every import has_epochs
from ..settings.presets import open_preset
from ..settings.presets import preset_listing as more_help  # noqa: F401 (the end of --help)
from ..settings.resolve import from_yaml, parse_assignments, resolve, settings_hash, to_yaml
from ..settings.train import TrainSettings
from .show import Progress, duration, metrics_line, say, training


def settings_model() -> type[TrainSettings]:
    return TrainSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", help="a preset's name, a YAML file, or a run folder to repeat")


def run(args: argparse.Namespace) -> int:
    settings, name = resolved(args.preset, args.assignments)
    out = Path(args.out or f"runs/{name}-{settings_hash(settings)}")
    if args.dry_run:
        return dry_run(settings, args.device, out)
    first = is_first()
    result = train_run(settings, out, args.device, args.quiet or not first, command_line())
    if first:
        print_result(out, result, settings)
    return 0


def resolved(preset: str, assignments: list[str]) -> tuple[TrainSettings, str]:
    """Settings from a preset and key=value words, and the preset's short name."""
    opened, given = open_preset(preset), parse_assignments(assignments)
    if isinstance(given.get("data"), dict):
        given["data"] = one_choice(given["data"])
    layers = [*opened.layers, ("command line", given)]
    source = next((layer["init_from"] for _, layer in reversed(layers) if layer.get("init_from")), None)
    if source is not None and not any("data" in layer for _, layer in opened.layers):
        layers.insert(0, (f"data of {source}", {"data": data_of(str(source), given)}))
    settings, _ = resolve(TrainSettings, layers)
    return settings, opened.name


def data_of(source: str, given: dict[str, Any]) -> dict[str, Any]:
    """What the run that `init_from` names was trained on; where other data is given, only how images become its size.

    {} for what is no run here.
    """
    for place in (source, source.rpartition("@")[0]):
        file = Path(place) / "settings.yaml"
        if place and file.is_file():
            data = from_yaml(TrainSettings, file).data.model_dump(mode="json", exclude_defaults=True)
            named = given.get("data") or {}
            other = not isinstance(named, dict) or {"", "source"} & named.keys()
            return {name: data[name] for name in ("size", "fit", "channels") if name in data} if other else data
    return {}


def command_line() -> str:
    return shlex.join(["twofold", *sys.argv[1:]])


def train_run(
    settings: TrainSettings, out: Path, device: str | None, quiet: bool, command: str, title: str = "training"
) -> dict[str, Any]:
    """Trains with a live display; previews, TensorBoard events and the report are written beside it."""
    say("loading torch ...", quiet)
    import torch  # noqa: F401 (said in two parts, so that nothing is silent for long)

    say("opening the data ...", quiet)
    from ..learn import train

    first = is_first()
    with Progress("packing the data", quiet) as packing, training(title, quiet) as show:

        def shown(event: Any) -> None:
            packing.close()  # one bar at a time
            show(event)

        looks = _with_pictures(shown, out, settings) if first else shown
        result = train(settings, out, device, looks, packing, command)
    if first and not (out / "report.html").exists():
        write_page(out)
    return result


def is_first() -> bool:
    """Whether this is the only process, or the first of a torchrun: the one that speaks and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def write_page(out: Path) -> None:
    """The report of a finished run, from its previews; `twofold evaluate` adds the metrics."""
    from ..data import open_store
    from ..denoiser import Denoiser
    from ..report.build import report_run
    from ..run import Run, load

    run = Run.open(out)
    model = load(out)
    report_run(run, open_store(run.settings().data), model if isinstance(model, Denoiser) else None)


def _with_pictures(show: Any, out: Path, settings: TrainSettings) -> Any:
    """Also draws previews as PNG and, if asked for, writes TensorBoard events."""
    from ..learn.events import Logged, Previewed

    writer: Any = None
    if settings.train.tensorboard:
        writer_class = tensorboard_writer()

    def both(event: Any) -> None:
        nonlocal writer
        show(event)
        if settings.train.tensorboard and writer is None and (out / "settings.yaml").exists():
            # not before the run owns its folder; what a killed run wrote after its last state is replaced
            seen = getattr(event, "n_images", 0)
            writer = writer_class(str(out / "tensorboard"), purge_step=seen)
        if isinstance(event, Previewed):
            from ..files import atomic_bytes
            from ..report.grids import image_grid

            kind = "" if event.averaged else "-raw"
            path = out / "figures" / f"preview-{event.n_images:012d}{kind}.png"
            path.parent.mkdir(exist_ok=True)
            atomic_bytes(path, image_grid(event.images.numpy(), min(8, len(event.images))))
        if writer is not None and isinstance(event, Logged):
            for key, value in event.row.items():
                if key not in ("kind", "n_images") and value is not None:
                    writer.add_scalar(f"{event.row['kind']}/{key}", value, event.row["n_images"])

    return both


def tensorboard_writer() -> Any:
    """TensorBoard's SummaryWriter. Raises `UserError` where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        hint = "pip install 'twofold[tensorboard]', or leave it false"
        raise UserError("train.tensorboard=true", "TensorBoard is not installed", hint) from None
    return SummaryWriter


def dry_run(settings: TrainSettings, device: str | None, out: Path) -> int:
    """Prints what would be trained, how large it is and how long it would take."""
    say("estimating ...")
    import torch

    from ..data import open_store
    from ..learn.classes import class_names
    from ..learn.estimate import estimate, measure_flops_per_second
    from ..learn.room import advice
    from ..learn.training import complete
    from ..run import Run, run_codec

    data = settings.data
    starts = settings.init_from is not None or settings.resume_from is not None or settings.lora is not None
    known = settings.network.classes if settings.objective.kind != "joint" else None
    count = None
    whole = settings.objective.kind in ("distill", "kd", "segmentation", "landmarks")  # ask more of the data
    whole = whole or has_epochs(settings.train)
    if data.size and data.channels and known is not None and not starts and not whole:
        shape: tuple[int, int, int] = (data.channels, *data.size)
        classes = [""] * known
        codec = run_codec(Run(out), settings.codec, shape)
    else:
        store = open_store(data)
        shape, classes, count = store.shape, class_names(settings, store), len(store.indices("train"))
        codec = run_codec(Run(out), settings.codec, shape)
        settings = complete(settings, store, Run(out), codec)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    x0_shape = shape if codec is None else codec.shape_of(shape)
    speed = measure_flops_per_second(chosen)
    found = estimate(settings, x0_shape, classes, flops_per_second=speed, codec=codec, images=count, device=chosen)
    print(to_yaml(settings))
    print(f"images      {shape[0]} x {shape[1]} x {shape[2]}, {len(classes)} classes")
    if codec is not None:
        print("latents     " + " x ".join(map(str, x0_shape)))
    some = f", {found.trained:,} trained" if found.trained != found.parameters else ""
    print(f"parameters  {found.parameters:,}{some}")
    print(f"memory      about {found.memory / 2**30:.2f} GiB (weights, optimiser, average, activations)")
    if found.needs is not None and (line := advice(found.needs, chosen)):
        print(f"too small   {line}")
    if found.kept:
        many = f", {found.kept * count / 2**20:,.1f} MiB for {count:,}" if count else ""
        print(f"disk        {found.kept / 2**10:.3g} KiB of latents for each training image{many}")
    print(f"compute     {found.flops / 1e15:.3g} PFLOP, about {duration(found.seconds)} on this {chosen.type} in fp32")
    return 0


def print_result(out: Path, result: dict[str, Any], settings: TrainSettings) -> None:
    """The result of a finished run, and what to do next."""
    print(f"{out}: {result['n_images']:,} images at {result['images_per_second']:,.0f} img/s")
    print("  " + metrics_line(result["metrics"]))
    print(f"  report: {out / 'report.html'}")
    objective = settings.objective
    if objective.kind == "autoencoder":
        print(f"  next: twofold train latent-fashion-mini data={settings.data.source} codec={out}")
        return
    if getattr(settings.network, "low_factor", None):
        print(f"  next: twofold upscale {out} IMAGES    (without IMAGES: measured on held-out images)")
        return
    generates = getattr(objective, "denoise", objective.kind in ("denoising", "joint"))
    print("  next: " + (f"twofold sample {out}    " if generates else "") + f"twofold evaluate {out}")
