"""Short names of well-known data sets: where they are on the hub, and how they lie on a disk.

`data=cifar10` is the hub's data set with the right columns, `data=cifar10:FOLDER` the published files in a folder, and
`data=FOLDER` the same where the layout gives itself away. A folder called like a short name is the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..settings.data import OF_LABELS, DataSettings
from ..settings.faces import IBUG68
from . import arrays, celeba, celeba_masks, imagenet, wflw
from .items import Item, Source

Open = Callable[[DataSettings, Path], Source]


@dataclass(frozen=True)
class Layout:
    """How a data set lies on a disk. is_it: whether a folder is laid out so. shown: the same for people."""

    is_it: Callable[[Path], bool]
    open: Open
    shown: str


@dataclass(frozen=True)
class Named:
    """One data set. hub: its id, with the configuration; "": it is not there. columns: settings that its columns need.

    unwanted: splits that are left out because they have no labels. splits: what there is, for people.
    """

    hub: str
    splits: str
    licence: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    unwanted: tuple[str, ...] = ()
    layout: Layout | None = None


def _has(*files: str) -> Callable[[Path], bool]:
    return lambda root: all((root / file).exists() for file in files)


def _has_idx(root: Path) -> bool:
    return any((root / f"train-images{mark}idx3-ubyte{end}").is_file() for mark in "-." for end in ("", ".gz"))


def _is_celeba(root: Path) -> bool:
    has_images = any((root / folder / celeba.IMAGES).is_dir() for folder in ("", "Img"))
    return has_images and celeba.find(root, celeba.ATTRIBUTES) is not None


IDX = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., plain or .gz"
WORDNET = Layout(imagenet.is_imagenet, imagenet.wordnet, "train/<wnid>/*.JPEG, val/<wnid>/*.JPEG or val with a list")
TINY = Layout(
    imagenet.is_tiny_imagenet, imagenet.wordnet, "train/<wnid>/images/*.JPEG, val/images, val/val_annotations.txt"
)
ATTRIBUTES = re.findall(
    r"\S+",
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair "
    "Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male "
    "Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks "
    "Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young",
)

CAMVID = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign_symbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
]

NAMED: dict[str, Named] = {
    "cifar10": Named(
        "uoft-cs/cifar10",
        "50,000 train, 10,000 test",
        "none stated (Krizhevsky 2009)",
        layout=Layout(_has("data_batch_1.bin"), arrays.cifar10, "cifar-10-batches-bin: data_batch_1.bin, ..."),
    ),
    "cifar100": Named(
        "uoft-cs/cifar100",
        "50,000 train, 10,000 test",
        "none stated (Krizhevsky 2009)",
        {"label_column": "fine_label"},
        layout=Layout(
            _has("train.bin", "fine_label_names.txt"), arrays.cifar100, "cifar-100-binary: train.bin, test.bin"
        ),
    ),
    "svhn": Named("ufldl-stanford/svhn:cropped_digits", "73,257 train, 26,032 test", "non-commercial use only"),
    "fashion_mnist": Named(
        "zalando-datasets/fashion_mnist",
        "60,000 train, 10,000 test",
        "MIT",
        layout=Layout(_has_idx, arrays.fashion_mnist, IDX),
    ),
    "mnist": Named(
        "ylecun/mnist",
        "60,000 train, 10,000 test",
        "MIT (as the hub states)",
        layout=Layout(_has_idx, arrays.mnist, IDX),
    ),
    "celeba": Named(
        "flwrlabs/celeba",
        "162,770 train, 19,867 validation, 19,962 test",
        "non-commercial research only (CelebA agreement)",
        {"attribute_columns": ATTRIBUTES},
        layout=Layout(
            _is_celeba, lambda s, root: celeba.CelebA(s, root), "img_align_celeba/*.jpg, list_attr_celeba.txt"
        ),
    ),
    "tiny-imagenet": Named(
        "zh-plus/tiny-imagenet",
        "100,000 train, 10,000 validation",
        "that of ImageNet: non-commercial research",
        layout=TINY,
    ),
    "imagenet": Named(
        "ILSVRC/imagenet-1k",
        "1,281,167 train, 50,000 validation",
        "non-commercial research; asks for your consent",
        unwanted=("test",),
        layout=WORDNET,
    ),
    "celebamask-hq": Named(
        "",
        "24,183 train, 2,993 validation, 2,824 test",
        "non-commercial research and education only (CelebAMask-HQ agreement)",
        layout=Layout(
            celeba_masks.is_celeba_masks,
            lambda s, root: celeba_masks.CelebAMasks(s, root),
            "CelebA-HQ-img/*.jpg, CelebAMask-HQ-mask-anno/*/*.png",
        ),
    ),
    "wflw": Named(
        "",
        "7,500 train, 2,500 test",
        "research only (WFLW; its images are those of WIDER FACE)",
        layout=Layout(
            wflw.is_wflw,
            lambda s, root: wflw.Wflw(s, root),
            "WFLW_images, WFLW_annotations/list_98pt_rect_attr_train_test, or COCO-style annotations/ and images/",
        ),
    ),
    "camvid": Named(
        "",
        "367 train, 101 validation, 233 test",
        "CC BY-NC 4.0, as the SegNet tutorial states (Brostow et al. 2009)",
        {"mask_column": "mask", "mask_classes": CAMVID, "mask_void": len(CAMVID)},
    ),
    "faces68": Named(
        "",
        "3,487 train, 739 test",
        "MIT as its repository states; frames of YouTube Faces, for research",
        {"points_column": "keypoints", "flip_pairs": IBUG68, "group": "identity"},
    ),
}


class WithLicence:
    """A source under a short name: the same images, with the licence among the facts."""

    def __init__(self, source: Source, licence: str, columns: Mapping[str, Any]) -> None:
        self.source, self.name, self.where = source, source.name, source.where
        self._licence, self._columns = licence, columns

    def identity(self) -> str:
        """What the short name sets belongs to it, so that it is never taken for the same name without."""
        return self.source.identity() + (f"\0{json.dumps(dict(self._columns))}" if self._columns else "")

    def classes(self) -> list[str]:
        return self.source.classes()

    def count(self) -> int:
        return self.source.count()

    def left_out(self) -> list[str]:
        return list(self.source.left_out())

    def facts(self) -> dict[str, Any]:
        return {**self.source.facts(), "licence": self._licence}

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        return self.source.items(start, stop)


def recognised(root: Path, settings: DataSettings) -> Source | None:
    """The reader of a published layout that gives itself away. Raises `UserError` for one that cannot be read."""
    refuse_unreadable(root, f"data={settings.source}")
    for named in NAMED.values():
        # idx files do not say which of the two sets of digits and clothes they are: classes are then called 0 to 9
        if named.layout is not None and named.layout.open is not arrays.fashion_mnist and named.layout.is_it(root):
            return named.layout.open(settings, root)
    return None


def refuse_unreadable(root: Path, where: str) -> None:
    """Raises `UserError` for published files that are not read, with what to use instead."""
    for name in ("cifar10", "cifar100"):
        files = ("data_batch_1", "batches.meta") if name == "cifar10" else ("train", "test", "meta")
        if all((root / file).is_file() for file in files):
            raise UserError(
                where,
                "holds CIFAR's Python version: pickled files, which can run any code and are not read",
                f"download the binary version, or use the hub: data={name}",
            )
    if (root / "train_32x32.mat").is_file():
        raise UserError(where, "holds SVHN's .mat files, which are not read", "use the hub: data=svhn")


def defaults(named: Named, settings: DataSettings) -> tuple[DataSettings, dict[str, Any]]:
    """The settings with what the hub's columns need, and what that was; what the user has set stays."""
    unwanted = OF_LABELS if settings.images_only else ()
    given = {
        name: value for name, value in named.columns.items() if getattr(settings, name) is None and name not in unwanted
    }
    return settings.model_copy(update=given), given
