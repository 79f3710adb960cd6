"""`evaluate` with pretrained encoders, statistics files, .npz files, and on several processes.

FID's network is stood in for by a tiny script with the same face; the network itself is tested where it is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from twofold.cli import compared
from twofold.cli.generated import Generated
from twofold.cli.main import main
from twofold.data import open_store, spread
from twofold.measure import Gaussian, PixelEncoder, embed, frechet_distance, inception
from twofold.settings.data import DataSettings

from ..processes import torchrun
from .test_sample_evaluate import QUICK, found_in, make_run, said


class Script(nn.Module):
    """2 x 2 averages of each channel in place of pool_3."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.output = nn.Linear(12, 1008)

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        features = self.pool(img.to(torch.float32) / 127.5 - 1).flatten(1)
        return features if return_features else self.output(features).softmax(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.manual_seed(0)
    torch.jit.script(Script()).save(str(path))
    return path


def samples(path: Path, n: int = 20, size: int = 8, channels: int = 1, **more: Any) -> Path:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    np.savez(path, arr_0=images, **more)
    return path


def digits() -> Tensor:
    store = open_store(DataSettings(source="digits"))
    return store.batch(store.indices("all"))


def test_everything_the_numbers_depend_on_is_told(
    run: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["encoder=inception", f"weights={weights}", "n=20", "seed=7", "precision=fp32", *QUICK]
    assert main(["evaluate", str(run), *words, "--out", str(tmp_path / "evaluations")]) == 0
    printed, found = capsys.readouterr().out, found_in(tmp_path)
    name = f"inception-{inception.sha256(weights)[:8]}"
    kinds = {"frechet", "precision", "recall", "kid", "kid_all", "density", "coverage", "inception_score"}
    assert {f"{kind}/{name}" for kind in kinds} <= found["metrics"].keys()
    assert "FID" not in found["metrics"] and "is not the published file: not FID" in printed
    assert "20 samples are fewer than the 2,048 dimensions" in printed
    made, encoder, reference = (found["request"][key] for key in ("samples", "encoder", "reference"))
    assert made["seeds"] == {"first": 7, "count": 20} and made["steps"] == 2 and made["sampler"] == "dpmpp2m"
    assert {"guidance", "clip", "precision", "micro_batch", "grid", "labels"} <= made.keys()
    assert made["checkpoint"] == found["source"]["hash"] and len(made["checkpoint"]) == 64
    assert encoder["encoder"] == name and encoder["encoder_version"] and "299" in encoder["transform"]
    assert reference["data"] == "digits" and reference["images"] == 1797 and reference["split"] == "all"
    assert reference["data_hash"] == found["data"]["hash"] and reference["data_settings"]["source"] == "digits"
    for word in ("seeds 7 to 26", "dpmpp2m, 2 steps, guidance 1", name, "1,797 images", reference["data_hash"][:8]):
        assert word in found["note"] and word in printed
    assert all(
        np.isfinite(v) for row in found["metrics"].values() for k, v in row.items() if k != "interval" and "_" not in k
    )


def test_only_published_weights_make_it_fid(
    run: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(inception.PUBLISHED, inception.sha256(weights), "w.pt")
    words = ["encoder=inception", f"weights={weights}", "metrics=[inception_score]", "n=10", *QUICK]
    assert main(["evaluate", str(run), *words]) == 0
    found = json.loads(max((run / "evaluations").glob("*.json"), key=os.path.getmtime).read_text())
    assert found["metrics"]["FID"]["samples"] == found["frechet_to_split"]["value"]
    assert "inception_score" in found["metrics"] and "kid/inception" not in found["metrics"]
    assert "FID" in capsys.readouterr().out and "FID" in (run / "report.html").read_text()


def test_statistics_are_saved_and_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a model; the distance to the file is the distance to the data."""
    file = tmp_path / "digits.npz"
    assert main(["evaluate", "data=digits", f"save_statistics={file}", "--quiet"]) == 0
    assert "1,797 images of digits, encoder pixels" in capsys.readouterr().out
    real = digits()
    expected = Gaussian.of(embed(PixelEncoder(), real))
    with np.load(file, allow_pickle=False) as arrays:
        np.testing.assert_allclose(arrays["mu"], expected.mean, atol=1e-12)
        np.testing.assert_allclose(arrays["sigma"], expected.covariance, atol=1e-12)
        assert json.loads(str(arrays["about"]))["images"] == 1797
    given = samples(tmp_path / "fake.npz")
    assert main(["evaluate", str(given), f"reference={file}", "--quiet", "--out", str(tmp_path / "e/evaluations")]) == 0
    found = found_in(tmp_path / "e")
    fake = torch.from_numpy(np.load(given)["arr_0"].transpose(0, 3, 1, 2))
    distance = frechet_distance(Gaussian.of(embed(PixelEncoder(), fake)), expected)
    assert found["metrics"] == {"frechet/pixels": {"samples": pytest.approx(distance, rel=1e-9)}}
    assert found["request"]["reference"]["data"] == "digits" and found["request"]["samples"]["sha256"]
    both = [
        "evaluate",
        str(given),
        "data=digits",
        f"reference={file}",
        "--quiet",
        "--out",
        str(tmp_path / "b/evaluations"),
    ]
    assert main(both) == 0
    beside = found_in(tmp_path / "b")
    assert beside["frechet_to_reference"]["value"] == pytest.approx(distance, rel=1e-9)
    assert "real" in beside["metrics"]["precision/pixels"] and "frechet_to_split" not in beside
    again = tmp_path / "again.npz"
    words = ["evaluate", str(given), "data=digits", f"save_statistics={again}", "--quiet", "--out", str(tmp_path / "c")]
    assert main(words) == 0
    assert (np.load(again)["sigma"] == np.load(file)["sigma"]).all()


def test_a_reference_in_adms_form(run: Path, weights: Path, tmp_path: Path) -> None:
    """Images, moments, and those of sFID: what can be measured with them is; labels of samples are read."""
    reference = samples(tmp_path / "adm.npz", 30, 16, 3, arr_1=np.arange(30), mu=np.zeros(12), sigma=np.eye(12))
    given = samples(tmp_path / "fake.npz", 12, 16, 3, arr_1=np.arange(12))
    words = ["encoder=inception", f"weights={weights}", "--quiet", "--out", str(tmp_path / "evaluations")]
    assert main(["evaluate", str(given), f"reference={reference}", *words]) == 0
    name = f"inception-{inception.sha256(weights)[:8]}"
    kinds = ["frechet", "inception_score", "kid", "kid_all", "precision", "recall", "density", "coverage"]
    found = found_in(tmp_path)["metrics"]
    assert list(found) == [f"{kind}/{name}" for kind in kinds]
    assert found[f"precision/{name}"]["samples"] == found[f"coverage/{name}"]["samples"] == 1  # some of the same images
    assert found[f"frechet/{name}"]["samples"] > 1
    samples(tmp_path / "images.npz", 30, 16, 3)
    words[-1] = str(tmp_path / "i/evaluations")
    assert main(["evaluate", str(given), f"reference={tmp_path / 'images.npz'}", *words]) == 0
    assert found_in(tmp_path / "i")["metrics"][f"frechet/{name}"]["samples"] < 0.1  # of the images themselves


def test_sfid_of_the_network_itself(tmp_path: Path) -> None:
    """Five samples against moments of our own: both distances, by hand."""
    from twofold.networks.inception import Inception

    torch.manual_seed(0)
    torch.save(Inception().state_dict(), tmp_path / "w.pth")
    encoder = inception.InceptionEncoder(tmp_path / "w.pth")
    given = samples(tmp_path / "fake.npz", 5)
    fake = torch.from_numpy(np.load(given)["arr_0"].transpose(0, 3, 1, 2))
    moments: dict[str, np.ndarray] = {}
    for end, dims in (("", 2048), ("_s", 2023)):
        moments |= {f"mu{end}": np.full(dims, 0.5), f"sigma{end}": np.eye(dims)}
    np.savez(tmp_path / "reference.npz", **moments)  # type: ignore[arg-type]
    words = [f"reference={tmp_path / 'reference.npz'}", f"weights={tmp_path / 'w.pth'}", "metrics=[sfid]", "--quiet"]
    assert main(["evaluate", str(given), *words, "--out", str(tmp_path / "evaluations")]) == 0
    found = found_in(tmp_path)["metrics"]
    assert list(found) == [f"frechet/{encoder.name}", f"frechet/{encoder.name}-spatial"]
    for value, which in zip(found.values(), (encoder, encoder.spatial()), strict=True):
        rows = embed(which, fake).double().numpy()
        # against the identity: |m - 1/2|^2 + tr C + D - 2 tr C^(1/2), of rank 4 here
        singular = np.linalg.svd((rows - rows.mean(0)) / 2, compute_uv=False)
        expected = ((rows.mean(0) - 0.5) ** 2).sum() + (singular**2).sum() + rows.shape[1] - 2 * singular.sum()
        assert value["samples"] == pytest.approx(expected, rel=1e-6)


def test_an_encoder_from_transformers(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    layers = {"hidden_sizes": [8, 6], "depths": [1, 1], "embedding_size": 8, "layer_type": "basic"}
    transformers.ResNetModel(transformers.ResNetConfig(**layers, image_size=16)).save_pretrained(
        tmp_path / "tiny-resnet"
    )
    words = [f"encoder=transformers:{tmp_path / 'tiny-resnet'}", "n=10", *QUICK]
    assert main(["evaluate", str(run), *words, "--out", str(tmp_path / "evaluations")]) == 0
    assert "frechet/tiny-resnet" in capsys.readouterr().out
    assert "coverage/tiny-resnet" in found_in(tmp_path)["metrics"]


def test_many_samples_are_thinned_for_neighbours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared, "MOST_KEPT", 10)

    class Narrow(PixelEncoder):
        batch = 7

    images = digits()[:45]
    kept, whole = compared.seen(Narrow(), images, True)
    assert torch.equal(kept, embed(PixelEncoder(), images)[spread(45, 10)])
    expected = Gaussian.of(embed(PixelEncoder(), images))
    assert whole.n == 45
    np.testing.assert_allclose(whole.covariance, expected.covariance, atol=1e-12)
    notes = compared.facts(Generated(images, None), Narrow(), {"data": "digits"})["notes"]
    assert notes == ["neighbours and kernel distance: 10 of 45 samples, one from each stretch"]


def test_mistakes_about_files(run: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "digits.npz"
    assert main(["evaluate", "data=digits", f"save_statistics={file}", "--quiet"]) == 0
    given = samples(tmp_path / "fake.npz")
    np.savez(tmp_path / "short.npz", mu=np.zeros(5), sigma=np.eye(5))
    said_so = np.array(json.dumps({"encoder": "dinov2-base"}))
    np.savez(tmp_path / "dino.npz", mu=np.zeros(5), sigma=np.eye(5), about=said_so)
    np.savez(tmp_path / "wide.npz", arr_0=np.zeros((9, 8, 9, 1), np.uint8))
    np.savez(tmp_path / "labels.npz", arr_0=np.zeros((9, 8, 8, 1), np.uint8), arr_1=np.zeros(3, np.int64))
    script = ["encoder=inception", f"weights={weights}"]
    for words, expected in (
        ([], "neither images nor a model are named"),
        (["data=digits", f"save_statistics={tmp_path / 'x.npz'}", f"reference={file}"], "nothing to compare with it"),
        ([str(given), f"reference={tmp_path / 'dino.npz'}"], "say where it is: encoder=transformers:ORG/dinov2-base"),
        ([str(given), f"reference={tmp_path / 'none.npz'}"], "no such file"),
        (
            [str(given), f"reference={tmp_path / 'short.npz'}", "encoder=pixels"],
            "holds 5 dimensions, encoder pixels gives 64",
        ),
        ([str(given), f"reference={file}", "encoder=pixels4"], "made with encoder pixels, this is pixels4"),
        ([str(given), f"reference={file}", "data=digits", "data.size=6"], "is of other data than asked for"),
        ([str(run), "metrics=[sfid]"], "encoder pixels has none"),
        ([str(run), "metrics=[sfid]", *script], "is a script"),
        ([str(run), f"weights={weights}"], "reads no file of weights"),
        ([str(run), f"encoder=transformers:{tmp_path / 'nowhere'}"], "there is no such folder"),
        ([str(run), "encoder=inceptio"], "no such encoder; did you mean"),
        ([str(tmp_path / "labels.npz"), "data=digits"], "expected uint8 images (N, H, W, C), labels"),
        ([str(given), f"reference={file}", "metrics=[kid]"], "holds no images"),
        (
            [str(given), f"reference={file}", f"save_statistics={tmp_path / 'x.npz'}"],
            "save_statistics: there is no data",
        ),
        ([str(given), f"reference={file}", f"classifier={run}"], "classifier: there is no data"),
        ([str(given), f"reference={file}", "metrics=[sfid]"], "holds no mu_s"),
        ([str(given), f"reference={given}", "data=digits"], "holds images only"),
        (
            [str(given), f"reference={tmp_path / 'wide.npz'}", "encoder=pixels"],
            "its images are 1 x 8 x 9, the generated",
        ),
        ([str(given)], "not given, and the images come from no run"),
    ):
        assert main(["evaluate", *words, "--quiet"]) == 2, words
        line = said(capsys)
        assert expected in line, (words, line)


def test_processes_share_the_work(
    run: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun over gloo: sampling, embedding and statistics are shared; the result is one process's, bit for bit."""
    words = ["n=21", "steps=2", "micro_batch=5", "precision=fp32", "encoder=inception", f"weights={weights}"]
    found: dict[str, dict[str, Any]] = {}
    for name in ("one", "two"):
        out = tmp_path / name
        more = [f"save_statistics={out / 's.npz'}", "--device", "cpu", "--out", str(out / "evaluations")]
        monkeypatch.setenv("TWOFOLD_CACHE", str(out / "cache"))
        if name == "two":
            printed = torchrun("-m", "twofold", "evaluate", run, *words, *more)
        else:
            assert main(["evaluate", str(run), *words, *more]) == 0
            printed = capsys.readouterr().out
        assert printed.count("21 samples; seeds 0 to 20") == 1  # one process speaks
        found[name] = found_in(out)
        assert found[name]["settings"].pop("save_statistics")
    assert found["one"] == found["two"]
    arrays = [np.load(tmp_path / name / "s.npz") for name in ("one", "two")]
    assert all(np.array_equal(arrays[0][key], arrays[1][key]) for key in ("mu", "sigma", "about"))
