"""`sample` and `evaluate` keep apart what differs, tell mistakes before they compute, and read each other's folders.

The models are untrained: weights of runs are written directly.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twofold.cli import evaluate as verb
from twofold.cli import sample as sample_verb
from twofold.cli.generated import read_images
from twofold.cli.main import main
from twofold.data import open_store
from twofold.denoiser import NetworkDenoiser
from twofold.measure.statfile import read_statistics
from twofold.settings.data import DataSettings
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import random_run

QUICK = ["steps=2", "--quiet"]


def make_run(path: Path, preset: str = "digits", seed: int = 0, classes: list[str] | None = None, **data: Any) -> Path:
    """A run folder with random weights; another seed gives others."""
    names = [str(k) for k in range(10)] if classes is None else classes
    change: dict[str, Any] = {"network": {"channels": 8}, "data": {"source": "digits", **data}}
    if preset == "digits":
        change["network"] |= {"blocks": 1, "classes": len(names)}
    settings, _ = resolve(TrainSettings, [*open_preset(preset).layers, ("test", change)])
    return random_run(path, settings, names, seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "judge", "digits-classifier")


@pytest.fixture
def no_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever samples fails: for mistakes that must be told before."""
    import twofold.generate

    def draw(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("sampled")

    monkeypatch.setattr(twofold.generate, "draw", draw)


def diffusers_folder(path: Path, seed: int) -> Path:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    sizes = {"block_out_channels": (16, 16), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 8}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **sizes, **kinds).save_pretrained(path)
    diffusers.DDPMScheduler().save_pretrained(path)
    return path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def found_in(folder: Path) -> dict[str, Any]:
    (file,) = (folder / "evaluations").glob("*.json")
    return json.loads(file.read_text())


def test_a_second_model_has_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = []
    for seed in (0, 1):
        folder = diffusers_folder(tmp_path / f"model{seed}", seed)
        assert main(["sample", str(folder), "n=2", "png=false", *QUICK]) == 0
        out = Path(capsys.readouterr().out.split(":")[0])
        pixels.append(np.load(out / "images.npz")["arr_0"])
        checkpoint = json.loads((out / "manifest.json").read_text())["request"]["checkpoint"]
        assert len(checkpoint) == 64 and out.name.endswith("-" + checkpoint[:8])
    assert not np.array_equal(*pixels)
    assert len(list((tmp_path / "samples").iterdir())) == 2


def test_trained_further_means_a_new_folder(tmp_path: Path) -> None:
    for seed in (0, 1, 1):
        make_run(tmp_path / "run", seed=seed)
        assert main(["sample", str(tmp_path / "run"), "n=2", "png=false", *QUICK]) == 0
    assert len(list((tmp_path / "run/samples").iterdir())) == 2


def test_precision_is_applied_recorded_and_kept(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def precision_of(out: Path) -> str:
        return json.loads((out / "manifest.json").read_text())["request"]["precision"]

    answer = "bf16"
    monkeypatch.setattr("twofold.learn.fastest.precision", lambda *about: answer)
    words = ["sample", str(run), "n=2", "--device", "cpu", *QUICK, "--out"]
    assert main([*words, str(tmp_path / "auto")]) == 0
    assert precision_of(tmp_path / "auto") == "bfloat16"
    answer = "fp32"  # another day something else is measured: the folder stays what it is
    assert main([*words, str(tmp_path / "auto")]) == 0
    assert main([*words, str(tmp_path / "full")]) == 0
    assert precision_of(tmp_path / "full") == "full"
    assert main([*words, str(tmp_path / "bf16"), "precision=bf16"]) == 0
    images = {name: np.load(tmp_path / name / "images.npz")["arr_0"] for name in ("auto", "full", "bf16")}
    assert np.array_equal(images["auto"], images["bf16"]) and not np.array_equal(images["auto"], images["full"])
    assert main([*words, str(tmp_path / "bf16"), "precision=fp32"]) == 2


def test_auto_precision_measures_what_sampling_costs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real probe, where a CPU has bf16: it needs gradients, which a loaded model has none of."""
    from twofold.learn import fastest
    from twofold.run import load

    monkeypatch.setattr(fastest, "has_bf16", lambda: True)
    model = load(run)
    assert isinstance(model, NetworkDenoiser)
    assert sample_verb.precision(model, "auto", torch.device("cpu")) in ("fp32", "bf16")
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_evaluate_the_folder_that_sample_prints(
    run: Path, judge: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["sample", str(run), "n=20", *QUICK]) == 0
    out = Path(capsys.readouterr().out.split(":")[0])
    assert main(["evaluate", str(out), f"classifier={judge}", "--quiet"]) == 0  # the data is the run's
    found = found_in(out)
    assert found["images"]["samples"] == 20 and "agreement" in found["metrics"]  # the labels are in images.npz
    assert "twofold sample" not in capsys.readouterr().out
    words = ["sample", str(run), "n=20", "npz=false", *QUICK, "--out", str(tmp_path / "png")]
    assert main(words) == 0
    assert main(["evaluate", str(tmp_path / "png"), "data=digits", f"classifier={judge}", "--quiet"]) == 0
    again = found_in(tmp_path / "png")["metrics"]
    for name in ("frechet/pixels", "agreement"):  # in another order; the labels are in the manifest
        assert again[name]["samples"] == pytest.approx(found["metrics"][name]["samples"], rel=1e-9)


def test_labels_of_pngs_are_those_of_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = make_run(tmp_path / "run", classes=[f"a/b {k}" for k in range(9)] + ["all"])  # no folders' names
    out = tmp_path / "s"
    assert main(["sample", str(named), "n=13", "seed=5", *QUICK, "--out", str(out)]) == 0
    whole = read_images(out)
    (out / "images.npz").unlink()
    pngs = read_images(out)
    order = sorted(range(13), key=lambda i: (i % 10, f"{i + 5}.png"))
    assert whole.labels is not None and pngs.labels == [whole.labels[i] for i in order]
    assert torch.equal(pngs.images, whole.images[order])
    assert (pngs.names, pngs.request) == (whole.names, whole.request)
    foreign = out / "images" / "0-a_b_0" / "99.png"
    (out / "images" / "0-a_b_0" / "5.png").rename(foreign)
    assert main(["evaluate", str(out), "data=digits", "--quiet"]) == 2
    assert f"{foreign}: manifest.json knows of no such image; give its images/" in said(capsys)


def test_folders_of_samples_that_cannot_be_read(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "s"
    assert main(["sample", str(run), "n=6", *QUICK, "--out", str(out)]) == 0
    words = ["evaluate", str(out), "data=digits", "--quiet"]
    (out / "images.npz").write_bytes((out / "images.npz").read_bytes()[:100])
    assert main(words) == 2 and "images.npz: cannot be read" in said(capsys)
    np.savez(out / "images.npz", np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.int64))
    assert main(words) == 2 and "only 2 images" in said(capsys)
    np.savez(out / "images.npz", np.zeros((9, 8, 8, 1), np.float32), np.zeros(9, np.int64))
    assert main(words) == 2 and "expected uint8" in said(capsys)
    manifest = json.loads((out / "manifest.json").read_text()) | {"complete": False}
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert main(words) == 2 and "not all there yet" in said(capsys)


def test_a_bare_diffusers_unet_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = diffusers_folder(tmp_path / "unet", 0)
    assert not (folder / "model_index.json").exists()
    assert main(["evaluate", str(folder), "data=digits", "n=10", *QUICK]) == 0
    found = found_in(tmp_path)
    assert found["images"]["samples"] == 10 and len(found["source"]["hash"]) == 64


@pytest.mark.usefixtures("no_sampling")
def test_mistakes_are_told_before_sampling(
    run: Path, judge: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    unconditional = make_run(tmp_path / "unconditional", classes=[])
    others = make_run(tmp_path / "others", "digits-classifier", classes=[f"digit {k}" for k in range(10)])
    named = make_run(tmp_path / "named", classes=[f"number {k}" for k in range(10)])
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    np.savez(pictures / "x.npz", np.zeros((9, 8, 8, 1), np.uint8))
    for source, words, expected in (
        (run, ["encoder=pixel"], "encoder=pixel: no such encoder"),
        (run, ["encoder=convnet"], "encoder=convnet: no classifier was given"),
        (run, ["encoder=pixels9"], "encoder=pixels9: larger than the images (8 x 8); use encoder=pixels"),
        (run, ["classifier=runs/nowhere"], "no such run"),
        (run, [f"classifier={run}"], "holds a denoiser, not a classifier"),
        (named, [f"classifier={others}"], "knows digit 0, digit 1"),
        (run, ["data=digits", "data.size=16"], "its images are 1 x 16 x 16, the generated ones 1 x 8 x 8"),
        (run, ["data=digits", "data.size=16", f"classifier={judge}"], "is for images of 1 x 8 x 8"),
        (
            run,
            ["data=digits", "data.test_share=0", "data.validation_share=0"],
            "holds out only 0 test and 0 validation",
        ),
        (run, ["data=digits", "data.test_share=0", "split=test"], "data.test_share is 0"),
        (run, ["n=4"], "n=4"),
        (unconditional, ["guidance=2"], "guidance=2: this model is unconditional"),
        (run, ["save_statistics=x.pkl"], "statistics are kept as .npz; name it x.pkl.npz"),
        (judge, ["reference=x.npz"], "is a classifier: its answers are measured, no images; leave reference out"),
        (judge, ["metrics=[kid]"], "leave metrics out"),
        (judge, ["reference=x.npz", "n=9", "steps=3"], "n, steps, reference: "),
        (pictures, ["n=9", "seed=0", "guidance=1", "at=last"], "n, seed, guidance, at: "),
        (pictures / "x.npz", ["micro_batch=8", "sampler=ddim"], "x.npz holds images that are made already; leave them"),
        (run, ["--out", str(judge / "model.safetensors")], "model.safetensors: is a file; give a folder"),
        (run, [f"save_statistics={judge / 'settings.yaml/x.npz'}"], "settings.yaml: is a file; give a folder"),
    ):
        assert main(["evaluate", str(source), *words, "--quiet"]) == 2, words
        assert expected in said(capsys)
    assert main(["evaluate", "data=digits", "save_statistics=x.npz", "precision=fp32", "--quiet"]) == 2
    assert said(capsys).endswith("precision: only the statistics of real images are written; leave precision out")
    with pytest.raises(RuntimeError, match="sampled"):  # and without a mistake it would have been
        verb.evaluate(str(run), verb.EvaluateSettings(), "cpu", True)


def test_without_a_test_part_the_validation_part_stands_in(
    run: Path, judge: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["data=digits", "data.test_share=0", "--quiet", "--out", str(tmp_path / "evaluations")]
    assert main(["evaluate", str(run), "n=10", "steps=2", *words]) == 0
    assert "images of the validation part" in capsys.readouterr().out
    found = found_in(tmp_path)
    assert found["held_out"]["split"] == "validation"
    assert found["held_out"]["images"] == found["images"]["real_held_out"] > 0
    assert main(["evaluate", str(judge), *words]) == 0
    assert "images of the validation part" in capsys.readouterr().out
    assert main(["evaluate", str(judge), "data=digits", "--quiet"]) == 0
    assert "validation" not in capsys.readouterr().out


def test_evaluate_against_unlabelled_images(run: Path, tmp_path: Path) -> None:
    """The classes are those of the model; the folder knows none."""
    random = np.random.default_rng(0)
    (tmp_path / "flat").mkdir()
    for i in range(60):
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "flat" / f"{i}.png")
    assert main(["evaluate", str(run), f"data={tmp_path / 'flat'}", "n=10", *QUICK]) == 0
    page = (run / "report.html").read_text()
    assert "generated images of class 3" in page
    assert "some that the model was trained on, because few or none are held out" in page


def test_real_images_on_the_page_are_held_out_where_there_are_enough(run: Path) -> None:
    assert main(["evaluate", str(run), "n=10", *QUICK]) == 0
    assert "held out: the model has not seen them" in (run / "report.html").read_text()
    from twofold.report.build import real_images

    store = open_store(DataSettings(source="digits"))
    images, part = real_images(store)
    held_out = store.batch(store.indices("test"))
    assert part == "test" and len(images) == 60
    assert all(bool((held_out == image).flatten(1).all(1).any()) for image in images)


def test_numbers_are_kept_where_the_report_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: Path) -> None:
    path = make_run(tmp_path / "run")

    def fail(*arguments: Any) -> None:
        raise RuntimeError("no report")

    monkeypatch.setattr("twofold.report.build.report_run", fail)
    assert main(["evaluate", str(path), "n=10", f"classifier={judge}", "encoder=convnet", *QUICK]) == 1
    assert "frechet/convnet" in found_in(path)["metrics"]


def test_large_images_are_averaged_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """72 x 72 x 3 is 15,552 numbers an image; a covariance of them would take 1.8 GiB."""
    random = np.random.default_rng(0)
    for name in ("real", "fake"):
        (tmp_path / name).mkdir()
        for i in range(60):
            pixels = random.integers(0, 256, (72, 72, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    words = ["evaluate", str(tmp_path / "fake"), f"data={tmp_path / 'real'}", "--quiet"]
    assert main([*words, "encoder=pixels"]) == 2
    assert "use encoder=pixels36, which averages them down" in said(capsys)
    assert main([*words, "encoder=pixels4", "--out", str(tmp_path / "small")]) == 0
    assert "frechet/pixels4" in capsys.readouterr().out
    settings = verb.EvaluateSettings(data=DataSettings(source=str(tmp_path / "real")))
    yardstick = verb.prepare(open_store(verb.data_of(tmp_path, settings)), settings, torch.device("cpu"))
    assert yardstick.encoder.name == "pixels36"


def test_statistics_of_real_images_as_a_classifier_sees_them(judge: Path, tmp_path: Path) -> None:
    file = tmp_path / "digits.npz"
    words = ["data=digits", "encoder=convnet", f"classifier={judge}", f"save_statistics={file}", "--quiet"]
    assert main(["evaluate", *words]) == 0
    assert read_statistics(file).about["encoder"] == "convnet"


def test_out_of_memory_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none_left(*given: Any, **more: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(sys.modules["twofold.generate.produce"], "produce", none_left)
    assert main(["sample", str(run), *QUICK, "--out", str(tmp_path / "s")]) == 1
    said = capsys.readouterr().err
    assert "out of memory; lower micro_batch" in said and "Traceback" not in said
