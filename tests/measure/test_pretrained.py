"""Encoders from `transformers`: tiny models with random weights, saved and read as real ones are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from twofold.errors import UserError
from twofold.measure import check_fits, encoder
from twofold.measure.pretrained import TransformersEncoder, sizes

transformers = pytest.importorskip("transformers")

PROCESSOR = {
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "image_processor_type": "BitImageProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 32},
}


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-dinov2"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    config = transformers.Dinov2Config(image_size=28, patch_size=14, **sizes)
    transformers.Dinov2Model(config).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return path


def pictures(n: int = 3, height: int = 20, width: int = 24, channels: int = 3) -> Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (n, channels, height, width), dtype=np.uint8))


def test_the_class_token_of_a_local_folder(dino: Path) -> None:
    found = encoder(f"transformers:{dino}")
    assert isinstance(found, TransformersEncoder) and found.name == "tiny-dinov2"
    features = found.embed(pictures())
    assert features.shape == (3, 16) and features.dtype == torch.float32 and not features.requires_grad
    model = transformers.Dinov2Model.from_pretrained(dino).eval()
    with torch.no_grad():
        expected = model(pixel_values=found.prepare(pictures())).last_hidden_state[:, 0]
    torch.testing.assert_close(features, expected)
    assert torch.equal(features, found.embed(pictures()))
    grey = pictures(channels=1)
    torch.testing.assert_close(found.embed(grey), found.embed(grey.repeat(1, 3, 1, 1)))
    assert check_fits(f"transformers:{dino}", (3, 224, 224)) == f"transformers:{dino}"
    with pytest.raises(UserError, match="images of 4 channels"):
        found.embed(pictures(channels=4))
    with pytest.raises(TypeError, match="uint8"):
        found.embed(pictures().float())


@pytest.mark.parametrize("shape", [(20, 24), (50, 40), (32, 32)])
def test_images_are_prepared_as_by_the_models_own_processor(dino: Path, shape: tuple[int, int]) -> None:
    """Resized by Pillow there and by torch here: at most one level of 255 apart, up to the normalisation."""
    found = TransformersEncoder(str(dino))
    images = pictures(2, *shape)
    resized, (height, width) = [], shape
    ratio = 32 / min(shape)
    for image in images:
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture = picture.resize((max(32, int(width * ratio)), max(32, int(height * ratio))), Image.Resampling.BICUBIC)
        left, top = (picture.width - 28) // 2, (picture.height - 28) // 2
        resized.append(np.asarray(picture.crop((left, top, left + 28, top + 28))))
    mean, std = np.array(PROCESSOR["image_mean"]), np.array(PROCESSOR["image_std"])
    expected = ((np.stack(resized) / 255 - mean) / std).transpose(0, 3, 1, 2)
    apart = np.abs(found.prepare(images).numpy() - expected).max()
    assert apart < 1.05 / 255 / 0.224


def test_the_version_follows_weights_and_transform(dino: Path, tmp_path: Path) -> None:
    versions = {TransformersEncoder(str(dino)).version}
    model = transformers.Dinov2Model.from_pretrained(dino)
    model.save_pretrained(tmp_path / "other-size")
    (tmp_path / "other-size/preprocessor_config.json").write_text(
        json.dumps(PROCESSOR | {"size": {"shortest_edge": 30}})
    )
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "other-weights")
    (tmp_path / "other-weights/preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    versions |= {TransformersEncoder(str(tmp_path / name)).version for name in ("other-size", "other-weights")}
    assert len(versions) == 3


def test_the_image_side_of_clip_and_a_map(tmp_path: Path) -> None:
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = {**small, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config={**small, "vocab_size": 50}, vision_config=vision)
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    assert TransformersEncoder(str(tmp_path / "clip")).embed(pictures()).shape == (3, 16)
    layers = {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8, "layer_type": "basic"}
    transformers.ResNetModel(transformers.ResNetConfig(**layers)).save_pretrained(tmp_path / "resnet")
    assert TransformersEncoder(str(tmp_path / "resnet")).embed(pictures()).shape == (3, 16)


def test_sizes_in_every_way_they_are_written(dino: Path) -> None:
    model = TransformersEncoder(str(dino)).model
    assert sizes({}, model) == ((28, 28), None)
    assert sizes({"size": 32}, model) == ((32, 32), None)
    assert sizes({"size": 32, "crop_size": 28, "do_center_crop": True}, model) == (32, (28, 28))
    assert sizes({"size": {"height": 20, "width": 30}}, model) == ((20, 30), None)
    assert sizes(PROCESSOR, model) == (32, (28, 28))
    assert sizes({"size": {"longest_edge": 500}}, model) == ((28, 28), None)


@pytest.mark.parametrize("edge", [24, 384])
def test_convnext_crops_by_a_share(tmp_path: Path, edge: int) -> None:
    """Resized by Pillow there and by torch here: at most one level of 255 apart, up to the normalisation."""
    layers = {"hidden_sizes": [4, 4, 4, 4], "depths": [1, 1, 1, 1]}
    transformers.ConvNextModel(transformers.ConvNextConfig(**layers)).save_pretrained(tmp_path / "tiny")
    processor = pytest.importorskip("transformers.models.convnext.image_processing_pil_convnext")
    theirs = processor.ConvNextImageProcessorPil(size={"shortest_edge": edge}, crop_pct=0.8)
    theirs.save_pretrained(tmp_path / "tiny")
    found, images = TransformersEncoder(str(tmp_path / "tiny")), pictures(2, 40, 52)
    expected = theirs([Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images], return_tensors="np")
    ours = found.prepare(images).numpy()
    assert ours.shape == expected["pixel_values"].shape == (2, 3, edge, edge)
    assert np.abs(ours - expected["pixel_values"]).max() < 1.05 / 255 / 0.224


def test_a_pooling_layer_without_weights_is_not_read(tmp_path: Path) -> None:
    """A classifier's file has none; transformers would make one up, another one each time."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(image_size=16, patch_size=8, **small)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "vit")
    one, two = (TransformersEncoder(str(tmp_path / "vit")) for _ in range(2))
    assert one.version == two.version and torch.equal(one.embed(pictures()), two.embed(pictures()))
    with torch.no_grad():
        expected = model.vit(pixel_values=one.prepare(pictures())).last_hidden_state[:, 0]
    torch.testing.assert_close(one.embed(pictures()), expected)
    file = tmp_path / "vit/model.safetensors"
    tensors = load_file(file)
    del tensors["vit.layernorm.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights \(3 missing: layernorm.weight, pooler.dense.bias"):
        TransformersEncoder(str(tmp_path / "vit"))


def test_what_is_no_image_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder; give ORG/NAME"):
        encoder(f"transformers:{tmp_path / 'nowhere'}")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=50, **small)).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="BertModel reads no images"):
        encoder(f"transformers:{tmp_path / 'bert'}")
    torch.save({}, tmp_path / "bert/pytorch_model.bin")
    (tmp_path / "bert/model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):  # weights that would have to be unpickled
        encoder(f"transformers:{tmp_path / 'bert'}")


class NoHub:
    """A machine without internet, which counts what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.asked: list[str] = []
        self.error = ConnectionError("no route") if error is None else error
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", self.model_info)
        monkeypatch.setattr("transformers.AutoModel.from_pretrained", self.unwanted)

    def model_info(self, name: str, timeout: float) -> None:
        assert timeout <= 10
        self.asked.append(name)
        raise self.error

    def unwanted(self, *args: Any, **options: Any) -> None:
        raise AssertionError("it was to be seen before that the model is not there")


def test_the_hub_is_asked_once_and_folders_never(dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = NoHub(monkeypatch)
    monkeypatch.chdir(dino.parent)
    with pytest.raises(UserError) as caught:
        encoder("transformers:org/some-model")
    assert str(caught.value) == (
        "encoder=transformers:org/some-model: there is no such folder here, and the hub cannot be reached "
        "(ConnectionError); without internet, download the model elsewhere and give its folder"
    )
    assert hub.asked == ["org/some-model"]
    for name in ("./tiny-dino", "../x/y/z", str(tmp_path / "x")):
        with pytest.raises(UserError, match="there is no such folder; "):
            encoder(f"transformers:{name}")
    with pytest.raises(UserError, match=r"there is no such folder; did you mean 'tiny-dinov2'\?$"):
        encoder("transformers:./tiny-dino")
    assert len(hub.asked) == 1
    with pytest.raises(UserError, match=r"cannot be reached .*; did you mean 'tiny-dinov2'\?$"):
        encoder("transformers:tiny-dino")


def test_a_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.errors import HFValidationError

    NoHub(monkeypatch, HFValidationError("not a name"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such model on the hub .*; give ORG/NAME, or a folder"):
        encoder("transformers:org/some--model")


def test_what_the_cache_holds_needs_no_hub(dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0" * 40
    folder = tmp_path / "models--org--tiny"
    (folder / "refs").mkdir(parents=True), (folder / "snapshots").mkdir()
    (folder / "refs/main").write_text(commit)
    shutil.copytree(dino, folder / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    with monkeypatch.context() as offline:
        offline.setattr("huggingface_hub.HfApi.model_info", None)
        found = TransformersEncoder("org/tiny")
    assert found.version == TransformersEncoder(str(dino)).version
    (folder / "snapshots" / commit / "preprocessor_config.json").unlink()  # then nobody knows how images are prepared
    hub = NoHub(monkeypatch)
    with pytest.raises(UserError, match="the hub cannot be reached"):
        TransformersEncoder("org/tiny")
    assert hub.asked == ["org/tiny"]


def test_libraries_are_silent_while_loading(dino: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    TransformersEncoder(str(dino))
    told = capfd.readouterr()
    assert told.out == "" and told.err == ""
    assert before == (logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled())
