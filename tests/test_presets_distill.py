"""Every preset of distillation: resolves, has the published sizes and exposure, and runs two steps of each stage."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from twofold.learn.distilling.selection import make_selection
from twofold.learn.teaching import run
from twofold.networks import build as build_network
from twofold.noise import VP
from twofold.run import Run, build, save_model
from twofold.settings.noise import VPNoise
from twofold.settings.presets import DISTILL, header_fields, open_preset, preset_listing, preset_names
from twofold.settings.resolve import resolve
from twofold.settings.student import StudentSettings
from twofold.settings.teaching import TeachingSettings
from twofold.settings.train import TrainSettings

NAMES = preset_names(DISTILL)
FOR_ANY = ("classify", "segment", "landmarks")  # they leave the data open
PUBLISHED = [name for name in NAMES if name.startswith("repfusion-")]

# Parameters of the backbone and of the head for the classes of the preset's data
SIZES = {
    "cifar10-r18": (11_168_832, 5_130),
    "cifar10-mbv2": (2_223_872, 12_810),
    "cifar10-wrn28-2": (1_466_320, 1_290),
    "tiny-imagenet-r18": (11_168_832, 102_600),
    "tiny-imagenet-mbv2": (2_223_872, 256_200),
    "imagenet-r18": (11_176_512, 513_000),
    # BiSeNetV1's body is 12,680,320, with the ResNet; its heads for 19 classes have 257 + 2 * 65 more than for 18
    "celebamask-r18": (11_176_512, 12_680_320 - 11_176_512 + 594_962 + 257 + 2 * (75_026 + 65)),
    "celebamask-r50": (23_508_032, 47_414_592 - 23_508_032 + 9_457_682 + 1025 + 2 * (1_184_786 + 257)),
    "wflw-r50": (23_508_032, 10_512_482),
    "wflw-hrnet": (9_562_260, 100_268),  # its neck is for the first stage
    "kd-cifar10-r18": (11_168_832, 5_130),
}
CLASSES = {"cifar10": 10, "tiny": 200, "imagenet": 1000, "celebamask": 19, "wflw": 98}

SGD = ("sgd", 0.1, 1e-4, False)  # optimiser, learning rate, weight decay, Nesterov
NESTEROV = ("sgd", 0.1, 1e-4, True)
# {what a name begins with: (images of the data, epochs, batch, optimiser, shares of it where the rate falls, EMA's
# momentum per step, 0 = none)} of the published configurations; the longest beginning counts
PRETRAIN: dict[str, Any] = {
    "cifar10": (50_000, 200, 128, SGD, (0.5, 0.75), 0.001),
    "tiny-imagenet": (100_000, 200, 64, NESTEROV, (0.5, 0.75), 0.001),
    "tiny-imagenet-r18-at": (100_000, 200, 64, NESTEROV, (0.5, 0.75), 0),
    "tiny-imagenet-mbv2-at": (100_000, 200, 64, NESTEROV, (0.5, 0.75), 0),
    "imagenet": (1_280_000, 100, 256, ("adamw", 2.5e-4, 0.05, False), "cosine", 0),
    "celebamask": (30_000, 200, 64, SGD, (0.5, 0.75), 0),
    "wflw": (30_000, 200, 64, SGD, (0.5, 0.75), 0),
}
FINETUNE: dict[str, Any] = {
    "cifar10": (50_000, 200, 64, NESTEROV, (0.5, 0.75), 0.001),
    "tiny-imagenet": (100_000, 200, 128, SGD, (0.5, 0.75), 0),
    "imagenet": (1_280_000, 100, 256, SGD, (0.3, 0.6, 0.9), 0.01),
    "celebamask-r18": (16, 160_000, 16, ("sgd", 0.005, 5e-4, False), "poly", 0),
    "celebamask-r50": (8, 160_000, 8, ("sgd", 0.005, 5e-4, False), "poly", 0),
    "wflw-r50": (7_500, 60, 128, ("adam", 2e-3, 0.0, False), (40 / 60, 55 / 60), 0),
    "wflw-hrnet": (7_500, 60, 256, ("adam", 2e-3, 0.0, False), (40 / 60, 55 / 60), 0),
}
WARMUP = {"imagenet": ("pretrain", 6_400_000), "celebamask-r18": ("finetune", 16_000)}
WARMUP |= {"celebamask-r50": ("finetune", 8_000), "wflw-r50": ("finetune", 64_000), "wflw-hrnet": ("finetune", 128_000)}


def settings_of(name: str, *changes: dict[str, Any], teacher: str = "RUN") -> TeachingSettings:
    """A preset's settings; what it leaves open is given: the teacher, and data to those for any."""
    layers = list(open_preset(name, DISTILL).layers)
    kd = name.startswith("kd-")
    if kd or not any(_teacher(values) for _, values in layers) or teacher != "RUN":
        objective = {"objective": {"teacher": teacher}}
        layers.append(("teacher", {"finetune": objective} if kd else {"pretrain": objective}))
    if name in FOR_ANY:
        layers.append(("data", {"data": "digits"}))
    return resolve(TeachingSettings, [*layers, *(("test", change) for change in changes)])[0]


def _teacher(values: dict[str, Any]) -> Any:
    return values.get("pretrain", {}).get("objective", {}).get("teacher")


def entry(table: dict[str, Any], name: str) -> Any:
    """What the table says of the longest beginning of a published name."""
    name = name.removeprefix("repfusion-")
    return table[max((key for key in table if name.startswith(key)), key=len)]


# -- what they are ----------------------------------------------------------------------------------------------------


def test_there_are_presets_and_each_has_a_line() -> None:
    assert len(PUBLISHED) == 21 and {*FOR_ANY, "kd-mini"} <= set(NAMES)
    lines = preset_listing(DISTILL).splitlines()
    assert [line.split()[0] for line in lines[1:]] == NAMES and all(len(line.split()) > 4 for line in lines[1:])


@pytest.mark.parametrize("name", NAMES)
def test_resolves_and_says_what_it_is(name: str) -> None:
    settings = settings_of(name)
    header = header_fields(open_preset(name, DISTILL).header)
    assert {"purpose", "data", "machine", "minutes", "expected"} <= set(header) and all(header.values())
    assert float(header["minutes"]) > 0
    assert (settings.pretrain is None) == name.startswith("kd-")
    if settings.pretrain is not None:
        assert not settings.pretrain.objective.warp.turns


@pytest.mark.parametrize("name", NAMES)
def test_sizes(name: str) -> None:
    settings = settings_of(name)
    known = next((sizes for key, sizes in SIZES.items() if name.removeprefix("repfusion-").startswith(key)), None)
    classes = next((n for key, n in CLASSES.items() if key in name.removeprefix("repfusion-").split("-")), 10)
    student = StudentSettings(backbone=settings.backbone, head=settings.finetune.head)
    with torch.device("meta"):
        network: Any = build_network(student, (3, 64, 64), classes)
    found = tuple(sum(p.numel() for p in part.parameters()) for part in (network.backbone, network.head))
    assert known is None or found == known, found
    assert known is not None or name in FOR_ANY or sum(found) < 400_000


def test_every_size_is_of_a_preset() -> None:
    for key in SIZES:
        assert any(name.removeprefix("repfusion-").startswith(key) for name in NAMES), key


# -- what they do, against the published configurations ---------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_exposure_of_published_recipes(stage: str, name: str) -> None:
    images, epochs, batch, optimizer, falls, momentum = entry(PRETRAIN if stage == "pretrain" else FINETUNE, name)
    train = getattr(settings_of(name), stage).train
    assert (train.n_images, train.batch_size) == (images * epochs, batch)
    assert (train.optimizer, train.lr, train.weight_decay, train.nesterov) == optimizer
    assert train.momentum == 0.9 and train.clip_norm == (5.0 if train.optimizer == "adamw" else None)
    assert train.schedule == (falls if isinstance(falls, str) else "step") and train.step_factor == 0.1
    if not isinstance(falls, str):
        assert train.step_images == pytest.approx([share * train.n_images for share in falls], rel=1e-9)
    if momentum:
        half = math.log(0.5) / math.log(1 - momentum) * batch
        assert train.ema_halflife_images == pytest.approx(half, rel=0.01) and train.ema_rampup is None
    else:
        assert train.ema_halflife_images == 0
    where, warmup = next((v for k, v in WARMUP.items() if name.removeprefix("repfusion-").startswith(k)), ("", 0))
    assert train.warmup_images == (warmup if where == stage else 0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_losses_and_levels_of_published_recipes(name: str) -> None:
    settings = settings_of(name)
    assert settings.pretrain is not None
    objective = settings.pretrain.objective
    assert objective.input == "clean" and objective.teacher_layers == ("mid",) and not objective.standardise
    (loss,) = objective.losses
    faces = "celebamask" in name or "wflw" in name
    if faces:
        wanted = ("dense", "l2", 1.0) if name.endswith("r18") else ("dense", "l1", 10.0)
        assert (loss.kind, loss.distance, loss.weight) == wanted  # type: ignore[union-attr]
    else:
        kind = {"hint": "hint", "at": "attention", "rkd": "rkd"}[name.rsplit("-", 1)[1]]
        assert (loss.kind, loss.weight) == (kind, 1000.0 if kind == "attention" else 1.0)
    if faces or name == "repfusion-imagenet-r18-at":
        assert objective.sigma.kind == "fixed" and objective.sigma.sigma == 0
    elif "cifar10" in name or name == "repfusion-tiny-imagenet-r18-hint":
        sigma: Any = objective.sigma
        assert (sigma.kind, sigma.bins, sigma.baseline, sigma.shared) == ("policy", "table", "none", True)
        wanted = ("small32", 0.1, 5_000_000, 1) if "cifar10" in name else ("small64", 0.0, None, 2)
        assert (sigma.network, sigma.entropy, sigma.entropy_until_images, sigma.task_divisor) == wanted
    else:  # the 50 lowest levels of the teacher's own table
        family = VP(VPNoise(table="cosine" if "tiny" in name else "linear"))
        levels = family.sigma(torch.arange(1000))
        ends = float(levels[0]), float(levels[-1])
        chosen = make_selection(objective.sigma, levels, ends, (3, 64, 64), 8, 200).sigmas
        assert chosen is not None and torch.equal(chosen, levels[:50])


@pytest.mark.parametrize("name", ["repfusion-celebamask-r18", "repfusion-wflw-r50", "repfusion-wflw-hrnet"])
def test_tasks_of_faces(name: str) -> None:
    """The augmentation of one task leaves nothing in the other."""
    settings: Any = settings_of(name)
    assert (settings.pretrain_data.source, settings.pretrain_data.size) == ("CelebAMask-HQ", (256, 256))
    warp = settings.finetune.objective.warp
    if settings.task == "segment":
        assert (warp.scale, warp.crop, warp.cat_max_ratio, warp.colour) == ((0.5, 2.0), (448, 448), 0.75, 1.0)
        assert settings.data.size == (512, 512) and not warp.turns
    else:
        assert (warp.scale, warp.crop, warp.colour) == ((0.75, 1.25), None, 0.0)
        assert (warp.turn, warp.turn_probability, warp.turn_distribution) == (30, 0.6, "normal")
        assert settings.data.size == (256, 256) and settings.finetune.objective.heat_sigma == 2
        assert settings.data.validation_share == 0


def test_every_classifier_teaches_with_its_own_loss() -> None:
    kinds = {"soft": "soft", "logits": "logits", "fitnet": "hint", "at": "attention", "rkd": "rkd", "crd": "crd"}
    for ending, kind in {**kinds, "afd": "afd"}.items():
        objective: Any = settings_of(f"kd-cifar10-r18-{ending}").finetune.objective
        assert [loss.kind for loss in objective.losses] == [kind]


# -- two steps of each stage ------------------------------------------------------------------------------------------

SMALL, SIDE = 16, 32  # pixels; the larger for a total stride of 32
NARROW: dict[str, dict[str, Any]] = {
    "resnet": {"blocks": [1, 1, 1, 1], "channels": 8},
    "mobilenetv2": {"width_mult": 0.1},
    "wide": {"depth": 10, "width": 1},
    "hrnet": {"width": 4, "modules": [1, 1, 1], "blocks": 1, "stem_channels": 8, "neck": 64},
    "bisenet": {"channels": 8},
    "deconv": {"channels": 8},
    "fcn": {"channels": 8},
}
DATA: dict[str, dict[str, Any]] = {
    "classify": {},
    "segment": {"mask_column": "mask", "mask_classes": ["ground", "dark", "light"]},
    "landmarks": {"points_column": "points", "flip_pairs": []},
}


def narrowed(settings: TeachingSettings, images: Path) -> dict[str, Any]:
    """Changes that make an experiment small: few channels, few small images, two steps."""
    side = SIDE if getattr(settings.backbone, "stem", "cifar") == "imagenet" else SMALL
    data = {"source": str(images), "size": side, "channels": 3, "most": None, "validation_share": 0.0}
    if settings.data.labels_per_class is not None:
        data["labels_per_class"] = 2
    if settings.data.annotated is not None:
        data["annotated"] = 6
    train = {"n_images": 8, "batch_size": 4, "micro_batch": None, "precision": "fp32", "snapshot_images": []}
    few = {"train": train, "validation": {"samples": 0, "max_images": 4}}
    change: dict[str, Any] = {
        "stage": "finetune",
        "data": {**data, **DATA[settings.task]},
        "backbone": NARROW[settings.backbone.kind],
        "finetune": {**few, "lrs": [], "head": NARROW.get(settings.finetune.head.kind, {})},
    }
    if settings.pretrain is not None:
        change["pretrain"] = few
        if settings.pretrain_data is not None:
            change["pretrain_data"] = data
    warp = getattr(settings.finetune.objective, "warp", None)
    if warp is not None and warp.crop is not None:
        change["finetune"]["objective"] = {"warp": {"crop": side - 2}}
    return change


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two squares on each of 20 grey images, with a class, a mask and the centres of both."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("shapes")

    def png(array: np.ndarray) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    for split, count in (("train", 12), ("validation", 4), ("test", 4)):
        rows: dict[str, list[Any]] = {"image": [], "label": [], "mask": [], "points": []}
        for i in range(count):
            image, mask, centres = (
                rng.integers(90, 110, (SIDE, SIDE, 3), np.uint8),
                np.zeros((SIDE, SIDE), np.uint8),
                [],
            )
            for kind, level in ((1, 30), (2, 220)):
                y, x = int(rng.integers(0, 20)), int(rng.integers(0, 5) + (kind - 1) * 16)
                image[y : y + 11, x : x + 11], mask[y : y + 11, x : x + 11] = level, kind
                centres += [x + 5.0, y + 5.0]
            for key, value in (("image", png(image)), ("label", i % 3), ("mask", png(mask)), ("points", centres)):
                rows[key].append(value)
        pq.write_table(pa.table(rows), folder / f"{split}-0.parquet")
    return folder


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    """Random weights. False: a denoiser with a table of 1000 levels; True: a classifier of these images."""
    small = {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": []}  # has dec.0 to dec.3
    student = {"kind": "student", "backbone": {"kind": "resnet", **NARROW["resnet"]}, "head": {"kind": "pool"}}
    made = {}
    for kd, values in (
        (False, {"network": small, "noise": {"kind": "vp"}}),
        (True, {"network": student, "objective": {"kind": "supervised"}}),
    ):
        settings = TrainSettings.model_validate({"data": "digits", **values})
        written = Run.start(tmp_path_factory.mktemp("teacher") / "run", settings)
        torch.manual_seed(0)
        model = build(settings, (3, SMALL, SMALL), ["0", "1", "2"] if kd else [])
        with torch.no_grad():  # layers that start at zero would say nothing
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        save_model(written.model_file, model.network.state_dict(), model, settings, 0)
        made[kd] = str(written.path)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_of_each_stage(name: str, images: Path, teachers: dict[bool, str], tmp_path: Path) -> None:
    """On small images, at reduced width; everything else as in the preset."""
    kd = name.startswith("kd-")
    settings = settings_of(name, narrowed(settings_of(name), images), teacher=teachers[kd])
    result, _ = run(settings, tmp_path / "out", "cpu")
    assert [part["name"] for part in result["parts"]] == ["taught-run"] if kd else ["backbone", "taught-run"]
    for part in result["parts"]:
        made = Run(tmp_path / "out" / part["folder"])
        done = json.loads((made.path / "result.json").read_text())
        assert done["n_images"] == 8 and done["nonfinite_steps"] == 0
        losses = [row["loss"] for row in made.log() if "loss" in row]
        assert losses and all(map(math.isfinite, losses))
    if "wrn28" in name:
        assert result["pretraining"]["teacher"]["student_layers"] == ["norm"]
    found = result["arms"]["taught"]["metrics"][result["measure"]]
    assert found["n"] == 4 and math.isfinite(found["value"])
