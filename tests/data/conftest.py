"""Images and tables for the tests of `twofold.data`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def pixels(seed: int, *shape: int) -> np.ndarray:
    """Random uint8 pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """An image as the bytes of a file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with a cache of its own."""
    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def put(here: Path) -> Callable[..., Path]:
    """put("cats/a.png", image or bytes): writes a file below the working directory; a random 4x6 RGB image if none."""

    def write(name: str, content: np.ndarray | Image.Image | bytes | None = None) -> Path:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            content = pixels(len(name) * 1000 + sum(name.encode()), 4, 6, 3)
        path.write_bytes(content if isinstance(content, bytes) else encoded(content))
        return path

    return write


@pytest.fixture
def put_table(here: Path) -> Callable[..., Path]:
    """put_table("train.parquet", features={...} or None, column=[...], ...): writes a Parquet file."""

    def write(name: str, features: dict[str, Any] | None = None, **columns: Any) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(columns)
        if features is not None:
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        return path

    return write


def image_cells(*images: np.ndarray | None) -> Any:
    """A struct{bytes, path} column as the `datasets` library writes it."""
    import pyarrow as pa

    cells = [None if image is None else {"bytes": encoded(image), "path": None} for image in images]
    return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
