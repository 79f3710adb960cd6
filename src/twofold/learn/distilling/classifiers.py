"""A trained classifier as teacher, and everything a student may be held against of it.

soft     T^2 KL(softmax(teacher's logits / T) || softmax(student's / T))            (Hinton et al. 2015)
logits   mean squared difference of logits                                          (Ba and Caruana 2014)
hint, dense, attention, rkd, contrastive   on maps: see `losses`; FitNets' regressor maps the student to the teacher
crd, afd   see there
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...codec import PixelCodec
from ...errors import UserError, some
from ...recognize.classifier import JointClassifier, NetworkClassifier, answering
from ...run import load
from ...settings.kd import KD, KDLoss, LogitsLoss, SoftTargets
from ...taps import Layer, check_layers
from ..inherit import place_of
from .afd import AFD
from .crd import CRD
from .losses import Losses, pooled
from .teacher import Teacher
from .watch import watched

Pairs = tuple[list[str], list[str]]  # names of the teacher's layers, of the student's


@dataclass
class Said:
    """What a network says of a batch: logits (B, K), maps {layer: (B, D, h, w)}."""

    logits: Tensor
    maps: dict[str, Tensor]


class ClassifierTeacher:
    """teacher(x0, layers) -> Said, with the classes in the student's order; frozen, in eval mode.

    It is no module, so that what holds it neither trains nor saves it. Raises `UserError` for what is no classifier,
    sees other images, or names other classes.
    """

    def __init__(self, source: str, class_names: Sequence[str], shape: tuple[int, int, int]) -> None:
        where = f"objective.teacher={source}"
        model = answering(load(*place_of(source)))  # type: ignore[arg-type]
        if not isinstance(model, NetworkClassifier | JointClassifier):
            hint = "give that of one; a denoiser teaches with objective.kind=distill, or here with objective.sigma=0.1"
            raise UserError(where, "is no classifier of images", hint)
        if not isinstance(model.codec, PixelCodec):
            raise UserError(where, "works on latents, its student sees pixels", "give a classifier of pixels")
        if model.multi_label:
            raise UserError(where, "answers a yes-or-no question for each class", "give one that names a single class")
        if model.shape != tuple(shape):
            theirs, mine = ("x".join(map(str, size)) for size in (model.shape, shape))
            hint = f"set data.channels={model.shape[0]} and data.size=[{model.shape[1]},{model.shape[2]}]"
            raise UserError(where, f"sees images of {theirs}, the data has {mine}", hint)
        self.model: Any = model.eval().requires_grad_(False)
        self.order = self._order(where, class_names)

    def _order(self, where: str, class_names: Sequence[str]) -> Tensor | None:
        """Places of the student's classes among the teacher's; None where they are the same."""
        theirs = self.model.class_names
        missing = [name for name in class_names if name not in theirs]
        surplus = [name for name in theirs if name not in class_names]
        if missing or surplus:
            what = f"does not know {some(missing)}" if missing else f"names {some(surplus)}, which the data has not"
            raise UserError(where, what, "teacher and data must have the same classes")
        order = [theirs.index(name) for name in class_names]
        return None if order == list(range(len(order))) else torch.tensor(order)

    @property
    def layers(self) -> Mapping[str, Layer]:
        layers: Mapping[str, Layer] = self.model.layers
        return layers

    @torch.no_grad()
    def __call__(self, x0: Tensor, layers: Sequence[str]) -> Said:
        self.model.to(x0.device)
        logits, maps = watched(lambda: self.model.logits(x0, 0.0), self.layers, layers)
        return Said(logits if self.order is None else logits[:, self.order.to(logits.device)], maps)


class DenoiserTeacher:
    """The same of a denoiser, which has no logits: its maps of clean images at one noise level.

    layers: names, () for the one that `Teacher` takes. Raises `UserError` as that does, and for a level it has not.
    """

    def __init__(self, source: str, layers: Sequence[str], sigma: float, shape: tuple[int, int, int]) -> None:
        self.teacher, self.sigma = Teacher(source, layers, "clean", shape), sigma
        self.model: Any = self.teacher.denoiser
        low, high = self.model.sigma_range
        if not low <= sigma <= high:
            raise UserError(f"objective.sigma={sigma:g}", f"outside [{low:.4g}, {high:.4g}], the teacher's levels")

    @property
    def layers(self) -> Mapping[str, Layer]:
        return dict(zip(self.teacher.names, self.teacher.layers, strict=True))

    def __call__(self, x0: Tensor, layers: Sequence[str]) -> Said:
        self.model.to(x0.device)
        sigma = torch.full((len(x0),), self.sigma, dtype=torch.float64)
        maps = self.teacher.maps(x0, sigma, None)
        return Said(x0.new_zeros((len(x0), 0)), dict(zip(self.teacher.names, maps, strict=True)))


def kd_teacher(
    settings: KD, class_names: Sequence[str], shape: tuple[int, int, int]
) -> ClassifierTeacher | DenoiserTeacher:
    """The teacher that these settings name."""
    if settings.sigma is not None:
        return DenoiserTeacher(settings.teacher, settings.teacher_layers, settings.sigma, shape)
    return ClassifierTeacher(settings.teacher, class_names, shape)


class Terms(nn.Module):
    """The weighted losses of these settings: forward(student's Said, teacher's Said, ...) -> (B,).

    teacher, student: their layer tables. teacher_layers, student_layers: what must be read of each. Its parts are
    trained with the student, and not needed afterwards.
    """

    def __init__(self, settings: KD, teacher: Mapping[str, Layer], student: Mapping[str, Layer]) -> None:
        super().__init__()
        self.settings = settings.losses
        self.pairs = [layers_of(loss, settings, teacher, student) for loss in settings.losses]
        self.teacher_layers = _in_order(teacher, [name for theirs, _ in self.pairs for name in theirs])
        self.student_layers = _in_order(student, [name for _, mine in self.pairs for name in mine])
        self.parts = nn.ModuleList()
        for loss, (theirs, mine) in zip(settings.losses, self.pairs, strict=True):
            widths = [teacher[name].channels for name in theirs], [student[name].channels for name in mine]
            self.parts.append(_part(loss, *widths))

    @property
    def crd(self) -> CRD | None:
        """The one with a memory, None without it."""
        return next((part for part in self.parts if isinstance(part, CRD)), None)

    def forward(self, student: Said, teacher: Said, rows: Tensor, label: Tensor, u: Tensor) -> Tensor:
        """rows, label, u: (B,), as in `CRD`."""
        total = torch.zeros_like(student.logits[:, 0])
        for settings, (theirs, mine), part in zip(self.settings, self.pairs, self.parts, strict=True):
            if settings.kind == "soft":
                total = total + settings.weight * soft_targets(student.logits, teacher.logits, settings.temperature)
                continue
            if settings.kind == "logits":
                total = total + settings.weight * (student.logits - teacher.logits).square().mean(1)
                continue
            s, t = (
                [_single(said.maps[name]) for name in names] for said, names in ((student, mine), (teacher, theirs))
            )
            if isinstance(part, Losses):  # has its weight inside
                total = total + part(s, t)
            elif isinstance(part, CRD):
                total = total + settings.weight * part(pooled(s[0]), pooled(t[0]), rows, label, u)
            else:
                total = total + settings.weight * part(s, t)
        return total


def _part(loss: KDLoss, teacher: list[int], student: list[int]) -> nn.Module:
    """What one loss has to learn, of layers with these channels."""
    if isinstance(loss, SoftTargets | LogitsLoss):
        return nn.Identity()
    if loss.kind == "crd":
        return CRD(teacher[0], student[0], loss)
    if loss.kind == "afd":
        return AFD(teacher, student, loss.channels)
    return Losses(list(zip(teacher, student, strict=True)), [loss])


def layers_of(loss: KDLoss, settings: KD, teacher: Mapping[str, Layer], student: Mapping[str, Layer]) -> Pairs:
    """Which layers a loss is about: those of the settings; else the last, or the last of each size."""
    if loss.kind in ("soft", "logits"):
        return [], []
    if settings.teacher_layers:
        check_layers(settings.teacher_layers, teacher)
        check_layers(settings.student_layers, student)
        theirs, mine = list(settings.teacher_layers), list(settings.student_layers)
        return ([theirs[-1]], [mine[-1]]) if loss.kind == "crd" else (theirs, mine)
    theirs_at, mine_at = _last_of_each_size(teacher), _last_of_each_size(student)
    if loss.kind == "afd":
        return list(theirs_at.values()), list(mine_at.values())
    both = [stride for stride in mine_at if stride in theirs_at]
    if loss.kind in ("dense", "attention") and both:
        return [theirs_at[stride] for stride in both], [mine_at[stride] for stride in both]
    return [list(teacher)[-1]], [list(student)[-1]]


def _last_of_each_size(layers: Mapping[str, Layer]) -> dict[int, str]:
    return {layer.stride: name for name, layer in layers.items()}


def _in_order(layers: Mapping[str, Layer], names: Sequence[str]) -> list[str]:
    return [name for name in layers if name in set(names)]


def _single(maps: Tensor) -> Tensor:
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(B,) of logits (B, K): the sum over classes, so that their mean is what is called batchmean."""
    mine, theirs = ((logits / temperature).log_softmax(1) for logits in (student, teacher.detach()))
    return temperature**2 * (theirs.exp() * (theirs - mine)).sum(1)
