"""The models that are served: found once, from the folders that the server was given, and never from a request."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..denoiser import Denoiser, JointDenoiser
from ..errors import UserError
from ..generate.edit import Recipe, recipe
from ..generate.labels import class_names
from ..generate.sample import Plan, image_shape, plan
from ..generate.usual import usual
from ..hashing import model_hash
from ..learn.fastest import DTYPES
from ..learn.fastest import precision as fastest
from ..recognize.classifier import answering
from ..recognize.probe import ProbeClassifier, read_probe
from ..recognize.saved_heads import restore
from ..recognize.zero_shot import ZeroShotClassifier
from ..run import Run, load_to_use, newest_probe
from ..run.features import reader_for
from ..run.load import PROBE, is_model
from ..settings.data import DataSettings
from ..settings.serve import ServeSettings
from . import schemas

ZERO_SHOT_CLASSES = 20  # more of them take too long to be tried one by one while somebody waits
TRIALS = ((8, 3), (32, 1))  # of zero-shot answers


@dataclass(eq=False)
class Served:
    """A model on one device, and what it can do.

    denoiser: what makes images. answers: a classifier of clean images; by: who that is. reader: what embeds images.
    trained: settings of its run's data, None where it is no run. report: the page of its run.
    """

    name: str
    denoiser: Denoiser | None
    answers: Any
    by: str
    reader: Any
    shape: tuple[int, int, int]
    trained: DataSettings | None = None
    report: Path | None = None
    searched: bool = False  # whether its training images are looked at for neighbours
    neighbours: Any = None  # set when they are known, see `neighbours`
    plans: Any = field(init=False)

    def __post_init__(self) -> None:
        self.plans = lru_cache(maxsize=256)(self._plan)

    @property
    def kind(self) -> str:
        """denoiser, joint (one network that does both) or classifier."""
        if self.denoiser is None:
            return "classifier" if self.answers is not None else "encoder"
        return "joint" if isinstance(self.denoiser, JointDenoiser) else "denoiser"

    @property
    def how(self) -> DataSettings:
        """How pictures become what the model takes: as its training images did."""
        facts = getattr(self.answers, "facts", None) or self.trained
        fitted = {"fit": facts.fit, "background": facts.background} if facts else {}
        c, h, w = self.shape
        return DataSettings.model_validate({"source": "request", "size": (h, w), "channels": c, **fitted})

    @property
    def guides(self) -> list[str]:
        """Who can guide it beside its labels."""
        return ["own", "representations"] if isinstance(self.denoiser, JointDenoiser) else []

    @property
    def abilities(self) -> list[str]:
        """What can be asked of it."""
        made = ["generate", "inpaint", "vary"] if self.denoiser is not None else []
        named = ["classify"] if self.answers is not None else []
        read = ["embed"] if self.reader is not None else []
        near = ["neighbours"] if self.searched else []
        changed = ["edit"] if self.editor is not None else []
        return made + named + read + near + changed + (["report"] if self.report else [])

    @property
    def editor(self) -> Recipe | None:
        """Counterfactuals as they are usually made; None where nobody could say whether an edit has arrived."""
        return self.recipe()

    def recipe(self, **how: Any) -> Recipe | None:
        """The same, changed as asked for. Raises `UserError`."""
        model = self.denoiser
        if model is None or getattr(model.codec, "latent", False):
            return None
        if isinstance(model, JointDenoiser):
            return recipe(model, **how)
        same = self.by == "probe" and list(self.answers.class_names) == class_names(model)
        return recipe(model, **{"guide": "labels", "asked": self.answers, **how}) if same else None

    def _plan(self, **how: Any) -> Plan:
        assert self.denoiser is not None
        return plan(self.denoiser, **how)

    def described(self, limits: ServeSettings) -> dict[str, Any]:
        """What the API says of it."""
        from ..generate.samplers import SAMPLERS

        model = self.denoiser
        sampler, steps = usual(model, None, None)
        weights = model if model is not None else self.answers if self.answers is not None else self.reader
        parameters = sum(p.numel() for p in weights.parameters()) if isinstance(weights, torch.nn.Module) else 0
        multi = bool(getattr(self.answers, "multi_label", False))
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.shape),
            "classes": [] if model is None or not model.classes else class_names(model),
            "answers": [] if self.answers is None else list(self.answers.class_names),
            "answers_by": self.by,
            "multi_label": multi,
            "guides": self.guides,
            "abilities": self.abilities,
            "samplers": {} if model is None else {name: sampler.steps for name, sampler in SAMPLERS.items()},
            "defaults": {"sampler": sampler, "steps": steps or SAMPLERS[sampler].steps, "guidance": 1.0},
            "limits": {name: getattr(limits, name) for name in schemas.Limit.model_fields},
            "sigma_range": None if model is None else list(model.sigma_range),
            "parameters": parameters,
            "data": None if self.trained is None else _plain_name(self.trained.source),
        }


def _plain_name(source: str) -> str:
    """A source without the folders above it, which are nobody's business."""
    return Path(source.rstrip("/")).name or source


def find(sources: Sequence[str]) -> dict[str, str]:
    """{name: where it is} of the models in these places: runs, files, or folders that hold some. Raises `UserError`."""
    found: dict[str, str] = {}
    for source in sources:
        path = Path(source)
        inside = [] if is_model(path) or not path.is_dir() else sorted(one for one in path.iterdir() if is_model(one))
        if path.is_dir() and not is_model(path) and not inside:
            raise UserError(source, "holds no model", "give runs, or a folder of runs")
        for one in inside or [path]:
            if one.is_file() and inside and one.suffix != ".safetensors":
                continue
            name = (
                re.sub(r"[^A-Za-z0-9_.-]+", "-", one.resolve().name if one.exists() else str(one)).strip("-.")
                or "model"
            )
            if name in found and found[name] != str(one):
                hint = f"both {found[name]} and {one} would be called so; rename one of the folders"
                raise UserError(str(one), f"a model {name!r} is served already", hint)
            found[name] = str(one)
    return found


def load_all(
    sources: dict[str, str],
    settings: ServeSettings,
    device: torch.device,
    named: Sequence[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Served]:
    """Every model, on a device. named: what was asked for by name; others were found in a folder, and are left out,
    which is told, where they cannot be served. Raises `UserError` for one of the named, and where none is left.
    """
    found: dict[str, Served] = {}
    for name, source in sources.items():
        try:
            found[name] = load_one(name, source, settings, device)
        except UserError as error:
            if source in named or len(sources) == 1:
                raise
            tell(f"left out: {error.where} {error.what}")
    if not found:
        raise UserError(", ".join(sources), "none of them can be served", "give the runs of denoisers or classifiers")
    return found


def load_one(name: str, source: str, settings: ServeSettings, device: torch.device) -> Served:
    """One model with whatever was fitted on it."""
    model: Any = load_to_use(source, device=device)
    probe = model if isinstance(model, ProbeClassifier) else None
    if probe is not None:
        model = probe.denoiser
    home = Path(source).parents[1] if (Path(source) / PROBE).is_file() else Path(source)
    run = Run.open(home) if (home / "settings.yaml").is_file() else None
    trained = run.settings().data if run else None
    page = run.path / "report.html" if run else None
    page = page if page is not None and page.is_file() else None
    if isinstance(model, Denoiser):
        if getattr(model, "low_factor", 0):
            raise UserError(source, "is a super-resolution model, which is not served yet", "use `twofold upscale`")
        _set_precision(model, settings.precision, image_shape(model), device)
        probe = probe or _newest(source, model)
        answers, by = _answers(model, probe)
        return Served(name, model, answers, by, reader_for(model, probe), image_shape(model), trained, page)
    if hasattr(model, "masks") or hasattr(model, "points"):
        raise UserError(source, "answers with masks or points, which are not served", "use `twofold predict`")
    if model.class_names:
        return Served(name, None, model, "classifier", None, tuple(model.shape), trained, page)
    return Served(name, None, None, "", Embedder(model), tuple(model.shape), trained, page)


def _set_precision(model: Denoiser, wanted: str, shape: tuple[int, ...], device: torch.device) -> None:
    model.autocast = DTYPES[fastest(model, model.shape, device) if wanted == "auto" else wanted]


def _newest(source: str, model: Denoiser) -> ProbeClassifier | None:
    """The newest probe of this very model, on it."""
    folder = newest_probe(source, model=model_hash(model))
    if folder is None:
        return None
    facts, tensors = read_probe(folder / PROBE)
    return ProbeClassifier(model, restore(facts.kind, tensors), facts)


def _answers(model: Denoiser, probe: ProbeClassifier | None) -> tuple[Any, str]:
    """Who names what is in an image, and what kind of somebody that is."""
    own = answering(model)
    if own is not None:
        return own, "head"
    if probe is not None:
        return probe, "probe"
    if 0 < model.classes <= ZERO_SHOT_CLASSES and len(class_names(model)) == model.classes:
        return ZeroShotClassifier(model, rounds=TRIALS), "zero-shot"
    return None, ""


class Embedder:
    """An encoder where a `Reader` is expected."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.places = encoder, [(encoder.name, 0.0)]

    @torch.no_grad()
    def read(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, C, H, W) -> (N, D) float32 on the CPU."""
        return self.encoder.embed(images.to(next(self.encoder.parameters()).device)).float().cpu()


def device_of(served: Served) -> torch.device:
    """Where its weights are."""
    for model in (served.denoiser, served.answers, getattr(served.reader, "encoder", None)):
        if isinstance(model, torch.nn.Module):
            return next((weight.device for weight in model.parameters()), torch.device("cpu"))
    return torch.device("cpu")
