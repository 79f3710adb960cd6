"""The loop: what a step does, and that it does the same however it is divided."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from twofold.data import open_store
from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.batches import Batches
from twofold.learn.events import Logged
from twofold.run import Run, load

from .common import TINY, learned_levels, tiny, torchrun, weights

ROOT = Path(__file__).parents[2]


def close(a: Path, b: Path, tolerance: float) -> bool:
    """Equal weights, and equal gradient norms: Adam alone would forgive a wrong scale of the gradient."""
    one, other = weights(a), weights(b)
    norms = [[row["grad_norm"] for row in Run(path).log() if row["kind"] == "train"] for path in (a, b)]
    return norms[0] == pytest.approx(norms[1], rel=1e-3) and all(
        torch.allclose(one[name], other[name], rtol=tolerance, atol=tolerance) for name in one
    )


def no_dropout(**changes: object):  # type: ignore[no-untyped-def]
    settings = tiny(**{"n_images": 128, **changes})
    # augment_dim without augmentation: every rank must use the same parameters all the same
    return settings.model_copy(
        update={"network": settings.network.model_copy(update={"dropout": 0.0, "augment_dim": 9})}
    )


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    rows = []
    settings = tiny(n_images=4_800, lr=4e-3, log_images=480, save_images=20_000, validate_images=4_800)
    train(settings, tmp_path / "run", "cpu", lambda e: rows.append(e.row) if isinstance(e, Logged) else None)
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < 0.6 * losses[0]


def test_micro_batches_give_the_same_weights(tmp_path: Path) -> None:
    train(no_dropout(), tmp_path / "whole", "cpu")
    train(no_dropout(micro_batch=8), tmp_path / "parts", "cpu")
    assert close(tmp_path / "whole", tmp_path / "parts", 1e-4)


def test_two_processes_give_the_same_weights_as_one(tmp_path: Path) -> None:
    """gloo over torchrun, in micro-batches, interrupted and resumed: equal to one process up to reduction order, and
    equal on both ranks. The noise levels depend on everybody's losses."""
    train(learned_levels(no_dropout()), tmp_path / "one", "cpu")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from tests.learn.test_loop import learned_levels, no_dropout\nfrom twofold.learn import train\n"
        "import twofold.learn.loop as loop\n"
        "import torch\n"
        "made = []\n"
        "first = loop.Trainer.__init__\n"
        "def keep(self, *a): first(self, *a); made.append(self)\n"
        "loop.Trainer.__init__ = keep\n"
        "from twofold.learn.events import Stepped\n"
        "def die(e):\n"
        "    if isinstance(e, Stepped) and e.n_images == 96: raise InterruptedError\n"
        "settings = learned_levels(no_dropout(micro_batch=8))\n"
        "try: train(settings, sys.argv[1], 'cpu', die)\n"
        "except InterruptedError: pass\n"
        "made.clear()\n"
        "train(settings, sys.argv[1], 'cpu')\n"
        "memory = made[0].objective.memory()\n"
        "assert int(memory['levels.seen'].sum()) == 128 and int(memory['levels.seen'].min()) >= 10\n"
        "assert made[0].n_images == 128\n"
        "import torch.distributed as dist\n"
        "assert dist.get_world_size() == 2 == made[0].world\n"
        "mine = torch.cat([p.detach().flatten() for p in made[0].objective.network.parameters()])\n"
        "both = [torch.empty_like(mine) for _ in range(2)]\n"
        "dist.all_gather(both, mine)\n"
        "assert torch.equal(*both)\n"
        "print('EQUAL', flush=True)\n"
        "from twofold.learn.training import leave_process_group\n"
        "leave_process_group()\n"
    )
    told = torchrun(program, tmp_path / "two", ROOT)
    assert told.count("EQUAL") == 2
    assert close(tmp_path / "one", tmp_path / "two", 1e-4)


def test_position_alone_decides_a_training_image() -> None:
    store = open_store(tiny().data)
    make = lambda: Batches(store, store.indices("train"), 3, 5, True, True)  # noqa: E731
    whole, part = make().make(0, 64), make().make(40, 48)
    assert torch.equal(whole.images[40:48], part.images)
    assert torch.equal(whole.noise[40:48], part.noise)  # type: ignore[index]
    assert torch.equal(whole.uniforms[40:48], part.uniforms)
    stream = make().stream(64, 32, rank=1, world=2)
    assert torch.equal(next(stream).uniforms, make().make(80, 96).uniforms)
    assert torch.equal(next(stream).uniforms, make().make(112, 128).uniforms)
    stream.close()


def test_only_the_train_part_is_seen() -> None:
    store = open_store(tiny().data)
    rows = store.indices("train")
    seen = set(Batches(store, rows, 0, 3, False, False).rows_at(0, 2 * len(rows)).tolist())
    assert seen == set(rows.tolist())
    assert not seen & set(store.indices("test").tolist()) and not seen & set(store.indices("validation").tolist())


def test_a_run_is_bound_to_its_data(tmp_path: Path) -> None:
    """Images that were held out must not become training images because a file was added."""
    import numpy as np
    from PIL import Image

    from twofold.learn.events import Stepped
    from twofold.settings.resolve import resolve
    from twofold.settings.train import TrainSettings

    def stop(event: object) -> None:
        if isinstance(event, Stepped):
            raise InterruptedError

    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    picture = lambda: Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8))  # noqa: E731
    for i in range(40):
        picture().save(tmp_path / f"photos/{i}.png")
    settings, _ = resolve(TrainSettings, [("tiny", TINY), ("test", {"data": str(tmp_path / "photos")})])
    with pytest.raises(InterruptedError):
        train(settings, tmp_path / "run", "cpu", stop)
    picture().save(tmp_path / "photos/new.png")
    with pytest.raises(UserError, match="not what this run was begun with"):
        train(settings, tmp_path / "run", "cpu")


def test_data_too_small_to_compare_is_still_trained_on(tmp_path: Path) -> None:
    """One held-out image gives a loss and no distance."""
    import numpy as np
    from PIL import Image

    from twofold.settings.resolve import resolve
    from twofold.settings.train import TrainSettings

    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.fromarray(np.full((8, 8), 30 * i, np.uint8)).save(tmp_path / f"photos/{i}.png")
    settings, _ = resolve(TrainSettings, [("tiny", TINY), ("test", {"data": str(tmp_path / "photos")})])
    result = train(settings, tmp_path / "run", "cpu")
    assert result["metrics"]["loss"] > 0 and "frechet" not in result["metrics"]


def test_non_finite_steps_are_skipped_counted_and_end_training(tmp_path: Path) -> None:
    import twofold.learn.loop as loop

    poisoned = 0
    original = loop.Trainer._step

    def step(self: loop.Trainer, batch: object) -> list[str]:
        nonlocal poisoned
        if self.n_images in (32, 96):
            poisoned += 1
            batch.noise[0] = float("nan")  # type: ignore[attr-defined]
        return original(self, batch)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_step", step)
        result = train(tiny(n_images=128), tmp_path / "run", "cpu")
    assert poisoned == 2 and result["nonfinite_steps"] == 2
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    with pytest.raises(UserError, match="non-finite gradients"):
        train(tiny(lr=1e18, clip_norm=None, nonfinite_limit=2, n_images=3200, warmup_images=0), tmp_path / "bad", "cpu")


def test_batches_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    from twofold.learn.environment import micro_batch

    with pytest.raises(UserError, match="does not divide over 3 processes"):
        micro_batch(tiny().train, 3)
    assert micro_batch(tiny(micro_batch=32).train, 2) == 16
    with pytest.raises(UserError, match=r"micro_batch.*divide"):
        tiny(micro_batch=5)


def test_snapshots_can_be_chosen(tmp_path: Path) -> None:
    train(tiny(snapshot_images=[64], n_images=128), tmp_path / "run", "cpu")
    early, last = load(tmp_path / "run", at="64"), load(tmp_path / "run")
    best = load(tmp_path / "run", at="best-loss")
    pairs = zip(early.network.parameters(), last.network.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert best.sigma_range == last.sigma_range
    with pytest.raises(UserError, match="there are: last"):
        load(tmp_path / "run", at="65")


def test_a_supervised_run_classifies(tmp_path: Path) -> None:
    from twofold.settings.resolve import resolve
    from twofold.settings.train import TrainSettings

    change = {
        "network": {"kind": "convnet", "channels": 8},
        "objective": {"kind": "supervised", "shift": 1},
        "train": {"n_images": 6400, "lr": 3e-3, "save_images": 10_000, "validate_images": 10_000},
    }
    settings, _ = resolve(TrainSettings, [("tiny", {**TINY, "network": {}, "objective": {}}), ("test", change)])
    result = train(settings, tmp_path / "run", "cpu")
    assert result["metrics"]["accuracy"] > 0.5
    model = load(tmp_path / "run")
    assert model.class_names == [str(i) for i in range(10)]
