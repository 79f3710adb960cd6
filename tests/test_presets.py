"""Every preset: resolves, has the published number of parameters, and trains two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.estimate import estimate
from twofold.run import build, load
from twofold.settings.presets import open_preset, preset_names
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

PUBLISHED = {
    "ddpm-cifar10": 35_746_307,
    "ddae-cifar10-ddpm": 35_746_307,
    "ddae-cifar10-edm": 35_746_307,
    "ddae-cifar10-ddpmpp": 56_524_291,
    "ddae-cifar10-edm-ddpmpp": 56_524_291,
    "ddae-cifar10-edm-ddpmpp-aug": 56_525_443,
    "joint-cifar10-trunk": 52_542_979,
    "adm-imagenet-64": 295_904_454,
    "edm-cifar10": 55_735_299,
    "edm-cifar10-uncond": 55_733_891,
    "dpt-cifar10": 55_735_299,
    "freematch-cifar10": 1_469_642,
    "autoencoder-kl-f8": 83_653_863,
    "noisy-wrn-cifar10": 38_913_114,
    "noisy-unet-cifar10": 17_445_386,
    "uvit-cifar10": 44_255_328,
    "dpt-imagenet256-uvit-l": 286_763_172,
    "dpt-imagenet256-uvit-h": 500_832_016,
    "iddm-cifar10": 23_335_299,
    "iddm-anime": 23_332_739,
}
# What the presets that start from a trained denoiser are given instead of a run, and its width cut down for training
SOURCES = {"finetune": "digits", "lora": "digits", "noisy-mlp": "digits", "noisy-mlp-cifar10": "ddae-cifar10-ddpm"}

STRIDES = {"latent-fashion-mini": 4}  # pixels per latent of presets with an autoencoder, 8 for the others
LARGEST = 64  # pixels of the images that are trained on for two steps
ATTENDS_EVERYWHERE = 16  # likewise, where full resolution attends
SIDES = {"latent-256": 128}  # where levels that attend need more
SIDES |= dict.fromkeys(("autoencoder-kl-f8", "autoencoder-128", "autoencoder-256"), 32)  # where two steps take long
SIDES |= {f"iddm-{name}": 32 for name in ("64", "cifar10", "neu", "nrsd", "wood", "anime")}
OWN_IMAGES = ("images-", "autoencoder-kl", "autoencoder-1", "autoencoder-2", "latent-1", "latent-2", "sr-x")

WITHOUT_DATA = ("finetune", "lora", "noisy-mlp")  # they take that of the run
FOLDERS = ("iddm-64", "iddm-neu", "iddm-nrsd", "iddm-wood", "iddm-anime")  # of somebody's own images


def settings_of(name: str, *changes: dict[str, Any]) -> TrainSettings:
    """A preset's settings; those without data of their own are given digits."""
    own = [("test", {"data": "digits"})] if name.startswith(OWN_IMAGES) or name in (*WITHOUT_DATA, *FOLDERS) else []
    preset = open_preset(name)
    if any(values.get("codec") for _, values in preset.layers):
        own.append(("test", {"codec": {"source": "runs/autoencoder"}}))
    layers = [*preset.layers, *own, *(("test", change) for change in changes)]
    return resolve(TrainSettings, layers)[0]


def shape_of(settings: TrainSettings) -> tuple[int, int, int]:
    size = settings.data.size or ((28, 28) if settings.codec else (8, 8))
    return (settings.data.channels or 1, *size)


def x0_shape_of(name: str, settings: TrainSettings, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Of what is denoised: the images, or their latents."""
    stride = STRIDES.get(name, 8)
    return shape if settings.codec is None else (4, shape[1] // stride, shape[2] // stride)


def narrowed(settings: TrainSettings, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Changes that make a run of a preset small: few channels, few images of digits."""
    network = settings.network
    narrow: dict[str, Any] = {"channels": 8}
    if network.kind in ("wideresnet", "wrn"):
        narrow = {"depth": 10, "width": 1}
    elif network.kind == "dit":
        narrow = {"width": 16, "depth": 2, "heads": 2, "embedding_channels": 16}
    elif network.kind == "uvit":
        narrow = {"width": 16, "depth": 2, "heads": 2}
    elif network.kind == "iddm":
        narrow |= {"heads": 2}
    elif network.kind == "autoencoder":
        narrow["norm_groups"] = 4
    elif network.kind == "trunk":
        narrow = {}
    elif getattr(network, "head_channels", None):
        narrow["head_channels"] = 4
    if network.kind == "unet" and network.heads > 1:
        narrow["heads"] = 2
    few = {"objective": {"labelled_batch": 2}} if getattr(settings.objective, "labelled_batch", None) else {}
    few |= {"codec": {"store": False}} if settings.codec is not None else {}
    few |= {"objective": {"crop": 32}} if getattr(settings.objective, "crop", None) else {}
    return few | {
        "data": {"source": "digits", "size": shape[1:], "channels": shape[0]},
        "network": narrow,
        "train": {
            "n_images": 8,
            "batch_size": 4,
            "micro_batch": None,
            "precision": "fp32",
            "snapshot_images": [],
            "preview_n": 4,
        },
        "validation": {"samples": 4, "steps": 2, "max_images": 4},
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Denoisers to start from, narrow and trained for two steps, by the preset they were made with."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        for name in sorted(set(SOURCES.values())):
            settings = settings_of(name)
            made[name] = tmp_path_factory.mktemp("source") / name
            train(settings_of(name, narrowed(settings, shape_of(settings))), made[name], "cpu")
    return made


@pytest.mark.parametrize("name", preset_names())
def test_resolves_and_counts(name: str) -> None:
    settings = settings_of(name)
    if name in SOURCES:  # as `init_from` fills it in
        start = settings_of(SOURCES[name])
        trunk = settings.network.kind == "trunk"
        network = settings.network.model_copy(update={"unet": start.network}) if trunk else start.network
        settings = settings.model_copy(update={"network": network, "noise": start.noise})
    header = open_preset(name).header
    assert all(word in header for word in ("purpose:", "data:", "machine:", "expected:"))
    with torch.device("meta"):
        model = build(settings, x0_shape_of(name, settings, shape_of(settings)), [str(i) for i in range(10)])
    count = sum(p.numel() for p in model.network.parameters())
    assert count == PUBLISHED.get(name, count)


def test_every_published_count_is_a_preset() -> None:
    assert set(PUBLISHED) <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_two_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: dict[str, Path]) -> None:
    """On digits, at reduced width; everything else as in the preset."""
    monkeypatch.setattr("twofold.learn.latents.SCALE_IMAGES", 16)
    settings = settings_of(name)
    channels, height, width = shape_of(settings)
    largest = SIDES.get(name, LARGEST)
    shape = (channels, min(height, largest), min(width, largest))
    change = narrowed(settings, shape)
    if name in SOURCES:
        change["init_from"] = str(sources[SOURCES[name]])
    if settings.codec is not None:
        change["codec"]["source"] = str(random_autoencoder(tmp_path / "codec", channels, STRIDES.get(name, 8)))
    settings = settings_of(name, change)
    result = train(settings, tmp_path / "run", "cpu")
    assert result["n_images"] == 8 and result["nonfinite_steps"] == 0
    model: Any = load(tmp_path / "run")
    if settings.network.kind == "autoencoder":
        assert model.shape_of(shape)[0] == settings.network.latent_channels
    else:
        assert model.shape == x0_shape_of(name, settings, shape)


def random_autoencoder(folder: Path, channels: int, stride: int) -> Path:
    """A narrow one in diffusers' layout, with so many pixels per latent."""
    from diffusers import AutoencoderKL

    levels = stride.bit_length()
    AutoencoderKL(
        channels, channels, ("DownEncoderBlock2D",) * levels, ("UpDecoderBlock2D",) * levels, (8,) * levels,
        norm_num_groups=4,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_latent_preset_without_its_autoencoder_says_so() -> None:
    with pytest.raises(UserError, match=r"codec\.source: not set"):
        resolve(TrainSettings, open_preset("latent-fashion-mini").layers)


@pytest.mark.parametrize("name", SOURCES)
def test_a_preset_that_needs_a_source_says_so(name: str, tmp_path: Path) -> None:
    settings = settings_of(name)
    assert "needs init_from=RUN" in open_preset(name).header
    with pytest.raises(UserError, match=r"(network\.unet|lora\.rank=16): .*give init_from=RUN"):
        train(settings_of(name, narrowed(settings, shape_of(settings))), tmp_path / "run", "cpu")


def test_a_frozen_trunk_is_estimated_without_its_backward_pass() -> None:
    start = settings_of("digits").network
    found = {}
    for frozen in (True, False):
        change = {"network": {"freeze": frozen, "unet": start.model_dump(mode="json")}}
        found[frozen] = estimate(settings_of("noisy-mlp", change), (1, 8, 8), [str(i) for i in range(10)])
    assert found[True].parameters == found[False].parameters
    assert found[True].memory < 0.7 * found[False].memory and found[True].flops < 0.7 * found[False].flops


def test_estimate_matches_the_reference() -> None:
    """12.44 GFLOP per forward pass of the 35.7 M network (2 per multiply-add), as measured in the reference, give or
    take what is not a convolution or a matrix product, and the cheaper upsampling."""
    settings = settings_of("ddae-cifar10-ddpm")
    found = estimate(settings, (3, 32, 32), [])
    per_image = found.flops / 3 / settings.train.n_images / 1e9
    assert found.parameters == 35_746_307 and 11 < per_image < 12.6
    assert found.memory > found.parameters * 20 and found.seconds is None
