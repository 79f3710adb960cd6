"""What twofold learns from: sources of images, the packed store, its splits, the order of training, augmentation.

The augmentation itself is `twofold.data.augment.augment`.
"""

from .augment import AUGMENT_DRAWS, AUGMENT_LABELS, flip
from .decode import BadImage, decode
from .describe import describe, notes, unreadable
from .items import SPLITS, Item, Source
from .order import ImageOrder, image_order, spread
from .pack import cache_root
from .sources import fingerprint, open_source
from .store import Store, open_store
from .stream import Streamed, open_images, stream
from .subsets import label_subsets, labels_csv, write_labels

__all__ = [
    "AUGMENT_DRAWS",
    "AUGMENT_LABELS",
    "SPLITS",
    "BadImage",
    "ImageOrder",
    "Item",
    "Source",
    "Store",
    "Streamed",
    "cache_root",
    "decode",
    "describe",
    "fingerprint",
    "flip",
    "image_order",
    "label_subsets",
    "labels_csv",
    "notes",
    "open_images",
    "open_source",
    "open_store",
    "spread",
    "stream",
    "unreadable",
    "write_labels",
]
