"""What `data=SOURCE` may be; each becomes a stream of items.

digits, a folder (images, Parquet, Arrow or tar files, a published layout), one file of these kinds or an .npz, a
pattern, a short name such as cifar10 or cifar10:FOLDER, a hub name.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import UserError
from ..files import nearest_path
from ..settings.data import DataSettings
from . import hub
from .arrays import digits
from .arrow import ArrowShard, is_saved, saved
from .beside import images_root
from .decode import RESAMPLING
from .folder import ImageFolder
from .items import Source
from .joined import Joined, WithGenerated, named, sampled
from .named import NAMED, WithLicence, defaults, recognised, refuse_unreadable
from .npz import SUFFIX as NPZ_SUFFIX
from .npz import Npz
from .tables import TableFiles
from .walking import ARROW_SUFFIX, IMAGE_SUFFIXES, TABLE_SUFFIX, TAR_SUFFIX, scan
from .webdataset import WebDataset
from .wflw import Wflw

FORMAT = 1  # of the packed store: stores of another format are packed again
KINDS = (
    "digits, a folder of images, Parquet, Arrow or tar files, one such file, an .npz file, a short name "
    f"({', '.join(NAMED)}), or a hub name such as org/name"
)
PIXEL_SETTINGS = ("size", "fit", "channels", "background", "image_column", "label_column", "on_bad_image")
# these came later: a store that was packed without them keeps its name as long as they are not set
LATER_SETTINGS = (
    *("attribute_columns", "mask_column", "mask_classes", "mask_void", "points_column", "flip_pairs", "pair_column"),
    *("group", "most", "mask_flip_pairs", "points_outside", "padding"),
)
ARCHIVES = (".zip", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


def open_source(settings: DataSettings) -> Source:
    """The source that `settings.source` names, with the images of `unlabelled` and `generated`; reads no image.

    Raises `UserError` where there is nothing of that name or its layout is ambiguous.
    """
    found = _open(settings)
    if settings.unlabelled is not None:
        with named("unlabelled", settings.unlabelled):
            second = _open(settings.of_unlabelled())
        found = Joined(found, second, settings.unlabelled)
    if settings.generated is not None:
        made = settings.of_generated(sampled(settings.generated))
        with named("generated", made.source):
            second = _open(made)
        found = WithGenerated(found, second, made.source, settings.labels is not None)
    return found


def _open(settings: DataSettings) -> Source:
    """One source."""
    found = next((source for opener in OPENERS if (source := opener(settings)) is not None), None)
    if found is None:
        hint = _like(Path(settings.source).expanduser()) or f"valid: {KINDS}"
        raise UserError(f"data={settings.source}", "there is no such file or folder", hint)
    is_hub = isinstance(getattr(found, "source", found), hub.Hub)
    if settings.streaming and not is_hub and not settings.images_only:
        raise UserError("data.streaming=true", f"{found.where} is on this machine", "only hub data can be streamed")
    if settings.padding is not None and not isinstance(getattr(found, "source", found), Wflw):
        what = f"{found.where} has no boxes of faces"
        raise UserError(f"data.padding={settings.padding:g}", what, "leave it out; it is about WFLW")
    return found


def fingerprint(settings: DataSettings) -> str:
    """Names the packed store of these settings: 64 hex digits over the source's identity and what shapes its pixels.

    A source's identity is the names, sizes and modification times of its files, not their contents. How the images
    are split, flipped or used does not change it.
    """
    return fingerprint_of(open_source(settings), settings)


def fingerprint_of(source: Source, settings: DataSettings) -> str:
    """The same for a source that is open already."""
    pixels = {name: getattr(settings, name) for name in PIXEL_SETTINGS}
    pixels |= {name: value for name in LATER_SETTINGS if (value := getattr(settings, name)) is not None}
    text = json.dumps([FORMAT, RESAMPLING, source.identity(), pixels], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


# -- one kind after the other: a source, or None where the name is of another kind -----------------------------------


def _digits(settings: DataSettings) -> Source | None:
    return digits(settings) if settings.source == "digits" else None


def _pattern(settings: DataSettings) -> Source | None:
    """data=folder/train-*.parquet"""
    path = Path(settings.source).expanduser()
    if not glob.has_magic(settings.source) or path.exists():
        return None
    matching = sorted(glob.glob(str(path)))
    kinds = {suffix: [file for file in matching if file.lower().endswith(suffix)] for suffix in FILES}
    suffix, files = next(((suffix, files) for suffix, files in kinds.items() if files), ("", []))
    if not files:
        what = "no Parquet, Arrow or tar file matches this pattern"
        raise UserError(f"data={settings.source}", what, f"valid: {KINDS}")
    folders = {str(Path(file).parent) for file in files}
    if len(folders) > 1:
        raise UserError(f"data={settings.source}", "this pattern matches files in several folders", "give their folder")
    return FILES[suffix](settings, Path(folders.pop()), [Path(file).name for file in files])


def _folder(settings: DataSettings) -> Source | None:
    path = Path(settings.source).expanduser()
    return _in_folder(settings, path) if path.is_dir() else None


def _file(settings: DataSettings) -> Source | None:
    path = Path(settings.source).expanduser()
    if not path.is_file():
        return None
    name, where = path.name.lower(), f"data={settings.source}"
    for suffix, opener in FILES.items():
        if name.endswith(suffix):
            return opener(settings, path.parent, [path.name])
    if name.endswith(NPZ_SUFFIX):
        return Npz(settings, path)
    if name.endswith(IMAGE_SUFFIXES):
        raise UserError(where, "is one image", f"give the folder it is in: data={path.parent}")
    if name.endswith(ARCHIVES):
        raise UserError(where, "is an archive", "unpack it and give the folder")
    raise UserError(where, "this kind of file is not a source of images", f"valid: {KINDS}")


def _short_name(settings: DataSettings) -> Source | None:
    """cifar10 from the hub, or cifar10:FOLDER in the layout it is published in, or as tables of the hub's columns."""
    name, colon, place = settings.source.partition(":")
    if name not in NAMED:
        return None
    named, where = NAMED[name], f"data={settings.source}"
    adjusted, given = defaults(named, settings)
    if not colon and not named.hub:
        hint = f"give the folder it is in: data={name}:FOLDER"
        raise UserError(where, "this data set is not on the hub", hint)
    if not colon:
        at_hub = adjusted.model_copy(update={"source": named.hub})
        return WithLicence(hub.Hub(at_hub, unwanted=named.unwanted), named.licence, given)
    path = Path(place).expanduser()
    if not place:
        other = f", or data={name} for the hub's" if named.hub else ""
        raise UserError(where, "names no folder", f"data={name}:FOLDER{other}")
    if not path.is_dir():
        raise UserError(where, f"there is no folder {place!r}", "" if path.exists() else _like(path))
    refuse_unreadable(path, where)
    if named.layout is not None and named.layout.is_it(path):
        return WithLicence(named.layout.open(settings, path), named.licence, {})
    found = scan(path)
    if is_saved(path) or found.tables or found.arrows or (found.images and name in ("imagenet", "tiny-imagenet")):
        return WithLicence(_in_folder(adjusted, path), named.licence, given)
    shown = [named.layout.shown] if named.layout else []
    shown += ["Parquet files of the hub" if named.hub else "Parquet files"] if named.hub or named.columns else []
    what = f"this folder is not laid out as {name} is published"
    raise UserError(where, what, f"expected: {'; or '.join(shown)}")


def _hub(settings: DataSettings) -> Source | None:
    path = Path(settings.source).expanduser()
    if not hub.NAME.fullmatch(settings.source) or path.parent.is_dir():
        return None
    return hub.Hub(settings, _like(path))


OPENERS: tuple[Callable[[DataSettings], Source | None], ...] = (_digits, _pattern, _folder, _file, _short_name, _hub)


def _in_folder(settings: DataSettings, path: Path) -> Source:
    """A published layout, a saved data set, images, or files of one kind."""
    if (known := recognised(path, settings)) is not None:
        return known
    if is_saved(path):
        return saved(settings, path)
    if images_root(path) != path:
        return ImageFolder(path, settings)
    found = scan(path)
    where = f"data={settings.source}"
    kinds = {TABLE_SUFFIX: found.tables, ARROW_SUFFIX: found.arrows, TAR_SUFFIX: found.tars}
    there = [suffix for suffix, files in kinds.items() if files]
    if found.images and there:
        name = {TABLE_SUFFIX: "Parquet", ARROW_SUFFIX: "Arrow", TAR_SUFFIX: "tar"}[there[0]]
        what = f"holds both images ({found.images}) and {name} files ({kinds[there[0]][0]})"
        raise UserError(where, what, "keep one kind in it")
    if not there:
        return ImageFolder(path, settings, found)
    if len(there) > 1:
        names = " and ".join(kinds[suffix][0] for suffix in there)
        raise UserError(where, f"holds files of several kinds ({names})", "keep one kind in it")
    return FILES[there[0]](settings, path, kinds[there[0]])


def _arrow_files(settings: DataSettings, root: Path, files: Sequence[str]) -> Source:
    return TableFiles(settings, root, files, ArrowShard)


FILES: dict[str, Callable[[DataSettings, Path, Sequence[str]], Source]] = {
    TABLE_SUFFIX: TableFiles,
    ARROW_SUFFIX: _arrow_files,
    TAR_SUFFIX: WebDataset,
}


def _like(path: Path) -> str:
    """A hint naming a short name, or a path, that is most like one that does not exist; "" where nothing is."""
    return nearest_path(path, ["digits", *NAMED])
