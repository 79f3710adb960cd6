"""The linear classifier of dual pseudo training, stages 1 and 3 (You et al. 2023, arXiv 2302.10586, appendix A).

    u_i = standardised(x_i)        each row centred, then of length 1
    (1/n) sum_i w_i CE(W^T u_i, y_i) + lam / (2 n) |W|^2,        no intercept

over the n labelled images. lam is 0.0025 in all of DPT's and MSN's results, which is scikit-learn's C = 1 / lam = 400
(C = 2 / lam = 800 for two classes, see `linear`).

The optimal W has columns that sum to 0, since the rows do, so that the answer (not its confidence) is the same for
features that were not standardised. The head standardises them all the same: without, the softmax of long features
says 1.0 whatever they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .heads import Features, LinearHead, as_float
from .learned import Base, Fitting, Learned, SpaceName
from .linear import fit_logistic
from .spaces import InSpace, Space, space_of, standardised

__all__ = ["LAMBDA", "Logistic", "fit_published", "standardised"]

LAMBDA = 0.0025
GAP = 1e-12  # between the objective and its minimum, up to a factor


def fit_published(
    x: Features,
    y: Features,
    classes: int,
    lam: float = LAMBDA,
    weight: Features | None = None,
    space: Space | None = None,
    tolerance: float | None = None,
    max_steps: int = 2000,
) -> InSpace:
    """The published classifier of features x (N, D); y (N,) with -1 = unlabelled, which are left out.

    weight (N,) >= 0: how much an image counts. space: another one than standardised rows. tolerance: of the gradient's
    entries; by default so small that predictions are scikit-learn's to five digits. Runs where x is.
    Returns a head that takes features as they come. A class without labels is never answered. Raises `UserError` as
    `fit_logistic` does.
    """
    x = as_float(x)
    space = Space(x.new_zeros(x.shape[1]), x.new_ones(x.shape[1]), rows=True) if space is None else space
    labelled = torch.as_tensor(y).to(x.device) >= 0
    n = max(1, int(labelled.sum()))
    if tolerance is None:  # the objective's strong convexity, lam / n, bounds how far a gradient is from the minimum
        tolerance = min(1e-5, (2 * lam / n * GAP) ** 0.5)
    heads = fit_logistic(
        space(x), y, classes, [lam / n], weight, standardise=False, intercept=False, tolerance=tolerance,
        max_steps=max_steps,
    )  # fmt: skip
    found = heads.head(0)
    return InSpace(space, LinearHead(*(tensor.float().contiguous() for tensor in found.tensors().values())))


@dataclass(frozen=True)
class Logistic(Base):
    """Logistic regression on the labelled images alone; with its defaults the published one. lam: see above."""

    space: SpaceName = "rows"
    dims: int | None = None
    lam: float = LAMBDA

    def on(self, x: Features, classes: int) -> Fitting:
        x = as_float(x)
        space = space_of(self.space, x, self.dims)

        def fit(y: Tensor, weight: Features | None = None) -> Learned:
            head = fit_published(x, y, classes, self.lam, weight, space)
            return Learned(head.logits(x).double().cpu(), head)

        return fit
