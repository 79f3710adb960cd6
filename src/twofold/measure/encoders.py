"""Encoders: images to the vectors that distances are measured between.

An encoder has a `name`, which every result carries, and a `version`, which changes whenever the same image would get
another vector (other weights, other scaling), so that stored statistics are never mixed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import taps
from ..codec import PixelCodec
from ..denoiser import Classifier, Encoder
from ..errors import UserError, nearest
from ..hashing import weights_hash
from ..taps import Layer
from . import processes
from .frechet import MOST_DIMS


class PixelEncoder:
    """The pixels themselves, in [-1, 1], row by row. Needs no weights; sees brightness and layout, not meaning.

    size: average down to size x size pixels first (a covariance of 3 x 32 x 32 pixels has 9.4 million entries).
    name: "pixels", or "pixels8" for size 8.
    """

    version = "1"

    def __init__(self, size: int | None = None) -> None:
        if size is not None and size < 1:
            raise UserError(f"size={size}", "not a number of pixels", "1 or more")
        self.size = size
        self.name = "pixels" if size is None else f"pixels{size}"

    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C * H * W). Raises `UserError` where size would enlarge the images."""
        x0 = PixelCodec().encode(images)
        if self.size is not None:
            if self.size > min(x0.shape[-2:]):
                raise UserError(
                    f"size={self.size}", f"larger than the images ({x0.shape[-2]} x {x0.shape[-1]})", "leave it out"
                )
            x0 = functional.interpolate(x0, size=(self.size, self.size), mode="area")
        return x0.flatten(1)


class ClassifierEncoder:
    """The last feature layer of a trained classifier: images are near when the classifier sees the same in them.

    classifier: a `Classifier` that is a module with a layer table (`twofold.networks`' ConvNet); its last layer is
    read and averaged over positions. name: "convnet". version: a hash of the weights.
    Raises `UserError` where the classifier has no layers.
    """

    name = "convnet"

    def __init__(self, classifier: Classifier) -> None:
        layers: Mapping[str, Layer] = getattr(classifier, "layers", {})
        if not layers or not isinstance(classifier, nn.Module):
            raise UserError("encoder=convnet", f"{type(classifier).__name__} has no layers to read", "use pixels")
        self.classifier = classifier
        self.layer = list(layers)[-1]
        self.version = weights_hash(classifier)

    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, D), in evaluation mode, on the classifier's device."""
        layers: Mapping[str, Layer] = self.classifier.layers  # type: ignore[attr-defined, assignment]
        with _evaluating(self.classifier) as device:
            x0 = PixelCodec().encode(images.to(device))
            found = taps.read(lambda: self.classifier.logits(x0, 0.0), layers, [self.layer])
        features = found[self.layer].float()
        return features if features.ndim == 2 else features.flatten(2).mean(2)


@contextmanager
def _evaluating(model: object) -> Iterator[torch.device]:
    """No gradients, evaluation mode if it is a module, and the device its images belong on."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    weight = next(module.parameters(), None)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield torch.device("cpu") if weight is None else weight.device
    finally:
        for part, training in modes:
            part.training = training


ENCODERS = {"pixels": PixelEncoder, "convnet": ClassifierEncoder}
PRETRAINED = ("inception", "transformers:ORG/NAME", "cls:ORG/NAME")
CLASS_TOKENS = re.compile(r"cls(\d*):")  # cls4: those of the last four blocks


def encoder(
    name: str,
    classifier: Classifier | None = None,
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Encoder:
    """The encoder a setting names: "pixels", "pixels8" (averaged down to 8 x 8), "convnet" of a classifier,
    "inception" (FID's network), "transformers:ORG/NAME" (any image model there, or a local folder of one), or
    "cls:ORG/NAME" (the class token of a vision transformer; also a file of MSN's; see `class_tokens`).

    weights: a file for "inception". device: where a pretrained network computes. Raises `UserError` for a name that
    does not exist, for "convnet" without a classifier, and for a pretrained network that cannot be loaded.
    """
    if weights is not None and name != "inception":
        raise UserError(f"weights={weights}", f"encoder={name} reads no file of weights", "use encoder=inception")
    if name == "convnet":
        if classifier is None:
            raise UserError("encoder=convnet", "no classifier was given", "name the run of one, or use encoder=pixels")
        return ClassifierEncoder(classifier)
    if name == "inception":
        from .inception import InceptionEncoder

        return InceptionEncoder(weights, device)
    if name.startswith("transformers:"):
        from .pretrained import TransformersEncoder

        return TransformersEncoder(name.removeprefix("transformers:"), device)
    if tokens := CLASS_TOKENS.match(name):
        from .class_tokens import ClassTokenEncoder

        return ClassTokenEncoder(name[tokens.end() :], int(tokens[1] or 1), device)
    size = name.removeprefix("pixels")
    if name == "pixels" or (name.startswith("pixels") and size.isdecimal()):
        return PixelEncoder(int(size) if size else None)
    raise UserError(f"encoder={name}", "no such encoder", nearest(name, [*ENCODERS, *PRETRAINED]))


def fits(name: str, shape: tuple[int, int, int]) -> str:
    """The encoder nearest to the one named whose vectors of images (C, H, W) a Frechet distance can take.

    "pixels" (or "auto", which means it) where they have at most `MOST_DIMS` numbers, otherwise "pixels<k>" with the
    largest k that has. "pixels<n>" stays where n is no larger than k. Names without a number of pixels stay as they
    are. Raises `UserError` for a name that does not exist and for images of too many channels.
    """
    name = "pixels" if name == "auto" else name
    if name in ("convnet", "inception") or name.startswith("transformers:") or CLASS_TOKENS.match(name):
        return name
    size, (c, h, w) = getattr(encoder(name), "size", None), shape
    if size is None and c * h * w <= MOST_DIMS:
        return name
    largest = min(h, w, math.isqrt(MOST_DIMS // c))
    if largest < 1:
        raise UserError(f"encoder={name}", f"images of {c} channels", f"at most {MOST_DIMS}, or encoder=convnet")
    return name if size is not None and size <= largest else f"pixels{largest}"


def check_fits(name: str, shape: tuple[int, int, int]) -> str:
    """`fits` for "auto"; any other name is returned as it is, or raises `UserError` saying which one to use instead."""
    found = fits(name, shape)
    if name in ("auto", found):
        return found
    c, h, w = shape
    if (getattr(encoder(name), "size", None) or 0) > min(h, w):
        raise UserError(f"encoder={name}", f"larger than the images ({h} x {w})", f"use encoder={found}")
    what = f"a Frechet distance takes at most {MOST_DIMS} numbers an image; the images are {c} x {h} x {w}"
    raise UserError(f"encoder={name}", what, f"use encoder={found}, which averages them down")


def embed(encoder: Encoder, images: Tensor, batch: int = 512, share: bool = False) -> Tensor:
    """All images, batch by batch: uint8 (N, C, H, W) -> float32 (N, D) on the CPU.

    batch: where the encoder has no `batch` of its own. share: every process of a torchrun calls this with the same
    images; they share the batches and all get the result, with the same bits as one process.
    Raises `UserError` unless images is a non-empty uint8 tensor (N, C, H, W).
    """
    check_images(images)
    size = getattr(encoder, "batch", batch)
    return processes.gathered(len(images), size, lambda part: encoder.embed(images[part]).float(), share)


def probabilities(classifier: Classifier, images: Tensor, batch: int = 512) -> Tensor:
    """What a classifier makes of clean images: uint8 (N, C, H, W) -> (N, K) float64 on the CPU. Rows sum to 1, but of
    a classifier that is `multi_label` each is the probability of a yes by itself.

    Raises `UserError` unless images is a non-empty uint8 tensor (N, C, H, W).
    """
    found = image_logits(classifier, images, batch)
    return found.sigmoid() if getattr(classifier, "multi_label", False) else found.softmax(1)


def image_logits(classifier: Classifier, images: Tensor, batch: int = 512) -> Tensor:
    """The logits that `probabilities` are made of: (N, K) float64 on the CPU. Raises `UserError` as it does."""
    check_images(images)
    by_pixels = getattr(classifier, "image_logits", None)  # of those that see more in an image than its x0
    codec = getattr(classifier, "codec", None) or PixelCodec()
    with _evaluating(classifier) as device:
        parts = [
            by_pixels(part) if by_pixels else classifier.logits(codec.encode(part.to(device)), 0.0)
            for part in images.split(batch)
        ]
    return torch.cat([part.cpu().double() for part in parts])


def check_images(images: Tensor, where: str = "images") -> None:
    """Raises `UserError` unless images is a non-empty uint8 tensor (N, C, H, W)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        raise UserError(where, f"{images.dtype} of shape {tuple(images.shape)}", "expected uint8 (images, C, H, W)")
