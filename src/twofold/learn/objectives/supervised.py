"""The supervised objective: cross-entropy of a classifier on clean images; label -1 is masked out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...recognize.classifier import NetworkClassifier
from ...settings.train import Supervised
from ..batches import U_AUGMENT, Batch
from .base import Objective


class SupervisedObjective(Objective):
    """forward(batch) -> loss per image (B,), 0 where the label is -1."""

    needs_noise = False

    def __init__(self, classifier: NetworkClassifier, settings: Supervised) -> None:
        super().__init__()
        self.classifier = classifier
        self.network = classifier.network
        self.settings = settings
        self.uniforms = U_AUGMENT + 2  # two for its shift

    def counted(self, label: Tensor) -> int:
        """The labelled ones."""
        return int((label >= 0).sum())

    def correct(self, batch: Batch) -> int:
        logits = self.classifier(self.classifier.codec.encode(batch.images))
        return int((logits.argmax(1) == batch.label).sum())

    def forward(self, batch: Batch) -> Tensor:
        x0 = self.classifier.codec.encode(batch.images)
        if self.training and self.settings.shift:
            x0 = shifted(x0, batch.uniforms[:, U_AUGMENT:], self.settings.shift)
        smoothing = self.settings.label_smoothing if self.training else 0.0
        logits = self.classifier(x0)
        return functional.cross_entropy(
            logits, batch.label, ignore_index=-1, label_smoothing=smoothing, reduction="none"
        )


def shifted(x0: Tensor, uniforms: Tensor, most: int) -> Tensor:
    """Each image moved by -most..most whole pixels in both directions, its edge repeated. uniforms (B, 2)."""
    height, width = x0.shape[-2:]
    offset = (uniforms * (2 * most + 1)).long().clamp(0, 2 * most).to(x0.device)
    padded = functional.pad(x0, (most, most, most, most), mode="replicate")
    rows = offset[:, :1] + torch.arange(height, device=x0.device)
    columns = offset[:, 1:] + torch.arange(width, device=x0.device)
    images = torch.arange(len(x0), device=x0.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
