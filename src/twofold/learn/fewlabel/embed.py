"""What reads the features of an experiment: a denoiser at some layers and noise levels, or a frozen encoder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...denoiser import Denoiser
from ...errors import UserError
from ...hashing import model_hash
from ...measure.encoders import encoder
from ...recognize.encoded import FILE as ENCODED
from ...recognize.encoded import EncodedFacts, save_encoded
from ...recognize.learned import Learned
from ...recognize.probe import ProbeFacts, save_probe
from ...recognize.reader import Reader
from ...run import load
from ...run.load import PROBE
from ...settings.fewlabel import EncoderFeatures, OwnFeatures
from ..fastest import DTYPES
from .subject import Subject


class Embedder(Protocol):
    """What turns images into features."""

    @property
    def facts(self) -> dict[str, Any]:
        """Everything its numbers depend on, as plain data."""
        ...

    def embed(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> (N, D) float32 on the CPU."""
        ...

    def save(self, folder: Path, learned: Learned, subject: Subject) -> None:
        """Writes a classifier that `twofold predict` understands into a folder."""
        ...


@dataclass
class OfDenoiser:
    """Features of a denoiser. source: where it is. name: a hash of it. precision: of its numbers."""

    reader: Reader
    source: str
    name: str
    pool: str
    precision: str

    @property
    def facts(self) -> dict[str, Any]:
        r = self.reader
        return {
            "model": self.name,
            "places": [list(p) for p in r.places],
            "pool": self.pool,
            "draws": r.draws,
            "seed": r.views.seed,
            "precision": self.precision,
        }

    def embed(self, images: Tensor) -> Tensor:
        return self.reader.read(images)

    def save(self, folder: Path, learned: Learned, subject: Subject) -> None:
        data, r = subject.store.settings, self.reader
        there = Path(self.source).exists()
        facts = ProbeFacts(
            kind=learned.kind,
            places=r.places,
            pool=self.pool,
            clean=False,
            draws=r.draws,
            seed=r.views.seed,
            classes=subject.classes,
            model=os.path.relpath(self.source, folder) if there else self.source,
            at="last",
            model_hash=self.name,
            data=data.source,
            own=True,
            image_shape=subject.store.shape,
            fit=data.fit,
            background=data.background,
            temperature=learned.temperature,
        )
        save_probe(folder / PROBE, facts, learned.tensors())


def of_denoiser(
    source: str, features: OwnFeatures, device: torch.device, precision: str, micro_batch: int, seed: int
) -> OfDenoiser:
    """The features of the denoiser there. Raises `UserError` for a classifier, and for layers that it has not."""
    denoiser = load(source, device=device)
    if not isinstance(denoiser, Denoiser):
        raise UserError(f"features.model={source}", "holds a classifier", "give a denoiser's run")
    precision = numbers(precision, device)
    denoiser.autocast = DTYPES[precision]
    reader = reader_of(denoiser, features, micro_batch, seed)
    return OfDenoiser(reader, source, model_hash(denoiser), features.pool, precision)


def reader_of(denoiser: Denoiser, features: OwnFeatures, micro_batch: int, seed: int) -> Reader:
    """What reads these features. Raises `UserError` for layers, levels and poolings that the denoiser does not have."""
    layers = features.layers or middle_layers(denoiser)
    places = [(layer, float(sigma)) for sigma in features.sigmas for layer in layers]
    return Reader(denoiser, places, features.pool, features.draws, seed, micro_batch=micro_batch)


def middle_layers(denoiser: Denoiser) -> tuple[str, ...]:
    """Two layers soon after the middle, where features of diffusion models tell most (Xiang et al. 2023, section 4)."""
    decoder = [name for name in denoiser.layers if name.startswith("dec.")]
    if not decoder:  # a transformer: blocks behind the middle
        names = list(denoiser.layers)
        return tuple(names[len(names) // 2 :][:2])
    start = max(1, len(decoder) // 4) if len(decoder) > 2 else 0
    return tuple(decoder[start : start + 2])


def numbers(precision: str, device: torch.device) -> str:
    """The number format of a network that is read; `auto` depends on nothing but the device."""
    if precision != "auto":
        return precision
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bf16" if fast else "fp32"


@dataclass
class OfEncoder:
    """Features of a frozen encoder. name: what `encoder` takes, wherever the classifier is used."""

    reads: Any
    name: str
    micro_batch: int

    @property
    def facts(self) -> dict[str, Any]:
        return {"encoder": self.reads.name, "version": self.reads.version}

    def embed(self, images: Tensor) -> Tensor:
        size = min(self.micro_batch, getattr(self.reads, "batch", self.micro_batch))
        return torch.cat([self.reads.embed(part).float().cpu() for part in images.split(size)])

    def save(self, folder: Path, learned: Learned, subject: Subject) -> None:
        data = subject.store.settings
        facts = EncodedFacts(
            kind=learned.kind,
            encoder=self.name,
            version=self.reads.version,
            classes=subject.classes,
            data=data.source,
            image_shape=subject.store.shape,
            fit=data.fit,
            background=data.background,
            temperature=learned.temperature,
        )
        save_encoded(folder / ENCODED, facts, learned.tensors())


def of_encoder(features: EncoderFeatures, device: torch.device, micro_batch: int) -> OfEncoder:
    """The encoder of this name. Raises `UserError` where there is none, or it does not take its images' size."""
    return OfEncoder(encoder(features.encoder, device=device), anywhere(features.encoder), micro_batch)


def anywhere(name: str) -> str:
    """The name of an encoder, with a path in it (`cls:models/vit`) made absolute."""
    kind, _, source = name.partition(":")
    path = Path(source).expanduser()
    return f"{kind}:{path.resolve()}" if source and path.exists() else name
