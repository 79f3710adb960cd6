"""The folder of `twofold inpaint` and `twofold vary`: a PNG for every result, a table, an overview."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic_bytes, atomic_file, atomic_json
from ..settings.given import GivenSettings
from .begun import DONE, begin, read_note, read_picture, stem_of
from .tablefile import TableFile

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

ACROSS = 6  # results of an image in the overview


@dataclass(frozen=True)
class Original:
    """id: its name in the source. image: uint8 (C, H, W). mask: bool (1, H, W), True = painted anew, or None."""

    id: str
    image: Tensor
    mask: Tensor | None


class Folder:
    """images/ with a PNG for every result, masks/ where there are masks, <kind>.csv, overview.png and result.json.

    kind: "inpainted" or "varied". facts: what must be the same for a folder to be continued. Raises `UserError` for a
    folder of something else.
    """

    def __init__(self, path: Path, kind: str, facts: dict[str, Any], settings: GivenSettings) -> None:
        self.path, self.kind, self.facts, self.settings = path, kind, facts, settings
        self.done = 0
        self.rows: list[dict[str, Any]] = []
        self.shown: list[tuple[Original, list[np.ndarray]]] = []
        self._stems: set[str] = set()
        self._computed = False
        begin(path, facts, f"{kind} images", ("images",))

    def _file(self) -> Path:
        return self.path / DONE / f"{self.done:08d}.json"

    def kept(self, batch: Sequence[Original]) -> list[dict[str, Any]]:
        """The rows of this batch, if it was finished before with the same pixels and its pictures are there."""
        found: dict[str, Any] = read_note(self._file()) if self._file().is_file() else {"pixels": ""}
        there = found["pixels"] == _pixels(batch) and all(self._picture(row).is_file() for row in found["rows"])
        return found["rows"] if there else []

    def _picture(self, row: dict[str, Any]) -> Path:
        return self.path / "images" / f"{row['file']}.png"

    def write(self, batch: Sequence[Original], results: Tensor, seeds: Sequence[int]) -> None:
        """The results uint8 (images, n, C, H, W) of a batch, and then that it is done."""
        from ..generate.chunks import write_png

        rows, taken = [], set(self._stems)
        for original, several in zip(batch, results, strict=True):
            stem = stem_of(original.id, taken)
            if original.mask is not None:
                (self.path / "masks").mkdir(exist_ok=True)
                white = original.mask.numpy().astype("uint8") * 255
                atomic_file(self.path / "masks" / f"{stem}.png", lambda file, white=white: write_png(file, white))  # type: ignore[misc]
            for seed, image in zip(seeds, several, strict=True):
                row = {"id": original.id, "image": stem, "file": f"{stem}-{seed}", "seed": seed}
                rows.append({**row, **changed(original, image)})
                atomic_file(self._picture(row), lambda file, image=image: write_png(file, image.numpy()))  # type: ignore[misc]
        atomic_json(self._file(), {"pixels": _pixels(batch), "rows": rows})
        self._computed = True

    def add(self, batch: Sequence[Original]) -> None:
        """Takes note of a batch that is done."""
        rows = self.kept(batch)
        n = len(rows) // len(batch)
        for k, original in enumerate(batch):
            own = rows[k * n : (k + 1) * n]
            self._stems.add(own[0]["image"])
            if len(self.shown) < self.settings.shown:
                pictures = [read_picture(self._picture(row), len(original.image)) for row in own[:ACROSS]]
                self.shown.append((original, pictures))
        self.rows += rows
        self.done += len(batch)

    def finish(self, command: str, model: str, seconds: float) -> str:
        """Writes the table, the overview and, if anything was computed, the result; returns what to tell the user."""
        import numpy as np

        from ..learn.training import versions
        from ..report.remade import overview

        with TableFile(self.path / f"{self.kind}.csv") as table:
            table.write({name: [row[name] for row in self.rows] for name in self.rows[0]})
        originals = [original for original, _ in self.shown]
        masks = [original.mask.numpy()[0] for original in originals if original.mask is not None]
        pictures = [pictures for _, pictures in self.shown]
        seeds = [row["seed"] for row in self.rows[: len(pictures[0])]]
        whole = overview([original.image.numpy() for original in originals], masks, pictures, seeds)
        atomic_bytes(self.path / "overview.png", whole)
        metrics = {"images": self.done, "results": len(self.rows)}
        change = float(np.median([row["rms"] for row in self.rows]))
        if self._computed or not (self.path / "result.json").is_file():
            found = {"command": command, "model": model, **self.facts, "metrics": {**metrics, "rms": change}}
            atomic_json(self.path / "result.json", {**found, "seconds": round(seconds, 1), "versions": versions()})
        text = f"{self.path}: {len(self.rows):,} new images of {self.done:,} (images, {self.kind}.csv, overview.png)"
        return f"{text}\nmedian change {change:.1f} grey levels (rms{' of what was painted' if masks else ''})"


def changed(original: Original, image: Tensor) -> dict[str, float]:
    """How far a result uint8 (C, H, W) is from its original: rms in grey levels, of the painted pixels if some stay."""
    square = (image.double() - original.image.double()).square().mean(0)
    mask = original.mask
    kept = {} if mask is None else {"painted": float(f"{mask.double().mean():.6g}")}
    return {**kept, "rms": float(f"{(square if mask is None else square[mask[0]]).mean().sqrt():.6g}")}


def _pixels(batch: Sequence[Original]) -> str:
    digest = hashlib.sha256(json.dumps([(one.id, list(one.image.shape)) for one in batch]).encode())
    for one in batch:
        digest.update(one.image.numpy().tobytes() + (b"" if one.mask is None else one.mask.numpy().tobytes()))
    return digest.hexdigest()
