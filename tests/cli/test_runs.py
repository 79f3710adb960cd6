"""`twofold runs` reads run folders as training leaves them, whole or cut short."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from twofold.cli import runs
from twofold.cli.main import main
from twofold.settings.resolve import resolve, to_yaml
from twofold.settings.train import TrainSettings


def make(path: Path, result: dict[str, Any] | None = None, log: str = "", command: str = "", **train: Any) -> Path:
    """A run folder with these settings, result and log."""
    path.mkdir(parents=True)
    layers = [("test", {"data": "digits", "train": {"n_images": 1000, **train}})]
    (path / "settings.yaml").write_text(to_yaml(resolve(TrainSettings, layers)[0], command))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    if log:
        (path / "log.jsonl").write_text(log)
    return path


def row(kind: str, n_images: int, **values: float) -> str:
    return json.dumps({"kind": kind, "n_images": n_images, **values}) + "\n"


RESULT = {
    "metrics": {"loss": 0.25, "frechet": 1.5},
    "n_images": 1000,
    "images_per_second": 321.5,
    "data": {"name": "digits"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs: one finished, one interrupted in the middle of a log line, one whose result was cut off."""
    monkeypatch.chdir(tmp_path)
    make(
        tmp_path / "runs/mini-0123abcd",
        RESULT,
        row("train", 1000),
        "# twofold train digits-mini --out 'x y' train.lr=1",
        lr=1,
    )
    log = row("train", 100) + row("validation", 200, loss=0.5, frechet=3.0) + row("train", 250) + '{"kind": "tra'
    make(tmp_path / "runs/mini-89abcdef", None, log, "", lr=2)
    make(tmp_path / "runs/other", None, row("train", 30), 'he said "twofold')
    (tmp_path / "runs/other/result.json").write_text('{"metrics": {')
    (tmp_path / "runs/no-run").mkdir()
    for age, name in enumerate(("mini-0123abcd", "mini-89abcdef", "other")):
        for file in (tmp_path / "runs" / name).iterdir():
            os.utime(file, (1e9 - age, 1e9 - age))
    return tmp_path / "runs"


def columns(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


def test_the_list_is_newest_first_with_status_and_metrics(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    rows = columns(capsys.readouterr().out)
    assert rows[0] == ["run", "preset", "status", "images", "frechet", "loss", "age"]
    assert [r[:-1] for r in rows[1:]] == [
        ["mini-0123abcd", "digits-mini", "finished", "1,000", "1.5", "0.25"],
        ["mini-89abcdef", "mini", "interrupted", "250 (25%)", "3", "0.5"],
        ["other", "other", "interrupted", "30 (3%)", "-", "-"],
    ]


def test_a_run_that_holds_its_lock_is_running(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(folder / "other" / "lock"):
        assert main(["runs", str(folder)]) == 0
        assert "running" in capsys.readouterr().out
    assert main(["runs", str(folder)]) == 0
    assert "running" not in capsys.readouterr().out  # the file is left behind, but nobody holds it


def test_comparing_shows_what_differs_and_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(folder / "mini-0123abcd"), str(folder / "mini-89abcdef")]) == 0
    rows = columns(capsys.readouterr().out)
    assert rows == [
        ["setting", "mini-0123abcd", "mini-89abcdef"],
        ["train.lr", "1.0", "2.0"],
        [],
        ["metric", "mini-0123abcd", "mini-89abcdef"],
        ["status", "finished", "interrupted"],
        ["images", "1,000", "250"],
        ["loss", "0.25", "0.5"],
        ["frechet", "1.5", "3"],
        ["images_per_second", "321.5", "-"],
    ]


def test_the_same_settings_are_said_to_be_the_same(tmp_path: Path) -> None:
    a, b = (runs.Record.read(make(tmp_path / name / "run", RESULT)) for name in "ab")
    lines = runs.compare([a, b]).splitlines()
    assert lines[0].split("  ")[0] == "settings"
    assert lines[0].count("the same") == 2
    assert str(tmp_path / "a" / "run") in lines[2]  # equal names are told apart by their paths


def test_one_run_says_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(folder / "mini-0123abcd")]) == 0
    facts = dict(columns(capsys.readouterr().out))
    assert facts["status"] == "finished"
    assert facts["loss"] == "0.25"
    assert facts["data name"] == "digits"


def test_a_long_log_is_read_from_its_end(tmp_path: Path) -> None:
    log = "".join(row("train", n) for n in range(5000)) + row("validation", 5000, loss=0.125)
    found = runs.Record.read(make(tmp_path / "run", None, log))
    assert len(log) > runs.TAIL
    assert (found.n_images, found.metrics) == (5000, {"loss": 0.125})


def test_a_state_saved_after_the_last_log_row_counts(tmp_path: Path) -> None:
    path = make(tmp_path / "run", None, row("train", 100))
    for name in ("000000000300", ".000000000400.9.tmp"):  # the second was never finished
        (path / "state" / name).mkdir(parents=True)
    assert runs.Record.read(path).n_images == 300


def experiment(path: Path, settings: dict[str, Any], result: dict[str, Any] | None, parts: dict[str, str]) -> Path:
    """A folder as `twofold distill` and `twofold fewlabel` leave it."""
    path.mkdir(parents=True)
    (path / "settings.yaml").write_text(json.dumps({"data": {"source": "digits"}, **settings}))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    if parts:
        (path / "parts.json").write_text(json.dumps(parts))
    return path


def taught(*arms: tuple[str, dict[str, float | None]]) -> dict[str, Any]:
    rows = {
        name: {"metrics": {kind: {"value": value, "interval": None, "n": 9} for kind, value in metrics.items()}}
        for name, metrics in arms
    }
    parts = [{"name": "backbone", "folder": "parts/backbone-1"}, {"name": "run", "folder": "shared/run-2"}]
    return {"arms": rows, "parts": parts, "data": {"name": "digits"}, "command": "twofold distill x"}


DISTILL: dict[str, Any] = {"finetune": {"train": {"n_images": 10}}, "backbone": {"kind": "resnet"}}
FEWLABEL: dict[str, Any] = {"final": {"learner": {"kind": "network"}}}


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """Two of distillation, a few-label one that is at work, and one that was just begun."""
    both = taught(("taught", {"nme": 0.05, "auc": 0.5}), ("scratch", {"nme": 0.0625, "auc": None}))
    experiment(tmp_path / "distill-landmarks-mini-0123abcd", DISTILL, both, {"backbone": "backbone-1"})
    (tmp_path / "distill-landmarks-mini-0123abcd/parts/backbone-1").mkdir(parents=True)
    experiment(tmp_path / "mine", DISTILL, taught(("scratch", {"miou": 0.5})), {})
    stages = {"stage 1": {"value": 0.5}, "stage 3": {"value": 0.75}, "self-training": {"value": None}}
    experiment(tmp_path / "few", FEWLABEL, {"accuracy": stages}, {"denoiser": "denoiser-1", "pseudo": "pseudo-2"})
    experiment(tmp_path / "begun", FEWLABEL, None, {"denoiser": "denoiser-1"})
    for age, name in enumerate(("distill-landmarks-mini-0123abcd", "mine", "few", "begun")):
        for file in (file for file in (tmp_path / name).iterdir() if file.is_file()):
            os.utime(file, (1e9 - age, 1e9 - age))
    return tmp_path


def test_experiments_are_listed_with_their_kind_and_what_came_of_them(
    experiments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(experiments / "few/parts/denoiser-1", RESULT)  # a part is no run of this folder
    assert main(["runs", str(experiments)]) == 0
    rows = columns(capsys.readouterr().out)
    assert rows[0] == ["run", "preset", "status", "images", "accuracy", "miou", "nme", "age"]
    assert [r[:-1] for r in rows[1:]] == [
        ["distill-landmarks-mini-0123abcd", "distill-landmarks-mini", "finished", "2 parts", "-", "-", "0.05"],
        ["mine", "distill", "finished", "2 parts", "-", "0.5", "-"],
        ["few", "fewlabel", "finished", "2 parts", "0.75", "-", "-"],
        ["begun", "fewlabel", "interrupted", "1 part", "-", "-", "-"],
    ]


def test_one_experiment_says_what_every_student_came_to_and_where_its_parts_are(
    experiments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = experiments / "distill-landmarks-mini-0123abcd"
    assert main(["runs", str(folder)]) == 0
    facts = dict(columns(capsys.readouterr().out))
    assert facts["experiment"] == "distill" and "images" not in facts
    assert [facts[name] for name in ("nme", "nme, taught", "nme, scratch", "auc, taught")] == [
        "0.05", "0.05", "0.0625", "0.5",
    ]  # fmt: skip
    assert "auc, scratch" not in facts
    assert facts["part backbone"] == str(folder / "parts/backbone-1")
    assert facts["part run"] == "shared/run-2"  # of a folder that several experiments share


def test_comparing_experiments(experiments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(experiments / "few"), str(experiments / "begun")]) == 0
    rows = columns(capsys.readouterr().out)
    assert rows[0] == ["settings", "the same", "the same"]
    assert ["images", "2 parts", "1 part"] in rows
    assert ["accuracy, stage 1", "0.5", "-"] in rows and ["accuracy", "0.75", "-"] in rows


def test_no_runs_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("no runs in runs; `twofold train PRESET data=SOURCE` makes one")
    assert "`twofold runs FOLDER` lists those that --out put elsewhere" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rans"], "rans: no such folder; did you mean 'runs'?"),
        (["runs/othr", "runs/other"], "runs/othr: no such run folder; did you mean 'runs/other'?"),
        (
            ["runs/other", "runs/no-run"],
            "runs/no-run: not a run folder (no settings.yaml); `twofold runs` lists the runs here",
        ),
    ],
)
def test_mistakes(words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", *words]) == 2
    assert capsys.readouterr().err == f"twofold: error: {message}\n"
