"""Segmentation and landmarks: losses against closed forms, training end to end, what the data decides, and mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from twofold.data import open_store
from twofold.errors import UserError
from twofold.learn import train
from twofold.learn.batches import Batch
from twofold.learn.objectives.landmarks import LandmarksObjective
from twofold.learn.objectives.segmentation import SegmentationObjective, class_weights, pixel_loss
from twofold.measure.landmarks import image_errors, landmark_scores
from twofold.measure.segmentation import confusion, segmentation_scores
from twofold.recognize.heatmaps import encode
from twofold.recognize.landmarker import NetworkLandmarker
from twofold.recognize.segmenter import NetworkSegmenter, class_colours, overlaid
from twofold.report.build import report_run
from twofold.run import Run, load
from twofold.settings.tasks import SMALLEST_UNBIASED, Landmarks, Segmentation

from .common import same, torchrun, weights
from .tasks import of_task, pairs, shapes

FCN, BISENET, DECONV = (
    {"kind": "fcn", "channels": 16},
    {"kind": "bisenet"},
    {"kind": "deconv", "layers": 1, "channels": 8},
)
QUICK = {"n_images": 96, "batch_size": 16, "save_images": 48}


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def pointed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs(tmp_path_factory.mktemp("pairs"))


class Answers(nn.Module):
    """Linear logits of each pixel, and in training an auxiliary head that says the opposite."""

    layers: dict = {}

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.out = nn.Conv2d(1, outputs, 1)

    def forward(self, x: torch.Tensor) -> Any:
        found = self.out(x)
        return [found, -found] if self.training else found


def batch_of(n: int, uniforms: int, classes: int = 3) -> Batch:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=random, dtype=torch.uint8)
    mask = torch.randint(0, classes, (n, 8, 8), generator=random, dtype=torch.uint8)
    mask[torch.rand(mask.shape, generator=random) < 0.2] = 255
    mask[-1] = 255
    points = 8 * torch.rand(n, 3, 2, generator=random) - 0.5
    points[0, 1] = torch.nan
    u = torch.rand(n, uniforms, generator=random, dtype=torch.float64)
    return Batch(images, torch.full((n,), -1), u, None, mask=mask, points=points)


def segmentation(**settings: Any) -> SegmentationObjective:
    torch.manual_seed(0)
    return SegmentationObjective(NetworkSegmenter(Answers(), ["a", "b", "c"], (1, 8, 8)), Segmentation(**settings))


def test_every_known_pixel_counts_alike() -> None:
    """The batch's mean is the sum over its known pixels by that of all pixels, in parts and as a whole."""
    made = segmentation(auxiliary_weight=0.25)
    batch = batch_of(4, made.uniforms)
    logits = made.network.out(batch.images / 127.5 - 1)  # type: ignore[operator, union-attr]
    main, other = (
        functional.cross_entropy(sign * logits, batch.mask.long(), ignore_index=255, reduction="sum") / 256  # type: ignore[union-attr]
        for sign in (1, -1)
    )
    losses = made(batch)
    assert losses.mean().item() == pytest.approx((main + 0.25 * other).item(), rel=1e-5)
    assert losses[-1] == 0 and (losses[:-1] > 0).all()
    assert torch.allclose(torch.cat([made(part) for part in batch.split(3)]), losses)
    assert made.eval()(batch).mean().item() == pytest.approx(main.item(), rel=1e-5)  # its own answer alone


def test_class_weights_are_factors() -> None:
    batch = batch_of(4, 0)
    logits = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    factors = torch.tensor([1.0, 0.5, 3.0])
    each = functional.cross_entropy(logits, batch.mask.long(), ignore_index=255, reduction="none")  # type: ignore[union-attr]
    known = torch.where(batch.mask == 255, 0.0, factors[batch.mask.clamp(max=2).long()])  # type: ignore[union-attr, index]
    assert torch.allclose(pixel_loss(logits, batch.mask, factors), (each * known).flatten(1).mean(1))
    with pytest.raises(UserError, match=r"objective\.class_weights: lists 2 factors for 3 classes"):
        segmentation(class_weights=(1.0, 2.0))


def test_tally_and_scores_are_the_measures() -> None:
    made = segmentation().eval()
    batch = batch_of(6, made.uniforms)
    total = made.tally(batch)
    assert torch.equal(total, sum(made.tally(part) for part in batch.split(4)))
    found = made.segmenter.masks(batch.images)
    assert made.scores(total) == segmentation_scores(confusion(found, batch.mask, 3))  # type: ignore[arg-type]
    assert made.scores(torch.zeros(9)) == {}
    shares = made.segmenter.probabilities(batch.images)
    assert torch.allclose(shares.sum(1), torch.ones(6, 8, 8)) and torch.equal(shares.argmax(1), found.long())
    assert made.pictures(batch).shape == (12, 3, 8, 8)


def landmarks(**settings: Any) -> LandmarksObjective:
    torch.manual_seed(0)
    network = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 3, 1))
    network.layers = {}  # type: ignore[assignment]
    landmarker = NetworkLandmarker(network, ["a", "b", "c"], (1, 8, 8), [[0, 1]], 1.0)
    return LandmarksObjective(landmarker, Landmarks(heat_sigma=1.0, **settings))


def test_the_loss_of_heat_maps() -> None:
    """The mean over joints and cells; a point that is not there adds nothing, whatever its map says."""
    made = landmarks()
    batch = batch_of(3, made.uniforms)
    heat = made.landmarker(batch.images / 127.5 - 1)
    target, _ = encode(batch.points, (8, 8), (4, 4), 1.0)  # type: ignore[arg-type]
    each = (heat - target).square().mean((2, 3))
    each[0, 1] = 0
    assert torch.allclose(made(batch), each.mean(1))
    made(batch)[0].backward()
    assert made.network[1].bias.grad[1] == 0 and made.network[1].bias.grad[0] != 0  # type: ignore[index, union-attr]


@torch.no_grad()
def test_landmark_tallies_are_the_measures() -> None:
    made = landmarks(normaliser=4.0, threshold=0.7).eval()
    batch = batch_of(6, made.uniforms)
    batch.points[5] = torch.nan  # type: ignore[index]
    total = sum(made.tally(part) for part in batch.split(4))
    found = made.landmarker.points(batch.images)[0]
    expected = landmark_scores(image_errors(found, batch.points, 4.0), 0.7)
    assert made.scores(total) == pytest.approx({name: expected[name] for name in ("nme", "failure_rate", "auc")})  # type: ignore[arg-type]
    assert made.scores(torch.zeros(4, dtype=torch.float64)) == {} and total[0] == 5  # type: ignore[index]
    assert made.pictures(batch).shape == (12, 3, 8, 8)


@pytest.mark.parametrize("head", [FCN, BISENET], ids=["fcn", "bisenet"])
def test_a_segmenter_learns(masked: Path, tmp_path: Path, head: dict[str, Any]) -> None:
    """Far better than naming everything ground, on images it has not seen; and is the same from its file."""
    warp = {"scale": [0.8, 1.2], "turn": 30, "pad": "edge"}
    settings = of_task(
        "segmentation",
        masked,
        head,
        {"n_images": 960, "batch_size": 16, "lr": 5e-3, "ema_halflife_images": 50},
        data={"flip": True},
        objective={"warp": warp, "class_weights": "sqrt_inverse"},
    )
    result = train(settings, tmp_path / "run", "cpu")["metrics"]
    assert result["miou"] > 0.8 and result["aacc"] > 0.9 and result["best_miou"] == result["miou"] <= result["macc"]
    model, store = load(tmp_path / "run"), open_store(settings.data)
    assert isinstance(model, NetworkSegmenter) and model.class_names == ["ground", "disc", "square"]
    rows = store.indices("validation")
    found = model.masks(store.batch(rows))
    scores = segmentation_scores(confusion(found, torch.from_numpy(store.masks[rows]), 3))  # type: ignore[index]
    assert scores["miou"] == pytest.approx(result["miou"], abs=0.002)
    assert list(model.layers) and not any(p.requires_grad for p in model.parameters()) and not model.training
    assert (tmp_path / "run/snapshots/best-miou.safetensors").is_file()
    assert np.load(next((tmp_path / "run/previews").glob("*.npy"))).shape[1:] == (3, 32, 32)


@pytest.mark.parametrize("unbiased", [False, True])
def test_a_landmarker_learns(pointed: Path, tmp_path: Path, unbiased: bool) -> None:
    settings = of_task(
        "landmarks",
        pointed,
        DECONV,
        {"n_images": 1600, "batch_size": 16, "lr": 5e-3, "ema_halflife_images": 50},
        data={"flip": True},
        objective={"heat_sigma": 1.5, "unbiased": unbiased, "normaliser": [0, 1], "warp": {"turn": 10, "shift": 0.05}},
    )
    result = train(settings, tmp_path / "run", "cpu")["metrics"]
    assert result["best_nme"] <= result["nme"] < 0.1  # of their distance, with a third point that can only be guessed
    model, store = load(tmp_path / "run"), open_store(settings.data)
    assert isinstance(model, NetworkLandmarker) and model.flip_pairs == [[0, 1]] and model.flip_test
    assert (model.heat_sigma, model.unbiased) == (1.5, unbiased)
    rows = store.indices("validation")
    found, confidence = model.points(store.batch(rows))
    errors = image_errors(found, store.points[rows], (0, 1))  # type: ignore[index]
    assert landmark_scores(errors)["nme"] == pytest.approx(result["nme"], abs=1e-4)
    assert (confidence[:, :2] > 0.4).float().mean() > 0.9


@pytest.mark.parametrize("kind", ["segmentation", "landmarks"])
def test_resuming_is_bit_exact(kind: str, masked: Path, pointed: Path, tmp_path: Path) -> None:
    folder, head = (masked, BISENET) if kind == "segmentation" else (pointed, DECONV)
    changes = {"data": {"flip": True}, "objective": {"warp": {"scale": [0.5, 2], "turn": 20}}}
    whole = of_task(kind, folder, head, {**QUICK, "ema_halflife_images": 50}, **changes)
    first = train(whole, tmp_path / "whole", "cpu")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/state" / "000000000096")
    (tmp_path / "again/result.json").unlink()
    second = train(whole, tmp_path / "again", "cpu")
    assert first["metrics"] == second["metrics"] and first["n_images"] == second["n_images"] == 96
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "again"))


def test_two_processes_add_up(masked: Path, pointed: Path, tmp_path: Path) -> None:
    """What they measured on shares of the validation part is what one finds on all of it, with the same weights."""
    loop = {**QUICK, "n_images": 32, "ema_halflife_images": 0}
    runs = {"a": of_task("segmentation", masked, FCN, loop), "b": of_task("landmarks", pointed, DECONV, loop)}
    given = {str(tmp_path / name): settings.model_dump(mode="json") for name, settings in runs.items()}
    (tmp_path / "settings.json").write_text(json.dumps(given))
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys\nfrom twofold.learn import train\nfrom twofold.learn.training import leave_process_group\n"
        "from twofold.settings.train import TrainSettings\n"
        "for out, settings in json.load(open(sys.argv[1])).items():\n"
        "    train(TrainSettings.model_validate(settings), out, 'cpu')\n"
        "leave_process_group()\n"
    )
    torchrun(program, tmp_path / "settings.json")
    found = {name: json.loads((tmp_path / name / "result.json").read_text())["metrics"] for name in runs}
    segmenter, landmarker = load(tmp_path / "a"), load(tmp_path / "b")
    assert isinstance(segmenter, NetworkSegmenter) and isinstance(landmarker, NetworkLandmarker)
    store, other = (open_store(settings.data) for settings in runs.values())
    rows = store.indices("validation")
    truth = torch.from_numpy(store.masks[rows])  # type: ignore[index]
    expected = segmentation_scores(confusion(segmenter.masks(store.batch(rows)), truth, 3))
    assert {name: found["a"][name] for name in expected} == pytest.approx(expected, abs=1e-6)
    rows = other.indices("validation")
    expected = landmark_scores(image_errors(landmarker.points(other.batch(rows))[0], other.points[rows], "box"))  # type: ignore[index]
    for name in ("nme", "failure_rate", "auc"):
        assert found["b"][name] == pytest.approx(expected[name], abs=1e-6), name


def test_real_masks_and_points(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    """By their short names: void left out of eleven classes, faces measured by their outer eye corners."""
    loop = {"n_images": 16, "batch_size": 8}
    few = {"most": 16, "flip": True, "mask_classes": None, "flip_pairs": None}
    street = of_task("segmentation", shared_data("camvid"), BISENET, loop, data={**few, "size": [45, 60]})
    street = street.model_copy(
        update={"data": street.data.model_copy(update={"source": f"camvid:{street.data.source}"})}
    )
    face = of_task("landmarks", shared_data("faces68"), {"kind": "fuse"}, loop, data={**few, "size": 48})
    face = face.model_copy(update={"data": face.data.model_copy(update={"source": f"faces68:{face.data.source}"})})
    found = train(street, tmp_path / "street", "cpu")["metrics"]
    assert 0 <= found["miou"] <= found["macc"] <= 1 and len(load(tmp_path / "street").class_names) == 11
    found = train(face, tmp_path / "face", "cpu")["metrics"]
    assert found["nme"] > 0 and 0 <= found["auc"] <= 1
    landmarker = load(tmp_path / "face")
    assert isinstance(landmarker, NetworkLandmarker) and landmarker.flip_test and len(landmarker.point_names) == 68
    assert "normaliser: inter_ocular" in (tmp_path / "face/settings.yaml").read_text()


def test_the_data_fills_in_what_it_knows(masked: Path, pointed: Path, tmp_path: Path) -> None:
    train(of_task("landmarks", pointed, DECONV, {"n_images": 16, "batch_size": 16}), tmp_path / "a", "cpu")
    facts = (tmp_path / "a/settings.yaml").read_text()
    model = load(tmp_path / "a")
    assert isinstance(model, NetworkLandmarker) and model.partner.tolist() == [1, 0, 2]
    assert "normaliser: box" in facts and "classes: 3" in facts


def test_weights_of_classes(masked: Path) -> None:
    """sqrt_inverse by its definition, and median by a table worked out pixel by pixel."""
    settings = of_task("segmentation", masked, FCN, {})
    store = open_store(settings.data)
    rows = store.indices("train")
    masks = np.asarray(store.masks[rows])  # type: ignore[index]
    known = np.array([(masks == k).sum() for k in range(3)])
    share = known / known.sum()
    found = np.array(class_weights("sqrt_inverse", store, rows, 4))
    assert found[:3] == pytest.approx(share**-0.5 / (share**0.5).sum(), rel=1e-4) and found[3] == found[:3].max()
    assert (found[:3] * share).sum() == pytest.approx(1, rel=1e-4)
    frequency = np.array([(masks == k).sum() / (masks[(masks == k).any((1, 2))] != 255).sum() for k in range(3)])
    assert class_weights("median", store, rows, 3) == pytest.approx(np.median(frequency) / frequency, rel=1e-4)


def test_hidden_masks_choose_nothing(masked: Path, tmp_path: Path) -> None:
    """Weights of classes, and the best ones of a run without a validation part, come from what may be learned from."""
    changes = {"data": {"annotated": 8}, "objective": {"class_weights": "median"}, "validation": {"split": "train"}}
    settings = of_task("segmentation", masked, FCN, {"n_images": 16, "batch_size": 8}, **changes)
    store = open_store(settings.data)
    rows = store.annotated_rows("train")
    assert len(rows) == 8 < len(store.indices("train"))
    expected = class_weights("median", store, rows, 3)
    result = train(settings, tmp_path / "run", "cpu")["metrics"]
    assert all(f"{weight:g}"[:6] in (tmp_path / "run/settings.yaml").read_text() for weight in expected)
    model = load(tmp_path / "run")
    truth = torch.from_numpy(store.masks[rows])  # type: ignore[index]
    scores = segmentation_scores(confusion(model.masks(store.batch(rows)), truth, 3))  # type: ignore[union-attr, operator]
    assert scores["miou"] == pytest.approx(result["miou"], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"head": {"kind": "pool"}}}, "network.head.kind=fcn or bisenet, not pool"),
        ({"network": {"head": None}}, "not one without a head"),
        ({"network": {"kind": "convnet"}}, "needs network.kind=student"),
        ({"objective": {"kind": "landmarks"}}, "network.head.kind=deconv or fuse, not fcn"),
        ({"objective": {"kind": "supervised"}}, "network.head.kind=pool, not fcn"),
        ({"objective": {"kind": "landmarks", "normaliser": [3, 3]}}, "distance of a point to itself"),
        ({"objective": {"kind": "landmarks", "flip_pairs": "ibug"}}, "there are no flip pairs called 'ibug'"),
        ({"objective": {"kind": "landmarks", "heat_sigma": 0.1, "unbiased": True}}, "bumps that lie between the cells"),
        ({"objective": {"kind": "landmarks", "warp": {"crop": 8, "cat_max_ratio": 0.5}}}, "is about masks"),
        ({"train": {"compile": True}}, "train.compile=true is for denoisers"),
    ],
)
def test_settings_that_do_not_fit(masked: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        of_task("segmentation", masked, FCN, {}, **change)
    assert "\n" not in str(error.value)


def test_data_that_do_not_fit(masked: Path, pointed: Path, tmp_path: Path) -> None:
    def refused(message: str, settings: Any) -> None:
        with pytest.raises(UserError, match=message) as error:
            train(settings, tmp_path / "run", "cpu")
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()

    digits = {"data": {"source": "digits", "mask_classes": None}}
    refused(
        "digits: its images have no masks; give data.mask_column", of_task("segmentation", masked, FCN, {}, **digits)
    )
    digits = {"data": {"source": "digits", "flip_pairs": None}}
    refused("digits: its images have no key points", of_task("landmarks", pointed, DECONV, {}, **digits))
    nameless = of_task("segmentation", masked, FCN, {}, data={"mask_classes": None})
    refused("masks of classes 0 to 2, of which none has a name; list them: data.mask_classes", nameless)
    ocular = of_task("landmarks", pointed, DECONV, {}, objective={"normaliser": "inter_ocular"})
    refused(r"objective\.normaliser=inter_ocular: which of these 3 points", ocular)
    exchanged = of_task("landmarks", pointed, DECONV, {}, objective={"flip_pairs": [[0, 5]]})
    refused(r"objective\.flip_pairs: point 5 is not one of 3", exchanged)


def test_the_least_unbiased_bump_reaches_a_cell() -> None:
    points = torch.rand(1, 500, 2, generator=torch.Generator().manual_seed(0)) * 16 - 0.5
    heat, weight = encode(points, (16, 16), (16, 16), SMALLEST_UNBIASED, unbiased=True)
    assert bool(weight.all()) and (heat.flatten(2).amax(2) > 0).all()


@pytest.mark.parametrize(("kind", "words"), [("segmentation", "true mask"), ("landmarks", "true points")])
def test_the_page_of_a_task_shows_no_samples(
    kind: str, words: str, masked: Path, pointed: Path, tmp_path: Path
) -> None:
    """What a preview shows are held-out images with answers; grey ones too, whose pictures have colours."""
    folder, head = (masked, FCN) if kind == "segmentation" else (pointed, DECONV)
    settings = of_task(kind, folder, head, {"n_images": 16, "batch_size": 16})
    train(settings, tmp_path / "run", "cpu")
    text = report_run(Run.open(tmp_path / "run"), open_store(settings.data)).read_text("utf-8")
    assert words in text and "Held-out images over training time" in text
    assert "Nearest training images" not in text and "Generated" not in text


def test_colours_tell_classes_apart() -> None:
    colours = class_colours(19).int()
    apart = (colours[:, None] - colours[None]).abs().sum(-1) + 1000 * torch.eye(19, dtype=torch.int32)
    assert apart.min() > 20 and torch.equal(class_colours(7).int(), colours[:7])
    images = torch.full((1, 1, 2, 2), 100, dtype=torch.uint8)
    over = overlaid(images, torch.tensor([[[0, 255], [1, 0]]], dtype=torch.uint8), 2)
    assert over[0, :, 0, 1].tolist() == [100] * 3
    assert over[0, :, 1, 0].tolist() == [round(50 + value / 2) for value in colours[1].tolist()]
