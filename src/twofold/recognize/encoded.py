"""A head on the features of a frozen encoder (MSN, DINOv2, ...): as a `Classifier`, and as a file.

The encoder itself is not in the file: it is named, and its version is compared when the file is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..codec import PixelCodec
from ..errors import UserError
from ..files import atomic_file
from ..measure.encoders import encoder
from ..noise import as_sigma
from .choose import Head
from .saved_heads import restore

FILE = "encoded.safetensors"
FORMAT = "1"
AGAIN = "run `twofold fewlabel` again"


@dataclass(frozen=True)
class EncodedFacts:
    """Everything about such a classifier but its numbers.

    kind: of head. encoder: its name, as `measure.encoders.encoder` takes it; version: what it was. data: the source it
    was fitted on. image_shape, fit, background: how images are prepared. temperature: divides logits.
    """

    kind: str
    encoder: str
    version: str
    classes: Sequence[str]
    data: str
    image_shape: tuple[int, int, int]
    fit: str = "crop"
    background: str = "white"
    temperature: float = 1.0


class EncodedClassifier(nn.Module):
    """The `Classifier` that a frozen encoder and a head make; for clean images. encoder: an `Encoder`."""

    def __init__(self, encoder: object, head: Head, facts: EncodedFacts, batch: int = 32) -> None:
        super().__init__()
        self.encoder, self.head, self.facts, self.batch = encoder, head, facts, batch
        for name, value in head.tensors().items():  # part of what this classifier is, as its hash must say
            self.register_buffer(f"head_{name}".replace(".", "_"), value)
        self.class_names = list(facts.classes)
        self.shape, self.codec = tuple(facts.image_shape), PixelCodec()

    @torch.no_grad()
    def image_logits(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> (N, K) on the CPU."""
        embed = self.encoder.embed  # type: ignore[attr-defined]
        features = torch.cat([embed(part).float().cpu() for part in images.split(self.batch)])
        return self.head.logits(features) / self.facts.temperature

    def logits(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """(B, K) for clean x0 (B, C, H, W). Raises `ValueError` for sigma > 0: encoders see clean images."""
        if float(as_sigma(sigma).max()) > 0:
            raise ValueError("a frozen encoder sees clean images; give it sigma = 0")
        return self.image_logits(self.codec.decode(x).cpu()).to(x.device)


def save_encoded(path: Path, facts: EncodedFacts, tensors: Mapping[str, Tensor]) -> None:
    """Writes such a classifier, atomically."""
    metadata = {"twofold": json.dumps({"format": FORMAT, "holds": "encoded", **asdict(facts)})}
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    atomic_file(path, lambda temporary: save_file(plain, temporary, metadata))


def load_encoded(path: Path, device: torch.device | str = "cpu") -> EncodedClassifier:
    """The classifier that `save_encoded` wrote, with its encoder. Raises `UserError` for anything else, and where the
    encoder is not the one it was fitted on.
    """
    try:
        with safe_open(path, "pt", device="cpu") as file:
            found = json.loads((file.metadata() or {}).get("twofold", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(str(path), f"not a readable classifier ({error})", AGAIN) from None
    names = {field.name for field in fields(EncodedFacts)}
    if found.pop("holds", None) != "encoded" or found.pop("format", None) != FORMAT or set(found) != names:
        raise UserError(str(path), "holds no classifier of this version", AGAIN)
    found["image_shape"] = tuple(found["image_shape"])
    facts = EncodedFacts(**found)
    reads = encoder(facts.encoder, device=device)
    if reads.version != facts.version:  # type: ignore[attr-defined]
        raise UserError(str(path), f"was fitted on another version of {facts.encoder}", AGAIN)
    return EncodedClassifier(reads, restore(facts.kind, tensors), facts)
