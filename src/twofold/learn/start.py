"""Fine-tuning: the weights that a run takes over from the model it starts from, once.

Weights of the same name and shape are taken. What belongs to classes is found by their names: a class of the same name
keeps its row, the others are new. Without a label, and with a label it knew, a denoiser begins as its source did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import JointDenoiser, NetworkDenoiser
from ..errors import UserError, some
from ..networks.autoencoder import AutoencoderModel
from ..networks.students import Student
from ..networks.trunk import Trunk
from ..networks.uvit import UViT
from ..recognize.classifier import NetworkClassifier
from ..run import Trained, same_autoencoder
from ..settings.train import TrainSettings
from .inherit import source_model, student_model

Model = NetworkDenoiser | NetworkClassifier
BACKBONE = "backbone."  # names of a student's weights that belong to no task
JOINT_HEAD = "head.out"  # a row for each class


@dataclass
class Started:
    """What came from where. taken: how many weights. new, left_out: names on one side only, or of another shape.

    kept_classes: those whose rows were carried over; None where there are no rows.
    """

    source: str
    taken: int = 0
    new: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    kept_classes: list[str] | None = None

    def facts(self) -> dict[str, Any]:
        return dict(vars(self))

    def note(self) -> str:
        parts = [f"started from {self.source}: {self.taken} weights"]
        if self.kept_classes is not None:
            parts.append(f"classes taken over: {some(self.kept_classes) or 'none'}")
        parts += [f"new: {some(self.new)}"] if self.new else []
        parts += [f"left out: {some(self.left_out)}"] if self.left_out else []
        return "; ".join(parts)


def start_from(model: Trained, settings: TrainSettings) -> tuple[list[str], dict[str, Any] | None]:
    """Gives a freshly built model the averaged weights of `init_from`. Returns what to tell the user, and all of it.

    Raises `UserError` where nothing fits, and for a trunk that misses a weight.
    """
    source = settings.init_from
    if source is None or isinstance(model, AutoencoderModel):
        return [], None
    if isinstance(model.network, Trunk):
        return _start_trunk(model.network, source)
    if isinstance(model.network, Student):
        return _start_student(model, source)
    assert isinstance(model, Model)
    started, other = Started(source), source_model(source, settings)
    if settings.codec is not None and not same_autoencoder(other.codec, getattr(model, "codec", None)):
        hint = f"give codec={source}, or start from another model"
        raise UserError(f"init_from={source}", "knows the latents of another autoencoder", hint)
    _take(model, other, started)
    if not started.taken:
        raise UserError(f"init_from={source}", "has no weight that fits this network", "give the run of another model")
    return [started.note()], started.facts()


def _start_student(model: Any, source: str) -> tuple[list[str], dict[str, Any]]:
    """The backbone's weights, all of them; a head's where it is of the same kind and shape, and of the same classes."""
    other, started = student_model(source), Started(source)
    same = list(other.class_names) == list(model.class_names)
    ours, theirs = model.network.state_dict(), other.network.state_dict()
    for name, value in ours.items():
        fits = name in theirs and theirs[name].shape == value.shape
        if fits and (same or name.startswith(BACKBONE)):
            value.copy_(theirs[name])
            started.taken += 1
        elif name.startswith(BACKBONE):
            hint = "leave network.backbone out: it is taken from there"
            raise UserError(f"init_from={source}", f"has another backbone (its {name} does not fit)", hint)
        else:
            started.new.append(name)
    started.left_out += [name for name in theirs if name not in ours]
    return [started.note()], started.facts()


def _start_trunk(network: Trunk, source: str) -> tuple[list[str], dict[str, Any] | None]:
    """Weights of layers that the trunk has not are left out and named; all that it has must be there."""
    if not network.settings.pretrained:
        return [f"the network of {source}, trained from scratch (network.pretrained=false)"], None
    theirs, ours = source_model(source).network.state_dict(), network.unet.state_dict()
    missing = [name for name in ours if name not in theirs or theirs[name].shape != ours[name].shape]
    if missing:
        what = f"{len(missing)} weights of the trunk are not there: {some(missing)}"
        raise UserError(f"init_from={source}", what, "it is not the model this run was begun with")
    network.unet.load_state_dict({name: theirs[name] for name in ours})
    left = [name for name in theirs if name not in ours]
    modules = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in left))
    note = f"started from {source}: {len(ours)} weights"
    after = f"; left out, because they run after {list(network.layers)[-1]}: {', '.join(modules)}"
    return [note + after if left else note], Started(source, len(ours), [], left).facts()


@torch.no_grad()
def _take(model: Model, source: Model, started: Started) -> None:
    """Copies what fits, by name, and what belongs to classes by theirs."""
    ours, theirs = model.network.state_dict(), source.network.state_dict()  # shares memory with the weights
    special = _take_classes(model, source, started)
    for name, value in ours.items():
        if name in special:
            continue
        fitting = _fitting(model.network, name, value, theirs[name]) if name in theirs else None
        if fitting is not None:
            value.copy_(fitting)
            started.taken += 1
        else:
            started.new.append(name)
            if ".augment." in name:  # as without augmentation
                value.zero_()
    started.left_out += [name for name in theirs if name not in ours or name in started.new]
    if isinstance(model, NetworkDenoiser) and not model.classes:
        _keep_no_label(model.network, source.network, source.classes)
    elif isinstance(model.network, UViT) and not source.classes:
        _empty_first_token(model.network)


def _fitting(network: Any, name: str, ours: Tensor, theirs: Tensor) -> Tensor | None:
    """The weight as this network has it: the same, or with what is said of the variance dropped or added as zeros."""
    if ours.shape == theirs.shape:
        return theirs
    if name == "positions" and ours.shape[2] == theirs.shape[2]:
        return _positions(ours, theirs)
    layer = name.rpartition(".")[0]
    if layer not in ("out", "head.out") or ours.shape[1:] != theirs.shape[1:]:  # of a U-Net, of a DiT
        return None
    pixels = network.settings.patch**2 if layer == "head.out" else 1  # a DiT's rows are those of pixel after pixel
    rows = theirs.unflatten(0, (pixels, -1))
    if 2 * len(ours) == len(theirs):
        return rows[:, : rows.shape[1] // 2].flatten(0, 1)
    return torch.cat([rows, torch.zeros_like(rows)], 1).flatten(0, 1) if len(ours) == 2 * len(theirs) else None


def _positions(ours: Tensor, theirs: Tensor) -> Tensor | None:
    """Rows (1, N, D) of a U-ViT's tokens with the first one, that of a label, dropped or added."""
    if theirs.shape[1] == ours.shape[1] + 1:
        return theirs[:, 1:]
    return torch.cat([torch.zeros_like(theirs[:, :1]), theirs], 1) if ours.shape[1] == theirs.shape[1] + 1 else None


def _empty_first_token(network: UViT) -> None:
    """The token of a label that a U-ViT did not have begins as a patch with nothing in it, at the mean place.

    It is one token more that the others attend to; of what it could begin as this changes least.
    """
    empty = network.stem(torch.zeros_like(network.stem.weight[:1]))[:, :, 0, 0]
    network.positions[:, 0] = network.positions[:, network.extra :].mean(1) + empty


def _keep_no_label(network: nn.Module, source: nn.Module, classes: Any) -> None:
    """For a network without labels, what "no label" adds to the source's embedding becomes part of a bias.

    In a U-ViT it is a token by itself, and goes with it.
    """
    for name, label in source.named_modules():
        if name.split(".")[-1] != "label":
            continue
        here, there = (_module(side, name.rpartition(".")[0]) for side in (network, source))
        if isinstance(label, nn.Linear):
            here.first.bias += there.first.weight @ label.bias
        elif len(label.weight) > classes and hasattr(here, "second"):  # type: ignore[arg-type]
            here.second.bias += label.weight[-1]  # type: ignore[index]


def _take_classes(model: Model, source: Any, started: Started) -> set[str]:
    """Fills label embeddings, or the head of a classifier; returns the names of the weights that are seen to."""
    mine, known = list(model.class_names), list(source.class_names)
    classifies = isinstance(model, NetworkClassifier)
    if not known and not classifies and model.classes == source.classes:  # nobody said what they are called
        known = mine = [str(i) for i in range(source.classes)]
    pairs = [(i, known.index(label)) for i, label in enumerate(mine) if label in known]
    seen: set[str] = set()
    for name in _of_classes(model, len(mine)):
        here, there = _module(model.network, name), _module(source.network, name)
        if isinstance(model, NetworkClassifier) or name == JOINT_HEAD:
            _copy_head(here, there, pairs)
        else:
            _copy_labels(here, there, pairs, (model.classes, source.classes))
        started.kept_classes = [mine[i] for i, _ in pairs]
        seen |= {f"{name}.{part}" for part in here.state_dict()}
    return seen


def _of_classes(model: Model, classes: int) -> list[str]:
    """Names of the modules with a row for each class: label embeddings, the head of a classifier or a joint model."""
    if isinstance(model, NetworkClassifier):
        head = _head(model.network, classes)
        return [] if head is None else [head]
    labels = [name for name, module in model.network.named_modules() if name.split(".")[-1] == "label"]
    return [*labels, JOINT_HEAD] if isinstance(model, JointDenoiser) else labels


def _module(network: nn.Module, name: str | None) -> Any:
    return dict(network.named_modules()).get(name or "")  # None where there is none of this name


def _head(network: nn.Module, classes: int) -> str | None:
    """The last linear layer, if it has an output for each class."""
    linear = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1][0] if linear and linear[-1][1].out_features == classes else None


def _copy_head(here: nn.Linear, there: nn.Linear | None, pairs: list[tuple[int, int]]) -> None:
    for i, j in pairs if there is not None and there.in_features == here.in_features else []:
        here.weight[i] = there.weight[j]  # type: ignore[union-attr]
        here.bias[i] = there.bias[j]  # type: ignore[union-attr]


def _copy_labels(here: Any, there: Any, pairs: list[tuple[int, int]], counts: tuple[int, int]) -> None:
    """Rows of an embedding (a row more is "no label"), or columns of a linear layer on scaled one-hot labels.

    A new class begins as one of the source's, each as another one while there are any: the network has learned to tell
    those apart.
    """
    if isinstance(here, nn.Linear):
        here.bias.zero_()
    elif len(here.weight) > counts[0]:
        here.weight[-1] = 0
    if there is None or not counts[1]:  # a source without labels: all of them are as they were drawn
        return
    ours, theirs = here.weight, there.weight
    if isinstance(here, nn.Linear):
        here.bias.copy_(there.bias)
        ours, theirs = here.weight.T, math.sqrt(counts[1] / counts[0]) * there.weight.T  # a one-hot is sqrt(classes)
    elif len(ours) > counts[0] and len(theirs) > counts[1]:
        ours[-1] = theirs[-1]
    known = dict(pairs)
    free = [j for j in range(counts[1]) if j not in known.values()] or list(range(counts[1]))
    for k, i in enumerate(i for i in range(counts[0]) if i not in known):
        known[i] = free[k % len(free)]
    for i, j in known.items():
        ours[i] = theirs[j]
