"""`twofold probe` and `twofold predict` on models that the peer library wrote: a latent transformer and a U-Net."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twofold.cli.main import main
from twofold.run import load, load_probe

from ..adapters import peers


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of photographs, half as large as the autoencoder takes."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (folder / name).mkdir()
        for i in range(40):
            pixels = rng.normal(level, 40, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_latent_transformer(photos: Path, tmp_path: Path) -> None:
    folder = peers.pipeline(tmp_path / "dit", peers.transformer(), peers.autoencoder(), peers.NAMES)
    words = [f"data={photos}", "layers=[layer-1,block.2]", "sigmas=[0.278,0.416]", "draws=2", "copies=2", "--quiet"]
    assert main(["probe", str(folder), *words, "flip=true", "shift=1", "--out", str(tmp_path / "p")]) == 0
    found = json.loads((tmp_path / "p" / "result.json").read_text())
    assert {cell["places"][0][0] for cell in found["cells"]} == {"block.1", "block.2"}
    assert any("not known" in warning for warning in found["warnings"])
    classifier = load_probe(tmp_path / "p")
    denoiser = load(folder)
    images = torch.from_numpy(np.stack([np.asarray(Image.open(p)) for p in sorted(photos.rglob("*.png"))[:6]]))
    images = images.permute(0, 3, 1, 2).contiguous()
    assert classifier.image_logits(images).shape == (6, 2)
    latents = denoiser.codec.encode(images)  # type: ignore[union-attr]
    assert latents.shape[1:] == denoiser.shape


def test_latents_are_shared_between_probes(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = peers.pipeline(tmp_path / "dit", peers.transformer(), peers.autoencoder())
    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path / "cache"))
    words = ["probe", str(folder), f"data={photos}", "layers=[block.1]", "draws=1", "copies=1", "concat=[]", "--quiet"]
    assert main([*words, "sigmas=[0.3]", "--out", str(tmp_path / "a")]) == 0
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "latents").rglob("*.safetensors")}
    assert kept
    assert main([*words, "sigmas=[0.6]", "--out", str(tmp_path / "b")]) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "latents").rglob("*.safetensors")} == kept


def test_unet_pipeline(photos: Path, tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(peers.unet(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    words = [f"data={photos}", "layers=[mid,out_1]", "sigmas=[0.05]", "draws=1", "copies=1", "--quiet"]
    assert main(["probe", str(tmp_path / "ddpm"), *words, "--out", str(tmp_path / "p")]) == 0
    assert json.loads((tmp_path / "p" / "result.json").read_text())["results"]["one layer"]["images"] == 16
    out = tmp_path / "o.csv"
    assert main(["predict", str(tmp_path / "p"), str(photos), "--quiet", "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 81


def test_new_images_are_answered_as_those_of_the_probe_were(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A latent model resizes images itself; what it was fitted on came in the size of its data."""
    monkeypatch.chdir(tmp_path)
    peers.pipeline(tmp_path / "dit", peers.transformer(), peers.autoencoder())
    words = [f"data={photos}", "layers=[block.1]", "sigmas=[0.3]", "draws=2", "concat=[]", "--quiet"]
    assert main(["probe", "dit", *words]) == 0
    assert main(["predict", "dit", str(photos), "--quiet", "--out", "o.csv"]) == 0  # finds its probe below here
    with open("o.csv", newline="") as file:
        rows = {row["id"]: float(row["p(light)"]) for row in csv.DictReader(file)}
    (probe,) = Path("probes").iterdir()
    classifier = load_probe(probe)
    paths = sorted(photos.rglob("*.png"))
    images = torch.from_numpy(np.stack([np.asarray(Image.open(p)) for p in paths])).permute(0, 3, 1, 2).contiguous()
    direct = classifier.image_logits(images).double().softmax(1)[:, 1]
    found = torch.tensor([rows[str(p.relative_to(photos))] for p in paths]).double()
    torch.testing.assert_close(found, direct, atol=1e-4, rtol=0)
    assert main(["evaluate", str(probe), f"data={photos}", "--quiet", "--out", "e"]) == 0
