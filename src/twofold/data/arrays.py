"""Sources that are arrays of pixels already: scikit-learn's digits, CIFAR's binary files, MNIST's idx files.

CIFAR-10: records of 1 label byte and 3072 pixels (1024 red, green, blue); CIFAR-100: a coarse and a fine label byte
(Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html). idx: two zero bytes, 8 for unsigned bytes, the number of
axes, the axes as big-endian 32-bit integers, the values (LeCun, http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError, nearest
from ..settings.data import DataSettings
from .annotations import COLUMNS, refuse
from .items import Item, limited, spans
from .tables import digest_of

SIDE = 32  # of CIFAR's images
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10_FILES = {**{f"data_batch_{i}.bin": "train" for i in range(1, 6)}, "test_batch.bin": "test"}
CIFAR100_FILES = {"train.bin": "train", "test.bin": "test"}
IDX_FILES = {"train": "train", "t10k": "test"}


class Part(NamedTuple):
    """Some of the images. load(first, last) gives uint8 (n, H, W[, 3]) and their labels (n,)."""

    name: str
    split: str | None
    rows: int
    load: Callable[[int, int], tuple[np.ndarray, np.ndarray]]


class Arrays:
    """Parts of one array source. Settings that name columns are refused, except those in `allowed`."""

    def __init__(
        self,
        settings: DataSettings,
        name: str,
        identity: str,
        classes: Sequence[str],
        parts: Sequence[Part],
        allowed: Sequence[str] = (),
    ) -> None:
        self.name, self.where = name, f"data={settings.source}"
        self._identity, self._classes, self._parts = identity, list(classes), parts
        self._images_only = settings.images_only
        self._rows = limited([part.rows for part in parts], [part.split for part in parts], settings)
        refused = [field for field in (*COLUMNS, "group") if field not in allowed]
        refuse(settings, refused, self.where, "has no columns", "only Parquet and hub data have")

    def identity(self) -> str:
        return self._identity

    def classes(self) -> list[str]:
        return self._classes

    def count(self) -> int:
        return sum(self._rows)

    def left_out(self) -> list[str]:
        return []

    def facts(self) -> dict[str, Any]:
        return {}

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        for i, first, last in spans(self._rows, start, stop):
            part = self._parts[i]
            images, labels = part.load(first, last)
            for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True), first):
                if self._images_only:
                    label = -1
                if not -1 <= label < len(self._classes):
                    what = f"its label is {label}, but there are {len(self._classes)} classes"
                    raise UserError(f"{self.where}: {part.name}:{row}", what, "download the file again")
                yield Item(f"{part.name}:{row}", image, label, part.split)


def digits(settings: DataSettings) -> Arrays:
    """scikit-learn's handwritten digits (UCI): 1797 grey images of 8x8, 16 levels of grey spread over 0..255."""

    def load(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits

        found = load_digits()
        return np.rint(found.images[first:last] * (255 / 16)).astype(np.uint8), found.target[first:last]

    part = Part("digits", None, 1797, load)
    return Arrays(settings, "digits", "sklearn.datasets.load_digits", [str(digit) for digit in range(10)], [part])


# -- CIFAR -------------------------------------------------------------------------------------------------------------


def cifar10(settings: DataSettings, root: Path) -> Arrays:
    """cifar-10-batches-bin."""
    names = _lines(root / "batches.meta.txt") or CIFAR10
    parts = [_cifar(root / file, split, labels=1, column=0) for file, split in _there(root, CIFAR10_FILES).items()]
    identity = f"cifar\0{root.resolve()}\0{digest_of(root, CIFAR10_FILES)}"
    return Arrays(settings, root.resolve().name, identity, names, parts)


def cifar100(settings: DataSettings, root: Path) -> Arrays:
    """cifar-100-binary; data.label_column is fine_label (default) or coarse_label."""
    columns, wanted = ("coarse_label", "fine_label"), settings.label_column or "fine_label"
    if wanted not in columns:
        where = f"data={settings.source}"
        raise UserError(f"data.label_column={wanted}", f"{where} has no such column", nearest(wanted, columns))
    names = _lines(root / f"{wanted}_names.txt")
    if not names:
        raise UserError(str(root / f"{wanted}_names.txt"), "is not there", "it names the classes; copy it as well")
    files = _there(root, CIFAR100_FILES)
    parts = [_cifar(root / file, split, 2, columns.index(wanted)) for file, split in files.items()]
    identity = f"cifar\0{root.resolve()}\0{digest_of(root, CIFAR100_FILES)}"
    return Arrays(settings, root.resolve().name, identity, names, parts, allowed=["label_column"])


def _there(root: Path, files: dict[str, str]) -> dict[str, str]:
    for file in files:
        if not (root / file).is_file():
            raise UserError(str(root / file), "is not there", f"this data set has the files {', '.join(files)}")
    return files


def _cifar(path: Path, split: str, labels: int, column: int) -> Part:
    size, record = path.stat().st_size, labels + 3 * SIDE**2
    if size % record:
        raise UserError(str(path), f"its {size:,} bytes are no multiple of {record}", "download it again")

    def load(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        values = np.fromfile(path, np.uint8, (last - first) * record, offset=first * record).reshape(-1, record)
        pixels = values[:, labels:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(pixels), values[:, column].astype(np.int64)

    return Part(path.name, split, size // record, load)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").split("\n") if line.strip()] if path.is_file() else []


# -- idx ---------------------------------------------------------------------------------------------------------------


def mnist(settings: DataSettings, root: Path) -> Arrays:
    """The four idx files of MNIST or Fashion-MNIST, plain or .gz; their classes are 0 to 9."""
    return idx(settings, root, [str(digit) for digit in range(10)])


def fashion_mnist(settings: DataSettings, root: Path) -> Arrays:
    """The same files with the names of Fashion-MNIST."""
    return idx(settings, root, FASHION)


def idx(settings: DataSettings, root: Path, classes: Sequence[str]) -> Arrays:
    parts, used = [], []
    for prefix, split in IDX_FILES.items():
        images, labels = (_idx_file(root, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        shape, others = _idx_shape(images, 3), _idx_shape(labels, 1)
        if shape[0] != others[0]:
            what = f"holds {others[0]} labels, but {images.name} {shape[0]} images"
            raise UserError(str(labels), what, "download both again")
        parts.append(Part(f"{prefix}-images", split, shape[0], _idx_reader(images, labels)))
        used += [images.name, labels.name]
    identity = f"idx\0{root.resolve()}\0{digest_of(root, used)}"
    return Arrays(settings, root.resolve().name, identity, classes, parts)


def _idx_file(root: Path, name: str) -> Path:
    """The file as it is, packed, or with a dot, as one of the mirrors writes it."""
    names = (name, f"{name}.gz", name.replace("-idx", ".idx"), name.replace("-idx", ".idx") + ".gz")
    found = next((root / file for file in names if (root / file).is_file()), None)
    if found is None:
        raise UserError(str(root / name), "is not there, neither plain nor as .gz", "this data set has four idx files")
    return found


def _idx_reader(images: Path, labels: Path) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
    read = lru_cache(maxsize=2)(_idx)  # kept, since a packed file can only be read from its front

    def load(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        return read(images, 3)[first:last], read(labels, 1)[first:last].astype(np.int64)

    return load


def _idx_shape(path: Path, axes: int) -> tuple[int, ...]:
    """The shape that the header says. Raises `UserError` where it is no idx file of unsigned bytes."""
    try:
        with _opened(path) as file:
            header = file.read(4 + 4 * axes)
    except (OSError, EOFError, zlib.error) as error:
        raise _no_idx(path, str(error)) from error
    if len(header) < 4 + 4 * axes or header[:4] != bytes([0, 0, 8, axes]):
        raise _no_idx(path, f"it does not begin with 0 0 8 {axes}")
    return tuple(int(n) for n in np.frombuffer(header, ">u4", axes, 4))


def _idx(path: Path, axes: int) -> np.ndarray:
    """All values of a file."""
    shape = _idx_shape(path, axes)
    try:
        with _opened(path) as file:
            values = np.frombuffer(file.read(), np.uint8, offset=4 + 4 * axes)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _no_idx(path, str(error)) from error
    if len(values) != np.prod(shape):
        raise _no_idx(path, f"it holds {len(values):,} values instead of {np.prod(shape):,}")
    return values.reshape(shape)


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _no_idx(path: Path, reason: str) -> UserError:
    return UserError(str(path), f"cannot be read as idx ({reason})", "download it again")
