"""`twofold.load`: a trained model from wherever it is; and the probes that were fitted on it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..adapters.latent_codec import LatentCodec
from ..denoiser import Denoiser
from ..errors import UserError, nearest
from ..hashing import model_hash
from ..recognize.encoded import FILE as ENCODED
from ..recognize.encoded import EncodedClassifier, load_encoded
from ..recognize.probe import ProbeClassifier, read_probe
from ..recognize.saved_heads import restore
from .folder import Run
from .hub import download, is_name
from .weights import Loaded, load_model

PROBE = "probe.safetensors"
WEIGHTS = (".safetensors", ".pt", ".pth")
MODEL_FILES = (
    "settings.yaml",
    "model_index.json",
    "config.json",
    "model.safetensors",
    PROBE,
    ENCODED,
)  # a folder with one is a model


def is_model(source: str | Path) -> bool:
    """Whether `load` looks for a model there: a file, or a folder of a run, of weights or in diffusers layout."""
    path = Path(source)
    return path.is_file() or any((path / name).is_file() for name in MODEL_FILES)


def load(
    source: str | Path, at: str = "last", device: torch.device | str = "cpu"
) -> Denoiser | Loaded | ProbeClassifier | EncodedClassifier:
    """The model in a run folder, a file, a diffusers folder or a hub repository.

    It is a denoiser, a classifier, a segmenter, a landmarker or an autoencoder.

    source: `runs/a`, `runs/a/probes/b`, `model.safetensors`, a folder in diffusers layout, `org/name` (also
    `org/name@revision`), or a published `.pt` or `.pth` in the layout of guided-diffusion, DiT or U-ViT; `x.json`
    beside it says what its weights do not.
    at: snapshot of a run: `last`, `best-<metric>` or an image count. device: where it goes.
    Returns it in eval mode without gradients. Raises `UserError` saying what is missing.
    """
    path = Path(source)
    if at != "last" and path.exists() and not (path / "settings.yaml").is_file():
        raise UserError(f"at={at}", f"{source} is not a run: it has no snapshots", "leave it out, or give the run")
    if path.is_file():
        return load_file(path, device)
    if (path / PROBE).is_file():
        return load_probe(path, device)
    if (path / ENCODED).is_file():
        return load_encoded(path / ENCODED, device)
    if (path / "parts.json").is_file():
        raise UserError(str(source), *_in_experiment(path))
    if (path / "settings.yaml").is_file():
        return load_model(Run.open(path).snapshot_file(at), device)
    if (path / "model_index.json").is_file() or (path / "config.json").is_file():
        return _diffusers(path).to(device).eval().requires_grad_(False)
    if (path / "model.safetensors").is_file():
        return load_model(path / "model.safetensors", device)
    if path.exists():
        raise UserError(
            str(source), "holds neither a run nor a diffusers model", "give a run folder or a .safetensors file"
        )
    return load(elsewhere(source), at, device)


def _in_experiment(path: Path) -> tuple[str, str]:
    """What kind of experiment it is, and where its models are, for a message."""
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((path / "result.json").read_text("utf-8"))
    if "arms" in found:
        what = "is an experiment of distillation, not a model"
        runs = [f"its {name} student is {arm['run']}" for name, arm in found["arms"].items()]
        return what, ", ".join(runs[:2]) or f"its backbone is {found['pretraining']['run']}"
    what = "is an experiment, not a model"
    if found.get("classifier"):
        return what, f"its classifier is {found['classifier']}, its generator {found['generator']}"
    return what, "run it to its end, `twofold distill` or `twofold fewlabel`; then its result names its models"


def load_to_use(source: str | Path, at: str = "last", device: torch.device | str = "cpu") -> Any:
    """`load` for whoever samples or asks. Raises `UserError` for an autoencoder and for a super-resolution model, which
    do neither."""
    model = load(source, at, device)
    if isinstance(model, LatentCodec):
        what = "holds an autoencoder, which neither makes nor names images"
        raise UserError(str(source), what, f"train a denoiser on its latents: codec={source}")
    if getattr(model, "low_factor", 0):
        hint = f"use twofold upscale {source} IMAGES; without IMAGES it measures the model on its held-out images"
        raise UserError(str(source), "is a super-resolution model, which only makes images larger", hint)
    return model


def elsewhere(source: str | Path) -> Path:
    """A hub repository that is not here, downloaded. Raises `UserError` for what cannot be one."""
    path = Path(source)
    if is_name(str(source)):
        return download(str(source))
    siblings = [str(p) for p in sorted(path.parent.glob("*"))] if path.parent.is_dir() else []
    siblings = [name for name in siblings if is_model(name) and (Path(name).is_dir() or name.endswith(WEIGHTS))]
    raise UserError(str(source), "no such run, file or folder", nearest(str(source), siblings))


def load_file(path: Path, device: torch.device | str = "cpu") -> Denoiser | Loaded:
    """The model in a file by itself: written by twofold, or weights in a layout that an adapter reads."""
    from ..adapters.checkpoint import read_checkpoint

    if is_ours(path):
        return load_model(path, device)
    return read_checkpoint(path).to(device).eval().requires_grad_(False)


def is_ours(source: str | Path) -> bool:
    """Whether twofold wrote the model there itself: a run, or a file that says so."""
    path = Path(source)
    if not path.is_file():
        return (path / "settings.yaml").is_file()
    try:
        with safe_open(path, "pt") as file:
            return "twofold" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _diffusers(folder: Path) -> Denoiser:
    """The denoiser in a folder in diffusers' layout; raises `UserError` naming the class found if none reads it."""
    from ..adapters.diffusers_folder import read_folder

    return read_folder(folder)


def newest_probe(*places: str | Path, model: str | None = None) -> Path | None:
    """The folder of the newest probe below `places` (runs, or the folder that `twofold probe` was called in).

    model: only probes of the denoiser with this hash. Probes on the data that the denoiser was trained on come first,
    whatever their age. None where there is none.
    """
    found = []
    for file in (file for place in places for file in Path(place).glob(f"probes/*/{PROBE}")):
        with contextlib.suppress(UserError):  # of another version, or damaged
            facts = read_probe(file)[0]
            if model is None or facts.model_hash == model:
                found.append((facts.own, file.stat().st_mtime_ns, str(file)))
    return Path(max(found)[2]).parent if found else None


def load_probe(source: str | Path, device: torch.device | str = "cpu", draws: int | None = None) -> ProbeClassifier:
    """The classifier in a probe's folder (or its file), with the denoiser it was fitted on.

    draws: noise draws that are averaged; default: as many as it was tested with. Raises `UserError` where the denoiser
    is not there any more, or is another one now.
    """
    file = Path(source) / PROBE if Path(source).is_dir() else Path(source)
    if not file.is_file():
        raise UserError(str(source), "holds no probe", "fit one: twofold probe RUN")
    facts, tensors = read_probe(file)
    beside = file.parent / facts.model
    denoiser = load(beside if beside.exists() else facts.model, facts.at, device)
    if not isinstance(denoiser, Denoiser) or model_hash(denoiser) != facts.model_hash:
        what = f"was fitted on another model than {facts.model} now holds"
        raise UserError(str(file), what, "run `twofold probe` again")
    return ProbeClassifier(denoiser, restore(facts.kind, tensors), facts, draws)
