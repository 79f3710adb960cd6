"""Two processes of torchrun over gloo write what one process writes. The first of these tests has them started by
torchrun itself, the others of the suite as `torchrun` of processes.py does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from twofold.cli.main import main

from ..processes import Started, torchrun
from .test_sample_evaluate import make_run


def real_torchrun(*words: str, cwd: Path) -> str:
    """Runs `twofold` words in two processes that torchrun itself starts; what they printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "twofold"]
    done = subprocess.run(
        [*command, *words],
        capture_output=True,
        timeout=240,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_sample(tmp_path: Path) -> None:
    """Every file, bit for bit, an odd number of micro-batches, the last one short."""
    run = make_run(tmp_path / "run")
    words = ["n=11", "steps=2", "micro_batch=4", "precision=fp32", "size=8x12", "--quiet", "--device", "cpu"]
    assert main(["sample", str(run), *words, "--out", str(tmp_path / "one")]) == 0
    out = real_torchrun("sample", str(run), *words, "--out", str(tmp_path / "two"), cwd=tmp_path)
    assert out.count("11 images") == 1  # one of them speaks
    one, two = (
        {p.relative_to(root): p for p in sorted(root.rglob("*.*")) if p.is_file() and p.name != ".lock"}
        for root in (tmp_path / "one", tmp_path / "two")
    )
    assert one.keys() == two.keys() and len(one) == 11 + 3
    for name, path in one.items():
        assert path.read_bytes() == two[name].read_bytes(), name
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["complete"]


def test_joint_training(tmp_path: Path) -> None:
    """Few labels, with images of their own for the head: the weights are those of one process, up to rounding."""
    words = ["joint-digits-mini", "data.labels_per_class=2", "objective.vary=1", "network.head.dropout=0"]
    words += [
        "network.channels=8",
        "network.blocks=1",
        "objective.pseudo_labels=sure",
        "objective.pseudo_threshold=0.5",
        "train.batch_size=32",
    ]
    words += ["train.n_images=128", "train.warmup_images=0", "train.lr=1e-3", "validation.samples=0", "--device", "cpu"]
    assert main(["train", *words, "--quiet", "--out", str(tmp_path / "one")]) == 0
    torchrun("-m", "twofold", "train", *words, "--quiet", "--out", "two", cwd=tmp_path)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and any(name.startswith("head.") for name in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=2e-4)
    accuracies = [json.loads((tmp_path / n / "result.json").read_text())["metrics"]["accuracy"] for n in ("one", "two")]
    assert abs(accuracies[0] - accuracies[1]) < 0.05


def test_a_process_that_says_nothing_fails_its_test_and_is_gone() -> None:
    """Of a silent one continuous integration would hear nothing, and wait."""
    silent = Started("-c", "import time; time.sleep(1000)")
    with pytest.raises(pytest.fail.Exception, match=r"still running after 0\.1 seconds"):
        next(silent.lines(timeout=0.1))
    assert silent.returncode == -signal.SIGKILL
    silent.kill()  # of what has ended it does nothing
