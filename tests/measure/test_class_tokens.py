"""Class tokens before the last norm: tiny models with random weights, against an independent forward pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from twofold.errors import UserError
from twofold.measure import check_fits, encoder
from twofold.measure.class_tokens import ClassTokenEncoder
from twofold.measure.msn_weights import _empty, interpolated, msn_model

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
}
PROCESSOR = {"do_resize": True, "size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def pictures(n: int = 2, height: int = 20, width: int = 24, channels: int = 3) -> Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (n, channels, height, width), dtype=np.uint8))


def published(
    width: int = 64, depth: int = 2, patch: int = 32, tokens: int = 50, hidden: int = 96
) -> dict[str, Tensor]:
    """Random weights by the names of the published files; 50 tokens are 224 x 224 in patches of 32."""
    g, hidden = torch.Generator().manual_seed(0), 96

    def of(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g) * 0.2

    weights = {
        "cls_token": of(1, 1, width),
        "pos_embed": of(1, tokens, width),
        "patch_embed.proj.weight": of(width, 3, patch, patch) / patch,
        "patch_embed.proj.bias": of(width),
        "norm.weight": 1 + of(width),
        "norm.bias": of(width),
    }
    layers = {"norm1": (), "attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm2": ()}
    for n in range(depth):
        for name, shape in {**layers, "mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}.items():
            weights[f"blocks.{n}.{name}.weight"] = of(*shape) if shape else 1 + of(width)
            weights[f"blocks.{n}.{name}.bias"] = of(shape[0] if shape else width)
    return weights


def tokens_after(weights: dict[str, Tensor], x: Tensor, heads: int) -> list[Tensor]:
    """Class tokens after every block, by the definition of a pre-norm vision transformer."""

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, value: Tensor) -> Tensor:
        value = value - value.mean(-1, keepdim=True)
        value = value / (value.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return value * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    patch = weights["patch_embed.proj.weight"].shape[-1]
    patches = x.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    h = patches @ weights["patch_embed.proj.weight"].flatten(1).T + weights["patch_embed.proj.bias"]
    h = torch.cat([weights["cls_token"].expand(len(x), -1, -1), h], 1) + weights["pos_embed"]
    found = []
    for n in range(sum(name.endswith("qkv.bias") for name in weights)):
        qkv = linear(f"blocks.{n}.attn.qkv", norm(f"blocks.{n}.norm1", h))
        q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        h = h + linear(f"blocks.{n}.attn.proj", mixed.transpose(1, 2).flatten(2))
        h = h + linear(f"blocks.{n}.mlp.fc2", F.gelu(linear(f"blocks.{n}.mlp.fc1", norm(f"blocks.{n}.norm2", h))))
        found.append(h[:, 0])
    return found


def saved(path: Path, weights: dict[str, Tensor]) -> Path:
    state = {"target_encoder": {f"module.{name}": value for name, value in weights.items()}}
    others = {"encoder": {"module.cls_token": torch.zeros(1)}, "prototypes": torch.zeros(4, 2), "epoch": 300, "lr": 0.1}
    torch.save({**state, **others}, path)
    return path


def test_a_published_file_is_read(tmp_path: Path) -> None:
    weights = published(128)
    path = saved(tmp_path / "vit_300ep.pth.tar", weights | {"fc.weight": torch.ones(3)})
    found = encoder(f"cls:{path}")
    assert isinstance(found, ClassTokenEncoder) and found.name == "cls:vit_300ep.pth.tar"
    assert found.model.config._attn_implementation == "sdpa"
    images = pictures(2, 260, 300)
    expected = tokens_after(weights, found.prepare(images), 2)
    torch.testing.assert_close(found.embed(images), expected[-1], rtol=1e-4, atol=1e-4)
    two = encoder(f"cls2:{path}")
    torch.testing.assert_close(two.embed(images), torch.cat(expected, 1), rtol=1e-4, atol=1e-4)
    assert len({found.version, two.version}) == 2 and two.name == "cls2:vit_300ep.pth.tar"
    save_file({f"module.{name}": value for name, value in weights.items()}, tmp_path / "alone.safetensors")
    assert torch.equal(encoder(f"cls:{tmp_path / 'alone.safetensors'}").embed(images), found.embed(images))
    assert check_fits(f"cls:{path}", (3, 224, 224)) == f"cls:{path}"


def test_images_are_prepared_as_published(tmp_path: Path) -> None:
    """Resized by Pillow there and by torch here: at most one level of 255 apart, up to the normalisation."""
    found = ClassTokenEncoder(str(saved(tmp_path / "vit.pth.tar", published())))
    images, resized = pictures(2, 300, 400), []
    for image in images:
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((341, 256), Image.Resampling.BILINEAR)
        resized.append(np.asarray(picture.crop((58, 16, 58 + 224, 16 + 224))))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((np.stack(resized) / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert np.abs(found.prepare(images).numpy() - expected).max() < 1.05 / 255 / 0.224


def test_positions_of_another_grid_are_interpolated(tmp_path: Path) -> None:
    weights = published(tokens=17)
    path = saved(tmp_path / "small.pth.tar", weights)
    found = ClassTokenEncoder(str(path))
    grid = weights["pos_embed"][:, 1:].reshape(1, 4, 4, 64).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=7 / 4, mode="bicubic").permute(0, 2, 3, 1).reshape(1, 49, 64)
    full = weights | {"pos_embed": torch.cat([weights["pos_embed"][:, :1], grid], 1)}
    expected = tokens_after(full, found.prepare(pictures()), 1)[-1]
    torch.testing.assert_close(found.embed(pictures()), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(interpolated(full["pos_embed"], 50, path), full["pos_embed"])
    flat = torch.ones(1, 17, 3)
    torch.testing.assert_close(interpolated(flat, 50, path), torch.ones(1, 50, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.bias": None}, "lacks norm.bias"),
        ({"extra": torch.ones(1)}, "also holds extra"),
        ({"patch_embed.proj.weight": None}, "no vision transformer in MSN's layout"),
        ({"pos_embed": torch.ones(1, 12, 64)}, "12 positions are no square"),
        ({"blocks.0.attn.proj.bias": torch.ones(3)}, "of shape"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, Tensor | None], message: str) -> None:
    weights = {name: value for name, value in {**published(), **change}.items() if value is not None}
    with pytest.raises(UserError, match=message):
        msn_model(saved(tmp_path / "bad.pth.tar", weights))


def test_patches_that_do_not_fill_the_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="patches of 32 x 32 pixels do not fill 100 x 100"):
        msn_model(saved(tmp_path / "vit.pth.tar", published()), 100)


@pytest.mark.parametrize(
    ("width", "depth", "patch", "count"),
    [(768, 12, 4, 87_503_616), (1024, 24, 7, 303_513_600), (768, 12, 16, 85_798_656), (384, 12, 16, 21_665_664)],
)
def test_parameter_counts(monkeypatch: pytest.MonkeyPatch, width: int, depth: int, patch: int, count: int) -> None:
    model_type = transformers.ViTMSNModel
    monkeypatch.setattr(model_type, "to_empty", lambda self, device: self)  # stays on the meta device
    model = _empty(width, depth, 4 * width, patch, 224)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


MODELS = {
    "ViTMSN": "layernorm",
    "ViT": "layernorm",
    "Dinov2": "layernorm",
    "Dinov2WithRegisters": "layernorm",
    "DINOv3ViT": "norm",
    "DeiT": "layernorm",
    "CLIPVision": "post_layernorm",
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_norm_after_it_gives_what_the_model_gives(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL)
    kwargs = {"add_pooling_layer": False} if kind in ("ViT", "DeiT") else {}
    model = getattr(transformers, f"{kind}Model")(config, **kwargs).eval()
    norm = next(part for name, part in model.named_modules() if name.endswith(MODELS[kind]))
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    model.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny/preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    found = encoder(f"cls:{tmp_path / 'tiny'}")
    features = found.embed(pictures())
    assert features.shape == (2, 16) and not features.requires_grad
    with torch.no_grad():
        output = model(pixel_values=found.prepare(pictures()))  # type: ignore[attr-defined]
        expected = output.pooler_output if kind == "CLIPVision" else output.last_hidden_state[:, 0]
    torch.testing.assert_close(norm(features), expected, rtol=1e-4, atol=1e-4)
    three = encoder(f"cls3:{tmp_path / 'tiny'}").embed(pictures())
    assert three.shape == (2, 48)
    torch.testing.assert_close(three[:, 32:], features)


def test_without_a_processor_images_are_as_published(tmp_path: Path) -> None:
    transformers.ViTMSNModel(transformers.ViTMSNConfig(**SMALL)).save_pretrained(tmp_path / "tiny")
    found = ClassTokenEncoder(str(tmp_path / "tiny"))
    assert found.prepare(pictures()).shape == (2, 3, 224, 224) and "centre 224 x 224" in found.version
    assert found.embed(pictures()).shape == (2, 16)  # its 2 x 2 positions serve 16 x 16 patches


def test_what_has_no_class_token(tmp_path: Path) -> None:
    transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL)).save_pretrained(tmp_path / "siglip")
    layers = {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8, "layer_type": "basic"}
    transformers.ResNetModel(transformers.ResNetConfig(**layers)).save_pretrained(tmp_path / "resnet")
    for name in ("siglip", "resnet"):
        with pytest.raises(UserError, match="has no class token; use transformers:SRC"):
            encoder(f"cls:{tmp_path / name}")


def test_more_blocks_than_there_are_and_images_that_do_not_fit(tmp_path: Path) -> None:
    transformers.ViTModel(transformers.ViTConfig(**SMALL), add_pooling_layer=False).save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny/preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    with pytest.raises(UserError, match="the model has 3 blocks; cls1 to cls3"):
        encoder(f"cls4:{tmp_path / 'tiny'}")
    shutil.copytree(tmp_path / "tiny", tmp_path / "odd")
    (tmp_path / "odd/preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"size": {"height": 8, "width": 8}}))
    with pytest.raises(UserError, match="does not take images of 8 x 8"):
        encoder(f"cls:{tmp_path / 'odd'}")
    with pytest.raises(UserError, match="no such folder"):
        encoder(f"cls:{tmp_path / 'none.pth.tar'}")
    with pytest.raises(UserError, match="images of 2 channels"):
        encoder(f"cls:{tmp_path / 'tiny'}").embed(pictures(channels=2))
