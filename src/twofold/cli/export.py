"""`twofold export RUN [to=onnx|torchscript|exported|all|diffusers|hub]`: a model as files that run without twofold, as
a folder for diffusers, or on a hub of models."""

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

OPTIONS = ("--out", "--dry-run", "--quiet")
OF_HUB = ("repo", "private", "diffusers")
OF_CARD = ("licence", "dataset")
REAL = 5  # images of the run's data that files are checked with


def settings_model() -> type[ExportSettings]:
    return ExportSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", help="a run, or a .safetensors file")


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(ExportSettings, [("command line", parse_assignments(args.assignments))])
    check_given(settings, args.dry_run)
    if settings.to == "hub":
        return to_hub(args.source, settings, Path(args.out) if args.out else None, args.dry_run, args.quiet)
    out = Path(args.out) if args.out else default_out(args.source, settings)
    if settings.to == "diffusers":
        return to_diffusers(args.source, settings, out, args.quiet)
    manifest = export_run(args.source, settings, out, args.quiet)
    print(f"{out}: {', '.join(one['file'] for one in manifest['files'].values())} ({manifest['task']})")
    print_table(manifest)
    return 0


def check_given(settings: ExportSettings, dry_run: bool) -> None:
    """Raises `UserError` for settings that mean nothing for this kind of export."""
    foreign = {
        "hub": ("runs",),
        "diffusers": ("runs", *OF_HUB),
    }.get(settings.to, (*OF_HUB, *OF_CARD))
    given = [name for name in foreign if name in settings.model_fields_set]
    if given:
        raise UserError(", ".join(given), f"means nothing with to={settings.to}", "leave it out")
    if dry_run and settings.to != "hub":
        raise UserError("--dry-run", f"is for to=hub, not to={settings.to}", "exports are local files: just do it")
    if settings.to == "hub" and settings.repo is None:
        raise UserError("to=hub", "no repository is named", "add repo=org/name")


def to_diffusers(source: str, settings: ExportSettings, out: Path, quiet: bool) -> int:
    """The denoiser as a folder in diffusers' layout, with a card."""
    say("loading torch ...", quiet)
    from ..denoiser import Denoiser
    from ..run import load_to_use
    from ..run.export.folder import check_out
    from ..run.shared import write_for_diffusers

    check_out(out)
    model: Any = load_to_use(source, settings.at)
    if not isinstance(model, Denoiser):
        raise UserError(source, "holds no diffusion model, and diffusers runs nothing else", "to=onnx exports it")
    say("writing ...", quiet)
    facts = write_for_diffusers(model, source, out, card_facts(name_of(source, out), settings))
    print(f"{out}: {', '.join(facts['parts'])}, for {facts['pipeline']}")
    if not facts["samples"]:
        print("that pipeline opens it; images take the loop in README.md")
    for note in facts["notes"]:
        print(f"note: {note}")
    return 0


def to_hub(source: str, settings: ExportSettings, out: Path | None, dry_run: bool, quiet: bool) -> int:
    """Uploads the run; with dry_run nothing leaves, and what would go is listed and, with --out, kept to be read."""
    say("loading torch ...", quiet)
    import tempfile

    from ..run.export.folder import check_out
    from ..run.hub import check_name, check_push, push
    from ..run.shared import stage

    repo = check_name(settings.repo or "")
    if out is not None:
        check_out(out)
    if not dry_run:
        say(f"as {check_push()} ...", quiet)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "staged"
        folder.mkdir()
        told = stage(source, folder, card_facts(repo, settings), settings.at, settings.diffusers)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        for file in files:
            print(f"{file.stat().st_size:>14,}  {file.relative_to(folder).as_posix()}")
        for one in told:
            print(f"note: {one}: a place on this machine is not uploaded")
        if settings.licence is None:
            print("note: no licence is given, so nobody else may use it: licence=mit, apache-2.0, cc-by-4.0 ...")
        if out is not None:
            keep(folder, out)
        if dry_run:
            print(f"nothing was uploaded; without --dry-run it goes to {repo}")
            return 0
        say("uploading ...", quiet)
        print(push(folder, repo, settings.private))
    print(f"to use it: twofold.load({repo!r})" + (", with your token" if settings.private else ""))
    return 0


def keep(folder: Path, out: Path) -> None:
    """A copy of what goes out, to be read."""
    import shutil

    from ..files import atomic_folder

    with atomic_folder(out) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)


def card_facts(name: str, settings: ExportSettings) -> Any:
    """What the user says of the model."""
    from ..run.card import Facts

    return Facts(name, settings.licence, settings.dataset)


def name_of(source: str, out: Path) -> str:
    """What a card calls the model: the name of the folder that was chosen for it, else that of its run."""
    return Path(source).resolve().name if out.parent.name == "exports" else out.resolve().name


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
