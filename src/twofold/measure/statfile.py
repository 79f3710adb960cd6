"""Statistics files: the mean and covariance of features in an .npz that other programs read too.

    mu (D,), sigma (D, D)           as pytorch-fid, and the evaluator of Dhariwal and Nichol 2021 (ADM), have them
    mu_s (2023,), sigma_s           of sFID's features, as in ADM's reference files
    arr_0 (N, H, W, C) uint8        the images themselves, which some of ADM's files hold beside or instead of them
    about                           ours: a JSON text with the data's name and hash, the part, the number of images,
                                    encoder, version and transform

Plain arrays only: nothing in such a file is unpickled. What `about` says is checked against what is asked for.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import atomic_file, sha256
from .frechet import MOST_DIMS, Gaussian

MANY = 2**31  # stands for a number of images that a file does not tell


@dataclass(frozen=True)
class StatisticsFile:
    """What a file holds. spatial: of sFID's features. images: uint8 (N, C, H, W). about: {} in foreign files."""

    path: Path
    hash: str
    gaussian: Gaussian | None
    spatial: Gaussian | None = None
    images: Tensor | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """For results: which file this was, what it says of itself, and how many images it holds if it is these that
        are compared with."""
        counted = {"images": len(self.images)} if self.gaussian is None and self.images is not None else {}
        return {"file": str(self.path), "sha256": self.hash, **counted, **self.about}


def read_statistics(path: str | Path) -> StatisticsFile:
    """A statistics file. Raises `UserError` for one that is missing or damaged, or holds neither mu nor images."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"reference={path}", "no such file", "give an .npz with mu and sigma, or with arr_0")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            gaussian = _moments(file["mu"], file["sigma"]) if {"mu", "sigma"} <= names else None
            spatial = _moments(file["mu_s"], file["sigma_s"]) if {"mu_s", "sigma_s"} <= names else None
            images = _images(file["arr_0"]) if "arr_0" in names else None
            about = _about(json.loads(str(file["about"]))) if "about" in names else {}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        hint = "expected arrays mu (D,) and sigma (D, D), or images arr_0 (N, H, W, C) uint8"
        raise UserError(str(path), f"is no statistics file ({reason})", hint) from None
    if gaussian is None and images is None:
        what = f"holds {', '.join(sorted(names)) or 'nothing'}"
        raise UserError(str(path), what, "expected mu and sigma, or images as arr_0")
    for part in (gaussian, spatial):
        if part is not None and "images" in about:
            _recount(part, about["images"])
    return StatisticsFile(path, sha256(path), gaussian, spatial, images, about)


def write_statistics(path: str | Path, gaussian: Gaussian, spatial: Gaussian | None, about: dict[str, Any]) -> None:
    """Puts a statistics file in place, whole or not at all. about: see `describe`. Raises `UserError` for other names
    than .npz and for fewer than two images."""
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(str(path), "statistics are kept as .npz", f"name it {path.with_suffix('.npz').name}")
    arrays = {"mu": gaussian.mean, "sigma": gaussian.covariance}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    arrays["about"] = np.array(json.dumps(about | {"images": gaussian.n}, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a name would get ".npz" appended
            np.savez(file, **arrays)  # type: ignore[arg-type]

    atomic_file(path, write)


def describe(encoder: Any) -> dict[str, Any]:
    """What a result or a file says of an encoder."""
    return {
        "encoder": encoder.name,
        "encoder_version": str(getattr(encoder, "version", "")),
        "transform": getattr(encoder, "transform", "none"),
    }


def check_statistics(found: StatisticsFile, encoder: Any, dims: int, data_hash: str | None = None) -> None:
    """Raises `UserError` where a file was made with another encoder, of other dimensions, or of other data.

    dims: numbers the encoder gives an image. data_hash: the content hash of the data asked for, if one was. A file
    that does not tell its encoder or data is taken at its word about dimensions only.
    """
    where, about = f"reference={found.path}", found.about
    for key, mine in (("encoder", encoder.name), ("encoder_version", str(getattr(encoder, "version", "")))):
        if key in about and about[key] != mine:
            what = f"was made with {key.replace('_', ' ')} {about[key]}, this is {mine}"
            raise UserError(where, what, "use that encoder, or write the file again with save_statistics=")
    theirs = about.get("data_hash")
    if data_hash is not None and theirs is not None and theirs != data_hash:
        name = about.get("data", "other data")
        what = f"is of other data than asked for ({name}, {str(theirs)[:8]}; asked for {data_hash[:8]})"
        raise UserError(where, what, "leave data out, or write the file again with save_statistics=")
    if found.gaussian is not None and found.gaussian.dims != dims:
        what = f"holds {found.gaussian.dims} dimensions, encoder {encoder.name} gives {dims}"
        raise UserError(where, what, "use the encoder that it was made with")


def _about(said: Any) -> dict[str, Any]:
    """What a file says of itself, if it is of the kind that `write_statistics` writes."""
    texts = ("data", "data_hash", "split", "encoder", "encoder_version", "transform")
    if not isinstance(said, dict) or not all(isinstance(said[name], str) for name in texts if name in said):
        raise ValueError("its `about` is no description")
    if "images" in said and not (type(said["images"]) is int and 2 <= said["images"] <= MANY):
        raise ValueError(f"its `about` says {said['images']!r:.20} images")
    return said


def _moments(mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not 1 <= len(mean) <= MOST_DIMS:
        raise ValueError(f"mu {mean.shape}, sigma {covariance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("NaN or infinity")
    scale = max(float(np.abs(covariance).max()), 1e-300)
    if np.abs(covariance - covariance.T).max() > 1e-6 * scale or (np.diag(covariance) < 0).any():
        raise ValueError("sigma is no covariance: not symmetric, or negative on its diagonal")
    covariance = (covariance + covariance.T) / 2
    return Gaussian.from_arrays({"n": np.array(MANY), "mean": mean, "scatter": covariance * (MANY - 1)})


def _recount(gaussian: Gaussian, n: int) -> None:
    gaussian.scatter *= (n - 1) / (gaussian.n - 1)
    gaussian.n = n


def _images(rows: np.ndarray) -> Tensor:
    if rows.dtype != np.uint8 or rows.ndim != 4 or len(rows) == 0:
        raise ValueError(f"arr_0 {rows.dtype} {rows.shape}")
    return torch.from_numpy(np.ascontiguousarray(rows.transpose(0, 3, 1, 2)))
