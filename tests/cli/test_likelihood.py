"""`twofold evaluate RUN likelihood=...`, end to end on digits. The models are untrained, or trained for a moment."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from twofold.cli.main import main
from twofold.data import open_store, spread
from twofold.recognize.likelihood import bits_per_dimension
from twofold.run import Run, load
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import random_run

FEW = ["likelihood_images=12", "n=20", "steps=2", "--quiet", "--device", "cpu"]


def make_run(path: Path, preset: str = "digits", names: int = 10, **more: Any) -> Path:
    """A run folder with random weights."""
    network: dict[str, Any] = {"channels": 8}
    network |= {"blocks": 1, "classes": names} if preset == "digits" else {}
    settings, _ = resolve(TrainSettings, [*open_preset(preset).layers, ("test", {"network": network, **more})])
    return random_run(path, settings, [str(k) for k in range(names)], 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "denoiser")


def evaluated(run: Path, out: Path, *words: str) -> dict[str, Any]:
    assert main(["evaluate", str(run), *FEW, *words, "--out", str(out)]) == 0
    (file,) = out.glob("*.json")
    return json.loads(file.read_text())["likelihood"]


def test_the_bound_is_a_row_of_the_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(run, tmp_path, "likelihood=bound", "likelihood_steps=12")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("bits_per_dimension")]
    assert len(lines) == 1 and "(95 %)" in lines[0]
    assert float(lines[0].split()[1]) == pytest.approx(found["bits_per_dimension"], abs=1e-4)
    assert found["low"] < found["bits_per_dimension"] < found["high"]
    half = found["high"] - found["bits_per_dimension"]
    assert half == pytest.approx(1.96 * found["standard_error"], rel=1e-3)
    assert found["images"] == 12 and found["split"] == "test" and not found["labels"]
    assert math.isclose(sum(found["parts"].values()), found["bits_per_dimension"], rel_tol=1e-9)
    assert len(found["levels"]) == found["steps"] == found["evaluations"] == 12
    page = (run / "report.html").read_text()
    row = page[page.index("Bits per dimension (bound)") :].partition("</tr>")[0]
    for name in ("bits_per_dimension", "low", "high"):
        assert f"{found[name]:.3g}" in row


def test_it_is_the_likelihood_of_the_library(run: Path, tmp_path: Path) -> None:
    words = ["likelihood=bound", "likelihood_steps=30", "likelihood_evaluations=4"]
    found = evaluated(run, tmp_path, *words, "precision=bf16")  # of the samples; bits are counted in full precision
    store = open_store(Run.open(run).settings().data)
    rows = store.indices("test")
    rows = rows[spread(len(rows), 12)]
    expected = bits_per_dimension(load(run), store.batch(rows), steps=30, evaluations=4)
    assert found["bits_per_dimension"] == pytest.approx(expected.mean, rel=1e-6)
    assert found["standard_error"] == pytest.approx(expected.standard_error, rel=1e-5)
    assert found["evaluations"] == 4 and found["steps"] == 30 and sum(row["images"] for row in found["levels"]) == 48


def test_along_the_ode_and_given_labels(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["likelihood=ode", "likelihood_steps=2", "likelihood_draws=2"]
    none = evaluated(run, tmp_path / "none", *words)
    own = evaluated(run, tmp_path / "own", *words, "likelihood_labels=true")
    assert none["evaluations"] == own["evaluations"] == 16 and none["parts"] == {} and none["levels"] == []
    assert own["labels"] and own["bits_per_dimension"] != none["bits_per_dimension"]
    out = capsys.readouterr().out
    assert "along the ODE, 2 steps of rk4, 2 x uniform noise" in out and "given their labels" in out


@pytest.mark.parametrize(
    "noise", [{"kind": "flow"}, {"kind": "vp", "steps": 20}, {"kind": "vp", "table": "continuous"}], ids=str
)
def test_every_family(noise: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", noise=noise)
    steps = [] if noise.get("steps") else ["likelihood_steps=10"]
    found = evaluated(run, tmp_path / "out", "likelihood=bound", *steps)
    assert found["steps"] == (20 if noise.get("steps") else 10) and math.isfinite(found["bits_per_dimension"])


def test_a_joint_model_has_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", "joint-digits-mini")
    found = evaluated(run, tmp_path / "out", "likelihood=ode", "likelihood_steps=2", "noise_levels=[]")
    assert math.isfinite(found["bits_per_dimension"]) and not found["labels"]
    out = capsys.readouterr().out
    assert "accuracy" in out and "bits_per_dimension" in out


def test_without_a_likelihood_nothing_is_said_of_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "n=20", "steps=2", "--quiet", "--device", "cpu", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    assert "likelihood" not in json.loads(file.read_text())
    assert "bits_per_dimension" not in capsys.readouterr().out


def test_what_has_no_likelihood_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = make_run(tmp_path / "free", names=0)
    clean = make_run(tmp_path / "clean", "digits-classifier")
    images = tmp_path / "images"
    assert main(["sample", str(run), "n=2", "steps=1", "--quiet", "--device", "cpu", "--out", str(images)]) == 0
    bound, out = "likelihood=bound", tmp_path / "nothing"
    for source, words, expected in (
        (clean, [bound], f"likelihood=bound: {clean} is a classifier"),
        (images, [bound], f"likelihood: {images} holds images"),
        (run, ["likelihood=elbo"], "must be one of bound, ode or null"),
        (run, ["likelihood_steps=5"], "likelihood_steps: no likelihood is asked for"),
        (run, [bound, "likelihood_draws=2"], "likelihood_draws: means nothing to likelihood=bound"),
        (run, ["likelihood=ode", "likelihood_evaluations=2"], "likelihood_evaluations: means nothing"),
        (run, [bound, "data.source=digits", "data.size=4"], "its images are 1 x 4 x 4"),
        (free, [bound, "likelihood_labels=true"], "likelihood_labels=true: "),
    ):
        assert main(["evaluate", str(source), *words, "--quiet", "--device", "cpu", "--out", str(out)]) == 2, words
        assert expected in capsys.readouterr().err.strip().splitlines()[-1]
        assert not out.exists()
