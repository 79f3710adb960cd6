"""The Frechet distance of two sets of feature vectors, each seen as a Gaussian (Dowson and Landau 1982, eq. 4).

    d^2 = |mu_a - mu_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2))

With Inception-V3's reference weights this is FID (Heusel et al. 2017); with any other encoder it is not and is
called `frechet/<encoder>`. C is the unbiased covariance (n - 1), as in FID. The distance of finite samples is biased
upwards, the more so the smaller n is: compare distances of equal n only.

C_a = L L^T makes C_a C_b similar to the symmetric M = L^T C_b L, so tr((C_a C_b)^(1/2)) = sum_i sqrt(lambda_i(M)):
real, never negative beyond rounding, and several times cheaper than the square root of a non-symmetric matrix.
An eigenvalue that is small beside the largest is mostly rounding, and its root is not small. Where that could be seen
in d^2, the sum is taken as sum_i sigma_i(L^T K) with C_b = K K^T instead: slower, and exact for small values as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ..errors import UserError

EPS = float(np.finfo(np.float64).eps)
MOST_DIMS = 4096  # of a covariance: 128 MiB each, of which a distance needs several, and about a minute
EXACT = 1e-7  # relative rounding of d^2, as `_doubt` estimates it, that is accepted from the faster form


def result_name(encoder: str) -> str:
    """What a Frechet distance on this encoder's features is called in every result: `frechet/pixels`."""
    return f"frechet/{encoder}"


class Gaussian:
    """Mean and covariance of feature vectors that arrive in batches, float64.

    n: vectors seen. mean: (D,). scatter: (D, D), the sum of outer products of deviations from the mean. Batches and
    partial results are joined by the pairwise update of Chan et al. 1979 (eq. 2.1), which does not cancel as a
    running sum of squares does. The order of batches changes the result by rounding only. At most `MOST_DIMS`
    dimensions, because memory grows with their square and time with their cube.
    """

    def __init__(self, dims: int = 0) -> None:
        """dims: D; 0 = that of the first vectors."""
        self.n = 0
        self.mean = np.zeros(dims)
        self.scatter = np.zeros((dims, dims))
        self._deviations: np.ndarray | None = None  # (n, D), of `of` with n <= D: the cheapest root of the covariance

    @classmethod
    def of(cls, features: Tensor | np.ndarray) -> Gaussian:
        """The Gaussian of all rows of features (N, D). Raises `UserError` as `update` does."""
        check_size(features.shape[-1] if features.ndim else 0)
        rows, gaussian = as_rows(features), cls()
        gaussian.update(rows)
        if 2 <= gaussian.n <= gaussian.dims:
            gaussian._deviations = rows - gaussian.mean
        return gaussian

    @property
    def dims(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> np.ndarray:
        """(D, D), unbiased. Raises `UserError` for fewer than two vectors."""
        if self.n < 2:
            raise UserError("features", f"a covariance of {self.n} vectors", "at least 2 images are needed")
        return self.scatter / (self.n - 1)

    def update(self, features: Tensor | np.ndarray) -> None:
        """Adds rows (B, D) of any float type. Raises `UserError` for another D, too large a D, NaN or infinity."""
        check_size(features.shape[-1] if features.ndim else 0)
        rows = as_rows(features)
        batch = Gaussian(rows.shape[1])
        if len(rows):
            batch.n, batch.mean = len(rows), rows.mean(0)
            centred = rows - batch.mean
            batch.scatter = centred.T @ centred
        self.merge(batch)

    def merge(self, other: Gaussian) -> None:
        """Adds what another Gaussian has seen (another process, another part). Raises `UserError` for another D."""
        if other.dims == 0:
            return
        if self.dims == 0:
            self.mean, self.scatter = np.zeros_like(other.mean), np.zeros_like(other.scatter)
        check_dims(self, other)
        if other.n == 0:
            return
        n = self.n + other.n
        delta = other.mean - self.mean
        self.mean = self.mean + delta * (other.n / n)
        self.scatter = self.scatter + other.scatter + np.outer(delta, delta) * (self.n * other.n / n)
        self.n, self._deviations = n, None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For `np.savez`: n (), mean (D,), scatter (D, D)."""
        return {"n": np.array(self.n), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Gaussian:
        """The inverse of `to_arrays`, bit for bit. Raises `ValueError` where shapes or values make no sense."""
        mean, scatter = np.asarray(arrays["mean"], np.float64), np.asarray(arrays["scatter"], np.float64)
        n = int(arrays["n"])
        if mean.ndim != 1 or scatter.shape != (len(mean), len(mean)) or n < 0:
            raise ValueError(f"not the statistics of a Gaussian: n {n}, mean {mean.shape}, scatter {scatter.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(scatter).all()):
            raise ValueError("the statistics hold NaN or infinity")
        gaussian = cls()
        gaussian.n, gaussian.mean, gaussian.scatter = n, mean, scatter
        return gaussian


def as_rows(features: Tensor | np.ndarray, where: str = "features") -> np.ndarray:
    """(N, D) float64 on the CPU. Raises `UserError` unless it is a matrix of finite numbers."""
    rows = features.detach().cpu().double().numpy() if isinstance(features, Tensor) else features
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2:
        raise UserError(where, f"of shape {rows.shape}", "expected one row per image: (images, dimensions)")
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        bad = int((~finite).sum())
        raise UserError(where, f"NaN or infinity in {bad} of {len(rows)} rows", "check the encoder and its images")
    return rows


def check_size(dims: int) -> None:
    """Raises `UserError` where a covariance of so many dimensions is too large to work with."""
    if dims > MOST_DIMS:
        what = f"{dims:,} dimensions, whose covariance alone would take {dims**2 * 8 / 2**30:.1f} GiB"
        hint = "average images down (encoder=pixels32, or pixels64 for grey ones) or use encoder=convnet"
        raise UserError("features", what, f"at most {MOST_DIMS:,}: {hint}")


def check_dims(a: Gaussian, b: Gaussian) -> None:
    """Raises `UserError` where the two were measured in spaces of different dimension."""
    if a.dims != b.dims:
        raise UserError(
            "features", f"{a.dims} dimensions on one side, {b.dims} on the other", "use one encoder for both"
        )


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """d^2 of the formula above, >= 0, in squared units of the features; symmetric in a and b up to rounding.

    Works with fewer vectors than dimensions. Raises `UserError` where dimensions differ or a side has fewer than two
    vectors. Equal numbers of vectors are the caller's business.
    """
    check_dims(a, b)
    if a.n > b.n:  # the side with the lower rank is the one whose root is the smaller matrix
        a, b = b, a
    delta = a.mean - b.mean
    unequal = float(delta @ delta + np.trace(a.covariance) + np.trace(b.covariance))
    root = _root(a)
    eigenvalues = np.linalg.eigvalsh(root.T @ b.covariance @ root)
    distance = unequal - 2 * float(np.sqrt(eigenvalues.clip(0)).sum())
    if _doubt(eigenvalues) > EXACT * distance:
        distance = unequal - 2 * float(np.linalg.svd(root.T @ _root(b), compute_uv=False).sum())
    return max(0.0, distance)


def _root(gaussian: Gaussian) -> np.ndarray:
    """L (D, rank) with L L^T = covariance.

    Few vectors are a root themselves. Otherwise Cholesky first: a ninth of the work of an eigendecomposition. But a
    covariance of fewer images than dimensions, or with pixels that never change, has no Cholesky factor: the
    factorisation fails, or "succeeds" with pivots that are rounding errors, whose square roots (1e-8 each, for 1e-16)
    would add up. There the symmetric eigen root is taken, without its null space, which also makes the next matrix
    smaller.
    """
    if gaussian._deviations is not None:
        return _root_of_deviations(gaussian._deviations)
    covariance, dims = gaussian.covariance, gaussian.dims
    if gaussian.n > dims:
        try:
            factor = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            pass
        else:
            pivots = np.diag(factor) ** 2 / np.diag(covariance)  # the variance not explained by earlier features
            if pivots.min() > dims * EPS:
                return factor
    values, vectors = np.linalg.eigh(covariance)
    kept = values > _rounding(values)
    return vectors[:, kept] * np.sqrt(values[kept])


def _root_of_deviations(rows: np.ndarray) -> np.ndarray:
    """L (D, n - 1) from the n <= D deviations themselves, which sum to zero.

    A Householder reflection that takes (1, ..., 1) to an axis leaves the sum in one row, 0, and drops it.
    """
    axis = np.full(len(rows), len(rows) ** -0.5)
    axis[0] += 1
    axis /= np.linalg.norm(axis)
    reflected = rows - 2 * np.outer(axis, axis @ rows)
    return reflected[1:].T / (len(rows) - 1) ** 0.5


def _doubt(eigenvalues: np.ndarray) -> float:
    """How far rounding may move 2 sum_i sqrt(lambda_i): an estimate from above, 10 to 1e6 times what is seen.

    Each eigenvalue is off by about sqrt(D) eps of the largest. Errors of the roots average out where the eigenvalue is
    larger than that; where it is not, every root is a positive number of its own and they add up.
    """
    error = len(eigenvalues) ** 0.5 * EPS * float(np.abs(eigenvalues).max(initial=0.0))
    if error == 0:
        return 0.0
    of_root = error / np.sqrt(eigenvalues.clip(error))
    lost = eigenvalues <= error
    return 2 * float(np.linalg.norm(of_root[~lost]) + of_root[lost].sum())


def _rounding(eigenvalues: np.ndarray) -> float:
    """What an eigenvalue of zero may come out as (the rule of `numpy.linalg.matrix_rank`)."""
    return len(eigenvalues) * EPS * float(np.abs(eigenvalues).max(initial=0.0))
