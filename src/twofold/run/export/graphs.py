"""What an exported model computes: uint8 images (B, C, H, W) in, named answers out, with all that is between inside.

task              outputs
classification    probabilities (B, K), logits (B, K)
segmentation      masks (B, H, W) uint8, probabilities (B, K, H, W)
landmarks         points (B, P, 2), x and y in pixels of the images, confidence (B, P)
embedding         embedding (B, D)
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...denoiser import Denoiser, JointDenoiser
from ...errors import UserError
from ...measure import probabilities
from ...measure.encoders import image_logits
from ...noise import Coefficients, expand
from ...recognize.backbone import Backbone
from ...recognize.classifier import JointClassifier, NetworkClassifier
from ...recognize.heatmaps import decode
from ...recognize.landmarker import NetworkLandmarker
from ...recognize.segmenter import NetworkSegmenter

TRIES = 16  # random changes of heat maps that look for ties


class Graph(nn.Module):
    """forward(images) -> its outputs, in the order of `outputs` {name: what it is}.

    model: what is exported. classes: what K or P counts. `reference` asks the model itself, in its own way, for what
    forward must give. exact: outputs that are chosen and not computed, so that a tie may go either way.
    """

    task: ClassVar[str]
    outputs: ClassVar[dict[str, str]]
    exact: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.shape: tuple[int, int, int] = tuple(model.shape)
        self.classes = list(model.class_names)

    def reference(self, images: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def more_facts(self) -> dict[str, Any]:
        """What else whoever uses the file must know."""
        return {}

    def tied(self, images: Tensor, tolerance: float) -> dict[str, Tensor]:
        """Of each output in `exact` where a change by the tolerance would choose otherwise, as booleans."""
        return {}


class Naming(Graph):
    """A classifier of clean images, or one that is told they are clean."""

    c_in: Tensor
    c_noise: Tensor

    task = "classification"
    outputs = {"probabilities": "(B, K) float32", "logits": "(B, K) float32"}

    def __init__(self, model: NetworkClassifier | JointClassifier) -> None:
        super().__init__(model)
        denoiser = model.joint if isinstance(model, JointClassifier) else None
        self.network = denoiser.network if denoiser is not None else model.network
        told = _clean(denoiser or model)
        self.reads, self.told = denoiser is not None, told is not None
        if told is not None:
            self.register_buffer("c_in", told.c_in.float())
            self.register_buffer("c_noise", told.c_noise.float())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.model.codec.encode(images)
        logits = self._logits(x).float()
        return logits.sigmoid() if self.model.multi_label else logits.softmax(1), logits

    def more_facts(self) -> dict[str, Any]:
        return {"multi_label": self.model.multi_label}

    def _logits(self, x: Tensor) -> Tensor:
        network: Any = self.network
        if not self.told:
            return network(x)
        inputs = expand(self.c_in, x) * x, self.c_noise.expand(len(x))
        if self.reads:
            return network.read(network.encode(*inputs, None))
        return network(*inputs)

    def reference(self, images: Tensor) -> dict[str, Tensor]:
        return {"probabilities": probabilities(self.model, images), "logits": image_logits(self.model, images)}


def _clean(model: Any) -> Coefficients | None:
    """How a model that knows noise is told that there is none: scaled as what it is, named by the smallest level."""
    if model.family is None:
        return None
    scaled = model.family.coefficients(torch.tensor(torch.finfo(torch.float64).tiny, dtype=torch.float64))
    known = model.family.coefficients(torch.tensor(model.sigma_range[0], dtype=torch.float64))
    return Coefficients(scaled.c_skip, scaled.c_out, scaled.c_in, known.c_noise)


class Masking(Graph):
    """A segmenter: for each pixel the most probable class, and the probabilities of all."""

    task = "segmentation"
    outputs = {"masks": "(B, H, W) uint8, index of the class", "probabilities": "(B, K, H, W) float32"}
    exact = ("masks",)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(self.model.codec.encode(images))
        return logits.argmax(1).to(torch.uint8), logits.softmax(1)

    def reference(self, images: Tensor) -> dict[str, Tensor]:
        return {"masks": self.model.masks(images), "probabilities": self.model.probabilities(images)}

    def tied(self, images: Tensor, tolerance: float) -> dict[str, Tensor]:
        top = self.model.probabilities(images).topk(2, 1).values
        return {"masks": top[:, 0] - top[:, 1] < 2 * tolerance}


class Pointing(Graph):
    """A landmarker: heat maps, those of the mirror image where it uses them, and the points read off them."""

    task = "landmarks"
    outputs = {
        "points": "(B, P, 2) float32, x and y in pixels of the images, 0 = the middle of the first one",
        "confidence": "(B, P) float32, the height of the heat map",
    }
    exact = ("points",)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        points, confidence = self.model.located(self.model.codec.encode(images))
        return points, confidence

    def reference(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.outputs, self.model.points(images), strict=True))

    def tied(self, images: Tensor, tolerance: float) -> dict[str, Tensor]:
        """Points that move by more than the tolerance allows where heat maps change by a tenth of it, at random."""
        model, random = self.model, torch.Generator().manual_seed(0)
        heat = model.tested(model.codec.encode(images))
        small = 0.1 * tolerance * max(1.0, float(heat.abs().max()))
        before, _ = decode(heat, model.quarter_shift, model.unbiased)
        found = torch.zeros(heat.shape[:2], dtype=torch.bool)
        for _ in range(TRIES):
            change = small * (2 * torch.rand(heat.shape, generator=random) - 1)
            after, _ = decode(heat + change, model.quarter_shift, model.unbiased)
            found |= (after - before).abs().amax(-1) > tolerance
        return {"points": found}


class Embedding(Graph):
    """A backbone without a head: the means of its last maps."""

    task = "embedding"
    outputs = {"embedding": "(B, D) float32"}

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.model(self.model.codec.encode(images)),)

    def reference(self, images: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.model.embed(images)}


KINDS: dict[type, type[Graph]] = {NetworkSegmenter: Masking, NetworkLandmarker: Pointing, Backbone: Embedding}


def graph_of(model: Any, where: str) -> Graph:
    """What of a model is exported. Raises `UserError` for one that answers nothing, or not by its network alone.

    model: as `twofold.load` returns it. A joint model gives its classifier.
    """
    if isinstance(model, JointDenoiser):
        model = JointClassifier(model)
    if isinstance(model, NetworkClassifier | JointClassifier):
        if model.sigma:
            what = f"is asked at the noise level {model.sigma:g}, with noise that is drawn for every image"
            raise UserError(where, what, "export a classifier that is asked about clean images")
        return Naming(model)
    for kind, graph in KINDS.items():
        if isinstance(model, kind):
            return graph(model)
    if isinstance(model, Denoiser):
        what = "holds a denoiser, and an exported model answers in one step"
        hint = (
            "to=diffusers writes it for diffusers; or teach a small network from it, and export that: twofold distill"
        )
        raise UserError(where, what, hint)
    what = f"holds a {type(model).__name__}, which is more than one network and cannot be exported"
    raise UserError(where, what, "export a classifier, a segmenter, a landmarker or a distilled backbone")
