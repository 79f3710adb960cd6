"""Train one denoiser on your images; it generates and it recognizes.

    denoiser = twofold.load("runs/digits-1a2b3c4d")
    images = twofold.sample(denoiser, seeds=range(16))

Every name below is imported when it is first used, so `import twofold` costs nothing and loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what type checkers and editors see; `_TABLE` is what runs
    from .codec import Codec, PixelCodec
    from .data import Store, open_store
    from .denoiser import Classifier, Denoiser, Encoder, JointDenoiser, NetworkDenoiser, State
    from .errors import UserError
    from .generate.edit import Edited, edit
    from .generate.inpaint import inpaint
    from .generate.sample import sample
    from .generate.upscale import upscale
    from .generate.vary import vary
    from .learn.fewlabel.estimator import FewLabelClassifier
    from .learn.training import train
    from .noise import Family, family
    from .oracle import MixtureDenoiser
    from .recognize.anomaly import AnomalyDetector
    from .recognize.likelihood import bits_per_dimension
    from .recognize.zero_shot import ZeroShotClassifier
    from .run.features import DiffusionFeatures
    from .run.folder import Run
    from .run.load import load
    from .taps import Layer

_TABLE = {
    "AnomalyDetector": "recognize.anomaly",
    "Classifier": "denoiser",
    "Codec": "codec",
    "Denoiser": "denoiser",
    "DiffusionFeatures": "run.features",
    "Edited": "generate.edit",
    "Encoder": "denoiser",
    "Family": "noise",
    "FewLabelClassifier": "learn.fewlabel.estimator",
    "JointDenoiser": "denoiser",
    "Layer": "taps",
    "MixtureDenoiser": "oracle",
    "NetworkDenoiser": "denoiser",
    "PixelCodec": "codec",
    "Run": "run",
    "State": "denoiser",
    "Store": "data",
    "UserError": "errors",
    "ZeroShotClassifier": "recognize.zero_shot",
    "bits_per_dimension": "recognize.likelihood",
    "edit": "generate.edit",
    "family": "noise",
    "inpaint": "generate.inpaint",
    "load": "run",
    "open_store": "data",
    "sample": "generate",
    "train": "learn",
    "upscale": "generate.upscale",
    "vary": "generate.vary",
}

__all__ = [  # noqa: RUF022 (sorted as the table is)
    "__version__",
    "AnomalyDetector",
    "Classifier",
    "Codec",
    "Denoiser",
    "DiffusionFeatures",
    "Edited",
    "Encoder",
    "Family",
    "FewLabelClassifier",
    "JointDenoiser",
    "Layer",
    "MixtureDenoiser",
    "NetworkDenoiser",
    "PixelCodec",
    "Run",
    "State",
    "Store",
    "UserError",
    "ZeroShotClassifier",
    "bits_per_dimension",
    "edit",
    "family",
    "inpaint",
    "load",
    "open_store",
    "sample",
    "train",
    "upscale",
    "vary",
]


def __getattr__(name: str) -> Any:
    if name not in _TABLE:
        raise AttributeError(f"module 'twofold' has no attribute {name!r}; it has {', '.join(_TABLE)}")
    value = getattr(importlib.import_module(f".{_TABLE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
