"""The FreeMatch objective: few labels, and the classifier's own answers about all other images, where they are sure.

    loss = mean over labelled images of CE(f(weak), label)
         + weight * mean over the batch of 1[max q >= tau_k] CE(f(strong), k),     q = softmax f(weak), k = argmax q

q is without gradient and f is asked about all three at once, so that batch norms see them together. The threshold is
learned from running means, which begin at 1 / C for C classes and decay by m = 0.999 a step:

    tau <- m tau + (1 - m) mean(max q),    p <- m p + (1 - m) mean(q),    tau_k = tau p_k / max p

    fairness (off as in DPT)   sum_k a_k log b_k,  a ~ p / h,  b ~ mean of sure f(strong) / their histogram

a and b sum to one; h is the running histogram of answers. Wang et al. 2023 (FreeMatch); a fixed tau is Sohn et al. 2020
(FixMatch). Images of a step are held against the means of the steps before it, not of this one too: so thresholds do
not depend on the parts and processes that share a step, and one that was not taken leaves no trace in them. Batch norms
see one part at a time, as in any other run.
"""

from __future__ import annotations

import torch
from accelerate.utils import gather_object
from torch import Tensor, distributed
from torch.nn import functional

from ...data.strong import STRONG_DRAWS, WEAK_DRAWS, strong, weak
from ...errors import UserError
from ...recognize.classifier import NetworkClassifier
from ...settings.freematch import FreeMatch
from ..batches import U_AUGMENT, Batch
from .base import Objective
from .supervised import right_answers

U_WEAK = U_AUGMENT  # first columns of a batch's uniforms: of its weak view, of what the strong one is made with,
U_STRONG = U_WEAK + WEAK_DRAWS
U_AFTER = U_STRONG + STRONG_DRAWS  # and of where that is moved afterwards


class FreeMatchObjective(Objective):
    """forward(batch) -> loss per image (B,); of held-out images the cross-entropy, 0 where there is no label.

    A batch's own labels are not looked at in training, those of `Batch.labelled` are.
    """

    classifies = True
    needs_noise = False
    learns_levels = True

    def __init__(self, classifier: NetworkClassifier, settings: FreeMatch, seed: int = 0) -> None:
        super().__init__()
        self.classifier, self.settings = classifier, settings
        self.network = classifier.network
        self.uniforms = U_AFTER + WEAK_DRAWS
        classes, channels = len(classifier.class_names), classifier.shape[0]
        if settings.fill is not None and len(settings.fill) != channels:
            what = f"has {len(settings.fill)} levels for images of {channels} channels"
            raise UserError(f"objective.fill={settings.fill}", what, "give one for each, or null")
        if settings.shift >= min(classifier.shape[1:]):
            size = "x".join(map(str, classifier.shape[1:]))
            raise UserError(f"objective.shift={settings.shift}", f"images have {size} pixels", "give less")
        self.tau = torch.full((1,), 1 / classes, dtype=torch.float64)
        self.shares = torch.full((classes,), 1 / classes, dtype=torch.float64)  # p
        self.answered = torch.full((classes,), 1 / classes, dtype=torch.float64)  # h
        self._answers: list[Tensor] = []  # of this step
        self._each, self._weight = 1.0, 0.0

    def begin(self, start: int, label: Tensor) -> None:
        """Finds the factor on a labelled image's loss for which the batch's mean holds the mean over labelled ones."""
        self._answers.clear()
        self._each = len(label) / max(self.asked(label), 1)
        self._weight = self.settings.unlabelled_weight if start >= self.settings.weight_from_images else 0.0

    def counted(self, label: Tensor) -> int:
        return len(label) if self.training else self.asked(label)

    def asked(self, label: Tensor) -> int:
        return int((label >= 0).sum())

    def correct(self, batch: Batch) -> float:
        return right_answers(self._logits(batch.images), batch.label, multi_label=False)

    def forward(self, batch: Batch) -> Tensor:
        if not self.training:
            return functional.cross_entropy(self._logits(batch.images), batch.label, ignore_index=-1, reduction="none")
        assert batch.labelled is not None
        s, named = self.settings, batch.labelled
        at = (named.label >= 0).nonzero()[:, 0]
        told = weak(named.images[at], named.uniforms[at.cpu(), U_WEAK:U_STRONG], s.shift, s.flip)
        plain = weak(batch.images, batch.uniforms[:, U_WEAK:U_STRONG], s.shift, s.flip)
        changed = strong(batch.images, batch.uniforms[:, U_STRONG:U_AFTER], s.fill)
        changed = weak(changed, batch.uniforms[:, U_AFTER:], s.shift, s.flip)
        logits = self._logits(torch.cat([told, plain, changed]))
        labelled, weak_logits, strong_logits = logits.split([len(told), len(plain), len(changed)])
        loss = self._consistency(weak_logits.detach().softmax(1), strong_logits)
        each = functional.cross_entropy(labelled, named.label[at], reduction="none")
        return loss.index_add(0, at, self._each * each)

    def _consistency(self, q: Tensor, logits: Tensor) -> Tensor:
        """(B,): the weighted loss of unlabelled images: weak answers (B, C), logits of strong views (B, C)."""
        self._answers.append(q)
        sure, label = q.max(1)
        counts = sure >= self.thresholds().to(q)[label]
        loss = functional.cross_entropy(logits, label, reduction="none") * counts
        if self.settings.fairness and bool(counts.any()):
            fair = fairness(logits.softmax(1)[counts], self.shares.to(logits), self.answered.to(logits))
            loss = loss + self.settings.fairness * fair
        return self._weight * loss

    def thresholds(self) -> Tensor:
        """(C,) float64: the probability from which an answer counts, for each class."""
        s = self.settings
        if s.threshold == "fixed":
            return torch.full_like(self.shares, s.fixed_threshold)
        found = self.tau * self.shares / self.shares.max()
        return found if s.threshold_range is None else found.clamp(*s.threshold_range)

    def observe(self, start: int, losses: Tensor) -> None:
        """The running means take in the answers of the step; on all ranks alike."""
        world = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        mine = torch.cat(self._answers)[-(len(losses) // world) :].double()  # a part may have been tried before
        found = torch.stack([mine.max(1).values.sum().expand(mine.shape[1]), mine.sum(0), _histogram(mine)]).cpu()
        if world > 1:
            found = sum(gather_object([found]), torch.zeros_like(found))
        sure, shares, answered = found / len(losses)
        share = 1 - self.settings.threshold_decay
        self.tau.lerp_(sure[:1], share)
        self.shares.lerp_(shares, share)
        self.answered.lerp_(answered, share)

    def memory(self) -> dict[str, Tensor]:
        return {"tau": self.tau, "shares": self.shares, "answered": self.answered}

    def remember(self, memory: dict[str, Tensor]) -> None:
        for name, value in self.memory().items():
            value.copy_(memory[name])

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.classifier.codec.encode(images))
        return logits


def fairness(chances: Tensor, shares: Tensor, answered: Tensor) -> Tensor:
    """FreeMatch's fairness loss (), of the sure answers (n, C) about strong views; see above.

    shares, answered (C,): running means of weak answers, and of how often each class was one. A class that is never
    answered has no part in it.
    """
    histogram = _histogram(chances) / len(chances)
    expected = _normed(torch.where(answered > 0, shares / answered.clamp(min=1e-12), 0.0))
    found = _normed(torch.where(histogram > 0, chances.mean(0) / histogram.clamp(min=1e-12), 0.0))
    return (expected * (found + 1e-12).log()).sum()


def _histogram(chances: Tensor) -> Tensor:
    """(C,) how often each class is the likeliest of these answers (n, C)."""
    return torch.bincount(chances.argmax(1), minlength=chances.shape[1]).to(chances.dtype)


def _normed(values: Tensor) -> Tensor:
    return values / values.sum()
