"""Generated images to be measured: drawn now, or read from a folder or an .npz; with what is known of their making."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, some
from ..settings.evaluate import EvaluateSettings
from .sample import guide_run, precision
from .show import Progress
from .told import told_as
from .yardstick import fewest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..data import Store
    from ..denoiser import Denoiser
    from ..generate.sample import Plan

STEPS = 20  # of samples that are measured, whatever the sampler: they are comparable then
UNTOLD = ("png", "npz", "columns")  # of a manifest: they change no image


@dataclass(frozen=True)
class Generated:
    """Generated images uint8 (N, C, H, W), the classes asked for (-1 = none), what the classes are called, the number
    format the network computed in and how the images were made, where that is known."""

    images: Tensor
    labels: list[int] | None
    names: Sequence[str] = ()
    precision: str = ""
    request: dict[str, Any] = field(default_factory=dict)


def pixels_hash(given: Generated | None) -> str:
    return hashlib.sha256(given.images.numpy().tobytes()).hexdigest() if given is not None else ""


def check_request(model: Denoiser, settings: EvaluateSettings) -> None:
    """Raises `UserError` for what cannot be asked of this model."""
    from ..generate.labels import of_guide
    from ..generate.sample import place

    if settings.guidance != 1 and not model.classes:
        raise UserError(f"guidance={settings.guidance:g}", "this model is unconditional", "leave guidance out")
    device = place(model)[0]
    guide = guide_run(settings.guide, device)
    made, names = planned(model, settings, guide), asked_names(model, settings, guide)
    if settings.classifier is None or not of_guide(model, made.guide) or not names:
        return
    from ..run import load_to_use

    where = f"classifier={settings.classifier}"
    with told_as(where, settings.classifier):
        known = list(getattr(load_to_use(settings.classifier, device=device), "class_names", ()))
    if names != known:
        what = f"knows {some(known)}, the guide asks for {some(names)}"
        raise UserError(where, what, "give a classifier of the same classes in the same order")


def settled(settings: EvaluateSettings, model: Any) -> EvaluateSettings:
    """With the sampler and its steps: those given, the model's usual ones, or 20."""
    from ..generate.usual import settled as usually

    settings = usually(settings, model)
    return settings.model_copy(update={"steps": settings.steps or STEPS})


def planned(model: Denoiser, settings: EvaluateSettings, guide: Any) -> Plan:
    """How samples are to be made. guide: the classifier that the settings name, if they name one."""
    from ..generate.sample import plan

    with told_as(f"guide={settings.guide}", "guide"):
        return plan(
            model,
            settings.sampler,
            settings.steps,
            settings.guidance,
            micro_batch=settings.micro_batch,
            guide=settings.guide if guide is None else guide,
            guide_scale=settings.guide_scale,
            guide_interval=settings.guide_interval,
        )


def asked_names(model: Denoiser, settings: EvaluateSettings, guide: Any) -> list[str]:
    """What the classes in turn, or the attributes, that samples are asked to be are called."""
    from ..generate.labels import class_names
    from ..settings.sample import GUIDES

    kind = None if settings.guide == GUIDES[0] else settings.guide
    return class_names(model, kind if guide is None else guide)


def draw_samples(model: Denoiser, settings: EvaluateSettings, device: torch.device, quiet: bool) -> Generated:
    """The model's samples. Processes of a torchrun share the batches; all get all images, the same as one makes."""
    from ..generate import draw
    from ..generate.labels import check_labels
    from ..learn.fastest import DTYPES
    from ..learn.validation import labels_for
    from ..measure import processes

    first = processes.is_first()
    chosen = processes.agreed(precision(model, settings.precision, device) if first else None)
    model.autocast = DTYPES[chosen]
    guide = guide_run(settings.guide, device)
    made, names = planned(model, settings, guide), asked_names(model, settings, guide)
    numbers = labels_for(range(settings.n), len(names))
    labels = check_labels(model, numbers, settings.n, settings.guidance, made.guide)
    with Progress("sampling", quiet) as progress:
        progress(0, settings.n)  # shown at once: the first batch may take a while

        def make(part: slice) -> Tensor:
            seeds = range(settings.seed + part.start, settings.seed + part.stop)
            images = draw(model, made, seeds, None if labels is None else labels[part])
            progress(part.stop, settings.n)
            return images

        images = processes.gathered(settings.n, settings.micro_batch, make)
    kept = str(model.autocast or "full").removeprefix("torch.")
    several = labels is not None and labels.ndim == 2  # a judge of one class has no word on attributes
    asked = None if several else numbers
    return Generated(images, asked, names, kept, request_of(model, settings, numbers, kept, made))


def request_of(model: Denoiser, settings: EvaluateSettings, labels: Any, kept: str, made: Plan) -> dict[str, Any]:
    """What a manifest would say of these samples, and what their guidance costs."""
    import numpy as np
    from torch import nn

    from ..generate.cost import relative_cost
    from ..generate.manifest import compact, plain
    from ..hashing import weights_hash

    numbers = np.full(settings.n, -1) if labels is None else np.asarray(labels)
    request = {
        "checkpoint": weights_hash(model),
        "images": settings.n,
        "shape": list(model.shape),
        "seeds": compact(np.arange(settings.seed, settings.seed + settings.n)),
        "labels": compact(numbers.astype(np.int64)),
        "sampler": made.sampler,
        "options": made.options,
        "steps": len(made.sigmas) - 1,
        "grid": made.grid,
        "sigma_max": float(made.sigmas[0]),
        "sigma_min": float(made.sigmas[-2]),
        "guidance": made.guidance,
        "clip": made.clip,
        "micro_batch": made.micro_batch,
        "precision": kept,
    }
    if made.guide is not None:
        by = made.guide.classifier
        request["guide"] = made.guide.request(weights_hash(by) if isinstance(by, nn.Module) else "")
    if made.guide is not None or made.guidance != 1:
        request["relative_cost"] = round(relative_cost(model, made), 3)
    return plain(request)


def read_images(path: Path) -> Generated:
    """The images of a folder that `twofold sample` made, with their labels, of any folder, or of an .npz.

    Raises `UserError` for a folder of samples that is not finished, a damaged .npz, and too few images.
    """
    from ..data import open_store
    from ..files import sha256
    from ..generate import manifest
    from ..settings.data import DataSettings

    made = None
    with contextlib.suppress(UserError):  # somebody else's manifest.json
        made = manifest.read(path) if path.is_dir() else None
    if made is not None and not made["complete"]:
        raise UserError(str(path), "its images are not all there yet", "repeat the `twofold sample` that began it")
    request = {k: v for k, v in made["request"].items() if k not in UNTOLD} if made is not None else {}
    if path.is_file():
        images, labels = read_npz(path, "give an .npz with arr_0 uint8 (N, H, W, C)")
        found = Generated(images, labels, request={"file": str(path), "sha256": sha256(path), "images": len(images)})
    elif made is not None and (path / "images.npz").is_file():
        images, labels = read_npz(path / "images.npz", "delete it and repeat the `twofold sample`")
        found = Generated(images, labels, request.get("classes", ()), request.get("precision", ""), request)
    else:
        store = open_store(DataSettings(source=str(path if made is None else path / "images")))
        folder = {"folder": str(path), "hash": store.content_hash, "images": len(store), "shape": list(store.shape)}
        labels, about = labels_of(store, path, request) if request else None, request or folder
        images, names = store.batch(store.indices("all")), request.get("classes", ())
        found = Generated(images, labels, names, request.get("precision", ""), about)
    if len(found.images) < fewest():
        many = f"only {len(found.images)} images"
        raise UserError(str(path), many, f"at least {fewest()}; hundreds mean something")
    return found


def labels_of(store: Store, path: Path, request: dict[str, Any]) -> list[int] | None:
    """The labels that a manifest says of the PNGs in `store`, -1 = none; None if it asked for no classes at all.

    Raises `UserError` for an image that the manifest does not speak of, and for a manifest that cannot be read.
    """
    from ..generate import manifest

    hint = "give its images/ to measure them without their classes"
    try:
        known = manifest.png_labels(request)
    except (KeyError, TypeError, ValueError):
        where = str(path / manifest.NAME)
        raise UserError(where, "does not say what the images were asked to be", hint) from None
    ids = [store.id(i) for i in range(len(store))]
    foreign = next((name for name in ids if name not in known), None)
    if foreign is not None:
        raise UserError(str(path / "images" / foreign), f"{manifest.NAME} knows of no such image", hint)
    labels = [known[name] for name in ids]
    if "attributes" in request:
        return None
    return labels if any(label >= 0 for label in labels) else None


def read_npz(path: Path, hint: str) -> tuple[Tensor, list[int] | None]:
    """Images uint8 (N, C, H, W) and labels (None if there are none) of an .npz as `twofold sample` and ADM write it."""
    import numpy as np
    import torch

    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["arr_0"]
            labels = file["arr_1"] if "arr_1" in file.files else np.full(len(images), -1)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(str(path), f"cannot be read ({reason})", hint) from None
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or labels.shape[:1] != images.shape[:1]
        or labels.ndim > 2
        or labels.dtype.kind not in "iu"
    ):
        raise UserError(str(path), f"holds {images.dtype} {images.shape}", "expected uint8 images (N, H, W, C), labels")
    tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    if labels.ndim == 2:  # attributes, of which a judge of one class has no word
        return tensor, None
    return tensor, [int(label) for label in labels] if bool((labels >= 0).any()) else None
