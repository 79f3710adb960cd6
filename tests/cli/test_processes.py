"""Two processes of torchrun over gloo write what one process writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from twofold.cli.main import main

from .test_sample_evaluate import make_run


def torchrun(*words: str, cwd: Path) -> str:
    """Runs `twofold` words in two processes; what they printed."""
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
    out = torchrun("sample", str(run), *words, "--out", str(tmp_path / "two"), cwd=tmp_path)
    assert out.count("11 images") == 1  # one of them speaks
    one, two = (
        {p.relative_to(root): p for p in sorted(root.rglob("*.*")) if p.is_file() and p.name != ".lock"}
        for root in (tmp_path / "one", tmp_path / "two")
    )
    assert one.keys() == two.keys() and len(one) == 11 + 3
    for name, path in one.items():
        assert path.read_bytes() == two[name].read_bytes(), name
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["complete"]
