"""From checked JSON to what the models are asked for. What cannot be is refused here, before it waits in the queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..generate import inpaint
from ..generate.labels import check_labels, class_names, in_words
from ..generate.sample import Plan
from ..settings.serve import ServeSettings
from . import pictures
from .models import Served
from .reading import check_count
from .refused import Refused
from .schemas import MAX_SEED, Generate, Inpaint, Sampled
from .work import Making


def seeds_of(asked: Sampled, limits: ServeSettings) -> list[int]:
    """One seed per image. Raises `Refused`."""
    if asked.seeds is not None:
        if {"seed", "n"} & asked.model_fields_set:
            raise Refused(422, "seeds", "stands beside seed or n", "give seeds, or seed and n")
        check_count(len(asked.seeds), limits)
        return list(asked.seeds)
    check_count(asked.n, limits)
    if asked.seed + asked.n - 1 > MAX_SEED:
        what = f"the last of {asked.n} images would have a larger one than there are"
        raise Refused(422, f"seed={asked.seed}", what, f"seeds end at {MAX_SEED}")
    return list(range(asked.seed, asked.seed + asked.n))


def plan_of(asked: Sampled, model: Served, limits: ServeSettings) -> Plan:
    """How to sample. Raises `Refused` and `UserError`."""
    size = asked.size if isinstance(asked, Generate) else None
    usual = inpaint.SAMPLER if isinstance(asked, Inpaint) else None  # None: the model's own
    steps = asked.steps
    if steps is None and isinstance(asked, Inpaint) and asked.sampler in (None, usual):
        steps = inpaint.STEPS
    _check_guides(asked, model)
    most = limits.area * model.shape[1] * model.shape[2]
    if size is not None and size[0] * size[1] > most:
        what = f"has more than {most:,} pixels, {limits.area} times those of the model"
        raise Refused(422, f"size={size[0]}x{size[1]}", what, "ask for a smaller one")
    how: dict[str, Any] = {
        "sampler": asked.sampler or usual,
        "steps": steps,
        "guidance": float(asked.guidance),
        "guide": asked.guide,
        "guide_scale": None if asked.guide_scale is None else float(asked.guide_scale),
        "size": None if size is None else tuple(size),
    }
    if (steps or 0) > limits.steps:
        raise Refused(422, f"steps={steps}", f"more than {limits.steps}", "ask for fewer")
    found: Plan = model.plans(**how)
    count = inpaint.solver_steps(found) if isinstance(asked, Inpaint) else len(found.sigmas) - 1
    if count > limits.steps:
        raise Refused(422, f"sampler={found.sampler}", f"takes {count} steps", f"at most {limits.steps}")
    return found


def check_guide(guide: str | None, guides: Sequence[str]) -> None:
    """Raises `Refused` for a guide that the model has not."""
    if guide is not None and guide not in guides:
        hint = f"it has {' and '.join(guides)}" if guides else "joint models do; leave it out"
        raise Refused(422, f"guide={guide}", "this model has no such guide", hint)


def _check_guides(asked: Sampled, model: Served) -> None:
    """Raises `Refused` for a guide that the model has not, and for its scale where there is none."""
    check_guide(asked.guide, model.guides)
    if asked.guide is None and asked.guide_scale is not None:
        hint = "give guide= too; towards a label the scale is guidance="
        raise Refused(422, f"guide_scale={asked.guide_scale:g}", "there is no guide", hint)


def labels_of(asked: Sampled, model: Served, plan: Plan, n: int) -> Tensor | None:
    """One label per image, or attributes; None = none. A name that is a number is a name first. Raises `UserError`."""
    denoiser = model.denoiser
    assert denoiser is not None
    if not denoiser.classes and asked.guide is None and asked.label not in (None, -1):
        hint = " or ".join(["leave the label out", *(f"give guide={guide}" for guide in model.guides)])
        raise Refused(422, f"label={str(asked.label)[:40]}", "this model is unconditional", hint)
    names = class_names(denoiser, asked.guide)
    one = lambda label: names.index(label) if label in names else _number(label)  # noqa: E731
    label = [one(each) for each in asked.label] if isinstance(asked.label, list) else one(asked.label)
    return check_labels(denoiser, label, n, float(asked.guidance), plan.guide)


def _number(label: Any) -> Any:
    """ "7" where there is no class of this name. Whole numbers beyond what a label can be are told as they are."""
    if isinstance(label, str) and label.isdecimal() and len(label) <= 9:
        return int(label)
    if isinstance(label, int) and abs(label) > 2**31:
        raise Refused(422, f"label={str(label)[:40]}", "no such class", "`classes` of the model says which there are")
    return label


def making(
    name: str,
    model: Served,
    asked: Sampled,
    limits: ServeSettings,
    previews: bool,
    original: Tensor | None = None,
    mask: Tensor | None = None,
    strength: float = 0.0,
) -> Making:
    """Everything about images that are to be made. Raises `Refused` and `UserError`."""
    seeds = seeds_of(asked, limits)
    plan = plan_of(asked, model, limits)
    return Making(name, plan, seeds, labels_of(asked, model, plan, len(seeds)), original, mask, strength, previews)


def key_of(asked: Sampled, one: Making) -> tuple[Any, ...]:
    """Requests of equal keys are computed together: of one model, sampled alike, all with labels or all without."""
    size = tuple(asked.size) if isinstance(asked, Generate) and asked.size else None
    steps = len(one.plan.sigmas) - 1
    guide = (asked.guide, None if asked.guide_scale is None else float(asked.guide_scale))
    shape = None if one.labels is None else one.labels.ndim
    return ("generate", one.model, one.plan.sampler, steps, float(asked.guidance), *guide, size, shape)


def mask_of(content: bytes, size: tuple[int, int], limits: ServeSettings) -> np.ndarray:
    """bool (h, w) of the picture as it was sent, True where it is painted anew. size: (width, height) it must have.
    Raises `Refused`."""
    from ..data.decode import decode
    from ..data.transform import BadImage
    from ..settings.data import DataSettings

    found = pictures.header(content, "mask", limits.pixels)
    if found != size:
        by = [f"{w} x {h}" for w, h in (found, size)]
        raise Refused(422, "mask", f"is {by[0]} pixels, the picture {by[1]}", "give one of the picture's size")
    try:
        grey = decode(content, DataSettings(source="mask", channels=1, background="black"))
    except BadImage as error:
        raise Refused(422, "mask", str(error), "send a black-and-white PNG") from None
    return grey >= 128


def fitted_mask(mask: np.ndarray, model: Served) -> Tensor:
    """(H, W) bool, placed as the picture was: cropped or padded and scaled; what is half covered is painted anew."""
    import io

    from PIL import Image

    from ..data.decode import decode

    buffer = io.BytesIO()
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    how = model.how.model_copy(update={"channels": 1, "background": "black"})
    found = torch.from_numpy(np.array(decode(buffer.getvalue(), how)) >= 128)
    if not bool(found.any()):
        raise Refused(422, "mask", "nothing is to be painted anew", "make some of it white")
    return found


def named_labels(one: Making, model: Served, guide: str | None) -> Sequence[str | None]:
    """What each image was asked to be, in words."""
    assert model.denoiser is not None
    labels, names = in_words(one.labels, len(one.seeds), class_names(model.denoiser, guide))
    return [names[label] if label >= 0 else None for label in labels.tolist()]
