"""DiTs in the layout they were published in, against diffusers' network with the same weights under other names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from twofold import load
from twofold.adapters import dit_checkpoint
from twofold.adapters.dit_checkpoint import settings_of
from twofold.adapters.latent_codec import LatentCodec
from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.networks.dit import DiT, positions
from twofold.settings.checkpoint import CheckpointSettings

from . import peers

diffusers = pytest.importorskip("diffusers")
RENAMED = {
    r"pos_embed\.proj": "x_embedder.proj",
    r"proj_out_1": "final_layer.adaLN_modulation.1",
    r"proj_out_2": "final_layer.linear",
    r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_1": "t_embedder.mlp.0",
    r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_2": "t_embedder.mlp.2",
    r"transformer_blocks\.0\.norm1\.emb\.class_embedder": "y_embedder",
    r"transformer_blocks\.(\d+)\.norm1\.linear": r"blocks.\1.adaLN_modulation.1",
    r"transformer_blocks\.(\d+)\.attn1\.to_out\.0": r"blocks.\1.attn.proj",
    r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj": r"blocks.\1.mlp.fc1",
    r"transformer_blocks\.(\d+)\.ff\.net\.2": r"blocks.\1.mlp.fc2",
}


def one_embedder(theirs: Any) -> Any:
    """As converted weights are: the embedding of every block is a copy of the first one's."""
    first = theirs.transformer_blocks[0].norm1.emb.state_dict()
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return theirs


def published(theirs: Any, table: bool = True) -> dict[str, Tensor]:
    """The peer's weights under the names, and with the table of positions, that the authors' files have."""
    weights, made = theirs.state_dict(), {}
    for k in range(len(theirs.transformer_blocks)):
        for part in ("weight", "bias"):
            rows = [weights.pop(f"transformer_blocks.{k}.attn1.to_{p}.{part}") for p in "qkv"]
            made[f"blocks.{k}.attn.qkv.{part}"] = torch.cat(rows)
    for name, value in weights.items():
        for pattern, new in RENAMED.items():
            if re.match(pattern, name):
                made[re.sub(pattern, new, name)] = value
    if table:
        made["pos_embed"] = positions(24, (4, 4), (4, 4))[None]
    return made


@pytest.fixture
def theirs() -> Any:
    """With the epsilon that the authors have, not diffusers' default."""
    return one_embedder(peers.transformer(norm_eps=1e-6))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_outputs_are_the_peers(theirs: Any, suffix: str, tmp_path: Path) -> None:
    """At t = 0, whatever the frequencies of the noise embedding: diffusers spaces them a little wider."""
    path = tmp_path / f"dit{suffix}"
    weights = published(theirs)
    if suffix == ".pt":
        torch.save(weights, path)
    else:
        save_file({name: value.contiguous() for name, value in weights.items()}, path)
    path.with_suffix(".json").write_text(json.dumps({"heads": 3, "class_names": ["a", "b", "c"]}))
    model = load(path)
    assert isinstance(model, NetworkDenoiser) and isinstance(model.network, DiT)
    assert model.shape == (4, 8, 8) and model.classes == 3 and list(model.class_names) == ["a", "b", "c"]
    assert model.learns_variance and not model.clip and model.codec.latent
    x, t, label = torch.randn(3, 4, 8, 8), torch.zeros(3), torch.tensor([0, 2, -1])
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=torch.where(label < 0, 3, label)).sample
        torch.testing.assert_close(model.network(x, t, {"label": label}), expected, rtol=1e-4, atol=1e-5)
        near = torch.full((3,), 40.0)
        differs = model.network(x, near, {"label": label}) - theirs(x, timestep=near, class_labels=label % 4).sample
    assert 0 < float(differs.abs().max()) < 0.5
    with pytest.raises(UserError, match="without its autoencoder"):
        model.codec.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_the_autoencoder_beside_it(theirs: Any, tmp_path: Path) -> None:
    torch.save(published(theirs), tmp_path / "dit.pt")
    peers.autoencoder().save_pretrained(tmp_path / "vae")
    model = dit_checkpoint.read(tmp_path / "dit.pt", heads=3, autoencoder="vae")
    assert isinstance(model.codec, LatentCodec) and model.codec.size == (16, 16)
    with pytest.raises(UserError, match="no config.json here"):
        dit_checkpoint.read(tmp_path / "dit.pt", heads=3, autoencoder="missing")


@pytest.mark.parametrize(
    ("width", "depth", "heads", "count"), [(384, 12, 6, None), (1152, 28, 16, 675_129_632)], ids=["S", "XL"]
)
def test_published_widths_tell_the_heads(width: int, depth: int, heads: int, count: int | None) -> None:
    """On the meta device; 675,129,632 parameters counting the table of positions, as their own state dict does."""
    with torch.device("meta"):
        theirs = diffusers.DiTTransformer2DModel(
            num_attention_heads=heads, attention_head_dim=width // heads, num_layers=depth, out_channels=8
        )
        weights = published(theirs, table=False)
        weights["pos_embed"] = torch.zeros(1, 256, width)
    settings, shape = settings_of("x.pt", weights, CheckpointSettings())
    assert shape == (4, 32, 32) and settings.heads == heads and settings.classes == 1000 and settings.learned_variance
    total = sum(value.numel() for value in weights.values())
    with torch.device("meta"):
        ours = DiT(settings, shape)
    assert sum(p.numel() for p in ours.parameters()) + weights["pos_embed"].numel() == total == (count or total)


def test_what_is_missing_is_named(theirs: Any, tmp_path: Path) -> None:
    path, whole = tmp_path / "dit.pt", published(theirs)

    def refused(weights: dict[str, Tensor], message: str, **options: Any) -> None:
        torch.save(weights, path)
        with pytest.raises(UserError, match=message):
            dit_checkpoint.read(path, **options)

    refused(whole, r"its weights do not tell heads; write them to dit\.json: {")
    without = {name: value for name, value in whole.items() if name != "pos_embed"}
    refused(without, "do not tell heads, size;")
    refused(whole, "heads=5 of .*: does not divide the width 24", heads=5)
    name = "blocks.1.mlp.fc2.bias"
    refused({n: v for n, v in whole.items() if n != name}, f"1 missing: {name}", heads=3)
    refused({**whole, "surprise": torch.zeros(1)}, "1 surplus: surprise", heads=3)
    refused({**whole, name: torch.zeros(3)}, r"fc2\.bias has shape \(3,\), not \(24,\)", heads=3)
    refused({**whole, "final_layer.linear.weight": torch.zeros(24, 24)}, "4 channels in, 6 out", heads=3)
    for table in (torch.zeros(1, 16, 24), positions(24, (3, 5), (3, 5))[None]):
        refused({**whole, "pos_embed": table}, "pos_embed of .* is not the table of sines and cosines", heads=3)
    refused({**whole, "x_embedder.proj.weight": torch.zeros(24, 4, 2, 2, 2)}, "not 4 axes", heads=3)
    refused({**whole, "blocks.x.weight": torch.zeros(1)}, "1 surplus: blocks.x.weight", heads=3)
    refused({**whole, "t_embedder.mlp.0.weight": torch.zeros(24, 15)}, "embedding_channels=15 is odd", heads=3)
    refused(whole, "head_channels=7 of .*: does not divide the width 24", head_channels=7)
    torch.save(without, path)
    assert dit_checkpoint.read(path, head_channels=8, size=8).shape == (4, 8, 8)
