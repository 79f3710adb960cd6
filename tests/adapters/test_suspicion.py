"""Files that load but compute the wrong thing are found; right ones and networks without training are not blamed.

Two small networks learn digits for a few seconds, the peer library writes them, and the files are tampered with.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from twofold import load
from twofold.adapters.diffusers_unet import to_diffusers, to_scheduler
from twofold.adapters.suspicion import READINGS, attentions, reading, refuse_suspicious, suspicious
from twofold.cli.main import main
from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.hashing import weights_hash
from twofold.networks import build
from twofold.networks.blocks import Attention
from twofold.noise import add, family
from twofold.oracle import MixtureDenoiser
from twofold.settings.network import UNetSettings
from twofold.settings.noise import EDMNoise, FlowNoise, VPNoise

from . import peers

pytest.importorskip("diffusers")
HEADS = 2
SHAPE = (1, 8, 8)
DIT: dict[str, Any] = {"in_channels": 1, "out_channels": 2, "num_layers": 2, "attention_head_dim": 16}
Weights = dict[str, Tensor]


def digits() -> Tensor:
    from sklearn.datasets import load_digits

    pictures = torch.from_numpy(load_digits().images).float() / 8 - 1
    return pictures[torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0)), None]


def unet(noise: Any = None, seed: int = 0) -> NetworkDenoiser:
    torch.manual_seed(seed)
    settings = UNetSettings(
        channels=16, multipliers=(1,), blocks=1, attention=(8,), norm_groups=4, head_channels=16 // HEADS, classes=0
    )
    return NetworkDenoiser(build(settings, SHAPE), family(noise or VPNoise()), SHAPE)


class Peer(nn.Module):
    """The peer library's transformer as F: its noise prediction, without labels."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer, self.layers = transformer, {}

    def forward(self, x: Tensor, c_noise: Tensor, cond: Any = None) -> Tensor:
        none = torch.ones(len(x), dtype=torch.long)
        return self.transformer(x, timestep=c_noise, class_labels=none).sample[:, :1]


def dit(seed: int = 0) -> NetworkDenoiser:
    theirs = peers.transformer(seed=seed, num_attention_heads=HEADS, num_embeds_ada_norm=1, **DIT)
    return NetworkDenoiser(Peer(theirs), family(VPNoise()), SHAPE)


def trained(denoiser: NetworkDenoiser, steps: int, batch: int) -> NetworkDenoiser:
    generator, pictures = torch.Generator().manual_seed(0), digits()[:1500]
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=4e-3)
    denoiser.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        x0 = pictures[torch.randint(len(pictures), (batch,), generator=generator)]
        noise = torch.randn(x0.shape, generator=generator)
        sigma = 0.1 * 30 ** torch.rand(batch, generator=generator, dtype=torch.float64)
        loss = (denoiser(add(x0, noise, sigma), sigma) - denoiser.family.target(x0, noise, sigma)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return denoiser.eval()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower with several, and many times slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def x0() -> Tensor:
    """Digits that no network was trained on."""
    return digits()[1500:1548]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two right files, written by the peer library."""
    from diffusers import DDPMPipeline

    home = tmp_path_factory.mktemp("models")
    ours = trained(unet(), 120, 32)
    DDPMPipeline(to_diffusers(ours), to_scheduler(ours)).save_pretrained(home / "unet")
    transformer: Any = trained(dit(), 250, 64).network.transformer
    transformer.save_pretrained(home / "dit")
    return {"unet": home / "unet", "dit": home / "dit"}


@pytest.fixture(scope="module")
def right(folders: dict[str, Path]) -> dict[str, NetworkDenoiser]:
    models = {name: load(folder) for name, folder in folders.items()}
    assert all(isinstance(model, NetworkDenoiser) for model in models.values())
    return models  # type: ignore[return-value]


def transposed(part: str, only: str = "") -> Callable[[Weights], None]:
    def tamper(weights: Weights) -> None:
        names = [name for name in weights if name.endswith(f"{part}.weight") and only in name]
        assert names
        for name in names:
            weights[name] = weights[name].T.contiguous()

    return tamper


def by_head(weights: Weights) -> None:
    """q, k and v of each head together, as older checkpoints have them, then cut in three."""
    for name in [n for n in weights if ".to_q." in n]:
        names = [name.replace(".to_q.", f".to_{part}.") for part in "qkv"]
        rows = torch.stack([weights[n].unflatten(0, (HEADS, -1)) for n in names], dim=1).flatten(0, 2)
        weights.update(zip(names, (part.contiguous() for part in rows.chunk(3)), strict=True))


def channels_first(weights: Weights) -> None:
    """Heads as the faster index of the channels."""
    for name in [n for n in weights if any(f".to_{part}." in n for part in "qkv")]:
        weights[name] = weights[name].unflatten(0, (HEADS, -1)).transpose(0, 1).flatten(0, 1).contiguous()


def rotated(weights: Weights) -> None:
    for name in [n for n in weights if ".to_q." in n]:
        q, k, v = (name.replace(".to_q.", f".to_{part}.") for part in "qkv")
        weights[q], weights[k], weights[v] = weights[v], weights[q], weights[k]


TAMPERED = {
    "out-transposed": (transposed("to_out.0"), "out transposed"),
    "v-transposed": (transposed("to_v"), "v transposed"),
    "by-head": (by_head, "q, k, v taken from each head in turn"),
    "head-order": (channels_first, "heads "),
    "rotated": (rotated, "q, k, v taken from k, v, q"),
}


def rewritten(folder: Path, to: Path, tamper: Callable[[Weights], None]) -> Any:
    """The model in a copy of this folder whose file was tampered with."""
    shutil.copytree(folder, to)
    file = next(to.rglob("*.safetensors"))
    weights = load_file(file)
    tamper(weights)
    save_file(weights, file)
    return load(to)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_right_files_pass(name: str, right: dict[str, NetworkDenoiser], x0: Tensor) -> None:
    before = weights_hash(right[name])
    assert suspicious(right[name], x0) == []
    assert suspicious(right[name], x0, sigmas=[0.3, 1.0], seed=1, each=False) == []
    refuse_suspicious("here", right[name], x0, each=False)
    assert weights_hash(right[name]) == before


@pytest.mark.parametrize("how", TAMPERED)
@pytest.mark.parametrize("name", ["unet", "dit"])
def test_wrong_files_are_found(name: str, how: str, folders: dict[str, Path], tmp_path: Path, x0: Tensor) -> None:
    tamper, named = TAMPERED[how]
    model = rewritten(folders[name], tmp_path / "wrong", tamper)
    before = weights_hash(model)
    what = f"wrong: all . attention layers: with {named}.* the denoising error is .* lower on 48 images; export"
    with pytest.raises(UserError, match=what):
        refuse_suspicious(str(tmp_path / "wrong"), model, x0, each=False)
    assert weights_hash(model) == before


@pytest.mark.parametrize(
    ("name", "where", "ours"),
    [
        ("unet", "down_blocks.0.attentions.0", "enc.1.attention"),
        ("dit", "transformer_blocks.0", "blocks.0.attention"),
    ],
)
def test_a_single_wrong_layer_is_named(
    name: str, where: str, ours: str, folders: dict[str, Path], tmp_path: Path, x0: Tensor
) -> None:
    model = rewritten(folders[name], tmp_path / "wrong", transposed("to_out.0", where))
    found = suspicious(model, x0)
    assert any(ours in text or text.startswith("all") for text in found) and "out transposed" in found[0]


class NonLocalMeans(nn.Module):
    """An exact use of queries and keys: pixels of six kinds, each averaged with those that are most like it.

    q and k are the same rotation, so that q k^T compares pixels; v and out are inverse.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(4, UNetSettings(norm_groups=1))
        rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
        with torch.no_grad():
            self.attention.qkv.bias.zero_()
            self.attention.proj.bias.zero_()
            self.attention.qkv.weight.copy_(torch.cat([3 * rotation, rotation, rotation]))
            self.attention.proj.weight.copy_(rotation.T)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Any = None) -> Tensor:
        return self.attention(x) - x  # without its residual sum: x0


def kinds(images: int) -> Tensor:
    """(N, 4, 8, 8): every pixel is one of six vectors; of mean zero, which the norm inside would take away."""
    vectors = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])
    kind = torch.randint(6, (images, 8, 8), generator=torch.Generator().manual_seed(1))
    return torch.cat([vectors, -vectors])[kind].permute(0, 3, 1, 2)


@pytest.mark.parametrize("part", ["q", "k", "v", "out"])
def test_every_transposed_projection_is_found_where_it_matters(part: str) -> None:
    model = NetworkDenoiser(NonLocalMeans(), family(VPNoise(predicts="x0")), (4, 8, 8))
    assert suspicious(model, kinds(32), sigmas=[0.4]) == []
    with reading(attentions(model.network), READINGS[f"{part} transposed"]):
        found = suspicious(model, kinds(32), sigmas=[0.4])
    assert len(found) == 1 and "transposed" in found[0] and found[0].startswith("attention: ")


@pytest.mark.parametrize(
    ("model", "each"),
    [
        (unet(seed=1), True),
        (unet(EDMNoise(), 2), False),
        (unet(FlowNoise(), 3), False),
        (unet(VPNoise(predicts="v"), 4), False),
        (dit(5), True),
    ],
    ids=["vp", "edm", "flow", "v", "dit"],
)
def test_networks_without_training_pass(model: NetworkDenoiser, each: bool, x0: Tensor) -> None:
    assert suspicious(model, x0[:16], each=each) == []


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_images_of_another_kind_do_not_blame_the_file(name: str, right: dict[str, NetworkDenoiser], x0: Tensor) -> None:
    assert suspicious(right[name], -x0[:24], each=False) == []
    assert suspicious(right[name], 0.5 * x0[:24].rot90(1, (2, 3)), each=False) == []


def test_a_network_that_adds_noise_is_named(folders: dict[str, Path], tmp_path: Path, x0: Tensor) -> None:
    def negated(weights: Weights) -> None:
        for part in ("weight", "bias"):
            weights[f"conv_out.{part}"] *= -1

    found = suspicious(rewritten(folders["unet"], tmp_path / "wrong", negated), x0, each=False)
    assert len(found) == 1 and "does not denoise these images at all: at every noise level" in found[0]


def test_what_is_not_finite_is_named(x0: Tensor) -> None:
    model = unet()
    with torch.no_grad():
        next(model.parameters())[0] = torch.nan
    assert suspicious(model, x0) == ["returns NaN or infinity"]
    with pytest.raises(UserError, match="images: 3: too few"):
        suspicious(model, x0[:3])


def test_a_denoiser_without_attention_passes() -> None:
    oracle = MixtureDenoiser(torch.tensor([[[[-0.5]]], [[[0.5]]]]).expand(2, 1, 4, 4), [0.1, 0.1], [1, 1])
    assert suspicious(oracle, torch.randn(16, 1, 4, 4)) == []


@pytest.mark.parametrize("name", READINGS)
def test_readings_are_undone_exactly(name: str) -> None:
    model = unet(seed=7)
    before = weights_hash(model)
    with pytest.raises(KeyError), reading(attentions(model.network), READINGS[name]) as changed:
        assert changed and weights_hash(model) != before
        raise KeyError
    assert weights_hash(model) == before


def test_both_kinds_of_attention_are_read_alike() -> None:
    """The same network here and in the peer library: the same readings make the same weights."""
    ours = unet(seed=8)
    theirs: Any = to_diffusers(ours)
    mine, peer = attentions(ours.network), attentions(theirs)
    assert len(mine) == len(peer) == 4 and {layer.heads for layer in [*mine, *peer]} == {HEADS}
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([100.0])
    for how in READINGS.values():
        with reading(mine, how), reading(peer, how), torch.no_grad():
            torch.testing.assert_close(ours.network(x, t), theirs(x, t).sample, rtol=1e-4, atol=1e-5)


def test_the_probe_refuses_a_wrong_file_and_takes_the_right_one(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewritten(folders["unet"], tmp_path / "wrong", transposed("to_out.0"))
    words = ["data=digits", "layers=[mid]", "sigmas=[0.1]", "max_train=200", "max_test=50", "draws=1", "--quiet"]
    assert main(["probe", str(tmp_path / "wrong"), *words, "--out", str(tmp_path / "w")]) == 2
    assert "out transposed" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
    assert main(["probe", str(folders["unet"]), *words, "--out", str(tmp_path / "r")]) == 0
