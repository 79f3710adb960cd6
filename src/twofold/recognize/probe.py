"""A fitted probe: a frozen denoiser, the places it is read at, and a head; as a `Classifier`, and as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..denoiser import Denoiser
from ..errors import UserError
from ..files import atomic_file
from ..noise import as_sigma
from .choose import Head, Place
from .reader import Reader

FORMAT = "2"


@dataclass(frozen=True)
class ProbeFacts:
    """Everything about a probe but its numbers.

    kind: of head. model: where the denoiser is, relative to the file where it is a path; at: its snapshot; model_hash:
    of the denoiser. data: the source it was fitted on; own: whether that is what the denoiser was trained on.
    image_shape, fit, background: how images are made the model's. temperature: divides logits (Guo et al. 2017).
    """

    kind: str
    places: Sequence[Place]
    pool: str
    clean: bool
    draws: int
    seed: int
    classes: Sequence[str]
    model: str
    at: str
    model_hash: str
    data: str
    own: bool
    image_shape: tuple[int, int, int]
    fit: str = "crop"
    background: str = "white"
    temperature: float = 1.0


class ProbeClassifier(nn.Module):
    """The `Classifier` that a frozen denoiser and a head on its features make; for clean images.

    `logits` adds the noise the probe was fitted at, keyed by the image's pixels, and averages over `draws`.
    """

    def __init__(
        self, denoiser: Denoiser, head: Head, facts: ProbeFacts, draws: int | None = None, micro_batch: int = 128
    ) -> None:
        super().__init__()
        self.denoiser, self.head, self.facts = denoiser, head, facts
        for name, value in head.tensors().items():  # part of what this classifier is, as its hash must say
            self.register_buffer(f"head_{name}".replace(".", "_"), value)
        self.class_names = list(facts.classes)
        self.shape, self.codec = tuple(facts.image_shape), denoiser.codec
        places = [(layer, float(sigma)) for layer, sigma in facts.places]
        draws = facts.draws if draws is None else draws
        self.reader = Reader(denoiser, places, facts.pool, draws, facts.seed, facts.clean, micro_batch)

    def image_logits(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> (N, K) on the CPU; their softmax is calibrated on the validation part."""
        return self.head.logits(self.reader.read(images)) / self.facts.temperature

    def logits(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """(B, K) for clean x0 (B, C, H, W). Raises `ValueError` for sigma > 0: it adds noise of its own."""
        if float(as_sigma(sigma).max()) > 0:
            raise ValueError("a probe adds noise of its own; give it sigma = 0")
        return self.image_logits(self.codec.decode(x).cpu()).to(x.device)


def save_probe(path: Path, facts: ProbeFacts, tensors: Mapping[str, Tensor]) -> None:
    """Writes a probe, atomically."""
    metadata = {"twofold": json.dumps({"format": FORMAT, "holds": "probe", **asdict(facts)})}
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    atomic_file(path, lambda temporary: save_file(plain, temporary, metadata))


def read_probe(path: Path) -> tuple[ProbeFacts, dict[str, Tensor]]:
    """What `save_probe` wrote. Raises `UserError` for anything else."""
    try:
        with safe_open(path, "pt", device="cpu") as file:
            facts = json.loads((file.metadata() or {}).get("twofold", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(str(path), f"not a readable probe ({error})", "run `twofold probe` again") from None
    if facts.pop("holds", None) != "probe":
        raise UserError(str(path), "holds no probe", "give a folder that `twofold probe` wrote")
    if facts.pop("format") != FORMAT:
        raise UserError(str(path), f"has another format than {FORMAT}", "run `twofold probe` again")
    if set(facts) != {field.name for field in fields(ProbeFacts)}:
        raise UserError(str(path), "was written by another version", "run `twofold probe` again")
    facts["places"] = [(layer, sigma) for layer, sigma in facts["places"]]
    facts["image_shape"] = tuple(facts["image_shape"])
    return ProbeFacts(**facts), tensors
