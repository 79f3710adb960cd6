"""Which noise levels are picked, what the picking learns from, and that it learns."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from twofold.errors import UserError
from twofold.learn.distilling import Choice, Selection, make_selection
from twofold.learn.distilling.baselines import Running, others_mean
from twofold.learn.distilling.policies import Learned, Policy
from twofold.learn.distilling.rewards import (
    infonce_reward,
    least_squares_reward,
    left_out_residuals,
    task_reward,
)
from twofold.settings.base import Settings
from twofold.settings.resolve import resolve
from twofold.settings.selection import (
    AnnealedSelection,
    ExpectationSelection,
    FixedSelection,
    MultiSelection,
    PolicySelection,
    SelectionSettings,
    UniformSelection,
)

RANGE, SHAPE, D, K = (0.01, 100.0), (1, 8, 8), 6, 3
TABLE = torch.linspace(math.log(0.01), math.log(100), 50, dtype=torch.float64).exp()


class Holder(Settings):
    selection: SelectionSettings


def make(settings: Any, classes: int = K, table: torch.Tensor | None = None, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return make_selection(settings, table, RANGE, SHAPE, D, classes)


def uniforms(n: int, columns: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


# -- what is not learned ---------------------------------------------------------------------------------------------

ALL: dict[str, Any] = {
    "fixed": FixedSelection(sigma=0.3),
    "uniform": UniformSelection(low=0.1, high=10),
    "uniform bins": UniformSelection(low=0.1, high=10, bins=5),
    "uniform table": UniformSelection(low=0.1, high=10, bins="table"),
    "annealed": AnnealedSelection(low=0.1, from_sigma=10, to_sigma=0.5, until_images=100),
    "annealed table": AnnealedSelection(low=0.1, from_sigma=10, to_sigma=0.5, until_images=100, bins="table"),
    "multi": MultiSelection(bounds=(0.1, 1, 10)),
    "multi table": MultiSelection(bounds=(0.1, 1, 10), bins="table"),
    "policy": PolicySelection(low=0.1, high=10, bins=5),
    "expectation": ExpectationSelection(low=0.1, high=10, bins="table"),
}


@pytest.mark.parametrize("kind", ALL)
def test_every_selection_picks_by_its_numbers_alone(kind: str) -> None:
    chosen = make(ALL[kind], table=TABLE)
    assert isinstance(chosen, Selection)
    x, u = images(40), uniforms(40, chosen.uniforms)
    torch.manual_seed(1)
    choice = chosen.pick(x, u, 0)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))  # nothing was drawn
    assert choice.sigma.dtype == torch.float64 and choice.sigma.shape == (40,)
    assert 0.1 * (1 - 1e-9) <= float(choice.sigma.min()) <= float(choice.sigma.max()) <= 10 * (1 + 1e-9)
    part = chosen.pick(x[7:9], u[7:9], 0)
    assert torch.equal(part.sigma, choice.sigma[7:9])
    chances = chosen.probabilities()
    assert (chances is None) == (chosen.sigmas is None)
    if chances is not None:
        assert torch.equal(choice.sigma, chosen.sigmas[choice.bin])
        assert chances.shape == chosen.sigmas.shape and float(chances.sum()) == pytest.approx(1)
    if not isinstance(chosen, Learned):
        losses = chosen.losses(choice, torch.randn(40, D), None, torch.zeros(40, dtype=torch.int64), 0)
        assert losses.shape == (40,) and not bool(losses.any())
        assert chosen.policy is None and not list(chosen.parameters())
    other = make(ALL[kind], table=TABLE, seed=1)
    other.load_state_dict(chosen.state_dict())
    other.remember(chosen.memory())
    assert torch.equal(other.pick(x, u, 0).sigma, choice.sigma)


def test_levels() -> None:
    assert torch.allclose(make(UniformSelection(bins=5)).sigmas.log10(), torch.arange(-2.0, 3).double())
    assert make(PolicySelection()).sigmas.shape == (32,)
    table = make(UniformSelection(low=0.1, high=10, bins="table"), table=TABLE.flip(0)).sigmas
    assert torch.equal(table, TABLE[(TABLE >= 0.1) & (TABLE <= 10)])


def test_no_noise_is_the_teachers_lowest_level() -> None:
    assert make(FixedSelection(sigma=0)).pick(images(2), uniforms(2), 0).sigma.tolist() == [0.01] * 2


def test_uniform_is_even() -> None:
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1, None]
    sigma = make(UniformSelection(low=0.1, high=10)).pick(images(1000), u, 0).sigma
    assert torch.allclose(sigma.log10(), 2 * u[:, 0] - 1)
    bins = make(UniformSelection(bins=8)).pick(images(1000), u, 0).bin
    assert torch.bincount(bins).tolist() == [125] * 8


@pytest.mark.parametrize("falls", ["position", "sigma"])
@pytest.mark.parametrize("bins", [None, "table"])
def test_annealing(falls: str, bins: Any) -> None:
    settings = AnnealedSelection(low=0.1, from_sigma=10, to_sigma=0.5, until_images=100, bins=bins, falls=falls)  # type: ignore[arg-type]
    chosen = make(settings, table=TABLE)
    highest = [float(chosen.pick(images(1), torch.ones(1, 1).double(), seen).sigma) for seen in (0, 50, 100, 200)]
    step = 1.0 if bins is None else float(TABLE[1] / TABLE[0])
    middle = math.sqrt(10 * 0.5) if falls == "position" else 5.25
    for found, bound in zip(highest, [10, middle, 0.5, 0.5], strict=True):
        assert bound / step / 1.15 <= found <= bound * 1.15
    if bins:
        assert int((chosen.probabilities() > 0).sum()) == int((chosen.sigmas <= 0.5).sum())


def test_the_published_annealing_is_linear_in_the_time() -> None:
    """1000 entries, then 50 after so many images."""
    table = torch.linspace(0.01, 100, 1000, dtype=torch.float64) ** 1.1
    settings = AnnealedSelection(to_sigma=float(table[49]), until_images=100, bins="table")
    chosen = make_selection(settings, table, (float(table[0]), float(table[-1])), SHAPE, D, 0)
    assert [chosen.count(seen) for seen in (0, 50, 100, 1e9)] == [1000, 525, 50, 50]  # type: ignore[attr-defined]


def test_bands_have_pairs_of_their_own() -> None:
    for bins in (None, "table", 10):
        chosen = make(MultiSelection(bounds=(0.1, 1, 10), bins=bins), table=TABLE)
        choice = chosen.pick(images(400), uniforms(400, 2), 0)
        assert torch.equal(choice.pair, (choice.sigma >= 1).long())
        assert 150 < int(choice.pair.sum()) < 250
        if bins:
            seen = torch.bincount(choice.bin, minlength=len(chosen.sigmas)) > 0
            assert torch.equal(seen, chosen.probabilities() > 0)
            assert 0.1 <= float(chosen.sigmas[seen].min()) <= float(chosen.sigmas[seen].max()) <= 10


# -- rewards ---------------------------------------------------------------------------------------------------------

LABEL = torch.tensor([0, 1, 2, -1, 1, 0, 2, -1])


def features(n: int = 8, d: int = D, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_task_reward() -> None:
    logits = features(d=K)
    expected = [float(logits[i].log_softmax(0)[y]) if y >= 0 else 0.0 for i, y in enumerate(LABEL.tolist())]
    assert task_reward(logits, LABEL).tolist() == pytest.approx(expected)


def test_infonce_reward() -> None:
    """Of an image unlike the others it is higher."""
    z = features()
    u = (z / z.norm(dim=1, keepdim=True)).numpy()
    cosines = np.exp(u @ u.T / 0.1)
    assert np.allclose(infonce_reward(z, 0.1), np.log(np.diag(cosines) / cosines.sum(1)))
    z[1] = z[0]
    reward = infonce_reward(z, 0.1)
    assert int(reward.argmin()) in (0, 1) and float(reward[0]) < -math.log(2) + 1e-9


@pytest.mark.parametrize("d", [2, 30])
def test_left_out_residuals_are_those_of_fits_without_the_image(d: int) -> None:
    """With the penalty and the centre of all rows, as documented: the fit on the others is done one by one."""
    x, y = features(7, d), features(7, 2, seed=1)
    found = left_out_residuals(x, y, 0.3)
    centred, target = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    penalty = 0.3 * (centred**2).sum(1).mean()
    joined = np.hstack([centred, np.ones((7, 1))])  # the intercept is not penalised
    ridge = penalty * np.diag([1.0] * d + [0.0])
    for i in range(7):
        others = np.arange(7) != i
        a, b = joined[others], target[others]
        weights = np.linalg.solve(a.T @ a + ridge, a.T @ b)
        assert np.allclose(found[i], target[i] - joined[i] @ weights)


def test_least_squares_reward_tells_good_features_from_bad() -> None:
    label = torch.arange(12) % K
    good = functional.one_hot(label, 20).double() + 0.01 * features(12, 20)  # more features than images
    bad = features(12, 20, seed=2)
    assert float(least_squares_reward(good, label, K, 0.1).mean()) > -0.3
    assert float(least_squares_reward(bad, label, K, 0.1).mean()) < -0.4
    some = least_squares_reward(features(), LABEL, K, 0.1)
    assert torch.equal(some == 0, LABEL < 0) and bool((some <= 0).all())
    changed = features()
    changed[LABEL < 0] = 9.0
    assert torch.equal(least_squares_reward(changed, LABEL, K, 0.1), some)  # unlabelled ones have no part in it
    assert not bool(
        least_squares_reward(features(), torch.full((8,), -1).index_fill(0, torch.tensor(3), 1), K, 0.1).any()
    )


# -- baselines -------------------------------------------------------------------------------------------------------


def test_the_mean_of_the_others() -> None:
    reward, known = torch.tensor([1.0, 3, 50, 8]), torch.tensor([True, True, False, True])
    assert others_mean(reward, known)[known].tolist() == [5.5, 4.5, 2.0]
    assert others_mean(reward[:1], known[:1]).tolist() == [0.0]


def test_running_means() -> None:
    """The plain mean at first, then decaying; what nothing is told of stays."""
    running = Running(2, decay=0.5)
    assert not running.known.any()
    for total, count in (([4.0, 0], [2.0, 0]), ([6.0, 0], [1.0, 0]), ([0.0, 8], [0.0, 4]), ([8.0, 0], [1.0, 0])):
        running.take_in(torch.tensor(total), torch.tensor(count))
    assert running.mean.tolist() == [0.5 * 4 + 0.5 * 8, 2.0] and running.known.all()
    other = Running(2, 0.5)
    other.remember(running.memory("a"), "a")
    assert torch.equal(other.mean, running.mean) and torch.equal(other.steps, running.steps)


# -- losses of a policy ----------------------------------------------------------------------------------------------


def policy(**settings: Any) -> Any:
    return make(PolicySelection(**{"bins": 4, "entropy": 0.0, **settings})).double()


def picked(chosen: Any, n: int = 8, seed: int = 0) -> Choice:
    choice: Choice = chosen.pick(images(n).double(), uniforms(n, seed=seed), 0)
    return choice


@pytest.mark.parametrize("baseline", ["none", "batch", "running", "bin"])
def test_the_loss_of_a_policy_is_the_formula(baseline: str) -> None:
    chosen, z = policy(baseline=baseline), features()
    known = LABEL >= 0
    chosen.losses(picked(chosen, seed=5), features(seed=4), None, LABEL, 0)
    chosen.observe(8)
    choice = picked(chosen)
    losses = chosen.losses(choice, z, None, LABEL, 0)
    ce = functional.cross_entropy(chosen.task_head(z)[known], LABEL[known], reduction="none")
    reward = -ce.detach()
    if baseline == "batch":
        usual = torch.stack([reward[torch.arange(6) != i].mean() for i in range(6)])
    else:
        usual = {"none": torch.zeros(6), "running": chosen.overall.mean.expand(6)}.get(baseline)
        if usual is None:
            means = torch.where(chosen.of_bins.known, chosen.of_bins.mean, chosen.overall.mean)
            usual = means[choice.bin[known]]
    log_prob = choice.log_probs[known].gather(1, choice.bin[known][:, None])[:, 0]
    expected = ce.mean() - (log_prob * (reward - usual)).mean()
    assert float(losses.mean().detach()) == pytest.approx(float(expected.detach()))
    assert torch.equal(losses.detach() == 0, ~known)
    one, two = (
        torch.autograd.grad(loss, list(chosen.parameters()), retain_graph=True) for loss in (losses.mean(), expected)
    )
    assert all(torch.allclose(a, b) for a, b in zip(one, two, strict=True))


def test_gradients_go_to_the_policy_and_the_task_head_alone() -> None:
    for settings in (PolicySelection(bins=4, baseline="none"), ExpectationSelection(bins=4)):
        chosen = make(settings)
        z, every = features().float().requires_grad_(), torch.randn(4, 8, D, requires_grad=True)
        student = torch.randn(8, 5, requires_grad=True)
        choice = chosen.pick(images(8), uniforms(8), 0)
        chosen.losses(choice, z, every, LABEL, 0, student).mean().backward()
        assert z.grad is None and every.grad is None and student.grad is None
        assert all(p.grad is not None and bool((p.grad != 0).any()) for p in chosen.task_head.parameters())
        assert chosen.policy.linear[-1].weight.grad.abs().max() > 0


REWARDS = [(kind, reward) for kind in (PolicySelection, ExpectationSelection) for reward in ("task", "infonce")]


@pytest.mark.parametrize(
    ("kind", "reward"), [*REWARDS, (PolicySelection, "least_squares"), (PolicySelection, "student")]
)
def test_without_labels_nothing_is_learned_from_them(kind: Any, reward: str) -> None:
    more = {"baseline": "running"} if kind is PolicySelection else {}
    chosen, label = make(kind(bins=4, reward=reward, entropy=0, **more)), torch.full((8,), -1)
    for _ in range(2):
        choice = chosen.pick(images(8), uniforms(8), 0)
        losses = chosen.losses(choice, features().float(), torch.randn(4, 8, D), label, 0, torch.randn(8, 5))
        losses.sum().backward()
        chosen.observe(8)
    grads = [p.grad for p in chosen.parameters()]
    assert all(g is not None for g in grads)  # as processes that share gradients need it
    moved = any(bool((g != 0).any()) for g in grads if g is not None)
    assert moved == (reward == "infonce")


def test_entropy_falls_to_nothing() -> None:
    chosen = policy(entropy=0.4, entropy_until_images=100)
    assert [chosen.entropy_weight(seen) for seen in (0, 25, 100, 1e6)] == pytest.approx([0.4, 0.3, 0, 0])
    assert policy(entropy=0.4).entropy_weight(1e9) == 0.4
    nothing = torch.full((8,), -1)
    choice = picked(chosen)
    chances = choice.log_probs.exp()  # type: ignore[union-attr]
    losses = chosen.losses(choice, features(), None, nothing, 25)
    assert torch.allclose(losses, 0.3 * (chances * chances.log()).sum(1))


def test_the_exact_gradient_is_the_expectation_of_reinforce() -> None:
    """Over all picks, each as likely as it is: of two images and three levels, nine."""
    settings = {"bins": 3, "entropy": 0.2, "task_divisor": 2}
    exact = make(ExpectationSelection(**settings)).double()
    drawn = make(PolicySelection(**settings, baseline="none")).double()
    drawn.load_state_dict(exact.state_dict())
    x, label, every = images(2).double(), torch.tensor([1, 2]), features(6).view(3, 2, D)
    choice = exact.pick(x, uniforms(2), 0)
    parameters = list(exact.parameters())
    expected = torch.autograd.grad(exact.losses(choice, every[0], every, label, 0).mean(), parameters)
    found = [torch.zeros_like(p) for p in parameters]
    for bins in itertools.product(range(3), repeat=2):
        bin = torch.tensor(bins)
        choice = drawn.pick(x, uniforms(2), 0)
        assert choice.log_probs is not None
        chance = choice.log_probs.detach().gather(1, bin[:, None]).sum().exp()
        choice.bin, z = bin, every[bin, torch.arange(2)]
        part = torch.autograd.grad(drawn.losses(choice, z, None, label, 0).mean(), list(drawn.parameters()))
        found = [total + chance * one for total, one in zip(found, part, strict=True)]
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


# -- learning --------------------------------------------------------------------------------------------------------


class Peaked(Learned):
    """Rewards one level: 0 there, -1 elsewhere."""

    target = 5

    def _rewards(self, z: torch.Tensor, logits: Any, label: torch.Tensor) -> torch.Tensor:
        return (z[:, 0] == self.target).to(z) - 1


def learn(settings: Any, steps: int, seed: int = 0) -> Any:
    chosen = make(settings, seed=seed)
    chosen._rewards = Peaked._rewards.__get__(chosen, type(chosen))
    chosen.target, bins = Peaked.target, len(chosen.sigmas)
    optimizer = torch.optim.Adam(chosen.parameters(), lr=1e-2)
    every = torch.arange(bins).float()[:, None, None].expand(bins, 32, D)
    for step in range(steps):
        x, label = images(32, step), torch.arange(32) % K
        choice = chosen.pick(x, uniforms(32, seed=step), step * 32)
        z = choice.bin[:, None].float().expand(32, D)
        chosen.begin()
        optimizer.zero_grad()
        chosen.losses(choice, z, every, label, step * 32).mean().backward()
        optimizer.step()
        chosen.observe(32)
    return chosen


@pytest.mark.parametrize(
    "settings",
    [
        PolicySelection(bins=16, reward="infonce", entropy=0, baseline="batch"),
        PolicySelection(bins=16, reward="infonce", entropy=0, baseline="running"),
        PolicySelection(bins=16, reward="infonce", entropy=0.05, entropy_until_images=32 * 40),
        ExpectationSelection(bins=16, reward="infonce", entropy=0),
    ],
    ids=["batch", "running", "entropy", "expectation"],
)
def test_a_rewarded_level_is_found(settings: Any) -> None:
    chosen = learn(settings, 80)
    found = chosen.pick(images(64, 999), uniforms(64), 0).log_probs.detach().exp().mean(0)
    assert float(found[Peaked.target]) > 0.9
    assert int(chosen.probabilities().argmax()) == Peaked.target


def test_entropy_keeps_a_policy_open() -> None:
    """At its optimum pi ~ exp(reward / weight): with rewards of 0 and -1 and weight 1, e to 1."""
    settings = ExpectationSelection(bins=16, reward="infonce", entropy=1.0)
    found = learn(settings, 60).pick(images(64, 999), uniforms(64), 0).log_probs.detach().exp()
    entropy = -(found * found.log()).sum(1)
    best = torch.ones(16).index_fill(0, torch.tensor(Peaked.target), math.e)
    best = best / best.sum()
    assert float(entropy.min()) > 0.9 * float(-(best * best.log()).sum())
    assert float(found[:, Peaked.target].mean()) == pytest.approx(float(best[Peaked.target]), abs=0.05)


def test_picks_are_as_likely_as_the_policy_says() -> None:
    chosen = policy(bins=4)
    x = images(1).double().expand(4000, *SHAPE)
    u = (torch.arange(4000).double()[:, None] + 0.5) / 4000
    choice = chosen.pick(x, u, 0)
    shares = torch.bincount(choice.bin, minlength=4) / 4000
    assert torch.allclose(shares.double(), choice.log_probs[0].detach().exp(), atol=1e-3)


# -- what is remembered ----------------------------------------------------------------------------------------------


def step(chosen: Any, parts: list[int], seed: int, spoilt: bool = False, again: bool = True) -> None:
    """A step of eight images in parts, perhaps after an attempt that failed."""
    x, u, z, student = images(8, seed), uniforms(8, seed=seed), features(seed=seed).float(), features(d=5, seed=seed)
    chosen.begin()
    if spoilt:
        chosen.losses(chosen.pick(x[:3], u[:3], 0), z[:3], None, LABEL[:3], 0, student[:3].float())
    if again:
        chosen.begin()
    start = 0
    for size in parts:
        at = slice(start, start + size)
        with torch.no_grad():
            chosen.losses(chosen.pick(x[at], u[at], 0), z[at], None, LABEL[at], 0, student[at].float())
        start += size
    chosen.observe(8)


@pytest.mark.parametrize("reward", ["infonce", "student"])
def test_memory_is_that_of_steps_that_were_taken(reward: str) -> None:
    made = [make(PolicySelection(bins=4, reward=reward, baseline="bin")) for _ in range(3)]  # type: ignore[arg-type]
    for seed in range(3):
        step(made[0], [4, 4], seed)
        step(made[1], [4, 4], seed, spoilt=True, again=reward == "student")
    step(made[2], [4, 4], 0)
    resumed = make(PolicySelection(bins=4, reward=reward, baseline="bin"))  # type: ignore[arg-type]
    resumed.load_state_dict(made[2].state_dict())
    resumed.remember(made[2].memory())
    for seed in (1, 2):
        step(resumed, [4, 4], seed)
    first = made[0].memory()
    assert len(first) >= 6 and float(first["overall.steps"]) == (3 if reward == "infonce" else 2)
    for other in (made[1], resumed):
        assert first.keys() == other.memory().keys()
        assert all(torch.allclose(value, first[name]) for name, value in other.memory().items())


def test_the_students_reward_is_for_what_was_chosen_a_step_before() -> None:
    chosen = policy(reward="student", baseline="running")
    good = functional.one_hot(LABEL.clamp(min=0), 5).double()
    first = picked(chosen, seed=1)
    losses = chosen.losses(first, features(), None, LABEL, 0, features(d=5))
    assert not bool(losses.any())  # there is nothing before it
    chosen.observe(8)
    chosen.begin()
    chosen.losses(picked(chosen, seed=2), features(), None, LABEL, 0, features(d=5))
    chosen.observe(8)
    usual = float(chosen.overall.mean)
    chosen.begin()
    losses = chosen.losses(picked(chosen, seed=3), features(), None, LABEL, 0, good)
    before = picked(chosen, seed=2)
    reward = float(least_squares_reward(good, LABEL, K, 0.1).sum() / 6)
    assert reward > usual  # better features than the step before
    taken = before.log_probs.gather(1, before.bin[:, None])[:, 0]  # type: ignore[union-attr]
    expected = -(taken * (reward - usual)).mean()
    assert float(losses.mean().detach()) == pytest.approx(float(expected.detach()))
    one, two = (torch.autograd.grad(loss, list(chosen.policy.parameters())) for loss in (losses.mean(), expected))
    assert all(torch.allclose(a, b) for a, b in zip(one, two, strict=True))


# -- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (FixedSelection(sigma=200), r"objective.sigma.sigma=200: outside \[0.01, 100\], the teacher's levels"),
        (UniformSelection(low=0.001), "objective.sigma.low=0.001: outside"),
        (AnnealedSelection(from_sigma=400), "objective.sigma.from_sigma=400: outside"),
        (MultiSelection(bounds=(0.1, 500)), "objective.sigma.bounds=500: outside"),
        (
            PolicySelection(bins="table"),
            "objective.sigma.bins=table: the teacher's noise levels are no table; give a number",
        ),
        (PolicySelection(reward="least_squares"), "objective.sigma.reward=least_squares: is found from labels"),
    ],
)
def test_selections_that_do_not_fit_the_teacher(settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(settings, classes=0)


def test_bands_without_a_level() -> None:
    with pytest.raises(UserError, match="no level of sigma.bins=table is between 0.1 and 0.101"):
        make(MultiSelection(bounds=(0.1, 0.101, 1), bins="table"), table=TABLE)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "uniform", "low": 2, "high": 1}, "low=2 is above high=1"),
        ({"kind": "annealed", "from_sigma": 0.1, "to_sigma": 1}, "to_sigma=1 is above from_sigma=0.1"),
        ({"kind": "annealed", "low": 1}, "low=1 is above to_sigma=0.5"),
        ({"kind": "multi", "bounds": [1, 0.5]}, "do not rise"),
        ({"kind": "policy", "reward": "student"}, "baseline=batch tells nothing"),
        ({"kind": "expectation", "reward": "student"}, "reward"),
    ],
)
def test_settings_that_contradict_themselves(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(Holder, [("test", {"selection": values})])


def test_the_published_form_is_there() -> None:
    """1000 levels of the teacher's table, no baseline, an entropy that falls, the student's optimiser."""
    table = torch.linspace(0.01, 157, 1000, dtype=torch.float64)
    settings = PolicySelection(
        network="small32", bins="table", baseline="none", entropy=0.1, entropy_until_images=5_000_000, shared=True
    )
    torch.manual_seed(0)
    chosen = make_selection(settings, table, (0.01, 157), (3, 32, 32), 256, 10)
    assert isinstance(chosen, Policy) and len(chosen.sigmas) == 1000  # type: ignore[arg-type]
    sizes = [sum(p.numel() for p in part.parameters()) for part in (chosen.policy, chosen.task_head)]  # type: ignore[union-attr]
    assert sizes == [146_156, 2 * (256 * 256 + 256) + 256 * 10 + 10]


def test_an_only_label_is_held_against_the_running_mean() -> None:
    """With few labels most steps have one: without this the batch's baseline would be none at all."""
    label = torch.full((8,), -1)
    label[3] = 1
    chosen = make(PolicySelection(bins=4, network="mlp", entropy=0.0))
    found = []
    for mean in (None, -0.5):
        if mean is not None:
            chosen.overall.take_in(torch.tensor([mean], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
        chosen.begin(8.0)
        choice = chosen.pick(images(8), uniforms(8), 0)
        z = features().float()
        loss = chosen.losses(choice, z, None, label, 0)
        told = chosen.task_head(z)[3].log_softmax(0)[1].detach()
        advantage = 0.0 if mean is None else told - mean
        taken = choice.log_probs[3, choice.bin[3]]
        found.append((loss[3], 8 * (-told - taken * advantage)))
    for got, expected in found:
        assert torch.allclose(got, expected)


@pytest.mark.parametrize("kind", ["policy", "expectation"])
def test_parts_of_a_step_add_up_to_it(kind: str) -> None:
    """Labels are few and fall into parts unevenly: their terms are means over the labelled images of the whole step."""
    settings: Any = {
        "policy": PolicySelection(bins=3, network="mlp", baseline="running"),
        "expectation": ExpectationSelection(bins=3, network="mlp"),
    }[kind]
    label = torch.tensor([0, -1, -1, -1, -1, 2, 1, 0])
    chosen, z = make(settings), features().float()
    every = torch.stack([features(seed=i).float() for i in range(3)])
    if kind == "policy":
        chosen.overall.take_in(torch.full((1,), -0.4, dtype=torch.float64), torch.ones(1, dtype=torch.float64))

    def losses(parts: list[slice]) -> torch.Tensor:
        chosen.begin(8 / 4)
        total = []
        for at in parts:
            choice = chosen.pick(images(8)[at], uniforms(8)[at], 0)
            total.append(chosen.losses(choice, z[at], every[:, at], label[at], 0))
        return torch.cat(total)

    whole, parts = losses([slice(0, 8)]), losses([slice(0, 4), slice(4, 6), slice(6, 8)])
    assert torch.allclose(whole, parts, atol=1e-6)
    gradients = [torch.autograd.grad(one.sum(), list(chosen.policy.parameters())) for one in (whole, parts)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
