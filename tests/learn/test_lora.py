"""Low-rank updates: exact at first, merged when saved, small in the state, resumed bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.estimate import estimate
from twofold.learn.lora import LowRank, adapt, merged, parameters
from twofold.networks import build
from twofold.networks.convolve import Conv3x3
from twofold.run import Run, load
from twofold.settings.network import DiTSettings, UNetSettings
from twofold.settings.resolve import resolve
from twofold.settings.train import LoraSettings, TrainSettings

from .common import TINY, same, tiny, weights
from .test_resume import Interrupted, die_at

SMALL = UNetSettings(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=3, dropout=0.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "run"
    train(tiny(n_images=64, validate_images=1000, preview_images=1000), path, "cpu")
    return path


def low_rank(source: Path, *changes: dict[str, Any], **lora: Any) -> TrainSettings:
    own = {name: value for name, value in TINY.items() if name not in ("network", "noise")}
    test = {"init_from": str(source), "lora": {"rank": 2, **lora}, "train": {"n_images": 128}}
    return resolve(TrainSettings, [("tiny", own), ("test", test), *(("change", change) for change in changes)])[0]


def adapted(**lora: Any) -> nn.Module:
    torch.manual_seed(0)
    network = build(SMALL, (1, 8, 8))
    adapt(network, LoraSettings(**lora), 0)
    return network


def shaken(network: nn.Module) -> nn.Module:
    """With factors that do something."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, LowRank):
                module.b.normal_()
    return network


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.floats(0.1, 8))
def test_the_update_is_a_product_of_low_rank(outputs: int, inputs: int, rank: int, scale: float) -> None:
    weight = torch.randn(outputs, inputs, 3, 3)
    update = LowRank(weight, rank, scale, torch.Generator())
    assert torch.equal(update(weight), weight)  # before it has learned anything
    with torch.no_grad():
        update.b.normal_()
    difference = (update(weight) - weight).flatten(1)
    assert torch.allclose(difference, scale * update.b @ update.a, atol=1e-4)
    assert torch.linalg.matrix_rank(difference.double(), rtol=1e-4) <= rank


def test_an_adapted_network_is_its_merged_one() -> None:
    network = shaken(adapted(rank=3, alpha=6.0))
    plain = build(SMALL, (1, 8, 8))
    plain.load_state_dict(merged(network, network.state_dict()))  # by name and shape, all of them
    x, c, cond = torch.randn(2, 1, 8, 8), torch.randn(2), {"label": torch.tensor([0, -1])}
    assert torch.allclose(network(x, c, cond), plain(x, c, cond), atol=1e-5)
    assert parameters(network)[0] == sum(p.numel() for p in plain.parameters())


def test_wide_layers_take_the_fast_convolution_with_the_update() -> None:
    from torch.nn.utils import parametrize

    layer = Conv3x3(128, 128)
    x = torch.randn(8, 128, 16, 16)
    plain = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, 4, 1.0, torch.Generator()))
    assert torch.allclose(layer(x), plain, atol=1e-4)
    shaken(layer)
    expected = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    assert torch.allclose(layer(x), expected, atol=1e-4) and not torch.allclose(expected, plain, atol=1e-2)
    layer(x).square().mean().backward()
    assert layer.parametrizations.weight[0].a.grad.abs().max() > 0  # type: ignore[union-attr,index]


def trained(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_what_trains() -> None:
    bare = trained(adapted(targets="attention", biases=False))
    assert all(".0." in name or name == "embedding.label.weight" for name in bare)
    layers = {name.split(".parametrizations")[0] for name in bare - {"embedding.label.weight"}}
    assert {name.rpartition(".")[2] for name in layers} == {"qkv", "proj"} and "mid.first.attention.qkv" in layers
    more = trained(adapted(targets="attention", biases=True)) - bare
    assert "norm.weight" in more and "enc.0.bias" in more and "enc.0.weight" not in more
    assert {name.split(".param")[0] for name in trained(adapted(targets=r"^dec\.0\.conv", biases=False))} == {
        "embedding.label.weight",
        "dec.0.conv1",
        "dec.0.conv2",
    }
    every = adapted(targets="all", biases=False)
    adaptable = [m for n, m in every.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and "label" not in n]
    assert sum(isinstance(m, LowRank) for m in every.modules()) == len(adaptable)


def test_the_last_layer_of_a_transformer_is_adapted_like_the_others() -> None:
    network = build(DiTSettings(patch=2, width=8, depth=1, heads=2, embedding_channels=8, classes=3), (1, 8, 8))
    adapt(network, LoraSettings(rank=2), 0)
    whole = {name for name in trained(network) if ".parametrizations." not in name}
    assert whole == {"embedders.0.label.weight"}
    assert "head.out.parametrizations.weight.0.a" in trained(network)


def test_a_layer_has_its_own_random_numbers() -> None:
    few, many = (dict(adapted(targets=t).named_parameters()) for t in ("attention", "all"))
    name = "mid.first.attention.qkv.parametrizations.weight.0.a"
    assert torch.equal(few[name], many[name])
    assert not torch.equal(many[name], many[name.replace("first.attention", "second").replace("qkv", "emb")])


@pytest.mark.parametrize(
    ("targets", "message"),
    [("dec9", r"lora\.targets=dec9: no layer of the network is meant"), ("(", r"lora\.targets=\(: is not a pattern")],
)
def test_targets_that_mean_nothing(targets: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapted(targets=targets)


def test_targets_are_looked_for_before_a_folder_is_made(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no layer of the network is meant"):
        train(low_rank(source, targets="dec9"), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_a_run_saves_a_plain_model_and_its_factors(source: Path, tmp_path: Path) -> None:
    result = train(low_rank(source, alpha=3.0), tmp_path / "run", "cpu")
    before, after = weights(source), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    assert result["parameters"] == sum(value.numel() for value in before.values())
    assert 0 < result["parameters_trained"] < result["parameters"]
    factors = load_file(tmp_path / "run/lora.safetensors")
    with safe_open(tmp_path / "run/lora.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["twofold_lora"])
    assert facts["lora"]["rank"] == 2 and facts["init_from"] == str(source) and facts["n_images"] == 128
    assert set(facts["scales"].values()) == {1.5}
    assert sum(value.numel() for value in factors.values()) == result["parameters_trained"]
    again = dict(before)  # the source and the factors are the model
    for name, value in factors.items():
        if not name.endswith((".a", ".b")):
            again[name] = value
    for name, scale in facts["scales"].items():
        update = scale * factors[f"{name}.b"] @ factors[f"{name}.a"]
        again[f"{name}.weight"] = before[f"{name}.weight"] + update.view(before[f"{name}.weight"].shape)
    assert all(torch.allclose(again[name], after[name], atol=1e-6) for name in after)
    assert any(not torch.equal(before[name], after[name]) for name in after if "conv1.weight" in name)
    assert load(tmp_path / "run").denoise(torch.randn(1, 1, 8, 8), 0.5).isfinite().all()


def test_the_optimiser_holds_little_and_the_base_is_kept_once(source: Path, tmp_path: Path) -> None:
    train(low_rank(source, biases=False), tmp_path / "run", "cpu")
    state = load_file(tmp_path / "run/state/000000000128/tensors.safetensors")
    moments = {name for name in state if name.startswith("optimizer/")}
    assert moments and all(".parametrizations.weight.0." in n or "embedding.label" in n for n in moments)
    assert not [name for name in state if name.startswith("average/") and name.endswith("original")]
    original = state["weights/enc.1.conv1.parametrizations.weight.original"]
    assert torch.equal(original, weights(source)["enc.1.conv1.weight"])


def test_the_first_step_is_taken_from_the_source_exactly(source: Path, tmp_path: Path) -> None:
    loss = [
        next(row["loss"] for row in Run.open(run).log() if row["kind"] == "train")
        for run in (tmp_path / "low", tmp_path / "whole")
        if train(low_rank(source, {"train": {"n_images": 32}, "lora": None} if run.name == "whole" else {}), run, "cpu")
    ]
    assert loss[0] == loss[1]


def test_interrupted_and_continued_is_bit_identical(source: Path, tmp_path: Path) -> None:
    settings = low_rank(source)
    train(settings, tmp_path / "whole", "cpu")
    with pytest.raises(Interrupted):
        train(settings, tmp_path / "run", "cpu", die_at(96))
    train(settings, tmp_path / "run", "cpu")
    for name in ("state/000000000128/tensors.safetensors", "model.safetensors", "lora.safetensors"):
        assert same(weights(tmp_path / "whole", name), weights(tmp_path / "run", name))


def test_a_trunk_can_be_adapted(source: Path, tmp_path: Path) -> None:
    change = {"network": {"kind": "trunk"}, "objective": {"kind": "supervised"}, "train": {"n_images": 32}}
    result = train(low_rank(source, change), tmp_path / "run", "cpu")
    assert result["metrics"]["accuracy"] >= 0
    assert load(tmp_path / "run").class_names == [str(i) for i in range(10)]


def test_it_is_estimated() -> None:
    """As many parameters as the merged network; little optimiser, but a whole backward pass."""
    whole = tiny()
    low = whole.model_copy(update={"lora": LoraSettings(rank=1, biases=False)})
    one, other = (estimate(settings, (1, 8, 8), ["a"] * 10) for settings in (whole, low))
    assert one.parameters == one.trained == other.parameters and other.trained < 0.4 * one.trained
    assert other.flops == one.flops and other.memory < one.memory
    network = build(low.network, (1, 8, 8))
    adapt(network, LoraSettings(rank=1, biases=False), 0)
    assert other.trained == parameters(network)[1]


def test_half_precision_keeps_the_update_exact() -> None:
    """What is used under autocast is what is saved: W' is made in float32."""
    layer = nn.Linear(4, 4)
    update = shaken(LowRank(layer.weight, 2, 1.0, torch.Generator()))
    with torch.autocast("cpu", torch.bfloat16):
        under = update(layer.weight)
    assert torch.equal(under, update(layer.weight)) and under.dtype == torch.float32


@pytest.mark.slow
def test_compiled_steps_are_the_same(source: Path, tmp_path: Path) -> None:
    change = {"network": {"kind": "unet", "dropout": 0.0}, "train": {"n_images": 64}}
    train(low_rank(source, change), tmp_path / "plain", "cpu")
    train(low_rank(source, change, {"train": {"compile": True}}), tmp_path / "compiled", "cpu")
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_lora_of_nothing_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lora\.rank=2: .*give init_from=RUN"):
        train(low_rank(source, {"init_from": None}), tmp_path / "run", "cpu")
    change = {"network": {"kind": "convnet"}, "objective": {"kind": "supervised"}}
    with pytest.raises(UserError, match=r"lora is for denoisers and trunks, not for network\.kind=convnet"):
        low_rank(source, change)
