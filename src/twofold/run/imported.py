"""A model from elsewhere becomes a run folder: settings, weights, autoencoder, and where it came from.

What a run folder of ours says more than a foreign folder is how it was trained, and that is not known. Its settings
hold the network and the noise family as they are, and the defaults for the rest; `result.json` says "imported".
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from .. import __version__
from ..adapters.latent_codec import LatentCodec, NoCodec
from ..denoiser import NetworkDenoiser
from ..errors import UserError
from ..files import atomic_bytes, atomic_folder, atomic_json, sha256
from ..hashing import weights_hash
from ..settings.data import DataSettings
from ..settings.network import UNetSettings
from ..settings.resolve import resolve, to_yaml
from ..settings.train import TrainSettings
from .codec import FOLDER, keep_codec
from .folder import Run
from .hub import is_name
from .load import elsewhere, load
from .shared import last_name
from .weights import save_model

UNKNOWN = "unknown"  # the data of a model that came without a word about them
KEPT = ("settings.yaml", "model.safetensors", "result.json", "README.md")


def import_model(source: str, out: Path, data: DataSettings | None = None, command: str = "") -> dict[str, Any]:
    """Makes the run folder `out`, all or nothing, of whatever `load` reads as a denoiser; returns its result.json.

    data: the images that belong to it, where the user has them. A run of twofold's (a folder, or from the hub) of any
    kind is copied as it is. Raises `UserError` for what is not such a model, and for a folder that is in use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}", "is there and not empty", "name a new folder")
    folder = Path(source) if Path(source).exists() else elsewhere(source)
    model: Any = load(folder)
    if (folder / "settings.yaml").is_file() and (folder / "model.safetensors").is_file():
        return _copied(source, folder, model, out, data)
    check_importable(source, model)
    settings = settings_of(model, data)
    with atomic_folder(out) as temporary:
        if isinstance(model.codec, LatentCodec):
            keep_codec(model.codec, temporary)
        save_model(temporary / "model.safetensors", model.network.state_dict(), model, settings, 0)
        named = source if is_name(source) else last_name(source)
        header = f"twofold import {named}\nonly data, network and noise are known; the rest are defaults"
        atomic_bytes(temporary / "settings.yaml", to_yaml(settings, header))
        _check_same(load(temporary), model)
        result = _result(source, folder, model, command)
        atomic_json(temporary / "result.json", result)
    return result


def check_importable(source: str, model: Any) -> None:
    """Raises `UserError` for what makes no run."""
    if not isinstance(model, NetworkDenoiser):
        raise UserError(source, f"holds a {type(model).__name__}, not a denoiser", "import a diffusion model")
    if isinstance(model.codec, NoCodec):
        what = "is a latent model without its autoencoder"
        raise UserError(source, what, "put the pipeline's vae folder beside it, or name it in the .json beside it")
    if not hasattr(model.network, "settings"):
        what = f"has a network that twofold cannot write down ({type(model.network).__name__})"
        raise UserError(source, what, "use it where it is: sample, evaluate and probe take it as it is")


def settings_of(model: Any, data: DataSettings | None) -> TrainSettings:
    """Complete settings around the model's network and noise family."""
    network = model.network.settings.model_copy(update={"classes": model.classes})
    if isinstance(network, UNetSettings):
        network = network.model_copy(update={"init": "default"})
    tree: dict[str, Any] = {
        "data": (data or DataSettings(source=UNKNOWN)).model_dump(mode="json", exclude_unset=True),
        "network": network.model_dump(mode="json"),
        "noise": model.family.settings.model_dump(mode="json"),
    }
    if data is None or data.size is None:
        codec = model.codec
        size = codec.size if isinstance(codec, LatentCodec) else model.shape[1:]
        channels = codec.channels if isinstance(codec, LatentCodec) else model.shape[0]
        tree["data"] |= {"size": list(size)} if size else {}
        tree["data"] |= {"channels": channels} if channels in (1, 3) else {}
    if getattr(network, "learned_variance", False):
        tree["objective"] = {"kind": "denoising", "loss": "hybrid"}
    if isinstance(model.codec, LatentCodec):
        tree["codec"] = {"source": FOLDER, "scale": model.codec.scale, "shift": model.codec.shift}
    return resolve(TrainSettings, [("the imported model", tree)])[0]


def _copied(source: str, folder: Path, model: Any, out: Path, data: DataSettings | None) -> dict[str, Any]:
    """A run of ours, without its training state."""
    run = Run(folder)
    with atomic_folder(out) as temporary:
        for name in KEPT:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, temporary / name)
        if (folder / FOLDER).is_dir():
            shutil.copytree(folder / FOLDER, temporary / FOLDER)
        if data is not None:
            settings = run.settings().model_copy(update={"data": data})
            atomic_bytes(temporary / "settings.yaml", to_yaml(settings, f"imported from {last_name(source)}"))
        result = (run.result() or {}) | {"imported": _origin(source, folder, model)}
        atomic_json(temporary / "result.json", result)
    return result


def _check_same(again: Any, model: Any) -> None:
    """A guard: what was written must be the model that was read."""
    if weights_hash(again) != weights_hash(model) or again.shape != model.shape:
        raise RuntimeError("the run that was written does not hold the model that was imported")


def _result(source: str, folder: Path, model: Any, command: str) -> dict[str, Any]:
    """In the form of a run's result; nothing was trained or measured here."""
    count = sum(p.numel() for p in model.network.parameters())
    return {
        "command": command,
        "metrics": {},
        "data": {"name": UNKNOWN, "hash": None, "train_images": 0, "bad_images": []},
        "n_images": 0,
        "parameters": count,
        "parameters_trained": 0,
        "seconds": 0.0,
        "imported": _origin(source, folder, model),
        "versions": {"twofold": __version__},
    }


def _origin(source: str, folder: Path, model: Any) -> dict[str, Any]:
    """Where it came from: what was named, its version on a hub, the SHA-256 of its files of weights."""
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.safetensors"))
    revision = folder.name if "snapshots" in folder.parts else None
    hashes = {str(f.relative_to(folder)) if f != folder else f.name: sha256(f) for f in files}
    return {"source": source, "revision": revision, "files": hashes, "weights": weights_hash(model)}
