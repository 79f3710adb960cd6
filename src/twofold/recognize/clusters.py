"""Clusters of all images, that know no label, and which of them is which class.

Where classes are clusters, images alone say where they are, and a few labels only what they are called.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .heads import Features, as_float
from .spaces import standardised

MOST = 4096  # images that clusters are made of: work and memory grow with the square of them


def ward(x: Features, count: int) -> Tensor:
    """(N, count) float64: which cluster each of the features (N, D) is in, one-hot; rows of zeros for images that took
    no part (of more than `MOST`, as many are drawn).

    Clusters are merged where that adds least to the squared distances from their means (Ward 1963), of directions, as
    `propagate` compares features: lengths do not count. With fewer images than clusters some are empty.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    x = as_float(x)
    rows = torch.arange(len(x))
    if len(x) > MOST:
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:MOST].sort().values
    found = torch.zeros(len(x), count, dtype=torch.float64)
    some = standardised(x[rows.to(x.device)]).cpu().double().numpy()
    if len(some) > 1:
        index = fcluster(linkage(some, "ward"), count, "maxclust").astype(np.int64) - 1
    else:
        index = np.zeros(len(some), np.int64)
    found[rows, torch.from_numpy(index)] = 1
    return found


def matched(clusters: Tensor, given: Tensor) -> Tensor:
    """Probabilities (N, K) of clusters, in the order of classes: the one-to-one match under which labelled images are
    likeliest. clusters (N, K): log-probabilities. given (N, K): weights of labelled images.
    """
    from scipy.optimize import linear_sum_assignment

    likely = (given.T @ clusters).cpu().numpy()
    return clusters.exp()[:, torch.from_numpy(linear_sum_assignment(likely, maximize=True)[1])]
