"""The kinds of files a model is exported to: how each is written, and how it is read again and asked.

onnx         model.onnx, for ONNX Runtime and what else reads it; batch size free
torchscript  model.torchscript, for `torch.jit.load`, in C++ too
exported     model.pt2, for `torch.export.load`

Each holds the facts (task, classes, shape ...) as JSON under the name "twofold": ONNX in its metadata, the others as
an extra file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError, first_line
from .graphs import Graph

KEY = "twofold"
EXTRA = f"{KEY}.json"
TRACED = 2  # images a graph is traced with: not 1, which would be taken for a constant
Asked = Callable[[Tensor], tuple[Tensor, ...]]  # images uint8 (B, C, H, W) -> the outputs, in the graph's order


@dataclass(frozen=True)
class Format:
    """file: its name. packages: what writing and checking it needs besides twofold's own dependencies."""

    file: str
    packages: tuple[str, ...]
    write: Callable[[Graph, Path, Mapping[str, Any]], None]
    read: Callable[[Path], Asked]


def chosen(to: str) -> dict[str, Format]:
    """The formats that `to` names. Raises `UserError` naming the packages that one of them misses here."""
    found = FORMATS if to == "all" else {to: FORMATS[to]}
    missing = {p for one in found.values() for p in one.packages if importlib.util.find_spec(p) is None}
    if missing:
        hint = "install them: pip install 'twofold[onnx]'" + (", or give to=torchscript or to=exported")
        raise UserError(f"to={to}", f"needs {', '.join(sorted(missing))}, not installed here", hint)
    return dict(found)


def write(name: str, graph: Graph, path: Path, facts: Mapping[str, Any]) -> None:
    """Writes the file. Raises `UserError` where torch cannot turn this model into that format."""
    try:
        with _quiet(), torch.no_grad():
            FORMATS[name].write(graph, path, facts)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch raises kinds of its own for each thing it cannot express
        what = f"torch cannot turn this model into it ({first_line(error)})"
        raise UserError(
            f"to={name}", what, "another format may do: " + ", ".join(n for n in FORMATS if n != name)
        ) from error


def _images(graph: Graph) -> Tensor:
    return torch.zeros((TRACED, *graph.shape), dtype=torch.uint8)


def _program(graph: Graph) -> torch.export.ExportedProgram:
    """The graph as torch.export sees it, for any number of images."""
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(graph, (_images(graph),), dynamic_shapes=({0: batch},), strict=False)


def _write_onnx(graph: Graph, path: Path, facts: Mapping[str, Any]) -> None:
    names = list(graph.outputs)
    made: Any = torch.onnx.export(
        _program(graph), dynamo=True, input_names=["images"], output_names=names, verbose=False, external_data=False
    )
    for value in (*made.model.graph.inputs, *made.model.graph.outputs):  # a free size, which torch calls s34 or so
        value.shape[0] = "batch"
    made.model.metadata_props[KEY] = json.dumps(facts)
    made.save(path)


def _read_onnx(path: Path) -> Asked:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(torch.from_numpy(one) for one in session.run(None, {"images": images.numpy()}))


def _write_torchscript(graph: Graph, path: Path, facts: Mapping[str, Any]) -> None:
    traced = torch.jit.trace(graph, _images(graph), check_trace=False)
    torch.jit.save(traced, str(path), _extra_files={EXTRA: json.dumps(facts)})


def _read_torchscript(path: Path) -> Asked:
    with _quiet():
        return torch.jit.load(str(path), map_location="cpu")


def _write_exported(graph: Graph, path: Path, facts: Mapping[str, Any]) -> None:
    torch.export.save(_program(graph), path, extra_files={EXTRA: json.dumps(facts)})


def _read_exported(path: Path) -> Asked:
    with _quiet():
        return torch.export.load(path).module()


FORMATS = {
    "onnx": Format("model.onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _read_onnx),
    "torchscript": Format("model.torchscript", (), _write_torchscript, _read_torchscript),
    "exported": Format("model.pt2", (), _write_exported, _read_exported),
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on its own innards, which nobody who exports can act upon."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


@cache
def versions(name: str) -> dict[str, str]:
    """The packages that a format was written and checked with, and their versions."""
    from importlib.metadata import version

    return {package: version(package) for package in ("torch", *FORMATS[name].packages)}
