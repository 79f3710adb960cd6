"""Images made for a test: shapes with their masks, pairs of discs with their centres; and runs that learn them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import TINY

SIDE = 32
SMALL = {"kind": "resnet", "blocks": [1, 1, 1], "channels": 8}


def shapes(folder: Path, count: int = 48) -> Path:
    """Images with a red disc (class 1) and a green square (class 2) on grey, a frame of void; folders of each part."""
    random, (y, x) = np.random.default_rng(0), np.mgrid[:SIDE, :SIDE]
    for i in range(count):
        image = random.integers(90, 130, (SIDE, SIDE, 3), dtype=np.uint8)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        a, b, c, d = random.integers(6, SIDE - 6, 4)
        disc, square = (x - a) ** 2 + (y - b) ** 2 <= 25, np.maximum(abs(x - c), abs(y - d)) <= 4
        image[disc], mask[disc] = (220, 40, 40), 1
        image[square], mask[square] = (40, 220, 40), 2
        mask[0] = 255
        part = "train" if i % 3 else "val"
        for name, array in (("images", image), ("masks", mask)):
            (folder / name / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / name / part / f"{i:03d}.png")
    return folder


def pairs(folder: Path, count: int = 48) -> Path:
    """Grey images of two white discs, the points, the left one being point 0; the third point, an empty spot, is seldom
    there."""
    random, (y, x) = np.random.default_rng(0), np.mgrid[:SIDE, :SIDE]
    for i in range(count):
        image = random.integers(0, 60, (SIDE, SIDE), dtype=np.uint8)
        middle, height = random.uniform(13, 19), random.uniform(8, 24, 2)
        points = [[middle - 7, height[0]], [middle + 7, height[1]]]
        for px, py in points:
            image[(x - px) ** 2 + (y - py) ** 2 <= 9] = 250
        part = "train" if i % 3 else "val"
        for name in ("images", "points"):
            (folder / name / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "images" / part / f"{i:03d}.png")
        third = [middle, 16.0] if i % 4 == 0 else [None, None]
        (folder / "points" / part / f"{i:03d}.json").write_text(json.dumps([*points, third]))
    return folder


def of_task(kind: str, folder: Path, head: dict[str, Any], loop: dict[str, Any], **more: Any) -> TrainSettings:
    """Settings of a small student of the task `kind` on what `shapes` or `pairs` made."""
    about = {"mask_classes": ["ground", "disc", "square"]} if kind == "segmentation" else {"flip_pairs": [[0, 1]]}
    own = {
        "data": {"source": str(folder), **about},
        "network": {"kind": "student", "backbone": SMALL, "head": head},
        "objective": {"kind": kind},
        "train": {**TINY["train"], "save_images": 10**6, "validate_images": 10**6, "preview_images": 10**6, **loop},
        "validation": {"max_images": 32, "samples": 0},
    }
    return resolve(TrainSettings, [("task", own), ("test", more)])[0]
