"""The joint objective: one network learns to denoise and to name what it sees (Deja et al. 2023, Joint Diffusion).

    loss = denoising loss + weight(images seen) * mean over labelled images of CE(head(taps), label)

The head reads the maps that the encoder hands to the decoder, at a noise level that it is told. Images for it are

    clean     x0, with an augmentation of its own, named by the smallest noise level
    noised    x0 + sigma * noise, as it is denoised
    both      one and the other, half of the weight each

and pass the encoder together with those that are denoised, once. An unlabelled image (-1) is denoised and not named:
it takes no part in the classification loss, its mean, or any statistics. Where labels are few, further labelled images
come with every batch for the head alone (`Batch.labelled`), so that it learns from all of them at an even pace while
the denoising loss sees each image as often as any other.

With `pseudo_labels` the head also learns from its own answers, for all images of the batch, whatever their label: what
it takes the clean image for is the label of the varied and the noised one. Either where it is sure (Sohn et al. 2020,
FixMatch) or always, the answer sharpened and images mixed (Berthelot et al. 2019, MixMatch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ... import noise as theory
from ...data.vary import MIX_DRAWS, VARY_DRAWS, mix, vary
from ...denoiser import JointDenoiser
from ...settings.train import Joint
from ..batches import U_SIGMA, Batch
from .denoising import DenoisingObjective, Noised
from .supervised import attributes, masked_bce, right_answers

TRUNK = ("embedding", "enc", "mid", "head")  # what a classifier alone has of a joint network


@dataclass(frozen=True)
class Answers:
    """target (n, K) in 0..1 and whether it is known, (n, K) 0 or 1. image (n,): the place in the batch of each."""

    target: Tensor
    known: Tensor
    image: Tensor


@dataclass(frozen=True)
class Question:
    """What the head is asked: images x at sigma (n,), or None where they are those at `rows` (n,) that are denoised.

    target, known, image: as in `Answers`. factor: on each one's loss.
    """

    x: Tensor | None
    sigma: Tensor
    target: Tensor
    known: Tensor
    image: Tensor
    factor: float = 0.0


class JointObjective(DenoisingObjective):
    """forward(batch) -> loss per image (B,); of held-out images the denoising loss alone, as a denoiser's.

    Without denoising (`settings.denoise`) the decoder is not trained, and there is no denoiser.
    """

    classifies = True

    def __init__(self, denoiser: JointDenoiser, settings: Joint, seed: int = 0) -> None:
        super().__init__(denoiser, settings, seed)
        self.joint, self.asks = denoiser, settings
        self._own = self.uniforms  # the first column of the classifier's uniforms
        self.further = VARY_DRAWS + MIX_DRAWS  # a denoiser of this seed sees the same images, noise and levels
        self.uniforms += self.further
        self.needs_noise = settings.denoise or settings.reads != "clean"
        self._weight, self._each = 0.0, 0.0
        if not settings.denoise:
            self.denoiser = None  # type: ignore[assignment]
            for name, module in denoiser.network.named_children():
                module.requires_grad_(name in TRUNK)

    def begin(self, start: int, label: Tensor) -> None:
        """Finds the factor on a labelled image's loss for which the batch's mean holds the mean over labelled ones."""
        self._weight = weight_at(self.asks, start)
        self._each = self._weight * self.counted(label) / max(self.asked(label), 1)

    def counted(self, label: Tensor) -> int:
        return len(label) if self.asks.denoise else self.asked(label)

    def asked(self, label: Tensor) -> int:
        return len(_known(label))

    def correct(self, batch: Batch) -> float:
        return right_answers(self._clean_logits(batch), batch.label, self.asks.multi_label)

    def forward(self, batch: Batch) -> Tensor:
        if not self.training:
            return super().forward(batch) if self.asks.denoise else self._held_out(batch)
        noised = self.noised(batch) if self.asks.denoise else None
        questions = self._questions(batch, noised) if self._weight else []
        output, logits = self._answers(noised, questions)
        loss = logits.new_zeros(len(batch.label)) if noised is None else self.loss(output, noised)
        loss = loss + 0 * logits.sum()  # processes that train together use the same weights, whoever has labels
        for q, part in zip(questions, logits.split([len(q.image) for q in questions]), strict=True):
            each = classification_loss(part, q.target, q.known, self.asks.multi_label)
            loss = loss.index_add(0, q.image, q.factor * each)
        return loss

    def _answers(self, noised: Noised | None, questions: list[Question]) -> tuple[Tensor, Tensor]:
        """F of the noised images and the logits of all questions, in one pass of the encoder."""
        further = [q for q in questions if q.x is not None]
        begin, rows = 0 if noised is None else len(noised.x), []
        for q in questions:
            if q.x is None:
                rows.append(q.image)
            else:
                rows.append(torch.arange(begin, begin + len(q.x), device=q.image.device))
                begin += len(q.x)
        seen: list[Any] = [noised, *further] if noised is not None else list(further) or [self._nothing()]
        x, sigma = torch.cat([s.x for s in seen]), torch.cat([s.sigma for s in seen])
        cond = {} if noised is None else _extended(noised.cond, len(x) - len(noised.x))
        read = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64, device=x.device)
        return self.joint.both(x, sigma, cond, 0 if noised is None else len(noised.x), read)

    def _nothing(self) -> Question:
        """No image at all: the network still runs."""
        device = next(self.network.parameters()).device
        none, count = torch.zeros(0, dtype=torch.float64), len(self.joint.class_names)
        nobody = torch.zeros(0, count, device=device)
        return Question(torch.zeros((0, *self.joint.shape), device=device), none, nobody, nobody, nobody[:, 0].long())

    def _questions(self, batch: Batch, noised: Noised | None) -> list[Question]:
        """What is asked about the images of a batch, or those that come for the head alone."""
        seen = batch if batch.labelled is None else batch.labelled
        at = _known(seen.label)
        target = attributes(seen.label[at], len(self.joint.class_names)).float()
        told = Answers(self._smooth(target.clamp(min=0)), (target >= 0).float(), at)
        questions = self._forms(seen, told, self._each, noised if batch.labelled is None else None, self.asks.mix)
        if self.asks.pseudo_labels != "none":
            every = self._pseudo_labels(batch)
            questions += self._forms(batch, every, self._weight * self.asks.pseudo_weight, noised, self.asks.mix)
        return questions

    def _forms(self, seen: Batch, told: Answers, factor: float, noised: Noised | None, share: float) -> list[Question]:
        """The clean and the noised form of these images, as `reads` says, sharing the factor between them.

        noised: the same images as they are denoised, of which the head can read too, unless what they are conditioned
        on would tell the answer. share: of images that are mixed.
        """
        x0 = self.joint.codec.encode(seen.images[told.image])
        uniforms = seen.uniforms[told.image.cpu()]
        sigma = self.joint.family.training_sigma(uniforms[:, U_SIGMA])
        each = factor / (2 if self.asks.reads == "both" else 1)
        found = []
        if self.asks.reads != "noised":
            x, target, known = self._varied(x0, uniforms[:, self._own :], told, share)
            found.append(Question(x, torch.zeros_like(sigma), target, known, told.image, each))
        if self.asks.reads != "clean":
            alone = noised is None or bool(self.joint.classes)
            further = theory.add(x0, seen.noise[told.image], sigma) if alone else None  # type: ignore[index]
            found.append(Question(further, sigma, told.target, told.known, told.image, each))
        return found

    def _varied(self, x0: Tensor, u: Tensor, told: Answers, share: float) -> tuple[Tensor, Tensor, Tensor]:
        """Clean images, varied and mixed. Of two that are mixed, a class counts as known where it is known of both."""
        x0 = vary(x0, u[:, :VARY_DRAWS], self.asks.vary, self.asks.vary_flip)
        if not share or not len(x0):
            return x0, told.target, told.known
        x0, both = mix(x0, torch.stack([told.target, told.known], 1), u[:, VARY_DRAWS:], probability=share)
        return x0, both[:, 0], (both[:, 1] > 1 - 1e-6).float()

    @torch.no_grad()
    def _pseudo_labels(self, batch: Batch) -> Answers:
        """What the head takes clean images for; their labels are not looked at."""
        head: Any = self.network.head
        head.eval()  # without its dropout, and without a trace in the published one's statistics
        logits = self._clean_logits(batch)
        head.train()
        chances = logits.sigmoid() if self.asks.multi_label else logits.softmax(1)
        if self.asks.pseudo_balanced:
            chances = balanced(chances)
        target, known = soft_labels(chances, self.asks.multi_label), torch.ones_like(chances)
        if self.asks.pseudo_labels == "sure":
            target, known = sure_labels(chances, self.asks.multi_label, self.asks.pseudo_threshold)
        return Answers(target, known, torch.arange(len(target), device=target.device))

    def _smooth(self, target: Tensor) -> Tensor:
        s = self.asks.label_smoothing
        return target * (1 - s) + s / (2 if self.asks.multi_label else target.shape[1])

    def _clean_logits(self, batch: Batch) -> Tensor:
        return self.joint.logits(self.joint.codec.encode(batch.images), 0.0)

    def _held_out(self, batch: Batch) -> Tensor:
        """Classification loss of clean images, 0 where nothing is known."""
        logits = self._clean_logits(batch)
        target = attributes(batch.label, logits.shape[1]).float()
        return classification_loss(logits, target.clamp(min=0), (target >= 0).float(), self.asks.multi_label)


def sure_labels(chances: Tensor, multi_label: bool, threshold: float) -> tuple[Tensor, Tensor]:
    """(target, known), both (n, K), of answers (n, K): the likeliest one counts where it is at least so likely."""
    if multi_label:
        return (chances > 0.5).float(), (torch.maximum(chances, 1 - chances) >= threshold).float()
    sure, label = chances.max(1, keepdim=True)
    return torch.zeros_like(chances).scatter_(1, label, 1.0), (sure >= threshold).float().expand_as(chances)


def soft_labels(chances: Tensor, multi_label: bool) -> Tensor:
    """Answers (n, K) made surer: squared, which is temperature 1/2 (Berthelot et al. 2019, MixMatch, eq. 7)."""
    squared = chances.square()
    return squared / (squared + (1 - chances).square() if multi_label else squared.sum(1, keepdim=True))


def balanced(chances: Tensor) -> Tensor:
    """Answers (n, K) to single questions as they would be if every class were as frequent in the batch as the others.

    Divided by their mean over the batch (Berthelot et al. 2020, ReMixMatch's distribution alignment, whose running mean
    is that of the batch here: nothing to keep, and the same in every process).
    """
    found = chances / chances.mean(0).clamp(min=torch.finfo(chances.dtype).tiny)
    return found / found.sum(1, keepdim=True)


def weight_at(settings: Joint, n_images: int) -> float:
    """The factor on the classification loss after so many images."""
    begin, end = settings.weight_from_images, settings.weight_until_images
    if n_images < begin or (end is not None and n_images >= end):
        return 0.0
    risen = (n_images - begin) / settings.weight_rampup_images if settings.weight_rampup_images else 1.0
    return settings.weight * min(1.0, risen)


def classification_loss(logits: Tensor, target: Tensor, known: Tensor, multi_label: bool) -> Tensor:
    """(n,): cross-entropy with targets (n, K) that are probabilities, or the mean binary one over known questions.

    known (n, K): 0 where a question has no answer; an image with one label knows them all, one without a label none.
    """
    if multi_label:
        return masked_bce(logits, torch.where(known > 0, target, -1.0))
    return -(target * functional.log_softmax(logits, 1)).sum(1) * known[:, 0]


def _known(label: Tensor) -> Tensor:
    """Places (n,) int64 of the images of which something is known."""
    known = label >= 0
    return (known.any(1) if known.ndim == 2 else known).nonzero()[:, 0]


def _extended(cond: dict[str, Tensor], more: int) -> dict[str, Tensor]:
    """Conditions with "none" for so many further images."""
    none = {"label": -1, "augment": 0}
    return {name: torch.cat([c, c.new_full((more, *c.shape[1:]), none[name])]) for name, c in cond.items()}
