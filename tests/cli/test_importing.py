"""`twofold import` and `twofold export to=diffusers`: models that come and go, and are the same afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import twofold
from twofold.cli.importing import default_out
from twofold.cli.main import main
from twofold.hashing import weights_hash
from twofold.run import Run
from twofold.settings.train import TrainSettings

from .common import random_run
from .students import student_run

pytest.importorskip("diffusers")

NETWORK = {"kind": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4], "norm_groups": 4}
NETWORK |= {"classes": 10}
NAMES = ["nought", *map(str, range(1, 10))]


def exported(tmp_path: Path, **more: Any) -> tuple[Path, Path]:
    """A run, and its folder for diffusers."""
    values = {"network": NETWORK, "noise": {"kind": "vp", "steps": 20}, "data": {"source": "digits"}, **more}
    run = random_run(tmp_path / "run", TrainSettings.model_validate(values), NAMES, 0)
    assert main(["export", str(run), "to=diffusers", "--quiet"]) == 0
    return run, run / "exports" / "diffusers"


def same(a: Path, b: Path) -> None:
    first, second = twofold.load(a), twofold.load(b)
    assert weights_hash(first) == weights_hash(second)  # type: ignore[arg-type]
    options: dict[str, Any] = {"seeds": range(3), "label": "nought", "steps": 4}
    assert torch.equal(twofold.sample(first, **options), twofold.sample(second, **options))


@pytest.mark.parametrize("noise", [{"kind": "vp", "steps": 20, "time_offset": 1, "time_scale": 0.05}, {"kind": "edm"}])
def test_there_and_back(noise: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folder = exported(tmp_path, noise=noise)
    said = capsys.readouterr().out
    assert "unet, scheduler, for ConsistencyModelPipeline" in said and "note: class 10 is none of them" in said
    out = tmp_path / "back"
    assert main(["import", str(folder), "--out", str(out), "--quiet"]) == 0
    assert "its data are not known" in capsys.readouterr().out
    shutil.rmtree(folder)  # nothing of it is needed any more
    same(run, out)
    settings, before = Run.open(out).settings(), Run.open(run).settings()
    assert settings.noise == before.noise and settings.network.channels == 16  # type: ignore[union-attr]
    found = json.loads((out / "result.json").read_text())
    assert found["imported"]["source"] == str(folder) and set(found["imported"]["files"]) == {
        "unet/diffusion_pytorch_model.safetensors"
    }
    assert found["imported"]["weights"] == weights_hash(twofold.load(run))  # type: ignore[arg-type]


def test_an_imported_model_is_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What people do with a run works on it: sampling without data, measuring with, training further, listing."""
    _, folder = exported(tmp_path)
    out = tmp_path / "runs" / "mine"
    assert main(["import", str(folder), "data=digits", "--out", str(out), "--quiet"]) == 0
    assert "not known" not in capsys.readouterr().out
    assert main(["sample", str(out), "n=2", "steps=2", "label=nought", "--quiet"]) == 0
    assert main(["evaluate", str(out), "n=300", "steps=1", "sampler=ddim", "--quiet"]) == 0
    assert "trained on 0 images" not in (out / "report.html").read_text()
    words = ["network.channels=16", "train.n_images=64", "train.batch_size=32", "validation.samples=0"]
    more = ["data=digits", f"init_from={out}", "network.norm_groups=4", "network.blocks=1", "--quiet"]
    assert (
        main(["train", "digits", *words, *more, "noise.kind=vp", "noise.steps=20", "--out", str(tmp_path / "t")]) == 0
    )
    assert main(["runs", str(out.parent)]) == 0
    assert "mine" in capsys.readouterr().out


def test_a_run_of_ours_is_copied(tmp_path: Path) -> None:
    values = {"network": NETWORK, "data": {"source": "digits"}}
    run = random_run(tmp_path / "run", TrainSettings.model_validate(values), NAMES, 0)
    (run / "state").mkdir()
    out = tmp_path / "copy"
    assert main(["import", str(run), "--out", str(out), "--quiet"]) == 0
    same(run, out)
    assert {file.name for file in out.iterdir()} == {"settings.yaml", "model.safetensors", "result.json"}
    student = student_run(tmp_path / "student", "landmarks", ["a", "b"], (3, 12, 15))
    assert main(["import", str(student), "--out", str(tmp_path / "s"), "--quiet"]) == 0
    again: Any = twofold.load(tmp_path / "s")
    assert weights_hash(again) == weights_hash(twofold.load(student))  # type: ignore[arg-type]


def test_latents_bring_their_autoencoder(tmp_path: Path) -> None:
    from tests.adapters.test_diffusers_write import again, autoencoder, unet
    from twofold.adapters.diffusers_write import write_diffusers
    from twofold.settings.noise import VPNoise

    model = unet(VPNoise(steps=20), (2, 8, 8), autoencoder())
    write_diffusers(model, tmp_path / "pipe")
    assert main(["import", str(tmp_path / "pipe"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert (tmp_path / "run" / "codec" / "config.json").is_file()
    again(model, tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "to=diffusers", "--quiet"]) == 0
    again(model, tmp_path / "run" / "exports" / "diffusers")


def test_what_cannot_be_imported_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = exported(tmp_path)

    def refused(*words: str) -> str:
        capsys.readouterr()
        assert main(["import", *words, "--quiet"]) == 2
        return str(capsys.readouterr().err)

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "is there and not empty; name a new folder" in refused(str(folder), "--out", str(tmp_path / "full"))
    assert "no such run, file or folder" in refused(str(tmp_path / "nothing"))
    save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert "weights of a layout that no adapter reads" in refused(str(tmp_path / "x.safetensors"))
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", "act_fn": "gelu"}))
    out = tmp_path / "out"
    assert "config and weights" in refused(str(folder), "--out", str(out)) or not out.exists()
    assert not out.exists()


def test_only_diffusion_models_go_to_diffusers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = student_run(tmp_path / "run", "classification", ["a", "b", "c"], (3, 12, 15))
    assert main(["export", str(run), "to=diffusers", "--quiet"]) == 2
    assert "holds no diffusion model, and diffusers runs nothing else" in capsys.readouterr().err
    values = {"network": {**NETWORK, "norm_groups": 32}, "data": {"source": "digits"}}
    narrow = random_run(tmp_path / "narrow", TrainSettings.model_validate(values), NAMES, 0)
    assert main(["export", str(narrow), "to=diffusers", "--quiet"]) == 2
    assert "all norms must have equally many: train with network.norm_groups=4" in capsys.readouterr().err
    assert not (narrow / "exports").exists()


def test_where_it_goes() -> None:
    assert default_out("org/some model@v1") == Path("runs/some-model")
    assert default_out("a/b/pipe/") == Path("runs/pipe")
