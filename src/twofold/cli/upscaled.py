"""The folder of `twofold upscale`: one PNG an image, a table, a comparison, and what is known of finished batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..files import atomic_bytes, atomic_file, atomic_json
from ..settings.upscale import UpscaleSettings
from .begun import DONE, begin, read_note, stem_of
from .pictures import Picture
from .tablefile import TableFile

if TYPE_CHECKING:
    from torch import Tensor

    from ..report.upscaled import Compared

MEASURES = ("psnr", "psnr_bicubic", "ssim", "ssim_bicubic", "detail", "detail_bicubic", "detail_true")


class Distances:
    """Frechet distances of upscaled and of bicubic images to the true ones, on the encoder of this name."""

    def __init__(self, name: str) -> None:
        from ..measure import Gaussian

        self.name, self.size = name, (0, 0)
        self.encoder: Any = None
        self.found = {kind: Gaussian() for kind in ("true", "model", "bicubic")}

    def add(self, part: Sequence[Picture], images: Sequence[Any], factor: int) -> None:
        """A batch whose truth is known, of one size, and what came of it. Raises `UserError` where sizes differ from
        those before, and for an unknown encoder."""
        import numpy as np
        import torch

        from ..lowres import enlarged
        from ..measure import Gaussian, embed, encoder, fits

        truths = [picture.truth for picture in part if picture.truth is not None]
        if not truths:
            raise UserError(f"encoder={self.name}", "the true images are not known", "give truth= or shrink=true")
        if self.encoder is None:
            self.size, self.encoder = part[0].size, encoder(fits(self.name, (len(truths[0]), *part[0].size)))
        if part[0].size != self.size:
            raise UserError(f"encoder={self.name}", "the images are of several sizes", "leave encoder out")
        bicubic = enlarged(torch.stack([picture.low for picture in part]), factor)
        model = torch.from_numpy(np.stack(images))
        for kind, batch in (("true", torch.stack(truths)), ("model", model), ("bicubic", bicubic)):
            self.found[kind].merge(Gaussian.of(embed(self.encoder, batch)))

    def values(self) -> dict[str, float]:
        """{"frechet", "frechet_bicubic"}; {} of fewer than two images."""
        from ..measure import frechet_distance

        if self.found["true"].n < 2:
            return {}
        model, bicubic = (frechet_distance(self.found[kind], self.found["true"]) for kind in ("model", "bicubic"))
        return {"frechet": model, "frechet_bicubic": bicubic}


class Folder:
    """images/ with one PNG an image, upscaled.csv, comparison.png and result.json.

    facts: what must be the same for a folder to be continued. Raises `UserError` for a folder of something else.
    """

    def __init__(self, path: Path, facts: dict[str, Any], settings: UpscaleSettings) -> None:
        self.path, self.facts, self.settings = path, facts, settings
        self.factor: int = facts["factor"]
        self.rows: list[dict[str, Any]] = []
        self.shown: list[Compared] = []
        self.sizes: set[tuple[int, int]] = set()
        self.distances = Distances(settings.encoder) if settings.encoder else None
        self._stems: set[str] = set()
        self._computed = False
        begin(path, facts, "upscaled images", ("images",))

    @property
    def done(self) -> int:
        return len(self.rows)

    def _file(self) -> Path:
        return self.path / DONE / f"{self.done:08d}.json"

    def kept(self, part: Sequence[Picture]) -> list[dict[str, Any]]:
        """The rows of this batch, if it was finished before with the same pixels and its pictures are there."""
        found = read_note(self._file()) if self._file().is_file() else {}
        rows: list[dict[str, Any]] = found.get("rows", []) if found.get("pixels") == _pixels(part) else []
        return rows if all(self.file(row["file"]).is_file() for row in rows) else []

    def file(self, stem: str) -> Path:
        return self.path / "images" / f"{stem}.png"

    def write(self, part: Sequence[Picture], images: Tensor) -> None:
        """The pictures of a batch uint8 (N, C, H, W), and then that it is done."""
        from ..generate.chunks import write_png

        rows, taken = [], set(self._stems)
        for picture, image in zip(part, images, strict=True):
            stem = stem_of(picture.id, taken)
            row = {"id": picture.id, "file": stem, "height": picture.size[0], "width": picture.size[1]}
            atomic_file(self.file(stem), lambda file, image=image: write_png(file, image.numpy()))  # type: ignore[misc]
            rows.append({**row, **measured(picture, image, self.factor)})
        atomic_json(self._file(), {"pixels": _pixels(part), "rows": rows})
        self._computed = True

    def add(self, part: Sequence[Picture]) -> None:
        """Takes note of a batch that is done."""
        from ..report.upscaled import Compared

        rows = self.kept(part)
        for picture, row in zip(part, rows, strict=True):
            self._stems.add(row["file"])
            self.sizes.add(picture.size)
            if len(self.shown) < self.settings.figures:
                truth = None if picture.truth is None else picture.truth.numpy()
                image = self.image(row["file"], len(picture.low))
                self.shown.append(Compared(picture.low.numpy(), image, truth, self.factor))
        if self.distances is not None:
            self.distances.add(part, [self.image(row["file"], len(part[0].low)) for row in rows], self.factor)
        self.rows += rows

    def image(self, stem: str, channels: int) -> Any:
        """A written picture: uint8 (C, H, W)."""
        import numpy as np
        from PIL import Image

        with Image.open(self.file(stem)) as file:
            pixels = np.asarray(file.convert("L" if channels == 1 else "RGB"))
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def finish(self, command: str, model: str, seconds: float) -> str:
        """Writes the table, the comparison and, if anything was computed, the result; returns what to tell the user."""
        from ..learn.training import versions
        from ..report.upscaled import comparison

        with TableFile(self.path / "upscaled.csv") as table:
            names = list(dict.fromkeys(name for row in self.rows for name in row))
            table.write({name: [row.get(name, "") for row in self.rows] for name in names})
        if self.shown:
            atomic_bytes(self.path / "comparison.png", comparison(self.shown))
        metrics = averages(self.rows) | (self.distances.values() if self.distances else {})
        if self._computed or not (self.path / "result.json").is_file():
            found = {"command": command, "model": model, **self.facts, "metrics": metrics, "seconds": round(seconds, 1)}
            atomic_json(self.path / "result.json", {**found, "versions": versions()})
        return self._told(metrics)

    def _told(self, metrics: dict[str, Any]) -> str:
        text = f"{self.path}: {metrics['images']:,} images (images, upscaled.csv"
        text += ", comparison.png)" if self.shown else ")"
        if "psnr" not in metrics:
            return text
        rows = [("psnr", "PSNR", "{:.2f} dB"), ("ssim", "SSIM", "{:.4f}")]
        rows += [("frechet", f"frechet/{self.settings.encoder}", "{:.4g}")] if "frechet" in metrics else []
        wide = max(len(title) for _, title, _ in rows) + 2
        text += f"\n{'':{wide}}{'this model':>12}{'bicubic':>12}\n"
        for name, title, form in rows:
            values = [metrics[name], metrics[f"{name}_bicubic"]]
            text += f"{title:{wide}}" + "".join(f"{form.format(value):>12}" for value in values) + "\n"
        small = min(min(size) for size in self.sizes) < 11
        note = f"means over {metrics['measured']:,} images, 8 bits, all channels together"
        if metrics.get("detail_true"):
            shares = [metrics[name] / metrics["detail_true"] for name in ("detail", "detail_bicubic")]
            text += f"{'detail':{wide}}" + "".join(f"{100 * share:>10.1f} %" for share in shares) + "\n"
            note += "; detail: squared differences of neighbouring pixels, of those of the true images"
        return text + note + ("; SSIM with a smaller window than the usual 11x11" if small else "")


def measured(picture: Picture, image: Tensor, factor: int) -> dict[str, float]:
    """How near an image uint8 (C, H, W) comes to the truth, and bicubic enlargement; {} where there is no truth."""
    from ..lowres import enlarged
    from ..measure.fidelity import detail, psnr, ssim

    if picture.truth is None:
        return {}
    truth, bicubic = picture.truth[None], enlarged(picture.low[None], factor)
    values = [float(measure(one, truth)[0]) for measure in (psnr, ssim) for one in (image[None], bicubic)]
    values += [float(detail(one)[0]) for one in (image[None], bicubic, truth)]
    return {name: float(f"{value:.6g}") for name, value in zip(MEASURES, values, strict=True)}


def averages(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the images with a truth."""
    known = [row for row in rows if "psnr" in row]
    names = [name for name in MEASURES if known and all(name in row for row in known)]  # older folders have fewer
    means = {name: sum(row[name] for row in known) / len(known) for name in names}
    return {"images": len(rows), "measured": len(known), **means}


def _pixels(part: Sequence[Picture]) -> str:
    digest = hashlib.sha256(json.dumps([(picture.id, list(picture.low.shape)) for picture in part]).encode())
    for picture in part:
        for pixels in (picture.low, picture.truth):
            digest.update(b"" if pixels is None else pixels.contiguous().numpy().tobytes())
    return digest.hexdigest()
