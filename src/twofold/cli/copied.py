"""What `twofold copies` compares: the images with their names, the training images, and the spaces of comparison."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.copies import CopiesSettings
from ..settings.data import DataSettings
from .generated import read_npz
from .history import run_of
from .packed import packed
from .show import say
from .yardstick import by, held_out_of, part_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from ..data import Store
    from ..run import Run

MOST_HELD_OUT = 20_000  # that are calibrated on
LEVEL = 0.05  # sigma at which a run's own features are read where no probe has chosen another one


@dataclass(frozen=True)
class Suspects:
    """ids: names of the images. images: uint8 (N, C, H, W)."""

    ids: list[str]
    images: Tensor


def suspects(path: Path) -> Suspects:
    """The images of a folder, of one that `twofold sample`, `inpaint` or `vary` made, or of an .npz.

    Raises `UserError` for a folder of samples that is not finished, and for what holds no images.
    """
    from ..data import open_store
    from ..generate import manifest

    made = None
    with contextlib.suppress(UserError):  # somebody else's manifest.json
        made = manifest.read(path) if path.is_dir() else None
    if made is not None and not made["complete"]:
        raise UserError(str(path), "its images are not all there yet", "repeat the `twofold sample` that began it")
    if path.is_file() and path.suffix == ".npz":
        images, _ = read_npz(path, "give an .npz with arr_0 uint8 (N, H, W, C)")
        if not len(images):
            raise UserError(str(path), "holds no images", "give some")
        return Suspects(numbered(len(images)), images)
    if made is not None and (path / "images.npz").is_file():
        images, _ = read_npz(path / "images.npz", "delete it and repeat the `twofold sample`")
        names = list(manifest.png_labels(made["request"]))
        return Suspects(names if len(names) == len(images) else numbered(len(images)), images)
    ours = made is not None or (path / "request.json").is_file()
    place = str(path / "images" if ours and (path / "images").is_dir() else path)
    try:
        store = open_store(DataSettings(source=place))
    except UserError as error:  # about what was typed, and there is no size to be chosen
        sizes = "differ in size" in error.what
        hint = "look at one size at a time: a folder for each" if sizes else error.hint
        raise UserError(str(path) if error.where == f"data={place}" else error.where, error.what, hint) from None
    return Suspects([store.id(i) for i in range(len(store))], store.batch(store.indices("all")))


def numbered(n: int) -> list[str]:
    return [f"{i:06d}" for i in range(n)]


@dataclass(frozen=True)
class Real:
    """The training images, each picture once (rows of the store and how often it is there), and new real images."""

    store: Store
    train: np.ndarray
    times: np.ndarray
    held_out: Tensor
    held_out_from: str


def run_and_data(path: Path, settings: CopiesSettings, shape: tuple[int, ...]) -> tuple[Run | None, DataSettings]:
    """The run whose features may be used, and the training images. shape: (C, H, W) of the images looked at.

    Raises `UserError` where no training images are known.
    """
    from ..run import Run

    data = settings.data
    if data is not None and (Path(data.source) / "settings.yaml").is_file():
        given = sorted(data.model_fields_set - {"source"})
        if given:
            what = "is a run, which knows how its images are made ready"
            raise UserError(f"data={data.source}", what, f"leave data.{given[0]} out")
        run = Run.open(data.source)
        return run, run.settings().data
    belongs = run_of(path)
    if data is None:
        if belongs is None:
            raise UserError("data", "not given, and the images come from no run that knows its data", "add data=RUN")
        return belongs, belongs.settings().data
    fitted = {"size": tuple(shape[1:]), "channels": shape[0]}
    missing = {name: value for name, value in fitted.items() if getattr(data, name) is None}
    return belongs, data.model_copy(update=missing)


def real_images(data: DataSettings, settings: CopiesSettings, shape: tuple[int, ...], quiet: bool) -> Real:
    """Raises `UserError` where images are of another shape, or there are none to calibrate on."""
    import numpy as np

    from ..data import spread
    from ..data.duplicates import same

    store = packed(data, quiet)
    if tuple(store.shape) != tuple(shape):
        what = f"its images are {by(store.shape)}, those looked at {by(shape)}"
        raise UserError(f"data={data.source}", what, "set data.size and data.channels, or give the right data")
    rows = part_of(store, "train")
    if not len(rows):
        raise UserError(f"data={data.source}", "has no training images", "give the data that was trained on")
    first = same(np.asarray(store.hashes)[rows])
    kept, times = np.unique(first, return_counts=True)
    if settings.held_out is None:
        part, found = held_out_of(store, 1)
        images, where = store.batch(found[spread(len(found), MOST_HELD_OUT)]), f"the {part} part of the data"
    else:
        unknown = {"source": settings.held_out, "size": store.shape[1:], "channels": store.shape[0]}
        fits = {"fit": data.fit, "background": data.background}
        other = packed(DataSettings.model_validate({**unknown, **fits}), quiet, "packing new real images")
        found = other.indices("all")
        images, where = other.batch(found[spread(len(found), MOST_HELD_OUT)]), settings.held_out
    return Real(store, rows[kept], times, images, where)


class Space:
    """One way to compare images. name: of its encoder. Distances in pixels are rms grey levels, others between
    vectors of length 1."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.name, self.pixels = encoder, encoder.name, encoder.name == "pixels"

    def embed(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> (N, D) float32 on the CPU."""
        from ..measure import embed

        found = embed(self.encoder, images)
        if self.pixels:
            return found * (127.5 / found.shape[1] ** 0.5)
        return found / found.norm(dim=1, keepdim=True).clamp(min=1e-12)


class OwnFeatures:
    """The features of a denoiser as an encoder: those its newest probe chose, else the middle of the network."""

    def __init__(self, model: Any, places: list[tuple[str, float]]) -> None:
        from ..hashing import model_hash
        from ..recognize.reader import Reader

        self.reader = Reader(model, places)
        where = ", ".join(f"{layer} at {sigma:g}" for layer, sigma in places)
        self.name, self.version = f"own features ({where})", model_hash(model)

    def embed(self, images: Tensor) -> Tensor:
        return self.reader.read(images)


def spaces_of(run: Run | None, settings: CopiesSettings, device: torch.device, quiet: bool) -> list[Space]:
    """Pixels, and what the settings ask for besides. Raises `UserError` where it cannot be."""
    from ..measure import encoder

    found = [Space(encoder("pixels"))]
    own = own_features(run, settings, device, quiet) if settings.space in ("auto", "own") else None
    if settings.space == "own" and own is None:
        raise UserError("space=own", "there is no run of a denoiser whose features could be read", "give data=RUN")
    if own is not None:
        found.append(Space(own))
    elif settings.space not in ("auto", "none"):
        found.append(Space(encoder(settings.space, device=device)))
    return found


def own_features(run: Run | None, settings: CopiesSettings, device: torch.device, quiet: bool) -> OwnFeatures | None:
    """Of the run's denoiser; None where there is none."""
    from ..denoiser import Denoiser
    from ..hashing import model_hash
    from ..run import load_probe, load_to_use, newest_probe

    if run is None or not run.model_file.is_file():
        return None
    say("loading the model ...", quiet)
    model: Any = load_to_use(str(run.path), settings.at, device)
    if not isinstance(model, Denoiser):
        return None
    model.eval()
    probe = newest_probe(run.path, model=model_hash(model))
    places = load_probe(probe, device).reader.places if probe else None
    layers = list(model.layers)
    return OwnFeatures(model, list(places or [(layers[len(layers) // 2], max(LEVEL, model.sigma_range[0]))]))


def blocks(space: Space, real: Real, size: int) -> Iterator[Tensor]:
    """The vectors of all training images, a block at a time."""
    for start in range(0, len(real.train), size):
        yield space.embed(real.store.batch(real.train[start : start + size]))
