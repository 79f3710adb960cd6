"""Masks and key points of new images, in the pixels of the files as they are stored: `predict` for these models."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.probe import PredictSettings
from .show import Progress
from .tablefile import TableFile

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..data.restore import Placed
    from ..settings.data import DataSettings

Columns = dict[str, list[Any]]
AT_ONCE = 2**26  # numbers of the maps that are held together
TABLE = "classes.csv"
VOID_COLOUR = (255, 255, 255)
# settings of `predict` that say nothing to these models
MEANINGLESS = ("probe", "method", "embed", "anomaly", "normal", "good", "layers", "sigma", "draws", "score")


def locates(model: Any) -> bool:
    """Whether a model says where things are in an image: a segmenter or a landmarker."""
    from ..recognize.landmarker import NetworkLandmarker
    from ..recognize.segmenter import NetworkSegmenter

    return isinstance(model, NetworkSegmenter | NetworkLandmarker)


def predict_places(
    model: Any, source: str, data: DataSettings, settings: PredictSettings, out: Path, quiet: bool
) -> str:
    """Answers for all images of `data`, written to `out`; returns what to tell the user.

    A segmenter writes a folder: a mask for each image and `classes.csv` with the shares of their classes. A landmarker
    writes a table. Raises `UserError` for settings that mean nothing here.
    """
    from ..data import open_images
    from ..data.restore import placed
    from ..recognize.segmenter import NetworkSegmenter

    if given := [name for name in MEANINGLESS if name in settings.model_fields_set]:
        kind = "segmenter" if isinstance(model, NetworkSegmenter) else "landmarker"
        raise UserError(given[0], f"{source} holds a {kind}, which it says nothing to", f"leave {given[0]} out")
    opened, answer, table = open_images(data), pointing(model), out
    size = max(1, min(settings.micro_batch, AT_ONCE // (len(model.class_names) * model.shape[1] * model.shape[2])))
    if isinstance(model, NetworkSegmenter):
        check_folder(out)
        answer, table = Masks(model, out).answer, out / TABLE
    total, done, skipped = opened.count(), 0, 0
    title = "naming pixels" if table != out else "finding points"
    with Progress(title, quiet) as progress, TableFile(table) as file:
        for part in placed(opened, data, size):
            for name, reason in part.skipped:
                progress.line(f"left out: {name} ({reason})")
            if part.ids:
                file.write({"id": part.ids, **answer(part)})
            skipped += len(part.skipped)
            done += len(part.ids) + len(part.skipped)
            progress(done, total)
    if not file.rows:
        raise UserError(data.source, "holds no readable image", "nothing was written")
    left = f", {skipped} unreadable ones left out" if skipped else ""
    return f"{out}: {file.rows:,} images{left}"


def check_folder(out: Path) -> None:
    """Raises `UserError` where masks cannot go: to a table, a file, or among files that earlier masks are not."""
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if out.suffix in (".csv", ".parquet") or not there.is_dir():
        what = f"{there} is a file" if not there.is_dir() else "names a table"
        raise UserError(f"--out {out}", f"{what}, and masks are written to a folder", "name a folder")
    if there == out and not (out / TABLE).is_file() and any(out.iterdir()):
        what = f"holds other files and no {TABLE}; masks are named like the images, and could replace them"
        raise UserError(f"--out {out}", what, "name a new folder")


class Masks:
    """Writes a mask for each image: a palette PNG of the file's own size, whose indices are classes, 255 = void."""

    def __init__(self, model: Any, folder: Path) -> None:
        from ..recognize.segmenter import class_colours

        self.model, self.folder, self.names = model, folder, list(model.class_names)
        colours = class_colours(len(self.names)).tolist()
        rows = [*colours, *[[0, 0, 0]] * (255 - len(colours)), list(VOID_COLOUR)]
        self.palette = [value for row in rows for value in row]
        self.taken: set[str] = set()

    def answer(self, part: Placed) -> Columns:
        """The name of each mask, the share of each class among its pixels, and the share that is void."""
        import numpy as np

        from ..data.restore import restore_mask

        columns: Columns = {"mask": [], **{f"share({name})": [] for name in self.names}, "void": []}
        probabilities = self._probabilities(part.images)
        for id, found, placing in zip(part.ids, probabilities, part.placings, strict=True):
            mask = restore_mask(found, placing)
            columns["mask"].append(self._write(id, mask))
            shares = np.bincount(mask.ravel(), minlength=256) / mask.size
            for name, share in zip(self.names, shares, strict=False):
                columns[f"share({name})"].append(round(float(share), 6))
            columns["void"].append(round(float(shares[255]), 6))
        return columns

    def _probabilities(self, images: Tensor) -> np.ndarray:
        import torch

        with torch.no_grad():
            return self.model.probabilities(images).cpu().numpy()

    def _write(self, id: str, mask: np.ndarray) -> str:
        from PIL import Image

        from ..files import atomic_bytes

        picture, file = Image.fromarray(mask, "P"), io.BytesIO()
        picture.putpalette(self.palette)
        picture.save(file, "PNG")
        name = self._name(id)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_bytes(path, file.getvalue())
        return name

    def _name(self, id: str) -> str:
        """The image's own name with the ending .png, in its own sub-folder; other characters than usual ones as _."""
        from ..data.walking import IMAGE_SUFFIXES

        parts = [re.sub(r"[^\w.+-]+", "_", part) for part in PurePosixPath(id).parts if part not in ("/", "..")]
        stem = PurePosixPath(*parts)
        bare = [f"{stem.with_suffix('')}.png"] if stem.suffix.lower() in IMAGE_SUFFIXES else []
        usual = [*bare, f"{stem}.png"]
        numbered = (f"{stem}.{k}.png" for k in count(2))
        name = next(name for name in chain(usual, numbered) if name.lower() not in self.taken)
        self.taken.add(name.lower())
        return name


def pointing(model: Any) -> Callable[[Placed], Columns]:
    """x0, y0, x1, y1, ... in pixels of the files, 0 = the middle of the first, and how sure each point is."""

    def answer(part: Placed) -> Columns:
        import torch

        from ..data.restore import restore_points

        with torch.no_grad():
            points, confidence = model.points(part.images)
        restored = [
            restore_points(found, placing) for found, placing in zip(points.cpu().numpy(), part.placings, strict=True)
        ]
        columns: Columns = {}
        for k in range(points.shape[1]):
            for axis, name in enumerate("xy"):
                columns[f"{name}{k}"] = [round(float(found[k, axis]), 3) for found in restored]
        for k in range(points.shape[1]):
            columns[f"confidence{k}"] = [round(value, 6) for value in confidence[:, k].tolist()]
        return columns

    return answer
