"""State dicts in guided-diffusion's layout: outputs of an independent network, published counts, what is missing."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twofold import load
from twofold.adapters import guided_diffusion
from twofold.adapters.guided_diffusion import completed, layout_of, names_of, settings_of
from twofold.adapters.suspicion import refuse_suspicious
from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.networks.unet import UNet
from twofold.noise import add, family
from twofold.settings.checkpoint import CheckpointSettings
from twofold.settings.network import UNetSettings
from twofold.settings.noise import VPNoise

from . import guided
from .test_suspicion import digits, trained

TOLD: dict[str, Any] = {"size": 8, "heads": 2, "attention_order": "legacy", "noise": {"table": "cosine"}}
COUNTS = {"64": 295_904_454, "256-uncond": 552_814_086}
MULTIPLIERS = {
    "64": (1, 2, 3, 4),
    "128": (1, 1, 2, 3, 4),
    "256": (1, 1, 2, 2, 4, 4),
    "256-uncond": (1, 1, 2, 2, 4, 4),
    "512": (1, 2, 2, 4, 4, 8, 8),  # of its first layer's 128 channels
}


def saved(folder: Path, network: torch.nn.Module, **told: Any) -> Path:
    torch.save(network.state_dict(), folder / "x.pt")
    if told:
        (folder / "x.json").write_text(json.dumps(told))
    return folder / "x.pt"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": "new"},
        {"film": False, "updown": False, "outputs": 3},
        {"classes": 5, "attends": (True, True), "of": 16},
        {"ratios": (0.5, 1, 2), "width": 64, "attends": (False, False, True), "blocks": 2},
        {"ratios": (1, 1, 1), "attends": (False, False, False), "heads": 1},
        {"ratios": (1,), "attends": (True,), "channels": 1, "outputs": 2},
    ],
    ids=["legacy", "new", "plain", "labels", "half", "narrow", "one-level"],
)
def test_outputs_are_those_of_the_layout(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = guided.tiny(**options)
    heads = {"head_channels": 16, "heads": None} if "of" in options else {"heads": options.get("heads", 2)}
    told = {**TOLD, **heads, "attention_order": options.get("order", "legacy")}
    model = load(saved(tmp_path, theirs, **{name: value for name, value in told.items() if value is not None}))
    assert isinstance(model, NetworkDenoiser) and not model.training
    channels, classes = options.get("channels", 3), options.get("classes", 0)
    assert model.shape == (channels, 8, 8) and model.classes == classes
    assert model.learns_variance == (options.get("outputs", 6) == 2 * channels)
    x, t = torch.randn(3, channels, 8, 8), torch.tensor([0.0, 12.5, 999.0])
    y = torch.tensor([0, 4, 2]) if classes else None
    with torch.no_grad():
        expected = theirs(x, t, y)
        found = model.network(x, t, {"label": y} if classes else {})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_denoising_uses_the_first_half_and_the_table(tmp_path: Path) -> None:
    theirs = guided.tiny()
    model = guided_diffusion.read(saved(tmp_path, theirs), **TOLD)
    noise = family(VPNoise(table="cosine"))
    t = torch.tensor([3.0, 700.0])
    sigma = noise.sigma(t)  # type: ignore[attr-defined]
    x0, eps = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    x = add(x0, eps, sigma)
    scale = (1 + sigma**2).sqrt().float()[:, None, None, None]
    with torch.no_grad():
        output = theirs(x / scale, t)
        found, v = model.denoise_and_variance(x, sigma)
    torch.testing.assert_close(found, x - sigma.float()[:, None, None, None] * output[:, :3], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(v, (output[:, 3:] + 1) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", guided.PUBLISHED)
def test_the_published_models_are_known_by_their_widths(name: str) -> None:
    theirs = guided.published(name)
    weights = theirs.state_dict()
    layout = layout_of("x.pt", weights)
    options = completed("x.pt", layout, CheckpointSettings(), images=False)
    size, wanted = int(name.split("-")[0]), guided.PUBLISHED[name]
    assert options.size == size and options.attention_order == wanted.get("order", "legacy")
    assert (options.heads, options.head_channels) == (wanted.get("heads"), wanted.get("of"))
    assert options.noise == VPNoise(table="cosine" if name == "64" else "linear")
    settings = settings_of(layout, options)
    assert settings.attention == (32, 16, 8) and settings.multipliers == MULTIPLIERS[name]
    with torch.device("meta"):
        ours = UNet(settings, (3, size, size))
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) == COUNTS.get(name, count)
    modules = names_of(ours)
    expected = {f"{modules[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}" for n in ours.state_dict()}
    assert expected == set(weights)


def test_what_the_weights_do_not_tell_is_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path, guided.tiny())
    what = "its weights do not tell size, heads or head_channels, noise, attention_order; write them to "
    with pytest.raises(UserError, match=what + r"x\.json: {"):
        load(path)
    with pytest.raises(UserError, match="do not tell attention_order;"):
        guided_diffusion.read(path, **{**TOLD, "attention_order": None})
    (tmp_path / "x.json").write_text(json.dumps({**TOLD, "head": 2}))
    with pytest.raises(UserError, match=r"head \(.*x\.json\): unknown setting; did you mean 'heads'"):
        load(path)
    one_head = guided_diffusion.read(saved(tmp_path, guided.tiny(), size=8, heads=1, noise={}))
    assert one_head.family.settings == VPNoise()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="class_names of .*: 2 names; the network knows 0 classes"):
        guided_diffusion.read(path, class_names=["a", "b"])


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    whole = guided.tiny().state_dict()

    def refused(weights: dict[str, Any], message: str) -> None:
        torch.save(weights, tmp_path / "x.pt")
        with pytest.raises(UserError, match=message):
            guided_diffusion.read(tmp_path / "x.pt", **TOLD)

    for name in ("input_blocks.1.0.in_layers.2.bias", "out.2.weight", "middle_block.1.qkv.bias"):
        refused({k: v for k, v in whole.items() if k != name}, f"1 missing: {name}")
    refused({**whole, "surprise": torch.zeros(1)}, "1 surplus: surprise")
    refused({**whole, "out.0.bias": torch.zeros(3)}, r"out\.0\.bias has shape \(3,\), not \(32,\)")
    refused({k: v for k, v in whole.items() if "output_blocks.3" not in k}, "3 output_blocks of no known arrangement")
    refused(guided.tiny(channels=6).state_dict(), "6 channels in, 6 out: .*an upsampler")
    refused({"time_embed.0.weight": torch.zeros(2)}, "1 missing: input_blocks.0.0.weight")
    refused({**whole, "input_blocks.0.0.weight": torch.zeros(())}, r"has shape \(\), not 4 axes")
    refused({**whole, "output_blocks.x.weight": torch.zeros(1)}, "1 surplus: output_blocks.x.weight")
    torch.save(whole, tmp_path / "x.pt")
    with pytest.raises(UserError, match="size=7 of .*: its levels need a multiple of 2"):
        guided_diffusion.read(tmp_path / "x.pt", **{**TOLD, "size": 7})


def test_training_states_and_parallel_names(tmp_path: Path) -> None:
    """Averaged weights first; the prefix of a parallel module goes."""
    network, other = guided.tiny(), guided.tiny(classes=2)
    inside = {f"module.{name}": value.half() for name, value in network.state_dict().items()}
    state = {"step": 7, "model": other.state_dict(), "ema": inside, "args": Namespace(lr=1e-4, data="images")}
    torch.save(state, tmp_path / "x.pt")
    model = guided_diffusion.read(tmp_path / "x.pt", **TOLD)
    assert model.classes == 0 and {p.dtype for p in model.parameters()} == {torch.float32}


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "x.pt"
    torch.save({"time_embed.0.weight": Evil()}, path)
    with pytest.raises(UserError, match="holds more than tensors, which is not opened"):
        load(path)
    assert not (tmp_path / "ran").exists()
    whole = path.read_bytes()
    for damaged in (b"", b"hello world\n", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x\.pt: cannot be read as weights"):
            load(path)
    torch.save({"vgg.0.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"that no adapter reads \(vgg\.0\.weight.*guided-diffusion or DiT"):
        load(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds no state dict"):
        load(path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="not a file of weights"):
        load(tmp_path / "notes.txt")


@pytest.fixture(scope="module")
def learnt() -> Iterator[NetworkDenoiser]:
    """A network of ours that relies on its attention, after a short training on digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options: dict[str, Any] = {"conditioning": "scale_shift", "embedding_order": "cos_sin", "embedding_endpoint": False}
    sizes: dict[str, Any] = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "head_channels": 4}
    network = UNet(UNetSettings(**sizes, **options, norm_group_channels=1, classes=0), (1, 8, 8))
    for name, parameter in network.named_parameters():
        if name.endswith("qkv.weight"):
            parameter.data *= 3
    yield trained(NetworkDenoiser(network, family(VPNoise()), (1, 8, 8)), 80, 16)
    torch.set_num_threads(threads)


def rows(weight: Tensor, width: int, order: str) -> Tensor:
    """All q, all k, all v of heads so wide, in an order of guided-diffusion."""
    if order == "new":
        return weight
    q, k, v = (part.split(width) for part in weight.chunk(3))
    return torch.cat([part[head] for head in range(len(q)) for part in (q, k, v)])


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_images_decide_the_attention_order(order: str, learnt: NetworkDenoiser, tmp_path: Path) -> None:
    modules, weights = names_of(learnt.network), {}  # type: ignore[arg-type]
    for name, value in learnt.network.state_dict().items():
        module, _, part = name.rpartition(".")
        value = rows(value, 4, order) if module.endswith("qkv") else value
        linear = module.endswith(("qkv", "attention.proj")) and part == "weight"
        weights[f"{modules[module]}.{part}"] = value[:, :, None] if linear else value
    torch.save(weights, tmp_path / "x.pt")
    told: dict[str, Any] = {"size": 8, "head_channels": 4, "noise": {}}
    x0, t = digits()[1500:1548], torch.tensor([5.0, 400.0])
    model = guided_diffusion.read(tmp_path / "x.pt", calibration=x0, **told)
    with torch.no_grad():
        torch.testing.assert_close(model.network(x0[:2], t), learnt.network(x0[:2], t), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="32 images do not decide between attention_order=legacy and new"):
        guided_diffusion.read(tmp_path / "x.pt", calibration=torch.randn(32, 1, 8, 8), **told)
    with pytest.raises(UserError, match="images: 3: too few"):
        guided_diffusion.read(tmp_path / "x.pt", calibration=x0[:3], **told)
    other = "new" if order == "legacy" else "legacy"
    wrong = guided_diffusion.read(tmp_path / "x.pt", attention_order=other, **told)
    with pytest.raises(UserError, match="q, k, v .* the denoising error is .* lower on 48 images"):
        refuse_suspicious("x.pt", wrong, x0, each=False)
