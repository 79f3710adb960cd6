"""The supervised objective: cross-entropy of a classifier on images, clean or noisy; label -1 is masked out.

    one label      CE(logits(x0 + sigma * noise, sigma), label)                         label (B,), -1 = none
    multi-label    mean over what is known of BCE(logits, label)                        label (B, K), -1 = unknown

With one label per image, multi-label asks a yes-or-no question about each class: the label's is 1, the others 0.

sigma is 0, a number, or drawn from the noise family's training distribution, the one a denoiser is trained with.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ... import noise as theory
from ...data.affine import AFFINE_DRAWS, affine
from ...data.augment import shifted
from ...recognize.classifier import NetworkClassifier
from ...settings.train import Supervised
from ..batches import U_AUGMENT, U_SIGMA, Batch
from .base import Objective

BLACK = -1.0  # in x0


class SupervisedObjective(Objective):
    """forward(batch) -> loss per image (B,), 0 where nothing is known of it."""

    classifies = True

    def __init__(self, classifier: NetworkClassifier, settings: Supervised, seed: int = 0) -> None:
        super().__init__()
        self.classifier = classifier
        self.network = classifier.network
        self.settings = settings
        self.needs_noise = settings.sigma != 0
        self.uniforms = U_AUGMENT + (AFFINE_DRAWS if settings.affine else 2)  # two for its shift

    def counted(self, label: Tensor) -> int:
        """Those of which something is known."""
        known = label >= 0
        return int((known.any(1) if label.ndim == 2 else known).sum())

    def correct(self, batch: Batch) -> float:
        return right_answers(self._logits(batch), batch.label, self.settings.multi_label)

    def forward(self, batch: Batch) -> Tensor:
        logits = self._logits(batch)
        smoothing = self.settings.label_smoothing if self.training else 0.0
        if self.settings.multi_label:
            return masked_bce(logits, attributes(batch.label, logits.shape[1]), smoothing)
        return functional.cross_entropy(
            logits, batch.label, ignore_index=-1, label_smoothing=smoothing, reduction="none"
        )

    def _logits(self, batch: Batch) -> Tensor:
        x0 = self.classifier.codec.encode(batch.images)
        if self.training:
            x0 = self._augmented(x0, batch.uniforms[:, U_AUGMENT:])
        if not self.needs_noise:
            return self.classifier(x0)
        sigma = self._sigma(batch)
        assert batch.noise is not None
        return self.classifier(theory.add(x0, batch.noise, sigma), sigma)

    def _augmented(self, x0: Tensor, u: Tensor) -> Tensor:
        """Images (B, C, H, W) as the classifier sees them in training."""
        settings = self.settings
        if settings.affine:
            return affine(x0, u, settings.affine, settings.shift)
        if settings.shift:
            return shifted(x0, u, settings.shift, BLACK if settings.pad == "black" else None)
        return x0

    def _sigma(self, batch: Batch) -> Tensor:
        """Noise level of each image, (B,) float64."""
        if self.settings.sigma == "training":
            assert self.classifier.family is not None
            return self.classifier.family.training_sigma(batch.uniforms[:, U_SIGMA])
        return torch.full((len(batch.images),), self.settings.sigma, dtype=torch.float64)


def right_answers(logits: Tensor, label: Tensor, multi_label: bool) -> float:
    """How many labels (B,) are those of the highest logits (B, K); multi-label: the sum over images of the share of
    their known questions that are answered rightly.
    """
    if not multi_label:
        return float((logits.argmax(1) == label).sum())
    label = attributes(label, logits.shape[1])
    known = label >= 0
    right = ((logits > 0) == (label > 0.5)) & known
    return float((right.sum(1) / known.sum(1).clamp(min=1)).sum())


def commoner_answers(label: Tensor) -> float:
    """What `right_answers` would be for giving, to each question, the answer that is commoner among these labels (B, K)
    in 0, 1 or -1 (unknown), whatever the image."""
    known = label >= 0
    yes = (label == 1).sum(0) * 2 > known.sum(0)
    return right_answers(torch.where(yes, 1.0, -1.0).expand(label.shape), label, multi_label=True)


def attributes(label: Tensor, classes: int) -> Tensor:
    """(B, K) labels in 0, 1 or -1 (unknown): as they are, or made of one label per image (B,), -1 = none is known."""
    if label.ndim == 2:
        return label
    one_hot = functional.one_hot(label.clamp(min=0), classes).float()
    return torch.where((label >= 0)[:, None], one_hot, -1.0)


def masked_bce(logits: Tensor, label: Tensor, smoothing: float = 0.0) -> Tensor:
    """(B,): binary cross-entropy, mean over the labels (B, K) in 0..1 that are known; 0 where none is. -1 = unknown."""
    known = (label >= 0).to(logits.dtype)
    target = label.clamp(min=0).to(logits.dtype) * (1 - smoothing) + smoothing / 2
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * known
    return losses.sum(1) / known.sum(1).clamp(min=1)
