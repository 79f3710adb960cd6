"""`twofold export RUN [to=onnx|torchscript|exported|all] [--out FOLDER]`: a model as files that run without twofold."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.export import ExportSettings
from ..settings.resolve import parse_assignments, resolve
from .show import say

if TYPE_CHECKING:
    from torch import Tensor

OPTIONS = ("--out", "--quiet")
REAL = 5  # images of the run's data that files are checked with


def settings_model() -> type[ExportSettings]:
    return ExportSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", help="a run, or a .safetensors file, of what answers about images")


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(ExportSettings, [("command line", parse_assignments(args.assignments))])
    out = Path(args.out) if args.out else default_out(args.source, settings)
    manifest = export_run(args.source, settings, out, args.quiet)
    print(f"{out}: {', '.join(one['file'] for one in manifest['files'].values())} ({manifest['task']})")
    print_table(manifest)
    return 0


def default_out(source: str, settings: ExportSettings) -> Path:
    """A folder of its own in the run, or here for a model that is none."""
    home = Path(source) if (Path(source) / "settings.yaml").is_file() else Path()
    return home / "exports" / (settings.to if settings.at == "last" else f"{settings.to}-{settings.at}")


def export_run(source: str, settings: ExportSettings, out: Path, quiet: bool) -> dict[str, Any]:
    """Exports the model to `out`, checked with images of the run's own data where they are here."""
    say("loading torch ...", quiet)
    from ..run import load_to_use
    from ..run.export import export
    from ..run.export.folder import check_out
    from ..run.export.formats import chosen

    chosen(settings.to)  # raises for what is not installed, before anything is loaded
    check_out(out)
    model: Any = load_to_use(source, settings.at)
    images = real_images(source, model)
    return export(model, out, settings.to, source, images, settings.runs, lambda text: say(text, quiet))


def real_images(source: str, model: Any) -> Tensor | None:
    """Some images of the run's data, uint8 (N, C, H, W); None where they are not on this machine."""
    from ..data import open_images, stream
    from ..run import Run

    if not (Path(source) / "settings.yaml").is_file():
        return None
    data = Run.open(source).settings().data
    place = data.source.partition(":")[2] or data.source  # of camvid:FOLDER the folder
    if data.source != "digits" and not Path(place).expanduser().exists():
        return None  # nothing is downloaded for a check
    c, h, w = model.shape
    with contextlib.suppress(UserError, StopIteration):
        data = data.model_copy(update={"size": (h, w), "channels": c, "on_bad_image": "skip"})
        return next(stream(open_images(data), data, REAL)).images
    return None


def print_table(manifest: Mapping[str, Any]) -> None:
    """Size, difference and latency of each file, beside the model in PyTorch."""
    print(f"\n{'':12}{'MiB':>9}{'difference':>12}{'ms, 1 image':>13}{'ms, 16':>9}")
    eager = manifest["eager"]["latency_ms"]
    print(f"{'PyTorch':12}{'':>9}{'':>12}{eager['1']:>13.2f}{eager['16']:>9.2f}")
    for name, row in manifest["files"].items():
        apart = max(one["largest_difference"] for one in row["outputs"].values())
        times = row["latency_ms"]
        size = row["bytes"] / 2**20
        print(f"{name:12}{size:>9.2f}{apart:>12.1e}{times['1']:>13.2f}{times['16']:>9.2f}")
    checked = " and ".join(f"{count} {kind}" for kind, count in manifest["checked_with"].items())
    print(
        f"\nchecked with {checked} images; medians of {manifest['timed_calls']} calls, threads: {manifest['threads']}"
    )
