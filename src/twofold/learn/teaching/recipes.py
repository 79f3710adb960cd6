"""The training runs of a distillation, as ordinary `TrainSettings`: any of them could be trained by `twofold train`."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ...errors import UserError
from ...settings.data import DataSettings
from ...settings.selection import LABELLED, SelectionSettings
from ...settings.student import BackboneSettings, StudentSettings
from ...settings.teaching import FinetuneSettings, PretrainSettings, TeachingSettings
from ...settings.train import Supervised, TrainSettings

CHOICE = ("labels", "labels_per_class", "labels_seed", "annotated", "balance")  # what is said of what is known


def untold(data: DataSettings) -> DataSettings:
    """The same images without anybody's labels, masks or points, whatever a choice of them says."""
    plain = DataSettings(source=data.source)
    return data.model_copy(update={name: getattr(plain, name) for name in CHOICE})


def asks_labels(sigma: SelectionSettings) -> bool:
    """Whether labels reward a policy while the student is taught."""
    return getattr(sigma, "reward", None) in LABELLED


def pretraining(settings: TeachingSettings, backbone: BackboneSettings) -> TrainSettings:
    """The student imitates its teacher."""
    part = settings.pretrain
    assert isinstance(part, PretrainSettings)
    data = settings.pretrain_data or settings.data
    if not asks_labels(part.objective.sigma):
        data = untold(data)
    return _made(settings, part, part.objective, StudentSettings(backbone=backbone), data, "pretrain")


def task(
    settings: TeachingSettings,
    backbone: BackboneSettings,
    start: str | None,
    lr: float | None = None,
    n_images: int | None = None,
    taught: bool = True,
    freeze: bool = False,
) -> TrainSettings:
    """The student learns its task. start: the run whose backbone it begins with, None: from scratch. taught: false
    leaves out a teacher that is there in this part (of `kd`). freeze: the head alone is trained.
    """
    part = settings.finetune
    objective: Any = part.objective
    if objective.kind == "kd" and not taught:
        objective = Supervised(labelled_only=True, **{name: getattr(objective, name) for name in SHARED})
    network = StudentSettings(backbone=backbone, head=part.head, freeze=freeze)
    found = _made(settings, part, objective, network, settings.data, "finetune", lr, n_images)
    return found if start is None else found.model_copy(update={"init_from": start})


SHARED = ("label_smoothing", "shift", "pad", "affine")  # what the objectives of classifiers have in common


def _made(
    settings: TeachingSettings,
    part: PretrainSettings | FinetuneSettings,
    objective: Any,
    network: StudentSettings,
    data: DataSettings,
    where: str,
    lr: float | None = None,
    n_images: int | None = None,
) -> TrainSettings:
    update: dict[str, Any] = {"seed": part.train.seed + settings.seed}
    update |= {} if lr is None else {"lr": lr}
    if n_images is not None:  # the same schedule, stretched
        longer, loop = n_images / part.train.n_images, part.train
        update |= {"n_images": n_images, "warmup_images": round(loop.warmup_images * longer)}
        update |= {"step_images": tuple(round(at * longer) for at in loop.step_images)}
    try:
        return TrainSettings(
            data=data,
            network=network,
            objective=objective,
            train=part.train.model_copy(update=update),
            validation=part.validation,
        )
    except ValidationError as error:
        first = error.errors()[0]
        what, _, hint = str(first.get("ctx", {}).get("error", first["msg"])).partition("; ")
        raise UserError(where, what, hint) from None
