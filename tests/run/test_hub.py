"""Runs that go to a hub and come back, through the hub's own client; and what must never go."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants, snapshot_download

import twofold
from tests.cli.common import random_run
from tests.cli.students import student_run
from twofold.cli.main import main
from twofold.errors import UserError
from twofold.hashing import model_hash, weights_hash
from twofold.run import Run
from twofold.run.hub import is_name
from twofold.run.shared import last_name, without_places
from twofold.settings.train import TrainSettings

from .hub import TOKEN, Hub, served

NETWORK = {"kind": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4], "norm_groups": 4}
TEN = {"classes": 10}
NETWORK |= TEN
SECRET = "/home/somebody/secret project/photos of patients"
NAMES = [str(k) for k in range(10)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with served() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def a_run(path: Path, **more: Any) -> Path:
    """A finished run of images in a place that nobody else should hear of."""
    values = {"network": NETWORK, "data": {"source": SECRET, "labels": "C:\\lists\\labels.csv"}, **more}
    run = random_run(path, TrainSettings.model_validate(values), NAMES, 0)
    result = {
        "command": f"twofold train images-32 data={SECRET}",
        "metrics": {"loss": 0.5, "frechet": 1.25},
        "data": {"name": "photos of patients", "hash": "ab" * 32, "train_images": 7, "bad_images": [SECRET + "/x.png"]},
        "n_images": 640,
        "parameters": 1000,
        "init_from": f"{SECRET}/../runs/first",
        "seconds": 1.0,
    }
    Run(path).write_result(result)
    return run


def evaluated(run: Path) -> None:
    """An evaluation of these weights, and one of others."""
    rows = {
        "frechet/pixels": {"samples": 9.5, "real": 7.25, "interval": [9.25, 9.75]},
        "nearest_median": {"samples": 2.5, "real": 2.25},
        "nearer_than_real": {"samples": 0.125, "real": 0.05},
    }
    (run / "evaluations").mkdir()
    request = {"samples": {"sampler": "dpmpp2m", "steps": 20, "guidance": 1.0}}
    for name, hashed, value in (("a", weights_hash(twofold.load(run)), 9.5), ("b", "other", 1.5)):  # type: ignore[arg-type]
        found = {
            "source": {"path": SECRET, "hash": hashed},
            "images": {"samples": 500, "frechet": 500},
            "metrics": {**rows, "frechet/pixels": {**rows["frechet/pixels"], "samples": value}},
            "note": f"reference {SECRET}",
            "request": request,
            "encoder": "pixels",
        }
        (run / "evaluations" / f"{name}.json").write_text(json.dumps(found))


def test_there_and_back(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run")
    assert main(["export", str(run), "to=hub", "repo=me/model", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "note: data.source is written as 'photos of patients'" in said and "no licence is given" in said
    assert "twofold.load('me/model'), with your token" in said
    assert hub.commits == ["me/model"] and hub.private == {"me/model"}
    files = hub.repositories["me/model"]
    assert set(files) - {".gitattributes"} == {"README.md", "model.safetensors", "settings.yaml", "result.json"}
    for name in ("me/model", "me/model@v1"):
        found: Any = twofold.load(name)
        assert model_hash(found) == model_hash(twofold.load(run))  # type: ignore[arg-type]
    out = tmp_path / "pulled"
    assert main(["import", "me/model", "--out", str(out), "--quiet"]) == 0
    assert weights_hash(twofold.load(out)) == weights_hash(twofold.load(run))  # type: ignore[arg-type]
    imported = json.loads((out / "result.json").read_text())["imported"]
    assert imported["source"] == "me/model" and imported["revision"] == "c" * 40 and imported["files"]
    with pytest.raises(UserError, match=r"me/model@nothing: no such folder here, and the hub did not give it"):
        twofold.load("me/model@nothing")


def test_nothing_of_this_machine_goes_out(hub: Hub, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", init_from=f"{SECRET}/runs/first", codec=None)
    evaluated(run)
    (run / "log.jsonl").write_text(SECRET)
    (run / "state").mkdir()
    (run / "samples").mkdir()
    (run / "samples" / "0.png").write_bytes(b"image")
    assert main(["export", str(run), "to=hub", "repo=me/model", "diffusers=true", "--quiet"]) == 0
    files = hub.repositories["me/model"]
    assert {name.split("/")[0] for name in files} - {".gitattributes"} == {
        *("README.md", "model.safetensors", "settings.yaml", "result.json"),
        *("model_index.json", "unet", "scheduler"),
    }
    for name, content in files.items():
        for secret in ("somebody", "secret project", "C:\\", "lists", str(tmp_path), os.getcwd(), "/home"):
            assert secret.encode() not in content, (name, secret)


def test_the_next_version_leaves_nothing_of_the_last_one(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    run = a_run(tmp_path / "run", noise={"kind": "vp", "steps": 20})
    words = ["export", str(run), "to=hub", "repo=me/model", "--quiet"]
    assert main([*words, "diffusers=true"]) == 0
    hub.repositories["me/model"]["mine/notes.txt"] = b"put there by hand"
    assert main(words) == 0  # without the layout: its weights would be those of the version before
    left = {"README.md", "model.safetensors", "settings.yaml", "result.json", "mine/notes.txt"}
    assert set(hub.repositories["me/model"]) - {".gitattributes"} == left
    assert hub.commits == ["me/model"] * 2
    hub.repositories["me/others"] = {"unet/config.json": b"{}"}  # not written by an upload
    hub.private.add("me/others")
    assert main(["export", str(run), "to=hub", "repo=me/others", "--quiet"]) == 0
    assert "unet/config.json" in hub.repositories["me/others"]


def test_its_pipeline_opens_the_same_name(hub: Hub, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    run = a_run(tmp_path / "run", noise={"kind": "vp", "steps": 20})
    assert main(["export", str(run), "to=hub", "repo=me/model", "diffusers=true", "private=false", "--quiet"]) == 0
    assert hub.private == set()
    hub.asked.clear()
    assert twofold.load("me/model").classes == 10  # type: ignore[union-attr]
    assert not any("diffusion_pytorch_model" in path for _, path in hub.asked)  # the weights come once
    folder = snapshot_download("me/model")  # diffusers' own question for it goes to an address that is fixed on import
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(2, [3, 4], 5, output_type="np").images.shape == (2, 8, 8, 1)


def test_a_repository_of_diffusers_is_loaded_and_imported(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    run = a_run(tmp_path / "run", noise={"kind": "vp", "steps": 20})
    assert main(["export", str(run), "to=diffusers", "--out", str(tmp_path / "pipe"), "--quiet"]) == 0
    whole = {str(f.relative_to(tmp_path / "pipe")): f.read_bytes() for f in (tmp_path / "pipe").rglob("*.*")}
    hub.repositories["you/pipe"] = {**whole, "unet/diffusion_pytorch_model.bin": b"a pickle"}
    assert main(["import", "you/pipe", "--out", str(tmp_path / "again"), "--quiet"]) == 0
    assert weights_hash(twofold.load(tmp_path / "again")) == weights_hash(twofold.load(run))  # type: ignore[arg-type]
    assert not any(path.endswith(".bin") for _, path in hub.asked)


@pytest.mark.parametrize("kind", ["joint", "student"])
def test_other_kinds_of_models(kind: str, hub: Hub, tmp_path: Path) -> None:
    if kind == "joint":
        run = a_run(tmp_path / "run", objective={"kind": "joint"}, network={**NETWORK, "head": {"kind": "taps"}})
    else:
        run = student_run(tmp_path / "run", "segmentation", ["a", "b", "c"], (3, 12, 15))
    assert main(["export", str(run), "to=hub", "repo=me/model", "licence=mit", "--quiet"]) == 0
    found: Any = twofold.load("me/model")
    assert model_hash(found) == model_hash(twofold.load(run))  # type: ignore[arg-type]
    text = hub.repositories["me/model"]["README.md"].decode()
    assert ("joint model" if kind == "joint" else "A segmenter of") in text
    card = ModelCard(text)
    assert card.data.license == "mit" and card.data.library_name == "twofold"


def test_the_card_says_what_was_measured(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = a_run(tmp_path / "run"), tmp_path / "staged"
    evaluated(run)
    words = ["to=hub", "repo=me/model", "licence=cc-by-4.0", "dataset=org/faces", "--dry-run", "--out", str(out)]
    assert main(["export", str(run), *words, "--quiet"]) == 0
    assert "nothing was uploaded" in capsys.readouterr().out and not hub.asked
    card = ModelCard((out / "README.md").read_text())
    assert card.data.license == "cc-by-4.0" and card.data.datasets == ["org/faces"]
    measured = {row.metric_type: row.metric_value for row in card.data.eval_results or []}
    assert measured["frechet/pixels"] == 9.5 and measured["validation loss"] == 0.5
    assert "| frechet/pixels | 9.5 | 9.25 to 9.75 | 7.25 |" in card.text
    assert "500 images; dpmpp2m, 20 steps, guidance 1; encoder pixels" in card.text
    assert "Only one on Inception-V3" in card.text and "| nearer_than_real | 0.125 | 0.05 |" in card.text
    assert "training images: 7" in card.text and "ab" * 32 in card.text
    assert twofold.load(out).shape == (1, 8, 8)  # type: ignore[union-attr]


def test_the_python_of_the_cards_runs(hub: Hub, tmp_path: Path) -> None:
    """What a card tells people to type, for every way of making images with diffusers."""
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    kinds: dict[str, dict[str, Any]] = {
        "ddpm": {"network": {**NETWORK, "classes": 0}, "noise": {"kind": "vp", "steps": 20}},
        "classes": {"noise": {"kind": "vp", "steps": 20}},
        "edm": {"noise": {"kind": "edm"}},
        "flow": {"noise": {"kind": "flow"}},
        "variance": {
            "network": {**NETWORK, "learned_variance": True},
            "noise": {"kind": "vp", "steps": 20},
            "objective": {"kind": "denoising", "loss": "hybrid"},
        },
        "dit": {"network": {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "embedding_endpoint": True, **TEN}},
    }
    for name, more in kinds.items():
        run = a_run(tmp_path / name, **more)
        assert main(["export", str(run), "to=hub", f"repo=me/{name}", "diffusers=true", "--quiet"]) == 0
        blocks = hub.repositories[f"me/{name}"]["README.md"].decode().split("```python\n")[1:]
        assert len(blocks) == 2
        here = snapshot_download(f"me/{name}")
        for block in blocks:
            block = block.replace(f"me/{name}", here) if "diffusers" in block else block
            code, told = block.split("```")[0], dict[str, Any]()
            for often, few in (
                ("num_inference_steps=50", "num_inference_steps=5"),
                ("range(16)", "range(16), steps=2"),
            ):
                code = code.replace(often, few)
            exec(code, told)
            images = told["images"]
            assert len(images) in (4, 16), code


def test_what_stops_an_upload(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run = a_run(tmp_path / "run")

    def refused(*words: str) -> str:
        capsys.readouterr()
        assert main(["export", str(run), "to=hub", *words, "--quiet"]) == 2
        return str(capsys.readouterr().err)

    assert "to=hub: no repository is named; add repo=org/name" in refused()
    assert "repo=model: not the name of a repository" in refused("repo=model")
    hub.repositories["me/seen"] = {}
    assert "everybody can see it; say private=false" in refused("repo=me/seen")
    hub.refuses = True
    assert "repo=me/new: the hub refused" in refused("repo=me/new")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the hub does not know this token" in refused("repo=me/new")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "no token for the hub; nothing was uploaded; log in (hf auth login) or set HF_TOKEN" in refused("repo=a/b")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; nothing was uploaded" in refused("repo=a/b")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        twofold.load("me/never-seen")
    assert hub.commits == []


def test_settings_that_mean_nothing_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run")
    for words, message in (
        (["to=onnx", "licence=mit"], "licence: means nothing with to=onnx"),
        (["to=diffusers", "repo=a/b"], "repo: means nothing with to=diffusers"),
        (["to=hub", "repo=a/b", "runs=5"], "runs: means nothing with to=hub"),
        (["to=diffusers", "--dry-run"], "--dry-run: is for to=hub"),
        (["to=hub", "licence=My Licence"], "licence"),
    ):
        assert main(["export", str(run), *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("digits", "digits"),
        ("photos/cats/", "cats"),
        ("/home/a/photos", "photos"),
        ("C:\\Users\\a\\photos", "photos"),
        ("camvid:/data/camvid", "camvid:camvid"),
        ("~/photos", "photos"),
        ("../..", "data"),
        ("~", "data"),
        ("org/name", "name"),
    ],
)
def test_the_last_name_of_a_place(text: str, left: str) -> None:
    assert last_name(text) == left


def test_every_setting_is_cut() -> None:
    values = {"data": {"source": "/a/b", "labels": "/a/c.csv"}, "init_from": "/a/runs/x", "codec": "/a/runs/vae"}
    cut, hidden = without_places(TrainSettings.model_validate(values))
    assert hidden == {"data.source": "b", "data.labels": "c.csv", "init_from": "x", "codec.source": "vae"}
    assert "/a" not in cut.model_dump_json()


@pytest.mark.parametrize("text", ["a/b", "org.x/name-1", "a/b@main", "a/b@refs/pr/1"])
def test_names_of_repositories(text: str) -> None:
    assert is_name(text)


@pytest.mark.parametrize("text", ["a", "a/b/c", "./a", "runs/x", "../b", "~/b", "/a/b", "a/", "a b/c"])
def test_what_is_no_name_of_a_repository(text: str) -> None:
    assert not is_name(text)
