"""Every verb, end to end, on digits; and what a person gets wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twofold.cli.main import main

TINY = [
    "network.channels=8",
    "network.blocks=1",
    "train.n_images=256",
    "train.batch_size=64",
    "train.save_images=128",
    "train.validate_images=128",
    "train.preview_images=128",
    "train.log_images=64",
    "validation.samples=16",
    "validation.steps=2",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny denoiser, trained through the command line."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "digits", *TINY, "--out", str(path), "--quiet"]) == 0
    return path


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "judge"
    words = ["network.channels=8", "train.n_images=3200", "train.log_images=640"]
    assert main(["train", "digits-classifier", *words, "--out", str(path), "--quiet"]) == 0
    return path


def test_train_prints_what_to_do_next_and_finishes_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "model.safetensors").read_bytes()
    assert main(["train", "digits", *TINY, "--out", str(run), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "256 images" in out and f"twofold sample {run}" in out and "report.html" in out
    assert (run / "model.safetensors").read_bytes() == before
    assert (run / "report.html").stat().st_size > 10_000
    assert list((run / "figures").glob("preview-*.png"))


def test_a_run_can_be_repeated_from_its_settings(run: Path, tmp_path: Path) -> None:
    """settings.yaml is complete: training from it gives the same weights."""
    assert main(["train", str(run), "--out", str(tmp_path / "again"), "--quiet"]) == 0
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()


def test_other_settings_on_the_same_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", *TINY, "train.lr=1e-5", "--out", str(run), "--quiet"]) == 2
    assert "train.lr" in capsys.readouterr().err


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "digits", *TINY, "train.tensorboard=true", "--out", str(tmp_path / "run"), "--quiet"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils.tensorboard", None)
        assert main(words) == 2
    assert "twofold[tensorboard]" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main(words) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert {"train/loss", "train/lr", "validation/frechet"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [64, 128, 192, 256]


def test_dry_run_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ddae-cifar10-ddpm", "--dry-run", "--out", str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    assert "35,746,307" in out and "PFLOP" in out and "GiB" in out and not (tmp_path / "x").exists()


def test_sample(run: Path, tmp_path: Path) -> None:
    words = ["sample", str(run), "n=12", "steps=2", "micro_batch=4", "--out", str(tmp_path / "s"), "--quiet"]
    assert main(words) == 0
    arrays = np.load(tmp_path / "s/images.npz")
    assert arrays["arr_0"].shape == (12, 8, 8, 1) and arrays["arr_1"].tolist() == [*range(10), 0, 1]
    assert len(list((tmp_path / "s/images").rglob("*.png"))) == 12
    manifest = json.loads((tmp_path / "s/manifest.json").read_text())
    assert len(manifest["request"]["checkpoint"]) == 64 and manifest["complete"]
    assert main(words) == 0  # again: nothing to do
    assert main([*words[:2], "n=13", *words[3:]]) == 2  # other settings, same folder


def test_sample_by_class_name_and_snapshot(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["steps=2", "n=2", "png=false", "--quiet"]
    assert main(["sample", str(run), "label=7", "at=best-loss", *words, "--out", str(tmp_path / "a")]) == 0
    assert np.load(tmp_path / "a/images.npz")["arr_1"].tolist() == [7, 7]
    assert main(["sample", str(run), "at=999", *words, "--out", str(tmp_path / "b")]) == 2
    assert "there are: last, best-frechet, best-loss" in capsys.readouterr().err
    assert main(["sample", str(run), "sampler=dpm2m", *words, "--out", str(tmp_path / "c")]) == 2
    assert "did you mean 'dpm2'" in capsys.readouterr().err


def test_evaluate(run: Path, judge: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["n=100", "steps=2", f"classifier={judge}", "--quiet"]
    assert main(["evaluate", str(run), *words]) == 0
    out = capsys.readouterr().out
    assert "frechet/pixels" in out and "precision/pixels" in out and "acceptance" in out
    found = json.loads(next((run / "evaluations").glob("*.json")).read_text())
    assert found["frechet_to_split"]["split"] == "all" and found["data"]["hash"] and found["settings"]["n"] == 100
    assert "Verdict" in (run / "report.html").read_text()


def test_evaluate_a_folder_of_images(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(run), "n=20", "steps=2", "--out", str(tmp_path / "s"), "--quiet"]) == 0
    words = ["evaluate", str(tmp_path / "s/images"), "--out", str(tmp_path / "e"), "--quiet"]
    assert main([*words, "data=digits"]) == 0
    assert "distance to all" in capsys.readouterr().out and list((tmp_path / "e").glob("*.json"))
    assert main(words) == 2
    assert "data=SOURCE" in capsys.readouterr().err


def test_evaluate_a_classifier(judge: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(judge), "--quiet"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["sample", str(judge), "--quiet"]) == 2
    assert "generates nothing" in capsys.readouterr().err


def test_a_folder_of_your_own_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for name in ("good", "bad"):
        (tmp_path / "parts" / name).mkdir(parents=True)
        for i in range(12):
            pixels = random.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "parts" / name / f"{i}.png")
    words = ["train", "images-32", f"data={tmp_path / 'parts'}", "data.size=8", "network.multipliers=[1,2]"]
    words += ["network.attention=[4]", *TINY, "--quiet", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    assert main(["sample", str(tmp_path / "run"), "n=2", "label=good", "steps=2", "--quiet"]) == 0
    assert list((tmp_path / "run/samples").rglob("images/good/*.png"))
    (tmp_path / "parts/good/broken.png").write_bytes(b"not an image")
    assert main(["train", *words[1:-1], str(tmp_path / "other")]) == 2
    assert "broken.png" in capsys.readouterr().err
    assert main(["train", *words[1:-1], str(tmp_path / "other"), "data.on_bad_image=skip"]) == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "digit"], "did you mean 'digits'"),
        (["train", "digits", "train.batch_sise=4"], "did you mean 'batch_size'"),
        (["train", "digits", "train.lr=fast"], "train.lr"),
        (["train", "digits", "data=/no/such/folder"], "/no/such/folder"),
        (["train", "digits", "network.attention=[5]"], "the levels of"),
        (["train", "digits", "network.classes=3"], "the data has 10 classes"),
        (["train", "digits", "train.micro_batch=7"], "must divide"),
        (["train", "digits", "--device", "cuda:999"], "cuda"),
        (["train", "digits", "--device", "banana"], "no such kind of device"),
        (["train", "images-32"], "data.source"),
        (["sample", "runs/nowhere"], "no such run"),
        (["evaluate", "runs/nowhere"], "no such run"),
        (["trian"], "did you mean 'train'"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert expected in error[-1] and error[-1].startswith("twofold: error:")
    assert not [line for line in error if "Traceback" in line]
    assert not (tmp_path / "runs").exists()


def test_an_empty_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["train", "images-32", f"data={tmp_path / 'empty'}", "--out", str(tmp_path / "run")]) == 2
    assert "empty" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_full_disk_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ENOSPC while saving: one line, and nothing half-written."""
    import errno

    import twofold.run.states as states

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(states, "save_file", full)
    assert main(["train", "digits", *TINY, "--out", str(tmp_path / "run"), "--quiet"]) in (1, 2)
    assert "disk is full" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_ctrl_c_and_the_same_command_again(tmp_path: Path, run: Path) -> None:
    """A real SIGINT to a real process; the same command then ends with the same weights as an uninterrupted run."""
    import signal
    import time

    words = ["train", "digits", *TINY, "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "twofold", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run/log.jsonl").exists() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    if process.returncode == 130:  # it may have been at its last step
        assert "saved at" in error and "Traceback" not in error
    assert main([*words, "--quiet"]) == 0
    import torch
    from safetensors.torch import load_file

    one, other = load_file(run / "model.safetensors"), load_file(tmp_path / "run/model.safetensors")
    if (run / "environment.json").read_bytes() == (tmp_path / "run/environment.json").read_bytes():
        assert all(torch.equal(one[name], other[name]) for name in one)
    else:  # another number of threads was measured as faster
        assert all(torch.allclose(one[name], other[name], atol=1e-3) for name in one)
