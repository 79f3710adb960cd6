"""What of a run may leave this machine: its weights and how they were made, without a path of it.

    model.safetensors   settings.yaml   result.json   codec/   README.md (the card)
    and, where wanted, the same model in diffusers' layout beside them

Neither the training state nor the log nor an image goes out. A place on this machine (a folder of images, a run that it
started from) is written as its last name alone, wherever settings name one; `result.json` is made of what is known to
hold none.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from ..adapters.diffusers_write import exportable_parts, write_parts
from ..errors import UserError
from ..files import atomic_bytes, atomic_folder, atomic_json
from ..hashing import weights_hash
from ..settings.resolve import to_yaml
from ..settings.train import TrainSettings
from .card import Facts, card
from .codec import FOLDER
from .folder import Run
from .load import load

OF_RESULT = (
    *("metrics", "seed", "n_images", "nonfinite_steps", "parameters", "parameters_trained", "seconds"),
    *("images_per_second", "environment", "versions"),
)
OF_DATA = ("name", "hash", "train_images")
SEPARATOR = re.compile(r"[/\\]")


def stage(source: str | Path, folder: Path, facts: Facts, at: str = "last", diffusers: bool = False) -> list[str]:
    """Fills the new folder with what goes out, and returns in plain words what was changed or left out.

    facts: what the user says of it (name, licence ...). diffusers: its layout too. Raises `UserError` for what is no
    run of twofold's, and where diffusers cannot express the model.
    """
    run = Run.open(source)
    file = run.snapshot_file(at)
    model: Any = load(source, at)
    told: list[str] = []
    settings, hidden = without_places(run.settings())
    told += [f"{path} is written as {value!r}" for path, value in hidden.items()]
    copy_model(file, folder / "model.safetensors")
    atomic_bytes(folder / "settings.yaml", to_yaml(settings, "what this model was trained with"))
    if (run.path / FOLDER).is_dir():
        copy_codec(run.path / FOLDER, folder / FOLDER)
    result = public_result(run.result() or {})
    if result:
        atomic_json(folder / "result.json", result)
    written = None
    if diffusers:
        written = write_parts(model, exportable_parts(model), folder)
    text = card(model, facts, settings, result, evaluations(run, model), written)
    atomic_bytes(folder / "README.md", text)
    return told


def write_for_diffusers(model: Any, source: str, out: Path, facts: Facts) -> dict[str, Any]:
    """The model in the new folder `out` in diffusers' layout, with a card; returns what `write_diffusers` does.

    source: where it came from; of a run the card tells how it was trained. Raises `UserError` as `write_diffusers`.
    """
    parts = exportable_parts(model)
    is_run = (Path(source) / "settings.yaml").is_file()
    run = Run(Path(source))
    settings = without_places(run.settings())[0] if is_run else None
    result = public_result(run.result() or {}) if is_run else {}
    with atomic_folder(out) as folder:
        written = write_parts(model, parts, folder)
        measured = evaluations(run, model) if is_run else []
        atomic_bytes(folder / "README.md", card(model, facts, settings, result, measured, written, ours=False))
    return written


def without_places(settings: TrainSettings) -> tuple[TrainSettings, dict[str, str]]:
    """The settings with every path in them cut to its last name, and {dotted path of the setting: what is left}."""
    hidden: dict[str, str] = {}

    def cut(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return {name: cut(inner, f"{path}.{name}".lstrip(".")) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [cut(inner, path) for inner in value]
        if isinstance(value, str) and last_name(value) != value:
            hidden[path] = last_name(value)
            return hidden[path]
        return value

    plain = cut(settings.model_dump(mode="json"), "")
    return TrainSettings.model_validate(plain), hidden


def last_name(text: str) -> str:
    """A path's last name; of a layout and its folder (camvid:FOLDER) both; other text as it is."""
    layout, colon, place = text.partition(":")
    if colon and len(layout) > 1 and SEPARATOR.search(place) and not SEPARATOR.search(layout):
        return f"{layout}:{last_name(place)}"
    if not SEPARATOR.search(text) and not text.startswith("~"):
        return text
    parts = [part for part in SEPARATOR.split(text) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else "data"


def public_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """What of result.json names no place and no image."""
    found = {name: result[name] for name in OF_RESULT if name in result}
    data = result.get("data")
    if isinstance(data, Mapping):
        found["data"] = {name: data[name] for name in OF_DATA if name in data}
        found["data"]["name"] = last_name(str(data.get("name", "images")))
    return found


def copy_model(file: Path, to: Path) -> None:
    """The weights with the settings that are inside the file cut as well."""
    with safe_open(file, "pt", device="cpu") as opened:
        metadata = opened.metadata() or {}
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    if "twofold" not in metadata:
        raise UserError(str(file), "holds weights, but not a twofold model", "import it first: twofold import")
    facts = json.loads(metadata["twofold"])
    settings, _ = without_places(TrainSettings.model_validate(facts["settings"]))
    facts["settings"] = settings.model_dump(mode="json")
    save_file(weights, to, {"twofold": json.dumps(facts)})


def copy_codec(codec: Path, to: Path) -> None:
    """The autoencoder of a latent model, without the place that it was once loaded from."""
    to.mkdir()
    for file in codec.glob("*.safetensors"):
        shutil.copyfile(file, to / file.name)
    config = json.loads((codec / "config.json").read_text("utf-8"))
    atomic_json(to / "config.json", {name: value for name, value in config.items() if name != "_name_or_path"})


def evaluations(run: Run, model: Any) -> list[dict[str, Any]]:
    """What was measured of these very weights, newest first."""
    name, found = weights_hash(model), []
    files = sorted((run.path / "evaluations").glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        try:
            content = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and (content.get("source") or {}).get("hash") == name:
            found.append(content)
    return found
