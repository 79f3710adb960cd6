"""Out of memory, and a full disk: a step in smaller parts, a save that does not begin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.batches import Batch
from twofold.learn.events import Note, Saved
from twofold.learn.memory import is_out_of_memory
from twofold.learn.objectives.denoising import DenoisingObjective
from twofold.run import Run

from .common import same, tiny, torchrun, weights
from .test_loop import ROOT, close, no_dropout
from .test_resume import Interrupted, die_at

REFUSALS: dict[str, Callable[[], BaseException]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"
    ),
    "mps": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 20.00 GB)"),
    "python": MemoryError,
}


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A device with room for so many `images` of a training step; the call number `fails` has none at all."""
    room: dict[str, Any] = {"images": 10**9, "error": REFUSALS["cuda"], "asked": [], "fails": 0, "held": []}
    plain = DenoisingObjective.forward

    def forward(self: DenoisingObjective, batch: Batch) -> Tensor:
        if self.training:
            room["asked"].append(len(batch.images))
            if len(batch.images) > room["images"] or len(room["asked"]) == room["fails"]:
                raise room["error"]()
        else:
            room["held"].append(len(batch.images))
        return plain(self, batch)

    monkeypatch.setattr(DenoisingObjective, "forward", forward)
    yield room


@pytest.mark.parametrize("kind", REFUSALS)
def test_the_error_of_every_allocator_is_known(kind: str) -> None:
    assert is_out_of_memory(REFUSALS[kind]())


@pytest.mark.parametrize("kind", ["cuda", "python"])  # an error of run time, and one that is none
def test_a_step_is_repeated_in_smaller_parts(limit: dict[str, Any], tmp_path: Path, kind: str) -> None:
    train(no_dropout(n_images=64), tmp_path / "whole", "cpu")
    limit.update(images=10, error=REFUSALS[kind])
    limit["asked"].clear()
    limit["held"].clear()
    notes: list[str] = []
    show = lambda event: notes.append(event.text) if isinstance(event, Note) else None  # noqa: E731
    result = train(no_dropout(n_images=64), tmp_path / "parts", "cpu", show)
    assert limit["asked"] == [32, 16, 8, 8, 8, 8, 8, 8, 8, 8]
    assert set(limit["held"]) == {8}  # held-out images are not more at a time
    assert [note for note in notes if "out of memory" in note] == [
        "out of memory with 32 images at a time: now 8; a step still has 32 images"
    ]
    assert result["environment"]["micro_batch"] == 8
    assert json.loads((tmp_path / "parts/environment.json").read_text())["micro_batch"] == 8
    assert close(tmp_path / "whole", tmp_path / "parts", 1e-4)


def test_gradients_of_a_failed_attempt_are_dropped(limit: dict[str, Any], tmp_path: Path) -> None:
    """It fails at the last of two parts: the first one's gradients must not count twice."""
    train(no_dropout(n_images=32), tmp_path / "whole", "cpu")
    limit["asked"].clear()
    limit["fails"] = 2
    train(no_dropout(n_images=32, micro_batch=16), tmp_path / "parts", "cpu")
    assert limit["asked"] == [16, 16, 8, 8, 8, 8]
    assert close(tmp_path / "whole", tmp_path / "parts", 1e-4)


def test_the_smaller_parts_are_kept_on_resuming(limit: dict[str, Any], tmp_path: Path) -> None:
    limit["images"] = 8
    train(tiny(n_images=128), tmp_path / "whole", "cpu")
    with pytest.raises(Interrupted):
        train(tiny(n_images=128), tmp_path / "run", "cpu", die_at(96))
    limit["asked"].clear()
    train(tiny(n_images=128), tmp_path / "run", "cpu")
    assert set(limit["asked"]) == {8}  # not tried again
    last = "state/000000000128/tensors.safetensors"
    assert same(weights(tmp_path / "whole", last), weights(tmp_path / "run", last))


def test_one_image_at_a_time_is_the_least(limit: dict[str, Any], tmp_path: Path) -> None:
    limit["images"] = 0
    with pytest.raises(
        UserError, match=r"out of memory with one image at a time, at 0 images; lower network\.channels"
    ):
        train(tiny(), tmp_path / "run", "cpu")
    assert limit["asked"] == [32, 16, 8, 4, 2, 1]


def test_other_errors_are_not_taken_for_it(limit: dict[str, Any], tmp_path: Path) -> None:
    limit.update(images=8, error=lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(tiny(), tmp_path / "run", "cpu")
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_real_allocator_is_understood() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


TWO = """
import sys; sys.path.insert(0, sys.argv[2])
import json, os, torch
from tests.learn.test_loop import no_dropout
from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.objectives.denoising import DenoisingObjective
from twofold.learn.training import leave_process_group
plain, room, calls = DenoisingObjective.forward, [4], [0]
def forward(self, batch):
    calls[0] += self.training
    if self.training and os.environ["RANK"] == "1" and len(batch.images) > room[0]:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return plain(self, batch)
DenoisingObjective.forward = forward
result = train(no_dropout(), sys.argv[1] + "/fits", "cpu")
assert result["environment"]["micro_batch"] == 4, result
room[0] = 0
try:
    train(no_dropout(), sys.argv[1] + "/none", "cpu")
except UserError as error:
    assert "out of memory with one image at a time, before the first step" in str(error)
    print("SAID", flush=True)
leave_process_group()
"""


def test_processes_agree_before_their_first_step(tmp_path: Path) -> None:
    """One of two has room for 4 images: both take 4. It has room for none: both say so, nobody waits for ever."""
    train(no_dropout(), tmp_path / "one", "cpu")
    (tmp_path / "program.py").write_text(TWO)
    told = torchrun(tmp_path / "program.py", tmp_path, ROOT)
    assert told.count("SAID") == 2
    assert close(tmp_path / "one", tmp_path / "fits", 1e-4)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_full_disk_is_said_before_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [10**12]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free[0]))

    def fill(event: object) -> None:
        if isinstance(event, Saved):
            free[0] = 100_000

    settings = tiny(n_images=192, validate_images=1000, preview_images=1000)
    with pytest.raises(UserError, match=r"run: the next save needs \d+ MiB of disk, 0 are free; nothing was written"):
        train(settings, tmp_path / "run", "cpu", fill)
    assert [p.name for p in (tmp_path / "run/state").iterdir()] == ["000000000064"]
    assert not list((tmp_path / "run").rglob("*.tmp"))
    kept = (tmp_path / "run/model.safetensors").read_bytes()
    free[0] = 10**12
    train(settings, tmp_path / "run", "cpu")
    train(settings, tmp_path / "whole", "cpu")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert kept != (tmp_path / "run/model.safetensors").read_bytes()


def test_what_is_needed_is_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is at least the bytes that a save adds, and not much more."""
    from twofold.learn import checkpoint

    asked: list[int] = []
    monkeypatch.setattr(checkpoint, "check_room", lambda folder, needed, hint: asked.append(needed))
    train(tiny(n_images=64, validate_images=1000, preview_images=1000), tmp_path / "run", "cpu")
    run = tmp_path / "run"
    written = sum(p.stat().st_size for p in [run / "model.safetensors", *run.rglob("tensors.safetensors")])
    assert asked and 0 <= written - max(asked) < 200_000  # headers, covered by the spare megabyte


def test_an_objective_with_a_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears every loss of every step in the order of positions, and remembers over a resume."""
    heard: list[tuple[int, Tensor]] = []
    plain = DenoisingObjective.__init__

    def init(self: DenoisingObjective, *arguments: Any) -> None:
        plain(self, *arguments)
        self.learns_levels, self.total = True, torch.zeros(1)

    def observe(self: DenoisingObjective, start: int, losses: Tensor) -> None:
        heard.append((start, losses))
        self.total += losses.sum()

    monkeypatch.setattr(DenoisingObjective, "__init__", init)
    monkeypatch.setattr(DenoisingObjective, "observe", observe)
    monkeypatch.setattr(DenoisingObjective, "memory", lambda self: {"total": self.total})
    monkeypatch.setattr(DenoisingObjective, "remember", lambda self, memory: self.total.copy_(memory["total"]))
    monkeypatch.setattr(
        DenoisingObjective, "_levels", lambda self, u: (self.denoiser.family.training_sigma(u), u * 0 + 1)
    )
    with pytest.raises(Interrupted):
        train(tiny(n_images=128, micro_batch=8), tmp_path / "run", "cpu", die_at(96))
    heard = [row for row in heard if row[0] < 64]  # the third step was lost
    train(tiny(n_images=128, micro_batch=8), tmp_path / "run", "cpu")
    assert [start for start, _ in heard] == [0, 32, 64, 96]
    assert all(losses.shape == (32,) and losses.dtype == torch.float64 for _, losses in heard)
    log = [row["loss"] for row in Run(tmp_path / "run").log() if row["kind"] == "train"]
    assert log == pytest.approx([float(losses.mean()) for _, losses in heard], rel=1e-5)
    kept = weights(tmp_path / "run", "state/000000000128/tensors.safetensors")["objective/total"]
    assert float(kept) == pytest.approx(sum(float(losses.sum()) for _, losses in heard), rel=1e-5)
