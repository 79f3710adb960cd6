"""The same images in every form give the same store."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twofold.data import Store, open_store
from twofold.settings.data import DataSettings

from .conftest import encoded, image_cells, pixels

N = 6
IMAGES = [pixels(i, 4, 4, 3) for i in range(N)]
MASKS = [pixels(50 + i, 4, 4) % 3 for i in range(N)]
POINTS = np.random.default_rng(0).uniform(0, 3, (N, 2, 2)).astype(np.float32)
CLASSES = ["ant", "bee"]
COLUMNS = {"points_column": "points", "attribute_columns": ["yes"], "group": "who"}


def rows() -> dict[str, Any]:
    return {
        "points": [points.ravel().tolist() for points in POINTS],
        "yes": [i % 2 for i in range(N)],
        "who": [f"p{i // 2}" for i in range(N)],
        "label": [CLASSES[i // 3] for i in range(N)],
    }


def table() -> Any:
    import pyarrow as pa

    return pa.table({"image": image_cells(*IMAGES), "mask": image_cells(*MASKS), **rows()})


def parquet(here: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    pq.write_table(table(), here / "x.parquet", row_group_size=4)
    return {"source": "x.parquet", "mask_column": "mask", **COLUMNS}


def arrow(here: Path) -> dict[str, Any]:
    import pyarrow as pa

    with pa.ipc.new_stream(here / "x.arrow", table().schema) as file:
        file.write_table(table(), max_chunksize=4)
    return {"source": "x.arrow", "mask_column": "mask", **COLUMNS}


def saved(here: Path) -> dict[str, Any]:
    import datasets

    datasets.Dataset(table()).save_to_disk(str(here / "saved"))
    return {"source": "saved", "mask_column": "mask", **COLUMNS}


def tar(here: Path) -> dict[str, Any]:
    found = rows()
    with tarfile.open(here / "x.tar", "w") as file:
        for i in range(N):
            fields = {name: column[i] for name, column in found.items()}
            content = {"png": encoded(IMAGES[i]), "mask.png": encoded(MASKS[i]), "json": json.dumps(fields).encode()}
            for kind, data in content.items():
                header = tarfile.TarInfo(f"{i}.{kind}")
                header.size = len(data)
                file.addfile(header, io.BytesIO(data))
    return {"source": "x.tar", **COLUMNS}


def folder(here: Path) -> dict[str, Any]:
    found, lines = rows(), []
    for i in range(N):
        name = f"{CLASSES[i // 3]}/{i}"
        contents = {"images": encoded(IMAGES[i]), "masks": encoded(MASKS[i])}
        for kind, data in contents.items():
            path = here / f"x/{kind}/{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        lines.append(json.dumps({"file_name": f"images/{name}.png", **{k: v[i] for k, v in found.items()}}))
    (here / "x/metadata.jsonl").write_text("\n".join(lines))
    return {"source": "x", **COLUMNS}


@pytest.mark.parametrize("form", [parquet, arrow, saved, tar, folder])
def test_every_form_gives_the_same_store(here: Path, form: Callable[[Path], dict[str, Any]]) -> None:
    store: Store = open_store(DataSettings(**form(here), mask_classes=["a", "b", "c"]))
    assert store.classes == CLASSES and store.meta["images"] == N
    np.testing.assert_array_equal(store.images, np.stack(IMAGES).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(store.labels, [0, 0, 0, 1, 1, 1])
    assert store.masks is not None and store.points is not None and store.attributes is not None
    np.testing.assert_array_equal(store.masks, np.stack(MASKS))
    np.testing.assert_array_equal(store.points, POINTS)
    np.testing.assert_array_equal(store.attributes[:, 0], [0, 1] * 3)
    assert store.groups is not None and [len(set(store.groups[i : i + 2])) for i in (0, 2, 4)] == [1, 1, 1]
    assert store.mask_classes == ["a", "b", "c"] and store.attribute_names == ["yes"]
