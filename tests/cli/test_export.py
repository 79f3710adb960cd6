"""`twofold export`: files that say what their models say, and the ways in which an export fails."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import twofold
from twofold.cli.export import real_images
from twofold.cli.main import main
from twofold.errors import UserError
from twofold.hashing import weights_hash
from twofold.measure import probabilities
from twofold.recognize.classifier import NetworkClassifier
from twofold.recognize.landmarker import NetworkLandmarker
from twofold.recognize.segmenter import NetworkSegmenter
from twofold.run.export import checks, export, formats, graph_of
from twofold.settings.train import TrainSettings

from .common import random_run
from .students import student_run

NAMES = ["left", "right", "middle"]
SHAPE = (3, 12, 15)


def images(count: int, shape: tuple[int, int, int] = SHAPE, seed: int = 1) -> Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def answers(task: str, model: Any, given: Tensor) -> dict[str, Tensor]:
    """What the model says, asked as anybody would."""
    if task == "classification":
        found = probabilities(model, given)
        return {"probabilities": found, "logits": model.image_logits(given)}
    if task == "segmentation":
        return {"masks": model.masks(given), "probabilities": model.probabilities(given)}
    if task == "landmarks":
        points, confidence = model.points(given)
        return {"points": points, "confidence": confidence}
    return {"embedding": model.embed(given)}


def convnet() -> NetworkClassifier:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    network(torch.zeros(1, *SHAPE))
    return NetworkClassifier(network, NAMES, SHAPE).eval().requires_grad_(False)


@pytest.mark.parametrize("task", ["classification", "segmentation", "landmarks", "embedding"])
def test_onnx_says_what_the_model_says(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run = student_run(tmp_path / "run", task, NAMES, SHAPE)
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--quiet", "runs=3"]) == 0
    said = capsys.readouterr().out
    assert "model.onnx" in said and "PyTorch" in said and "checked with 5 random images" in said
    model = twofold.load(run)
    manifest = json.loads((tmp_path / "out" / "export.json").read_text())
    assert manifest["task"] == task and manifest["weights"] == weights_hash(model) and manifest["shape"] == list(SHAPE)
    assert manifest["classes"] == ([] if task == "embedding" else NAMES)
    assert manifest["files"]["onnx"]["bytes"] == (tmp_path / "out" / "model.onnx").stat().st_size
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    facts = json.loads(session.get_modelmeta().custom_metadata_map["twofold"])
    assert facts["classes"] == manifest["classes"] and facts["task"] == task
    (inputs,) = session.get_inputs()
    assert (inputs.name, inputs.type, inputs.shape) == ("images", "tensor(uint8)", ["batch", *SHAPE])
    names = [output.name for output in session.get_outputs()]
    assert names == list(manifest["outputs"]) == list(manifest["files"]["onnx"]["outputs"])
    for count in (1, 3):
        given = images(count)
        expected = answers(task, model, given)
        for name, got in zip(names, session.run(None, {"images": given.numpy()}), strict=True):
            assert str(got.dtype) == ("uint8" if name == "masks" else "float32")
            torch.testing.assert_close(torch.from_numpy(got).double(), expected[name].double(), rtol=0, atol=1e-4)


def test_programs_of_torch_say_what_the_model_says(tmp_path: Path) -> None:
    model = convnet()
    manifest = export(model, tmp_path / "out", "torchscript", runs=3)
    manifest["files"] |= export(model, tmp_path / "out2", "exported", runs=3)["files"]
    assert set(manifest["files"]) == {"torchscript", "exported"}
    told = {formats.EXTRA: ""}
    scripted = torch.jit.load(str(tmp_path / "out" / "model.torchscript"), _extra_files=told)
    program = torch.export.load(tmp_path / "out2" / "model.pt2").module()
    assert json.loads(told[formats.EXTRA])["classes"] == NAMES
    given = images(4)
    expected = answers("classification", model, given)
    for asked in (scripted, program):
        for got, wanted in zip(asked(given), expected.values(), strict=True):
            torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", ["joint", "supervised"])
def test_models_that_know_noise_are_told_the_image_is_clean(objective: str, tmp_path: Path) -> None:
    network: dict[str, Any] = {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": []}
    if objective == "joint":
        settings = {"network": network | {"head": {"kind": "taps"}}, "objective": {"kind": "joint"}}
    else:
        settings = {"network": {"kind": "wideresnet", "depth": 10, "width": 1}, "objective": {"kind": "supervised"}}
        settings["objective"]["sigma"] = "training"
    values = TrainSettings.model_validate({**settings, "data": {"source": "digits"}})
    model = twofold.load(random_run(tmp_path / "run", values, [str(k) for k in range(10)], 0))
    graph = graph_of(model, "run")
    given = images(3, (1, 8, 8))
    for got, wanted in zip(graph(given), graph.reference(given).values(), strict=True):
        torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=1e-5)


def test_attributes_are_questions_of_their_own() -> None:
    model = convnet()
    model.multi_label = True
    found, logits = graph_of(model, "run")(images(2))
    torch.testing.assert_close(found, logits.sigmoid())


def test_what_cannot_be_exported_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": []}
    values = TrainSettings.model_validate({"network": network, "data": {"source": "digits"}})
    run = random_run(tmp_path / "run", values, [], 0)
    assert main(["export", str(run), "to=torchscript", "--quiet"]) == 2
    assert "holds a denoiser, and an exported model answers in one step" in capsys.readouterr().err
    assert not (run / "exports").exists()
    noisy = NetworkClassifier(nn.Identity(), NAMES, SHAPE, sigma=0.5)
    with pytest.raises(UserError, match="asked at the noise level 0.5"):
        graph_of(noisy, "run")
    with pytest.raises(UserError, match="holds a Linear, which is more than one network"):
        graph_of(nn.Linear(1, 1), "run")


def test_only_the_formats_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "anything", "to=tensorrt"]) == 2
    assert "must be one of onnx, torchscript, exported, all, diffusers, hub" in capsys.readouterr().err


def test_missing_packages_are_named_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else found(name, *a)
    )
    assert main(["export", "no/such/run", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "to=onnx: needs onnxruntime, not installed here; install them: pip install 'twofold[onnx]'" in said
    assert main(["export", "no/such/run", "to=torchscript", "--quiet"]) == 2
    assert "onnxruntime" not in capsys.readouterr().err


def test_the_folder_must_be_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    words = ["export", "no/such/run", "to=torchscript", "--quiet", "--out"]
    assert main([*words, str(tmp_path / "full")]) == 2
    assert "the folder is not empty; name a new folder" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "full" / "mine.txt" / "x")]) == 2
    assert "mine.txt is a file; name a new folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    export(convnet(), tmp_path / "empty", "torchscript", runs=3)
    assert {file.name for file in (tmp_path / "empty").iterdir()} == {"model.torchscript", "export.json"}


def test_a_file_that_says_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = formats.FORMATS["torchscript"]

    def wrong(path: Path) -> formats.Asked:
        asked = usual.read(path)
        return lambda given: tuple(found + 2e-4 for found in asked(given))

    monkeypatch.setitem(formats.FORMATS, "torchscript", dataclasses.replace(usual, read=wrong))
    with pytest.raises(UserError, match="probabilities: differs from the model by 0.0002 for 1 random images"):
        export(convnet(), tmp_path / "out", "torchscript", runs=3)
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_batch_size_is_noticed() -> None:
    graph = graph_of(convnet(), "run")
    with pytest.raises(UserError, match="logits|probabilities"):
        checks.compare(graph, lambda given: tuple(found[:1] for found in graph(given)), {"random": images(5)})


def test_a_tie_may_go_either_way_and_is_counted() -> None:
    """A class of a pixel, or a peak of a heat map, that rounding decides; but not one that is clear."""
    network = nn.Conv2d(3, 2, 1)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    graph = graph_of(NetworkSegmenter(network, NAMES[:2], SHAPE).eval().requires_grad_(False), "run")
    other = lambda given: (1 - graph(given)[0], graph(given)[1])  # noqa: E731
    found = checks.compare(graph, other, {"random": images(1)})
    assert found["masks"] == {"largest_difference": 0.0, "largest_value": 0.0, "tied": 12 * 15}
    with torch.no_grad():
        network.bias[0] = 0.01
    with pytest.raises(UserError, match="masks: differs from the model by 1"):
        checks.compare(graph, other, {"random": images(1)})
    heat = nn.Conv2d(3, 1, 1)
    nn.init.zeros_(heat.weight)
    pointing = graph_of(NetworkLandmarker(heat, ["p"], SHAPE, None, 1.0).eval().requires_grad_(False), "run")
    moved = lambda given: (pointing(given)[0] + 3, pointing(given)[1])  # noqa: E731
    assert checks.compare(pointing, moved, {"random": images(1)})["points"]["tied"] == 2
    nn.init.normal_(heat.weight, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="points: differs from the model by 3"):
        checks.compare(pointing, moved, {"random": images(1)})


def test_real_images_of_the_run_are_checked_too(tmp_path: Path) -> None:
    values = {"network": {"kind": "convnet", "channels": 8, "stages": 2}, "objective": {"kind": "supervised"}}
    settings = TrainSettings.model_validate({**values, "data": {"source": "digits"}})
    run = random_run(tmp_path / "run", settings, [str(k) for k in range(10)], 0)
    assert main(["export", str(run), "to=torchscript", "runs=3", "--quiet"]) == 0
    manifest = json.loads((run / "exports" / "torchscript" / "export.json").read_text())
    assert manifest["checked_with"] == {"random": 5, "real": 5}
    assert set(manifest["eager"]["latency_ms"]) == set(manifest["files"]["torchscript"]["latency_ms"]) == {"1", "16"}


def test_images_of_a_data_set_by_name_are_found(tmp_path: Path) -> None:
    """`faces68:FOLDER` is on this machine, though no file has that name; `faces68:no/such/folder` is not."""
    rows = [{"image": {"bytes": png(i), "path": None}, "keypoints": [0.0] * 136, "identity": "a"} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test-00000-of-00001.parquet")
    for place, count in ((tmp_path, 3), ("no/such/folder", None)):
        run = student_run(tmp_path / f"run{count}", "embedding", [], SHAPE, data={"source": f"faces68:{place}"})
        found = real_images(str(run), twofold.load(run))
        assert (None if found is None else found.shape) == (None if count is None else (count, *SHAPE))


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(images(1, (3, 20, 20), seed)[0].permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()
