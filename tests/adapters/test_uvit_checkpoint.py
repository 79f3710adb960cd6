"""U-ViTs in the layout they were published in, against a computation of our own from weights of those names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from twofold import load
from twofold.adapters import uvit_checkpoint
from twofold.adapters.latent_codec import LatentCodec, NoCodec
from twofold.adapters.uvit_checkpoint import settings_of
from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.networks.uvit import UViT
from twofold.noise import as_sigma
from twofold.settings.checkpoint import CheckpointSettings

from . import peers

WIDTH, HEADS, PATCH = 24, 3, 2


def published(
    channels: int = 4, labels: int = 4, side: int = 4, depth: int = 4, conv: bool = True, skip: bool = True, **more: Any
) -> dict[str, Tensor]:
    """Random weights under the names, and in the order, that the authors' files have. labels: 0 = without."""
    generator = torch.Generator().manual_seed(0)
    width, patch = more.get("width", WIDTH), more.get("patch", PATCH)
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, side**2 + 1 + bool(labels), width)}

    def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    shapes |= {"patch_embed.proj.weight": (width, channels, patch, patch), "patch_embed.proj.bias": (width,)}
    if more.get("time_mlp"):
        linear("time_embed.0", 4 * width, width)
        linear("time_embed.2", width, 4 * width)
    if labels:
        shapes["label_emb.weight"] = (labels, width)
    early, late = ([f"{kind}_blocks.{k}" for k in range(depth // 2)] for kind in ("in", "out"))
    for name in [*early, "mid_block", *late]:
        shapes |= {f"{name}.norm{k}.{part}": (width,) for k in (1, 2) for part in ("weight", "bias")}
        linear(f"{name}.attn.qkv", 3 * width, width, bias=bool(more.get("qkv_bias")))
        linear(f"{name}.attn.proj", width, width)
        linear(f"{name}.mlp.fc1", 4 * width, width)
        linear(f"{name}.mlp.fc2", width, 4 * width)
        if skip and name in late:
            linear(f"{name}.skip_linear", width, 2 * width)
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    linear("decoder_pred", patch**2 * channels, width)
    if conv:
        shapes |= {"final_layer.weight": (channels, channels, 3, 3), "final_layer.bias": (channels,)}
    if more.get("meta"):
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def expected(w: dict[str, Tensor], x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """What such weights compute, as the paper has it."""
    half = WIDTH // 2
    angle = t[:, None] * torch.exp(-math.log(10000) / half * torch.arange(half))
    time = torch.cat([angle.cos(), angle.sin()], 1)
    if "time_embed.0.weight" in w:
        hidden = F.silu(F.linear(time, w["time_embed.0.weight"], w["time_embed.0.bias"]))
        time = F.linear(hidden, w["time_embed.2.weight"], w["time_embed.2.bias"])
    extra = [time] if label is None else [w["label_emb.weight"][label], time]
    patches = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH)
    z = torch.cat([torch.stack(extra, 1), patches.flatten(2).mT], 1) + w["pos_embed"]

    def block(name: str, z: Tensor, skip: Tensor | None = None) -> Tensor:
        part = lambda n: (w[f"{name}.{n}.weight"], w.get(f"{name}.{n}.bias"))  # noqa: E731
        if skip is not None and f"{name}.skip_linear.weight" in w:
            z = F.linear(torch.cat([z, skip], 2), *part("skip_linear"))
        qkv = F.linear(F.layer_norm(z, (WIDTH,), *part("norm1")), *part("attn.qkv"))
        q, k, v = qkv.view(*z.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v
        z = z + F.linear(seen.transpose(1, 2).flatten(2), *part("attn.proj"))
        hidden = F.gelu(F.linear(F.layer_norm(z, (WIDTH,), *part("norm2")), *part("mlp.fc1")))
        return z + F.linear(hidden, *part("mlp.fc2"))

    count, skips = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("in_blocks.")), []
    for k in range(count):
        z = block(f"in_blocks.{k}", z)
        skips.append(z)
    z = block("mid_block", z)
    for k in range(count):
        z = block(f"out_blocks.{k}", z, skips.pop())
    z = F.linear(F.layer_norm(z, (WIDTH,), w["norm.weight"], w["norm.bias"]), w["decoder_pred.weight"])
    z = (z + w["decoder_pred.bias"])[:, len(extra) :]
    b, side = len(x), x.shape[2] // PATCH
    # rows of a pixel after pixel: (p1 p2 C)
    image = z.view(b, side, side, PATCH, PATCH, -1).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)
    if "final_layer.weight" in w:
        image = F.conv2d(image, w["final_layer.weight"], w["final_layer.bias"], padding=1)
    return image


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"labels": 0, "channels": 3, "conv": False},
        {"time_mlp": True, "qkv_bias": True, "skip": False},
    ],
    ids=str,
)
def test_outputs_are_those_of_the_paper(options: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    path, weights = tmp_path / f"uvit{suffix}", published(**options)
    names = ["a", "b", "c"] if "label_emb.weight" in weights else []
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    path.with_suffix(".json").write_text(json.dumps({"heads": HEADS, "class_names": names}))
    model = load(path)
    assert isinstance(model, NetworkDenoiser) and isinstance(model.network, UViT) and not model.network.training
    channels = options.get("channels", 4)
    assert model.shape == (channels, 8, 8) and model.classes == len(names) and list(model.class_names) == names
    assert isinstance(model.codec, NoCodec) == (channels == 4) and model.clip == (channels == 3)
    x, t, label = torch.randn(3, channels, 8, 8), torch.tensor([0.0999, 500.5, 999.0]), torch.tensor([0, 2, -1])
    if not names:
        label = None
    with torch.no_grad():
        found = model.network(x, t, None if label is None else {"label": label})
        theirs = expected(weights, x, t, None if label is None else torch.where(label < 0, 3, label))
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)


def test_noise_is_that_of_the_published_models(tmp_path: Path) -> None:
    """Continuous time down to 1e-4, told as 999 t; where there is no last convolution, the table, told as 1 .. 1000."""
    path = tmp_path / "uvit.pth"
    for conv, low, high, first, last in ((True, 0.003178, 152.167, 0.0999, 999), (False, 0.029167, 14.614641, 1, 1000)):
        torch.save(published(conv=conv), path)
        model = uvit_checkpoint.read(path, heads=HEADS)
        assert model.sigma_range == pytest.approx((low, high), rel=1e-3)
        ends = model.family.coefficients(as_sigma(torch.tensor(model.sigma_range).double())).c_noise
        assert ends.tolist() == pytest.approx([first, last], rel=1e-4)
    own = uvit_checkpoint.read(path, heads=HEADS, noise={"table": "linear", "predicts": "x0"})
    assert own.sigma_range == pytest.approx((0.01, 157.407), rel=1e-3)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "patch", "side", "labels", "count"),
    [
        (512, 12, 8, 2, 16, 0, 44_255_328),
        (768, 16, 12, 2, 16, 1001, 130_891_940),
        (1024, 20, 16, 2, 16, 1001, 286_763_172),
        (1152, 28, 16, 2, 16, 1001, 500_832_016),
        (1024, 20, 16, 4, 16, 1001, 286_861_524),
    ],
    ids=["S", "M", "L", "H", "L/4"],
)
def test_published_widths_tell_the_heads(
    width: int, depth: int, heads: int, patch: int, side: int, labels: int, count: int
) -> None:
    channels = 4 if labels else 3
    kinds = {"width": width, "patch": patch, "meta": True, "conv": width != 1152}
    weights = published(channels, labels, side, depth, **kinds)
    assert sum(value.numel() for value in weights.values()) == count
    settings, shape = settings_of("x.pth", weights, CheckpointSettings())
    assert shape == (channels, side * patch, side * patch) and settings.heads == heads and settings.depth == depth
    assert settings.classes == max(0, labels - 1)
    with torch.device("meta"):
        ours = UViT(settings, shape)
    assert sum(p.numel() for p in ours.parameters()) == count
    assert {uvit_checkpoint.published_name(name) for name in ours.state_dict()} == weights.keys()


def test_models_that_always_knew_the_class(tmp_path: Path) -> None:
    """As many labels as names, or as ImageNet has: then none of them is "no label", and one is added."""
    path, weights = tmp_path / "uvit.pth", published(channels=3, labels=3)
    torch.save(weights, path)
    model = uvit_checkpoint.read(path, heads=HEADS, class_names=["a", "b", "c"])
    assert model.classes == 3 and not bool(model.network.label.weight[-1].any())  # type: ignore[union-attr, index]
    x, t, label = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([2, 0])
    with torch.no_grad():
        torch.testing.assert_close(model.network(x, t, {"label": label}), expected(weights, x, t, label))
    assert uvit_checkpoint.read(path, heads=HEADS).classes == 2
    torch.save(published(channels=3, labels=1000), path)
    assert uvit_checkpoint.read(path, heads=HEADS).classes == 1000


def test_the_autoencoder_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    torch.save(published(), tmp_path / "uvit.pth")
    peers.autoencoder().save_pretrained(tmp_path / "vae")
    model = uvit_checkpoint.read(tmp_path / "uvit.pth", heads=HEADS, autoencoder="vae")
    assert isinstance(model.codec, LatentCodec) and model.codec.size == (16, 16)
    with pytest.raises(UserError, match="without its autoencoder"):
        uvit_checkpoint.read(tmp_path / "uvit.pth", heads=HEADS).codec.decode(torch.zeros(1, 4, 8, 8))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path, whole = tmp_path / "uvit.pth", published()

    def refused(weights: dict[str, Tensor], message: str, **options: Any) -> None:
        torch.save(weights, path)
        with pytest.raises(UserError, match=message):
            uvit_checkpoint.read(path, **options)

    def without(name: str) -> dict[str, Tensor]:
        return {n: v for n, v in whole.items() if n != name}

    refused(whole, r"its weights do not tell heads; write them to uvit\.json: {")
    refused(whole, "heads=5 of .*: does not divide the width 24", heads=5)
    refused(whole, "head_channels=7 of .*: does not divide the width 24", head_channels=7)
    refused(whole, "class_names of .*: 2 names; the network knows 3 classes", heads=3, class_names=["a", "b"])
    for name in ("pos_embed", "out_blocks.1.mlp.fc2.bias", "patch_embed.proj.weight"):
        refused(without(name), f"1 missing: {name}", heads=3)
    refused({**whole, "context_embed.weight": torch.zeros(1)}, "1 surplus: context_embed.weight", heads=3)
    refused({**whole, "norm.bias": torch.zeros(3)}, r"norm\.bias has shape \(3,\), not \(24,\)", heads=3)
    refused({**whole, "patch_embed.proj.weight": torch.zeros(24, 4, 2, 2, 2)}, "not 4 axes", heads=3)
    refused(
        {**whole, "pos_embed": torch.zeros(1, 17, 24)}, "15 positions of patches of 2 are not those of 6x6", heads=3
    )
    refused(whole, "16 positions of patches of 2 are not those of 9x9", heads=3, size=9)
    refused(without("in_blocks.1.norm1.bias"), "1 missing: in_blocks.1.norm1.bias", heads=3)
    early = {n: v for n, v in whole.items() if not n.startswith("in_blocks.1.")}
    refused(early, "depth=3 is odd", heads=3)
    torch.save(whole, path)
    assert uvit_checkpoint.read(path, head_channels=8).shape == (4, 8, 8)
