"""The Inception score (Salimans et al. 2016): exp of the mean divergence of p(class | image) from its average.

    IS = exp( mean_i KL( p(y | x_i) || mean_j p(y | x_j) ) ),  averaged over 10 consecutive parts of the images

Between 1 and the number of classes. It looks at no real image, rewards what the classifier is sure of, and means
something only for images like ImageNet's; given because papers give it.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..errors import UserError

SPLITS = 10


def inception_score(probabilities: Tensor | np.ndarray, splits: int = SPLITS) -> tuple[float, float]:
    """Mean and standard deviation over `splits` parts of rows (N, K) that sum to 1, in the order they come.

    Raises `UserError` where there are fewer rows than parts, or rows are no probabilities.
    """
    rows = np.asarray(probabilities, np.float64)
    if rows.ndim != 2 or splits < 1 or len(rows) < splits:
        raise UserError("inception_score", f"probabilities {rows.shape} in {splits} parts", "one row an image, or more")
    if not np.isfinite(rows).all() or (rows < 0).any() or (np.abs(rows.sum(1) - 1) > 1e-4).any():
        raise UserError("inception_score", "rows are no probabilities", "logits need a softmax first")
    n = len(rows)
    parts = [rows[n * k // splits : n * (k + 1) // splits] for k in range(splits)]
    scores = [float(np.exp(_divergence(part))) for part in parts]
    return float(np.mean(scores)), float(np.std(scores))


def _divergence(rows: np.ndarray) -> float:
    """Mean KL(row || mean row); 0 log 0 is 0."""
    ratio = np.divide(rows, rows.mean(0), out=np.ones_like(rows), where=rows > 0)
    return float((rows * np.log(ratio)).sum(1).mean())
