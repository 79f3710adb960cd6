"""Noise levels chosen by a policy pi(bin | image), which learns from rewards r: see `rewards`.

    policy        -log pi(b_i | x_i) (r_i - baseline_i)            b drawn from pi: REINFORCE (Williams 1992)
    expectation   -sum_b pi(b | x_i) r_ib                          the gradient that the former has on average
    both          - entropy weight * H(pi(. | x_i)), a weight that falls to 0

An image's feature at its level is judged by a task head, which learns beside (RepFusion, Yang and Wang 2023: a policy
of 1000 levels, no baseline, the student's optimiser). Terms about labels are means over labelled images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import UserError
from ...networks.policy import policy_network, task_head
from ...settings.selection import ExpectationSelection, PolicySelection
from .baselines import Running, everyones, first_of_mine, others_mean, summed
from .choice import Choice, Selection
from .rewards import infonce_reward, least_squares_reward, task_reward

SHOWN_DECAY = 0.99  # per step, of the mean probabilities that are shown


class Learned(Selection):
    """What both have: the policy, its task head, its entropy, and the mean of its probabilities."""

    def __init__(
        self,
        settings: PolicySelection | ExpectationSelection,
        sigmas: Tensor,
        shape: tuple[int, int, int],
        width: int,
        classes: int,
    ) -> None:
        super().__init__(sigmas)
        self.settings, self.classes, bins = settings, classes, len(sigmas)
        if settings.reward != "infonce" and classes < 2:
            what = "is found from labels, and there are none"
            raise UserError(
                f"objective.sigma.reward={settings.reward}", what, "use reward=infonce, or label some images"
            )
        self.policy = policy_network(settings.network, shape, bins)
        self.task_head = task_head(width, classes, settings.task_divisor) if settings.reward == "task" else None
        self.shown = Running(bins, SHOWN_DECAY)
        self._told: list[tuple[int, Tensor]] = []  # of this step's parts: images, what `observe` takes in
        self._each: float | None = None  # images of the step for each labelled one

    def pick(self, x0: Tensor, u: Tensor, seen: float) -> Choice:
        assert self.policy is not None and self.sigmas is not None
        logits: Tensor = self.policy(x0.to(next(self.policy.parameters()).dtype))
        log_probs = logits.float().log_softmax(1) if logits.dtype != torch.float64 else logits.log_softmax(1)
        up_to = log_probs.detach().cpu().double().exp().cumsum(1)
        place = u[:, :1].cpu() * up_to[:, -1:]
        bin = torch.searchsorted(up_to, place, right=True)[:, 0].clamp(max=len(self.sigmas) - 1)
        return Choice(self.sigmas[bin], bin, log_probs, images=x0)

    def probabilities(self) -> Tensor | None:
        if not bool(self.shown.known.all()):
            return super().probabilities()
        return self.shown.mean / self.shown.mean.sum()

    def entropy_weight(self, seen: float) -> float:
        """After so many images."""
        until = self.settings.entropy_until_images
        return self.settings.entropy * (1.0 if until is None else max(0.0, 1 - seen / until))

    def _entropy(self, log_probs: Tensor, seen: float) -> Tensor:
        """(B,) minus the weighted entropy."""
        return self.entropy_weight(seen) * (log_probs.exp() * log_probs).sum(1)

    def _rewards(self, z: Tensor, logits: Tensor | None, label: Tensor) -> Tensor:
        """(B,) of features (B, D) without gradient; logits (B, K): the task head's."""
        settings = self.settings
        if logits is not None:
            return task_reward(logits, label)
        if settings.reward == "infonce":
            return infonce_reward(z, settings.temperature)
        return least_squares_reward(z, label, self.classes, settings.ridge)

    def _known(self, label: Tensor) -> Tensor:
        """(B,) bool: which images have a reward."""
        return torch.ones_like(label, dtype=torch.bool) if self.settings.reward == "infonce" else label >= 0

    def _tell(self, log_probs: Tensor, *further: Tensor) -> None:
        """Keeps what `observe` takes in of a part of the step: sums over its images, as one row."""
        sums = [log_probs.detach().exp().sum(0), *further]
        self._told.append((len(log_probs), torch.cat([part.detach().cpu().double() for part in sums])))

    def _factor(self, known: Tensor) -> Tensor:
        """(B,) on what is found of images with a reward, so that the step's mean holds the mean over these; of a part
        that is by itself where nobody said how many the step has.
        """
        if self._each is None or self.settings.reward == "infonce":
            return len(known) / known.sum().clamp(min=1) * known
        return self._each * known

    def begin(self, labelled: float | None = None) -> None:
        self._told.clear()
        self._each = labelled

    def observe(self, count: int) -> None:
        found, images = torch.zeros(0), 0
        while self._told and images < count:  # from the last part on: earlier ones may be of an attempt that failed
            n, row = self._told.pop()
            found, images = (row if not images else found + row), images + n
        self._told.clear()
        if images:
            self._take_in(summed(torch.cat([found, torch.tensor([images], dtype=torch.float64)])))

    def _take_in(self, found: Tensor) -> None:
        """The sums of a step over all images and processes, their number last."""
        bins = self.shown.mean.shape[0]
        self.shown.take_in(found[:bins], found[-1].expand(bins))

    def memory(self) -> dict[str, Tensor]:
        return self.shown.memory("shown")

    def remember(self, memory: dict[str, Tensor]) -> None:
        self.shown.remember(memory, "shown")


class Expectation(Learned):
    """The exact expected reward, from the teacher's features at every level."""

    needs_all = True

    def losses(
        self,
        choice: Choice,
        z: Tensor,
        every: Tensor | None,
        label: Tensor,
        seen: float,
        student: Tensor | None = None,
    ) -> Tensor:
        assert choice.log_probs is not None and every is not None
        log_probs, every = choice.log_probs, every.detach().to(choice.log_probs.dtype)
        total, chances = self._entropy(log_probs, seen), log_probs.exp()
        known = self._known(label)
        scale = self._factor(known)
        logits = [None] * len(every)
        if self.task_head is not None:
            told = self.task_head(every.flatten(0, 1))
            repeated = label.repeat(len(every))
            each = functional.cross_entropy(told, repeated, ignore_index=-1, reduction="none")
            total = total + scale * (chances.detach() * each.view(len(every), -1).T).sum(1)
            logits = list(told.detach().view(*every.shape[:2], -1))
        reward = torch.stack([self._rewards(z, told, label) for z, told in zip(every, logits, strict=True)], 1)
        usual = (chances.detach() * reward).sum(1, keepdim=True)  # changes no gradient, keeps numbers small
        self._tell(log_probs)
        return total - scale * (chances * (reward - usual)).sum(1)


class Policy(Learned):
    """REINFORCE with a draw for each image."""

    settings: PolicySelection

    def __init__(
        self, settings: PolicySelection, sigmas: Tensor, shape: tuple[int, int, int], width: int, classes: int
    ) -> None:
        super().__init__(settings, sigmas, shape, width, classes)
        self.overall = Running(1, settings.baseline_decay)
        self.of_bins = Running(len(sigmas), settings.baseline_decay)
        self._before: tuple[Tensor, Tensor] | None = None  # images and bins of the whole last step, for `student`
        self._first = 0  # which of them is this process's first
        self._now: list[tuple[Tensor, Tensor]] = []  # of this step's parts

    def losses(
        self,
        choice: Choice,
        z: Tensor,
        every: Tensor | None,
        label: Tensor,
        seen: float,
        student: Tensor | None = None,
    ) -> Tensor:
        assert choice.log_probs is not None and choice.bin is not None
        log_probs, bin = choice.log_probs, choice.bin.to(choice.log_probs.device)
        total, z = self._entropy(log_probs, seen), z.detach().to(log_probs.dtype)
        if self.settings.reward == "student":
            return total + self._delayed(choice, label, student)
        known, logits = self._known(label), None
        scale = self._factor(known)
        if self.task_head is not None:
            told = self.task_head(z)
            each = functional.cross_entropy(told, label, ignore_index=-1, reduction="none")
            total, logits = total + scale * each, told.detach()
        reward = self._rewards(z, logits, label)
        taken = log_probs.gather(1, bin[:, None])[:, 0]
        self._told_of(log_probs, reward, known, bin)
        return total - scale * taken * (reward - self._baseline(reward, known, bin))

    def _baseline(self, reward: Tensor, known: Tensor, bin: Tensor) -> Tensor:
        """(B,); until there is a running mean, that of the batch. An image that is the only one with a label is held
        against the running mean, or else against itself: without that it would have no baseline at all.
        """
        kind, alone = self.settings.baseline, int(known.sum()) < 2
        if kind == "none":
            return torch.zeros_like(reward)
        if not bool(self.overall.known):
            return reward if alone else others_mean(reward, known)
        if kind == "batch" and not alone:
            return others_mean(reward, known)
        if kind == "batch" or kind == "running":
            return self.overall.mean.to(reward).expand_as(reward)
        means = torch.where(self.of_bins.known, self.of_bins.mean, self.overall.mean)
        return means.to(reward)[bin]

    def _told_of(self, log_probs: Tensor, reward: Tensor, known: Tensor, bin: Tensor) -> None:
        bins = log_probs.new_zeros(log_probs.shape[1])
        self._tell(log_probs, bins.index_add(0, bin, reward * known), bins.index_add(0, bin, known.to(log_probs)))

    def _take_in(self, found: Tensor) -> None:
        super()._take_in(found)
        _, sums, counts = found[:-1].chunk(3)
        self.overall.take_in(sums.sum()[None], counts.sum()[None])
        self.of_bins.take_in(sums, counts)

    # -- the delayed reward of the student --------------------------------------------------------------------------

    def _delayed(self, choice: Choice, label: Tensor, student: Tensor | None) -> Tensor:
        """() for what the last step chose: it has made the student what it is now, so its residual is their reward.

        One reward for as many of those choices as there are images here: the mean over labelled ones.
        """
        assert choice.images is not None and choice.bin is not None and choice.log_probs is not None
        assert student is not None and self.policy is not None
        log_probs, known = choice.log_probs, int((label >= 0).sum())
        passed = sum(len(bin) for _, bin in self._now)
        self._now.append((choice.images.detach(), choice.bin))
        zero = log_probs.new_zeros(log_probs.shape[1])
        if self._before is None or known < 2:
            self._tell(log_probs, zero, zero)
            return log_probs.sum() * 0
        images, every = self._before
        at = (self._first + passed + torch.arange(len(label))) % len(every)
        bins = every[at].to(log_probs.device)
        reward = least_squares_reward(student.detach().float(), label, self.classes, self.settings.ridge)
        reward = (reward.sum() / known).to(log_probs).expand(len(bins))
        self._tell(log_probs, zero.index_add(0, bins, reward), zero.index_add(0, bins, torch.ones_like(reward)))
        seen = images[at.to(images.device)].to(log_probs.device)
        taken = self.policy(seen).log_softmax(1).gather(1, bins[:, None])[:, 0]
        first = self.settings.baseline != "none" and not bool(self.overall.known)  # held against itself
        usual = reward if first else self._baseline(reward, torch.ones_like(bins, dtype=torch.bool), bins)
        return -(taken * (reward - usual)).mean()

    def begin(self, labelled: float | None = None) -> None:
        super().begin(labelled)
        self._now.clear()

    def observe(self, count: int) -> None:
        super().observe(count)
        kept: list[tuple[Tensor, Tensor]] = []
        images = 0
        while self._now and images < count:
            kept.insert(0, self._now.pop())
            images += len(kept[0][1])
        self._now.clear()
        if kept and self.settings.reward == "student":
            seen, bins = zip(*kept, strict=True)
            self._before, self._first = everyones(torch.cat(seen), torch.cat(bins))

    def memory(self) -> dict[str, Tensor]:
        found = super().memory() | self.overall.memory("overall") | self.of_bins.memory("bins")
        if self._before is not None:
            found |= {"before.images": self._before[0].cpu(), "before.bins": self._before[1]}
        return found

    def remember(self, memory: dict[str, Tensor]) -> None:
        super().remember(memory)
        self.overall.remember(memory, "overall")
        self.of_bins.remember(memory, "bins")
        if "before.bins" in memory:
            self._before = memory["before.images"].clone(), memory["before.bins"].cpu().clone()
            self._first = first_of_mine(len(self._before[1]))


def learned(
    settings: PolicySelection | ExpectationSelection,
    sigmas: Tensor,
    shape: tuple[int, int, int],
    width: int,
    classes: int,
) -> Learned:
    """The learned selection of these settings, of levels sigmas (bins,); the rest as in `make_selection`."""
    if isinstance(settings, PolicySelection):
        return Policy(settings, sigmas, shape, width, classes)
    return Expectation(settings, sigmas, shape, width, classes)
