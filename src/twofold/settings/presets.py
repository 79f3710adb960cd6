"""Presets: partial settings with a name. Every published recipe is one, and so is a file or an earlier run.

A preset is a YAML file whose header comment says what it is for, and which may start from another one:

    # purpose: the network and schedule of DDPM on CIFAR-10 (Ho et al. 2020)
    # data: CIFAR-10, 50,000 images of 32x32 pixels
    # machine: one GPU
    # minutes: 1400
    # expected: FID 3.2 after 100 M images
    extends: another-preset
    train: {lr: 2e-4}
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from .text import load_yaml, read_text

LABEL = re.compile(r"([a-z]+): (.*)$")  # of a header line
SETTINGS_FILE = "settings.yaml"  # in a run folder
TRAINING, FEWLABEL, DISTILL = "", "fewlabel", "distill"  # families: of `twofold train`, and in folders of their own
HASH = re.compile(r"-[0-9a-f]{8}$")  # the end of a run folder's name; see `resolve.settings_hash`


@dataclass(frozen=True)
class Preset:
    """Partial settings as layers for `resolve.resolve`.

    name: for run folders. layers: (name for messages, settings), a preset that it extends first.
    header: its comment, without the marks.
    """

    name: str
    layers: list[tuple[str, dict[str, Any]]]
    header: str


def preset_names(family: str = TRAINING) -> list[str]:
    """Names of the presets of a family that come with the package, sorted."""
    entries = _folder(family).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def preset_purposes(family: str = TRAINING) -> dict[str, str]:
    """{name: purpose} of every preset of a family, for a listing."""
    return {
        name: header_fields(_header((_folder(family) / f"{name}.yaml").read_text())).get("purpose", "")
        for name in preset_names(family)
    }


def preset_listing(family: str = TRAINING) -> str:
    """The presets with their purposes, as the end of a help text."""
    purposes = preset_purposes(family)
    width = max(map(len, purposes))
    return "\n".join(["presets:", *(f"  {name:<{width}}  {purpose}" for name, purpose in purposes.items())])


def read_preset(argument: str) -> tuple[dict[str, Any], str]:
    """The training settings of a preset, a file or a run, with those it extends, and its header text.

    As one mapping; `open_preset` keeps the layers apart, so that messages can name the one at fault.
    """
    from .resolve import merge
    from .train import TrainSettings

    preset = open_preset(argument)
    return merge(TrainSettings, preset.layers)[0], preset.header


def open_preset(argument: str, family: str = TRAINING) -> Preset:
    """What PRESET on the command line means: a preset's name, a YAML file, or a run folder.

    family: of the presets, `TRAINING` or `FEWLABEL`. Raises `UserError` where it is none of these, naming the nearest
    preset.
    """
    names = preset_names(family)
    if argument in names:
        file = _folder(family) / f"{argument}.yaml"
        return _read(argument, f"preset {argument}", file, Path(), (), family)
    path = Path(argument).expanduser()
    if path.is_dir():
        if not (path / SETTINGS_FILE).is_file():
            raise UserError(argument, f"not a run folder (it has no {SETTINGS_FILE})", "give a preset, a file or a run")
        name = HASH.sub("", path.resolve().name)
        return _read(name, f"run {argument}", path / SETTINGS_FILE, path, (), family)
    if path.is_file():
        return _read(path.stem, f"file {argument}", path, path.parent, (), family)
    if path.suffix in (".yaml", ".yml") or "/" in argument:
        raise UserError(argument, "no such file or run folder")
    raise UserError(argument, "no such preset", nearest(argument, names))


def header_fields(header: str) -> dict[str, str]:
    """{"purpose": ..., "data": ...} of a header; an indented line continues the one before."""
    fields: dict[str, str] = {}
    last = ""
    for line in header.splitlines():
        found = LABEL.match(line)
        if found:
            last = found[1]
            fields[last] = found[2].strip()
        elif last and line.strip():
            fields[last] += " " + line.strip()
    return fields


def _folder(family: str) -> Traversable:
    folder = files("twofold") / "presets"
    return folder / family if family else folder


def _header(text: str) -> str:
    """The comment lines before the first setting."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


def _read(name: str, label: str, file: Traversable, folder: Path, above: tuple[str, ...], family: str) -> Preset:
    """One file and those it extends; `folder` is where an extended file is looked for."""
    text = read_text(file)
    values = load_yaml(text, label)
    parent = values.pop("extends", None)
    layers: list[tuple[str, dict[str, Any]]] = []
    if parent is not None:
        layers = _parent(str(parent), label, folder, (*above, label), family).layers
    return Preset(name, [*layers, (label, values)], _header(text))


def _parent(parent: str, label: str, folder: Path, above: tuple[str, ...], family: str) -> Preset:
    names = preset_names(family)
    if parent in names:
        found, file, where = f"preset {parent}", _folder(family) / f"{parent}.yaml", Path()
    else:
        path = folder / parent
        if not path.is_file():
            raise UserError(f"{label}: extends: {parent}", "no such preset or file", nearest(parent, names))
        found, file, where = f"file {path}", path, path.parent
    if found in above:
        raise UserError(f"{label}: extends: {parent}", "extends itself", " <- ".join([*above, found]))
    return _read(parent, found, file, where, above, family)
