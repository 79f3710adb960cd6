"""FID's network: the published layout, an independent computation, and files of weights. The weights are random."""

from __future__ import annotations

import http.client
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.errors import UserError
from twofold.measure import Gaussian, encoder, frechet_distance, inception
from twofold.measure.inception import InceptionEncoder
from twofold.networks.inception import BlockE, Inception, average, prepare
from twofold.networks.inception_fast import FastInception

STEM = [("Conv2d_1a_3x3", 3, 32, 3, 3), ("Conv2d_2a_3x3", 32, 32, 3, 3), ("Conv2d_2b_3x3", 32, 64, 3, 3)]
STEM += [("Conv2d_3b_1x1", 64, 80, 1, 1), ("Conv2d_4a_3x3", 80, 192, 3, 3)]


def a_table(name: str, n: int, pool: int) -> list[tuple[str, int, int, int, int]]:
    rows = [("branch1x1", n, 64, 1, 1), ("branch5x5_1", n, 48, 1, 1), ("branch5x5_2", 48, 64, 5, 5)]
    rows += [("branch3x3dbl_1", n, 64, 1, 1), ("branch3x3dbl_2", 64, 96, 3, 3), ("branch3x3dbl_3", 96, 96, 3, 3)]
    return [(f"{name}.{b}", *shape) for b, *shape in [*rows, ("branch_pool", n, pool, 1, 1)]]


def c_table(name: str, w: int) -> list[tuple[str, int, int, int, int]]:
    rows = [("branch1x1", 768, 192, 1, 1), ("branch7x7_1", 768, w, 1, 1), ("branch7x7_2", w, w, 1, 7)]
    rows += [("branch7x7_3", w, 192, 7, 1), ("branch7x7dbl_1", 768, w, 1, 1), ("branch7x7dbl_2", w, w, 7, 1)]
    rows += [("branch7x7dbl_3", w, w, 1, 7), ("branch7x7dbl_4", w, w, 7, 1), ("branch7x7dbl_5", w, 192, 1, 7)]
    return [(f"{name}.{b}", *shape) for b, *shape in [*rows, ("branch_pool", 768, 192, 1, 1)]]


def e_table(name: str, n: int) -> list[tuple[str, int, int, int, int]]:
    rows = [("branch1x1", n, 320, 1, 1), ("branch3x3_1", n, 384, 1, 1), ("branch3x3_2a", 384, 384, 1, 3)]
    rows += [("branch3x3_2b", 384, 384, 3, 1), ("branch3x3dbl_1", n, 448, 1, 1), ("branch3x3dbl_2", 448, 384, 3, 3)]
    rows += [("branch3x3dbl_3a", 384, 384, 1, 3), ("branch3x3dbl_3b", 384, 384, 3, 1)]
    return [(f"{name}.{b}", *shape) for b, *shape in [*rows, ("branch_pool", n, 192, 1, 1)]]


def published_table() -> list[tuple[str, int, int, int, int]]:
    """(name, inputs, outputs, height, width) of every convolution of the published state dict."""
    rows = [*STEM, *a_table("Mixed_5b", 192, 32), *a_table("Mixed_5c", 256, 64), *a_table("Mixed_5d", 288, 64)]
    rows += [("Mixed_6a.branch3x3", 288, 384, 3, 3), ("Mixed_6a.branch3x3dbl_1", 288, 64, 1, 1)]
    rows += [("Mixed_6a.branch3x3dbl_2", 64, 96, 3, 3), ("Mixed_6a.branch3x3dbl_3", 96, 96, 3, 3)]
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        rows += c_table(name, width)
    rows += [("Mixed_7a.branch3x3_1", 768, 192, 1, 1), ("Mixed_7a.branch3x3_2", 192, 320, 3, 3)]
    rows += [("Mixed_7a.branch7x7x3_1", 768, 192, 1, 1), ("Mixed_7a.branch7x7x3_2", 192, 192, 1, 7)]
    rows += [("Mixed_7a.branch7x7x3_3", 192, 192, 7, 1), ("Mixed_7a.branch7x7x3_4", 192, 192, 3, 3)]
    return [*rows, *e_table("Mixed_7b", 1280), *e_table("Mixed_7c", 2048)]


@pytest.fixture(scope="module")
def network() -> Inception:
    """Random weights, and batch norms that do something."""
    torch.manual_seed(0)
    made = Inception().eval().requires_grad_(False)
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            part.running_var.uniform_(0.05, 0.2)  # type: ignore[union-attr]
            part.weight.uniform_(0.7, 1.3)
            part.bias.normal_(0, 0.2)
    return made


@pytest.fixture(scope="module")
def weights(network: Inception, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


def pictures(n: int, size: int = 32, seed: int = 0, channels: int = 3) -> Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(0, 256, (n, channels, size, size), dtype=np.uint8))


def test_the_layout_is_the_published_one(network: Inception) -> None:
    expected: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, inputs, outputs, height, width in published_table():
        expected[f"{name}.conv.weight"] = (outputs, inputs, height, width)
        expected |= {f"{name}.bn.{part}": (outputs,) for part in ("weight", "bias", "running_mean", "running_var")}
    found = {name: tuple(value.shape) for name, value in network.state_dict().items() if "num_batches" not in name}
    assert found == expected
    # torchvision's count with 1,000 classes, without the auxiliary classifier, and 8 more outputs
    assert sum(p.numel() for p in network.parameters()) == 27_161_264 - 3_326_696 + 8 * 2049


def naive(state: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same from the published description, layer by layer: (pool, spatial, logits)."""

    def unit(name: str, x: Tensor, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
        y = F.conv2d(x, state[f"{name}.conv.weight"], None, stride, padding)
        mean, var = (state[f"{name}.bn.running_{k}"].view(1, -1, 1, 1) for k in ("mean", "var"))
        scale, shift = (state[f"{name}.bn.{k}"].view(1, -1, 1, 1) for k in ("weight", "bias"))
        return ((y - mean) / (var + 1e-3).sqrt() * scale + shift).clamp(min=0)

    def chain(x: Tensor, *names: str) -> Tensor:
        for name in names:
            height, width = state[f"{name}.conv.weight"].shape[2:]
            x = unit(name, x, padding=(height // 2, width // 2))
        return x

    def mean3(x: Tensor) -> Tensor:
        count = F.conv2d(torch.ones_like(x[:1, :1]), torch.ones(1, 1, 3, 3).to(x), padding=1)
        kernel = torch.ones(x.shape[1], 1, 3, 3).to(x)
        return F.conv2d(x, kernel, padding=1, groups=x.shape[1]) / count

    x = 2 * F.interpolate(images.double() / 255, (299, 299), mode="bilinear", align_corners=False) - 1
    x = unit("Conv2d_2a_3x3", unit("Conv2d_1a_3x3", x, 2))
    x = F.max_pool2d(chain(x, "Conv2d_2b_3x3"), 3, 2)
    x = F.max_pool2d(unit("Conv2d_4a_3x3", unit("Conv2d_3b_1x1", x)), 3, 2)
    for block in ("Mixed_5b.", "Mixed_5c.", "Mixed_5d."):
        triple = chain(x, *[f"{block}branch3x3dbl_{i}" for i in (1, 2, 3)])
        five = chain(x, f"{block}branch5x5_1", f"{block}branch5x5_2")
        x = torch.cat([chain(x, f"{block}branch1x1"), five, triple, chain(mean3(x), f"{block}branch_pool")], 1)
    double = unit("Mixed_6a.branch3x3dbl_3", chain(x, "Mixed_6a.branch3x3dbl_1", "Mixed_6a.branch3x3dbl_2"), 2)
    x = torch.cat([unit("Mixed_6a.branch3x3", x, 2), double, F.max_pool2d(x, 3, 2)], 1)
    for block in ("Mixed_6b.", "Mixed_6c.", "Mixed_6d.", "Mixed_6e."):
        seven = chain(x, *[f"{block}branch7x7_{i}" for i in (1, 2, 3)])
        double = chain(x, *[f"{block}branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)])
        first = chain(x, f"{block}branch1x1")
        if block == "Mixed_6d.":
            spatial = first[:, :7].permute(0, 2, 3, 1).flatten(1)
        x = torch.cat([first, seven, double, chain(mean3(x), f"{block}branch_pool")], 1)
    three = unit("Mixed_7a.branch3x3_2", chain(x, "Mixed_7a.branch3x3_1"), 2)
    seven = unit("Mixed_7a.branch7x7x3_4", chain(x, *[f"Mixed_7a.branch7x7x3_{i}" for i in (1, 2, 3)]), 2)
    x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
    pools: list[tuple[str, Callable[[Tensor], Tensor]]] = [("Mixed_7b.", mean3)]
    for block, pool in [*pools, ("Mixed_7c.", lambda x: F.max_pool2d(x, 3, 1, 1))]:
        a, b = chain(x, f"{block}branch3x3_1"), chain(x, f"{block}branch3x3dbl_1", f"{block}branch3x3dbl_2")
        parts = [chain(a, f"{block}branch3x3_2{k}") for k in "ab"] + [
            chain(b, f"{block}branch3x3dbl_3{k}") for k in "ab"
        ]
        x = torch.cat([chain(x, f"{block}branch1x1"), *parts, chain(pool(x), f"{block}branch_pool")], 1)
    pooled = x.mean((2, 3))
    return pooled, spatial, pooled @ state["fc.weight"].T


def test_both_forms_equal_an_independent_computation(network: Inception) -> None:
    """The plain form and the folded, channels_last one: to 1e-4 of the features' size (about 1e-6 is seen)."""
    images = pictures(2)
    with torch.no_grad():
        expected = naive({name: value.double() for name, value in network.state_dict().items()}, images)
        for form in (network, FastInception(network)):
            found = form(prepare(images))
            for mine, theirs in zip((found.pool, found.spatial, found.logits), expected, strict=True):
                assert mine.shape == theirs.shape and mine.dtype == torch.float32
                assert theirs.abs().max() > 0.01
                assert (mine - theirs).abs().max() < 1e-4 * theirs.abs().max()
            assert torch.equal(form.spatial(prepare(images)), found.spatial)
    assert expected[0].shape == (2, 2048) and expected[1].shape == (2, 2023) and expected[2].shape == (2, 1008)


def test_means_leave_out_what_is_beyond_the_border() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    found = average(x)[0, 0]
    assert found[0, 0] == (0 + 1 + 4 + 5) / 4 and found[0, 1] == (0 + 1 + 2 + 4 + 5 + 6) / 6 and found[1, 1] == 5
    assert torch.equal(average(torch.ones(1, 1, 3, 3)), torch.ones(1, 1, 3, 3))


def test_the_last_block_pools_by_maximum() -> None:
    torch.manual_seed(0)
    blocks = [BlockE(8, maximum).eval() for maximum in (False, True)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    with torch.no_grad():
        mean, most = (block(torch.ones(1, 8, 8, 8).cumsum(3)) for block in blocks)
    assert torch.equal(mean[:, :-192], most[:, :-192]) and not torch.allclose(mean[:, -192:], most[:, -192:])


def test_what_becomes_of_an_image() -> None:
    image = torch.tensor([[0, 255], [0, 255]], dtype=torch.uint8)[None, None]
    x = prepare(image)
    assert x.shape == (1, 3, 299, 299) and torch.equal(x[:, 0], x[:, 2])
    assert x.min() == -1 and x.max() == 1
    # pixel centres aligned: output column j reads input column (j + 0.5) 2 / 299 - 0.5, clamped to what there is
    place = ((torch.arange(299) + 0.5) * 2 / 299 - 0.5).clamp(0, 1)
    torch.testing.assert_close(x[0, 0, 7], 2 * place - 1, atol=1e-5, rtol=0)


def test_the_encoder_and_its_name(network: Inception, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(2)
    found = encoder("inception", weights=weights)
    assert isinstance(found, InceptionEncoder)
    digest = inception.sha256(weights)
    assert found.name == f"inception-{digest[:8]}" and not found.published and found.version.startswith(digest[:16])
    pool = found.embed(images)
    with torch.no_grad():
        assert (pool - network(prepare(images)).pool).abs().max() < 1e-4 * pool.max()
    assert not pool.requires_grad
    probabilities = found.probabilities(pool)
    torch.testing.assert_close(probabilities, (pool.double() @ network.fc.weight.T.double()).softmax(1))
    spatial = found.spatial()
    assert spatial.name == found.name + "-spatial" and spatial.embed(images).shape == (2, 2023)
    grey = images[:1, :1]
    as_rgb = found.embed(grey.repeat(1, 3, 1, 1))
    assert (found.embed(grey) - as_rgb).abs().max() < 1e-4 * as_rgb.max()
    with pytest.raises(UserError, match="images of 4 channels"):
        found.embed(pictures(1, channels=4))
    with pytest.raises(TypeError, match="uint8"):
        found.embed(images.float())
    monkeypatch.setitem(inception.PUBLISHED, digest, "random.pth")
    assert InceptionEncoder(weights).name == "inception" and InceptionEncoder(weights).published


def test_distances_equal_torchmetrics(weights: Path) -> None:
    """Its FID, with this encoder inside."""
    image = pytest.importorskip("torchmetrics.image.fid")
    mine = InceptionEncoder(weights)

    class Extractor(nn.Module):
        num_features = 64  # it takes the root of a non-symmetric matrix: of all 2,048, half a minute

        def forward(self, images: Tensor) -> Tensor:
            return mine.embed(images)[:, :64]

    real, fake = pictures(3, seed=1), pictures(4, seed=2) // 2
    fid = image.FrechetInceptionDistance(feature=Extractor()).set_dtype(torch.float64)
    fid.update(real, real=True)
    fid.update(fake, real=False)
    ours = frechet_distance(*(Gaussian.of(Extractor()(images)) for images in (fake, real)))
    assert ours == pytest.approx(fid.compute().item(), rel=1e-4)


def test_state_dicts_that_fit(network: Inception, tmp_path: Path) -> None:
    """Counters and the auxiliary classifier may be there or not; safetensors as well."""
    from safetensors.torch import save_file

    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    save_file({**state, "AuxLogits.fc.weight": torch.zeros(1008, 768)}, tmp_path / "w.safetensors")
    read = inception.read_network(tmp_path / "w.safetensors")
    assert all(torch.equal(read.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {name: value for name, value in s.items() if name != "fc.bias"}, "1 missing: fc.bias"),
        (lambda s: s | {"head.weight": torch.zeros(1)}, "1 surplus: head.weight"),
        (lambda s: s | {"fc.weight": torch.zeros(1000, 2048)}, "1 of another shape: fc.weight"),
        (lambda s: {"model": 3}, "holds no state dict"),
        (lambda s: s | {"fc.bias": torch.full((1008,), torch.nan)}, "NaN or infinity"),
    ],
)
def test_state_dicts_that_do_not_fit(
    network: Inception, tmp_path: Path, change: Callable[[dict], dict], message: str
) -> None:
    torch.save(change(dict(network.state_dict())), tmp_path / "w.pth")
    with pytest.raises(UserError, match=message) as caught:
        InceptionEncoder(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


class Trap:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="holds more than tensors, which is not opened; .* comes from"):
        InceptionEncoder(tmp_path / "w.pth")
    torch.save({"fc.weight": Trap()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds more than tensors, which is not opened; .* comes from"):
        InceptionEncoder(tmp_path / "w.pth")


def test_a_damaged_archive_and_a_download_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"fc.weight": torch.zeros(9, 9)}, tmp_path / "w.pth")
    content = bytearray((tmp_path / "w.pth").read_bytes())
    content[content.rindex(b"PK\x01\x02")] = 0  # its end is there, its list of members is not
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as weights"):
        InceptionEncoder(tmp_path / "w.pth")

    def cut(*_: object, **__: object) -> object:
        raise http.client.IncompleteRead(b"", 9)

    monkeypatch.setattr(inception.urllib.request, "urlopen", cut)
    with pytest.raises(UserError, match="could not be downloaded .IncompleteRead"):
        inception.download(tmp_path / "cache/w.pth")
    assert not list((tmp_path / "cache").iterdir())


class Script(nn.Module):
    """What the published script looks like from outside, in small."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.output = nn.Linear(12, 1008)

    def forward(self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False):  # type: ignore[no-untyped-def]
        features = self.layers(img.to(torch.float32) / 127.5 - 1)
        return features if return_features else self.output(features).softmax(1)


def test_a_script(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Script().eval()
    torch.jit.script(module).save(str(tmp_path / "w.pt"))
    found = InceptionEncoder(tmp_path / "w.pt")
    images = pictures(4)
    pool = found.embed(images)
    torch.testing.assert_close(pool, module(images, return_features=True))
    torch.testing.assert_close(
        found.probabilities(pool), (pool.double() @ module.output.weight.T.double()).softmax(1).detach()
    )
    assert found.script and "script" in found.transform
    with pytest.raises(UserError, match="is a script"):
        found.spatial()
    torch.jit.script(nn.ReLU()).save(str(tmp_path / "other.pt"))
    with pytest.raises(UserError, match="script of another network"):
        InceptionEncoder(tmp_path / "other.pt")


def test_where_weights_are_looked_for(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(inception, "ADDRESS", (tmp_path / "nowhere").as_uri())
    with pytest.raises(UserError) as caught:
        encoder("inception")
    said = str(caught.value)
    assert inception.STATE_DICT in said and str(tmp_path / "cache/weights" / inception.STATE_DICT) in said
    assert "\n" not in said and inception.ADDRESS in said
    with pytest.raises(UserError, match="no such file"):
        encoder("inception", weights=tmp_path / "missing.pth")
    with pytest.raises(UserError, match="reads no file of weights"):
        encoder("pixels", weights=weights)
    (tmp_path / "there").write_bytes(b"another file")
    monkeypatch.setattr(inception, "ADDRESS", (tmp_path / "there").as_uri())
    with pytest.raises(UserError, match="another file than the published one"):
        inception.find()
    assert not list((tmp_path / "cache/weights").iterdir())
    monkeypatch.setitem(inception.PUBLISHED, inception.sha256(tmp_path / "there"), inception.STATE_DICT)
    assert inception.find().read_bytes() == b"another file"  # from the address, checked by its hash
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    (tmp_path / "torch/hub/checkpoints" / inception.SCRIPT).write_bytes(b"")
    (tmp_path / "cache/weights" / inception.STATE_DICT).unlink()
    assert inception.find().name == inception.SCRIPT  # what torch has kept
