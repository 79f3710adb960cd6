"""`twofold fewlabel` as it is typed: run, run again, in stages, with shared parts, in two processes, and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from twofold.cli.main import main

TINY = [
    "labels_per_class=2",
    "diffusion.network.channels=4",
    "diffusion.network.multipliers=[1]",
    "diffusion.network.attention=[]",
    "diffusion.network.blocks=1",
    "diffusion.train.batch_size=16",
    "diffusion.train.warmup_images=0",
    "diffusion.train.n_images=64",
    "diffusion.train.save_images=32",
    "generator.n_images=64",
    "images.per_class=2",
    "images.steps=1",
    "final.learner.kind=logistic",
    "final.pseudo=0",
    "pseudo.folds=0",
    "pseudo.surest=1",
]
OWN = ["features.draws=1", "features.sigmas=[0.1]", "learner.kind=logistic"]


def fewlabel(out: Path, *words: str) -> dict[str, Any]:
    """The result of a run that must succeed."""
    assert main(["fewlabel", *TINY, *words, "--out", str(out), "--device", "cpu", "--quiet"]) == 0
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def made(result: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["made"] for row in result["parts"]}


def hashes(result: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["hash"] for row in result["parts"]}


def test_run_again_otherwise_and_use_what_came_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    first = fewlabel(out, *OWN)
    said = capsys.readouterr().out
    assert "20 labels, 1,438 images, 10 classes" in said and "accuracy, stage 1" in said
    assert said.index("accuracy, self-training") < said.index("accuracy, stage 3") and "twofold predict" in said
    assert set(made(first).values()) == {"made"} and (out / "report.html").is_file()

    again = fewlabel(out, *OWN)
    assert set(made(again).values()) == {"found"} and hashes(again) == hashes(first)

    other = fewlabel(out, *OWN, "images.seed=1000")
    kinds = made(other)
    assert kinds["generator"] == "found" and kinds["images"] == kinds["final"] == "redone"
    assert "images.seed: 0 -&gt; 1000" in (out / "report.html").read_text()

    stage = fewlabel(tmp_path / "one", *OWN, "stage=1", "--parts", str(out / "parts"))
    assert set(made(stage).values()) == {"found"} and stage["generator"] is None and "images" not in made(stage)
    rest = fewlabel(tmp_path / "one", *OWN, "--parts", str(out / "parts"))
    assert set(made(rest).values()) == {"found"} and hashes(rest) == hashes(first)

    for i, image in enumerate(load_digits().images[:3]):
        (tmp_path / "new").mkdir(exist_ok=True)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(tmp_path / "new" / f"{i}.png")
    capsys.readouterr()
    answers = tmp_path / "answers.csv"
    assert main(["predict", first["classifier"], str(tmp_path / "new"), "--quiet", "--out", str(answers)]) == 0
    lines = answers.read_text().splitlines()
    assert len(lines) == 4 and lines[1].startswith("0.png")
    assert len({row["folder"] for row in first["parts"]}) == len(first["parts"])
    words = ["n=4", "label=3", "steps=1", "--quiet", "--device", "cpu", "--out", str(tmp_path / "samples")]
    assert main(["sample", first["generator"], *words]) == 0
    assert main(["evaluate", first["generator"], "n=20", "steps=1", "--quiet", "--device", "cpu"]) == 0


@pytest.mark.parametrize("kind", ["encoder", "network"])
def test_classifiers_of_other_kinds_answer_from_the_command_line(kind: str, tmp_path: Path) -> None:
    words = ["features.kind=encoder", "features.encoder=pixels", "generator.warm_start=false", "final.compare=false"]
    if kind == "network":
        words += ["learner.kind=network", "learner.n_images=256"]
    result = fewlabel(tmp_path / "out", *words)
    Image.new("L", (8, 8), 200).save(tmp_path / "grey.png")
    answers = str(tmp_path / "answers.csv")
    assert main(["predict", result["classifier"], str(tmp_path / "grey.png"), "--quiet", "--out", answers]) == 0
    assert "grey.png" in Path(answers).read_text()


def test_a_dry_run_says_what_will_be_done_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fewlabel", *TINY, *OWN, "--dry-run", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*words, "rounds=2"]) == 0
    said = capsys.readouterr().out
    assert "1,438 to learn from, 20 labelled; 359 to test" in said
    for line in (
        "stage 1     denoiser",
        "stage 2     generator",
        "64 images, about",
        "stage 3     images",
        "20 images",
    ):
        assert line in said, line
    assert said.strip().endswith("on this cpu in fp32; stages 2 and 3 2 times")
    assert not (tmp_path / "out").exists()
    assert main([*words, "images.sampler=foo"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["labels_per_class=2", "labels=x.csv"], "keep one of them"),
        (["labels_per_class=500"], "the smallest class has 139 training images; ask for at most 139"),
        (["labels=x.csv"], "x.csv"),
        (["labels_per_class=2", "learner.kind=foo"], "must be one of logistic"),
        (["nonsense=1"], "unknown setting"),
        (["data=nowhere/"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fewlabel", *words, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("twofold: error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()


def launched(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`twofold fewlabel` in two processes of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "twofold", "fewlabel", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=cwd, env=environment)


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """What is not trained is that of one process, bit for bit; what the first alone finds wrong ends both."""
    words = ["features.kind=encoder", "features.encoder=pixels", "final.compare=false"]
    one = fewlabel(tmp_path / "one", *words)
    done = launched(*TINY, *words, "--out", "two", "--device", "cpu", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("20 labels") == 1
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert hashes(one).keys() == hashes(two).keys()
    for name in ("features", "classifier", "pseudo"):
        assert hashes(one)[name] == hashes(two)[name], name
    assert one["accuracy"]["stage 1"] == two["accuracy"]["stage 1"] and one["pseudo"] == two["pseudo"]
    images = [np.load(next((tmp_path / name).glob("parts/images-*/images.npz"))) for name in ("one", "two")]
    assert images[0]["arr_1"].tolist() == images[1]["arr_1"].tolist()
    assert np.abs(images[0]["arr_0"].astype(int) - images[1]["arr_0"]).max() <= 2

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("words")
    done = launched(*TINY, *words, "--out", "full", "--device", "cpu", "--quiet", cwd=tmp_path)
    assert done.returncode != 0 and "not empty and is not a few-label experiment" in done.stderr


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """SIGKILL as soon as a part of each stage is begun; then the same command again."""
    whole = fewlabel(tmp_path / "whole", *OWN)
    words = ["fewlabel", *TINY, *OWN, "--out", str(tmp_path / "out"), "--device", "cpu", "--quiet"]
    for begun in ("denoiser-*/state/*", "features-*", "generator-*/state/*", "images-*", "final-*"):
        process = subprocess.Popen([sys.executable, "-m", "twofold", *words], stdout=subprocess.DEVNULL)
        end = time.monotonic() + 200
        while not list((tmp_path / "out" / "parts").glob(begun)) and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert hashes(fewlabel(tmp_path / "out", *OWN)) == hashes(whole)
