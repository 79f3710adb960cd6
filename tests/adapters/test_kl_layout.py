"""The published layout of autoencoders against diffusers' own conversion, and its model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from twofold.adapters.kl_layout import assembled, present_name, read_kl
from twofold.adapters.latent_codec import LatentCodec
from twofold.errors import UserError
from twofold.networks.autoencoder import Autoencoder
from twofold.settings.network import AutoencoderSettings

pytest.importorskip("diffusers")
LEVELS = 3


def published_names() -> list[tuple[str, str]]:
    """(published, diffusers') names of every module of the layout with three levels of two blocks, written out."""
    pairs = [("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]
    blocks = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
    attention = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    for side, way in (("encoder", "down"), ("decoder", "up")):
        pairs += [(f"{side}.{name}", f"{side}.{name}") for name in ("conv_in", "conv_out")]
        pairs += [(f"{side}.norm_out", f"{side}.conv_norm_out")]
        for i in range(LEVELS):
            there = i if way == "down" else LEVELS - 1 - i
            for j in range(3):
                for name in blocks:
                    here = "conv_shortcut" if name == "nin_shortcut" else name
                    pairs.append(
                        (f"{side}.{way}.{i}.block.{j}.{name}", f"{side}.{way}_blocks.{there}.resnets.{j}.{here}")
                    )
            sampler = f"{side}.{way}_blocks.{there}.{way}samplers.0.conv"
            pairs.append((f"{side}.{way}.{i}.{way}sample.conv", sampler))
        for j in (1, 2):
            pairs += [(f"{side}.mid.block_{j}.{n}", f"{side}.mid_block.resnets.{j - 1}.{n}") for n in blocks[:4]]
        pairs += [(f"{side}.mid.attn_1.{a}", f"{side}.mid_block.attentions.0.{b}") for a, b in attention.items()]
    return pairs


def vae(**options: object):  # type: ignore[no-untyped-def]
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    widths = (32, 32, 64)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        **options,
    ).eval()


def as_published(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of diffusers' model under their published names, attention as convolutions."""
    back = {there: here for here, there in published_names()}
    found = {}
    for name, value in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        convolution = ".attentions." in name and kind == "weight" and value.ndim == 2
        found[f"{back[module]}.{kind}"] = value[..., None, None].clone() if convolution else value.clone()
    return found


def test_every_name_has_its_place() -> None:
    for here, there in published_names():
        assert present_name("x", f"{here}.weight", LEVELS) == f"{there}.weight"


def test_the_names_are_those_of_diffusers_own_conversion() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    model = vae()
    inside = {f"first_stage_model.{name}": value for name, value in as_published(model).items()}
    theirs = convert_ldm_vae_checkpoint(inside, dict(model.config))
    ours = assembled("x", as_published(model)).state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name].reshape(ours[name].shape), ours[name]) for name in ours)


@pytest.mark.parametrize("wrapped", ["plain", "training state", "latent model"])
def test_a_file_computes_what_the_model_does(wrapped: str, tmp_path: Path) -> None:
    model = vae()
    weights = as_published(model)
    path = tmp_path / "autoencoder_kl.pth"
    if wrapped == "plain":
        torch.save(weights, path)
    elif wrapped == "training state":
        torch.save({"state_dict": {**weights, "loss.logvar": torch.zeros(())}, "epoch": 3}, path)
    else:
        path = path.with_suffix(".safetensors")
        save_file({**{f"first_stage_model.{n}": v for n, v in weights.items()}, "model.x": torch.zeros(1)}, path)
    codec = LatentCodec(read_kl(path))
    assert codec.scale == 0.18215 and codec.stride == 4
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(codec.encode(images), LatentCodec(model).encode(images))
    assert torch.equal(codec.decode(codec.encode(images)), LatentCodec(model).decode(codec.encode(images)))


def test_kl_f8_has_the_published_size() -> None:
    with torch.device("meta"):
        model = Autoencoder(AutoencoderSettings(), (3, 256, 256)).vae
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(model) == 83_653_863
    assert (count(model.encoder), count(model.decoder)) == (34_163_592, 49_490_179)
    assert count(model.quant_conv) + count(model.post_quant_conv) == 92


def test_what_is_not_of_the_layout_is_named(tmp_path: Path) -> None:
    weights = as_published(vae())
    path = tmp_path / "x.pth"
    torch.save({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="no autoencoder in its published layout"):
        read_kl(path)
    with pytest.raises(UserError, match="1 missing: encoder.conv_out.bias"):
        assembled("x", {name: v for name, v in weights.items() if name != "encoder.conv_out.bias"})
    with pytest.raises(UserError, match="encoder.down.0.extra.weight is not of this layout"):
        assembled("x", {**weights, "encoder.down.0.extra.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="attention outside the middle"):
        assembled("x", {**weights, "encoder.down.2.attn.0.q.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="8 channels out of the encoder for 3"):
        assembled("x", {**weights, "post_quant_conv.weight": torch.zeros(3, 3, 1, 1)})
