"""The objective of distillation from a classifier: labels, and what a trained one says of the same views.

    loss = label_weight * mean over labelled images of CE(f(view), label)
         + mean over all images of the sum of losses against the teacher             (see `distilling.classifiers`)

The teacher may be a denoiser: RepFusion's variant of one stage. MixUp (Zhang et al. 2018) mixes views and labels; the
teacher sees the mixed view. Of held-out images it is the cross-entropy alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from ...data.affine import AFFINE_DRAWS, affine
from ...data.augment import shifted
from ...data.vary import MIX_DRAWS, mix
from ...recognize.classifier import NetworkClassifier
from ...settings.kd import KD
from ..batches import U_AUGMENT, Batch
from ..distilling.classifiers import ClassifierTeacher, DenoiserTeacher, Said, Terms, kd_teacher
from ..distilling.crd import CRD
from ..distilling.watch import watched
from .base import Objective
from .supervised import BLACK, right_answers


class KDObjective(Objective):
    """forward(batch) -> loss per image (B,).

    teacher: held beside, so that it is neither trained nor saved. helpers: regressors and embedders of the losses.
    """

    classifies = True
    needs_noise = False

    def __init__(self, classifier: NetworkClassifier, settings: KD, seed: int = 0) -> None:
        super().__init__()
        self.classifier, self.settings = classifier, settings
        self.network = classifier.network
        self._held = (kd_teacher(settings, classifier.class_names, classifier.shape),)
        terms = Terms(settings, self.teacher.layers, classifier.layers)
        self.helpers = nn.ModuleDict({"terms": terms})
        self._terms = (terms,)
        self.learns_levels = self._crd is not None
        self._u_mix = U_AUGMENT + (AFFINE_DRAWS if settings.affine else 2)  # two for its shift
        self.uniforms = self._u_mix + MIX_DRAWS + 1  # the last draws negatives
        self._each = 1.0
        self.to(next(classifier.network.parameters()).device)

    @property
    def teacher(self) -> ClassifierTeacher | DenoiserTeacher:
        return self._held[0]

    @property
    def _crd(self) -> CRD | None:
        return self._terms[0].crd

    def begin(self, start: int, label: Tensor) -> None:
        """Finds the factor on a labelled image's loss for which the batch's mean holds the mean over labelled ones."""
        self._each = len(label) / max(self.asked(label), 1)
        if self._crd is not None:
            self._crd.begin()

    def observe(self, start: int, losses: Tensor) -> None:
        world = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        if self._crd is not None:
            self._crd.observe(len(losses) // world)

    def counted(self, label: Tensor) -> int:
        return len(label) if self.training else self.asked(label)

    def asked(self, label: Tensor) -> int:
        return int((label >= 0).sum())

    def correct(self, batch: Batch) -> float:
        logits = self.classifier(self.classifier.codec.encode(batch.images))
        return right_answers(logits, batch.label, multi_label=False)

    def forward(self, batch: Batch) -> Tensor:
        x0 = self.classifier.codec.encode(batch.images)
        if not self.training:
            return functional.cross_entropy(self.classifier(x0), batch.label, ignore_index=-1, reduction="none")
        x0 = self._augmented(x0, batch.uniforms[:, U_AUGMENT : self._u_mix])
        target = self._target(batch.label)
        if self.settings.mixup:
            u = batch.uniforms[:, self._u_mix : self._u_mix + MIX_DRAWS]
            x0, target = mix(x0, target, u, self.settings.mixup, self.settings.mixup_probability)
        terms = self._terms[0]
        self.teacher.model.autocast = self.classifier.autocast
        taught = self.teacher(x0, terms.teacher_layers)
        said = Said(*watched(lambda: self.classifier(x0), self.classifier.layers, terms.student_layers))
        rows = torch.full_like(batch.label, -1) if batch.rows is None else batch.rows
        loss = terms(said, taught, rows, batch.label, batch.uniforms[:, -1])
        named = -(target * said.logits.log_softmax(1)).sum(1)
        return loss + self.settings.label_weight * self._each * named

    def _target(self, label: Tensor) -> Tensor:
        """(B, K) probabilities; all 0 without a label."""
        classes, s = len(self.classifier.class_names), self.settings.label_smoothing
        target = functional.one_hot(label.clamp(min=0), classes).float() * (1 - s) + s / classes
        return target * (label >= 0)[:, None]

    def _augmented(self, x0: Tensor, u: Tensor) -> Tensor:
        """Views (B, C, H, W), as supervised training makes them."""
        settings = self.settings
        if settings.affine:
            return affine(x0, u, settings.affine, settings.shift)
        if settings.shift:
            return shifted(x0, u, settings.shift, BLACK if settings.pad == "black" else None)
        return x0

    def memory(self) -> dict[str, Tensor]:
        return {} if self._crd is None else self._crd.memory()

    def remember(self, memory: dict[str, Tensor]) -> None:
        if self._crd is not None:
            self._crd.remember(memory)
