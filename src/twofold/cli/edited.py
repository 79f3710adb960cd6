"""The folder of `twofold edit`: pictures of every image, one table, and what is known of batches that are done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic_bytes, atomic_file, atomic_json
from ..settings.edit import EditSettings
from .begun import DONE, begin, read_note, read_picture, stem_of
from .tablefile import TableFile

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..data import Streamed
    from ..generate.edit import Edited
    from ..report.edits import Listed

SHOWN = 20  # edits in the overview


def row_of(
    names: list[str], found: Edited, judged: tuple[Tensor, Tensor] | None, target: Tensor, i: int
) -> dict[str, Any]:
    """One row of edits.csv. judged: logits of the judge about the originals and the edited images; it says whether an
    image is flipped, and the guide does where there is no judge."""
    from ..generate.edit import is_target
    from ..generate.targets import probability

    row: dict[str, Any] = {"label_before": words(found.before[i], names, target), "label_after": ""}
    row["label_after"] = words(found.after[i], names, target)
    row |= {"p_before": _digits(found.p_before[i]), "p_after": _digits(found.p_after[i])}
    if judged is not None:
        for when, logits in zip(("before", "after"), judged, strict=True):
            row[f"judge_{when}"] = words(logits[i], names, target)
            row[f"p_judge_{when}"] = _digits(probability(logits[i : i + 1], target[i : i + 1])[0])
    before, after = (
        bool(is_target(part[i : i + 1], target[i : i + 1])) for part in judged or (found.before, found.after)
    )
    row |= {"already": before, "flipped": after and not before, "reached": bool(found.reached[i])}
    row |= {name: _digits(getattr(found, name)[i]) for name in ("sigma", "scale", "share")}
    return row | {name: _digits(getattr(found.near, name)[i]) for name in ("rms", "l2", "features")}


def words(logits: Tensor, names: list[str], target: Tensor) -> str:
    """An answer (K,) in words: the class, or the attributes that are more likely than not."""
    from ..generate.targets import JOIN

    if target.ndim == 1:
        return names[int(logits.argmax())]
    return JOIN.join(name for name, value in zip(names, logits.tolist(), strict=True) if value > 0)


def verdict(row: dict[str, Any]) -> str:
    """What came of an edit, by its row."""
    if row["already"]:
        return "the target already"
    return ("flipped" if row["flipped"] else "not flipped") + ("" if row["reached"] else ", not reached")


def _digits(value: Any) -> float:
    return float(f"{float(value):.6g}")


class Folder:
    """edited/, difference/ and figures/ with one PNG an image, edits.csv, overview.png and result.json.

    facts: what must be the same for a folder to be continued. classes: of the source, [] where it has none.
    attributes: that are asked about, of a guide that knows attributes. Raises `UserError` for a folder of other edits.
    """

    def __init__(
        self,
        path: Path,
        facts: dict[str, Any],
        classes: list[str],
        settings: EditSettings,
        attributes: Sequence[str] = (),
    ) -> None:
        self.path, self.facts, self.classes, self.settings = path, facts, classes, settings
        self.attributes = attributes
        self.done = 0
        self.rows: list[dict[str, Any]] = []
        self.shown: list[Listed] = []
        self._stems: set[str] = set()
        self._computed = False
        begin(path, facts, "edits", ("edited", "difference", "figures"))

    def first(self, part: Streamed) -> Streamed:
        """Without what goes beyond `n`."""
        from ..data import Streamed

        left = None if self.settings.n is None else self.settings.n - self.done
        return Streamed(part.ids[:left], part.images[:left], part.labels[:left], part.skipped)

    def _file(self) -> Path:
        return self.path / DONE / f"{self.done:08d}.json"

    def kept(self, part: Streamed) -> list[dict[str, Any]] | None:
        """The rows of this batch, if it was finished before, with the same pixels."""
        found = read_note(self._file()) if self._file().is_file() else None
        return found["rows"] if found and found["pixels"] == _pixels(part) else None

    def add(self, part: Streamed, rows: list[dict[str, Any]]) -> None:
        """Notes that a batch is done, all of whose pictures are written."""
        if not self._file().is_file() or self.kept(part) is None:
            atomic_json(self._file(), {"pixels": _pixels(part), "rows": rows})
            self._computed = True
        for row, image in zip(rows, part.images.numpy(), strict=True):
            self._stems.add(row["file"])
            if len(self.shown) < SHOWN:
                self.shown.append(self._listed(row, image))
        self.rows += rows
        self.done += len(rows)

    def _listed(self, row: dict[str, Any], image: np.ndarray) -> Listed:
        """An edit as the overview shows it."""
        from ..report.edits import Listed

        edited = read_picture(self.path / "edited" / f"{row['file']}.png", len(image))
        before, after = (self.answer(row, when) for when in ("before", "after"))
        p = [row.get(f"p_judge_{when}", row[f"p_{when}"]) for when in ("before", "after")]
        lines = (verdict(row), f"{before} → {after}", f"p(target) {p[0]:.2f} → {p[1]:.2f}")
        failed = not (row["already"] or (row["flipped"] and row["reached"]))
        return Listed(image, edited, (*lines, f"change {row['rms']:.1f} levels rms"), failed)

    def answer(self, row: dict[str, Any], when: str) -> str:
        """What the judge, or else the guide, says "before" or "after": the class, or the attributes asked about."""
        text = row.get(f"judge_{when}", row[f"label_{when}"])
        if not self.attributes:
            return text
        from ..generate.targets import ABSENT, JOIN

        there = text.split(JOIN)
        return JOIN.join(name if name in there else ABSENT + name for name in self.attributes)

    def stem(self, name: str) -> str:
        """What the pictures of an image are called."""
        return stem_of(name, self._stems)

    def given(self, label: int) -> dict[str, str]:
        """The image's own label, where the source has labels."""
        return {"given": self.classes[label] if label >= 0 else ""} if self.classes else {}

    def figures_left(self, n: int) -> int:
        """How many of the next n images get a figure."""
        return max(0, min(n, self.settings.figures - self.done))

    def pictures(self, stem: str, original: np.ndarray, edited: np.ndarray) -> None:
        """The edited image and where it changed."""
        from ..generate.chunks import write_png
        from ..report.edits import change_colours

        change = change_colours(original, edited)
        for folder, picture in (("edited", edited), ("difference", change)):
            atomic_file(self.path / folder / f"{stem}.png", lambda file, picture=picture: write_png(file, picture))  # type: ignore[misc]

    def figure(self, stem: str, data: bytes) -> None:
        atomic_bytes(self.path / "figures" / f"{stem}.png", data)

    def finish(self, command: str, model: str, seconds: float) -> str:
        """Writes the table, the overview and, if anything was computed, the result; returns what to tell the user."""
        from ..learn.training import versions
        from ..report.edits import edits_overview

        with TableFile(self.path / "edits.csv") as table:
            table.write({name: [row[name] for row in self.rows] for name in self.rows[0]})
        judge = self.settings.judge
        heading = (f"target: {self.settings.to}", f"answers: {f'the judge, {judge}' if judge else 'the guide'}")
        atomic_bytes(self.path / "overview.png", edits_overview(self.shown, heading))
        metrics = measured(self.rows)
        if self._computed or not (self.path / "result.json").is_file():
            found = {"command": command, "model": model, **self.facts, "metrics": metrics, "seconds": round(seconds, 1)}
            atomic_json(self.path / "result.json", {**found, "versions": versions()})
        return self._told(metrics)

    def _told(self, metrics: dict[str, Any]) -> str:
        text = f"{self.path}: {metrics['images']:,} images (edits.csv, overview.png, edited, difference, figures)"
        if metrics["flipped"] is not None:
            low, high = metrics["flipped_interval"]
            who = "the judge" if self.settings.judge else "the guide"
            text += f"\n{100 * metrics['flipped']:.1f} % of the {metrics['others']:,} that were not {self.settings.to} "
            text += f"now are ({100 * low:.1f} to {100 * high:.1f}: 95 % interval), as {who} sees it; "
            text += f"median change {metrics['rms']:.1f} grey levels (rms)"
        return text


def measured(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is said of all edits: the share of flipped ones among those that were something else, and distances."""
    import numpy as np

    from ..measure.answers import share_interval

    others = [row for row in rows if not row["already"]]
    share = sum(row["flipped"] for row in others) / len(others) if others else None
    medians = {name: float(np.median([row[name] for row in others or rows])) for name in ("rms", "l2", "features")}
    interval = None if share is None else list(share_interval(share, len(others)))
    return {"images": len(rows), "others": len(others), "flipped": share, "flipped_interval": interval, **medians}


def _pixels(part: Streamed) -> str:
    digest = hashlib.sha256(json.dumps([part.ids, list(part.images.shape)]).encode())
    digest.update(part.images.numpy().tobytes())
    return digest.hexdigest()
