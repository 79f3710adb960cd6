"""A run that is interrupted, in whatever way, ends as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.events import Note, Saved, Stepped
from twofold.run import Run

from ..processes import Started
from .common import learned_levels, same, tiny, weights


class Interrupted(Exception):
    """Stands for a process that dies at this point."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(tiny(), path, "cpu")
    return path


def die_at(n_images: int):  # type: ignore[no-untyped-def]
    def show(event: object) -> None:
        if isinstance(event, Stepped) and event.n_images == n_images:
            raise Interrupted

    return show


def test_a_run_leaves_what_it_promises(whole: Path) -> None:
    names = {p.name for p in whole.iterdir()}
    assert names >= {"settings.yaml", "model.safetensors", "log.jsonl", "result.json", "state", "snapshots", "previews"}
    result = json.loads((whole / "result.json").read_text())
    assert result["n_images"] == 256 and result["metrics"]["loss"] > 0 and result["metrics"]["frechet"] > 0
    assert len(list((whole / "state").iterdir())) == 2  # keep_states


@pytest.mark.parametrize("at", [32, 96, 192, 224])
def test_killed_anywhere_and_continued_is_bit_identical(whole: Path, tmp_path: Path, at: int) -> None:
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "run", "cpu", die_at(at))
    train(tiny(), tmp_path / "run", "cpu")
    assert same(weights(whole), weights(tmp_path / "run"))
    last = "state/000000000256/tensors.safetensors"
    assert same(weights(whole, last), weights(tmp_path / "run", last))
    kept = ("kind", "n_images", "loss", "lr", "grad_norm", "frechet")
    logs = [[{k: row[k] for k in kept if k in row} for row in Run(p).log()] for p in (whole, tmp_path / "run")]
    assert logs[0] == logs[1]
    for preview in (whole / "previews").iterdir():
        assert preview.read_bytes() == (tmp_path / "run/previews" / preview.name).read_bytes()


def test_a_damaged_state_is_reported_and_the_one_before_it_used(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "run", "cpu", die_at(160))
    newest = tmp_path / "run/state/000000000128/tensors.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    newest.write_bytes(data)
    notes: list[str] = []
    train(tiny(), tmp_path / "run", "cpu", lambda e: notes.append(e.text) if isinstance(e, Note) else None)
    assert any("damaged" in note and "128" in note for note in notes)
    assert any("resumed at 64" in note for note in notes)
    assert same(weights(whole), weights(tmp_path / "run"))


def test_an_ordinary_stop_saves_first(tmp_path: Path, whole: Path) -> None:
    """Ctrl-C: the state is saved at the next step, so nothing is lost."""
    saved = []

    def show(event: object) -> None:
        if isinstance(event, Stepped) and event.n_images == 96:
            os.kill(os.getpid(), signal.SIGINT)
        if isinstance(event, Saved):
            saved.append(event.n_images)

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path / "run", "cpu", show)
    assert saved[-1] == 96
    train(tiny(), tmp_path / "run", "cpu")
    assert same(weights(whole), weights(tmp_path / "run"))


def test_sigkill(whole: Path, tmp_path: Path) -> None:
    """A real kill -9 of a real process, wherever it happens to be."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from tests.learn.common import tiny\nfrom twofold.learn import train\nimport torch\n"
        "torch.set_num_threads(int(sys.argv[3]))\n"
        "train(tiny(), sys.argv[1], 'cpu', lambda e: print(type(e).__name__, flush=True))\n"
    )
    import torch

    root = str(Path(__file__).parents[2])
    process = Started("-c", program, tmp_path / "run", root, torch.get_num_threads())
    for line in process.lines():
        if line.startswith("Saved"):
            break
    time.sleep(0.01)
    process.kill()
    assert not (tmp_path / "run/result.json").exists()
    train(tiny(), tmp_path / "run", "cpu")
    assert same(weights(whole), weights(tmp_path / "run"))


CRASHES = """
import os, sys
sys.path.insert(0, sys.argv[2])
import torch, torch._dynamo  # which torch.optim would import in every child, for seconds
torch.set_num_threads(1)
from tests.learn.common import tiny
from twofold import files
from twofold.learn import train

SETTINGS = tiny(n_images=64, save_images=32, validate_images=64, preview_images=64, snapshot_images=[32])

def in_child(work):
    child = os.fork()  # this process has never trained, so its children may
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]

def dying_at(k, path):
    done = 0
    def counted(real):
        def call(*arguments):
            nonlocal done
            done += 1
            if done == k:
                os._exit(9)  # before the file is in place; no cleanup runs
            return real(*arguments)
        return call
    files.os.replace, files.os.rename = counted(os.replace), counted(os.rename)
    train(SETTINGS, path, "cpu")

in_child(lambda: train(SETTINGS, sys.argv[1] + "/whole", "cpu"))
k = 1
while in_child(lambda: dying_at(k, f"{sys.argv[1]}/{k}")):
    in_child(lambda: train(SETTINGS, f"{sys.argv[1]}/{k}", "cpu"))
    k += 1
print("crashes", k - 1)
"""


def test_killed_between_any_two_writes(tmp_path: Path) -> None:
    """The process dies at the k-th file it puts in place, for every k; the next one ends as if nothing had been."""
    root = str(Path(__file__).parents[2])
    process = Started("-c", CRASHES, tmp_path, root)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    crashes = int(out.split()[-1])
    assert crashes > 10
    whole = tmp_path / "whole"
    expected = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.suffix in (".safetensors", ".npy"))
    assert len(expected) > 6
    for k in range(1, crashes + 1):
        run = tmp_path / str(k)
        for name in expected:
            assert (run / name).read_bytes() == (whole / name).read_bytes(), (k, name)
        assert not list(run.rglob("*.tmp")), k
        rows = [{n: v for n, v in row.items() if "second" not in n} for row in Run(run).log()]
        assert rows == [{n: v for n, v in row.items() if "second" not in n} for row in Run(whole).log()], k


def test_other_settings_in_the_same_folder_are_listed(whole: Path) -> None:
    with pytest.raises(UserError, match=r"train\.lr"):
        train(tiny(lr=1e-3), whole, "cpu")


def test_a_finished_run_is_not_trained_again(whole: Path) -> None:
    before = (whole / "model.safetensors").stat().st_mtime_ns
    notes: list[str] = []
    result = train(tiny(), whole, "cpu", lambda e: notes.append(e.text) if isinstance(e, Note) else None)
    assert result["n_images"] == 256 and (whole / "model.safetensors").stat().st_mtime_ns == before
    assert any("finished" in note for note in notes)


def test_two_writers_are_refused(whole: Path, tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", Run.open(whole).settings())
    with run.lock(), pytest.raises(UserError, match="another process"):
        train(tiny(), tmp_path / "run", "cpu")


def test_noise_levels_that_depend_on_losses_are_resumed_too(tmp_path: Path) -> None:
    settings = learned_levels(tiny())
    train(settings, tmp_path / "whole", "cpu")
    with pytest.raises(Interrupted):
        train(settings, tmp_path / "run", "cpu", die_at(224))
    train(settings, tmp_path / "run", "cpu")
    last = "state/000000000256/tensors.safetensors"
    assert same(weights(tmp_path / "whole", last), weights(tmp_path / "run", last))
    seen = weights(tmp_path / "run", last)["objective/levels.seen"]
    assert int(seen.sum()) == 256 and int(seen.min()) >= 10  # so that they did depend
