"""Students: published sizes, the same outputs as their peers, every backbone with every head at any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from twofold import taps
from twofold.errors import UserError
from twofold.networks import build
from twofold.networks.students import BACKBONES, HEADS, Student
from twofold.networks.students.mobilenet import rounded
from twofold.networks.students.parts import ConvNorm, Norm, Pointwise
from twofold.settings.network import NetworkSettings
from twofold.settings.student import BackboneSettings, StudentSettings

IMAGENET = {"stem": "imagenet"}
MINI: dict[str, dict[str, Any]] = {
    "resnet": {"blocks": (1, 1, 1), "channels": 4},
    "mobilenetv2": {"width_mult": 0.1},
    "wide": {"depth": 10, "width": 1},
    "hrnet": {"width": 2, "modules": (1, 1, 1), "blocks": 1, "stem_channels": 4, "stem": "cifar"},
    "transformers": {
        "model": "convnextv2",
        "config": {"hidden_sizes": [4, 4, 8, 8], "depths": [1, 1, 1, 1]},
        "stages": (0, 1, 2),
    },
}
HEAD: dict[str, dict[str, Any]] = {
    "pool": {},
    "fcn": {"channels": 8},
    "bisenet": {"channels": 4},
    "deconv": {"channels": 4, "layers": 2},
    "fuse": {},
}
PIXELS = ("fcn", "bisenet")


def student(backbone: Any, head: Any = None, classes: int = 0, channels: int = 3, side: int = 64) -> Any:
    """A student by its settings, or by the kinds of small ones."""
    torch.manual_seed(0)
    if isinstance(backbone, str):
        backbone = {"kind": backbone, **MINI[backbone]}
    if isinstance(head, str):
        head = {"kind": head, **HEAD[head]}
    given = StudentSettings.model_validate({"backbone": backbone, "head": head})
    return build(given, (channels, side, side), classes)


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize(
    ("backbone", "parameters"),
    [
        ({"kind": "resnet"}, 11_168_832),
        ({"kind": "resnet", **IMAGENET}, 11_176_512),
        ({"kind": "resnet", "depth": 34, **IMAGENET}, 21_284_672),
        ({"kind": "resnet", "depth": 50, **IMAGENET}, 23_508_032),
        ({"kind": "mobilenetv2"}, 2_223_872),
        ({"kind": "mobilenetv2", **IMAGENET}, 2_223_872),
        ({"kind": "wide"}, 1_466_320),
        ({"kind": "wide", "width": 10}, 36_472_784),
        ({"kind": "hrnet"}, 9_562_260),
    ],
)
def test_published_sizes(backbone: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        assert count(student(backbone)) == parameters


@pytest.mark.parametrize(
    ("depth", "body", "decode", "aux"), [(18, 12_680_320, 594_962, 75_026), (50, 47_414_592, 9_457_682, 1_184_786)]
)
def test_published_sizes_of_bisenet(depth: int, body: int, decode: int, aux: int) -> None:
    with torch.device("meta"):
        found = student({"kind": "resnet", "depth": depth, **IMAGENET}, {"kind": "bisenet"}, 18)
    assert [count(found.head.main), *map(count, found.head.aux)] == [decode, aux, aux]
    assert count(found) - count(found.head.main, found.head.aux) == body


def test_published_sizes_of_heat_maps() -> None:
    with torch.device("meta"):
        simple = student({"kind": "resnet", "depth": 50, **IMAGENET}, {"kind": "deconv"}, 98)
        fused = student({"kind": "hrnet"}, {"kind": "fuse"}, 98)
        # the classifier of ImageNet has biases before the norms of its neck as well: 256 + 512 + 1024 + 2048
        whole = student({"kind": "hrnet", "neck": 2048}, {"kind": "pool"}, 1000)
    assert (count(simple), count(simple.head), simple.heat_stride) == (34_020_514, 10_512_482, 4)
    assert (count(fused.head), fused.heat_stride) == (100_268, 4)
    assert count(whole) + 3840 == 21_299_004 and whole.backbone.width == 2048


def randomised(module: Any) -> Any:
    """Weights and statistics at random, so that every one of them shows."""
    generator = torch.Generator().manual_seed(1)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            low = 0.5 if "norm" in name or "running" in name or value.ndim == 1 else -0.1
            value.copy_(torch.rand(value.shape, generator=generator) * (0.1 if low < 0 else 1.0) + low)
    return module.double().eval()


@pytest.mark.parametrize(("depth", "kind"), [(18, "basic"), (50, "bottleneck")])
def test_resnet_against_transformers(depth: int, kind: str) -> None:
    """Weights in order of execution are the same weights: of each block, the shortcut's come first there."""
    from transformers import ResNetConfig, ResNetModel

    widths, blocks = [8, 16, 32, 64], (1, 2, 1, 1)
    wide = [4 * w for w in widths] if depth == 50 else widths
    config = ResNetConfig(hidden_sizes=wide, depths=list(blocks), layer_type=kind, embedding_size=8)
    peer = randomised(ResNetModel(config))
    own = randomised(student({"kind": "resnet", "depth": depth, "blocks": blocks, "channels": 8, **IMAGENET}))
    source = list(peer.named_modules())
    first = {name: i for i, (name, _) in enumerate(source)}
    order = sorted(
        (name for name, m in source if isinstance(m, nn.Conv2d | nn.BatchNorm2d)),
        key=lambda name: (name.replace("shortcut", "zz") if "layers" in name else name, first[name]),
    )
    order = [n for n in order if "embedder" in n] + [n for n in order if "embedder" not in n]
    mine = [m for m in own.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    assert len(order) == len(mine)
    for module, name in zip(mine, order, strict=True):
        module.load_state_dict(dict(source)[name].state_dict())
    x = torch.randn(2, 3, 45, 70, dtype=torch.float64)
    with torch.no_grad():
        expected = peer(x, output_hidden_states=True).hidden_states[1:]
        for ours, theirs in zip(own.backbone(x), expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_mobilenetv2_against_transformers() -> None:
    from transformers import MobileNetV2Config, MobileNetV2Model

    peer = randomised(
        MobileNetV2Model(MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5), add_pooling_layer=False)
    )
    own = randomised(student({"kind": "mobilenetv2", **IMAGENET}))
    theirs = [m for m in peer.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    mine = [m for m in own.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    for module, source in zip(mine, theirs, strict=True):
        module.load_state_dict(source.state_dict())
    x = torch.randn(1, 3, 45, 70, dtype=torch.float64)
    with torch.no_grad():
        expected = peer(x, output_hidden_states=True)
        found = own.backbone(x)
    assert torch.allclose(found[-1], expected.last_hidden_state, rtol=1e-9, atol=1e-9)
    for ours, place in zip(found[:-1], (1, 4, 11), strict=True):  # the last block of 24, 32 and 96 channels
        assert torch.allclose(ours, expected.hidden_states[place], rtol=1e-9, atol=1e-9)


def test_wide_is_wrn_without_biases() -> None:
    from twofold.settings.network import WRNSettings

    torch.manual_seed(0)
    options: dict[str, Any] = {"depth": 16, "width": 1, "slope": 0.2, "norm_eps": 1e-3}
    peer: Any = randomised(build(WRNSettings(**options), (3, 16, 16), 5))
    own = randomised(student({"kind": "wide", **options}, "pool", 5))
    with torch.no_grad():
        for module in peer.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.zero_()
        names = [
            name for name in peer.state_dict() if not (name.endswith("bias") and ("conv" in name or "short" in name))
        ]
        names.remove("stem.bias")
        values = own.state_dict().values()
        assert len(names) == len(values)
        for value, name in zip(values, names, strict=True):
            value.copy_(peer.state_dict()[name])
        x = torch.randn(2, 3, 15, 16, dtype=torch.float64)
        assert torch.allclose(own(2 * x), peer(x), rtol=1e-9, atol=1e-9)  # `wrn` divides by 0.5


def test_bisenet_by_hand() -> None:
    """The context path from its coarsest map to the fusion, as the equations at the top of its module say."""
    own: Any = randomised(student("resnet", "bisenet", 3))
    x = torch.randn(2, 3, 13, 18, dtype=torch.float64)
    head, size = own.head, (13, 18)

    def attend(block: Any, m: Tensor) -> Tensor:
        h = block.conv(m)
        return h * torch.sigmoid(block.gate(h.mean((2, 3), keepdim=True)))

    def up(m: Tensor, like: Tensor) -> Tensor:
        return functional.interpolate(m, size=like.shape[2:], mode="nearest")

    with torch.no_grad():
        maps = own.backbone(x)
        detail = head.detail(x)
        assert detail.shape == (2, 4, *size)  # the stride of the first of three maps is 1
        h = attend(head.attend32, maps[2]) + head.whole(maps[2].mean((2, 3), keepdim=True))
        c32 = head.up32(up(h, maps[1]))
        c16 = head.up16(up(attend(head.attend16, maps[1]) + c32, detail))
        f = head.fusion.conv(torch.cat([detail, c16], 1))
        gate = torch.sigmoid(functional.relu(head.fusion.gate[1](head.fusion.gate[0](f.mean((2, 3), keepdim=True)))))
        assert torch.allclose(own(x), head.main(f + f * gate), rtol=1e-9, atol=1e-9)


def shapes(head: str | None, batch: int, classes: int, size: tuple[int, int], stride: int) -> tuple[int, ...]:
    small = tuple(-(-side // stride) for side in size) if stride else ()
    return (batch, classes, *(size if head in PIXELS else small))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_with_every_head(backbone: str, head: str) -> None:
    """Forward, backward, layers, names of weights; at a size that nothing divides."""
    found, x = student(backbone, head, 5, channels=1), torch.randn(2, 1, 35, 50)
    answers = found.train()(x)
    assert isinstance(answers, list) == (head in PIXELS)
    answers = answers if isinstance(answers, list) else [answers]
    assert len(answers) == (3 if head == "bisenet" else 1)
    sum(a.square().sum() for a in answers).backward()
    unread = {name for name, p in found.named_parameters() if p.requires_grad and p.grad is None}
    if head in ("pool", "deconv", "bisenet"):  # which do not read the finest maps, made by the last exchange
        unread = {name for name in unread if ".exchanges.2.0.into." not in name and ".hidden_states_norms." not in name}
    assert not unread
    assert {name.split(".")[0] for name in found.state_dict()} == {"backbone", "head"}
    if head == "bisenet":
        assert any(name.startswith("head.aux.1.") for name in found.state_dict())
    with torch.no_grad():
        answer = found.eval()(x)
        maps = taps.read(lambda: found(x), found.layers, list(found.layers))
        stages = found.backbone(x)
    assert answer.shape == shapes(head, 2, 5, (35, 50), found.heat_stride)
    assert all(a.shape == answer.shape for a in answers)
    named = [name for name in found.layers if name.startswith("stage.")]
    assert named == [f"stage.{i}" for i in range(len(stages))] and list(found.layers)[-1] == named[-1]
    for name, layer in found.layers.items():
        assert maps[name].shape == (2, layer.channels, -(-35 // layer.stride), -(-50 // layer.stride))
    assert all(torch.equal(maps[name], m) for name, m in zip(named, stages, strict=True))
    assert found.backbone.width == stages[-1].shape[1]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_without_a_head_the_last_map_is_pooled(backbone: str) -> None:
    found, x = student(backbone).eval(), torch.randn(2, 3, 32, 40)
    with torch.no_grad():
        assert torch.equal(found(x), found.backbone(x)[-1].mean((2, 3)))
    assert found.head is None and found.heat_stride == 0


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([name for name in BACKBONES if name != "transformers"]),
    st.sampled_from([*HEADS]),
    st.integers(8, 70),
    st.integers(8, 70),
)
def test_any_size(backbone: str, head: str, height: int, width: int) -> None:
    found = student(backbone, head, 3, side=8).eval()
    with torch.no_grad():
        assert found(torch.randn(1, 3, height, width)).shape == shapes(head, 1, 3, (height, width), found.heat_stride)


@settings(max_examples=15, deadline=None)
@given(st.integers(32, 90), st.integers(32, 90), st.sampled_from(["resnet", "mobilenetv2", "hrnet"]))
def test_any_size_with_the_stem_of_imagenet(height: int, width: int, backbone: str) -> None:
    options = {**MINI[backbone], **IMAGENET}
    found = student({"kind": backbone, **options, **({"blocks": (1, 1, 1, 1)} if backbone == "resnet" else {})})
    maps = found.backbone.eval()(torch.randn(1, 3, height, width))
    assert [layer.stride for layer in found.backbone.stages] == [4, 8, 16, 32]
    for m, layer in zip(maps, found.backbone.stages, strict=True):
        assert m.shape == (1, layer.channels, -(-height // layer.stride), -(-width // layer.stride))


def test_heads_follow_an_image_that_moves() -> None:
    """A whole stride to the right, and what is said of the middle moves along: nothing is scaled or misplaced."""
    for head in ("fcn", "deconv", "fuse"):
        found = randomised(
            student(
                {"kind": "resnet", "blocks": (1, 1), "channels": 4},
                head if head != "deconv" else {"kind": "deconv", "channels": 4, "layers": 1},
                2,
            )
        )
        x = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
        x[:, :, 20:40, 20:40] = torch.randn(1, 3, 20, 20, dtype=torch.float64)
        with torch.no_grad():
            before, after = found(x), found(x.roll((2, 4), (2, 3)))
        assert torch.allclose(after[..., 18:46, 20:48], before[..., 16:44, 16:44], atol=1e-9)


def test_published_names_of_layers() -> None:
    """Outputs read under a name that RepFusion hooks are those outputs; of a ReLU that fires twice, the last."""
    x = torch.randn(2, 3, 32, 32)
    for backbone, name in (
        ({"kind": "resnet", "channels": 4}, "layer4.1.relu"),
        ({"kind": "resnet", "depth": 50, "channels": 4}, "layer4.2.relu"),
        ({"kind": "mobilenetv2", "width_mult": 0.1}, "conv2.activate"),
    ):
        found = student(backbone).eval()
        read = taps.read(lambda f=found: f(x), found.layers, [name], found.aliases)
        assert torch.equal(read[name], found.backbone(x)[-1])
    wide = student("wide").eval()
    read = taps.read(lambda: wide(x), wide.layers, ["bn1"], wide.aliases)
    assert torch.equal(functional.leaky_relu(read["bn1"], 0.1), wide.backbone(x)[-1]) and read["bn1"].min() < -0.2


def test_hrnets_neck_is_for_pooling_alone() -> None:
    options = {"kind": "hrnet", **MINI["hrnet"], "neck": 64}
    pooled, pixels = student(options, "pool", 3), student(options, "fuse", 3)
    assert list(pooled.layers)[-1] == "neck" and pooled.head.linear.in_features == pooled.backbone.width == 64
    assert "neck" not in pixels.layers and not any("neck" in name for name in pixels.state_dict())
    pooled.train()(torch.randn(2, 3, 24, 24)).sum().backward()
    assert all(p.grad is not None for p in pooled.parameters())
    assert pooled.backbone(torch.randn(2, 3, 24, 31))[-1].shape == (2, 64, 3, 4)
    without = {name for name in student({**options, "neck": None}).state_dict()}
    assert without == {name for name in pixels.state_dict() if name.startswith("backbone.")}


@pytest.mark.parametrize(("stem", "strides"), [("cifar", [2, 2, 4, 8]), ("imagenet", [4, 8, 16, 32])])
def test_strides_of_mobilenet(stem: str, strides: list[int]) -> None:
    found = student({"kind": "mobilenetv2", "stem": stem})
    assert [(layer.channels, layer.stride) for layer in found.layers.values()] == [
        *zip((24, 32, 96, 1280), strides, strict=True)
    ]


@given(st.floats(0.1, 5000))
def test_rounded_widths(width: float) -> None:
    assert rounded(width) % 8 == 0 and rounded(width) >= max(8, 0.9 * width) and rounded(width) <= width + 8


def test_zero_init() -> None:
    """A block begins as its shortcut; without the option as something else."""
    x = torch.randn(2, 4, 8, 8)
    for zero in (True, False):
        block = student({"kind": "resnet", **MINI["resnet"], "zero_init": zero}).backbone.groups[0][0].eval()
        assert torch.equal(block(x), x.relu()) == zero


def test_options_of_the_norms() -> None:
    for kind in ("resnet", "mobilenetv2", "wide", "hrnet"):
        found = student({"kind": kind, **MINI[kind], "norm_momentum": 0.25, "norm_eps": 1e-3})
        norms = [m for m in found.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and all(isinstance(m, Norm) and (m.momentum, m.eps) == (0.25, 1e-3) for m in norms)


@pytest.mark.parametrize("size", [(48, 64), (7, 5), (1, 2)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_pointwise_convolution_is_a_convolution(stride: int, size: tuple[int, int]) -> None:
    """Outputs, and gradients of the image, the weights and the biases: PyTorch's own with the same stride."""
    torch.manual_seed(0)
    own = Pointwise(3, 5, 1, stride, bias=True).double()
    peer = nn.Conv2d(3, 5, 1, stride, bias=True).double()
    peer.load_state_dict(own.state_dict())
    x, y = (torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y.data.copy_(x.data)
    found, expected = own(x), peer(y)
    assert found.shape == expected.shape == (2, 5, *(-(-side // stride) for side in size))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(found.shape, dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert x.grad is not None and y.grad is not None
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(own.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    assert isinstance(ConvNorm(3, 5, 1, 2)[0], Pointwise) and not isinstance(ConvNorm(3, 5, 3, 2)[0], Pointwise)


def test_norms_compute_in_the_precision_of_their_weights() -> None:
    norm, x = Norm(3), torch.randn(64, 3, 9, 9).bfloat16()
    reference = nn.BatchNorm2d(3)
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x)
    assert found.dtype == torch.float32 and torch.equal(found, reference(x.float()))
    assert torch.equal(norm.running_var, reference.running_var)


def test_one_value_per_channel_is_no_batch() -> None:
    norm = Norm(3)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))  # type: ignore[union-attr]
    x = torch.tensor([2.0, 2.0, 2.0]).view(1, 3, 1, 1)
    assert torch.allclose(norm(x).flatten(), torch.tensor([1.0, 0.0, -1.0]), atol=1e-4)
    assert torch.equal(norm.running_var, torch.ones(3))  # type: ignore[arg-type]
    bisenet = student("resnet", "bisenet", 3).train()
    sum(a.sum() for a in bisenet(torch.randn(1, 3, 8, 8))).backward()


@pytest.mark.parametrize(
    ("backbone", "head", "classes", "side", "message"),
    [
        ({"kind": "resnet", **IMAGENET}, None, 0, 31, "kind=resnet: images of 31x31 .* 32; .*stem=cifar"),
        ({"kind": "resnet"}, None, 0, 7, "too small for its total stride of 8; take fewer stages"),
        ({"kind": "mobilenetv2", **IMAGENET}, None, 0, 16, "too small .*stem=cifar"),
        ({"kind": "wide"}, None, 0, 3, "too small"),
        ({"kind": "hrnet"}, None, 0, 28, "too small .*stem=cifar"),
        ("resnet", "pool", 1, 32, "network.classes: a classifier of 1 classes; it needs at least 2"),
        ("resnet", "fcn", 1, 32, "network.classes: pixels of 1 classes; .* at least 2"),
        ("resnet", "bisenet", 0, 32, "pixels of 0 classes"),
        ("resnet", "deconv", 0, 32, "network.classes: 0 points; .* at least 1"),
        ("resnet", "fuse", 0, 32, "0 points"),
        ("resnet", {"kind": "fcn", "stages": 4}, 3, 32, "head.stages=4: the backbone has 3 maps; give at most 3"),
        ({"kind": "resnet", "blocks": (1, 1), "channels": 4}, "bisenet", 3, 32, "reads three maps, the backbone has 2"),
        ("resnet", {"kind": "deconv"}, 3, 32, "head.layers=3: .* enlarge by 8 .* 4 times smaller; .* 2"),
        (
            {"kind": "transformers", "model": "vit", "config": {
                "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 8}},
            "bisenet", 3, 32, "network.head.kind=bisenet: .* has stride 16; it can be 1, 2, 4 or 8",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_built(backbone: Any, head: Any, classes: int, side: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        student(backbone, head, classes, side=side)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"kind": "resnet", "blocks": []}, "at least 1 item"),
        ({"kind": "resnet", "blocks": [1, 0]}, "greater than 0"),
        ({"kind": "resnet", "depth": 20}, "18, 34 or 50"),
        ({"kind": "resnet", "channels": -4}, "greater than or equal to 4"),
        ({"kind": "wide", "depth": 24}, "22 and 28 are"),
        ({"kind": "hrnet", "neck": 100}, "multiple of 64"),
        ({"kind": "transformers", "model": "x", "pretrained": True, "config": {"a": 1}}, "leave it out"),
        ({"kind": "transformers", "model": "x", "stages": [2, 1]}, r"stages=\[2, 1\] must rise"),
        ({"kind": "vgg"}, "resnet"),
    ],
)
def test_settings_that_do_not_exist(backbone: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(BackboneSettings).validate_python(backbone)


def test_classes_of_the_settings_come_first() -> None:
    assert student("resnet", "pool", 5).head.linear.out_features == 5
    given = StudentSettings.model_validate({"head": {"kind": "pool"}, "classes": 7})
    assert build(given, (3, 32, 32), 5).head.linear.out_features == 7  # type: ignore[union-attr]
    assert isinstance(TypeAdapter(NetworkSettings).validate_python({"kind": "student"}), StudentSettings)
    assert isinstance(student("resnet"), Student)
