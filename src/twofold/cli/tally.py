"""How right the answers of `predict` are, where the images have labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.probe import PredictSettings

if TYPE_CHECKING:
    from ..data.stream import Streamed

Columns = dict[str, list[Any]]


class Tally:
    """Compares answers with the labels that the images have, if they have any."""

    def __init__(self, classes: list[str], given: list[str], settings: PredictSettings) -> None:
        self.classes, self.names, self.good = classes, given, settings.good
        if self.good is not None and self.good not in given:
            known = ", ".join(given) or "none: they have no labels"
            raise UserError(f"good={self.good}", "IMAGES have no such class", f"they have {known}")
        self.right, self.labelled = 0, 0
        self.scores: list[float] = []
        self.bad: list[bool] = []

    def given(self, part: Streamed) -> Columns:
        """The images' own labels as a column, where there are any."""
        return {"given": [self.names[k] if k >= 0 else "" for k in part.labels]} if self.names else {}

    def add(self, part: Streamed, columns: Columns) -> None:
        for i, label in enumerate(part.labels):
            if label < 0:
                continue
            if "label" in columns and self.names[label] in self.classes:
                self.labelled += 1
                self.right += columns["label"][i] == self.names[label]
            if "anomaly" in columns and self.good is not None:
                self.scores.append(columns["anomaly"][i])
                self.bad.append(self.names[label] != self.good)

    def text(self) -> str:
        import numpy as np

        from ..measure.answers import auroc, share_interval

        if self.labelled:
            share = self.right / self.labelled
            low, high = share_interval(share, self.labelled)
            return (
                f"\n{100 * share:.1f} % of the {self.labelled:,} labelled ones are named rightly "
                f"({100 * low:.1f} to {100 * high:.1f})"
            )
        if self.good is not None and 0 < sum(self.bad) < len(self.bad):
            return f"\nAUROC of the anomaly score: {auroc(np.array(self.scores), np.array(self.bad)):.3f}"
        return ""
