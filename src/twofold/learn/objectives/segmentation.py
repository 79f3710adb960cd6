"""The segmentation objective: cross-entropy of every pixel whose class is known.

    loss of an image = sum over heads h of a_h / (H W) * sum over its known pixels of w_k CE(logits_h, k)

a_h is 1 for the network's answer and `auxiliary_weight` for auxiliary heads, w_k a factor on class k, and H x W all
pixels of the image: so every known pixel of a batch counts alike, whichever image it is in, and however the batch is
split. Published code (mmsegmentation, as RepFusion and BiSeNet use it) divides by all pixels likewise. An image
without a known pixel has the loss 0. Held-out images are seen whole, and their loss is of the network's answer alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...data import Store
from ...data.warp import WARP_DRAWS, warp
from ...errors import UserError
from ...measure.segmentation import VOID, confusion, segmentation_scores
from ...recognize.segmenter import NetworkSegmenter, overlaid
from ...settings.tasks import Segmentation
from ..batches import U_AUGMENT, Batch
from .base import Objective

ROWS_AT_ONCE = 64  # masks whose pixels are counted at a time


class SegmentationObjective(Objective):
    """forward(batch) -> loss per image (B,). `tally` is the confusion of held-out masks, and its scores mIoU, mAcc and
    aAcc over all of them."""

    classifies = False
    needs_noise = False
    belongings = ("mask",)

    def __init__(self, segmenter: NetworkSegmenter, settings: Segmentation, seed: int = 0) -> None:
        super().__init__()
        self.segmenter, self.settings = segmenter, settings
        self.network = segmenter.network
        self.uniforms = U_AUGMENT + WARP_DRAWS
        self.classes = len(segmenter.class_names)
        self.tallies = self.classes**2
        weights = settings.class_weights
        if isinstance(weights, str) and weights != "none":
            raise ValueError(f"class_weights={weights} is to be worked out from the data first, see `class_weights`")
        if not isinstance(weights, str) and len(weights) != self.classes:
            what = f"lists {len(weights)} factors for {self.classes} classes"
            raise UserError("objective.class_weights", what, "give one for each, in their order")
        self._weights = None if isinstance(weights, str) else torch.tensor(weights)

    @property
    def previews(self) -> bool:
        return True

    def forward(self, batch: Batch) -> Tensor:
        x0, mask = self.segmenter.codec.encode(batch.images), batch.mask
        assert mask is not None
        if not self.training:
            return pixel_loss(self.segmenter(x0), mask, self._weights)
        x0, warped, _ = warp(x0, batch.uniforms[:, U_AUGMENT:], self.settings.warp, mask=mask)
        answer, *auxiliary = (pixel_loss(logits, warped, self._weights) for logits in self.segmenter.every(x0))
        return answer + self.settings.auxiliary_weight * sum(auxiliary, torch.zeros_like(answer))

    def tally(self, batch: Batch) -> Tensor:
        assert batch.mask is not None
        found = confusion(self.segmenter.masks(batch.images), batch.mask, self.classes)
        return found.flatten().cpu().double()

    def scores(self, total: Tensor) -> dict[str, float]:
        return segmentation_scores(total.view(self.classes, self.classes))

    def pictures(self, batch: Batch) -> Tensor:
        """Each image under its true mask and beside it under the one that was found: 2N images."""
        assert batch.mask is not None
        both = [overlaid(batch.images, m, self.classes) for m in (batch.mask, self.segmenter.masks(batch.images))]
        return torch.stack(both, 1).flatten(0, 1).cpu()


def pixel_loss(logits: Tensor, mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """(B,): cross-entropy of logits (B, K, H, W) with masks (B, H, W), summed over known pixels, divided by all."""
    assert mask is not None
    weights = None if weights is None else weights.to(logits)
    losses = functional.cross_entropy(logits, mask.long(), weights, ignore_index=VOID, reduction="none")
    return losses.flatten(1).mean(1)


def class_weights(kind: str, store: Store, rows: np.ndarray, classes: int) -> tuple[float, ...]:
    """The factors that `class_weights` = sqrt_inverse or median means for the masks at these rows of the store.

    sqrt_inverse: w_k ~ 1 / sqrt(f_k), f_k the share of known pixels, scaled so that sum f_k w_k = 1.
    median: w_k = median(g) / g_k, g_k = pixels of k / known pixels of the images that have k (Eigen and Fergus 2015,
    section 6.3.2). A class that no mask has gets the largest factor of the others; it changes nothing.
    """
    assert store.masks is not None
    pixels, beside = np.zeros(classes), np.zeros(classes)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        for mask in store.masks[rows[start : start + ROWS_AT_ONCE]]:
            counts = np.bincount(mask[mask != VOID], minlength=classes)[:classes]
            pixels += counts
            beside += (counts > 0) * counts.sum()
    there = pixels > 0
    if not there.any():
        raise UserError(f"objective.class_weights={kind}", "no training mask has a known pixel", "use none")
    found = np.ones(classes)
    if kind == "median":
        share = pixels[there] / beside[there]
        found[there] = np.median(share) / share
    else:
        share = pixels[there] / pixels.sum()
        found[there] = share**-0.5 / np.sqrt(share).sum()
    found[~there] = found[there].max()
    return tuple(round(float(weight), 6) for weight in found)
