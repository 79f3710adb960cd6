"""`twofold edit RUN IMAGE to=CLASS`: what would have to change in images for them to be of another class."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, some
from ..settings.edit import EditSettings
from ..settings.resolve import parse_assignments, resolve
from ..settings.sample import GUIDES
from .edited import Folder, row_of, verdict
from .predict import data_of, image_shape
from .probe import prepare
from .results import alone_on, place_of
from .sample import guide_run
from .show import Progress, say
from .told import told_as
from .train import command_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..data import Streamed
    from ..denoiser import Denoiser
    from ..generate.edit import Edited, Recipe
    from ..generate.pull import Pull

OPTIONS = ("--out", "--device", "--quiet")
TRIALS = ((8, 3), (32, 1))  # of the zero-shot classifier that says whether labels have done their work


def settings_model() -> type[EditSettings]:
    return EditSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", help="a run of a joint model, or of a denoiser with guide=")
    parser.add_argument("images", metavar="IMAGE", help="an image, a folder, Parquet files, digits or a hub name")


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(EditSettings, [("command line", parse_assignments(args.assignments))])
    print(edit(args, settings))
    return 0


@dataclass(frozen=True)
class Editor:
    """Everything that edits a batch. target: (1,) or (1, K), the same for all images. judge: whose answers are told
    besides, in the order of the guide's classes; None: the guide's alone."""

    model: Denoiser
    recipe: Recipe
    target: Tensor
    judge: Any
    settings: EditSettings


def edit(args: argparse.Namespace, settings: EditSettings) -> str:
    """Edits all images into --out (default: `edits/` of the run); returns what to tell the user.

    A batch that is written is not computed again.
    """
    start, source, images, quiet = time.monotonic(), args.source, args.images, args.quiet
    say("loading torch ...", quiet)
    import torch  # noqa: F401 (said in two parts, so that nothing is silent for long)

    say("loading the model ...", quiet)
    from ..data import open_images, stream
    from ..hashing import weights_hash

    editor = editor_of(source, settings, alone_on(args.device, "edits are made"))
    data = data_of(source, images, image_shape(editor.model), settings)  # type: ignore[arg-type]
    with told_as(f"IMAGE {images}", f"data={images}"):
        opened = open_images(data)
    networks = {id(part): part for part in (editor.model, *editor.recipe.pull.models, editor.judge) if _weighs(part)}
    hashes = [weights_hash(part)[:8] for part in networks.values()]
    place, facts = place_of("edits", source, images, settings, opened.identity(), hashes)
    folder = Folder(Path(args.out) if args.out else place, facts, opened.classes(), settings, attributes_of(editor))
    total = min(opened.count() or 0, settings.n or opened.count() or 0) or None
    with Progress("editing", quiet) as progress:
        for part in stream(opened, data, settings.micro_batch):
            for one, reason in part.skipped:
                progress.line(f"left out: {one} ({reason})")
            part = folder.first(part)
            if part.ids:
                folder.add(part, folder.kept(part) or edited_rows(editor, part, folder))
            progress(folder.done, total)
            if folder.done == settings.n:
                break
    if not folder.done:
        raise UserError(images, "holds no readable image", "nothing was written")
    return folder.finish(command_line(), source, time.monotonic() - start)


def attributes_of(editor: Editor) -> list[str]:
    """The attributes that are asked about; none where the target is a class."""
    names, target = editor.recipe.pull.class_names, editor.target[0]
    return [] if target.ndim == 0 else [name for name, value in zip(names, target.tolist(), strict=True) if value >= 0]


def _weighs(part: Any) -> bool:
    return hasattr(part, "state_dict")


def editor_of(source: str, settings: EditSettings, device: torch.device) -> Editor:
    """The model, its guide and the judge, after everything that can be wrong with asking them has been checked."""
    from ..denoiser import Denoiser
    from ..generate.edit import recipe
    from ..generate.pull import kind_of
    from ..run import load_to_use

    model: Any = load_to_use(source, settings.at, device)
    if not isinstance(model, Denoiser):
        hint = "give the run of a denoiser, and this one as guide="
        raise UserError(source, "holds a classifier, which generates nothing", hint)
    prepare(model, settings.precision, device)
    guide: Any = settings.guide if settings.guide in GUIDES else guide_run(settings.guide, device)
    asked: Any = None
    if kind_of(model, guide) == "labels" and model.classes:
        from ..recognize.zero_shot import ZeroShotClassifier

        asked = ZeroShotClassifier(model, rounds=TRIALS)
    names = ("strength", "sigma", "scale", "steps", "confidence", "margin", "search")
    with told_as(f"guide={settings.guide}", "guide"):
        how = recipe(model, guide, asked=asked, **{name: getattr(settings, name) for name in names})
    target = target_of(settings.to, list(how.pull.class_names), how.pull.multi_label)
    judge = None
    if settings.judge:
        with told_as(f"judge={settings.judge}", settings.judge):
            judge = load_to_use(settings.judge, device=device)
    return Editor(model, how, target, in_order(judge, how.pull, image_shape(model), settings.judge), settings)  # type: ignore[arg-type]


def target_of(text: str, names: Sequence[str], multi_label: bool) -> Tensor:
    """(1,) int64, or (1, K) of attributes. Raises `UserError` listing what there is."""
    import torch

    if multi_label:
        from ..generate.targets import read_target

        return torch.tensor([read_target(text, names, f"to={text}")])
    if text not in names:
        raise UserError(f"to={text}", "no such class", f"the classes are {some(names, 30)}")
    return torch.tensor([list(names).index(text)])


class InOrder:
    """A classifier whose classes are asked for in another one's order."""

    def __init__(self, classifier: Any, names: Sequence[str]) -> None:
        self.classifier, self.class_names = classifier, list(names)
        self.order = [list(classifier.class_names).index(name) for name in names]

    def image_logits(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> (N, K)."""
        from ..generate.pull import answers

        return answers(self.classifier, images)[:, self.order]

    def state_dict(self) -> Any:
        return self.classifier.state_dict()


def in_order(judge: Any, pull: Pull, shape: tuple[int, ...], where: str | None) -> InOrder | None:
    """The judge, asked about the guide's classes. shape: (C, H, W) of the images. Raises `UserError` for one that knows
    other classes or other images."""
    if judge is None:
        return None
    names = pull.class_names
    if not hasattr(judge, "class_names") or not (hasattr(judge, "logits") or hasattr(judge, "image_logits")):
        raise UserError(f"judge={where}", "is no classifier", "give the run of one")
    missing = set(names) ^ set(judge.class_names)
    if missing:
        what = f"does not know the same classes ({', '.join(sorted(missing)[:3])})"
        raise UserError(f"judge={where}", what, f"it must know {some(list(names), 10)}")
    if bool(getattr(judge, "multi_label", False)) != pull.multi_label:
        what = "one of judge and guide names a single class, the other answers about each attribute"
        raise UserError(f"judge={where}", what, "give a judge of the guide's kind")
    if tuple(getattr(judge, "shape", shape)) != tuple(shape):
        its, needs = (" x ".join(map(str, s)) for s in (judge.shape, shape))
        raise UserError(f"judge={where}", f"takes images of {its}, these are {needs}", "give one of the same images")
    return InOrder(judge, names)


def edited_rows(editor: Editor, part: Streamed, folder: Folder) -> list[dict[str, Any]]:
    """Edits a batch, writes its pictures, and returns its rows of edits.csv."""
    from ..generate.edit import apply
    from ..generate.pull import answers
    from ..recognize.views import image_noise

    how, settings = editor.recipe, editor.settings
    names = list(how.pull.class_names)
    noise = image_noise(part.images, editor.model.shape, settings.seed) if settings.noise == "random" else None
    target = editor.target.expand(len(part.ids), *editor.target.shape[1:])
    found = apply(editor.model, how, part.images, target, noise, settings.micro_batch)
    judge = editor.judge
    judged = None if judge is None else (answers(judge, part.images), answers(judge, found.images))
    rows = []
    for i, name in enumerate(part.ids):
        given = {"id": name, "file": folder.stem(name), **folder.given(part.labels[i])}
        rows.append(given | row_of(names, found, judged, target, i))
        folder.pictures(rows[i]["file"], part.images[i].numpy(), found.images[i].numpy())
    write_figures(editor, part, found, rows, folder)
    return rows


def write_figures(editor: Editor, part: Streamed, found: Edited, rows: list[dict[str, Any]], folder: Folder) -> None:
    """Figures of the first images, with the probabilities along the steps by the judge or else by the guide."""
    from ..generate.edit import path
    from ..report.edits import Shown, edit_figure

    drawn, pull, judge = folder.figures_left(len(rows)), editor.recipe.pull, editor.judge
    if not drawn:
        return
    target = editor.target.expand(len(rows), *editor.target.shape[1:])
    p_target, p_original = path(found, target, judge or pull.asked)
    for i, row in enumerate(rows[:drawn]):
        shown = Shown(
            original=part.images[i].numpy(),
            edited=found.images[i].numpy(),
            before=folder.answer(row, "before"),
            after=folder.answer(row, "after"),
            target=editor.settings.to,
            original_class=row["label_before"],
            sigmas=found.step_sigmas[i].tolist(),
            p_target=p_target[i].tolist(),
            p_original=None if p_original is None else p_original[i].tolist(),
            kept=row["p_judge_after" if judge else "p_after"],
            rms=row["rms"],
            by="the judge" if judge else "the guide",
            verdict=verdict(row),
        )
        folder.figure(row["file"], edit_figure(shown))
