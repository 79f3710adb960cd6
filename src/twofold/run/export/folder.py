"""The folder of an export: model files, and `export.json` with what they are, how they were checked and how fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import __version__
from ...errors import UserError
from ...files import atomic_folder, atomic_json, sha256
from ...hashing import weights_hash
from . import checks
from .formats import Format, chosen, versions, write
from .graphs import Graph, graph_of

MANIFEST = "export.json"
FORMAT = "1"
SEED = 0  # of the random images that files are checked with


def export(
    model: Any,
    out: Path,
    to: str = "onnx",
    source: str = "",
    real: Tensor | None = None,
    runs: int = 30,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Writes the model's files and their manifest to the new folder `out`, all or nothing; returns the manifest.

    model: as `twofold.load` returns it, on the CPU. to: a name of `FORMATS`, or all. source: where it came from.
    real: images uint8 (N, C, H, W) that the files are checked with, besides random ones. runs: calls that are timed.
    Raises `UserError` for a model that cannot be exported, a folder that is in use, a format whose packages are not
    installed, and a file that does not say what the model says.
    """
    formats = chosen(to)
    graph = graph_of(model, source or type(model).__name__).eval()
    check_out(out)
    facts = facts_of(graph, source, weights_hash(model))
    noise = torch.Generator().manual_seed(SEED)
    images = {"random": torch.randint(0, 256, (max(checks.BATCHES), *graph.shape), dtype=torch.uint8, generator=noise)}
    if real is not None and len(real):
        images["real"] = real
    try:
        with atomic_folder(out) as folder:
            manifest = dict(facts)
            manifest["files"] = {
                n: _made(n, one, graph, folder, facts, images, runs, say) for n, one in formats.items()
            }
            manifest["checked_with"] = {kind: len(some) for kind, some in images.items()}
            manifest["eager"] = {"latency_ms": checks.latency(graph, graph.shape, runs)}
            manifest["threads"], manifest["timed_calls"] = torch.get_num_threads(), runs
            atomic_json(folder / MANIFEST, manifest)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UserError(str(out), f"cannot be written ({error.strerror})", "give another folder: --out") from error
    return manifest


def check_out(out: Path) -> None:
    """Raises `UserError` unless an export can become this folder."""
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"--out {out}", f"{there} is a file", "name a new folder")
    if there == out and any(out.iterdir()):
        raise UserError(f"--out {out}", "the folder is not empty", "name a new folder")


def facts_of(graph: Graph, source: str, weights: str) -> dict[str, Any]:
    """What the files themselves say of the model."""
    c, h, w = graph.shape
    return {
        "format": FORMAT,
        "twofold": __version__,
        "source": source,
        "weights": weights,
        "parameters": sum(p.numel() for p in graph.model.parameters()),
        "task": graph.task,
        "input": {"images": f"(B, {c}, {h}, {w}) uint8, 0 to 255" + (", RGB" if c == 3 else "")},
        "outputs": dict(graph.outputs),
        "shape": [c, h, w],
        "classes": graph.classes,
        **graph.more_facts(),
    }


def _made(
    name: str,
    one: Format,
    graph: Graph,
    folder: Path,
    facts: Mapping[str, Any],
    images: Mapping[str, Tensor],
    runs: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Writes and checks one file; its part of the manifest."""
    path = folder / one.file
    say(f"writing {one.file} ...")
    write(name, graph, path, facts)
    say(f"checking {one.file} ...")
    asked = one.read(path)
    return {
        "file": one.file,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "versions": versions(name),
        "tolerance": checks.TOLERANCE,
        "outputs": checks.compare(graph, asked, images),
        "latency_ms": checks.latency(asked, graph.shape, runs),
    }
