"""The distillation objective: a student's maps imitate those of a frozen diffusion model.

    sigma ~ selection
    loss = losses(student's maps of x0, teacher's maps of x0 at sigma) + what the selection learns from

RepFusion, Yang and Wang 2023. The teacher is asked in every step, or once about every image (see
`distilling.answers`). No label is needed, but those there are reward a policy that is asked to. Of held-out images it
is the losses alone, at levels spread evenly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ...data import Store, spread
from ...data.warp import WARP_DRAWS, warp
from ...errors import UserError
from ...networks.students.parts import with_all
from ...recognize.backbone import Backbone
from ...settings.distilling import Distill
from ...settings.selection import LABELLED
from ..batches import U_AUGMENT, U_FLIP, U_SIGMA, Batch
from ..distilling.answers import Answers, Asking, ask
from ..distilling.losses import Losses
from ..distilling.scale import Scale
from ..distilling.selection import make_selection
from ..distilling.teacher import Teacher
from .base import Apart, Objective


class DistillObjective(Objective):
    """forward(batch) -> loss per image (B,).

    teacher: held beside, not registered (see `Teacher`). helpers: the losses with their adapters, the selection with
    its policy; none of them is part of the backbone that is saved.
    """

    classifies = False

    def __init__(self, model: Backbone, settings: Distill, seed: int = 0) -> None:
        super().__init__()
        self.model, self.settings, self.network = model, settings, model.network
        teacher = Teacher(settings.teacher, settings.teacher_layers, settings.input, model.shape)
        self._held = (teacher,)
        model.noise_shape = teacher.x0_shape
        self.student_layers = student_layers(model, teacher, settings.student_layers)
        self._places = [list(model.layers).index(name) for name in self.student_layers]
        pairs = [
            (t.channels, model.layers[s].channels) for t, s in zip(teacher.layers, self.student_layers, strict=True)
        ]
        width = sum(layer.channels for layer in teacher.layers)
        selection = make_selection(
            settings.sigma, teacher.levels, teacher.denoiser.sigma_range, model.shape, width, len(model.data_classes)
        )
        _check_pairs(settings, len(pairs))
        self.helpers = nn.ModuleDict({"losses": Losses(pairs, settings.losses), "selection": selection})
        if selection.policy is not None and not getattr(settings.sigma, "shared", True):
            self.apart = {"selection": Apart(settings.sigma.optimizer, settings.sigma.lr)}  # type: ignore[union-attr]
        self.learns_levels = selection.policy is not None
        self.heeds_labels = getattr(settings.sigma, "reward", None) in LABELLED
        self._u_student = U_AUGMENT + WARP_DRAWS
        self._u_pick = self._u_student + WARP_DRAWS
        self.uniforms = self._u_pick + selection.uniforms
        self.needs_noise = settings.input == "noised" and settings.cache == "none"
        self.scale = Scale([layer.channels for layer in teacher.layers]) if settings.standardise else None
        self._answers: Answers | None = None
        self._mirrors = False
        self._seen = 0.0
        self.to(next(model.network.parameters()).device)

    @property
    def teacher(self) -> Teacher:
        return self._held[0]

    @property
    def selection(self) -> Any:
        assert self.helpers is not None
        return self.helpers["selection"]

    # -- before the first step ------------------------------------------------------------------------------------

    def prepare(self, store: Store, flip: bool, device: torch.device, rank: int, world: int) -> Iterator[str]:
        """Moves the teacher, finds the scale of its channels, asks it where answers are kept. Yields what to tell."""
        self.teacher.to(device, self.model.autocast)
        rows, s = store.indices("train"), self.settings
        if self.heeds_labels and not bool((store.labels[rows] >= 0).any()):
            what = f"rewards a policy by labels (reward={s.sigma.reward}), and no training image has one"  # type: ignore[union-attr]
            raise UserError("objective.sigma", what, "use reward=infonce, or label some images")
        if self.scale is not None:
            self._find_scale(store, device)
        self._mirrors = flip
        if s.cache != "none":
            asking = Asking(self.teacher, self.selection.sigmas, s.cache, device)
            for found in ask(asking, store, rows, flip, rank, world):
                if isinstance(found, Answers):
                    self._answers = found
                elif found[1]:
                    yield f"asking the teacher once: {found[0]:,} of {found[1]:,}"

    def _find_scale(self, store: Store, device: torch.device) -> None:
        """Mean and deviation of each channel, over some training images at levels that the selection may pick."""
        assert self.scale is not None
        rows = store.indices("train")
        rows = rows[spread(len(rows), self.scale.images)]
        generator = torch.Generator().manual_seed(0)
        for part in torch.from_numpy(rows).split(self.scale.batch):
            x0 = self.model.codec.encode(store.batch(part)).to(device)
            noise = torch.randn((len(part), *self.teacher.x0_shape), generator=generator).to(device)
            u = torch.rand((len(part), self.selection.uniforms), generator=generator, dtype=torch.float64)
            with torch.no_grad():
                choice = self.selection.to(device).pick(x0, u, 0.0)
            maps = self.teacher.maps(x0, choice.sigma, noise)
            if choice.pair is not None:  # each layer at the levels that it is read at
                maps = [one[(choice.pair == i).to(device)] for i, one in enumerate(maps)]
            self.scale.add(maps)
        self.scale.finish()

    # -- steps ----------------------------------------------------------------------------------------------------

    def begin(self, start: int, label: Tensor) -> None:
        self._seen = float(start)
        known = int((label >= 0).sum())
        self.selection.begin(len(label) / known if known else None)

    def observe(self, start: int, losses: Tensor) -> None:
        """A learned selection takes in the rewards of the step."""
        world = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        self.selection.observe(len(losses) // world)

    def asked(self, label: Tensor) -> int:
        return 0

    def forward(self, batch: Batch) -> Tensor:
        x0 = self.model.codec.encode(batch.images)
        if not self.training:
            choice = self.selection.pick(x0, self._spread(batch.uniforms[:, U_SIGMA]), self._seen)
            return self._imitation(self._mine(x0), self._live(x0, choice, batch.noise), choice)
        if self.settings.warp.moves or self.settings.warp.colour:
            x0 = warp(x0, batch.uniforms[:, U_AUGMENT : self._u_student], self.settings.warp)[0]
        choice = self.selection.pick(x0, batch.uniforms[:, self._u_pick :], self._seen)
        theirs, pooled, every = self._taught(batch, x0, choice)
        if self.settings.student_warp.moves or self.settings.student_warp.colour:
            x0 = warp(x0, batch.uniforms[:, self._u_student : self._u_pick], self.settings.student_warp)[0]
        mine = self._mine(x0)
        loss = self._imitation(mine, theirs, choice)
        vector = mine[-1].detach().mean((2, 3))
        learned: Tensor = self.selection.losses(choice, pooled, every, batch.label, self._seen, vector)
        return loss + learned

    def _spread(self, u: Tensor) -> Tensor:
        """(B, uniforms) even draws of levels: places u (B,) in order, within each layer pair's part likewise."""
        return torch.stack([u, *[(u * len(self._places)) % 1] * (self.selection.uniforms - 1)], 1)

    def _mine(self, x0: Tensor) -> list[Tensor]:
        """The student's maps at its layers, and its last one behind them."""
        maps = self.model.maps(x0)
        return [*(maps[place] for place in self._places), with_all(maps[-1], maps)]

    def _imitation(self, mine: list[Tensor], theirs: list[Tensor], choice: Any) -> Tensor:
        if self.scale is not None:
            theirs = self.scale(theirs)
        assert self.helpers is not None
        loss: Tensor = self.helpers["losses"](mine[:-1], theirs, choice.pair)
        return with_all(loss, mine)

    def _live(self, x0: Tensor, choice: Any, noise: Tensor | None) -> list[Tensor]:
        return self.teacher.maps(x0, choice.sigma, noise)

    def _taught(self, batch: Batch, x0: Tensor, choice: Any) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """The teacher's maps at the chosen levels, their means over places (B, D), and those at every level."""
        every: Tensor | None = None
        if self._answers is not None:
            assert batch.rows is not None
            mirrored = (batch.uniforms[:, U_FLIP] < 0.5).numpy() if self._mirrors else None
            if self.selection.needs_all:
                numbers = self._answers(batch.rows, mirrored).to(x0.device)
                theirs, every = self._answers.maps(numbers, choice.bin.to(x0.device)), self._answers.pooled(numbers)
            else:
                theirs = self._answers.at(batch.rows, mirrored, choice.bin, x0.device)
        elif self.selection.needs_all:
            at_all = [self.teacher.maps(x0, s.expand(len(x0)), batch.noise) for s in self.selection.sigmas]
            every = torch.stack([_pooled(maps) for maps in at_all])
            here = torch.arange(len(x0), device=x0.device)
            theirs = [torch.stack(one)[choice.bin.to(x0.device), here] for one in zip(*at_all, strict=True)]
        else:
            theirs = self._live(x0, choice, batch.noise)
        return theirs, _pooled(theirs), every

    # -- what is learned besides the weights ----------------------------------------------------------------------

    def memory(self) -> dict[str, Tensor]:
        own = {} if self.scale is None else {f"scale/{name}": value for name, value in self.scale.state_dict().items()}
        return own | {f"selection/{name}": value for name, value in self.selection.memory().items()}

    def remember(self, memory: dict[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"scale": {}, "selection": {}}
        for name, value in memory.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = value
        if self.scale is not None:
            self.scale.load_state_dict(parts["scale"])
        self.selection.remember(parts["selection"])

    def learned(self) -> dict[str, Any]:
        teacher = self.teacher
        facts = {
            "source": self.settings.teacher,
            "layers": teacher.names,
            "student_layers": self.student_layers,
            "parameters": sum(p.numel() for p in teacher.denoiser.parameters()),
            "input": teacher.input,
        }
        return {"teacher": facts, "selection": self.chosen()}

    def chosen(self) -> dict[str, list[float]] | None:
        """How often each noise level is chosen, for the report: {"sigma": [...], "probability": [...]}."""
        if self.selection.sigmas is None or self.selection.probabilities() is None:
            return None
        return {"sigma": self.selection.sigmas.tolist(), "probability": self.selection.probabilities().tolist()}


def _pooled(maps: list[Tensor]) -> Tensor:
    return torch.cat([one.mean((2, 3)) for one in maps], 1)


def _check_pairs(settings: Distill, pairs: int) -> None:
    bounds = getattr(settings.sigma, "bounds", None)
    if bounds is not None and len(bounds) != pairs + 1:
        what = f"{len(bounds)} bounds make {len(bounds) - 1} bands for {pairs} layer pairs"
        raise UserError("objective.sigma.bounds", what, "give one band for each of teacher_layers")


def student_layers(model: Backbone, teacher: Teacher, given: tuple[str, ...]) -> list[str]:
    """The student's layer for each of the teacher's: those given, its last one for one, else the nearest in stride."""
    names = list(model.layers)
    if given:
        for name in given:
            if model.aliases.get(name, name) not in names:
                hint = f"it has {', '.join(names)}"
                raise UserError(f"objective.student_layers: {name}", "the student has no such layer", hint)
        return [model.aliases.get(name, name) for name in given]
    if len(teacher.names) == 1:
        return names[-1:]
    strides = {name: model.layers[name].stride for name in names}
    return [min(names[::-1], key=lambda name: abs(strides[name] - layer.stride)) for layer in teacher.layers]
