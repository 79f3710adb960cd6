"""Students made of models of transformers; students as plain classifiers, trained, saved and loaded again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import twofold
from twofold.errors import UserError
from twofold.learn.training import train
from twofold.networks.students import Student
from twofold.run.weights import load_model
from twofold.settings.resolve import resolve
from twofold.settings.student import StudentSettings
from twofold.settings.train import TrainSettings

TOKENS: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 64}
SMALL: dict[str, tuple[dict[str, Any], list[tuple[int, int]]]] = {
    "resnet": (
        {"hidden_sizes": [4, 6, 8, 10], "depths": [1, 1, 1, 1], "layer_type": "basic", "embedding_size": 4},
        [(4, 4), (6, 8), (8, 16), (10, 32)],
    ),
    "convnextv2": (
        {"hidden_sizes": [4, 6, 8, 10], "depths": [1, 1, 1, 1]},
        [(4, 4), (6, 8), (8, 16), (10, 32)],
    ),
    "swin": (
        {"embed_dim": 4, "depths": [1, 1, 1], "num_heads": [1, 1, 2], "image_size": 64, "window_size": 4},
        [(4, 4), (8, 8), (16, 16)],
    ),
    "dinov2": ({**TOKENS, "patch_size": 14}, [(8, 14)] * 4),
    "vit": ({**TOKENS, "intermediate_size": 16}, [(8, 16)] * 4),
    "mobilenet_v2": ({"depth_multiplier": 0.25}, [(8, 4), (8, 8), (24, 16), (1280, 32)]),
}


def student(
    head: str | None = None, shape: tuple[int, int, int] = (3, 45, 60), classes: int = 3, **backbone: Any
) -> Any:
    torch.manual_seed(0)
    settings = {"backbone": {"kind": "transformers", **backbone}, "head": head and {"kind": head}}
    return Student(StudentSettings.model_validate(settings), shape, classes)


@pytest.mark.parametrize("model", SMALL)
def test_any_image_model_is_a_backbone(model: str) -> None:
    """Its maps at sizes that nothing divides; the same network from the settings it gives; all it reads is trained."""
    config, expected = SMALL[model]
    found, x = student("fcn", (1, 45, 60), model=model, config=config), torch.randn(2, 1, 45, 60)
    stages = found.backbone.stages
    assert [(layer.channels, layer.stride) for layer in stages] == expected
    for m, layer in zip(found.backbone(x), stages, strict=True):
        assert m.shape == (2, layer.channels, -(-45 // layer.stride), -(-60 // layer.stride))
    found.train()(x)[0].square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in found.parameters())
    again = Student(found.settings, (1, 45, 60), 3)
    assert again.settings == found.settings and StudentSettings(**json.loads(found.settings.model_dump_json()))
    again.load_state_dict(found.state_dict())
    x = torch.randn(1, 1, 33, 70)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), found.eval()(x))


def test_maps_are_those_of_the_model() -> None:
    """Four of a transformer's five blocks, tokens in their places; the first token of a ViT is no place."""
    from transformers import ViTModel

    found = student(model="vit", config=SMALL["vit"][0], shape=(3, 32, 48)).eval()
    assert isinstance(found.backbone.model, ViTModel) and found.backbone.chosen == (0, 1, 3, 4)
    x = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        answer = found.backbone.model(x, output_hidden_states=True, interpolate_pos_encoding=True)
        maps = found.backbone(x)
    assert torch.equal(maps[1][:, :, 1, 2], answer.hidden_states[2][:, 1 + 5])  # row 1, column 2 of 2 x 3 patches
    assert torch.equal(maps[3][:, :, 0, 1], answer.last_hidden_state[:, 1 + 1])


def test_norms_of_one_value_per_channel() -> None:
    """A single image whose last map is a single pixel is no batch to norm, in training."""
    found = student(model="resnet", config=SMALL["resnet"][0], shape=(3, 32, 32)).train()
    assert found(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_stages_that_are_asked_for() -> None:
    """What comes after the last of them is not trained."""
    found = student(model="resnet", config=SMALL["resnet"][0], stages=[0, 2])
    assert [layer.stride for layer in found.backbone.stages] == [4, 16] and found.backbone.width == 8
    frozen = {name for name, p in found.named_parameters() if not p.requires_grad}
    assert frozen and all(".stages.3." in name for name in frozen)
    with pytest.raises(UserError, match=r"network.backbone.stages=\[4\]: the model has 4 maps; give 0 .. 3"):
        student(model="resnet", config=SMALL["resnet"][0], stages=[4])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in the layout of transformers."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("published")
    ResNetForImageClassification(ResNetConfig(**SMALL["resnet"][0])).save_pretrained(path)
    return path


def test_published_weights(folder: Path) -> None:
    """They are loaded, and images are normed as ImageNet's; grey ones are repeated. No weights: the options alone."""
    from transformers import ResNetForImageClassification

    peer = ResNetForImageClassification.from_pretrained(folder).eval()
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        expected = peer.resnet(((x + 1) / 2 - mean) / std).last_hidden_state
        for channels in (1, 3):
            found = student(shape=(channels, 64, 64), model=str(folder), pretrained=True)
            y = found.eval().backbone(x.expand(-1, channels, -1, -1))[-1]
            assert torch.allclose(y, expected, atol=1e-6)
            again = Student(found.settings, (channels, 64, 64), 3).eval()  # without the folder
            assert not found.settings.backbone.pretrained and str(folder) not in found.settings.model_dump_json()
            again.load_state_dict(found.state_dict())
            assert torch.equal(again.backbone(x.expand(-1, channels, -1, -1))[-1], y)
        plain = student(shape=(1, 64, 64), model=str(folder))
        assert plain.backbone.channels == 1
        assert torch.equal(plain.eval().backbone(x)[-1], plain.backbone.model(x).feature_maps[-1])
    with pytest.raises(UserError, match="reads images of 3 channels, these have 2; set data.channels=3"):
        student(shape=(2, 64, 64), model=str(folder), pretrained=True)


def test_folders_that_hold_something_else(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no config.json; give a folder with"):
        student(model=str(tmp_path))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"has no model.safetensors"):
        student(model=str(tmp_path), pretrained=True)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be loaded"):
        student(model=str(tmp_path), pretrained=True)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({name: w for name, w in weights.items() if "stages.3" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"its file lacks weights \(\d+ missing: .*; give a whole model"):
        student(model=str(tmp_path), pretrained=True)
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UserError, match="cannot be read .*give an image model"):
        student(model=str(tmp_path))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"model": "resnett"}, "model=resnett: there is no such architecture .* folder; did you mean 'resnet'?"),
        ({"model": "./none"}, "no such architecture and no such folder; give an architecture, a folder"),
        ({"model": "resnet", "pretrained": True}, "is an architecture, which has no weights; give a folder"),
        ({"model": "resnet", "config": {"depth": 3}}, "config.depth: resnet has no such option; did you mean .depths"),
        ({"model": "resnet", "config": {"depths": "a"}}, "network.backbone.config: is not one of resnet .*'depths'"),
        ({"model": "bert"}, "model=bert: reads no images; give an image model"),
        ({"model": "resnet", "config": {**SMALL["resnet"][0], "layer_type": "none"}}, "network.backbone"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_students(backbone: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        student(**backbone)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def down(*args: Any, **more: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", down)
    with pytest.raises(
        UserError, match=r"model=org/none: .* the hub cannot be reached \(ConnectionError\); without inter"
    ):
        student(model="org/none", pretrained=True)


def test_transformers_is_imported_for_its_own_models_alone() -> None:
    code = """
import sys
from twofold.networks import build
from twofold.settings.student import StudentSettings
build(StudentSettings(), (3, 32, 32))
print(sorted(name for name in ("transformers", "huggingface_hub") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


FOREIGN = {"kind": "transformers", "model": "resnet", "config": SMALL["resnet"][0]}
DIGITS: dict[str, Any] = {
    "data": {"source": "digits"},
    "objective": {"kind": "supervised"},
    "train": {"n_images": 256, "batch_size": 64, "save_images": 128, "lr": 1e-2, "ema_halflife_images": 0},
    "validation": {"samples": 0},
}


@pytest.mark.parametrize(
    "backbone", [{"kind": "resnet", "blocks": [1, 1], "channels": 8}, {"kind": "wide", "depth": 10, "width": 1}]
)
def test_a_student_is_a_classifier(tmp_path: Path, backbone: dict[str, Any]) -> None:
    """Trained by itself, saved and loaded: what it says after is what it said before."""
    network = {"kind": "student", "backbone": backbone, "head": {"kind": "pool"}}
    settings, _ = resolve(TrainSettings, [("test", {**DIGITS, "network": network})])
    result = train(settings, tmp_path / "run", device="cpu")
    assert result["n_images"] == 256
    model: Any = twofold.load(tmp_path / "run")
    assert isinstance(model.network, Student) and len(model.class_names) == 10
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    again = load_model(tmp_path / "run" / "model.safetensors")
    assert torch.equal(model.image_logits(images), again.image_logits(images))  # type: ignore[union-attr]
    assert model.image_logits(images).shape == (3, 10) and not model.training


def test_published_weights_are_not_needed_again(tmp_path: Path, folder: Path) -> None:
    """The saved model holds its own options: it loads when what it started from is gone."""
    from shutil import copytree, rmtree

    source = tmp_path / "source"
    copytree(folder, source)
    network = {"kind": "student", "backbone": {"kind": "transformers", "model": str(source), "pretrained": True}}
    values = {**DIGITS, "network": {**network, "head": {"kind": "pool"}}}
    values["data"] = {"source": "digits", "size": 32}
    values["train"] = {**DIGITS["train"], "n_images": 64, "lr": 1e-9}
    settings, _ = resolve(TrainSettings, [("test", values)])
    train(settings, tmp_path / "run", device="cpu")
    started = Student(settings.network, (1, 32, 32), 10).eval()  # type: ignore[arg-type]
    rmtree(source)
    loaded: Any = twofold.load(tmp_path / "run")
    for name, value in started.backbone.model.named_parameters():
        assert torch.allclose(loaded.network.backbone.model.get_parameter(name), value, atol=1e-6)
    x = torch.rand(2, 1, 32, 32) * 2 - 1
    assert loaded.logits(x).shape == (2, 10)
    assert torch.equal(loaded.network.backbone.mean, started.backbone.mean) and len(started.backbone.mean[0]) == 3
