"""How fast are images packed, and read again?

    python benchmarks/packing.py [--images 50000] [--rounds 5] [--only parquet|folder|datasets|reading]

Images are 32x32 JPEG, those of --data (CIFAR-10 as Parquet with embedded bytes) or random ones. Measured by turns:

    parquet    twofold packs Parquet files with embedded bytes
    folder     twofold packs the same images as files, one folder a class
    datasets   `datasets` maps the same Parquet to arrays (decoding by its own Image feature, batched, one process and
               two), writes them as Arrow, and the columns are saved as images.npy and labels.npy: the same pixels in
               the same layout
    reading    Store.batch of shuffled rows, 512 at a time

Prints images per second of each round, and per second of processor time on two cores: what the first would be if
nobody else used the machine, as far as threads do not wait for one another.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import alternate, ratio, report
from PIL import Image

from twofold.data import Store, open_store
from twofold.settings.data import DataSettings

BATCH = 512


class Cpu:
    """Runs a function and keeps the processor time of its process and of its children."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.run, self.seconds = run, list[float]()

    def __call__(self) -> None:
        start = self.now()
        self.run()
        self.seconds.append(self.now() - start)

    @staticmethod
    def now() -> float:
        times = os.times()
        return time.process_time() + times.children_user + times.children_system


def write_images(data: Path | None, images: int, root: Path) -> None:
    """The same JPEG bytes as Parquet and as a folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[tuple[bytes, int]] = []
    if data is not None:
        for file in sorted(data.glob("*.parquet")):
            table = pq.read_table(file)
            cells = zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True)
            rows += [(as_jpeg(cell["bytes"]), label) for cell, label in cells]
        rows = rows[:images]
    else:
        rng = np.random.default_rng(0)
        smooth = rng.integers(0, 256, (images, 8, 8, 3), np.uint8).repeat(4, 1).repeat(4, 2)
        rows = [(as_jpeg(image), i % 10) for i, image in enumerate(smooth)]
    (root / "parquet").mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": content, "path": None} for content, _ in rows], kind)
    table = pa.table({"image": cells, "label": pa.array([label for _, label in rows], pa.int64())})
    pq.write_table(table, root / "parquet" / "train.parquet", row_group_size=1000)
    for i, (content, label) in enumerate(rows):
        place = root / "folder" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:06}.jpg").write_bytes(content)


def as_jpeg(content: bytes | np.ndarray) -> bytes:
    if isinstance(content, bytes):
        if content[:2] == b"\xff\xd8":
            return content
        image = Image.open(io.BytesIO(content)).convert("RGB")
    else:
        image = Image.fromarray(content)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def pack(source: Path) -> Store:
    """Packs from nothing."""
    shutil.rmtree(Path(os.environ["TWOFOLD_CACHE"]), ignore_errors=True)
    return open_store(DataSettings(source=str(source)))


def map_with_datasets(source: Path, root: Path, processes: int) -> np.ndarray:
    """The same store by `datasets`: from_parquet, map, and its Arrow table written as .npy."""
    import datasets

    datasets.disable_progress_bars()
    shutil.rmtree(root, ignore_errors=True)
    images = datasets.Dataset.from_parquet(str(source / "train.parquet"), cache_dir=str(root / "cache"))
    images = images.cast_column("image", datasets.Image())

    def decode(batch: dict[str, list]) -> dict[str, np.ndarray]:
        pixels = np.stack([np.asarray(image) for image in batch["image"]])
        return {"pixels": pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)}

    # rows of a fixed length are written and read faster than Array3D
    row = datasets.Sequence(datasets.Value("uint8"), length=3 * 32 * 32)
    features = datasets.Features({"label": images.features["label"], "pixels": row})
    mapped = images.map(
        decode,
        batched=True,
        batch_size=256,
        remove_columns=["image"],
        features=features,
        num_proc=processes if processes > 1 else None,
        load_from_cache_file=False,
    )
    out = np.lib.format.open_memmap(root / "images.npy", "w+", np.uint8, (len(mapped), 3, 32, 32))
    at = 0
    for batch in mapped.with_format("arrow").iter(4096):
        out[at : at + len(batch)] = batch["pixels"].combine_chunks().flatten().to_numpy().reshape(-1, 3, 32, 32)
        at += len(batch)
    out.flush()
    np.save(root / "labels.npy", np.asarray(mapped.with_format("numpy")["label"]))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="folder of Parquet files with the columns image and label")
    parser.add_argument("--only", nargs="*", choices=["parquet", "folder", "datasets", "reading"])
    args = parser.parse_args()
    wanted = args.only or ["parquet", "folder", "datasets", "reading"]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["TWOFOLD_CACHE"] = str(root / "cache")
        write_images(args.data, args.images, root)
        sources = {kind: Cpu(lambda kind=kind: pack(root / kind)) for kind in ("parquet", "folder") if kind in wanted}
        if "datasets" in wanted:
            sources["parquet"] = Cpu(lambda: pack(root / "parquet"))
            for n in (1, 2):
                sources[f"datasets, {n}"] = Cpu(lambda n=n: map_with_datasets(root / "parquet", root / "mapped", n))
        seconds = alternate(dict(sources), args.rounds)
        for kind, taken in seconds.items():
            say(kind, args.images, taken, sources[kind].seconds[1:])
        if "datasets" in wanted:
            fastest = min(
                (kind for kind in seconds if kind.startswith("datasets")), key=lambda kind: min(seconds[kind])
            )
            report("packing against datasets", against=fastest, **ratio(seconds, "parquet", fastest))
            same = np.array_equal(
                map_with_datasets(root / "parquet", root / "mapped", 1), pack(root / "parquet").images
            )
            report("the same pixels", same=same)
        if "reading" in wanted:
            read(pack(root / "parquet"), args.rounds)


def read(store: Store, rounds: int) -> None:
    rows = np.random.default_rng(0).permutation(len(store))

    def shuffled() -> None:
        for start in range(0, len(rows), BATCH):
            store.batch(rows[start : start + BATCH])

    run = Cpu(shuffled)
    seconds = alternate({"reading": run}, max(rounds, 20))
    say("reading", len(store), seconds["reading"], run.seconds[1:])


def say(kind: str, images: int, seconds: list[float], cpu: list[float]) -> None:
    """Images per second on the clock, and if two cores (reading: one) were free."""
    cores = 1 if kind == "reading" else 2
    report(
        f"images per second: {kind}",
        clock=[round(images / s) for s in seconds],
        free_cores=[round(images * cores / max(s, 1e-9)) for s in cpu],
        load=round(os.getloadavg()[0], 1),
        at=time.strftime("%H:%M"),
    )


if __name__ == "__main__":
    main()
